"""Several processes against one: the same figures and weights, in every stage and in every way of cutting a model."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ranks_kit
from safetensors.torch import load_file

from pipeline.__main__ import main

pytestmark = pytest.mark.slow
STAGES = ("sft", "feedme", "reward_model", "ppo", "grpo", "conditioned")
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole chain by one process."""
    root = tmp_path_factory.mktemp("alone")
    assert main(["run", str(ranks_kit.write_chain(root)), f"runs_dir={root}"]) == 0
    return root / "t"


def launched(root: Path, mode: str, stage: str, *overrides: str) -> Path:
    words = [stage, str(ranks_kit.write_chain(root)), f"runs_dir={root}", *ranks_kit.HALVED, *overrides]
    done = ranks_kit.run(ranks_kit.accelerated(mode, 2, *words))
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    return root / "t"


def assert_same(alone: Path, together: Path, stage: str) -> None:
    """Final weights, the loss of every step, held-out figures and tokens."""
    one, two = (load_file(run / stage / "model" / "model.safetensors") for run in (alone, together))
    assert one.keys() == two.keys()
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < TOLERANCE
    logs = [[json.loads(line) for line in (run / stage / "metrics.jsonl").read_text().splitlines()]
            for run in (alone, together)]  # fmt: skip
    assert len(logs[0]) == len(logs[1]) > 0
    for a, b in zip(*logs, strict=True):
        for name in {"loss", "policy_loss", "value_loss", "ptx_loss", "kl_sequence", "reward_mean"} & a.keys():
            assert b[name] == pytest.approx(a[name], abs=TOLERANCE, rel=TOLERANCE), f"{stage}: {name} of {a}"
    assert same_figures(*(json.loads((run / stage / "manifest.json").read_text()) for run in (alone, together))) == []


def same_figures(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    """Names of manifest metrics that differ; padding counts as tokens in TRL's, and depends on the batches' cut."""
    ours, theirs = dict(flat(one["metrics"])), dict(flat(two["metrics"]))
    assert ours.keys() == theirs.keys() and one["tokens"] == two["tokens"]
    return [name for name, value in ours.items() if "train_tokens" not in name and not near(value, theirs[name])]


def flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from flat(inner, f"{name}.{key}")
    elif "wall_s" not in name:
        yield name, value


def near(a: Any, b: Any) -> bool:
    if not isinstance(a, float):
        return bool(a == b)
    return (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, abs_tol=1e-4)


def test_every_stage_by_two_processes_gives_what_one_gives(alone, tmp_path):
    """Every stage of the chain in one launch with configs/accelerate/ddp.yaml, evaluate and the controls included."""
    together = launched(tmp_path, "ddp", "run")
    for stage in STAGES:
        assert_same(alone, together, stage)
    names = ("rollouts.jsonl", "difficulty.jsonl")
    drawn = [[json.loads(line)["ids"] for line in (run / "grpo" / names[0]).read_text().splitlines()]
             for run in (alone, together)]  # fmt: skip
    assert drawn[0] == drawn[1], "each rank samples its share with the seeds of the whole"
    one, two = (json.loads((run / "evaluate" / "manifest.json").read_text()) for run in (alone, together))
    assert same_figures(one, two) == []
    assert not list(together.glob("*/checkpoints")), "the other rank leaves nothing behind"
