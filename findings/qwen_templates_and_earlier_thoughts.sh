#!/usr/bin/env bash
# Which Qwen templates drop earlier thoughts (as TRL 1.16.0 ships them): 3, 3.5 and 3.6 do, 3.8 and the 2507 instruct do not.
#
# Seen: "<think>\nT\n</think>\n\nA1" in an earlier assistant turn is cut to "A1" once another user turn follows, by qwen3,
# qwen3_5_think and qwen3_6; qwen3_8 keeps it, and its longer conversation starts with the shorter one.
# From memory one would say: all thinking Qwen templates drop earlier thoughts, so several turns must be split into rows.
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


kept, prefix = {}, {}
for name in ("qwen3", "qwen3_5_think", "qwen3_6", "qwen3_8", "qwen3_instruct_2507"):
    turns = [user("U1"), assistant("<think>\nT\n</think>\n\nA1")]
    longer = render(name, [*turns, user("U2"), assistant("<think>\nT2\n</think>\n\nA2")])
    kept[name], prefix[name] = "T\n" in longer.split("U2")[0], longer.startswith(render(name, turns))
    print(f"{name:20} earlier thought {'kept' if kept[name] else 'dropped':8} prefix-preserving {prefix[name]}")
assert kept == {"qwen3": False, "qwen3_5_think": False, "qwen3_6": False, "qwen3_8": True, "qwen3_instruct_2507": True}
assert prefix == kept
PYTHON
