"""compare.sweep: every combination of values becomes a method, and mistakes are named."""

from pathlib import Path

import pytest

from pipeline.config.load import ConfigError, load
from pipeline.config.stage_graph import runs_of
from pipeline.config.sweeps import variant_name

COMPARE = str(Path(__file__).parents[2] / "configs/demo/compare.yaml")
ALONE = ["compare.controls={}", "compare.drawn_once={}", "compare.proxy=null", "compare.proxy_methods=[]",
         "compare.stitching={}"]  # fmt: skip


def test_every_combination_becomes_a_method_with_the_other_keys_of_its_block() -> None:
    sweep = "compare.sweep={grpo: {optimizer.learning_rate: [1.0e-4, 1.0e-3], samples: [4, 8]}}"
    cfg = load(COMPARE, ["compare.methods=[grpo]", sweep, *ALONE])
    names = [f"grpo-learning_rate-{rate}-samples-{n}" for rate in ("0.0001", "0.001") for n in (4, 8)]
    assert cfg.blocks["compare"].methods == ["grpo", *names]
    first = cfg.blocks[names[0]]
    assert (first.kind, first.optimizer.learning_rate, first.samples, first.steps) == ("grpo", 1e-4, 4, 1000)
    assert cfg.blocks["grpo"].optimizer.learning_rate == 3e-4
    assert all(set(names) <= set(run.stages) for run in runs_of(cfg, "compare")[1:])


def test_a_sweep_needs_no_other_method_and_works_on_a_block_of_another_name() -> None:
    cfg = load(COMPARE, ["compare.methods=[]", "compare.sweep={rloo: {epochs: [1, 2]}}", *ALONE])
    assert cfg.blocks["compare"].methods == ["rloo-epochs-1", "rloo-epochs-2"]
    assert cfg.blocks["rloo-epochs-2"].credit.kind == "leave_one_out"
    assert cfg.blocks["rloo-epochs-2"].epochs == 2


@pytest.mark.parametrize(
    ("sweep", "reported"),
    [
        ("{grop: {epochs: [1]}}", "no block for 'grop'; did you mean 'grpo'"),
        ("{grpo: {epochs: 2}}", "expected key -> list of values"),
        ("{grpo: {}}", "expected key -> list of values"),
        ("{grpo: {epoch: [1]}}", "unknown key 'epoch'"),
        ("{grpo: {optimizer.learning_rate: [fast]}}", "optimizer.learning_rate"),
        ("{grpo: {seed: [1, 2, 3, 4, 5, 6, 7, 8, 9], epochs: [1, 2, 3, 4, 5, 6, 7, 8]}}", "72 combinations"),
        ("[grpo]", "expected method -> key -> values"),
    ],
)
def test_a_mistake_in_a_sweep_is_named(sweep: str, reported: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(COMPARE, [f"compare.sweep={sweep}", *ALONE])
    assert reported in str(error.value)


def test_a_name_is_fit_for_a_directory() -> None:
    assert variant_name("grpo", {"loss.kind": "clip", "peft": {"r": 8}}) == "grpo-kind-clip-peft-_r_8_"
