"""Every stage, killed with SIGKILL at random instants and started again, ends in the bytes of an undisturbed run."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.cli.chaos import Settings, chaos
from pipeline.config.load import ConfigError
from pipeline.records import Prompt, Rollout, Scored, load_scored, same_when_loaded, save_scored
from pipeline.run import shutdown

CONFIG = str(Path(__file__).parents[2] / "configs/demo/chaos.yaml")
QUICK = ["generate.backend=transformers", "prompts.rows=300", "evaluation.prompts=8"]


@pytest.mark.stages
@pytest.mark.timeout(900)
def test_sft_and_grpo_killed_at_three_instants_end_in_the_same_bytes(tmp_path, capsys):
    words = [f"runs_dir={tmp_path}", "stages=[base,sft,grpo]", "kills=3", *QUICK]
    assert chaos(CONFIG, words) == 0, capsys.readouterr().out
    out = capsys.readouterr().out
    assert "3 of 3 stages end in the reference's bytes" in out


@pytest.mark.timeout(1800)
def test_every_stage_killed_at_three_instants_ends_in_the_same_bytes(tmp_path, capsys):
    assert chaos(CONFIG, [f"runs_dir={tmp_path}", "kills=3"]) == 0, capsys.readouterr().out


@pytest.mark.stages
@pytest.mark.timeout(900)
def test_a_stage_that_differs_is_found_out(tmp_path, capsys, monkeypatch):
    """The check itself is checked: the bytes that are compared with are altered after the reference is made."""
    import pipeline.cli.chaos as module

    real = module.verified_manifest

    def altered(directory):
        manifest = real(directory)
        if directory.parent.name == "reference":
            manifest["outputs"]["model/model.safetensors"] = "of another model"
        return manifest

    monkeypatch.setattr(module, "verified_manifest", altered)
    words = [f"runs_dir={tmp_path}", "stages=[base]", "kills=0", *QUICK]
    assert chaos(CONFIG, words) == 1
    assert "chaos: base: differs in model/model.safetensors" in capsys.readouterr().out


def test_words_of_chaos_are_distinguished_from_the_configs():
    settings, rest = Settings.taken_from(["kills=7", "seed=2", "ending=term", "instants_seed=5"])
    assert (settings.kills, settings.ending, settings.instants_seed, rest) == (7, "term", 5, ["seed=2"])
    for word in ("kills=many", "ending=gently"):
        with pytest.raises(ConfigError):
            Settings.taken_from([word])


# --- what is kept between two tries ----------------------------------------------------------------------------------


def test_scored_samples_come_back_as_the_same_bits(tmp_path):
    asked = [Prompt(3, "a", (1, 2), {"gold": "x"}, {"column": 1}), Prompt(5, "b", (7,))]
    other = Prompt(9, "a later turn", (1, 2, 3), {"state": [1, 2]})
    logprobs = (-0.1, -1 / 3, -(2.0**-40))
    scored = [
        Scored(
            Rollout(asked[1], 0, (4, 5, 6), logprobs, "t\u2028ext\ud800", True), 0.1 + 0.2, "pass", {"a": None}, "why"
        ),
        Scored(Rollout(asked[0], 1, (4,), (-0.5,), "", False, (True,)), float("nan"), "error", {"a": 1e-300}),
        Scored(Rollout(other, 0, (8,), (-0.25,), "x", True, None, 1), 1.0, "fail", {}, "", ((2, 0.25), (0, 0.75))),
    ]
    path = tmp_path / "scored.jsonl"
    save_scored(path, scored, asked)
    back = load_scored(path, asked)
    assert [repr(one) for one in back] == [repr(one) for one in scored]  # repr: NaN is not equal to itself
    assert back[0].rollout.prompt is asked[1]


def test_what_was_just_saved_is_used_unread_only_where_reading_gives_the_same():
    prompt = Prompt(3, "a", (1, 2), {"gold": "x"})
    plain = Scored(Rollout(prompt, 0, (4, 5), (-0.1, -1.5), "t", True), 0.5, "pass", {"a": None, "b": 1.0}, "why")
    assert same_when_loaded([plain, replace(plain, reward=float("nan"), step_rewards=((1, 0.25),))], [prompt])
    masked = replace(plain.rollout, sampled=(True, False))
    assert same_when_loaded([replace(plain, rollout=masked)], [prompt])
    other_than_loaded: list[Any] = [
        replace(plain, parts={"a": np.float64(1.0)}),
        replace(plain, parts={1: 0.5}),  # type: ignore[dict-item]
        replace(plain, rollout=replace(plain.rollout, logprobs=(np.float64(-0.1), -1.5))),
        replace(plain, rollout=replace(plain.rollout, ids=[4, 5])),  # type: ignore[arg-type]
        replace(plain, rollout=replace(plain.rollout, episode={"messages": ("a", "b")})),
        replace(plain, rollout=replace(plain.rollout, prompt=Prompt(4, "a later turn", (1,)))),
        replace(plain, step_rewards=[(1, 0.25)]),  # type: ignore[arg-type]
    ]
    for one in other_than_loaded:
        assert not same_when_loaded([plain, one], [prompt])


# --- asked to stop ----------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    monkeypatch.setattr(shutdown, "_state", shutdown._State())
    monkeypatch.setattr(shutdown, "_after", lambda seconds, then: None)
    return lambda: shutdown._on_term(15, None)


def test_a_request_to_stop_raises_at_once_where_nothing_is_half_done(asked):
    with pytest.raises(shutdown.Stopped):
        asked()


def test_a_request_to_stop_waits_for_the_end_of_a_step_and_not_of_its_sampling(asked):
    with shutdown.finish_first():
        asked()
        assert shutdown.requested()
        with pytest.raises(shutdown.Stopped), shutdown.at_once():
            raise AssertionError("sampling began though the process was asked to stop")
    with pytest.raises(shutdown.Stopped):
        shutdown.check()


def test_a_request_to_stop_during_sampling_ends_it(asked):
    with shutdown.finish_first(), pytest.raises(shutdown.Stopped), shutdown.at_once():
        asked()


def test_a_second_signal_after_the_grace_is_not_put_off(asked):
    with shutdown.finish_first():
        asked()
        shutdown._state.late = True
        with pytest.raises(shutdown.Stopped):
            asked()


def test_a_border_that_catches_exceptions_does_not_catch_a_request_to_stop():
    assert not issubclass(shutdown.Stopped, Exception)


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


def test_the_first_ctrl_c_finishes_the_step_and_the_second_stops_at_once(asked, capsys):
    with shutdown.finish_first():
        shutdown._on_interrupt(2, None)
        assert shutdown.requested() and "Ctrl-C again to stop now" in capsys.readouterr().out
        with pytest.raises(KeyboardInterrupt):
            shutdown._on_interrupt(2, None)
    assert shutdown.exit_code() == 130


def test_sigterm_keeps_its_exit_code(asked):
    with shutdown.finish_first():
        asked()
    assert shutdown.exit_code() == 143 and "stopped on SIGTERM" in shutdown.stop_line()


def test_a_stop_line_names_the_step_from_which_each_unfinished_stage_continues(asked, tmp_path):
    def begun(stage: str, *saved: str) -> None:
        (tmp_path / stage).mkdir(parents=True)
        (tmp_path / stage / "begun.json").write_text("{}")
        for name in saved:
            (tmp_path / stage / "checkpoints" / name).mkdir(parents=True)
            (tmp_path / stage / "checkpoints" / name / "index.json").write_text("{}")

    begun("sft")
    (tmp_path / "sft/manifest.json").write_text("{}")
    begun("grpo", "step-9", "step-12")
    (tmp_path / "grpo/checkpoints/step-13").mkdir()  # half written: not sealed
    begun("ppo")
    begun("feedme", "training-feedme-1/checkpoint-40")
    assert shutdown.resume_points(tmp_path) == [
        "feedme, feedme-1 from step 41", "grpo from step 13", "ppo from step 1",
    ]  # fmt: skip
    shutdown._state.run_dir = tmp_path
    assert shutdown.stop_line("interrupted").startswith("interrupted; run the same command to resume: feedme")


@pytest.mark.parametrize(
    ("size", "first"),
    [(31_000_000, 0.0), (3_200_000_000, 100.0), (10**12, shutdown.CHECKPOINT_S)],
    ids=["small: after the first step", "3.2 GB", "as long as between two"],
)
def test_a_first_checkpoint_is_due_once_it_adds_little_and_others_after_some_wall_time(size, first, monkeypatch):
    now = [50.0]
    monkeypatch.setattr(shutdown.time, "monotonic", lambda: now[0])
    clock = shutdown.CheckpointClock(size)

    def due_at(seconds: float) -> bool:
        now[0] = seconds
        return clock.due()

    assert due_at(50 + first) and (first == 0.0 or not due_at(49.9 + first))
    now[0] = 1000.0
    clock.saved()
    assert not due_at(999 + shutdown.CHECKPOINT_S) and due_at(1001 + shutdown.CHECKPOINT_S)


@pytest.mark.parametrize("size", [0, 3_200_000_000, 10**12])
def test_the_checkpoints_of_some_seconds_are_as_many_as_the_clock_asks_for(size, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(shutdown.time, "monotonic", lambda: now[0])
    clock, written = shutdown.CheckpointClock(size), 0
    for second in range(1000):
        now[0] = float(second)
        if clock.due():
            clock.saved()
            written += 1
        assert shutdown.checkpoints_in(second + 0.5, size) == written, second


def test_a_checkpoint_holds_what_is_trained_and_two_moments_of_it():
    import torch

    policy, critic = torch.nn.Linear(3, 5), torch.nn.Linear(2, 1)
    critic.weight.requires_grad_(False)
    assert shutdown.trained_bytes(policy, None, critic) == 12 * (3 * 5 + 5 + 1)


@pytest.mark.stages
def test_ctrl_c_in_a_real_run_saves_and_the_next_run_continues_from_there(tmp_path):
    """A real process, a real SIGINT after its second step."""
    import os
    import signal
    import subprocess
    import sys

    import loop_kit

    config = loop_kit.write_config(tmp_path, loop_kit.tiny_model(tmp_path / "model"))
    words = [str(config), "grpo.steps=400", "grpo.checkpoint_every=1000", f"runs_dir={tmp_path}"]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'tests'}"}
    command = [sys.executable, "-u", "-m", "pipeline", "grpo", *words]
    run = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = tmp_path / "t/grpo/metrics.jsonl"
    until = time.monotonic() + 120
    while not (log.is_file() and len(log.read_text().splitlines()) >= 2):
        assert run.poll() is None and time.monotonic() < until, run.communicate()
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    out, error = run.communicate(timeout=60)
    assert run.returncode == 130, error
    assert "saving a checkpoint; Ctrl-C again to stop now" in out
    steps = len(log.read_text().splitlines())
    assert error.strip().splitlines()[-1] == (
        f"interrupted; run the same command to resume: grpo from step {steps + 1}"
    )  # fmt: skip
