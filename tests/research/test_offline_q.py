"""Values from logged samples: expectiles, targets across turns, the shifted policy, and the stage."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch
from loop_kit import manifest, tiny_model, write_config
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.__main__ import main
from pipeline.config.schema import Model, OfflineQ, Optimizer
from pipeline.credit.returns import Step, best_in_data, returns_to_go
from pipeline.models import models
from pipeline.records import Prompt, Rollout, Scored, Status, as_json
from pipeline.research.offline_q import as_logged, whole_episodes
from pipeline.research.q_values import (
    Logged,
    QValues,
    expectile_loss,
    fit,
    regression_weights,
    shifted,
    td_targets,
    token_advantages,
)
from pipeline.update.forward import CompletionLogprobs, Row, completion_logprobs, pad_rows
from verifiers import stitch

CPU = torch.device("cpu")


def expectile(values, tau):
    """By its own equation, tau * E[(x - m)+] = (1 - tau) * E[(m - x)+], by bisection."""
    low, high = min(values), max(values)
    for _ in range(100):
        middle = (low + high) / 2
        above = sum(max(x - middle, 0) for x in values)
        below = sum(max(middle - x, 0) for x in values)
        low, high = (middle, high) if tau * above > (1 - tau) * below else (low, middle)
    return (low + high) / 2


def least(values, tau):
    """Where the mean expectile loss is least, by ternary search: it is convex."""
    low, high = min(values), max(values)

    def loss(v):
        return float(expectile_loss(torch.tensor(values, dtype=torch.float64) - v, expectile=tau).mean())

    for _ in range(200):
        a, b = low + (high - low) / 3, high - (high - low) / 3
        low, high = (low, b) if loss(a) < loss(b) else (a, high)
    return (low + high) / 2


@pytest.mark.parametrize("tau", [0.5, 0.7, 0.9, 0.99])
def test_the_expectile_loss_is_least_at_the_expectile(tau):
    rng = random.Random(int(tau * 100))
    values = [rng.gauss(0, 1) for _ in range(31)]
    assert least(values, tau) == pytest.approx(expectile(values, tau), abs=1e-6)
    if tau == 0.5:
        assert least(values, tau) == pytest.approx(sum(values) / 31, abs=1e-6)


def test_the_weight_of_an_imitated_token_is_exponential_and_bounded():
    weights = regression_weights(torch.tensor([-1.0, 0.0, 0.5, 9.0]), beta=2.0, max_weight=100.0)
    assert weights.tolist() == pytest.approx([math.exp(-2), 1.0, math.e, 100.0])


def test_targets_jump_over_what_the_environment_said_and_run_on_into_the_next_turn():
    rows = [Row((1,), (2, 3, 4), (True, False, True)), Row((5,), (6,), (True,)), Row((1,), (2, 3), (True, True))]
    rewards = [torch.tensor([0.1, 7.0, 0.2]), torch.tensor([1.0]), torch.tensor([0.0, 0.5])]
    values = [torch.tensor([1.0, 77.0, 2.0, 88.0]), torch.tensor([3.0, 99.0]), torch.tensor([4.0, 5.0, 6.0])]
    logged = Logged(rows, [[0, 1], [2]], rewards, truncated=[False, True])
    first, second, third = td_targets(logged, values, gamma=0.5)
    assert [first[0].item(), first[2].item()] == pytest.approx([0.1 + 0.5 * 2.0, 0.2 + 0.5 * 3.0])
    assert second.tolist() == [1.0], "an episode that ended has nothing after its end"
    assert third.tolist() == pytest.approx([0.5 * 5.0, 0.5 + 0.5 * 6.0]), "one that was cut goes on with V"


def table(gamma=1.0):
    return [[Step((t.gadget, t.place), t.to, t.reward) for t in walk] for walk in stitch.logs()]


def test_tabular_values_at_a_high_expectile_agree_with_value_iteration_on_the_gadgets():
    """V by least expectile loss, Q by `td_targets`, both as tables; value iteration by `best_in_data`."""
    walks = stitch.logs()
    names = {s: i + 1 for i, s in enumerate(sorted({(t.gadget, t.place) for walk in walks for t in walk}))}
    rows = [Row((names[t.gadget, t.place],), (t.to,), (True,)) for walk in walks for t in walk]
    ends = iter(range(len(rows)))
    layout = [[next(ends) for _ in walk] for walk in walks]
    logged = Logged(rows, layout, [torch.tensor([t.reward]) for walk in walks for t in walk], [False] * len(walks))
    value = dict.fromkeys(names.values(), 0.0)
    targets: list[float] = []
    for _ in range(3):
        targets = [
            float(x) for x in td_targets(logged, [torch.tensor([value[r.prompt_ids[0]], 0.0]) for r in rows], gamma=1.0)
        ]
        for state in value:
            value[state] = expectile(
                [t for t, r in zip(targets, rows, strict=True) if r.prompt_ids == (state,)], 0.9999
            )
    want = [v for episode in best_in_data(table()) for v in episode]
    assert targets == pytest.approx(want, abs=1e-3)


def test_best_in_data_joins_what_no_episode_walked_and_returns_to_go_do_not():
    best, own = best_in_data(table())[:3], returns_to_go(table())[:3]
    assert best == [[1.0], [0.6], [1.0, 0.0]] and own == [[1.0], [0.6], [0.0, 0.0]]


def test_best_in_data_discounts_and_counts_rewards_on_the_way():
    walks = [[Step("a", 0, 0.5), Step("b", 0, 1.0)], [Step("c", 0, -1.0), Step("b", 1, 3.0)]]
    assert best_in_data(walks, gamma=0.5) == [[0.5 + 1.5, 1.0], [-1.0 + 1.5, 3.0]]


def test_a_cycle_that_pays_is_reported_and_one_that_does_not_is_no_way_out():
    round_and_round = [[Step("a", "b", 1.0), Step("b", "a", 0.0), Step("a", "end", 0.0)]]
    with pytest.raises(ValueError, match="grow without bound; set gamma below 1"):
        best_in_data(round_and_round)
    # v = 1 + 0.5 * (0 + 0.5 * v)
    assert best_in_data(round_and_round, gamma=0.5)[0][0] == pytest.approx(4 / 3)
    assert best_in_data([[Step("a", "stay", 0.0), Step("a", "end", -1.0)]]) == [[-1.0, -1.0]]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"))


def random_heads(place):
    heads = QValues(models.load_policy(str(place), Model()))
    torch.manual_seed(1)
    for parameter in (*heads.q_head.parameters(), *heads.v_head.parameters()):
        torch.nn.init.normal_(parameter, std=0.1)
    return heads


class MostTokens(TorchDispatchMode):
    """Remembers how many rows the largest tensor over a vocabulary of `size` had; a transposed weight is none."""

    def __init__(self, size):
        super().__init__()
        self.size, self.rows = size, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for one in out if isinstance(out, tuple | list) else (out,):
            if isinstance(one, Tensor) and one.shape[-1:] == (self.size,) and one.is_contiguous():
                self.rows = max(self.rows, one.numel() // self.size)
        return out


def test_logits_are_held_for_one_chunk_of_tokens_and_give_the_same_gradients(place):
    batch = pad_rows([Row((1, 2), (3, 4, 5, 6, 7), (True,) * 5), Row((2,), (5, 3), (True, True))], CPU)
    gradients, rows = [], []
    for chunk in (None, 2):
        heads = random_heads(place)
        heads.chunk = chunk
        with MostTokens(heads.q_head.out_features) as largest:
            out = heads(batch)
            (out.q_BT.square().sum() + out.nll_BT.sum() + out.outside_BT.sum() + out.values_BS.sum()).backward()
        rows.append(largest.rows)
        gradients.append([p.grad for p in heads.parameters() if p.grad is not None])
    assert rows == [7, 2]
    assert len(gradients[0]) == len(gradients[1]) > 10
    for whole, chunked in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, chunked)


@torch.no_grad()
def test_the_shifted_policy_is_the_softmax_of_logits_plus_beta_times_q_minus_v(place, tmp_path):
    heads, row = random_heads(place), Row((5, 6, 7), (8, 9, 2), (True, True, True))
    hidden = heads.model.model(torch.tensor([[*row.prompt_ids, *row.ids]])).last_hidden_state[0, 2:5]
    advantage = heads.q_head(hidden) - heads.v_head(hidden)
    logits = heads.model.lm_head(hidden) + 3.0 * advantage
    want = logits.log_softmax(-1).gather(1, torch.tensor(row.ids)[:, None])[:, 0]
    model = shifted(heads, beta=3.0)
    got = completion_logprobs(CompletionLogprobs(model, temperature=1.0), [row], budget=99, device=CPU)[0]
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    plain = completion_logprobs(CompletionLogprobs(heads.model, temperature=1.0), [row], budget=99, device=CPU)[0]
    assert (plain - want).abs().max() > 0.05, "the test would not see a shift"
    # and it is a plain model on disk, whose head is its own
    models.save(model, models.load_tokenizer(str(place), Model()), tmp_path / "shifted")
    again = CompletionLogprobs(models.load_policy(str(tmp_path / "shifted"), Model()), temperature=1.0)
    torch.testing.assert_close(completion_logprobs(again, [row], budget=99, device=CPU)[0], got, atol=1e-6, rtol=0)


@torch.no_grad()
def test_heads_read_the_place_before_each_token_whatever_stands_beside_the_row(place):
    heads = random_heads(place)
    rows = [Row((5, 6, 7), (8, 9), (True, True)), Row((5,), (6, 7, 8, 9, 2), (True,) * 5)]
    together = heads(pad_rows(rows, CPU))
    for number, row in enumerate(rows):
        hidden = heads.model.model(torch.tensor([[*row.prompt_ids, *row.ids]])).last_hidden_state[0]
        places = torch.arange(len(row.ids) + 1) + len(row.prompt_ids) - 1
        values = heads.v_head(hidden[places])[:, 0]
        q = heads.q_head(hidden[places[:-1]]).gather(1, torch.tensor(row.ids)[:, None])[:, 0]
        size = len(row.ids)
        torch.testing.assert_close(together.values_BS[number, : size + 1], values, atol=1e-5, rtol=0)
        torch.testing.assert_close(together.q_BT[number, :size], q, atol=1e-5, rtol=0)
        assert not together.q_BT[number, size:].any()


def test_tokens_of_the_environment_move_no_value(place):
    settings = OfflineQ(value_steps=3, batch=2, optimizer=Optimizer(learning_rate=1e-2))
    rows = [Row((5, 6), (7, 8, 9, 10), (True, False, False, True))]

    def values(rewards):
        heads = QValues(models.load_policy(str(place), Model()))
        fit(heads, Logged(rows, [[0]], [torch.tensor(rewards)], [False]), settings, key=(1,))
        return token_advantages(heads, rows, budget=99)[0]

    assert torch.equal(values([0.5, 0.0, 0.0, 1.0]), values([0.5, 1e6, math.nan, 1.0]))
    assert not torch.equal(values([0.5, 0.0, 0.0, 1.0]), values([0.5, 0.0, 0.0, 2.0]))


def logged_row(index, turn, text, reward, tokenizer, *, prompt="a1>b1:"):
    ids = (*tokenizer(text).input_ids, tokenizer.eos_token_id)
    start = Prompt(index, prompt, tuple(tokenizer(prompt).input_ids), {"start": "a1", "goal": "b1"})
    status: Status = "error" if math.isnan(reward) else "pass"
    return Scored(Rollout(start, 0, ids, (0.0,) * len(ids), text, True, turn=turn), reward, status)


def test_an_episode_with_a_broken_or_held_out_turn_is_left_out_whole(place):
    tokenizer = models.load_tokenizer(str(place), Model())
    rows = [
        logged_row(0, 0, "R", 0.0, tokenizer), logged_row(0, 1, "R", 1.0, tokenizer),
        logged_row(1, 0, "U", 0.0, tokenizer), logged_row(1, 1, "U", math.nan, tokenizer),
        logged_row(2, 0, "D", 0.0, tokenizer, prompt="a1>e5:"), logged_row(2, 1, "D", 0.0, tokenizer),
        logged_row(3, 0, "L", 0.5, tokenizer),
    ]  # fmt: skip
    kept = whole_episodes(rows, {"a1>e5:"})
    assert [s.rollout.text for s in kept] == ["R", "R", "L"]
    assert as_logged(kept).layout == [[0, 1], [2]]


@pytest.mark.stages
@pytest.mark.parametrize(("extract", "dtype"), [("awr", "auto"), ("shift", "auto"), ("awr", "bfloat16")])
def test_the_stage_learns_from_a_file_alone_which_answer_was_worth_giving(tmp_path, place, extract, dtype):
    """Half the logged answers to every prompt are R for 1, half are U for 0: the policy comes to say R."""
    tokenizer = models.load_tokenizer(str(place), Model())
    cells = [c + r for c in "abcde" for r in "12345"]
    prompts = [f"{a}>{b}:" for a in cells for b in cells if a != b][::6]
    rows = [
        logged_row(i, 0, text, reward, tokenizer, prompt=prompt)
        for i, prompt in enumerate(prompts) for text, reward in (("R", 1.0), ("U", 0.0))
    ]  # fmt: skip
    pool = tmp_path / "pool.jsonl"
    pool.write_text("".join(json.dumps(as_json(row)) + "\n" for row in rows))
    config = write_config(tmp_path, place)
    block = {"policy": str(place), "pool": [str(pool)], "extract": extract, "value_steps": 80, "policy_steps": 60,
             "batch": 32, "optimizer": {"learning_rate": 3e-3}}  # fmt: skip
    more = [f"runs_dir={tmp_path}", f"offline_q={json.dumps(block)}", "evaluation.samples=4", f"model.dtype={dtype}"]
    assert main(["offline_q", str(config), *more]) == 0
    made = manifest(tmp_path, "offline_q")
    assert str(pool) in made["inputs"] and made["tokens"]["completion"] == 0, "it sampled nothing"
    policy = CompletionLogprobs(
        models.load_policy(str(tmp_path / "t" / "offline_q" / "model"), Model()), temperature=1.0
    )
    asked = [Row(s.rollout.prompt.ids, s.rollout.ids, s.rollout.mask) for s in rows]
    chances = [float(x.sum().exp()) for x in completion_logprobs(policy, asked, budget=4096, device=CPU)]
    right, wrong = sum(chances[::2]) / len(prompts), sum(chances[1::2]) / len(prompts)
    assert right > 0.8 and wrong < 0.1, (right, wrong)


def test_a_pool_that_holds_nothing_usable_is_reported(tmp_path, place, capsys):
    tokenizer = models.load_tokenizer(str(place), Model())
    pool = tmp_path / "pool.jsonl"
    pool.write_text(json.dumps(as_json(logged_row(0, 0, "R", math.nan, tokenizer))) + "\n")
    config = write_config(tmp_path, place)
    block = {"policy": str(place), "pool": [str(pool)]}
    assert main(["offline_q", str(config), f"runs_dir={tmp_path}", f"offline_q={json.dumps(block)}"]) == 2
    assert "pool.jsonl has a score, so there is nothing to train on" in capsys.readouterr().err
