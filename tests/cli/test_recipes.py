"""Every YAML under configs/ is read without a mistake, and says what it needs and whom it should beat."""

from pathlib import Path

import pytest

import verifiers
from pipeline.config.load import load
from pipeline.config.schema import Prompts
from pipeline.data import prompts

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(p for p in (ROOT / "configs").glob("*/*.yaml") if p.parent.name != "accelerate")
RECIPES = [p for p in CONFIGS if p.parent.name not in ("demo", "stitch", "turns", "accelerate", "revalue", "research")]


@pytest.mark.parametrize("path", [p for p in CONFIGS if p.parent.name != "accelerate"], ids=lambda p: p.stem)
def test_a_recipe_has_no_mistake_in_it(path):
    config = load(path)
    assert set(config.stages) <= set(config.blocks)


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_a_recipe_states_hardware_hours_what_to_expect_and_the_peer_to_beat(path):
    head = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert all(word in head for word in ("Hardware:", "Hours:", "Before:", "After:", "Peer to beat"))


def test_run_names_are_distinct():
    names = [load(p).run for p in RECIPES]
    assert len(set(names)) == len(names)


def test_the_shell_tasks_have_what_their_verifier_needs():
    rows = prompts.load_rows(Prompts(path=str(ROOT / "configs/shell/tasks.jsonl")), seed=1)
    needed = verifiers.load("shell_task").required_fields
    assert rows and all(needed <= row["task"].keys() and row["prompt"] for row in rows)
