"""Conversations -> ids and masks, on the chat templates that TRL ships: real ones of many families.

A turn's prompt must be the template's own rendering for sampling; the whole row must be the ids of a real rendering.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import trl
from trl.chat_template_utils import is_chat_template_prefix_preserving

from pipeline.config.load import ConfigError
from pipeline.config.schema import Model, Prompts, Tiny
from pipeline.data import encoding
from pipeline.distributed import notices
from pipeline.models import models
from pipeline.stages.imitation import IGNORED, ImitationRow, as_dataset

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
TURN_ENDS = {"qwen": "<|im_end|>", "llama": "<|eot_id|>", "gemma3": "<end_of_turn>", "gemma4": "<turn|>",
             "gptoss": "<|return|>", "cohere": "<|END_OF_TURN_TOKEN|>", "lfm": "<|im_end|>", "nemotron": "<|im_end|>",
             "muse": "<|eot|>", "smolvlm": "<end_of_utterance>"}  # fmt: skip
SPECIAL = sorted({*TURN_ENDS.values(), "<|im_start|>", "<think>", "</think>"})
PLACE = {"type": "object", "properties": {"place": {"type": "string", "description": "Where."}}, "required": ["place"]}
TOOL = {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": PLACE}}
CALL = {"type": "function", "function": {"name": "look", "arguments": {"place": "north"}}}
TALK = [("user", "Hi?"), ("assistant", "Yo."), ("user", "How?"), ("assistant", "So.")]
THOUGHTS = [("user", "Hi?"), ("assistant", "<think>\nHm\n</think>\n\nYo."), ("user", "How?"),
            ("assistant", "<think>\nOh\n</think>\n\nSo.")]  # fmt: skip
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "tool_calls": [CALL]},
                      {"role": "tool", "name": "look", "content": "snow"}, {"role": "assistant", "content": "Cold."}],
         "tools": [TOOL]}  # fmt: skip


def turns(pairs):
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Characters, and a token of its own for two line ends, as every real vocabulary has one."""
    place = tmp_path_factory.mktemp("tiny")
    models.make_tiny(Tiny(characters="".join(map(chr, range(32, 127))) + "\n"), place, seed=1)
    file = place / "tokenizer.json"
    raw = json.loads(file.read_text())
    raw["model"]["vocab"]["ĊĊ"] = len(raw["model"]["vocab"])
    raw["model"]["merges"] = [["Ċ", "Ċ"]]
    file.write_text(json.dumps(raw))
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"vocab_size": len(raw["model"]["vocab"])}))
    return place


def load(base, name):
    out = models.load_tokenizer(str(base), Model())
    out.add_special_tokens({"additional_special_tokens": SPECIAL})
    out.chat_template = (TEMPLATES / f"{name}.jinja").read_text()
    end = next((end for family, end in TURN_ENDS.items() if name.startswith(family)), None)
    if end:
        out.eos_token = end
    return out


def rows_of(row, tokenizer, **settings):
    stop_token_ids = frozenset({tokenizer.eos_token_id})
    found = encoding.Demonstrations([row], Prompts(**settings), tokenizer, stop_token_ids=stop_token_ids)
    return list(found), found.report


def trained(one, tokenizer):
    """Runs of trained tokens as texts."""
    runs: list[list[int]] = []
    last = False
    for token, flag in zip(one.completion_ids, one.trained, strict=True):
        if flag:
            runs = [*runs[:-1], [*runs[-1], token]] if last else [*runs, [token]]
        last = flag
    return [tokenizer.decode(run) for run in runs]


