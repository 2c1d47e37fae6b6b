"""YAML -> typed config: values are taken as meant, mistakes are told with their key, and all of them at once."""

from pathlib import Path

import pytest

from pipeline.config.library_fields import block_mistakes, fits, library_fields
from pipeline.config.load import ConfigError, apply_overrides, load, read, read_yaml
from pipeline.config.mistakes import nearest

DEMO = str(Path(__file__).parents[2] / "configs/demo/pipeline.yaml")
SFT = "trl.trainer.sft_config:SFTConfig"


def told(*words: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(DEMO, list(words))
    return [line.removeprefix(f"{DEMO}: ") for line in caught.value.mistakes]


def test_a_number_in_scientific_notation_is_a_number(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("a: 1e-6\nb: 5.0e-3\nc: 1_000.5e2\nd: 'e1'\n")
    assert read_yaml(path) == {"a": 1e-6, "b": 5e-3, "c": 100050.0, "d": "e1"}


def test_a_key_given_twice_is_a_mistake_with_its_line(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("run: a\nseed: 1\nrun: b\n")
    with pytest.raises(ConfigError, match=r"c\.yaml:3: key 'run' is given twice"):
        read_yaml(path)


@pytest.mark.parametrize("value", ["2026-02-30", "2026-01-01 25:00:00", "0x_", "!!int three", "!!timestamp noon"])
def test_a_date_or_number_that_is_none_is_reported_with_its_line(tmp_path, value):
    path = tmp_path / "c.yaml"
    path.write_text(f"seed: 1\nrun: {value}\n")
    with pytest.raises(ConfigError, match=r"c\.yaml:2: '.*' is not readable \(.*\); put text in quotes"):
        read_yaml(path)
    with pytest.raises(ConfigError, match=r"^'run=.*' on the command line: '.*' is not readable"):
        apply_overrides({}, [f"run={value}"])


def test_keys_may_be_merged_and_a_merged_one_overridden(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb:\n  <<: *a\n  y: 3\n")
    assert read_yaml(path)["b"] == {"x": 1, "y": 3}


def test_what_a_stage_would_trip_over_later_is_reported_at_once():
    (line,) = told("mine={kind: conditioned, policy: sft, online_rounds: 1, online_trainer: {max_stepz: 3}}")
    assert line.startswith("mine.online_trainer: unknown key 'max_stepz'")
    assert told("evaluation.k=17") == ["evaluation.k: pass@17 needs as many samples; evaluation.samples is 16"]


def test_overrides_go_deep_and_are_read_as_yaml():
    raw = {"grpo": {"kl": {"coef": 1}}, "sft": None}
    apply_overrides(raw, ["grpo.kl.coef=0.5", "sft.trainer.max_steps=3", "stages=[a, b]", "x=", "run=a=b"])
    assert raw == {"grpo": {"kl": {"coef": 0.5}}, "sft": {"trainer": {"max_steps": 3}}, "stages": ["a", "b"],
                   "x": None, "run": "a=b"}  # fmt: skip


def test_a_block_may_be_run_twice_under_names_of_its_own():
    cfg = load(DEMO, ["stages=[base, sft, grpo_high]", "grpo_high={kind: grpo, steps: 3}"])
    assert cfg.block("grpo_high").steps == 3 and cfg.block("grpo").steps == 128
    assert told("stages=[base, sft, sft]") == [
        "stages: 'sft' is listed twice; give the second a block and name of its own"
    ]


def test_ppo_is_grpo_with_a_critic_unless_the_yaml_says_otherwise():
    ppo = load(DEMO).block("ppo")
    assert (ppo.credit.kind, ppo.kl.where, ppo.kl.kind, ppo.kl.coef) == ("gae", "reward", "k1", 0.2)
    assert load(DEMO, ["ppo.credit.kind=group", "ppo.critic=null"]).block("ppo").credit.kind == "group"


def test_what_is_wrong_in_one_block_hides_nothing_in_another():
    lines = told("grpo.stepz=1", "grpo.minibatches=7", "model.tiny.hidden_size=63", "sampling.temperature=-1")
    assert len(lines) == 4
    for name in ("stepz", "minibatches 7", "hidden_size 63", "sampling.temperature"):
        assert sum(name in line for line in lines) == 1


def test_a_config_with_mistakes_still_gives_what_is_sound_of_it():
    cfg, mistakes = read(DEMO, ["grpo.stepz=1", "grpo.prompts=5", "sampling.max_tokens=none at all"])
    assert cfg is not None and len(mistakes) == 2
    assert cfg.block("grpo").prompts == 5 and cfg.sampling.temperature == 1.0


@pytest.mark.parametrize("kind", ["7", "[a]", "{a: 1}", "grpoo"])
def test_a_kind_that_is_none_is_reported(kind):
    (line,) = told(f"mine={{kind: {kind}}}")
    assert line.startswith("mine.kind: no stage kind")


def test_a_run_name_must_stay_below_the_runs_directory():
    for name in ("../elsewhere", "a b", "/tmp/x"):
        assert any(line.startswith("run:") for line in told(f"run={name}")), name


# --- other libraries' blocks ------------------------------------------------------------------------------------------


def test_fields_read_from_source_are_those_the_library_has():
    import dataclasses

    from trl import SFTConfig

    assert {f.name for f in dataclasses.fields(SFTConfig)} <= library_fields(SFT).keys()


def test_what_the_pipeline_sets_itself_may_not_be_given():
    assert told("sft.trainer.output_dir=x") == ["sft.trainer.output_dir: the pipeline sets this itself; remove it"]


@pytest.mark.parametrize(
    "value,annotation,good",
    [
        (3, "int", True),
        ("1e3", "float", True),
        (2.5, "int", False),
        (True, "int", False),
        ("many", "int | None", False),
        (None, "int | None", True),
        (None, "int", False),
        ("cosine", "str", True),
        ([1], "str | None", False),
        ([1], "dict | str | None", True),  # not only plain types: left to the library
        (float("inf"), "int", False),
        ("yes", "Optional[bool]", False),
    ],
)
def test_a_plain_value_fits_its_annotation_or_not(value, annotation, good):
    assert fits(value, annotation) is good


def test_a_library_that_is_not_installed_is_not_checked_against():
    assert block_mistakes("x.vllm", {"anything": 1}, "no_such_library.args:Args") == []


def test_the_nearest_name_is_offered_and_else_all_of_them():
    assert nearest("stepz", ["steps", "samples"]) == "; did you mean 'steps'?"
    assert nearest("q", ["b", "a"]) == "; have: a, b"
