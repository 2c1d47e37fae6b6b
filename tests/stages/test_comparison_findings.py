"""What a comparison concludes from judged numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest

from pipeline.records import Prompt, Rollout, Scored
from pipeline.stages.comparison import findings
from pipeline.stages.comparison.method_judge import best_of_curves, by_prompt


def judged(levels: dict[str, float], *, seed: int, prompts: int = 40) -> dict[str, Any]:
    """Prompts of different difficulty, the same for all; a method's level is added to each."""
    hard = [0.3 * ((p * 7) % 11) / 11 for p in range(prompts)]
    order = list(range(prompts)) if seed % 2 else list(reversed(range(prompts)))
    rows = [
        {
            "policy": n,
            "accuracy_by_prompt": [v + hard[p] + 0.004 * seed for p in order],
            "pass_at": [v, v],
            "entropy": 0.5,
            "heldout_reward": v,
            "kl_from_start": 1.0,
            "distinct_answers": 3.0,
            "mean_completion_tokens": 5.0,
            "malformed_share": 0.0,
            "best_answer_mass": 0.4,
            "sampled_tokens": 1000,
            "learned_tokens": 100,
            "forward_tokens": 200,
            "wall_s": 1.0,
        }
        for n, v in levels.items()
    ]
    return {"policies": rows, "prompts": [f"p{p}" for p in order], "parameters": 10}


LEVELS = {"sft": 0.2, "good": 0.5, "same": 0.5, "control": 0.2}
ROLES = {"sft": "start", "good": "method", "same": "method", "control": "control of good"}


@pytest.fixture
def seeds() -> list[dict[str, Any]]:
    return [judged(LEVELS, seed=s) for s in (1, 2, 3)]


def test_gains_are_paired_by_prompt_whatever_order_a_seed_judged_them_in(seeds: list[dict[str, Any]]) -> None:
    rows = {r["method"]: r for r in findings.table(seeds, ROLES, "sft", 1000)}
    assert rows["good"]["gain"]["mean"] == pytest.approx(0.3)
    # each prompt gained exactly 0.3 under each seed: the interval has no width
    assert (rows["good"]["gain"]["low"], rows["good"]["gain"]["high"]) == pytest.approx((0.3, 0.3))
    assert rows["sft"]["gain"]["mean"] == 0.0
    assert rows["good"]["flops"] == 10 * (2 * 200 + 6 * 100)


def test_a_prompt_without_a_scorable_sample_under_one_policy_is_left_out_for_all(seeds: list[dict[str, Any]]) -> None:
    whole = findings.table(seeds, ROLES, "sft", 1000)
    gone = seeds[1]["prompts"][0]
    for row in seeds[1]["policies"][1:2]:
        row["accuracy_by_prompt"][0] = None  # NaN, as a manifest says it
    for one in seeds:  # whatever stands there for the others must not count
        for row in one["policies"]:
            place = one["prompts"].index(gone)
            row["accuracy_by_prompt"][place] = row["accuracy_by_prompt"][place] and 77.0
    rows = {r["method"]: r for r in findings.table(seeds, ROLES, "sft", 1000)}
    assert rows["good"]["gain"]["mean"] == pytest.approx(whole[1]["gain"]["mean"]) == pytest.approx(0.3)
    assert all(abs(r["accuracy"]) < 2 for r in rows.values())
    for row in seeds[0]["policies"]:
        row["accuracy_by_prompt"] = [None] * len(row["accuracy_by_prompt"])
    with pytest.raises(ValueError, match="no held-out prompt has a scorable sample of every policy"):
        findings.table(seeds, ROLES, "sft", 1000)


def test_without_a_verifier_policies_are_compared_by_their_mean_reward(seeds: list[dict[str, Any]]) -> None:
    for one in seeds:
        for row in one["policies"]:
            row["heldout_judged"] = False
            row["reward_by_prompt"] = [3 * v - 1 for v in row["accuracy_by_prompt"]]
            row["accuracy_by_prompt"] = [1.0] * len(one["prompts"])  # every scored answer counts as a pass
    rows = findings.table(seeds, ROLES, "sft", 1000)
    good = next(r for r in rows if r["method"] == "good")
    assert good["gain"]["mean"] == pytest.approx(0.9) and "accuracy" not in good
    expected = sum(3 * (0.508 + 0.3 * ((p * 7) % 11) / 11) - 1 for p in range(40)) / 40
    assert good["reward"] == pytest.approx(expected)
    [pair, *_] = findings.pairs(seeds, ["good", "same"])
    text = findings.sentence(good, [pair], [], [], start="sft", seeds=3)
    assert text.startswith(f"good reaches a mean reward of {expected:.3f} (95% ") and "+0.900 (" in text
    assert "%)" not in text and "points" not in text
    assert "held-out reward" in findings.markdown(rows, "sft").splitlines()[0]
    assert findings.best_of_rows(seeds, [2], "sft") == []


