"""run ... seeds=1,2: a run per seed, and the table of means and intervals."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from loop_kit import CHARACTERS
from small_chain import CONFIG, SMALL

from pipeline.__main__ import main
from pipeline.config.load import load
from pipeline.stages.seed_table import accuracies, markdown, policy_rows, stage_figures
from pipeline.stages.side_by_side import longest_first, stages_of

ROOT = Path(__file__).parents[2]
# two degrees of freedom: t = 4.303; the mean of .5 .6 .7 is .6, its standard error .1 / sqrt(3)
HALF = 4.303 * 0.1 / math.sqrt(3)


def run_of(sft: float, grpo: float) -> dict:
    return {
        "sft": {"heldout_accuracy": sft, "steps": 10},
        "grpo": {"heldout_accuracy": grpo, "random_control_accuracy": 0.1},
    }


RUNS = [run_of(0.4, 0.5), run_of(0.5, 0.6), run_of(0.6, 0.7)]


def test_means_intervals_and_gains_follow_from_the_runs_by_hand():
    rows = {row["policy"]: row for row in policy_rows(RUNS, {"sft": "base", "grpo": "sft"})}
    assert list(rows) == ["sft", "grpo", "grpo/random_control"]
    grpo = rows["grpo"]
    assert grpo["by_seed"] == [0.5, 0.6, 0.7] and grpo["accuracy"] == pytest.approx(0.6)
    assert grpo["ci95"] == pytest.approx([0.6 - HALF, 0.6 + HALF])
    assert grpo["over"] == "sft" and grpo["gain"]["mean"] == pytest.approx(0.1)  # paired by seed: each gained .1
    assert grpo["gain"]["low"] == pytest.approx(0.1) == grpo["gain"]["high"]
    assert "gain" not in rows["sft"], "its start is not in the table"


def test_an_interval_of_a_share_stays_within_0_and_1_and_one_seed_has_none():
    assert policy_rows([run_of(0.1, 0.0), run_of(0.9, 1.0)], {})[1]["ci95"] == [0.0, 1.0]
    alone = policy_rows(RUNS[:1], {"grpo": "sft"})
    assert math.isnan(alone[0]["ci95"][0]) and "one seed" in markdown(alone)


def test_the_figures_of_evaluate_win_over_those_of_the_stages():
    judged = {
        **RUNS[0],
        "evaluate": {"policies": [{"policy": "sft", "heldout_accuracy": 0.45}], "heldout_accuracy": 0.45},
    }
    assert accuracies(judged) == {"sft": 0.45, "grpo/random_control": 0.1}


def test_every_number_of_a_stage_is_averaged_and_text_is_left_out():
    figures = stage_figures([{"steps": 10, "generator": "vllm", "x": 1.0}, {"steps": 20, "generator": "vllm"}])
    assert list(figures) == ["steps"] and figures["steps"]["mean"] == 15 and figures["steps"]["by_seed"] == [10, 20]


@pytest.mark.stages
def test_two_seeds_of_a_yaml_give_two_runs_one_table_and_one_report(tmp_path, capsys):
    words = ["run", str(CONFIG), f"runs_dir={tmp_path}", "run=two", "stages=[base,sft,evaluate]", *SMALL, "seeds=1,2"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert "2 seeds: 1, 2" in out and "gain" in out
    values = []
    for seed in (1, 2):
        manifest = json.loads((tmp_path / f"two/seed-{seed}/evaluate/manifest.json").read_text())
        assert manifest["seed"] == seed
        values.append(next(r["heldout_accuracy"] for r in manifest["metrics"]["policies"] if r["policy"] == "sft"))
    table = json.loads((tmp_path / "two/seeds.json").read_text())
    row = next(row for row in table["table"] if row["policy"] == "sft")
    assert row["by_seed"] == values and row["accuracy"] == pytest.approx(sum(values) / 2) and values[0] != values[1]
    assert row["over"] == "base" and table["figures"]["sft"]["train_steps"]["by_seed"] == [120, 120]
    assert '"seeds":[1,2]' in (tmp_path / "two/report.html").read_text()
    assert main([*words, "workers=2"]) == 0 and capsys.readouterr().out.count("up to date") == 6
    together = [word.replace("run=two", "run=together") for word in words]
    assert main([*together, "workers=2"]) == 0
    out = capsys.readouterr().out
    assert re.search(r" 1/6 .*so far, \d+:\d\d left\)", out) and re.search(r" 6/6 .*so far, 0:00 left\)", out)
    assert "2 seeds: 1, 2" in out and "seed-2/sft | ── sft done in" in out
    assert "sft done in" in (tmp_path / "together/logs/seed-2-sft.log").read_text()
    assert result_hashes(tmp_path / "together") == result_hashes(tmp_path / "two"), "other bytes with two processes"


def result_hashes(run: Path) -> dict[str, dict[str, str]]:
    """SHA-256 of every recorded output by stage, of all seeds."""
    return {
        str(path.parent.relative_to(run)): json.loads(path.read_text())["outputs"]
        for path in run.glob("seed-*/*/manifest.json")
    }


def test_a_stage_waits_for_what_it_needs_and_for_nothing_else():
    cfg = load(str(CONFIG), ["evaluate.policies=null"])
    after = {part.name: [name for _, name in part.after] for part in stages_of([cfg])}
    assert after["base"] == [] and after["sft"] == ["base"]
    assert after["feedme"] == ["base", "sft"] == after["grpo"]
    assert after["ppo"] == ["base", "sft", "reward_model"]
    assert after["evaluate"] == cfg.stages[:-1], "without names it takes every policy before it"
    chosen = load(str(CONFIG), ["evaluate.policies=[sft]"])
    assert stages_of([chosen])[-1].after == [(chosen.run, "base"), (chosen.run, "sft")]


def test_the_longest_chain_of_work_starts_first():
    parts = longest_first(stages_of([load(str(CONFIG))]))
    order = [part.name for part in parts]
    assert order[:2] == ["base", "sft"] and order[-1] == "evaluate"
    # 2,400 training steps of 128 rows; 1,440 of them and 32,768 samples; 32,768 samples; then pairs and what learns
    # from them, 16,384 and 15,360 samples
    assert set(order[2:4]) == {"conditioned", "feedme"}
    assert order.index("reward_model") < order.index("ppo")
    seeds = [replace(part.cfg, run=f"x/seed-{n}") for n in (1, 2) for part in parts[:1]]
    both = [(part.cfg.run[-1], part.name) for part in longest_first(stages_of(seeds))]
    assert both[:4] == [("1", "base"), ("2", "base"), ("1", "sft"), ("2", "sft")]


def test_stages_that_would_share_one_server_are_refused(tmp_path, capsys):
    words = ["run", str(CONFIG), f"runs_dir={tmp_path}", "run=bad", "stages=[base,sft]", *SMALL, "workers=2"]
    assert main([*words, "generate.backend=vllm_server", "generate.url=http://localhost:9"]) == 2
    assert "leave workers out" in capsys.readouterr().err


TWO_POLICIES = f"""
run: two
model: {{tiny: {{hidden_size: 32, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32,
         characters: "{CHARACTERS}"}}}}
