#!/usr/bin/env bash
# The Muse Glimmer chat template (as TRL 1.16.0 ships it) edits the words of a system message.
#
# Seen: "effort" in "reasoning effort" becomes "strength" in four casings, in a system message and nowhere else; and a
# system message that holds either phrase, in whatever sense, makes the template leave out the line that the argument
# `reasoning_strength` sets, so that the argument does nothing.
# From memory one would say: a template puts marks around what a message says, trims it at most, and a keyword argument
# acts on every conversation alike.
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


def render(name, messages, **more):  # the environment that transformers compiles chat templates in
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    environment.filters["tojson"] = lambda x, **k: json.dumps(x, ensure_ascii=False, indent=k.get("indent"))
    environment.globals.update(raise_exception=raise_exception, strftime_now=lambda form: "01 Jan 2026")
    template = environment.from_string((Path(os.environ["TEMPLATES"]) / f"{name}.jinja").read_text())
    return template.render(messages=messages, add_generation_prompt=True, bos_token="<s>", eos_token="</s>", **more)


def system_turn(text, **more):
    rendered = render("muse_glimmer", [{"role": "system", "content": text}, {"role": "user", "content": text}], **more)
    system, user = rendered.split("<|start|>")[1:3]
    return system.removeprefix("system<|message|>").split("\n\n"), user


(said, *rest), user = system_turn("Describe the reasoning effort of Kant.", reasoning_strength="low")
print("system:", said, "| then:", rest)
print("user:  ", user)
assert said == "Describe the reasoning strength of Kant." and "Describe the reasoning effort of Kant." in user
assert not any("low" in part for part in rest)
(said, *rest), user = system_turn("Describe the effort of Kant.", reasoning_strength="low")
print("system:", said, "| then:", rest)
assert said == "Describe the effort of Kant." and "Reasoning strength: low." in rest
PYTHON