def of_prompt(index: int, passed: Sequence[bool | None]) -> list[Scored]:
    prompt = Prompt(index, f"p{index}", (1,), {})
    return [Scored(Rollout(prompt, i, (1,), (0.0,), "", True), math.nan if ok is None else float(ok),
                   "error" if ok is None else "pass" if ok else "fail", {}) for i, ok in enumerate(passed)]  # fmt: skip


def test_a_prompt_whose_samples_all_broke_has_no_value_and_ends_nothing() -> None:
    scored = [*of_prompt(1, [True, False]), *of_prompt(2, [None, None]), *of_prompt(3, [True, True])]
    found = by_prompt(scored, ["p1", "p2", "p3"])
    assert found["pass_at"] == [0.75, 1.0]
    assert found["accuracy_by_prompt"] == pytest.approx([0.5, math.nan, 1.0], nan_ok=True)
    [one, two] = best_of_curves(scored, proxy=False)["gold"]
    assert one["accuracy_by_prompt"] == pytest.approx([0.5, math.nan, 1.0], nan_ok=True)
    assert two["accuracy_by_prompt"] == pytest.approx([1.0, math.nan, 1.0], nan_ok=True) and two["reward"] == 1.0


def test_who_sampled_more_than_the_budget_is_marked(seeds: list[dict[str, Any]]) -> None:
    assert not any(r["over_budget"] for r in findings.table(seeds, ROLES, "sft", 1000))
    assert all(r["over_budget"] for r in findings.table(seeds, ROLES, "sft", 900))


def test_a_clear_difference_stays_significant_among_hundreds_of_pairs() -> None:
    names = [f"method_{i}" for i in range(22)]  # 231 pairs: 231 times 1/4000 is above 0.05
    levels = {"sft": 0.2, **{name: 0.4 for name in names}, "method_7": 0.7}
    pairs = findings.pairs([judged(levels, seed=s) for s in (1, 2, 3)], names)
    assert len(pairs) == 231
    assert {frozenset((p["a"], p["b"])) for p in pairs if p["significant"]} == {
        frozenset((name, "method_7")) for name in names if name != "method_7"
    }


def test_sentences_claim_what_is_significant_and_say_so_of_what_is_not(seeds: list[dict[str, Any]]) -> None:
    rows = findings.table(seeds, ROLES, "sft", 1000)
    pairs = findings.pairs(seeds, ["good", "same"])
    controls = findings.against(seeds, {"good": "control"})
    said = findings.sentence(rows[1], pairs, controls, [], start="sft", seeds=3)
    assert "+30.0 points (+30.0 to +30.0) against sft" in said
    assert "against its control control" in said
    assert said.endswith("no significant difference from same.")
    alone = findings.sentence(rows[1], pairs, controls, [], start="sft", seeds=1)
    assert alone.endswith("One seed: how much another training run would differ is unknown.")


def test_the_table_for_a_readme_has_a_line_a_method(seeds: list[dict[str, Any]]) -> None:
    lines = findings.markdown(findings.table(seeds, ROLES, "sft", 1000), "sft").splitlines()
    assert len(lines) == 2 + 4 and {line.count("|") for line in lines} == {9}
    assert "| good | method |" in lines[3] and "+30.0 (+30.0 to +30.0)" in lines[3]


def test_an_interval_of_a_share_stays_a_share() -> None:
    noisy = [judged({"sft": 0.0, "good": 0.02 if s == 1 else 0.6}, seed=s) for s in (1, 2)]
    row = findings.table(noisy, {"sft": "start", "good": "method"}, "sft", 1000)[1]
    assert row["ci95"][0] == 0.0 and row["ci95"][1] == 1.0
    assert row["gain"]["low"] < 0, "a difference may be of either sign"


def test_over_optimisation_starts_where_gold_peaks_while_the_proxy_goes_on() -> None:
    path = [
        {"kl": k, "reward": g, "proxy": p} for k, g, p in [(0, 0.3, 0.0), (1, 0.5, 0.8), (2, 0.4, 1.2), (4, 0.1, 1.9)]
    ]
    found = findings.overoptimised("ppo", path)
    assert found["onset"] == 1 and "peaks at 0.500" in found["words"] and "+0.80 to +1.90" in found["words"]
    assert findings.overoptimised("ppo", path[:2])["onset"] is None
    both_fell = [*path[:2], {"kl": 2, "reward": 0.2, "proxy": 0.5}]
    assert findings.overoptimised("ppo", both_fell)["onset"] is None, "worse by both rewards is not over-optimisation"


def test_looks_on_the_way_come_from_steps_or_else_from_rounds() -> None:
    steps = [
        {"step": 1, "reward_mean": 0.1},
        {"step": 2, "heldout_accuracy": 0.5, "sampled_tokens": 10, "heldout_kl": 0.2},
    ]
    assert findings.trajectory(steps, []) == [{"tokens": 10.0, "accuracy": 0.5, "kl": 0.2}]
    assert findings.trajectory(steps[:1], [{"heldout_accuracy": 0.4}]) == [{"accuracy": 0.4}]
