"""Parsers of tool calls, on texts that real chat templates render: those that TRL ships, and Mistral's own renderer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trl

from pipeline.config.mistakes import ConfigError
from pipeline.config.schema import Model, Tiny
from pipeline.data import chat_template
from pipeline.generation.tool_calls import FORMATS, ToolCall, format_of, parse_turn, recognised_format
from pipeline.models import models

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
STRING, WHOLE = {"type": "string", "description": "d"}, {"type": "integer", "description": "d"}
PROPERTIES = {"place": STRING, "days": WHOLE, "deep": {"type": "object", "description": "d"},
              "names": {"type": "array", "items": {"type": "string"}, "description": "d"},
              "exact": {"type": "boolean", "description": "d"}}  # fmt: skip
PARAMETERS = {"type": "object", "properties": PROPERTIES, "required": ["place"]}
TOOL = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": PARAMETERS}}
ARGUMENTS: list[dict[str, Any]] = [
    {"place": "north"},
    {"place": 'say "hi"\n\ttwice, {a: 1} </x> [b]', "days": -3},
    {"place": "42", "days": 42, "exact": True, "names": ["a", "b"]},
    {"place": "ünï ☃", "deep": {"a": {"b": [1, 2.5, "c"]}}},
]
RENDERED = {
    "qwen2_5": "hermes", "qwen3": "hermes", "qwen3_instruct_2507": "hermes", "qwen3_vl": "hermes",
    "qwen3_5_nothink": "qwen_xml", "qwen3_5_think": "qwen_xml", "qwen3_6": "qwen_xml", "nemotron_3_nano": "qwen_xml",
    "llama3_1": "llama_json", "llama3_2": "llama_json", "gptoss": "harmony", "gemma4": "gemma", "gemma4_v5": "gemma",
    "lfm2_v2": "pythonic", "lfm2_2_5": "pythonic",
}  # fmt: skip
ENDS = ("<|im_end|>", "<|eot_id|>", "<|call|>", "<|tool_response>", "<turn|>", "<|eom_id|>")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    place = tmp_path_factory.mktemp("tiny")
    models.make_tiny(Tiny(characters="ab\n"), place, seed=1)
    return models.load_tokenizer(str(place), Model())


def turn_of(tokenizer: Any, name: str, calls: list[dict[str, Any]], content: str = "") -> str:
    """What the template writes as the assistant's turn, up to its end token."""
    tokenizer.chat_template = (TEMPLATES / f"{name}.jinja").read_text()
    made = [{"type": "function", "id": f"call{n:05}", "function": {"name": "look", "arguments": c}}
            for n, c in enumerate(calls)]  # fmt: skip
    before: list[dict[str, Any]] = [{"role": "user", "content": "Hi?"}]
    after = [*before, {"role": "assistant", "content": content, "tool_calls": made}]
    prompt = chat_template.render_text(tokenizer, before, kwargs={}, tools=[TOOL], answer=True)
    full = chat_template.render_text(tokenizer, after, kwargs={}, tools=[TOOL])
    shared = next(
        (i for i, (a, b) in enumerate(zip(prompt, full, strict=False)) if a != b), min(len(prompt), len(full))
    )
    text = full[shared:].rstrip()
    for end in ENDS:
        text = text.removesuffix(end)
    return text


@pytest.mark.parametrize(("name", "expected"), sorted(RENDERED.items()))
def test_a_template_is_recognised_and_its_own_calls_are_read_back(tokenizer: Any, name: str, expected: str) -> None:
    assert recognised_format((TEMPLATES / f"{name}.jinja").read_text()) == expected
    for arguments in ARGUMENTS:
        if expected == "pythonic" and "\n" in arguments["place"]:
            continue  # LFM2's template writes a line end within quotes as it is, which is no Python
        turn = parse_turn(turn_of(tokenizer, name, [arguments]), expected, [TOOL])
        assert turn.malformed == ()
        assert [dict(call.arguments) for call in turn.calls] == [arguments]
        assert [call.name for call in turn.calls] == ["look"]


