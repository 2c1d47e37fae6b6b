#!/usr/bin/env bash
# DeepSeek-R1-Distill, DeepSeek-V3 and Nemotron 3 templates (TRL 1.16.0): the prompt for sampling opens a thought that the
# rendering of a finished answer does not contain.
#
# Seen: the prompt with add_generation_prompt ends in "<think>\n"; the same question rendered with its answer goes on with
# the answer at once (DeepSeek) or with "<think></think>" (Nemotron 3): the prompt is not a prefix of the demonstration.
# From memory one would say: a conversation rendered with its last turn starts with the prompt that generation sees;
# that is how prompt and completion are told apart when masks are made.
# So prefix-based masks fail on plain answers, and a model fine-tuned on the rendering never saw its own sampling prompt.
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


for name in ("deepseek_r1_distill", "deepseekv3", "nemotron_3_nano", "nemotron_3_ultra"):
    prompt = render(name, [user("2+2?")], generate=True)
    whole = render(name, [user("2+2?"), assistant("4")])
    shared = os.path.commonprefix([prompt, whole])
    print(f"{name:20} prompt goes on {prompt[len(shared):]!r}, demonstration {whole[len(shared):]!r}")
    assert not whole.startswith(prompt) and "<think>" in prompt
PYTHON
