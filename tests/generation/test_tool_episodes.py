"""Episodes with tools through real chat templates: what is read, what is trained on, and how each ends."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest
import trl

import rewards
from pipeline.config.load import ConfigError
from pipeline.config.schema import Model, Prompts, Sampling, Tiny, Tools
from pipeline.data import chat_template
from pipeline.data.encoding import render_ids
from pipeline.data.tool_schemas import ToolSet
from pipeline.generation.generator import Sample
from pipeline.generation.tool_episodes import ToolPlayer
from pipeline.models import models
from pipeline.records import Prompt, as_json, from_json, load_scored, merge_episode, save_scored
from pipeline.records import episodes as by_episode
from pipeline.score import score
from pipeline.stats import episode_figures

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
SPECIAL = ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<|start|>", "<|end|>", "<|call|>", "<|return|>",
           "<|channel|>", "<|message|>", "<|eot_id|>"]  # fmt: skip
CALL = '<tool_call>\n{"name": "calculator", "arguments": {"expression": "6 * 7"}}\n</tool_call>'


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    place = tmp_path_factory.mktemp("tiny")
    models.make_tiny(Tiny(characters="".join(map(chr, range(32, 127))) + "\n"), place, seed=1)
    out = models.load_tokenizer(str(place), Model())
    out.add_special_tokens({"additional_special_tokens": SPECIAL})
    return out


class Scripted:
    """A generator that says what it is told, turn by turn, and remembers what it was shown."""

    name = "scripted"

    def __init__(self, tokenizer: Any, answers: list[str], cut: set[int] = frozenset()) -> None:  # type: ignore[assignment]
        self.tokenizer, self.answers, self.cut = tokenizer, answers, cut
        self.requests: list[Any] = []

    def sample(self, requests: Any, sampling: Any, ends: Any, on_done: Any = None) -> list[Sample]:
        out = []
        for request in requests:
            number = len(self.requests)
            ids = tuple(self.tokenizer(self.answers[number], add_special_tokens=False).input_ids)
            finished = number not in self.cut and len(ids) < request.max_tokens
            ids = (*ids, self.tokenizer.eos_token_id) if finished else ids[: request.max_tokens]
            self.requests.append(request)
            out.append(Sample(ids, tuple(-0.5 for _ in ids), finished))
        return out

    def logprobs(self, sequences: Any) -> Any:
        raise AssertionError("playing samples and does nothing else")

    sync = logprobs


def player(
    tokenizer: Any, template: str = "qwen3_instruct_2507", end: str = "<|im_end|>", context: int = 9999, **settings: Any
) -> ToolPlayer:
    tokenizer.chat_template = (TEMPLATES / f"{template}.jinja").read_text()
    tokenizer.eos_token = end
    given = Tools(**({"use": ["calculator"]} | settings))
    tools = ToolSet(given, path="t.yaml")
    return ToolPlayer(tools, given, Prompts(chat=True), tokenizer, frozenset({tokenizer.eos_token_id}), context=context)


def play(
    tokenizer: Any,
    answers: list[str],
    task: Any = None,
    cut: Any = frozenset(),
    turn_tokens: int = 500,
    **settings: Any,
) -> Any:
    one = player(tokenizer, **settings)
    row = {"prompt": "What is 6 * 7?", "tools": one.tools.schemas}
    prompt = Prompt(0, "What is 6 * 7?", tuple(render_ids(row, one.source, tokenizer)), task or {}, row)
    generator = Scripted(tokenizer, answers, cut)
    rows = one.play(generator, [prompt], Sampling(max_tokens=turn_tokens), samples=1, key=(1, "t"))
    return rows, generator


def sampled_text(tokenizer: Any, row: Any) -> list[str]:
    """The runs of sampled tokens."""
    runs: list[list[int]] = []
    last = False
    for token, on in zip(row.ids, row.mask, strict=True):
        if on:
            runs = [*runs[:-1], [*runs[-1], token]] if last else [*runs, [token]]
        last = on
    return [tokenizer.decode(run) for run in runs]


def test_an_episode_is_one_row_in_which_the_result_is_not_sampled(tokenizer: Any) -> None:
    (row,), _ = play(tokenizer, [CALL, "It is 42."])
    assert sampled_text(tokenizer, row) == [f"{CALL}<|im_end|>", "It is 42.<|im_end|>"]
    between = tokenizer.decode([i for i, on in zip(row.ids, row.mask, strict=True) if not on])
    assert between == "\n<|im_start|>user\n<tool_response>\n42\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    assert [x for x, on in zip(row.logprobs, row.mask, strict=True) if not on] == [0.0] * sum(not on for on in row.mask)
    assert row.answer == "It is 42."
    assert row.episode is not None
    assert {k: row.episode[k] for k in ("ended_by", "calls", "turns", "tool_errors")} == {
        "ended_by": "answer", "calls": 1, "turns": 2, "tool_errors": 0}  # fmt: skip
    assert [m["role"] for m in row.episode["messages"]] == ["assistant", "tool", "assistant"]


def test_each_prompt_is_the_templates_own_rendering_of_all_messages(tokenizer: Any) -> None:
    (row,), generator = play(tokenizer, [CALL, "It is 42."])
    one = player(tokenizer)
    call = {"type": "function", "function": {"name": "calculator", "arguments": {"expression": "6 * 7"}}}
    messages = [{"role": "user", "content": "What is 6 * 7?"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "content": "42"}]  # fmt: skip
    expected = tokenizer.apply_chat_template(
        messages, tools=one.tools.schemas, add_generation_prompt=True, return_dict=False
    )
    assert list(generator.requests[1].ids) == expected
    assert list(row.prompt.ids) == expected[: len(row.prompt.ids)]


def test_where_the_template_rewrites_history_each_turn_is_a_row(tokenizer: Any) -> None:
    tight = CALL.replace('": ', '":')  # the policy's spacing, which the template writes otherwise
    rows, generator = play(tokenizer, [tight, "It is 42."])
    assert [r.turn for r in rows] == [0, 1]
    assert [sampled_text(tokenizer, r) for r in rows] == [[f"{tight}<|im_end|>"], ["It is 42.<|im_end|>"]]
    assert [r.prompt.ids for r in rows] == [g.ids for g in generator.requests]
    assert [r.episode is None for r in rows] == [True, False]
    scored = score(rewards.build({"exact": {}}), rows)
    assert episode_figures(scored)["rewritten_history"] == 1.0


QWEN_XML = "<tool_call>\n<function=calculator>\n<parameter=expression>\n6 * 7\n</parameter>\n</function>\n</tool_call>"
THOUGHT = "<think>\nHm.\n</think>\n\n"
GEMMA = '<|tool_call>call:calculator{expression:<|"|>6 * 7<|"|>}<tool_call|>'
HARMONY = "<|channel|>commentary to=functions.calculator <|constrain|>json<|message|>"
# template -> (its end token, what the policy writes, rows that its episode gives)
REAL = {
    "qwen2_5": ("<|im_end|>", CALL, 1),
    "qwen3": ("<|im_end|>", CALL, 1),
    "qwen3 thinking": ("<|im_end|>", THOUGHT + CALL, 1),
    "qwen3_instruct_2507": ("<|im_end|>", CALL, 1),
    "qwen3_vl": ("<|im_end|>", CALL, 1),
    "qwen3_5_nothink": ("<|im_end|>", QWEN_XML, 1),
    "qwen3_6": ("<|im_end|>", "Hm.\n</think>\n\n" + QWEN_XML, 1),
    "nemotron_3_nano": ("<|im_end|>", "Hm.\n</think>\n" + QWEN_XML + "\n", 1),
    "llama3_1": ("<|eot_id|>", '{"name": "calculator", "parameters": {"expression": "6 * 7"}}', 1),
    "llama3_2": ("<|eot_id|>", '{"name": "calculator", "parameters": {"expression": "6 * 7"}}', 1),
    "llama3_1 tight": ("<|eot_id|>", '{"name":"calculator","parameters":{"expression":"6 * 7"}}', 2),
    "gptoss": ("<|call|>", HARMONY + '{"expression": "6 * 7"}', 2),  # the recipient stands elsewhere in the template
    "gptoss canonical": (
        "<|call|>",
        ' to=functions.calculator<|channel|>commentary json<|message|>{"expression": "6 * 7"}',
        1,
    ),
    "gemma4": ("<|tool_response>", GEMMA, 1),
    "gemma4_v5": ("<|tool_response>", GEMMA, 1),
    "lfm2_v2": ("<|im_end|>", "<|tool_call_start|>[calculator(expression='6 * 7')]<|tool_call_end|>", 1),
    "lfm2_v2 quotes": ("<|im_end|>", '<|tool_call_start|>[calculator(expression="6 * 7")]<|tool_call_end|>', 2),
}


@pytest.mark.parametrize("name", sorted(REAL))
def test_rows_are_split_exactly_where_a_real_template_rewrites_history(tokenizer: Any, name: str) -> None:
    end, answer, expected = REAL[name]
    tokenizer.add_special_tokens({"additional_special_tokens": [end]}, replace_extra_special_tokens=False)
    rows, generator = play(tokenizer, [answer, answer, "It is 42."], template=name.partition(" ")[0], end=end)
    assert rows[-1].episode["malformed_calls"] == rows[-1].episode["tool_errors"] == 0
    assert rows[-1].episode["calls"] == 2
    shown = [tokenizer.decode(request.ids) for request in generator.requests]
    one = player(tokenizer, name.partition(" ")[0], end)
    messages = [{"role": "user", "content": "What is 6 * 7?"}, *rows[-1].episode["messages"]]
    given: Any = {"kwargs": {}, "tools": one.tools.schemas, "answer": True}
    rendered = [chat_template.render_text(tokenizer, messages[: 1 + 2 * turn], **given) for turn in range(3)]
    assert shown == rendered, "each prompt is the template's own rendering"
    kept = [prompt + answer + end for prompt in shown[:2]]
    splits = sum(not after.startswith(before) for before, after in zip(kept, shown[1:], strict=True))
    assert len(rows) == 1 + splits
    assert (len(rows) > 1) == (expected > 1)


def test_ids_that_the_tokenizer_would_not_give_are_kept_as_they_were_sampled(tokenizer: Any) -> None:
    class Odd(Scripted):
        def sample(self, requests: Any, sampling: Any, ends: Any, on_done: Any = None) -> list[Sample]:
            (one,) = super().sample(requests, sampling, ends)
            end = self.tokenizer.convert_tokens_to_ids("<|im_end|>")
            return [Sample((*one.ids[:-1], end), one.logprobs, one.finished)]

    one = player(tokenizer)
    row = {"prompt": "What?", "tools": one.tools.schemas}
    prompt = Prompt(0, "What?", tuple(render_ids(row, one.source, tokenizer)), {}, row)
    generator = Odd(tokenizer, [CALL, "42"])
    (rollout,) = one.play(generator, [prompt], Sampling(max_tokens=500), samples=1, key=(1,))
    assert generator.requests[1].ids[: len(prompt.ids)] == prompt.ids
    assert rollout.prompt.ids + rollout.ids[: rollout.mask.index(False)] == generator.requests[1].ids[
        : len(prompt.ids) + rollout.mask.index(False)]  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "words", "counts"),
    [
        ("<tool_call>\noops\n</tool_call>", "could not be read: not JSON", {"malformed_calls": 1, "calls": 0}),
        (CALL.replace("calculator", "calc"), "there is no tool 'calc'", {"tool_errors": 1, "calls": 1}),
        (CALL.replace("expression", "text"), "no argument 'text'", {"tool_errors": 1}),
        (CALL.replace('"6 * 7"', "6"), "must be a string, found 6", {"tool_errors": 1}),
        (CALL.replace("6 * 7", "1 / 0"), "Error: division by zero", {"tool_errors": 1}),
        (
            CALL + "\n<tool_call>{</tool_call>",
            "42\nError: the tool call could not be read",
            {"malformed_calls": 1, "calls": 1},
        ),
    ],
)
def test_a_wrong_call_is_an_observation_and_the_episode_goes_on(
    tokenizer: Any, answer: str, words: str, counts: Any
) -> None:
    rows, _ = play(tokenizer, [answer, "It is 42."])
    episode = rows[-1].episode
    assert words in episode["messages"][1]["content"]
    assert {k: episode[k] for k in counts} == counts
    assert episode["ended_by"] == "answer"


@pytest.mark.parametrize(
    ("ended_by", "settings", "answers"),
    [
        ("max_turns", {"max_turns": 2}, [CALL, CALL]),
        ("max_tokens", {"max_tokens": 110}, [CALL, CALL]),
        ("length", {"cut": {1}}, [CALL, "It is"]),
        ("context", {"context": 850}, [CALL] * 9),
    ],
)
def test_each_limit_ends_an_episode_with_a_status_of_its_own(
    tokenizer: Any, ended_by: str, settings: Any, answers: Any
) -> None:
    rows, _ = play(tokenizer, answers, **settings)
    assert rows[-1].episode["ended_by"] == ended_by
    assert rows[-1].mask[-1], "the last token of a row is one that was sampled"
    scored = score(rewards.build({"exact": {}}), rows)
    assert math.isnan(scored[-1].reward) or scored[-1].status in ("fail", "malformed", "error")


class Faulty:
    """Tools that misbehave."""

    def hang(self) -> str:
        """Never returns in time."""
        time.sleep(3)
        return "late"

    def lie(self) -> dict:
        """Returns no text."""
        return {"a": [1, "\ud800"]}

    def shout(self) -> str:
        """Returns far too much."""
        return "a" * 5000

    def crash(self) -> str:
        """Raises."""
        raise OSError("disk")


def faulty(name: str) -> str:
    return CALL.replace("calculator", name).replace('{"expression": "6 * 7"}', "{}")


def test_a_tool_that_hangs_costs_its_own_episode_alone(tokenizer: Any) -> None:
    one = player(tokenizer, environment="test_tool_episodes:Faulty", timeout_s=0.3)
    row = {"prompt": "What?", "tools": one.tools.schemas}
    prompt = Prompt(0, "What?", tuple(render_ids(row, one.source, tokenizer)), {"gold": "42"}, row)
    generator = Scripted(tokenizer, [faulty("hang"), CALL, "42"])
    started = time.monotonic()
    rows = one.play(generator, [prompt], Sampling(max_tokens=500), samples=2, key=(1,))
    assert time.monotonic() - started < 2.5
    scored = score(rewards.build({"exact": {}}), rows)
    assert [(s.status, (s.rollout.episode or {})["ended_by"]) for s in scored] == [
        ("error", "tool_timeout"),
        ("pass", "answer"),
    ]
    assert math.isnan(scored[0].reward)
    assert "did not return within 0.3 s" in scored[0].detail


@pytest.mark.parametrize(
    ("name", "words"),
    [("crash", "Error: OSError: disk"), ("lie", '{"a": [1, "?"]}'), ("shout", "a" * 20 + "\n[4980 more")],
)
def test_a_tool_that_raises_lies_or_shouts_is_read_by_the_policy(tokenizer: Any, name: str, words: str) -> None:
    settings: Any = {"environment": "test_tool_episodes:Faulty", "max_output_chars": 20 if name == "shout" else 1000}
    rows, _ = play(tokenizer, [faulty(name), "x"], **settings)
    assert words in rows[-1].episode["messages"][1]["content"]
    assert rows[-1].episode["ended_by"] == "answer"


class Guess:
    """A game by TRL's contract: reset with the row's columns, methods as tools, its own reward."""

    def reset(self, secret: int = 0, **row: Any) -> str:
        self.secret, self.won = secret, False
        return " The number is below 10."

    def guess(self, number: int) -> str:
        """Guess the number.

        Args:
            number: Your guess.
        """
        self.won = number == self.secret
        return "right" if self.won else "wrong"

    def get_reward(self) -> float:
        return float(self.won)


def test_a_class_with_trls_contract_is_played_unchanged_and_its_reward_counts(tokenizer: Any) -> None:
    answer = '<tool_call>\n{"name": "guess", "arguments": {"number": 7}}\n</tool_call>'
    settings: Any = {"use": [], "environment": "test_tool_episodes:Guess"}
    rows, generator = play(tokenizer, [answer, "Done."], task={"secret": 7, "other": 1}, **settings)
    assert "What is 6 * 7? The number is below 10.<|im_end|>" in tokenizer.decode(generator.requests[0].ids)
    (won,) = score(rewards.build({"environment": {}, "tool_calls": {"weight": -0.25}}), rows)
    assert (won.reward, won.status, won.parts) == (0.75, "pass", {"environment": 1.0, "tool_calls": 1.0})
    rows, _ = play(tokenizer, [answer, "Done."], task={"secret": 3}, **settings)
    (lost,) = score(rewards.build({"environment": {}}), rows)
    assert (lost.reward, lost.status) == (0.0, "fail")


def test_rows_survive_the_cache_and_the_log(tokenizer: Any, tmp_path: Path) -> None:
    rows, _ = play(tokenizer, [CALL.replace('": ', '":'), "It is 42."])
    scored = score(rewards.build({"exact": {}}), rows)
    save_scored(tmp_path / "s.jsonl", scored, [rows[0].prompt])
    loaded = load_scored(tmp_path / "s.jsonl", [rows[0].prompt])
    assert [(s.rollout.episode, s.rollout.ids, s.rollout.turn) for s in loaded] == [
        (s.rollout.episode, s.rollout.ids, s.rollout.turn) for s in scored]  # fmt: skip
    assert from_json(json.loads(json.dumps(as_json(scored[-1])))).rollout.episode == rows[-1].episode
    (episode,) = by_episode(loaded)
    assert merge_episode(episode).rollout.answer == "It is 42."


def test_of_templates_that_write_one_call_a_turn_the_policy_reads_that_the_others_were_not_run(tokenizer: Any) -> None:
    assert player(tokenizer).one_call is False
    assert player(tokenizer, "qwen3_5_nothink").one_call is False
    assert player(tokenizer, "llama3_1", "<|eot_id|>").one_call is True
    assert player(tokenizer, "gptoss", "<|call|>").one_call is True


def test_harmony_calls_are_answered_in_its_own_form(tokenizer: Any) -> None:
    turn = ('<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant to=functions.calculator'
            '<|channel|>commentary json<|message|>{"expression": "6 * 7"}')  # fmt: skip
    rows, generator = play(tokenizer, [turn, "<|channel|>final<|message|>It is 42."], template="gptoss", end="<|call|>")
    shown = tokenizer.decode(generator.requests[1].ids)
    assert shown.endswith(
        '<|start|>functions.calculator to=assistant<|channel|>commentary<|message|>"42"<|end|><|start|>assistant'
    )
    assert rows[-1].answer == "It is 42."


def test_plain_text_prompts_without_the_chat_template_are_refused(tokenizer: Any) -> None:
    one = player(tokenizer)
    one.source = Prompts()
    with pytest.raises(ConfigError, match=r"set prompts\.chat: true"):
        one.play(Scripted(tokenizer, []), [Prompt(0, "x", (1,), {}, {"prompt": "x"})], Sampling(), samples=1, key=(1,))


def test_unknown_tools_and_methods_without_hints_are_reported_in_one_line() -> None:
    with pytest.raises(ConfigError, match=r"t\.yaml: tools: no tool 'calculater'; did you mean 'calculator'"):
        ToolSet(Tools(use=["calculater"]), path="t.yaml")
    with pytest.raises(ConfigError, match=r"t\.yaml: tools: tool 'bare': its schema cannot be made"):
        ToolSet(Tools(environment="test_tool_episodes:Bare"), path="t.yaml")


class Bare:
    def bare(self, x):  # type: ignore[no-untyped-def]
        return x
