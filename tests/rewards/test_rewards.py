"""A reward may be wrong about one row; it may never be wrong about another's, hang the trainer or invent a zero."""

from __future__ import annotations

import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from reward_rows import batch_of

import rewards
import verifiers
from rewards import Batch, build

FUSSY = """
import threading, time
from typing import Any, TypedDict
from verifiers import Example, passed, failed, malformed

class Task(TypedDict):
    want: str

def verify(completion, task):
    if completion == "raise":
        raise KeyError("boom")
    if completion == "hang":
        time.sleep(30)
    if completion == "other":
        return 1.0
    if not completion:
        return malformed("empty")
    return passed() if completion == task["want"] else failed("differs")

EXAMPLES = (Example("right", "a", {"want": "a"}),)
"""
IN_BATCHES = """

def verify_batch(completions, tasks):
    return [verify(c, t) for c, t in zip(completions, tasks)]
"""


@pytest.fixture
def own_verifiers(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "fussy.py").write_text(FUSSY)
    (tmp_path / "fussy_batch.py").write_text(FUSSY + IN_BATCHES)
    yield tmp_path


@pytest.mark.parametrize("name", ["fussy", "fussy_batch"])
def test_a_row_that_raises_is_an_error_and_moves_no_other_row(name: str, own_verifiers: Path) -> None:
    completions = ["a", "raise", "a", "b", "", "other", "a"]
    scores = build({name: None}, verifier_dirs=[own_verifiers]).score(batch_of(completions))
    assert [s.status for s in scores] == ["pass", "error", "pass", "fail", "malformed", "error", "pass"]
    rewards_B = [s.reward for s in scores]
    assert [r for r in rewards_B if not math.isnan(r)] == [1.0, 1.0, 0.0, 0.0, 1.0]
    assert math.isnan(rewards_B[1]) and math.isnan(rewards_B[5])
    assert "boom" in scores[1].detail and scores[1].parts == {name: None}


@pytest.mark.parametrize("name", ["fussy", "fussy_batch"])
def test_a_hung_row_becomes_an_error_within_its_deadline_and_moves_no_other(name: str, own_verifiers: Path) -> None:
    composite = build({name: {"timeout_s": 0.3}}, verifier_dirs=[own_verifiers])
    started = time.monotonic()
    scores = composite.score(batch_of(["a", "hang", "a", "b"]))
    assert time.monotonic() - started < 5
    assert [s.status for s in scores] == ["pass", "error", "pass", "fail"]
    assert "0.3 s" in scores[1].detail


def test_rows_of_a_verifier_that_has_proved_quick_share_jobs_and_keep_their_own_deadlines(own_verifiers: Path) -> None:
    composite = build({"fussy": {"timeout_s": 0.5}}, verifier_dirs=[own_verifiers])
    pool, jobs = composite._pool, list[float]()
    plain = pool.submit

    def counted(run: Any, timeout_s: float) -> Any:
        jobs.append(timeout_s)
        return plain(run, timeout_s)

    pool.submit = counted  # type: ignore[method-assign]
    composite.score(batch_of(["a"] * 40))
    assert len(jobs) == 40, "the pace is not known yet"
    jobs.clear()
    scores = composite.score(batch_of(["a", "b", "raise", ""] * 10))
    assert [s.status for s in scores] == ["pass", "fail", "error", "malformed"] * 10
    assert len(jobs) < 10 and set(jobs) == {0.5}
    jobs.clear()
    scores = composite.score(batch_of([*["a"] * 20, "hang", *["b"] * 20]))
    assert [s.status for s in scores] == ["pass"] * 20 + ["error"] + ["fail"] * 20
    jobs.clear()
    composite.score(batch_of(["a"] * 40))
    assert len(jobs) == 40, "a late row makes the next batch careful"


def test_more_hung_rows_than_threads_do_not_starve_the_rest(own_verifiers: Path) -> None:
    composite = build({"fussy": {"timeout_s": 2.0}}, verifier_dirs=[own_verifiers])
    scores = composite.score(batch_of(["hang"] * 20 + ["a"] * 30))
    assert [s.status for s in scores] == ["error"] * 20 + ["pass"] * 30


def test_scoring_runs_while_the_caller_does_other_things(own_verifiers: Path) -> None:
    slow = FUSSY.replace('if completion == "hang"', "if completion").replace("30", "1.0")
    (own_verifiers / "slow.py").write_text(slow)
    composite = build({"slow": None}, verifier_dirs=[own_verifiers])
    pending = composite.submit(batch_of(["a"] * 4))
    time.sleep(3.0)
    started = time.monotonic()
    assert [s.reward for s in pending.result()] == [1.0] * 4
    assert time.monotonic() - started < 0.7  # of the second that each takes


def test_a_missing_task_field_is_an_error_not_a_zero(own_verifiers: Path) -> None:
    scores = build({"fussy": None}, verifier_dirs=[own_verifiers]).score(batch_of(["a", "a"], [{}, {"want": "a"}]))
    assert [s.status for s in scores] == ["error", "pass"]
    assert "'want'" in scores[0].detail


