"""Choice of prompts by difficulty and by ratio: hand arithmetic, frequencies, and that it is a pure function."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import loop_kit
import pytest

from pipeline.seeds import cycle_indices
from pipeline.update.prompt_sampler import draw, next_indices, observe, quotas, weight

KEY = (1, "grpo")


def test_a_pass_rate_discounts_earlier_groups() -> None:
    rate = observe(observe(None, passed=4, samples=8, discount=0.5), passed=1, samples=8, discount=0.5)
    assert rate == (0.5 * 4 + 1, 0.5 * 8 + 8)


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (None, 1.0),
        ((4.0, 8.0), 1.0),  # p = 5/10
        ((8.0, 8.0), 0.1 + 0.9 * 4 * 0.9 * 0.1),  # p = 9/10
        ((0.0, 8.0), 0.1 + 0.9 * 4 * 0.9 * 0.1),
        ((0.0, 1e9), 0.1),  # the floor
    ],
)
def test_a_prompt_that_passes_half_of_the_time_weighs_most(rate: tuple[float, float] | None, expected: float) -> None:
    assert weight(rate, floor=0.1) == pytest.approx(expected, abs=1e-6)


def test_prompts_are_drawn_by_weight_without_replacement() -> None:
    counts = Counter(i for step in range(3000) for i in draw([0, 1, 2, 3], [1.0, 1.0, 0.5, 0.1], 1, *KEY, step))
    shares = [counts[i] / 3000 for i in range(4)]
    assert shares == pytest.approx([1 / 2.6, 1 / 2.6, 0.5 / 2.6, 0.1 / 2.6], abs=0.03)
    assert all(len(set(draw(range(10), [1.0] * 10, 10, *KEY, step))) == 10 for step in range(20))
    assert sorted(Counter(draw([5, 6], [1.0, 0.2], 5, *KEY)).values()) == [2, 3]  # fewer prompts than asked for


def test_no_prompt_is_forgotten() -> None:
    """A prompt that never passes is still drawn, one in ten times as often as the best, and a new one at once."""
    rates = {0: (0.0, 1e9), 1: (4.0, 8.0)}
    found: Counter[int] = Counter()
    for step in range(2000):
        chosen = next_indices({"": [0, 1]}, {"": 1.0}, rates, drawn={"": step}, count=1, floor=0.1, key=KEY)
        found.update(chosen[""])
    assert found[0] / found[1] == pytest.approx(0.1, abs=0.03)


def test_uniform_sampling_is_the_walk_that_it_always_was() -> None:
    for drawn in (0, 4, 9):
        chosen = next_indices({"": range(7)}, {"": 1.0}, None, drawn={"": drawn}, count=4, floor=0.1, key=KEY)
        assert chosen[""] == cycle_indices(7, drawn, 4, *KEY, "order")


def test_the_same_state_gives_the_same_prompts_and_a_later_one_others() -> None:
    rates = {i: (float(i), 8.0) for i in range(9)}

    def chosen(drawn: int) -> list[int]:
        return next_indices({"": range(50)}, {"": 1.0}, rates, drawn={"": drawn}, count=8, floor=0.1, key=KEY)[""]

    assert chosen(8) == chosen(8) != chosen(16)


@pytest.mark.parametrize("ratios", [{"a": 3.0, "b": 1.0}, {"a": 1.0, "b": 1.0, "c": 0.3}])
def test_sources_keep_to_their_ratios_within_one_prompt(ratios: dict[str, float]) -> None:
    drawn: dict[str, int] = {}
    for count in [1, 4, 3, 4, 7, 1, 1, 32]:
        now = quotas(ratios, drawn, count)
        assert sum(now.values()) == count and min(now.values()) >= 0
        drawn = {name: drawn.get(name, 0) + now[name] for name in ratios}
        total = sum(drawn.values())
        for name, ratio in ratios.items():
            assert abs(drawn[name] - total * ratio / sum(ratios.values())) <= 1


def source_file(place: Path) -> Path:
    rows: list[dict[str, Any]] = [{"prompt": f"a{i}>b{j}:", "task": {}, "source": "easy" if i < 3 else "hard"}
            for i in range(1, 6) for j in range(1, 6)]  # fmt: skip
    path = place / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_stage_samples_its_sources_by_ratio(tmp_path: Path) -> None:
    model = loop_kit.tiny_model(tmp_path / "model")
    prompts = f"prompts={{path: {source_file(tmp_path)}, heldout: 0.2}}"
    sampler = "grpo.sampler={column: source, ratios: {easy: 3, hard: 1}, kind: difficulty}"
    assert loop_kit.run_stage(tmp_path, model, "grpo", prompts, sampler, "grpo.steps=3") == 0
    lines = [json.loads(line) for line in (tmp_path / "t/grpo/difficulty.jsonl").read_text().splitlines()]
    by_step = [[line["prompt"] for line in lines if line["step"] == step] for step in range(3)]
    assert [sum(prompt[1] < "3" for prompt in step) for step in by_step] == [3, 3, 3]


@pytest.mark.parametrize(
    ("sampler", "reported"),
    [
        ("{column: source, ratios: {easy: 1, harder: 1}}", "no prompt has source 'harder'; have: easy, hard"),
        ("{column: origin, ratios: {easy: 1}}", "no row has a column 'origin'"),
        ("{column: source}", "column and ratios go together"),
        ("{kind: difficulty, floor: 0}", "greater than 0"),
    ],
)
def test_a_sampler_that_cannot_work_is_refused(
    sampler: str, reported: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = loop_kit.tiny_model(tmp_path / "model")
    prompts = f"prompts={{path: {source_file(tmp_path)}, heldout: 0.2}}"
    assert loop_kit.run_stage(tmp_path, model, "grpo", prompts, f"grpo.sampler={sampler}", "grpo.steps=1") == 2
    assert reported in capsys.readouterr().err