# template -> rows that a talk, and a talk with thoughts, give: more than one where the template rewrites history.
# qwen3_8 keeps the text, but its empty thought is two tokens when it is sampled and one in the history
REAL = {
    "qwen2_5": (1, 1), "qwen3": (2, 2), "qwen3_instruct_2507": (1, 1), "qwen3_5_think": (2, 2), "qwen3_8": (2, 2),
    "llama3": (1, 1), "llama3_1": (1, 1), "llama3_2": (1, 1), "gemma3": (1, 1), "gemma4": (1, 1), "gptoss": (2, 2),
    "cohere": (1, 1), "cohere2": (1, 1), "lfm2": (1, 1), "lfm2_2_5": (1, 2), "nemotron_3_nano": (2, 2),
    "muse_glimmer": (1, 1), "deepseek_r1_distill": (2, 2), "smolvlm": (1, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("thinking", [False, True])
def test_rows_split_exactly_where_the_template_rewrites_history(name, thinking, base):
    tokenizer = load(base, name)
    row = turns(THOUGHTS if thinking else TALK)
    found, line = rows_of(row, tokenizer)
    assert len(found) == REAL[name][thinking] and line is None
    texts = [text for one in found for text in trained(one, tokenizer)]
    assert len(texts) == 2  # both turns are trained, once each
    for text, said in zip(texts, ("Yo.", "So."), strict=True):
        assert said in text and text.endswith(tokenizer.eos_token) and "Hi?" not in text and "How?" not in text
        assert text.count(tokenizer.eos_token) == 1
        assert ("Hm" in text or "Oh" in text) == thinking


@pytest.mark.parametrize("name", REAL)
def test_every_trained_turn_follows_what_sampling_is_given(name, base):
    tokenizer = load(base, name)
    row = turns(THOUGHTS)
    found, _ = rows_of(row, tokenizer)
    prompts_of_turns = [encoding.render_ids({"messages": row["messages"][:n]}, Prompts(), tokenizer) for n in (1, 3)]
    starts = []
    for one in found:
        ids, flags = [*one.prompt_ids, *one.completion_ids], [False] * len(one.prompt_ids) + list(one.trained)
        starts += [ids[:i] for i in range(1, len(ids)) if flags[i] and not flags[i - 1]]
    assert starts == prompts_of_turns


@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "llama3_1", "llama3_2", "qwen3_instruct_2507", "gptoss",
                                  "qwen3_5_think", "qwen3_8", "muse_glimmer", "nemotron_3_nano"])  # fmt: skip
def test_a_call_is_trained_and_its_result_is_not(name, base):
    tokenizer = load(base, name)
    found, line = rows_of(ASKED, tokenizer)
    texts = [text for one in found for text in trained(one, tokenizer)]
    assert line is None and len(texts) == 2 and "look" in texts[0] and "north" in texts[0] and "Cold." in texts[1]
    assert not any("snow" in text or "Hi?" in text for text in texts)
    assert "Where." in tokenizer.decode(found[0].prompt_ids)  # the schema stands in the prompt
    if not is_chat_template_prefix_preserving(tokenizer):
        assert len(found) == 2


def test_only_the_last_turn_is_trained_where_the_config_says_so(base):
    tokenizer = load(base, "qwen2_5")
    (one,), _ = rows_of(turns(TALK), tokenizer, train_on="last")
    assert trained(one, tokenizer) == ["So.<|im_end|>"] and "Yo." in tokenizer.decode(one.prompt_ids)


def test_labels_of_a_trained_row_are_the_ids_of_its_trained_turns(base):
    tokenizer = load(base, "qwen2_5")
    (one,), _ = rows_of(ASKED, tokenizer)
    example = ImitationRow(one.prompt_ids, one.completion_ids, trained=one.trained)
    row = as_dataset([example], reference=False)[0]
    assert row["input_ids"] == [*one.prompt_ids, *one.completion_ids]
    kept = [i for i, label in zip(row["input_ids"], row["labels"], strict=True) if label != IGNORED]
    assert tokenizer.decode(kept) == "".join(trained(one, tokenizer))


def test_a_completion_of_several_messages_has_no_loss_on_results_or_headers(base):
    tokenizer = load(base, "qwen2_5")
    row = {"prompt": ASKED["messages"][:1], "completion": ASKED["messages"][1:], "tools": [TOOL]}
    (one,), _ = rows_of(row, tokenizer)
    assert trained(one, tokenizer)[1:] == ["Cold.<|im_end|>"]
    assert not any("snow" in text or "im_start" in text for text in trained(one, tokenizer))


@pytest.mark.parametrize(
    ("message", "column"),
    [
        ({"content": "Yo.", "tool_calls": None}, None),
        ({"content": "Yo.", "tool_calls": []}, None),
        ({"content": [{"type": "text", "text": "Y"}, {"type": "text", "text": "o."}]}, []),
        ({"content": "Yo.", "name": None, "tool_calls": []}, "[]"),
    ],
)
@pytest.mark.parametrize("name", ["qwen3", "llama3_2", "gptoss"])
def test_empty_keys_and_content_in_parts_render_as_the_plain_message(name, message, column, base):
    tokenizer = load(base, name)
    plain, _ = rows_of(turns(TALK[:2]), tokenizer)
    row = {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi?"}]},
                        {"role": "assistant", **message}], "tools": column}  # fmt: skip
    assert rows_of(row, tokenizer)[0] == plain


