#!/usr/bin/env bash
# The Phi-3 and Phi-3.5 chat templates (as TRL 1.16.0 ships them) close every rendered conversation with the EOS token.
#
# Seen: without a generation prompt the text ends in "<|end|>\n</s>"; the rendering of two turns is therefore no prefix of
# the rendering of four. There is no thinking in these templates: nothing is dropped, something is added.
# From memory one would say: only templates that drop earlier thoughts (Qwen3) or channels (gpt-oss) are not
# prefix-preserving. Masks from a rendered prefix and incremental rollouts break on Phi-3 as well.
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


for name in ("phi3", "phi3_5"):
    two = [user("Hello"), assistant("Hi")]
    short = render(name, two)
    long = render(name, [*two, user("Bye"), assistant("Bye")])
    print(f"{name}: ends in {short[-12:]!r}; prefix of the longer conversation: {long.startswith(short)}")
    assert short.endswith("<|end|>\n</s>") and not long.startswith(short)
    assert long.startswith(short.removesuffix("</s>"))
PYTHON
