"""The loop with scripted samples: what is gathered, what is credited, what is not computed twice."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from loop_kit import tiny_model
from scripted_loop import credited, lists, make_deps, scored

from pipeline.config.load import ConfigError
from pipeline.config.schema import Credit, Critic, Groups, Kl, Loss, Optimizer, Policy
from pipeline.credit.token_rewards import KLController
from pipeline.records import Prompt
from pipeline.run import alarms
from pipeline.update import learner as learning
from pipeline.update import vineppo
from pipeline.update.experience import describe, make_experience, step_rewards
from pipeline.update.forward import Row
from pipeline.update.loop import check_scores, demonstrations, difficulty, gather_groups, grouped, update_policy
from pipeline.update.loop_state import LoopDeps, State
from pipeline.update.reference import Copy


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return str(tiny_model(tmp_path_factory.mktemp("model")))


# --- nothing is computed twice ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (Policy(samples=2), {}),
        (Policy(samples=2, kl=Kl(coef=0.1)), {}),
        (Policy(samples=2, minibatches=2), {"logprobs": 1}),
        (Policy(samples=2, epochs=2, kl=Kl(coef=0.1)), {"logprobs": 1}),
        (Policy(samples=2, kl=Kl(coef=0.1, where="reward", kind="k1")), {"logprobs": 1}),
        (Policy(samples=2, loss=Loss(reject_k3=0.1)), {"logprobs": 1}),
        (Policy(samples=2, loss=Loss(top_entropy=0.5)), {"figures": 1}),
        (Policy(samples=2, credit=Credit(kind="optimal_baseline")), {"figures": 1}),
        (Policy(samples=2, credit=Credit(kind="gae"), critic=Critic(warmup_steps=0)), {"values": 1}),
        (Policy(samples=2, credit=Credit(kind="gae"), critic=Critic()), {"logprobs": 1, "values": 1}),
        (Policy(samples=2, credit=Credit(kind="gae"), critic=Critic(shared=True), epochs=2), {"both": 1}),
    ],
    ids=[
        "one update",
        "KL in the loss",
        "minibatches",
        "epochs",
        "KL in the reward",
        "rejection",
        "entropy",
        "token baseline",
        "critic",
        "critic's warm-up",
        "shared critic",
    ],
)
def test_no_forward_is_run_that_nothing_asks_for(place, tmp_path, monkeypatch, block, expected):
    """With one update a batch the log-probs before it are those of the update's own forward."""
    calls: dict[str, int] = {}
    for name, function in (
        ("logprobs", "completion_logprobs"),
        ("values", "values_of"),
        ("both", "logprobs_and_values"),
        ("figures", "completion_figures"),
    ):
        plain = getattr(learning, function)

        def counted(*given: Any, name: str = name, plain: Any = plain, **how: Any) -> Any:
            trained = any(p.requires_grad for p in given[0].parameters())
            calls[name if trained else "reference"] = calls.get(name if trained else "reference", 0) + 1
            return plain(*given, **how)

        monkeypatch.setattr(learning, function, counted)
    experience, _ = credited(place, tmp_path, block, [scored(0.0), scored(1.0)])
    assert calls.pop("reference", 0) == (1 if block.kl.coef else 0)
    assert calls == expected
    assert (experience.old_logprobs is None) == (not {"logprobs", "both", "figures"} & set(expected))


