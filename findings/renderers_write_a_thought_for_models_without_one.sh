#!/usr/bin/env bash
# renderers 0.1.12, which replaces chat templates by Python code, takes Qwen3's code for the Instruct models of July 2025.
#
# Seen: for Qwen/Qwen3-4B-Instruct-2507 its Qwen3 renderer opens the last answer of a conversation with an empty thought,
# "<think>\n\n</think>\n\n", and writes a message's reasoning, where that model's own chat template (as TRL 1.16.0 ships
# it) writes the answer alone. SFT on such tokens teaches a model without thoughts to open with an empty one. Prompts that
# end with the user's turn are equal, and so is every conversation of the first Qwen3 models.
# From memory one would say: a renderer that is chosen by the model's name gives what the model's template gives.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q renderers==0.1.12 openai==3.57.0 httpx==0.28.1 jinja2==3.1.6
"$folder/venv/bin/pip" install -q --no-deps --target "$folder/trl" trl==1.16.0  # its chat templates only; nothing of it is imported
TEMPLATES="$folder/trl/trl/chat_templates" "$folder/venv/bin/python" - <<'PYTHON'
import os
import re
from pathlib import Path

import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from renderers import create_renderer


class Characters:  # a tokenizer with one id per mark or character, so that ids can be read
    unk_token_id = None
    pattern = re.compile(r"<\|[^|]*\|>|</?think>|</?tool_call>|</?tool_response>|.", re.DOTALL)

    def __init__(self, name):
        self.name_or_path, self.ids, self.texts = name, {}, {}
        self.eos_token_id = self.convert_tokens_to_ids("<|im_end|>")

    def convert_tokens_to_ids(self, tokens):
        if not isinstance(tokens, str):
            return [self.convert_tokens_to_ids(token) for token in tokens]
        number = self.ids.setdefault(tokens, len(self.ids) + 1)
        self.texts[number] = tokens
        return number

    def encode(self, text, *args, **kwargs):
        return self.convert_tokens_to_ids(self.pattern.findall(text))

    def decode(self, ids, *args, **kwargs):
        return "".join(self.texts[i] for i in ([ids] if isinstance(ids, int) else ids))


def by_renderer(model, messages, prompt):
    tokenizer = Characters(model)
    return tokenizer.decode(create_renderer(tokenizer).render_ids(messages, add_generation_prompt=prompt))


def by_template(name, messages, prompt):  # in the environment that transformers compiles chat templates in
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    template = environment.from_string((Path(os.environ["TEMPLATES"]) / f"{name}.jinja").read_text())
    return template.render(messages=messages, add_generation_prompt=prompt)


question = {"role": "user", "content": "What is 2+3?"}
answer = {"role": "assistant", "content": "5"}
reasoned = {"role": "assistant", "content": "5", "reasoning_content": "Two and three."}
SIDES = {"Qwen/Qwen3-0.6B": "qwen3", "Qwen/Qwen3-4B-Instruct-2507": "qwen3_instruct_2507"}
equal = {}
for model, template in SIDES.items():
    for messages, prompt in (([question], True), ([question, answer], False), ([question, reasoned], False)):
        ours, theirs = by_renderer(model, messages, prompt), by_template(template, messages, prompt)
        equal.setdefault(model, []).append(ours == theirs)
        if ours != theirs:
            print(f"{model}\n  renderer: {ours!r}\n  template: {theirs!r}")
print(equal)
assert equal == {"Qwen/Qwen3-0.6B": [True, True, True], "Qwen/Qwen3-4B-Instruct-2507": [True, False, False]}
assert by_renderer("Qwen/Qwen3-4B-Instruct-2507", [question, answer], False).endswith("<think>\n\n</think>\n\n5<|im_end|>\n")
PYTHON
