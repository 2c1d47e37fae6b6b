#!/usr/bin/env bash
# tinker-cookbook 0.6.1 writes the tools of Qwen conversations as no Qwen chat template does, in two ways.
#
# Seen, against the models' own templates as TRL 1.16.0 ships them: the results of two tool calls of one turn become two
# user turns, where Qwen3's template puts both into one; and for Qwen3.5 and 3.8 a tool's schema stands bare in the system
# message, without the {"type": "function", "function": ...} around it that the template writes for the same tool (its
# Qwen3 renderer does write it). The prompt of a conversation without tools is equal.
# From memory one would say: renderers that are tested for exact correspondence with apply_chat_template agree with it on
# a tool in the usual format, and on parallel calls.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0+cpu 2>/dev/null ||  # else from the index of its CPU builds
  "$folder/venv/bin/pip" install -q --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
"$folder/venv/bin/pip" install -q transformers==5.19.0 tinker==0.38.0 tml-renderers==0.2.1 chz==0.4.0 blobfile==3.3.0 \
  pillow jinja2==3.1.6 termcolor datasets==5.2.0
"$folder/venv/bin/pip" install -q --no-deps tinker-cookbook==0.6.1  # without what its recipes need
"$folder/venv/bin/pip" install -q --no-deps --target "$folder/trl" trl==1.16.0  # its chat templates only; nothing of it is imported
TEMPLATES="$folder/trl/trl/chat_templates" "$folder/venv/bin/python" - <<'PYTHON' 2>&1 | grep -v Warning
import json
import os
from pathlib import Path

from tinker_cookbook import renderers
from tinker_cookbook.model_info import get_recommended_renderer_name
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

MARKS = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "</think>", "<tool_call>", "</tool_call>",
         "<tool_response>", "</tool_response>"]
TOOL = {"name": "add", "description": "Add two numbers", "parameters": {"type": "object", "properties": {}}}
QUESTION = {"role": "user", "content": "What are 2+3 and 1+1?"}
RESULTS = [{"role": "tool", "tool_call_id": f"c{n}", "name": "add", "content": n} for n in ("5", "2")]


def tokenizer_of_bytes(template):
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    found = PreTrainedTokenizerFast(tokenizer_object=made, additional_special_tokens=MARKS, eos_token="<|im_end|>")
    found.chat_template = (Path(os.environ["TEMPLATES"]) / f"{template}.jinja").read_text()
    return found


def both(model, template, calls):
    """The prompt of this conversation by the cookbook and by the template."""
    tokenizer = tokenizer_of_bytes(template)
    renderer = renderers.get_renderer(get_recommended_renderer_name(model), tokenizer)
    spec = [{"id": f"c{n}", "type": "function", "function": {"name": "add", "arguments": {}}} for n in ("5", "2")]
    turns = [QUESTION] + ([{"role": "assistant", "content": "", "tool_calls": spec}, *RESULTS] if calls else [])
    theirs = tokenizer.apply_chat_template(
        turns, tools=[{"type": "function", "function": TOOL}], add_generation_prompt=True, tokenize=False
    )
    body = renderers.ToolCall.FunctionBody(name="add", arguments=json.dumps({}))
    typed = [renderers.ToolCall(id=call["id"], function=body) for call in spec]
    turns = [{**turn, "tool_calls": typed} if "tool_calls" in turn else turn for turn in turns]
    prefix = renderer.create_conversation_prefix_with_tools([TOOL], "")
    ids = renderer.build_generation_prompt([*prefix, *turns]).to_ints()
    return tokenizer.decode(ids), theirs


ours, theirs = both("Qwen/Qwen3-8B", "qwen3", calls=False)
assert ours == theirs
print("Qwen3, a tool and a question: equal")
ours, theirs = both("Qwen/Qwen3-8B", "qwen3", calls=True)
turns = [text.count("<|im_start|>user\n<tool_response>") for text in (ours, theirs)]
print("Qwen3, turns with the results of two calls:", turns, "(cookbook, template)")
assert turns == [2, 1]
for model, template in (("Qwen/Qwen3.5-4B", "qwen3_5_think"), ("Qwen/Qwen3.8-27B", "qwen3_8")):
    ours, theirs = both(model, template, calls=False)
    lines = [next(line for line in text.splitlines() if '"name": "add"' in line) for text in (ours, theirs)]
    print(model, *lines, sep="\n  ")
    assert lines[0].startswith('{"name": "add"') and lines[1].startswith('{"type": "function", "function": {"name": "add"')
PYTHON