def test_detail_17_the_kl_is_in_the_reward_or_in_the_loss_and_never_in_both(place, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.run.alarms.check_reference", lambda *given: None)  # another reference, on purpose
    rows = [scored(0.0), scored(1.0)]
    found = {}
    for where, kind in (("reward", "k1"), ("loss", "k3")):
        block = Policy(samples=2, credit=Credit(scale=False), kl=Kl(coef=0.5, where=where, kind=kind), epochs=2)  # type: ignore[arg-type]
        deps = make_deps(place, tmp_path / where, block)
        with torch.no_grad():
            deps.reference.forward.model.lm_head.weight.mul_(1.5)  # type: ignore[union-attr]
        state = State(controller=KLController(0.5))
        batch, metrics = make_experience(deps, state, rows)
        found[where] = batch, metrics | update_policy(deps, state, batch)
    batch, metrics = found["reward"]
    assert batch.old_logprobs is not None and batch.reference_logprobs is not None
    kl = [float((o - r).sum()) for o, r in zip(batch.old_logprobs, batch.reference_logprobs, strict=True)]
    totals = [0.0 - 0.5 * kl[0], 1.0 - 0.5 * kl[1]]
    assert abs(kl[0]) > 0.05
    assert float(batch.advantages[0][0]) == pytest.approx((totals[0] - totals[1]) / 2, abs=1e-5)
    assert "kl_loss" not in metrics and metrics["kl_sequence"] == pytest.approx(sum(kl) / 2, abs=1e-5)
    batch, metrics = found["loss"]
    assert lists(batch.advantages) == [[-0.5] * 4, [0.5] * 4], "the reward is the score alone"
    assert metrics["kl_loss"] > 0


# --- tokens the policy did not sample, and rewards along the way ------------------------------------------------------

HOLES = (True, False, False, True, True, False)


def test_detail_14_gae_steps_over_what_the_environment_said(place, tmp_path):
    """A critic of zeros, γ = λ = 0.5: the tool's tokens cost no discount."""
    row = scored(1.0, ids=(5, 6, 7, 8, 9, 10), sampled=HOLES)
    whole = scored(1.0, ids=(5, 8, 9))
    block = Policy(samples=1, credit=Credit(kind="gae", gamma=0.5, lam=1.0, whiten=False), critic=Critic())
    batch, _ = credited(place, tmp_path, block, [row, whole])
    assert lists(batch.advantages) == [[0.25, 0, 0, 0.5, 1.0, 0], [0.25, 0.5, 1.0]]
    assert lists(batch.returns) == lists(batch.advantages)
    assert batch.rows[0].mask == HOLES


def test_a_reward_on_an_observation_goes_to_the_action_before_it():
    row = Row((1,), (5, 6, 7, 8, 9, 10), HOLES)
    one = scored(0.0, ids=row.ids, sampled=HOLES, steps=((2, 0.5), (5, 0.25), (3, 0.125)))
    assert step_rewards(one, row).tolist() == [0.5, 0, 0, 0.125, 0.25, 0]
    first = replace(row, mask=(False, False, True, True, True, True))
    assert step_rewards(scored(0.0, ids=row.ids, steps=((0, 1.0),)), first).tolist() == [0, 0, 1, 0, 0, 0]
    none = replace(row, mask=(False,) * 6)
    assert step_rewards(one, none).tolist() == [0.0] * 6


def test_rewards_along_the_way_reach_gae_and_the_groups(place, tmp_path):
    rows = [scored(1.0, steps=((0, 0.5),)), scored(0.0)]
    block = Policy(samples=2, credit=Credit(kind="gae", gamma=1.0, lam=1.0, whiten=False), critic=Critic())
    batch, _ = credited(place, tmp_path / "gae", block, rows)
    assert lists(batch.returns) == [[1.5, 1, 1, 1], [0, 0, 0, 0]]
    batch, _ = credited(place, tmp_path / "group", Policy(samples=2, credit=Credit(scale=False)), rows)
    assert lists(batch.advantages) == [[0.75, 0.25, 0.25, 0.25], [-0.75] * 4]


def test_turns_in_rows_of_their_own_are_one_episode(place, tmp_path):
    """Two episodes a prompt, of two turns and of one: an episode's rewards are summed before groups compare them."""
    second = Prompt(0, "later", (4, 4))
    rows = [scored(0.0, ids=(5, 2)), scored(1.0, prompt=second, ids=(6, 2), turn=1), scored(0.5, ids=(7, 8, 2))]
    batch, _ = credited(place, tmp_path, Policy(samples=2, credit=Credit(scale=False)), rows)
    assert lists(batch.advantages) == [[0.25, 0.25], [0.25, 0.25], [-0.25] * 3]
    figures = describe(rows)
    assert figures["reward_mean"] == 0.75 and figures["tokens"] == 7 and figures["turns_mean"] == 1.5
    critic = Policy(samples=2, credit=Credit(kind="gae", gamma=1.0, lam=1.0, whiten=False), critic=Critic())
    batch, _ = credited(place, tmp_path / "gae", critic, rows)
    assert lists(batch.returns) == [[1, 1], [1, 1], [0.5] * 3], "the recursion runs on from turn to turn"
    assert [len(g) for g in grouped(rows, 2)] == [3]


@pytest.mark.parametrize("level", ["token", "turn"])
@pytest.mark.parametrize(
    ("baseline", "expected"), [("include", [0.5, 0.5, -0.5, -0.5]), ("exclude", [1 / 3, 1 / 3, -2 / 3, 0.0])]
)
def test_a_masked_row_counts_in_every_baseline_or_in_none(place, tmp_path, level, baseline, expected):
    """Rewards 1, 1, 0 and a truncated 0: the mean of all is 1/2, without the truncated row 2/3."""
    rows = [scored(1.0), scored(1.0), scored(0.0), scored(0.0, finished=False)]
    groups = Groups(overlong="mask", overlong_baseline=baseline)
    block = Policy(samples=4, credit=Credit(scale=False, level=level), groups=groups)
    batch, _ = credited(place, tmp_path, block, rows)
    assert not any(batch.rows[3].mask)
    trained = [a[0] for a in lists(batch.advantages)[:3]]
    assert trained == [round(x, 5) for x in expected[:3]]


def test_without_overlong_rows_the_baseline_setting_changes_nothing(place, tmp_path):
    rows = [scored(1.0), scored(0.5), scored(0.0), scored(math.nan)]
    found = []
    for baseline in ("include", "exclude"):
        block = Policy(samples=4, groups=Groups(overlong="mask", overlong_baseline=baseline))  # type: ignore[arg-type]
        found.append(lists(credited(place, tmp_path / baseline, block, rows)[0].advantages))
    assert found[0] == found[1]


def test_the_no_signal_alarm_looks_at_the_rewards_that_credit_is_computed_from(place, tmp_path):
    """Equal scores, but a truncated answer is penalised: its group has an advantage, so the run must not stop."""
    rows = [scored(0.0), scored(0.0, finished=False)]
    for penalty, signal in ((0.5, 1.0), (0.0, 0.0)):
        block = Policy(samples=2, groups=Groups(missing_eos_penalty=penalty))
        deps = make_deps(place, tmp_path / str(penalty), block)
        state, metrics = State(), describe(rows)
        check_scores(deps, state, rows, metrics)
        assert metrics["groups_with_signal"] == signal and state.steps_without_signal == 1 - signal
        batch, _ = make_experience(deps, state, rows)
        assert any(bool(a.any()) for a in batch.advantages) == bool(signal)


def test_dynamic_sampling_keeps_a_group_that_only_a_penalty_distinguishes(place, tmp_path):
    def sample(prompts, step, attempt):
        return [scored(0.0, prompt=p, finished=sample_number != 1) for p in prompts for sample_number in range(2)]

    groups = Groups(dynamic=True, refill_cap=3, missing_eos_penalty=0.5)
    assert (
        gather_groups(make_deps(place, tmp_path, Policy(prompts=2, samples=2, groups=groups), sample), State()).batches
        == 1
    )


def test_the_logged_learning_rate_is_that_of_the_update_itself(place, tmp_path):
    block = Policy(samples=2, optimizer=Optimizer(learning_rate=1e-2, schedule="linear", warmup_steps=2))
    deps = make_deps(place, tmp_path, block)
    batch, _ = make_experience(deps, State(), [scored(1.0), scored(0.0)])
    logged, before = [], []
    for step in range(3):
        before.append([p.detach().clone() for p in deps.learner.model.parameters()])
        logged.append(update_policy(deps, State(step=step), batch)["learning_rate"])
    assert logged == [0.0, 5e-3, 1e-2], "warm-up over two updates starts at 0"
    assert all(torch.equal(a, b) for a, b in zip(*before[:2], strict=True)), "and at 0 nothing moves"


@pytest.mark.parametrize("bootstrap", [True, False])
def test_detail_26_only_a_cut_end_continues_with_its_value(place, tmp_path, bootstrap):
    block = Policy(samples=1, critic=Critic(bootstrap=bootstrap),
                   credit=Credit(kind="gae", gamma=1.0, lam=1.0, whiten=False))  # fmt: skip
    deps = make_deps(place, tmp_path, block)
    with torch.no_grad():
        deps.learner.critic.head.bias.fill_(2.0)  # V = 2 everywhere
    # of the full length and yet ended: length alone does not make a row cut
    ended, cut = scored(1.0, ids=(5,) * 7 + (2,)), scored(1.0, ids=(5,) * 8, finished=False)
    batch, _ = make_experience(deps, State(), [ended, cut])
    assert lists(batch.returns) == [[1.0] * 8, [3.0 if bootstrap else 1.0] * 8]


def test_detail_35_a_row_the_checker_broke_on_and_an_overlong_row_are_masked(place, tmp_path):
    rows = [scored(math.nan), scored(1.0), scored(0.0, finished=False), scored(0.0)]
    block = Policy(samples=4, credit=Credit(scale=False), groups=Groups(overlong="mask"))
    batch, _ = credited(place, tmp_path, block, rows)
    assert [any(r.mask) for r in batch.rows] == [False, True, False, True]
    third = 1 / 3
    assert lists(batch.advantages)[1] == [round(1 - third, 5)] * 4, "the broken row is in no mean"


def test_detail_13_penalties_fall_on_the_rows_that_did_not_end_and_on_long_ones(place, tmp_path):
    rows = [scored(1.0), scored(1.0, finished=False), scored(1.0, ids=(5,) * 7), scored(1.0, ids=(5,) * 8)]
    block = Policy(samples=4, credit=Credit(kind="gae", gamma=1.0, lam=1.0, whiten=False), critic=Critic(),
                   groups=Groups(missing_eos_penalty=0.5, overlong_buffer=2))  # fmt: skip
    batch, _ = credited(place, tmp_path, block, rows)
    assert [r[0] for r in lists(batch.returns)] == [1.0, 0.5, 0.5, 0.0]


# --- step-wise credit by sampled continuations ------------------------------------------------------------------------


def test_a_completion_is_left_at_equal_distances_and_never_at_its_ends():
    assert vineppo.branch_points(10, 4) == [2, 4, 6, 8]
    assert vineppo.branch_points(2, 4) == [1]
    assert vineppo.branch_points(1, 4) == []


def test_monte_carlo_credit_is_what_each_part_added_to_the_expected_score(place, tmp_path):
    """Values by hand: start (1 + 0) / 2, then .25 and .75 as the continuations say; the end is the score itself."""
    asked: list[tuple[int, tuple[int, ...], int]] = []

    def continue_and_score(branches, step):
        asked.extend((c.index, c.scored.rollout.ids, c.at) for c in branches)
        outcome = {2: [0.0, 0.5], 4: [1.0, 0.5]}
        return [[scored(r, ids=(*c.scored.rollout.ids[: c.at], 9, 9)) for r in outcome[c.at]] for c in branches]

    rows = [scored(1.0, ids=(5, 5, 6, 6, 7, 7)), scored(0.0, ids=(8,))]
    block = Policy(samples=2, credit=Credit(kind="monte_carlo", points=2, continuations=2, whiten=False))
    deps = make_deps(place, tmp_path, block, continue_and_score=continue_and_score)
    batch, metrics = make_experience(deps, State(), rows)
    assert lists(batch.advantages) == [[-0.25, -0.25, 0.5, 0.5, 0.25, 0.25], [-0.5]]
    assert asked == [(0, (5, 5, 6, 6, 7, 7), 2), (1, (5, 5, 6, 6, 7, 7), 4)]
    assert metrics["continuations"] == 4 and metrics["continuation_tokens"] == 8
    assert deps.directory.logs.tokens["completion"] == 8, "they count as sampled"


def test_monte_carlo_credit_with_one_sample_a_prompt_asks_for_the_start_too(place, tmp_path):
    def continue_and_score(branches, step):
        return [[scored({0: 0.25, 2: 0.75}[c.at])] for c in branches]

    block = Policy(samples=1, credit=Credit(kind="monte_carlo", points=1, continuations=1, whiten=False))
    batch, _ = credited(place, tmp_path, block, [scored(1.0)], continue_and_score=continue_and_score)
    assert lists(batch.advantages) == [[0.5, 0.5, 0.25, 0.25]]


def test_monte_carlo_credit_is_refused_for_episodes_whose_environment_cannot_be_rewound(place, tmp_path):
    block = Policy(samples=2, credit=Credit(kind="monte_carlo"))
    rows = [scored(1.0, ids=(5, 6), sampled=(True, False)), scored(0.0)]
    with pytest.raises(ConfigError, match="several turns"):
        credited(place, tmp_path, block, rows, continue_and_score=lambda branches, step: [])


# --- gathering --------------------------------------------------------------------------------------------------------


def script(rewards: list[list[list[float]]]):
    """A sampler whose attempt k gives prompt j the rewards[k][j]."""

    def sample(prompts, step, attempt):
        return [scored(r, prompt=p) for p, group in zip(prompts, rewards[attempt], strict=True) for r in group]

    return sample


def test_dynamic_sampling_replaces_groups_that_teach_nothing(place, tmp_path, capsys):
    block = Policy(prompts=2, samples=2, groups=Groups(dynamic=True, refill_cap=3))
    deps = make_deps(place, tmp_path, block, script([[[1, 1], [0, 1]], [[0, 0], [1, 0]], [[9, 9], [9, 9]]]))
    state = State()
    got = gather_groups(deps, state)
    assert [r.reward for r in got.scored] == [0, 1, 1, 0] and got.batches == 2
    assert [r.reward for r in got.sampled] == [1, 1, 0, 1, 0, 0, 1, 0], "the policy's mean is over all of them"
    assert state.prompts_drawn == 4, "fresh prompts each time"
    log = (tmp_path / "grpo" / "difficulty.jsonl").read_text().splitlines()
    assert len(log) == 4, "groups that were thrown away are logged too"
    assert capsys.readouterr().out == ""


def test_dynamic_sampling_counts_what_was_earned_along_the_way(place, tmp_path):
    """Groups of one final reward whose episodes earned on the way teach, and nothing is sampled in their place."""

    def sample(prompts, step, attempt):
        assert attempt == 0, "sampled again for nothing"
        return [scored(0.0, prompt=p, steps=((1, float(k)),)) for p in prompts for k in range(2)]

    def nothing(prompts, step, attempt):
        return [scored(0.0, prompt=p, steps=((1, 0.0),)) for p in prompts for _ in range(2)]

    block = Policy(prompts=2, samples=2, groups=Groups(dynamic=True, refill_cap=3))
    got = gather_groups(make_deps(place, tmp_path, block, sample), State())
    assert got.batches == 1 and [r.earned for r in got.scored] == [0.0, 1.0, 0.0, 1.0]
    assert gather_groups(make_deps(place, tmp_path / "nothing", block, nothing), State()).batches == 3


def test_dynamic_sampling_says_when_its_cap_was_not_enough(place, tmp_path, capsys):
    block = Policy(prompts=2, samples=2, groups=Groups(dynamic=True, refill_cap=2))
    deps = make_deps(place, tmp_path, block, script([[[1, 1], [0, 1]], [[0, 0], [1, 1]]]))
    got = gather_groups(deps, State())
    assert [r.reward for r in got.scored] == [0, 1, 1, 1] and got.batches == 2
    assert "only 1 of 2 groups have non-zero advantages after 2 batches" in capsys.readouterr().out


def test_without_it_every_group_is_kept(place, tmp_path):
    deps = make_deps(place, tmp_path, Policy(prompts=2, samples=2), script([[[1, 1], [0, 1]]]))
    got = gather_groups(deps, State())
    assert [r.reward for r in got.scored] == [1, 1, 0, 1] and got.batches == 1


def test_a_prompts_difficulty_counts_what_could_be_scored():
    told = difficulty([scored(1.0), scored(math.nan), scored(0.5)])
    assert told["samples"] == 3 and told["scorable"] == told["judged"] == 2 and told["passed"] == 2
    assert (told["reward_mean"], told["reward_min"], told["reward_max"]) == (0.75, 0.5, 1.0)


def test_demonstrations_go_round_without_a_repeat_before_all_were_seen(place, tmp_path):
    shown = [Row((1,), (i,), (True,)) for i in range(7)]
    block = Policy(prompts=4, samples=2, epochs=2, minibatches=2, loss=Loss(ptx_coef=0.1))
    deps = make_deps(place, tmp_path, block, demonstrations=shown)
    drawn = [r.ids[0] for step in range(2) for update in range(4) for r in demonstrations(deps, step, update)]
    assert len(drawn) == 2 * 4 * 4 and all(sorted(drawn[i : i + 7]) == list(range(7)) for i in range(0, 28, 7))
    assert demonstrations(replace(deps, block=Policy()), 0, 0) == []


# --- the controller ---------------------------------------------------------------------------------------------------


def test_detail_20_the_controller_is_steered_by_the_measured_kl_in_the_reward(place, tmp_path):
    block = Policy(samples=2, kl=Kl(coef=0.1, where="reward", kind="k1", target=6.0, horizon=100))
    deps = make_deps(place, tmp_path, block)
    state = State(controller=KLController(0.1, 6.0, 100))
    _, metrics = make_experience(deps, state, [scored(0.0), scored(1.0)])
    assert metrics["kl_sequence"] == pytest.approx(0.0, abs=1e-5) and metrics["kl_coef"] == 0.1
    assert state.controller.coefficient == pytest.approx(0.1 * (1 - 0.2 * 2 / 100)), "far below its target: down, held"


def move_reference(deps: LoopDeps, by: float) -> None:
    assert isinstance(deps.reference, Copy)
    with torch.no_grad():
        for weight in deps.reference.forward.model.parameters():
            weight.mul_(by)


def test_masked_rows_dilute_no_kl(place, tmp_path):
    block = Policy(samples=2, kl=Kl(coef=0.1, where="reward", kind="k1"), groups=Groups(overlong="mask"))
    rows = [scored(1.0), scored(0.0), scored(1.0, finished=False), scored(0.0, finished=False)]
    told = []
    for some in (rows[:2], rows):
        deps = make_deps(place, tmp_path / str(len(some)), block)
        move_reference(deps, 1.01)
        _, metrics = make_experience(deps, State(step=1, controller=KLController(0.1)), some)
        told.append(metrics["kl_sequence"])
    assert told[0] == pytest.approx(told[1]) and told[0] != 0.0


def test_a_minibatch_that_is_masked_as_a_whole_is_no_step(place, tmp_path):
    block = Policy(samples=2, groups=Groups(overlong="mask"))
    deps = make_deps(place, tmp_path, block)
    batch, _ = make_experience(deps, State(), [scored(1.0), scored(0.0), *[scored(1.0, finished=False)] * 2])
    before = [p.detach().clone() for p in deps.learner.model.parameters()]
    assert deps.learner.update(batch, [2, 3], kl_coef=0.0, kl_kind="k3") == {}
    assert all(torch.equal(a, b) for a, b in zip(before, deps.learner.model.parameters(), strict=True))
    assert math.isfinite(deps.learner.update(batch, [0, 1], kl_coef=0.0, kl_kind="k3")["policy_loss"])
    divided = replace(deps, block=replace(block, minibatches=2))
    for step in range(6):  # in some of these orders both masked rows make a minibatch
        merged = update_policy(divided, State(step=step), batch)
        assert math.isfinite(merged["policy_loss"]) and math.isfinite(merged["mismatch_mean_abs"])


def test_while_the_critic_warms_up_generator_and_reference_are_still_compared_with_the_policy(place, tmp_path):
    block = Policy(samples=2, credit=Credit(kind="gae"), critic=Critic(warmup_steps=2), kl=Kl(coef=0.1))
    deps = make_deps(place, tmp_path, block)
    _, metrics = make_experience(deps, State(), [scored(1.0), scored(0.0)])
    assert metrics["mismatch_mean_abs"] > 0.1, "the scripted log-probs are not the policy's"
    _, later = make_experience(deps, State(step=2), [scored(1.0), scored(0.0)])
    assert "mismatch_mean_abs" not in later, "the update's own forward tells"
    move_reference(deps, 1.5)
    with pytest.raises(alarms.Alarm, match="the reference is another model than the start"):
        make_experience(deps, State(), [scored(1.0), scored(0.0)])
