"""whetstone watch: a run that lives, was killed or ended, read from its files alone."""

import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from report_kit import figures, rollout, write_stage

from pipeline.__main__ import main
from pipeline.cli import watch_frame, watch_view
from pipeline.config.load import ConfigError
from pipeline.run.lock import holder, locked

ROOT = Path(__file__).parents[2]
BLOCK = {"kind": "grpo", "steps": 40, "credit": {"kind": "group"},
         "alarms": {"mismatch_mean_abs": 0.1, "checker_broken_share": 0.2, "no_signal_steps": 20, "loss_abs": 1e4},
         "monitor": {"gap": 0.15, "fall": 0.15, "length_factor": 4.0, "format_drop": 0.3, "commonest_rise": 0.4,
                     "duplicate_rise": None, "window": 5, "baseline": 5, "alarm": None}}  # fmt: skip
GREP = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def step(number: int, **more) -> dict:
    return {"step": number, "reward_mean": number / 20, "entropy": 1.0, "length_mean": 5.0, "mismatch_mean_abs": 0.025,
            "checker_broken": 0.05, "groups_with_signal": 0.0 if number > 7 else 0.5, "policy_loss": -50.0,
            "canary_max_abs": 1e-4, "canary_limit": 1e-3, "monitor_format": 1.0 if number <= 5 else 0.85,
            "monitor_length_factor": 0.5, "monitor_commonest": 0.1, **more}  # fmt: skip


def samples(number: int) -> list[dict]:
    return [rollout(f"question {i % 3}", f"answer {i}", reward=float(i == 5), status="pass" if i == 5 else "fail",
                    step=number, detail="not 42") for i in range(6)]  # fmt: skip


def live(root: Path) -> Path:
    """sft is complete; grpo is at step 10 of 40, its last line half written."""
    write_stage(root, "sft", metrics=figures(0.5))
    place = write_stage(root, "grpo", complete=False, steps=[step(n) for n in range(1, 11)], rollouts=samples(9))
    (place / "begun.json").write_text(json.dumps({"config": {"stage": BLOCK}}))
    with (place / "metrics.jsonl").open("a") as log:
        log.write('{"step": 11, "reward_')
    (place / "timing.jsonl").write_text(
        "".join(json.dumps({"step": n, "elapsed_s": 2.0 * n}) + "\n" for n in range(11))
    )
    return root


def text_of(view) -> str:
    return "\n".join(watch_frame.draw(view, width=110, colour=False).lines)


def test_a_run_under_way_shows_its_step_its_figures_and_the_time_left(tmp_path):
    root = live(tmp_path / "r")
    with locked(root):
        view = watch_view.read(root)
        assert not view.alive, "a process does not see its own lock"
    assert (view.stage, view.step, view.steps, view.seconds_per_step) == ("grpo", 10, 40, 2.0)
    assert view.curves["reward_mean"] == [n / 20 for n in range(1, 11)]
    text = text_of(view)
    assert "✓ sft 0.500  … grpo" in text and "step 10 of 40" in text and "not running" in text
    assert re.search(r"reward +0\.500 +▁.*█ +0\.050", text)
    alive = watch_frame.draw(watch_view.View(**{**vars_of(view), "alive": True}), width=110, colour=False)
    long = watch_view.View(**{**vars_of(view), "alive": True, "name": f"/data/{'x' * 200}/last"})
    first = watch_frame.draw(long, width=60, colour=False).lines[0]
    assert first.startswith("…x") and first.endswith("/last  running") and len(first) <= 60
    assert "running" in alive.lines[0] and "1:00 left" in "\n".join(alive.lines) and alive.alive


def vars_of(view) -> dict:
    return {name: getattr(view, name) for name in view.__slots__}


def test_distances_to_every_alarm_by_hand_nearest_first(tmp_path):
    found = {a.name: a for a in watch_view.read(live(tmp_path / "r")).alarms}
    expected = {
        "generator and trainer on the samples": (0.025, 0.1, 0.25),
        "generator and trainer after a sync": (1e-4, 1e-3, 0.1),
        "checkers broken": (0.05, 0.2, 0.25),
        "largest loss": (50.0, 1e4, 0.005),
        "steps without a signal": (3, 20, 0.15),  # 8, 9 and 10
        "length, times the first": (0.5, 4.0, 0.5),  # halved: log 2 of log 4
        "fall of the format share": (0.15, 0.3, 0.5),  # 1.0 in the first five steps, 0.85 in the last five
        "rise of the commonest answer": (0.0, 0.4, 0.0),
    }
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert (found[name].now, found[name].limit, found[name].share) == pytest.approx(values), name
    shares = [alarm.share for alarm in found.values()]
    assert shares == sorted(shares, reverse=True)
    assert not found["fall of the format share"].stops and found["checkers broken"].stops


def test_the_newest_samples_are_failures_of_different_prompts_one_success_and_what_was_expected(tmp_path):
    root = live(tmp_path / "r")
    view = watch_view.read(root, samples=3)
    assert [s.completion for s in view.samples] == ["answer 0", "answer 1", "answer 5"] and view.sampled_at == "step 10"
    text = text_of(view)
    assert "✗    0.000  question 0 → answer 0" in text and "expected gold: 42; not 42" in text and "✓    1.000" in text