def test_arguments_as_json_text_render_as_the_object(base):
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"place": "north"}'}}
    texts = [ASKED["messages"][0], {"role": "assistant", "content": None, "tool_calls": [call]}, *ASKED["messages"][2:]]
    for name in ("qwen3", "llama3_2"):
        tokenizer = load(base, name)
        assert rows_of({**ASKED, "messages": texts}, tokenizer)[0] == rows_of(ASKED, tokenizer)[0]


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "roles must alternate"),
        ([{"role": "user", "content": 7}], "message 1: its content is 7, not text"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}], "a part of type 'image_url'"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{"function": {"name": "f",
          "arguments": "{oops"}}]}], "message 2: the arguments of 'f' are not JSON"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": ["f"]}], "message 2: a tool call must"),
    ],
)  # fmt: skip
def test_what_a_template_cannot_render_is_one_line_with_the_row(messages, words, base):
    tokenizer = load(base, "cohere")
    row = {"messages": [*messages, {"role": "assistant", "content": "z"}]}
    with pytest.raises(ConfigError) as error:
        rows_of(row, tokenizer)
    assert words in str(error.value) and "row 1" in str(error.value) and "\n" not in str(error.value)


def test_a_template_without_room_for_calls_refuses_them(base):
    with pytest.raises(ConfigError, match="row 1 of the data: the chat template refuses it: it leaves tool calls out"):
        rows_of(ASKED, load(base, "llama3"))


def test_tools_that_a_template_never_writes_are_reported(base, capsys):
    notices.forget()
    encoding.render_ids({"prompt": [{"role": "user", "content": "Hi?"}], "tools": [TOOL]}, Prompts(),
                        load(base, "gemma3"))  # fmt: skip
    assert "the chat template writes no tools" in capsys.readouterr().err


def test_a_demonstration_is_tokenised_apart_from_the_prompt_that_opens_its_thought(base):
    """The template writes an empty thought as two line ends, one token; the prompt ends after the first of them."""
    tokenizer = load(base, "qwen3_5_think")
    row = turns(TALK[:2])
    (one,), _ = rows_of(row, tokenizer)
    full = tokenizer.apply_chat_template(row["messages"], tokenize=True, return_dict=False)
    assert full[: len(one.prompt_ids)] != list(one.prompt_ids)  # the boundary is inside a token of the whole
    assert list(one.prompt_ids) == encoding.render_ids(row, Prompts(), tokenizer)
    assert tokenizer.decode(one.completion_ids) == "\n</think>\n\nYo.<|im_end|>"


def test_a_thought_that_the_template_leaves_out_of_answers_is_imitated_after_the_open_tag(base):
    tokenizer = load(base, "deepseek_r1_distill")
    for answer in (
        {"content": "<think>\nHm\n</think>\n\nYo."}, {"content": "Hm\n</think>\n\nYo."},
        {"content": "Yo.", "reasoning_content": "Hm"}, {"content": "Yo.", "thinking": "Hm"},
    ):  # fmt: skip
        row = {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", **answer}]}
        (one,), _ = rows_of(row, tokenizer)
        assert tokenizer.decode(one.prompt_ids).endswith("<think>\n")
        assert tokenizer.decode(one.completion_ids) == "Hm\n</think>\n\nYo.<eos>"


def test_thoughts_that_an_empty_block_in_the_prompt_rules_out_are_left_out_and_counted(base):
    tokenizer = load(base, "qwen3_5_nothink")
    (one,), line = rows_of(turns(THOUGHTS[:2]), tokenizer)
    assert trained(one, tokenizer) == ["Yo.<|im_end|>"]
    assert "1 thoughts that the prompt's empty thinking block has no room for" in line


def test_an_earlier_turn_that_answers_a_held_out_prompt_is_not_trained(base):
    tokenizer = load(base, "qwen2_5")
    found = encoding.Demonstrations([turns(TALK)], Prompts(), tokenizer, barred={"user: Hi?"},
                                    stop_token_ids=frozenset({tokenizer.eos_token_id}))  # fmt: skip
    assert [trained(one, tokenizer) for one in found] == [["So.<|im_end|>"]]
    assert found.report is not None and "left out: 1 turns whose prompt is held out" in found.report


def test_a_last_question_without_an_answer_is_counted(base):
    tokenizer = load(base, "qwen2_5")
    found, line = rows_of(turns(TALK[:3]), tokenizer)
    assert trained(found[0], tokenizer) == ["Yo.<|im_end|>"] and "1 last questions without an answer" in line