def test_task_fields_can_be_renamed_and_fixed_in_the_block(own_verifiers: Path) -> None:
    batch = batch_of(["a", "b"], [{"answer": "a"}, {"answer": "a"}])
    renamed = build({"fussy": {"fields": {"want": "answer"}}}, verifier_dirs=[own_verifiers])
    assert [s.reward for s in renamed.score(batch)] == [1.0, 0.0]
    fixed = build({"fussy": {"task": {"want": "b"}}}, verifier_dirs=[own_verifiers])
    assert [s.reward for s in fixed.score(batch)] == [0.0, 1.0]


def test_each_row_may_name_its_own_verifier(own_verifiers: Path) -> None:
    composite = build({"any": {"kind": "verifier", "verifier": "by_task"}}, verifier_dirs=[own_verifiers])
    walk = {"verifier": "gridworld", "start": "a1", "goal": "c1"}
    tasks = [walk, {"verifier": "fussy", "want": "RR"}, {"verifier": "nonesuch"}, {}, walk]
    scores = composite.score(batch_of(["RR", "RR", "RR", "RR", "R"], tasks))
    assert [s.status for s in scores] == ["pass", "pass", "error", "error", "fail"]
    assert "nonesuch" in scores[2].detail


def pairs(prompt_ids: list[list[int]], completion_ids: list[list[int]]) -> list[float]:
    return [float(sum(p) + 10 * sum(c)) for p, c in zip(prompt_ids, completion_ids, strict=True)]


def test_the_reward_is_the_weighted_sum_and_a_part_of_weight_zero_only_watches(own_verifiers: Path) -> None:
    block = {
        "fussy": {"weight": 2.0},
        "reward_model": {"weight": 0.5, "model": "here"},
        "strict": {"kind": "function", "path": f"{__name__}:undecided", "weight": 0},
    }
    asked: list[str] = []

    def learned(reference: str) -> object:
        asked.append(reference)
        return pairs

    composite = build(block, verifier_dirs=[own_verifiers], learned=learned)  # type: ignore[arg-type]
    (score,) = composite.score(batch_of(["a"]))
    assert asked == ["here"]
    assert score.parts == {"fussy": 1.0, "reward_model": 3.0 + 970.0, "strict": None}
    assert score.reward == 2.0 + 486.5 and score.status == "pass"


def test_a_watched_judge_that_broke_makes_no_row_wrong() -> None:
    """Its row keeps its reward, counts in no accuracy, and is not called unscorable."""
    block: dict = {"f": {"kind": "function", "path": f"{__name__}:per_letter"}, "exact": {"weight": 0}}
    tasks = [{"want": "a", "gold": "a"}, {"want": "a", "gold": ""}]  # an empty gold is a fault of the task
    whole, broken = build(block).score(batch_of(["a", "a"], tasks))
    assert (whole.reward, whole.status, broken.reward, broken.status) == (1.0, "pass", 1.0, "error")
    weighted = build({**block, "exact": {"weight": 0.5}}).score(batch_of(["a", "a"], tasks))[1]
    assert math.isnan(weighted.reward) and weighted.status == "error"
    judged = build({"exact": {"weight": 0}, "countdown": {}}).score(
        batch_of(["1+1", "1+1"], [{"gold": gold, "numbers": [1, 1], "target": 2} for gold in ("1+1", "")])
    )
    assert [s.status for s in judged] == ["pass", "pass"], "the weighted judge's word comes first"


def undecided(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **columns: object) -> list:
    return [None] * len(completions)


def per_letter(completions: list[str], want: list[str]) -> list[float | None]:
    """Takes no **columns, raises on one row, says NaN or None on others."""
    special: dict[str, float | None] = {"nan": math.nan, "none": None, "inf": math.inf}
    if "raise" in completions:
        raise RuntimeError("no")
    return [special.get(c, float(c == w)) for c, w in zip(completions, want, strict=True)]


def one_too_few(completions: list[str], **columns: object) -> list[float]:
    return [1.0 for c in completions if c != "skip"]


async def slowly(completions: list[str], **columns: object) -> list[float]:
    return [0.5] * len(completions)


def test_none_nan_and_exceptions_of_a_function_stay_in_their_row() -> None:
    composite = build({"f": {"kind": "function", "path": f"{__name__}:per_letter"}})
    scores = composite.score(batch_of(["a", "nan", "raise", "b", "none", "inf", "a"]))
    assert [s.status for s in scores] == ["pass", "error", "error", "pass", "error", "error", "pass"]
    assert [s.parts["f"] for s in scores] == [1.0, None, None, 0.0, None, None, 1.0]


def worded(completions: list[str], **columns: object) -> list[object]:
    return [1.0 if c == "a" else "good" for c in completions]


def test_a_text_among_the_rewards_of_a_function_stays_in_its_row() -> None:
    composite = build({"f": {"kind": "function", "path": f"{__name__}:worded"}})
    good, bad = composite.score(batch_of(["a", "b"]))
    assert (good.reward, bad.status) == (1.0, "error")
    assert bad.detail.endswith("returned ['good']; return a list with one number (or None) per completion")


