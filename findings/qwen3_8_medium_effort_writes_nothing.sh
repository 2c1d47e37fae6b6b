#!/usr/bin/env bash
# The Qwen3.8 chat template (as TRL 1.16.0 ships it): of its levels of effort the middle one writes nothing, and without
# an argument the highest one writes a system turn that nobody wrote.
#
# Seen: the levels are xhigh, medium and low; "high" is an error. `medium` renders what Qwen3.6 renders. The default is
# xhigh: a conversation without a system message gets one of 28 words, and one with a system message has them before it.
# `enable_thinking=False` takes that system turn away again, so it changes the start of the prompt, not only its end.
# From memory one would say: levels are low, medium and high as in gpt-oss, the default is the neutral one, and
# `enable_thinking` of a Qwen template adds an empty thought at the end of the prompt and nothing else.
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


def refusal(name, **more):
    try:
        render(name, hi, **more)
    except jinja2.exceptions.TemplateError as exc:
        return str(exc)


hi = [{"role": "user", "content": "Hi"}]
default, medium = render("qwen3_8", hi), render("qwen3_8", hi, reasoning_effort="medium")
without = render("qwen3_8", hi, enable_thinking=False)
for name, text in (("default", default), ("medium", medium), ("enable_thinking=False", without)):
    print(f"{name}: {text!r}")
print("high:", refusal("qwen3_8", reasoning_effort="high"), "| gpt-oss:", refusal("gptoss", reasoning_effort="high"))
assert medium == render("qwen3_6", hi)
assert default == render("qwen3_8", hi, reasoning_effort="xhigh") and default.endswith(medium) and default != medium
assert default.startswith("<|im_start|>system\nReasoning effort is set to xhigh.")
assert without.startswith("<|im_start|>user\nHi") and without.endswith("<think>\n\n</think>\n\n")
asked = render("qwen3_8", [{"role": "system", "content": "Be brief."}, *hi])
assert asked.startswith(default[: default.index("<|im_end|>")] + "\n\nBe brief.<|im_end|>")
assert "Unexpected reasoning effort high" in refusal("qwen3_8", reasoning_effort="high")
assert refusal("gptoss", reasoning_effort="high") is None
PYTHON
