"""prompts.sources: several data sets in one run, each with its own columns and rewards, mixed by ratio."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from loop_kit import manifest, metrics

import rewards
from pipeline.__main__ import main
from pipeline.config.load import ConfigError, load
from pipeline.config.schema import Prompts
from pipeline.data.prompts import load_rows, spread_over_sources
from pipeline.records import Prompt
from pipeline.stages.policy import sources_of
from rewards import Batch

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
TINY = "{hidden_size: 64, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 64}"


def example() -> dict[str, Any]:
    """The complete YAML of docs/data.md."""
    found: dict[str, Any] = next(
        raw for text in re.findall(r"```yaml\n(.*?)```", PAGE, re.S) if "run" in (raw := yaml.safe_load(text))
    )
    return found


def written(root: Path, raw: dict[str, Any]) -> Path:
    """The YAML and the file that it names, with a tiny model and two small steps."""
    rows = [{"question": f"What is {a} plus {b}?", "answer": str(a + b)} for a in range(8) for b in range(8)]
    (root / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    raw = json.loads(json.dumps(raw).replace("problems.jsonl", str(root / "problems.jsonl")))
    raw |= {"run": "t", "model": {"tiny": yaml.safe_load(TINY)}, "generate": {"backend": "transformers"},
            "evaluation": {"samples": 1, "prompts": 6, "k": 1}, "sampling": {"max_tokens": 8}}  # fmt: skip
    raw["prompts"]["chat"] = False
    raw["prompts"]["sources"]["puzzles"]["rows"] = 60
    raw["grpo"] |= {"steps": 2, "prompts": 4, "samples": 2}
    path = root / "config.yaml"
    path.write_text(yaml.safe_dump(raw))
    return path


@pytest.mark.stages
def test_the_page_s_yaml_is_planned_trained_by_ratio_and_evaluated_by_source(tmp_path: Path) -> None:
    config = str(written(tmp_path, example()))
    assert main(["plan", config, f"runs_dir={tmp_path}", "trial=false"]) == 0
    assert main(["run", config, f"runs_dir={tmp_path}"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "t/grpo/rollouts.jsonl").read_text().splitlines()]
    sampled = [row["task"]["source"] for row in rows]
    assert (sampled.count("problems"), sampled.count("puzzles")) == (12, 4), "3 to 1, of 2 steps of 4 prompts"
    for row in rows:
        own, other = (
            ("math_answer", "countdown") if row["task"]["source"] == "problems" else ("countdown", "math_answer")
        )
        assert row["parts"][own] is not None and row["parts"][other] is None
        assert row["parts"]["length"] is not None and row["status"] != "error"
    figures = manifest(tmp_path, "grpo")["metrics"]
    assert figures["heldout_prompts/problems"] == figures["heldout_prompts/puzzles"] == 3
    total = (figures["heldout_accuracy/problems"] + figures["heldout_accuracy/puzzles"]) / 2
    assert figures["heldout_accuracy"] == pytest.approx(total)
    assert {"reward/math_answer", "reward/countdown", "reward/length"} <= metrics(tmp_path, "grpo")[0].keys()


def test_rows_of_all_sources_have_the_same_columns(tmp_path: Path) -> None:
    prompts = load(str(written(tmp_path, example())), []).prompts
    rows = load_rows(prompts, seed=1)
    assert len(rows) == 64 + 60
    assert rows[0] == {"prompt": "What is 0 plus 0?", "source": "problems", "task": {"gold": "0", "source": "problems"}}
    assert rows[-1]["source"] == rows[-1]["task"]["source"] == "puzzles" and "numbers" in rows[-1]["task"]


def batch(*tasks: dict[str, Any], text: str = "4") -> Batch:
    n = len(tasks)
    return Batch(["p"] * n, [[0]] * n, [text] * n, [[1]] * n, [True] * n, list(tasks))


def test_a_part_judges_the_rows_of_its_sources_alone() -> None:
    block: dict[str, Any] = {
        "a": {"kind": "verifier", "verifier": "exact", "sources": ["one"]},
        "b": {"kind": "verifier", "verifier": "exact", "weight": 3.0, "sources": ["two"]},
    }
    scorer = rewards.build(block)
    right, wrong = {"gold": "4"}, {"gold": "5"}
    scores = scorer.score(
        batch({"source": "one", **right}, {"source": "two", **right}, {"source": "one", **wrong}, {"source": "none"})
    )
    assert [s.reward for s in scores[:3]] == [1.0, 3.0, 0.0]
    assert [s.status for s in scores] == ["pass", "pass", "fail", "error"] and math.isnan(scores[3].reward)
    assert [dict(s.parts) for s in scores[:2]] == [{"a": 1.0, "b": None}, {"a": None, "b": 1.0}]
    assert scorer.judges, "a verifier of one source says right or wrong"
    assert rewards.parts_for(block, "one") == {"a": {"kind": "verifier", "verifier": "exact"}}
    assert set(rewards.parts_for(block, None)) == {"a", "b"}


def test_evaluation_takes_as_many_prompts_from_each_source() -> None:
    prompts = [Prompt(i, str(i), (i,), {"source": "a" if i < 6 else "b"}) for i in range(8)]
    assert [p.index for p in spread_over_sources(prompts, 4)] == [0, 1, 6, 7]
    assert [p.index for p in spread_over_sources(prompts, 6)] == [0, 1, 2, 3, 6, 7]


@pytest.mark.parametrize(
    ("change", "reported"),
    [
        ({"prompts": {"path": "x.jsonl"}}, "prompts: give sources, or path or procedural, not both"),
        ({"prompts": {"task": {"gold": "g"}}}, "prompts.task: with sources, rows are read by the keys of their own"),
        ({"prompts": {"sources": {"puzzles": {"path": "x.jsonl"}}}}, "prompts.sources.puzzles: give path"),
        ({"prompts": {"sources": {"puzzles": {"rewards": {}}}}, "rewards": {}}, "puzzles.rewards: nothing judges"),
        ({"prompts": {"sources": {"puzzles": {"rewards": {"length": {"max_tokens": 9}}}}}}, "rewards.length: a part"),
        ({"grpo": {"credit": {"kind": "gdpo"}}}, "grpo.credit.kind: gdpo normalises every part"),
    ],
)  # fmt: skip
def test_sources_that_contradict_each_other_are_reported(
    change: dict[str, Any], reported: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def merged(old: Any, new: Any) -> Any:
        if not isinstance(old, dict) or not isinstance(new, dict) or not new:
            return new
        return {**old, **{key: merged(old.get(key), value) for key, value in new.items()}}

    config = written(tmp_path, example())
    config.write_text(yaml.safe_dump(merged(yaml.safe_load(config.read_text()), change)))
    assert main(["grpo", str(config), f"runs_dir={tmp_path}"]) == 2
    assert reported in capsys.readouterr().err


def test_a_field_that_a_source_s_verifier_needs_is_missed_in_that_source(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = example()
    raw["prompts"]["sources"]["problems"]["task"] = {"truth": "answer"}
    assert main(["plan", str(written(tmp_path, raw)), f"runs_dir={tmp_path}"]) == 2
    out = capsys.readouterr()
    assert re.search(r"prompts\.sources\.problems: .*no field 'gold'", out.out + out.err), out.out + out.err


def test_a_sampler_with_ratios_finds_its_column_in_rows_and_in_tasks() -> None:
    def positions(column: str, ratios: dict[str, float]) -> dict[str, list[int]]:
        ctx: Any = SimpleNamespace(
            name="grpo", block=SimpleNamespace(sampler=SimpleNamespace(ratios=ratios, column=column)),
            cfg=SimpleNamespace(path="c.yaml", prompts=Prompts()), train_prompts=SimpleNamespace(rows=rows),
        )  # fmt: skip
        return {name: list(found) for name, found in sources_of(ctx).items()}

    rows = [{"prompt": "x", "level": 1}, {"prompt": "y", "task": {"level": 2}}, {"prompt": "z", "level": 1}]
    assert positions("level", {"2": 0.5, "1": 0.5}) == {"2": [1], "1": [0, 2]} and positions("level", {}) == {}
    with pytest.raises(ConfigError, match=r"grpo\.sampler\.ratios: no prompt has level '3'; have: 1, 2$"):
        positions("level", {"3": 1.0})
    with pytest.raises(ConfigError, match=r"column: no row has a column 'kind'; have: prompt, level$"):
        positions("kind", {"3": 1.0})
