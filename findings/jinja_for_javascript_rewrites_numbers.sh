#!/usr/bin/env bash
# @huggingface/jinja 0.5.11 (npm), which transformers.js renders with, and jinja2 3.1.6 with the tojson of transformers: chat
# templates as TRL 1.16.0 ships them, on a conversation with a tool, read from one JSON file.
#
# Seen: "default": 1.0 in the tool's schema and 1.0 in the call's arguments are written as 1 by the npm package, so each of
# the 11 templates of Qwen, Llama, GLM, Gemma and LFM below gives another prompt. 12345678901234567890 becomes
# 12345678901234567000. Beyond these templates: {{ none }} is empty where Python writes None, {{ true }} is true where Python
# writes True, -7 % 3 is -1 where it is 2, and "it's ok"|title is "It'S Ok".
# From memory one would say: the npm package exists to render these templates as Python does, and JSON keeps its numbers.
# What it costs: a model trained on rendered tool calls reads other tokens in a browser or on a Node server, and copies them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jinja2==3.1.6
"$folder/venv/bin/pip" install -q --no-deps --target "$folder/trl" trl==1.16.0  # its chat templates only; nothing of it is imported
(cd "$folder" && npm init -y > /dev/null && npm install --silent @huggingface/jinja@0.5.11 > /dev/null)
cat > "$folder/render.mjs" <<'NODE'
import { readFileSync } from 'node:fs'
import { Template } from '@huggingface/jinja'

const { templates, variables } = JSON.parse(readFileSync(0, 'utf8'))
console.log(JSON.stringify(templates.map((template) => new Template(template).render(variables))))
NODE
FOLDER="$folder" "$folder/venv/bin/python" - <<'PYTHON'
import json
import os
import subprocess
from pathlib import Path

import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

folder = Path(os.environ["FOLDER"])


def raise_exception(message):
    raise jinja2.TemplateError(message)


def tojson(value, indent=None, separators=None, sort_keys=False, ensure_ascii=False):
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


python = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
python.filters["tojson"] = tojson
python.globals.update(raise_exception=raise_exception, strftime_now=lambda form: "1 Jan 2026")
ratio = {"type": "number", "description": "How much", "default": 1.0}
tool = {"name": "scale", "description": "Scales", "parameters": {"type": "object", "properties": {"ratio": ratio}, "required": []}}
call = {"id": "abcdefghi", "type": "function", "function": {"name": "scale", "arguments": {"ratio": 1.0}}}
messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "name": "scale", "tool_call_id": "abcdefghi", "content": "ok"},
            {"role": "assistant", "content": "Done."}, {"role": "user", "content": "Bye"}]
variables = {"messages": messages, "tools": [{"type": "function", "function": tool}], "add_generation_prompt": True,
             "bos_token": "<s>", "eos_token": "</s>", "date_string": "1 Jan 2026", "big": 12345678901234567890}


def both(templates):
    """Yield what Python and JavaScript render for each template."""
    request = json.dumps({"templates": templates, "variables": variables})
    answer = subprocess.run(["node", "render.mjs"], input=request, text=True, capture_output=True, check=True, cwd=folder)
    rendered = [python.from_string(template).render(variables) for template in templates]
    return list(zip(rendered, json.loads(answer.stdout), strict=True))


names = ["qwen2_5", "qwen3", "qwen3_instruct_2507", "qwen3_vl", "qwen3_6", "qwen3_8", "llama3_1", "llama3_2", "glm4moe", "gemma4_v5",
         "lfm2"]
pairs = both([(folder / "trl/trl/chat_templates" / f"{name}.jinja").read_text() for name in names])
for name, (here, there) in zip(names, pairs, strict=True):
    print(f"{name:20} 1.0 in Python's text: {here.count('1.0')}, in JavaScript's: {there.count('1.0')}")
    assert here != there and "1.0" in here and here.replace("1.0", "1") == there, name
small = {"{{ big }}": ("12345678901234567890", "12345678901234567000"), "{{ none }}": ("None", ""), "{{ true }}": ("True", "true"),
         "{{ -7 % 3 }}": ("2", "-1"), "{{ \"it's ok\"|title }}": ("It's Ok", "It'S Ok")}
for (template, expected), seen in zip(small.items(), both(list(small)), strict=True):
    print(template, seen)
    assert seen == expected, template
PYTHON