def test_what_a_model_wrote_does_not_steer_the_terminal(tmp_path):
    root = live(tmp_path / "r")
    hostile = rollout("p", "\x1b[2J\x1b]0;title\x07\r\x00\udc80", status="fail", step=10, detail="\x1b[31m\x9b2J")
    with (root / "grpo/rollouts.jsonl").open("a") as log:
        log.write(json.dumps(hostile) + "\n")
    frame = watch_frame.draw(watch_view.read(root), width=110, colour=True)
    ours = {
        watch_frame.BOLD,
        watch_frame.QUIET,
        watch_frame.RED,
        watch_frame.YELLOW,
        watch_frame.GREEN,
        watch_frame.PLAIN,
    }
    for line in frame.lines:
        assert set(GREP.findall(line)) <= ours
        assert all(c.isprintable() for c in GREP.sub("", line)), line
        line.encode()


def test_lines_fit_the_width_with_and_without_colour(tmp_path):
    view = watch_view.read(live(tmp_path / "r"))
    for width in (40, 80, 200):
        for colour in (True, False):
            assert all(
                len(GREP.sub("", line)) <= width for line in watch_frame.draw(view, width=width, colour=colour).lines
            )


def test_a_stage_of_a_run_a_finished_run_and_one_without_a_step_can_be_watched(tmp_path, capsys):
    root = live(tmp_path / "r")
    assert watch_view.read(root / "grpo").stage == "grpo"
    assert watch_view.read(root, "sft").stage == "sft"
    done = tmp_path / "done"
    write_stage(done, "grpo", metrics={**figures(0.7), "canary_tolerance": 1e-3}, steps=[step(1)], block=BLOCK)
    assert "complete" in text_of(watch_view.read(done)) and watch_view.read(done).alarms
    begun = tmp_path / "begun" / "sft"
    begun.mkdir(parents=True)
    (begun / "begun.json").write_text("{}")
    assert "no step has been logged yet" in text_of(watch_view.read(begun.parent))
    assert main(["watch", str(root), "stage=ppo"]) == 2 and "no stage 'ppo' in this run" in capsys.readouterr().err
    assert main(["watch", str(tmp_path / "nowhere")]) == 2 and "no such run directory" in capsys.readouterr().err
    assert main(["watch", str(root), "every=never"]) == 2 and "expected a number" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="no stage has begun"):
        watch_view.read(tmp_path)


def test_of_several_seeds_the_one_that_was_written_last_is_shown(tmp_path):
    for seed in (1, 2):
        live(tmp_path / "r" / f"seed-{seed}")
    os.utime(tmp_path / "r/seed-1/grpo/metrics.jsonl", (2e9, 2e9))
    assert watch_view.read(tmp_path / "r").name.endswith("seed-1")


def test_a_run_inside_a_comparison_lives_while_the_comparison_does(tmp_path, monkeypatch):
    live(tmp_path / "compare" / "seed-1")
    monkeypatch.setattr(watch_view.lock, "holder", lambda directory: 7 if directory.name == "compare" else None)
    assert watch_view.read(tmp_path / "compare").alive
    monkeypatch.setattr(watch_view.lock, "holder", lambda directory: None)
    assert not watch_view.read(tmp_path / "compare").alive


def test_a_sparkline_spans_lowest_to_highest_and_skips_what_is_not_known():
    assert watch_frame.sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert watch_frame.sparkline([1, 1, 1], 8) == "▁▁▁" and watch_frame.sparkline([], 8) == ""
    assert watch_frame.sparkline([0.0, float("nan"), 1.0], 3) == "▁ █"
    assert len(watch_frame.sparkline(list(range(1000)), 20)) == 20


def test_the_holder_of_a_run_is_seen_by_others_and_goes_with_it(tmp_path):
    code = f"from pipeline.run.lock import locked\nfrom pathlib import Path\nwith locked(Path({str(tmp_path)!r})):\n print('held', flush=True)\n input()"  # noqa: E501
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    assert holder(tmp_path) == process.pid
    process.communicate(b"\n")
    assert holder(tmp_path) is None and holder(tmp_path / "nowhere") is None


def test_in_a_terminal_it_follows_a_run_until_it_ends(tmp_path):
    root = live(tmp_path / "r")
    ours, theirs = pty.openpty()
    with locked(root):
        process = subprocess.Popen([sys.executable, "-m", "pipeline", "watch", str(root), "every=0.2"], cwd=ROOT,
                                   stdout=theirs, stderr=theirs)  # fmt: skip
        os.close(theirs)
        seen = read_until(ours, "step 10 of 40")
        with (root / "grpo/metrics.jsonl").open("a") as log:
            log.write('mean": 0.9}\n')
        seen += read_until(ours, "step 11 of 40")
    seen += read_until(ours, "\x1b[?25h")  # the run has ended: the cursor is shown again
    assert process.wait(20) == 0 and "running" in seen and "not running" in seen
    os.close(ours)


def read_until(terminal: int, text: str, limit_s: float = 60) -> str:
    seen, begun = "", time.monotonic()
    while text not in seen:
        assert time.monotonic() - begun < limit_s, f"{text!r} never came; got {seen[-500:]!r}"
        try:
            seen += os.read(terminal, 65536).decode(errors="replace")
        except OSError:
            break
    return seen
