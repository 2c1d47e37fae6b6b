"""Verifiers see the thinking tags: those that are special tokens, and the one that the prompt left open."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import rewards
import verifiers
from pipeline.config.schema import Sampling
from pipeline.data.completion_text import completion_text, completion_texts
from pipeline.generation.generator import Sample, rollouts
from pipeline.records import Prompt
from pipeline.score import score
from tests.family_twins import FAMILIES, Family, make_tokenizer


def tokenizer(*, tags_are_special: bool) -> PreTrainedTokenizerFast:
    """One token per byte, and tags of their own, as chat models have them."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|end|>", special=True), AddedToken("<|user|>", special=True)])
    tags = [AddedToken(tag, special=tags_are_special) for tag in ("<think>", "</think>")]
    backend.add_special_tokens(tags) if tags_are_special else backend.add_tokens(tags)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>", pad_token="<|end|>")


@pytest.mark.parametrize("special", [True, False])
def test_tags_are_kept_and_other_special_tokens_are_not(special: bool) -> None:
    one = tokenizer(tags_are_special=special)
    ids = one("<think>a b</think>It is 4.<|end|>").input_ids
    assert completion_text(one, ids, one("<|user|>2+2?").input_ids) == "<think>a b</think>It is 4."


@pytest.mark.parametrize("special", [True, False])
def test_the_tag_that_the_prompt_left_open_comes_first(special: bool) -> None:
    one = tokenizer(tags_are_special=special)
    prompts = ["<|user|>2+2?<think>\n", "<|user|>Use <think> tags.", "<think></think>", "<|user|>2+2?<think>"]
    texts = completion_texts(one, [one("4<|end|>").input_ids] * 4, [one(p).input_ids for p in prompts])
    assert texts == ["<think>\n4", "4", "4", "<think>4"]


class Scripted:
    name = "scripted"

    def __init__(self, ids: list[int]) -> None:
        self.ids = tuple(ids)

    def sample(self, requests: Any, sampling: Any, ends: Any, on_done: Any = None) -> list[Sample]:
        return [Sample(self.ids, (0.0,) * len(self.ids), True) for _ in requests]


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize(
    ("prompt", "completion", "status"),
    [
        ("2+2?<think>\n", r"perhaps \boxed{4}", "malformed"),
        ("2+2?<think>\n", r"perhaps \boxed{5}</think>\boxed{4}", "pass"),
        ("2+2?", r"<think>perhaps \boxed{4}", "malformed"),
        ("2+2?", r"<think>perhaps \boxed{5}</think>\boxed{4}", "pass"),
        ("2+2?", r"\boxed{4}", "pass"),
    ],
)
def test_thinking_that_never_ended_is_not_paid(prompt: str, completion: str, status: str, special: bool) -> None:
    one = tokenizer(tags_are_special=special)
    start = Prompt(0, "2+2?", tuple(one(prompt).input_ids), {"gold": "4"})
    scripted: Any = Scripted(one(completion + "<|end|>").input_ids)
    drawn = rollouts(scripted, [start], Sampling(), samples=1, key=("k",), tokenizer=one,
                     stop_token_ids=frozenset({one.eos_token_id}))  # fmt: skip
    (scored,) = score(rewards.build({"math_answer": {"weight": 1.0}}), drawn)
    assert scored.status == status, scored


def family_tokenizer(name: str) -> Any:
    """With the template that TRL ships, and the tokens of its marks."""
    muse = Family("muse_glimmer", "muse_glimmer", "<|eot|>", "<|eot|>", "<|begin_of_text|>")
    return make_tokenizer(muse if name == "muse" else FAMILIES[name])