def test_a_function_that_returns_too_few_values_never_shifts_a_row() -> None:
    composite = build({"f": {"kind": "function", "path": f"{__name__}:one_too_few"}})
    assert [s.parts["f"] for s in composite.score(batch_of(["a", "skip", "b"]))] == [1.0, None, 1.0]


def test_an_async_function_is_awaited() -> None:
    composite = build({"f": {"kind": "function", "path": f"{__name__}:slowly"}})
    assert [s.reward for s in composite.score(batch_of(["a", "b"]))] == [0.5, 0.5]


def test_a_learned_reward_that_fails_stops_the_caller_and_one_that_says_nan_masks_its_row() -> None:
    def failing(prompt_ids: object, completion_ids: object) -> list[float]:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        build({"reward_model": None}, learned=lambda _: failing).score(batch_of(["a"]))
    scores = build({"reward_model": None}, learned=lambda _: lambda p, c: [math.nan, 1.5]).score(batch_of(["a", "b"]))
    assert [s.status for s in scores] == ["error", "pass"] and scores[1].reward == 1.5


def test_trl_rewards_can_be_named_and_agree_with_ours_on_length() -> None:
    pytest.importorskip("trl")
    from trl.rewards import get_soft_overlong_punishment

    theirs = get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)
    ids = [[7] * n for n in (0, 1, 79, 80, 81, 90, 99, 100, 101, 500)]
    ours = rewards.length(max_tokens=100, buffer_tokens=20)(None, None, ids)
    assert ours == pytest.approx(theirs(ids))
    path = "trl.rewards:get_soft_overlong_punishment"
    options = {"max_completion_len": 2, "soft_punish_cache": 1}
    named = build({"theirs": {"kind": "function", "path": path, "options": options}})
    assert [s.reward for s in named.score(batch_of(["a", "ab", "abc"]))] == [0.0, -1.0, -1.0]


def test_ours_can_be_called_the_way_trl_calls(own_verifiers: Path) -> None:
    function = rewards.verifier("fussy", verifier_dirs=[own_verifiers])
    conversation = [[{"role": "assistant", "content": text}] for text in ("a", "b", "raise")]
    prompts = [[{"role": "user", "content": "?"}]] * 3
    called = function(
        prompts=prompts, completions=conversation, completion_ids=[[1], [2], [3]], want=["a"] * 3,
        trainer_state=object(), log_extra=print, log_metric=print,
    )  # fmt: skip
    assert called == [1.0, 0.0, None] and function.__name__ == "fussy"


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"gridwrld": None}, "did you mean 'gridworld'"),
        ({"length": {"max_tokens": 5, "bufer_tokens": 1}}, "did you mean 'buffer_tokens'"),
        ({"length": {"max_tokens": 5}}, "needs 'buffer_tokens'"),
        ({"length": {"max_tokens": 5, "buffer_tokens": 9}}, "buffer_tokens 9"),
        ({"length": {"max_tokens": "many", "buffer_tokens": 9}}, "'many' is not int"),
        ({"x": {"kind": "verifer"}}, "did you mean 'verifier'"),
        ({"gridworld": {"weight": "heavy"}}, "'heavy' is not a number"),
        ({"gridworld": {"weight": float("nan")}}, "finite"),
        ({"gridworld": {"wieght": 1}}, "did you mean 'weight'"),
        ({"random": {"wieght": 1}}, "did you mean 'weight'"),
        ({"f": {"kind": "function", "path": "no_colon"}}, "of the form module:name"),
        ({"f": {"kind": "function", "path": "no.such:thing"}}, "cannot import"),
        ({"reward_model": None}, "reward model"),
        ({}, "at least one"),
    ],
)
def test_a_mistake_in_the_block_is_reported_with_its_fix(block: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(block)


def test_numbers_that_yaml_reads_as_text_are_numbers(own_verifiers: Path) -> None:
    (score,) = build({"fussy": {"weight": "1e-3"}}, verifier_dirs=[own_verifiers]).score(batch_of(["a"]))
    assert score.reward == 1e-3


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match="differ in length"):
        Batch(["p"], [[1]], ["a", "b"], [[1]], [True], [{}])


def test_rewards_and_verifiers_import_without_torch() -> None:
    code = "import rewards, verifiers, sys; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    root = Path(verifiers.__file__).parent.parent
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_a_reward_model_is_recognised_by_its_kind_and_not_by_its_name_alone() -> None:
    block: dict[str, dict[str, Any] | None] = {
        "reward_model": {"weight": 0.5},
        "preference": {"kind": "learned", "model": "runs/a/reward_model"},
        "other": {"kind": "learned"},
        "learned": None,
        "math_answer": {},
        "strict": {"kind": "verifier", "verifier": "exact"},
    }
    assert rewards.learned_models(block) == {
        "reward_model": "reward_model",
        "preference": "runs/a/reward_model",
        "other": "other",
        "learned": "learned",
    }
    built = build(block, learned=lambda reference: lambda prompts, completions: [0.0] * len(prompts))
    assert [part.name for part in built.parts if type(part).__name__ == "LearnedPart"] == list(
        rewards.learned_models(block)
    )
    built.close()
