"""Episodes of several turns: how they are played and written down, and what of them is trained on."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from loop_kit import manifest, metrics, run_stage, tiny_model

from pipeline.config.load import ConfigError
from pipeline.config.schema import Credit, Loss, Model, Optimizer, Sampling
from pipeline.generation.episodes import load_environment, play
from pipeline.generation.generator import Sample
from pipeline.models import models
from pipeline.records import Prompt, as_json, episodes, from_json, merge_episode, read_scored
from pipeline.seeds import derive
from pipeline.update import episode_credit
from pipeline.update.forward import CompletionLogprobs, Row
from pipeline.update.learner import Learner
from pipeline.update.policy_loss import Experience
from verifiers import gridworld


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def tokenizer(place):
    return models.load_tokenizer(str(place), Model())


class Scripted:
    """A generator that says what it is told, in the order it is asked, and remembers what it was shown."""

    name = "scripted"

    def __init__(self, tokenizer, answers, cut=()):
        self.tokenizer, self.answers, self.cut = tokenizer, list(answers), set(cut)
        self.requests = []

    def sample(self, requests, sampling, ends):
        out = []
        for request in requests:
            text = self.answers[len(self.requests)]
            ids = tuple(self.tokenizer(text).input_ids)
            finished = len(self.requests) not in self.cut
            ids = (*ids, self.tokenizer.eos_token_id) if finished else ids
            self.requests.append(request)
            out.append(Sample(ids, tuple(-0.5 - i for i in range(len(ids))), finished))
        return out

    def logprobs(self, sequences):
        raise AssertionError("playing asks for samples alone")

    sync = logprobs


def start(tokenizer, cell="a1", goal="c1", index=0):
    text = gridworld.prompt(cell, goal)
    return Prompt(index, text, tuple(tokenizer(text).input_ids), {"start": cell, "goal": goal})


def played(tokenizer, answers, *, memory, prompts=None, samples=1, environment=gridworld.Environment, cut=(), **more):
    generator: Any = Scripted(tokenizer, answers, cut)
    rows = play(
        generator, environment, prompts or [start(tokenizer)], Sampling(max_tokens=6), samples=samples, max_turns=3,
        memory=memory, key=(1, "t"), tokenizer=tokenizer, stop_token_ids=frozenset({tokenizer.eos_token_id}), **more,
    )  # fmt: skip
    return rows, generator


def test_with_state_prompts_each_turn_is_a_row_that_shows_the_last_observation_alone(tokenizer):
    rows, _ = played(tokenizer, ["R", "R"], memory="state")
    assert [r.rollout.prompt.text for r in rows] == ["a1>c1:", "b1>c1:"]
    assert [list(r.rollout.prompt.ids) for r in rows] == [tokenizer(t).input_ids for t in ("a1>c1:", "b1>c1:")]
    assert [(r.rollout.turn, r.reward, r.rollout.sampled) for r in rows] == [(0, 0.0, None), (1, 1.0, None)]
    assert {r.rollout.prompt.index for r in rows} == {0} and {r.status for r in rows} == {"pass"}


def test_with_history_an_episode_is_one_row_and_what_the_environment_said_was_not_sampled(tokenizer):
    (row,), _ = played(tokenizer, ["R", "R"], memory="history")
    end = tokenizer.eos_token
    assert tokenizer.decode(row.rollout.ids) == f"R{end}b1>c1:R{end}"
    said = [i for i, sampled in enumerate(row.rollout.mask) if not sampled]
    assert tokenizer.decode([row.rollout.ids[i] for i in said]) == "b1>c1:"
    assert all(row.rollout.logprobs[i] == 0.0 for i in said) and row.rollout.text == "Rb1>c1:R"


def test_what_the_policy_is_shown_is_exactly_what_is_trained_on(tokenizer):
    (row,), generator = played(tokenizer, ["R", "L", "RR"], memory="history")
    whole_ids = (*row.rollout.prompt.ids, *row.rollout.ids)
    for request in generator.requests:
        assert whole_ids[: len(request.ids)] == request.ids
    starts = [len(r.ids) - len(row.rollout.prompt.ids) for r in generator.requests]
    assert all(row.rollout.mask[at] for at in starts) and [row.rollout.mask[at - 1] for at in starts[1:]] == [False] * 2


def test_what_a_turn_earned_falls_on_its_last_token(tokenizer):
    class Paying(gridworld.Environment):
        def step(self, action):
            seen, reward, done = super().step(action)
            return seen, reward + 0.125, done

    (row,), _ = played(tokenizer, ["RL", "RR"], memory="history", environment=Paying)
    # RL and its end token are places 0 to 2; four moves where two would do cost an eighth each
    assert row.step_rewards == ((2, 0.125),) and row.reward == 0.75 + 0.125
    rows, _ = played(tokenizer, ["RL", "RR"], memory="state", environment=Paying)
    assert [r.reward for r in rows] == [0.125, 0.875]


def test_turns_together_earn_what_the_verifier_gives_their_moves_in_one_answer():
    rng = random.Random(0)
    arrived = 0
    for _ in range(400):
        begin, goal = rng.sample(gridworld.CELLS, 2)
        environment, task = gridworld.Environment(), gridworld.Task(start=begin, goal=goal)
        environment.reset(task)
        moves, done, reward = "", False, 0.0
        while not done and len(moves) < gridworld.MAX_MOVES - 3:
            legal = [m for m in gridworld.MOVES if gridworld.step(environment.cell, m)]
            move = rng.choice(legal)
            moves += move
            _, reward, done = environment.step(move)
        if done:
            arrived += 1
            assert reward == gridworld.verify(moves, task).score
    assert arrived > 40


def test_an_environment_that_raises_breaks_its_own_episode_and_no_other(tokenizer):
    class Fragile(gridworld.Environment):
        def step(self, action):
            if action == "L":
                raise RuntimeError("no such place")
            return super().step(action)

    rows, _ = played(tokenizer, ["L", "RR"], memory="state", samples=2, environment=Fragile)
    first, second = episodes(rows)
    assert first[0].status == "error" and math.isnan(first[0].reward) and "no such place" in first[0].detail
    assert (second[0].status, second[0].reward) == ("pass", 1.0)


def test_an_observation_of_nothing_is_a_fault_of_the_environment(tokenizer):
    class Silent(gridworld.Environment):
        def step(self, action):
            return "", 0.0, False

    rows, _ = played(tokenizer, ["R"], memory="state", environment=Silent)
    assert rows[0].status == "error" and "empty observation" in rows[0].detail


def test_a_turn_cut_by_the_length_limit_ends_its_episode_unpaid(tokenizer):
    rows, generator = played(tokenizer, ["RR"], memory="state", cut={0})
    assert len(generator.requests) == 1 and not rows[0].rollout.finished and rows[0].reward == 0.0


def test_the_seed_of_a_turn_is_its_own_whatever_is_played_beside_it(tokenizer):
    two = [start(tokenizer), start(tokenizer, "a2", "a4", 1)]
    _, both = played(tokenizer, ["RR", "U", "U"], memory="state", prompts=two)
    _, alone = played(tokenizer, ["U", "U"], memory="state", prompts=two[1:], first=1)
    assert [r.seed for r in alone.requests] == [both.requests[1].seed, both.requests[2].seed]
    assert both.requests[2].seed == derive(1, "t", 1, 0, 1)


def test_a_verifier_without_turns_is_refused_by_name():
    with pytest.raises(ConfigError, match=r"grpo\.episodes: verifier 'exact' has no Environment"):
        load_environment("exact", where="grpo.episodes")


def test_rows_of_an_episode_survive_disk_and_read_as_one(tokenizer):
    rows, _ = played(tokenizer, ["R", "RR", "R"], memory="state", samples=2)
    back = [from_json(as_json(row)) for row in rows]
    assert [(r.rollout.turn, r.reward) for r in back] == [(r.rollout.turn, r.reward) for r in rows]
    joined = [merge_episode(e) for e in episodes(back)]
    assert [(j.reward, j.rollout.text) for j in joined] == [(1.0, "R | R"), (1.0, "RR")]
    history, _ = played(tokenizer, ["R", "R"], memory="history")
    assert from_json(as_json(history[0])).rollout.sampled == history[0].rollout.sampled


# --- credit --------------------------------------------------------------------------------------------------------


def brute_force_gae(rewards, values, last, gamma, lam):
    """By the definition: sum over later steps of (gamma lam)^k delta."""
    after = [*values[1:], last]
    deltas = [r + gamma * v2 - v for r, v, v2 in zip(rewards, values, after, strict=True)]
    return [sum((gamma * lam) ** (k - t) * deltas[k] for k in range(t, len(deltas))) for t in range(len(deltas))]


def test_gae_runs_on_from_one_turns_row_into_the_next():
    rows = [Row((1,), (2, 3), (True, True)), Row((4,), (5, 6, 7), (True, False, True)), Row((1,), (2,), (True,))]
    rewards = [torch.tensor([0.0, 0.5]), torch.tensor([0.0, 9.0, 1.0]), torch.tensor([0.25])]
    values = [torch.tensor([0.1, 0.2]), torch.tensor([0.3, 9.0, 0.4]), torch.tensor([0.6])]
    last = torch.tensor([0.7, 0.0])
    settings = Credit(gamma=0.9, lam=0.8)
    got, returns = episode_credit.gae_by_episode(settings, rows, [[0, 1], [2]], rewards, values, last)
    # the token that the environment wrote (9.0) is no step
    want = brute_force_gae([0.0, 0.5, 0.0, 1.0], [0.1, 0.2, 0.3, 0.4], 0.7, 0.9, 0.8)
    assert [*got[0].tolist(), got[1][0].item(), got[1][2].item()] == pytest.approx(want, abs=1e-6)
    assert got[1][1] == 0.0 and got[2].tolist() == pytest.approx([0.25 - 0.6])
    assert returns[0].tolist() == pytest.approx([want[0] + 0.1, want[1] + 0.2], abs=1e-6)


def test_with_turns_as_steps_discounts_count_turns_and_a_turns_tokens_share():
    rows = [Row((1,), (2, 3), (True, True)), Row((4,), (5, 6, 7), (True, False, True))]
    rewards = [torch.tensor([0.0, 0.5]), torch.tensor([0.0, 0.0, 1.0])]
    values = [torch.tensor([0.1, 9.0]), torch.tensor([0.3, 9.0, 0.4])]
    settings = Credit(gamma=0.9, lam=0.8, level="turn")
    got, _ = episode_credit.gae_by_episode(settings, rows, [[0, 1]], rewards, values, None)
    # three turns: a row, and the two runs of the row with a hole
    want = brute_force_gae([0.5, 0.0, 1.0], [0.1, 0.3, 0.4], 0.0, 0.9, 0.8)
    assert got[0].tolist() == pytest.approx([want[0]] * 2) and got[1].tolist() == pytest.approx([want[1], 0, want[2]])


def updated(place, rows, advantages):
    """Weights after one real update."""
    torch.manual_seed(0)
    forward = CompletionLogprobs(models.load_policy(str(place), Model()), temperature=1.0)
    learner = Learner(
        Accelerator(cpu=True), forward, None, loss=Loss(), optimizer=Optimizer(learning_rate=1e-2),
        critic_settings=None, updates=1, max_tokens=16, budget=4096,
    )  # fmt: skip
    seen = Experience(rows, advantages, [torch.zeros(len(r.ids)) for r in rows])
    learner.update(seen, range(len(rows)), kl_coef=0.0, kl_kind="k3")
    return torch.cat([p.detach().flatten() for p in learner.model.parameters()])


def test_tokens_of_the_environment_get_no_loss(place):
    rows = [Row((5, 6), (7, 8, 9, 10), (True, False, False, True))]
    plain = updated(place, rows, [torch.tensor([1.0, 0.0, 0.0, -1.0])])
    absurd = updated(place, rows, [torch.tensor([1.0, 1e6, math.nan, -1.0])])
    assert torch.equal(plain, absurd)
    moved = updated(place, rows, [torch.tensor([1.0, 0.0, 0.0, -2.0])])
    assert not torch.equal(plain, moved), "the test would not see a difference"


def test_one_masked_sequence_teaches_what_its_turns_teach_with_their_history_as_prompts(place):
    sequence = [Row((5, 6), (7, 8, 9, 10), (True, False, True, True))]
    by_turn = [Row((5, 6), (7,), (True,)), Row((5, 6, 7, 8), (9, 10), (True, True))]
    one = updated(place, sequence, [torch.tensor([0.5, 0.0, -1.0, -1.0])])
    two = updated(place, by_turn, [torch.tensor([0.5]), torch.tensor([-1.0, -1.0])])
    torch.testing.assert_close(one, two, atol=2e-5, rtol=0)


# --- the loop ------------------------------------------------------------------------------------------------------

LETTERS = """
from typing import TypedDict
from verifiers import Example, failed