@pytest.mark.parametrize(
    "name", sorted(n for n, f in RENDERED.items() if f in ("hermes", "qwen_xml", "gemma", "pythonic"))
)
def test_several_calls_of_a_turn_and_the_text_beside_them_are_read(tokenizer: Any, name: str) -> None:
    turn = parse_turn(turn_of(tokenizer, name, [{"place": "a"}, {"place": "b"}], "I look."), RENDERED[name], [TOOL])
    assert [call.arguments["place"] for call in turn.calls] == ["a", "b"]
    assert "I look." in turn.content or RENDERED[name] == "gemma"  # Gemma's template writes content after the result


VERSIONS = ["v2", "v3", "v7"]


@pytest.mark.parametrize("version", VERSIONS)
def test_calls_that_mistrals_own_tokenizer_renders_are_read_back(version: str) -> None:
    pytest.importorskip("mistral_common")
    from mistral_common.protocol.instruct.messages import AssistantMessage, ToolMessage, UserMessage
    from mistral_common.protocol.instruct.request import ChatCompletionRequest
    from mistral_common.protocol.instruct.tool_calls import Function, FunctionCall, Tool
    from mistral_common.protocol.instruct.tool_calls import ToolCall as Call
    from mistral_common.tokens.tokenizers.base import SpecialTokenPolicy
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

    made = Call(id="abcdefghi", function=FunctionCall(name="look", arguments='{"place": "north", "days": 3}'))
    request: Any = ChatCompletionRequest(  # type: ignore[type-var]
        messages=[UserMessage(content="Hi?"), AssistantMessage(content=None, tool_calls=[made]),
                  ToolMessage(content="snow", tool_call_id="abcdefghi", name="look")],
        tools=[Tool(function=Function(name="look", description="Look.", parameters=PARAMETERS))],
    )  # fmt: skip
    mistral = getattr(MistralTokenizer, version)()
    ids = mistral.encode_chat_completion(request).tokens
    text = mistral.decode(ids, special_token_policy=SpecialTokenPolicy.KEEP)
    turn = text[text.index("[TOOL_CALLS]") :].partition("</s>")[0].replace("▁", " ")
    assert parse_turn(turn, "mistral", [TOOL]).calls == (ToolCall("look", {"place": "north", "days": 3}),)


