#!/usr/bin/env bash
# A call as OpenAI's API returns it, rendered by chat templates as TRL 1.16.0 ships them: its arguments are JSON in a string.
#
# Seen: appended to the messages as it came, as agents do, the assistant's call renders as the same text as with arguments
# that are an object under qwen3 and qwen3_instruct_2507. Under qwen2_5, llama3_1, llama3_2, gptoss and gemma4 it is another
# text, without a word: a string within quotes, its quotes escaped. qwen3_5, 3.6, 3.8, nemotron_3, glm4moe and lfm2_v2
# accept objects only.
# From memory one would say: templates of models that are served behind OpenAI's API render that API's own messages, and
# Qwen treats tool calls alike from one version to the next.
# So a program that sends back what it received makes the policy read a history that it never wrote.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jinja2==3.1.6 openai==3.52.0
"$folder/venv/bin/pip" install -q --no-deps --target "$folder/trl" trl==1.16.0  # its chat templates only; nothing of it is imported
TEMPLATES="$folder/trl/trl/chat_templates" "$folder/venv/bin/python" - <<'PYTHON'
import json
import os
from pathlib import Path

import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from openai.types.chat import ChatCompletionMessage


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def render(name, messages):  # the environment that transformers compiles chat templates in
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    environment.filters["tojson"] = lambda x, **k: json.dumps(x, ensure_ascii=False, indent=k.get("indent"))
    environment.globals.update(raise_exception=raise_exception, strftime_now=lambda form: "01 Jan 2026")
    template = environment.from_string((Path(os.environ["TEMPLATES"]) / f"{name}.jinja").read_text())
    return template.render(messages=messages, tools=[TOOL], add_generation_prompt=True, bos_token="<s>", eos_token="</s>")


NUMBER = {"type": "integer", "description": "A number."}
TOOL = {"type": "function", "function": {"name": "square", "description": "Square a number.", "parameters": {
    "type": "object", "properties": {"number": NUMBER}, "required": ["number"]}}}
CALL = {"id": "call00000", "type": "function", "function": {"name": "square", "arguments": '{"number": 7}'}}
# what client.chat.completions.create(...).choices[0].message gives back to a program
returned = ChatCompletionMessage.model_validate({"role": "assistant", "content": "", "tool_calls": [CALL]})
as_it_came = returned.model_dump(exclude_none=True)
as_object = json.loads(json.dumps(as_it_came))
as_object["tool_calls"][0]["function"]["arguments"] = {"number": 7}
assert as_it_came["tool_calls"][0]["function"]["arguments"] == '{"number": 7}'


def compared(name):
    def conversation(message):
        return [{"role": "user", "content": "Square 7."}, message,
                {"role": "tool", "tool_call_id": "call00000", "name": "square", "content": "49"}]

    expected = render(name, conversation(as_object))
    try:
        return "the same" if render(name, conversation(as_it_came)) == expected else "another text"
    except (TypeError, jinja2.exceptions.TemplateError):
        return "objects only"


seen = {name: compared(name) for name in (
    "qwen2_5", "qwen3", "qwen3_instruct_2507", "qwen3_5_nothink", "qwen3_6", "qwen3_8", "llama3_1", "llama3_2", "gptoss",
    "gemma4", "glm4moe", "lfm2_v2", "nemotron_3_nano")}
for name, how in seen.items():
    print(f"{name:20} {how}")
groups = {how: {name for name in seen if seen[name] == how} for how in set(seen.values())}
assert groups["the same"] == {"qwen3", "qwen3_instruct_2507"}
assert groups["another text"] == {"qwen2_5", "llama3_1", "llama3_2", "gptoss", "gemma4"}
PYTHON