prompts: {{procedural: gridworld, rows: 300, heldout: 0.25}}
rewards: {{letters: {{kind: function, path: "letters:letters"}}}}
generate: {{backend: transformers}}
sampling: {{max_tokens: 6}}
evaluation: {{samples: 2, prompts: 5, k: 2}}
one: &policy {{kind: grpo, policy: base, steps: 30, prompts: 4, samples: 4, monitor: null}}
two: {{<<: *policy}}
stages: [base, one, two]
"""
LETTERS = """
import pathlib, time

calls = 0

def letters(prompts, completions, **columns):
    global calls
    calls += 1
    if calls > 4 and (pathlib.Path(__file__).parent / "slow").exists():
        time.sleep(4)  # the other stage may still be loading: neither is to end before both have begun
    return [len(set(text)) / 8 for text in completions]
"""


@pytest.mark.stages
def test_ctrl_c_saves_every_stage_that_runs_and_the_same_command_resumes_them(tmp_path):
    yaml = tmp_path / "two.yaml"
    yaml.write_text(TWO_POLICIES)
    (tmp_path / "letters.py").write_text(LETTERS)
    (tmp_path / "slow").touch()
    command = [sys.executable, "-m", "pipeline", "run", str(yaml), f"runs_dir={tmp_path}", "workers=2"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as running:
        logs = [tmp_path / "two" / name / "metrics.jsonl" for name in ("one", "two")]
        while running.poll() is None and not all(log.is_file() and log.read_text().count("\n") > 2 for log in logs):
            time.sleep(0.2)
        if running.poll() is None:
            os.killpg(running.pid, signal.SIGINT)  # as a terminal does
        said = running.communicate(timeout=40)[1]
    assert running.returncode == 130, said
    steps = re.findall(r"(one|two) from step (\d+)", said)
    assert [name for name, _ in steps] == ["one", "two"] and all(int(step) > 2 for _, step in steps), said
    assert "Traceback" not in said
    (tmp_path / "slow").unlink()
    assert main(["run", str(yaml), f"runs_dir={tmp_path}", "workers=2"]) == 0
    for log in logs:
        assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == list(range(1, 31))


def test_a_comparison_names_its_own_seeds(tmp_path, capsys):
    compare = str(CONFIG.parent / "compare.yaml")
    assert main(["run", compare, "stages=[compare]", "seeds=1,2", f"runs_dir={tmp_path}"]) == 2
    assert "compare runs several seeds itself; give compare.seeds" in capsys.readouterr().err
