"""A reward may be wrong about one row; it may never be wrong about another's, hang the trainer or invent a zero."""

from __future__ import annotations

import math
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import rewards
import verifiers
from rewards import Batch, build
from rewards.steps import potential_differences
from verifiers.deadline import DeadlinePool

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


def batch_of(completions: list[str], tasks: list[dict] | None = None, finished: list[bool] | None = None) -> Batch:
    n = len(completions)
    return Batch(
        prompts=[f"prompt {i}" for i in range(n)],
        prompt_ids=[[1, 2] for _ in range(n)],
        completions=completions,
        completion_ids=[[ord(c) for c in text] for text in completions],
        finished=finished or [True] * n,
        tasks=tasks or [{"want": "a"}] * n,
    )


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


def test_a_pool_whose_every_thread_hangs_refuses_instead_of_waiting() -> None:
    release = threading.Event()
    pool = DeadlinePool(max_threads=8)
    try:
        jobs = [pool.submit(release.wait, 0.05) for _ in range(100)]
        pool.wait(jobs)
        assert all(job.late for job in jobs)
        pool.wait([pool.submit(release.wait, 0.05)])
    finally:
        release.set()
    deadline = time.monotonic() + 5
    while (job := pool.submit(lambda: "again", 1.0)).late and time.monotonic() < deadline:
        time.sleep(0.01)
    pool.wait([job])
    assert job.result == "again"


def test_a_job_that_starts_while_the_caller_waits_for_a_longer_one_keeps_its_own_deadline() -> None:
    release = threading.Event()
    pool = DeadlinePool(max_threads=2)
    try:
        first = pool.submit(release.wait, 60.0)
        brief = pool.submit(lambda: time.sleep(0.3), 60.0)
        hung = pool.submit(release.wait, 0.3)  # it starts when `brief` ends, during the wait for it
        started = time.monotonic()
        pool.wait([hung])
        assert hung.late and brief.done and not first.done
        assert time.monotonic() - started < 20
    finally:
        release.set()


def test_jobs_that_block_run_at_once_and_quick_ones_keep_their_results() -> None:
    pool = DeadlinePool(max_threads=8)
    together = threading.Barrier(8)
    blocked = [pool.submit(lambda: together.wait(30), 60.0) for _ in range(8)]
    pool.wait(blocked)
    assert sorted(job.result for job in blocked) == list(range(8))
    for _ in range(20):  # all threads are idle now and then
        quick = [pool.submit(partial(pow, i, 2), 60.0) for i in range(200)]
        pool.wait(quick)
        assert [job.result for job in quick] == [i * i for i in range(200)]
    blocked = [pool.submit(lambda: together.wait(30), 60.0) for _ in range(8)]
    pool.wait(blocked)
    assert all(job.exception is None and not job.late for job in blocked)


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


def test_repetition_is_the_share_of_repeated_ngrams_as_counted_by_hand() -> None:
    score = rewards.repetition(ngram=2)
    # 1 2 1 2 1: bigrams 12 21 12 21, two of four are new
    assert score(None, None, [[1, 2, 1, 2, 1], [1, 2, 3], [5], [], [9] * 11]) == [-0.5, 0.0, 0.0, 0.0, -0.9]


def test_the_missing_eos_penalty_falls_on_exactly_the_truncated_rows() -> None:
    batch = batch_of(["a", "b", "c"], finished=[True, False, True])
    assert [s.reward for s in build({"missing_eos": {"weight": 0.5}}).score(batch)] == [0.0, -0.5, 0.0]
    by_ids = rewards.missing_eos(eos_token_ids=[8, 9])
    assert by_ids(None, None, [[1, 9], [9, 1], [8], []]) == [0.0, -1.0, 0.0, -1.0]
    with pytest.raises(ValueError, match="eos_token_ids"):
        rewards.missing_eos()(None, None, [[1]])
    # under TRL's trainers, which send no `finished`, a composite reads the ids too and claims nothing without them
    ids = [[1, 9], [9, 1]]
    assert build({"missing_eos": {"eos_token_ids": [9]}})(["p"] * 2, ["a", "b"], ids) == [0.0, -1.0]
    assert build({"missing_eos": None})(["p"] * 2, ["a", "b"], ids) == [None, None]