class Task(TypedDict):
    start: str

EXAMPLES = (Example("wrong", "x", {"start": "a1"}),)

def verify(completion, task):
    return failed()

class Environment:  # pays for the letter R, which a policy with no idea of the task can write more often; three turns
    def reset(self, task):
        self.turn = 0
        return task["start"]

    def step(self, action):
        self.turn += 1
        return "b2>d4:", action.count("R") / 6 + 0.1 * ("D" not in action), self.turn == 3
"""


@pytest.mark.stages
@pytest.mark.parametrize(
    ("stage", "memory", "credit"),
    [
        ("grpo", "state", "{kind: group}"),
        ("grpo", "history", "{kind: leave_one_out, level: turn}"),
        ("ppo", "state", "{kind: gae, level: turn}"),
        ("ppo", "history", "{kind: gae}"),
    ],
)
def test_the_policy_loop_trains_on_episodes(tmp_path, place, stage, memory, credit):
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "letters3.py").write_text(LETTERS)
    turns = f"{stage}.episodes={{environment: letters3, max_turns: 3, memory: {memory}}}"
    # short turns end themselves often enough for second ones
    more = [turns, f"verifier_dirs=[{tmp_path / 'dir'}]", f"{stage}.credit={credit}", "sampling.max_tokens=9",
            f"{stage}.samples=8", f"{stage}.steps=4"]  # fmt: skip
    assert run_stage(tmp_path, place, stage, *more) == 0
    lines = metrics(tmp_path, stage)
    assert len(lines) == 4 and all(line.get("mismatch_mean_abs", 0.0) < 1e-4 for line in lines)
    assert any(1 < line["turns_mean"] <= 3 for line in lines)
    assert all(math.isfinite(line["policy_loss" if stage == "grpo" else "value_loss"]) for line in lines)
    figures = manifest(tmp_path, stage)["metrics"]
    assert figures["heldout_episode_reward"] > 0 and 1 <= figures["heldout_turns_mean"] <= 3
    rows = list(read_scored(tmp_path / "t" / stage / "rollouts.jsonl"))
    assert len(episodes(rows)) == 4 * 4 * 8
    assert any(row.rollout.turn for row in rows) == (memory == "state")
    assert any(row.rollout.sampled and not all(row.rollout.sampled) for row in rows) == (memory == "history")


@pytest.mark.stages
def test_keep_best_chooses_a_policy_of_several_turns_by_whole_episodes(tmp_path, place):
    """A single answer earns nothing under this verifier, so a choice by first turns would keep the first pass."""
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "letters3.py").write_text(LETTERS)
    more = ["grpo.episodes={environment: letters3, max_turns: 3, memory: state}", f"verifier_dirs=[{tmp_path / 'dir'}]",
            "rewards={letters3: {}}", "grpo.samples=8", "grpo.steps=6", "sampling.max_tokens=9",
            "grpo.optimizer.learning_rate=3.0e-2", "prompts.validation=0.2", "grpo.evaluate_every=1",
            "grpo.keep=best", "grpo.keep_by=reward", "evaluation={samples: 8, prompts: 8, k: 1}"]  # fmt: skip
    assert run_stage(tmp_path, place, "grpo", *more) == 0
    passes = {line["step"]: line for line in metrics(tmp_path, "grpo")}
    assert {line["validation_reward"] for line in passes.values()} == {0.0}
    best = max(passes, key=lambda step: (passes[step]["validation_episode_reward"], -step))
    assert best > 1 and manifest(tmp_path, "grpo")["metrics"]["best_step"] == best


class Talkative(gridworld.Environment):
    def step(self, action):
        _, reward, done = super().step(action)
        return "a" * 60, reward, done


@pytest.mark.parametrize("memory", ["state", "history"])
def test_an_observation_beyond_the_engines_context_ends_its_episode_and_names_the_key(tokenizer, memory):
    rows, generator = played(tokenizer, ["R", "R", "R"], memory=memory, environment=Talkative, context=40)
    assert len(generator.requests) == 1, "the second turn is never sampled: its engine would raise"
    assert [r.status for r in rows] == ["error"] and math.isnan(rows[0].reward)
    assert "the engine has 40" in rows[0].detail and "episodes.max_observation_tokens" in rows[0].detail
    rows, generator = played(tokenizer, ["R", "R", "R"], memory=memory, environment=Talkative, context=1000)
    assert len(generator.requests) == 2 and {r.status for r in rows} <= {"pass", "fail"}


def test_the_engine_has_room_for_observations(tmp_path):
    from pipeline.generation.engines import model_len

    (tmp_path / "config.json").write_text('{"model_type": "llama", "max_position_embeddings": 32768}')
    assert model_len(str(tmp_path), 100) == 256
    assert model_len(str(tmp_path), 100, wanted=100 + 4 * 1024) == 4352
    assert model_len(str(tmp_path), 100, wanted=10**6) == 32768