GOOD = {
    "hermes": '<tool_call>\n{"name": "look", "arguments": {"place": "a"}}\n</tool_call>',
    "qwen_xml": "<tool_call>\n<function=look>\n<parameter=place>\na\n</parameter>\n</function>\n</tool_call>",
    "mistral": '[TOOL_CALLS]look[ARGS]{"place": "a"}',
    "gemma": "<start_function_call>call:look{place:<escape>a<escape>}<end_function_call>",
    "pythonic": '[look(place="a")]',
    "llama_json": '<|python_tag|>{"name": "look", "parameters": {"place": "a"}}',
    "harmony": "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary to=functions.look"
               ' <|constrain|>json<|message|>{"place": "a"}',
}  # fmt: skip
MALFORMED = {
    "hermes": ['<tool_call>{"name": "look", "arguments": {"place": "a"}}', '<tool_call>{"name": "look", </tool_call>',
               '<tool_call>{"arguments": {}}</tool_call>', '<tool_call>["look"]</tool_call>',
               '<tool_call>{"name": "look", "arguments": [1]}</tool_call>', "<tool_call>" * 3],
    "qwen_xml": ["<tool_call>\n<function=look>\n<parameter=place>\na\n</parameter>\n</function>",
                 "<tool_call>look</tool_call>", "<tool_call><function=look><parameter=place>a</function></tool_call>"],
    "mistral": ["[TOOL_CALLS]", '[TOOL_CALLS]look[ARGS]{"place": ', '[TOOL_CALLS]{"name": "look"}', "[TOOL_CALLS][]",
                '[TOOL_CALLS][{"name": "look", "arguments": {}}] and more'],
    "gemma": ["<|tool_call>call:look{place:north}<tool_call|>", '<|tool_call>call:look{place:<|"|>a<tool_call|>',
              "<|tool_call>look<tool_call|>", '<|tool_call>call:look{place:<|"|>a<|"|>}',
              "<|tool_call>call:f{a:[1<tool_call|>", "<|tool_call>call:f{a:" + "[" * 500 + "<tool_call|>"],
    "pythonic": ["[look('a')]", "[look(place=north)]", "[look(**{})]", "[look(place='a')",
                 "<|tool_call_start|>[look()]", "<|tool_call_start|>look<|tool_call_end|>", "[f(" + "(" * 500 + "]"],
    "llama_json": ['{"name": "look", "parameters": {"place": "a"}}; {"name": "look", "parameters": {}}',
                   '{"name": "look", "parameters": ', "<|python_tag|>look north", '{"name": 3}'],
    "harmony": ["<|channel|>commentary to=functions.look<|message|>{place}", "<|channel|>commentary to=functions.look",
                "<|channel|>commentary to=functions.look<|message|>[1]"],
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_a_call_is_read_and_an_answer_is_no_call(name: str) -> None:
    turn = parse_turn(GOOD[name], name, [TOOL])
    assert (turn.calls, turn.malformed) == ((ToolCall("look", {"place": "a"}),), ())
    for answer in ("It is cold.", "", "[1, 2]", '{"answer": 42}', "The list is [x(1)]."):
        turn = parse_turn(answer, name, [TOOL])
        assert (turn.calls, turn.malformed, turn.content) == ((), (), answer)


@pytest.mark.parametrize(("name", "text"), [(n, t) for n, texts in sorted(MALFORMED.items()) for t in texts])
def test_a_malformed_call_is_reported_and_is_neither_a_call_nor_an_answer(name: str, text: str) -> None:
    turn = parse_turn(text, name, [TOOL])
    assert turn.calls == ()
    assert turn.malformed
    assert all(len(reason) < 250 for reason in turn.malformed)


@pytest.mark.parametrize("name", ["hermes", "qwen_xml", "mistral", "gemma"])
def test_one_malformed_call_of_two_does_not_cost_the_other(name: str) -> None:
    bad = {"hermes": "<tool_call>oops</tool_call>", "qwen_xml": "<tool_call>oops</tool_call>",
           "mistral": "[TOOL_CALLS]oops", "gemma": "<start_function_call>oops<end_function_call>"}[name]  # fmt: skip
    turn = parse_turn(f"{bad}{GOOD[name]}", name, [TOOL])
    assert turn.calls == (ToolCall("look", {"place": "a"}),)
    assert len(turn.malformed) == 1


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"harmony"}))
def test_a_call_inside_thinking_is_no_call(name: str) -> None:
    assert parse_turn(f"<think>\n{GOOD[name]}\n</think>\nIt is cold.", name, [TOOL]).calls == ()
    assert parse_turn(f"<think>\n{GOOD[name]}", name, [TOOL]).calls == ()
    turn = parse_turn(f"<think>\nHm.\n</think>\n\n{GOOD[name]}", name, [TOOL])
    assert len(turn.calls) == 1
    assert turn.content.startswith("<think>\nHm.")


def test_harmony_keeps_thinking_and_content_apart() -> None:
    text = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>It is cold."
    turn = parse_turn(text, "harmony", [TOOL])
    assert (turn.thinking, turn.content, turn.calls) == ("Hm.", "It is cold.", ())


def test_plain_text_values_get_the_type_that_the_schema_names_and_strings_stay_strings() -> None:
    text = ("<tool_call><function=look><parameter=place>1</parameter><parameter=days>1</parameter>"
            "<parameter=exact>True</parameter></function></tool_call>")  # fmt: skip
    assert parse_turn(text, "qwen_xml", [TOOL]).calls[0].arguments == {"place": "1", "days": 1, "exact": True}


def test_a_template_without_a_known_format_is_reported_with_the_formats_to_choose_from() -> None:
    with pytest.raises(ConfigError, match=r"tools\.format.*harmony.*hermes"):
        format_of((TEMPLATES / "gemma3.jinja").read_text(), None)
    assert format_of((TEMPLATES / "gemma3.jinja").read_text(), "pythonic") == "pythonic"
