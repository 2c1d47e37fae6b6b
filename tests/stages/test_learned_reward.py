"""A reward model as a reward: it is asked about the very ids it was trained on, and its offset changes nothing."""

import inspect
from typing import Any

import pytest
import torch
from loop_kit import tiny_model
from torch import nn

import rewards
from pipeline.config.schema import Model
from pipeline.models import models
from pipeline.records import Prompt, Rollout
from pipeline.score import as_batch, score
from pipeline.stages.reward_model import calibrate

EOS = 2
SEQUENCES = [[3, 8, 13, 5, EOS], [4, 9, EOS], [5, 6, 7, 8, 9, 10, 11, EOS], [12, EOS]]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A reward model whose head tells sequences apart."""
    from transformers import AutoModelForSequenceClassification

    path = tiny_model(tmp_path_factory.mktemp("policy"))
    torch.manual_seed(6)
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1)
    nn.init.normal_(model.score.weight)
    out = tmp_path_factory.mktemp("reward")
    models.save(model, models.load_tokenizer(str(path), Model()), out)
    return str(out)


def rollouts() -> list[Rollout]:
    return [Rollout(Prompt(i, "p", tuple(s[:1])), 0, tuple(s[1:]), (0.0,) * (len(s) - 1), "", True)
            for i, s in enumerate(SEQUENCES)]  # fmt: skip


def test_detail_39_the_model_is_asked_about_the_ids_it_was_trained_on_end_included(place, monkeypatch):
    asked: list[list[int]] = []
    plain = models.reward_scores

    def spy(model, sequences, **how):
        asked.extend(list(s) for s in sequences)
        return plain(model, sequences, **how)

    monkeypatch.setattr(models, "reward_scores", spy)
    scorer = rewards.build({"reward_model": {}}, learned=lambda reference: models.LearnedReward(place, Model()))
    scored = score(scorer, rollouts())
    assert asked == SEQUENCES, "prompt and completion as sampled, with the end token that was sampled"
    assert as_batch(rollouts()).completion_ids[0][-1] == EOS
    # what the library's trainer computes of the same ids in its own padded batch
    model = models.load_reward_model(place, Model())
    assert model.config.pad_token_id != EOS
    width = max(map(len, SEQUENCES))
    ids = torch.tensor([s + [model.config.pad_token_id] * (width - len(s)) for s in SEQUENCES])
    with torch.no_grad():
        trained = model(input_ids=ids, attention_mask=(ids != model.config.pad_token_id).long()).logits[:, 0]
    assert [s.reward for s in scored] == pytest.approx(trained.tolist(), abs=1e-5)
    cut = plain(model, [s[:-1] for s in SEQUENCES])
    assert max(abs(a - b) for a, b in zip(cut, trained.tolist(), strict=True)) > 0.1, "the end token is read"


def test_detail_22_a_constant_added_to_the_models_output_changes_no_reward(place):
    found = []
    for constant in (0.0, 7.5):
        learned = models.LearnedReward(place, Model())
        learned._loaded = models.load_reward_model(place, Model())
        head = nn.Linear(learned._loaded.config.hidden_size, 1)
        with torch.no_grad():
            head.weight.copy_(learned._loaded.score.weight)
            head.bias.fill_(constant)
        learned._loaded.score = head
        raw = models.reward_scores(learned._loaded, SEQUENCES)
        calibrate(learned._loaded, SEQUENCES)
        found.append((raw, learned([s[:1] for s in SEQUENCES], [s[1:] for s in SEQUENCES])))
    (raw, rewarded), (moved, again) = found
    assert moved == pytest.approx([x + 7.5 for x in raw], abs=1e-4)
    assert again == pytest.approx(rewarded, abs=1e-4)
    assert sum(rewarded) == pytest.approx(0.0, abs=1e-4), "the reference samples have mean 0"
    assert sum(x * x for x in rewarded) / len(rewarded) == pytest.approx(1.0, abs=1e-4)


TEXTS = ["ab", "c1>d", "RRU"]


def columns(place):
    """What TRL's trainers pass: text, ids with the end token, dataset columns, and odds and ends that are no column."""
    tokenizer = models.load_tokenizer(place, Model())
    ids = [[*tokenizer(t)["input_ids"], EOS] for t in ("RU", "LLD", "")]
    more = {"start": ["a1", "b1", "c1"], "trainer_state": object(), "log_extra": print}
    return tokenizer, {"prompts": TEXTS, "completions": ["RU", "LLD", ""], "completion_ids": ids, **more}


def test_a_reward_model_is_a_reward_function_of_trl_and_reads_the_ids_it_was_trained_on(place):
    tokenizer, given = columns(place)
    model = models.LearnedReward(place, Model())
    whole = [[*tokenizer(t)["input_ids"], *c] for t, c in zip(TEXTS, given["completion_ids"], strict=True)]
    expected = models.reward_scores(models.load_reward_model(place, Model()), whole)
    reward = rewards.learned(model, tokenizer)
    assert reward(**given) == pytest.approx(expected, abs=1e-5)
    assert len({round(x, 3) for x in expected}) == 3, "the model tells them apart"
    without_ids = {k: v for k, v in given.items() if k != "completion_ids"}
    assert reward(**without_ids) == pytest.approx(expected, abs=1e-5), "text gets its end token back"
    assert list(inspect.signature(reward).parameters)[:3] == ["prompts", "completions", "completion_ids"]


def test_a_block_of_verifiers_and_a_reward_model_is_one_function_of_trl(place):
    tokenizer, given = columns(place)
    given["gold"] = ["RU", "no", "x"]
    learned: dict[str, Any] = {"learned": lambda reference: models.LearnedReward(place, Model())}
    block = {"exact": {"weight": 2.0}, "reward_model": {"weight": 0.5}}
    alone: Any = rewards.learned(models.LearnedReward(place, Model()), tokenizer)(**given)
    both = rewards.build(block, **learned, tokenizer=tokenizer)
    assert both(**given) == pytest.approx([2.0 * e + 0.5 * s for e, s in zip((1, 0, 0), alone, strict=True)], abs=1e-5)
    with pytest.raises(ValueError, match=r"rewards.reward_model: .* give rewards.build\(tokenizer=...\)"):
        rewards.build(block, **learned)(**given)


def test_a_score_that_is_no_number_is_not_scorable_and_a_missing_one_is_an_error(place):
    tokenizer, given = columns(place)
    assert rewards.learned(lambda p, c: [1.0, float("nan"), float("inf")], tokenizer)(**given) == [1.0, None, None]
    with pytest.raises(ValueError, match="2 scores for 3 rows"):
        rewards.learned(lambda p, c: [1.0, 2.0], tokenizer)(**given)