def test_the_format_part_scores_tags_and_leaves_the_status_alone() -> None:
    scores = build({"format": None}).score(batch_of(["<think>x</think><answer>y</answer>", "y"]))
    assert [(s.reward, s.status) for s in scores] == [(1.0, "pass"), (0.0, "pass")]


def test_random_is_a_function_of_the_sample_and_not_of_its_company() -> None:
    texts = [f"answer {i}" for i in range(2000)]
    batch = batch_of(texts)
    uniform = [s.reward for s in build({"random": {"seed": 3}}).score(batch)]
    order = random.Random(0).sample(range(2000), 2000)
    names = ("prompts", "prompt_ids", "completions", "completion_ids", "finished", "tasks")
    shuffled = Batch(**{name: [getattr(batch, name)[i] for i in order] for name in names})
    again = [s.reward for s in build({"random": {"seed": 3}}).score(shuffled)]
    assert [uniform[i] for i in order] == again
    assert abs(sum(uniform) / 2000 - 0.5) < 4 * math.sqrt(1 / 12 / 2000)
    assert uniform != [s.reward for s in build({"random": {"seed": 4}}).score(batch)]
    rate = sum(s.reward for s in build({"random": {"pass_rate": 0.2}}).score(batch)) / 2000
    assert abs(rate - 0.2) < 4 * math.sqrt(0.16 / 2000)


@pytest.mark.parametrize("gamma", [1.0, 0.9])
def test_potential_rewards_telescope_to_a_constant_of_the_start(gamma: float) -> None:
    rng = random.Random(1)
    for n in (1, 2, 5, 9):
        potentials = [2.0] + [rng.uniform(-5, 5) for _ in range(n - 1)]
        shaped = potential_differences(potentials, gamma=gamma)
        assert math.fsum(gamma**t * reward for t, reward in enumerate(shaped)) == pytest.approx(-2.0)


def test_potential_shaping_keeps_the_best_policy_where_a_plain_bonus_changes_it() -> None:
    """A chain 0-1-2-3, +1 on reaching 3; a bonus for entering 2 makes circles best, the potential does not."""
    phi, gamma = [0.0, 1.0, 5.0, 0.0], 0.9

    def best_first_moves(bonus: object) -> list[int]:
        values = [0.0] * 4
        for _ in range(500):
            q = [
                [
                    bonus(s, t) + float(t == 3) + gamma * (values[t] if t != 3 else 0.0)  # type: ignore[operator]
                    for t in (max(s - 1, 0), s + 1)
                ]
                for s in range(3)
            ]
            values = [max(row) for row in q] + [0.0]
        return [row.index(max(row)) for row in q]

    def potential(s: int, t: int) -> float:
        after = [phi[s], phi[t]] if t != 3 else [phi[s]]
        return potential_differences(after, gamma=gamma)[0]

    assert best_first_moves(lambda s, t: 0.0) == [1, 1, 1]
    assert best_first_moves(lambda s, t: 5.0 * (t == 2)) != [1, 1, 1]
    assert best_first_moves(potential) == [1, 1, 1]


def halving(prompt: str, completion: str, completion_ids: list[int], task: dict) -> list[tuple[int, float]]:
    if completion == "raise":
        raise RuntimeError("no potential")
    if completion == "outside":
        return [(99, 1.0)]
    return [(i, 2.0**-i) for i in range(len(completion_ids))]


def test_step_rewards_land_on_their_tokens_weighted_and_leave_the_reward_alone() -> None:
    block = {"potential": {"path": f"{__name__}:halving", "weight": 2.0}}
    scores = build(block).score(batch_of(["abc", "raise", "outside"]))
    assert scores[0].reward == 0.0
    assert scores[0].step_rewards == ((0, -1.0), (1, -0.5), (2, -0.5))
    assert [s.status for s in scores] == ["pass", "error", "error"]


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
