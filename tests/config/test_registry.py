"""A kind of stage is known from its class alone: planned, run, listed and shown without a second list to edit."""

import importlib.util
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest

from pipeline import __main__ as command_line
from pipeline.config.alarm_config import STRICT, Positive
from pipeline.config.load import ConfigError, load
from pipeline.config.registry import KINDS, policies_before, recorded_kind, stage_kind
from pipeline.config.work import Data, Work
from pipeline.report import collect

ROOT = Path(__file__).parents[2]
DEMO = str(ROOT / "configs/demo/pipeline.yaml")
SMALL = """
run: t
model: {tiny: {hidden_size: 16, intermediate_size: 32}}
prompts: {procedural: gridworld, rows: 40, heldout: 0.5}
rewards: {gridworld: {}}
evaluation: {samples: 1, prompts: 4, k: 1}
sampling: {max_tokens: 4}
generate: {backend: transformers}
trackers: []
stages: [base, shout, evaluate]
"""
MODULE = '''
from pipeline.models import models

def run(ctx):
    """Saves its parent's model again, and reports how loud it was."""
    models.save(models.load_policy(ctx.policy_path, ctx.cfg.model), ctx.tokenizer, ctx.dir.model_dir)
    return {"loudness": ctx.block.volume}
'''


@dataclass(slots=True)
class Shout:
    __pydantic_config__: ClassVar = STRICT
    kind: str = "shout"
    policy: str = "base"
    volume: Positive = 11

    def work(self, name, cfg, data):
        return Work(name, self.kind, samples=self.volume, steps=3, batch=1)


@pytest.fixture
def shout(monkeypatch, tmp_path):
    """The new kind: one class, and one file that is importable."""
    before = dict(KINDS)
    (tmp_path / "shout_stage.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    stage_kind("shout_stage", summary="say it louder", order=15, makes_policy=True, samples=True)(Shout)
    yield tmp_path
    KINDS.clear()
    KINDS.update(before)


def test_a_new_kind_is_planned_and_run_from_one_class_and_one_file(shout, capsys):
    path = shout / "config.yaml"
    path.write_text(SMALL)
    words = [str(path), f"runs_dir={shout}", "shout.volume=7"]
    assert command_line.main(["plan", *words, "trial=false", "json=true"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert (planned["shout"]["steps"], planned["shout"]["samples"]) == (3, 7)
    assert command_line.main(["run", *words]) == 0
    manifest = json.loads((shout / "t/shout/manifest.json").read_text())
    assert manifest["metrics"]["loudness"] == 7 and list(manifest["parents"]) == ["base"]
    evaluated = json.loads((shout / "t/evaluate/manifest.json").read_text())
    assert [row["policy"] for row in evaluated["metrics"]["policies"]] == ["base", "shout"]
    assert [s.name for s in collect.read_stages(shout / "t")] == ["base", "shout", "evaluate"]


def test_mistakes_in_a_new_kinds_keys_are_found(shout):
    path = shout / "config.yaml"
    path.write_text(SMALL + "shout: {volum: 3}\n")
    with pytest.raises(ConfigError, match="shout: unknown key 'volum'; did you mean 'volume'"):
        load(path)


def test_every_module_of_a_kind_exists_and_has_a_run():
    for kind in KINDS.values():
        spec = importlib.util.find_spec(kind.module)
        assert spec is not None and spec.origin
        assert "\ndef run(" in Path(spec.origin).read_text() or "import run" in Path(spec.origin).read_text(), kind.name


def test_make_offers_the_kinds_that_have_a_summary_and_shows_it():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    section = shown.split("One stage")[1].split("\n\n")[0].splitlines()[1:]
    rows = [line.split(None, 2)[1:] for line in section]
    assert dict(rows) == {kind.name: kind.summary for kind in KINDS.values() if kind.summary}


def test_a_kind_needs_a_name():
    @dataclass
    class Nameless:
        policy: str = "base"

    with pytest.raises(ValueError, match="Nameless: a stage's dataclass needs a field like kind"):
        stage_kind("nowhere")(Nameless)


def test_a_kind_of_another_version_is_shown_among_the_others():
    assert not recorded_kind("from_the_future").makes_policy
    assert recorded_kind("evaluate").compares_policies


def test_the_plan_counts_the_policies_that_evaluate_judges():
    """judge, probe, stitch and reward models make no policy; stages after evaluate are not judged by it."""
    cfg = load(DEMO, ["stages=[base, sft, reward_model, probe, evaluate, grpo]", "probe={policy: sft}"])
    assert policies_before(cfg, "evaluate") == ["base", "sft"]
    data = Data(100, 10, 5, (6.0, 6, 6), None, 0.0, 0.0)
    assert cfg.blocks["evaluate"].work("evaluate", cfg, data).judged == 2 * 5 * cfg.evaluation.samples


def test_expected_tokens_names_a_stage_that_samples():
    with pytest.raises(ConfigError, match="expected_tokens: 'grop' is no stage that samples; did you mean 'grpo'"):
        load(DEMO, ["expected_tokens={grop: 5}"])
    with pytest.raises(ConfigError, match="expected_tokens: 'sft' is no stage that samples"):
        load(DEMO, ["expected_tokens={sft: 5}"])
