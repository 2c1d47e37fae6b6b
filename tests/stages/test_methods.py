"""grpo and ppo: the settings their files show are the ones that a YAML without settings gets."""

from pathlib import Path

import pytest

from pipeline.config.load import load
from pipeline.stages.grpo import GRPO
from pipeline.stages.ppo import PPO

YAML = """
run: t
model: {tiny: {characters: "abcde12345>:<0RLUD "}}
prompts: {procedural: gridworld, rows: 200}
rewards: {gridworld: {}}
stages: [base, grpo, ppo]
grpo: {policy: base}
ppo: {policy: base}
"""


def block(tmp_path: Path, stage: str, *overrides: str):
    path = tmp_path / "t.yaml"
    path.write_text(YAML)
    return load(path, overrides).block(stage)


@pytest.mark.parametrize(("stage", "method"), [("grpo", GRPO), ("ppo", PPO)])
def test_a_stage_without_settings_has_its_methods_own(tmp_path, stage, method):
    plain = block(tmp_path, stage)
    assert (plain.credit, plain.loss, plain.kl) == (method.credit, method.loss, method.kl)
    assert (plain.critic is not None) == (stage == "ppo")
    assert method.departures(plain) == []


def test_settings_that_differ_from_the_method_are_named(tmp_path):
    changed = block(tmp_path, "grpo", "grpo.credit.scale=false", "grpo.kl.coef=0.1")
    assert GRPO.departures(changed) == ["credit.scale=False", "kl.coef=0.1"]
