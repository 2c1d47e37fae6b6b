#!/usr/bin/env bash
# Chat templates as TRL 1.16.0 ships them: Qwen3 keeps the white space of a turn, Qwen3.5, 3.6 and 3.8 strip it.
#
# Seen: "    return x\n" as an assistant turn keeps its indentation under qwen2_5, qwen3, lfm2, phi3, gptoss and nemotron_3_nano, and loses
# it under qwen3_5_nothink, qwen3_6, qwen3_8, llama3, llama3_2, gemma3 and gemma4. glm4moe strips the
# assistant and keeps the user.
# From memory one would say: ChatML templates (Qwen) copy contents verbatim, only Llama and Gemma trim; and a model
# family treats white space alike from one version to the next.
# So a completion that goes on with indented code, re-rendered as a conversation, is not the text that was sampled.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jinja2==3.1.6
"$folder/venv/bin/pip" install -q --no-deps --target "$folder/trl" trl==1.16.0  # its chat templates only; nothing of it is imported
TEMPLATES="$folder/trl/trl/chat_templates" "$folder/venv/bin/python" - <<'PYTHON'
import json
import os
from pathlib import Path

import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def render(name, messages, generate=False, **more):  # the environment that transformers compiles chat templates in
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    environment.filters["tojson"] = lambda x, **k: json.dumps(x, ensure_ascii=False, indent=k.get("indent"))
    environment.globals.update(raise_exception=raise_exception, strftime_now=lambda form: "01 Jan 2026")
    template = environment.from_string((Path(os.environ["TEMPLATES"]) / f"{name}.jinja").read_text())
    return template.render(messages=messages, add_generation_prompt=generate, bos_token="<s>", eos_token="</s>", **more)


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


code = "    return x\n"
keeps = {}
for name in ("qwen2_5", "qwen3", "lfm2", "phi3", "gptoss", "qwen3_5_nothink", "qwen3_6", "qwen3_8", "llama3", "llama3_2",
             "gemma3", "gemma4", "glm4moe", "nemotron_3_nano"):
    text = render(name, [user(code + "user"), assistant(code + "model")])
    keeps[name] = (code + "user" in text, code + "model" in text)
for name, (of_user, of_assistant) in keeps.items():
    print(f"{name:16} user {'kept' if of_user else 'stripped':8} assistant {'kept' if of_assistant else 'stripped'}")
both = {name for name, kept in keeps.items() if kept == (True, True)}
neither = {name for name, kept in keeps.items() if kept == (False, False)}
assert both == {"qwen2_5", "qwen3", "lfm2", "phi3", "gptoss", "nemotron_3_nano"}
assert neither == {"qwen3_5_nothink", "qwen3_6", "qwen3_8", "llama3", "llama3_2", "gemma3", "gemma4"}
PYTHON
