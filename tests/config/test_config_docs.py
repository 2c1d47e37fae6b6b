"""The reference of all keys is complete and current, and the JSON Schema accepts every YAML of the repository."""

from pathlib import Path

import jsonschema
import pytest
import yaml

import rewards.reward_block
from pipeline.cli import config_docs
from pipeline.config import describe
from pipeline.config.load import Config, ConfigError, read_yaml
from pipeline.config.registry import KINDS
from pipeline.config.yaml_schema import json_schema

ROOT = Path(__file__).parents[2]
YAMLS = [p for p in sorted((ROOT / "configs").rglob("*.yaml")) if p.parent.name != "accelerate"]
HOW = "run: python -m pipeline.cli.config_docs"


@pytest.fixture(scope="module")
def validator():
    return jsonschema.Draft202012Validator(json_schema())


def every_key():
    found = dict(describe.walk(Config, ""))
    for kind in KINDS.values():
        found |= dict(describe.walk(kind.schema, kind.name))
        for key in describe.keys(kind.schema):
            if key.block is not None:
                found |= {f"{kind.name}.{key.name}.*.{inner.name}": inner for inner in describe.keys(key.block)}
    return found


def test_every_key_has_one_sentence():
    found = every_key()
    assert len(found) > 272
    for dotted, key in found.items():
        assert key.meaning[:1].isupper() or key.meaning[:2] in ("k ", "4-"), (dotted, key.meaning)
        assert key.meaning.endswith(".") and (len(key.meaning) < 130 or dotted == "rewards"), (dotted, key.meaning)


def test_the_meaning_of_rewards_names_every_kind_of_part():
    meaning = describe.meanings(Config)["rewards"]
    assert [kind for kind in rewards.reward_block.KINDS if f" {kind}" not in meaning] == []


def test_the_written_reference_is_current():
    assert (ROOT / "docs/config.md").read_text() == config_docs.markdown(), HOW
    assert (ROOT / "configs/schema.json").read_text() == config_docs.schema_text(), HOW


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: str(p.relative_to(ROOT / "configs")))
def test_every_yaml_names_the_schema_and_satisfies_it(path, validator):
    first = path.read_text().partition("\n")[0]
    assert first == config_docs.comment(path, ROOT / "configs/schema.json"), HOW
    target = first.partition("$schema=")[2]
    assert (path.parent / target).resolve() == ROOT / "configs/schema.json"
    assert [error.message for error in validator.iter_errors(read_yaml(path))] == []


@pytest.mark.parametrize(
    ("change", "ok"),
    [
        ("grpo: {steps: 3, method: dapo}", True),
        ("grpo: {stepz: 3}", False),
        ("grpo: {kl: {coef: -1}}", False),
        ("grpo:", True),
        ("mine: {kind: grpo, steps: 3}", True),
        ("mine: {kind: grpo, stepz: 3}", False),
        ("mine: {steps: 3}", False),
        ("sampling: {temperature: hot}", False),
        ("stages: base", True),
    ],
)
def test_the_schema_underlines_what_the_pipeline_refuses(validator, change, ok):
    assert validator.is_valid({"run": "t", **yaml.safe_load(change)}) is ok


def test_the_terminal_shows_keys_of_a_stage_a_block_and_one_key():
    assert "grpo.kl.coef  (number >= 0; default 0.0)" in config_docs.config(["grpo"])
    assert "ppo.kl.coef  (number >= 0; default 0.05)" in config_docs.config(["ppo"]), "what the kind sets is shown"
    block = config_docs.config(["grpo.loss"])
    assert "grpo.loss.clip_high" in block and "grpo.kl" not in block
    assert config_docs.config(["sampling.top_p"]).startswith("sampling.top_p  (number > 0, <= 1; default 1.0)")
    assert "stages; `whetstone config STAGE`" in config_docs.config([])
    with pytest.raises(ConfigError, match="nothing is called 'grpoo'; did you mean 'grpo'"):
        config_docs.config(["grpoo"])


def test_a_method_is_shown_with_its_paper_and_what_it_sets():
    shown = config_docs.config(["--method", "dapo"])
    assert "arXiv:2503.14476" in shown and "clip_high: 0.28" in shown
    assert config_docs.config(["--method=dapo"]) == shown
    with pytest.raises(ConfigError, match="no method 'dap'; did you mean 'dapo'"):
        config_docs.config(["--method", "dap"])