@pytest.mark.parametrize(
    ("name", "completion", "text"),
    [
        (
            "gpt-oss",
            "<|channel|>analysis<|message|>5?<|end|><|start|>assistant<|channel|>final<|message|>It is 4.<|return|>",
            "<think>5?</think>It is 4.",
        ),
        ("gpt-oss", "<|channel|>final<|message|>It is 4.<|return|>", "It is 4."),
        ("gpt-oss", "<|channel|>analysis<|message|>It is 4.", "<think>It is 4."),
        (
            "gpt-oss",
            "<|channel|>analysis<|message|>5?<|end|><|start|>assistant<|channel|>fin",
            "<think>5?</think><think>",
        ),
        ("gpt-oss", "It is 4.<|return|>", "It is 4."),
        (
            "gpt-oss",
            "<|channel|>commentary<|message|>I add.<|end|><|start|>assistant<|channel|>final<|message|>4",
            "<think>I add.</think>4",
        ),
        (
            "muse",
            " to=self<|message|>5?<|eom|><|start|>assistant to=user<|message|>It is 4.<|eot|>",
            "<think>5?</think>It is 4.",
        ),
        ("muse", " to=self<|message|>It is 4.", "<think>It is 4."),
        ("gemma4", "<|channel>thought\nIt is 5?\n<channel|>It is 4.<turn|>", "<think>It is 5?\n</think>It is 4."),
        ("gemma4", "<|channel>thought\nIt is 4.", "<think>It is 4."),
        ("gemma4", "It is 4.<turn|>", "It is 4."),
    ],
)
def test_a_channel_is_in_thinking_tags_and_its_name_is_no_part_of_the_answer(
    name: str, completion: str, text: str
) -> None:
    one = family_tokenizer(name)
    ids = one(completion, add_special_tokens=False).input_ids
    prompt = one.apply_chat_template(
        [{"role": "user", "content": "2+2?"}], add_generation_prompt=True, return_dict=False
    )
    assert completion_text(one, ids, prompt) == text
    answer = verifiers.after_thinking(text)
    assert not any(word in answer for word in ("analysis", "thought", "to="))


def test_a_channel_that_the_prompt_left_open_comes_first() -> None:
    one = family_tokenizer("gemma4")
    prompt = one("<|turn>model\n<|channel>thought\n").input_ids
    assert completion_text(one, one("It is 4.<turn|>").input_ids, prompt) == "<think>It is 4."


def test_a_tokenizer_without_tags_decodes_as_before() -> None:
    plain = SimpleNamespace(
        batch_decode=lambda rows, skip_special_tokens: [f"{row} {skip_special_tokens}" for row in rows]
    )
    assert completion_texts(plain, [[1, 2]], [[3]]) == ["[1, 2] True"]


def test_verifiers_see_the_tag_that_the_prompt_of_a_task_left_open() -> None:
    verifier = verifiers.load("math_answer")
    cut, whole = r"perhaps \boxed{4}", r"perhaps \boxed{5}</think>\boxed{4}"
    task = {"gold": "4", "prompt": "2+2?\n<think>\n"}
    assert [v.status for v in verifier.grade([cut, whole], [task, task])] == ["malformed", "pass"]
    messages = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "<think>"}]
    assert verifier.grade([cut], [{"gold": "4", "prompt": messages}])[0].status == "malformed"
    assert verifier.grade([cut], [{"gold": "4", "prompt": "Think in <think> tags: 2+2?"}])[0].status == "pass"
    assert verifier.grade(["<think>" + cut], [task])[0].status == "malformed"


def test_a_reward_function_under_trls_signature_sees_the_prompts_tag() -> None:
    reward = rewards.build({"math_answer": {"weight": 1.0}})
    assert reward(["2+2?<think>\n"], [r"\boxed{4}"], [[1]], gold=["4"]) == [0.0]
    assert reward(["2+2?"], [r"\boxed{4}"], [[1]], gold=["4"]) == [1.0]


def test_the_format_verifier_counts_an_opened_tag_once() -> None:
    completion, prompt = "2+2 is 4</think><answer>4</answer>", "2+2? <think>"
    verifier = verifiers.load("format")
    for task in ({"opened": True}, {"opened": True, "prompt": prompt}, {"prompt": prompt}):
        assert verifier.grade([completion], [task])[0].status == "pass"
    assert verifier.grade([completion], [{}])[0].status == "malformed"
