"""Graders and functions beside the YAML, as a plan sees them: found, asked for their columns, part of a stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.config.load import Config, ConfigError, load
from pipeline.plan import sound
from pipeline.run.lineage import own_files

GRADER = {"type": "string_check", "name": "s", "operation": "eq", "input": "{{ sample.output_text }}",
          "reference": "{{ item.final }}"}  # fmt: skip
YAML = """
run: t
model: {{tiny: {{}}}}
sampling: {{max_tokens: 16}}
prompts: {{path: {rows}, heldout: 0.3}}
rewards:
  openai_grader: {{file: grader.json{more}}}
  brevity: {{kind: function, path: my_rewards:brevity, weight: 0.1}}
evaluation: {{samples: 1, k: 1}}
stages: [base, grpo]
grpo: {{policy: base, steps: 2, prompts: 2, samples: 4}}
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """A YAML with its grader, its function and its rows, and nothing of it in the working directory."""
    rows = [{"prompt": f"What is {n} + 1?", "final": str(n + 1)} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "grader.json").write_text(json.dumps(GRADER))
    (tmp_path / "my_rewards.py").write_text("def brevity(completions, **_):\n    return [-1.0 for c in completions]\n")
    return tmp_path


def written(folder: Path, more: str = "") -> str:
    path = folder / "config.yaml"
    path.write_text(YAML.format(rows=folder / "rows.jsonl", more=more))
    return str(path)


def test_files_beside_the_yaml_are_found_and_belong_to_the_stage(folder) -> None:
    cfg = sound(written(folder), [])
    assert isinstance(cfg, Config)
    assert {path.name for path in own_files(cfg, "grpo")} == {"grader.json", "my_rewards.py"}


def test_a_row_without_the_column_that_a_template_reads_is_a_mistake_of_the_plan(folder) -> None:
    (folder / "rows.jsonl").write_text(json.dumps({"prompt": "What?", "answer": "1"}))
    with pytest.raises(ConfigError) as caught:
        sound(written(folder), [])
    assert any("has no field 'final', which verifier 'openai_grader' needs" in line for line in caught.value.mistakes)


def test_a_missing_grader_and_a_misspelt_key_are_mistakes_with_their_key(folder) -> None:
    (folder / "grader.json").unlink()
    with pytest.raises(ConfigError, match=r"rewards\.openai_grader\.file: grader\.json does not exist, nor in"):
        sound(written(folder), [])
    with pytest.raises(ConfigError, match=r"rewards\.openai_grader: unknown key 'isolaton'; did you mean 'isolation'"):
        sound(written(folder, ", isolaton: process"), [])
    assert own_files(load(written(folder)), "grpo") == [folder / "my_rewards.py"]
