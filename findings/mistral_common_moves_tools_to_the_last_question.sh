#!/usr/bin/env bash
# mistral-common 1.13.1, Mistral's own renderer of conversations, with the tokenizers that its package holds.
#
# Seen: a conversation with tools is rendered with the list of tools before its last user message, not at its start, by v2, v3,
# v3 tekken and v7: once the user asks again, the list moves, so the longer conversation does not start with the shorter
# one, and the calls that were made after the first question stand before any list of tools. The system message moves with
# it under v2, v3 and v3 tekken, into the text of the last question; v7 keeps it at the start.
# From memory one would say: what a system message and the tools say comes first, and a dialogue grows at its end.
# What it costs: no prefix of a dialogue with several questions is reused from a cache, a mask made by prefixes does not find the
# earlier turns, and a policy's turns trained in one rendering of the whole dialogue were sampled from other prompts.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q mistral-common==1.13.1 sentencepiece==0.2.3
"$folder/venv/bin/python" - <<'PYTHON'
from mistral_common.protocol.instruct.request import ChatCompletionRequest
from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

TOKENIZERS = {"v2": MistralTokenizer.v2(), "v3": MistralTokenizer.v3(), "v3 tekken": MistralTokenizer.v3(is_tekken=True),
              "v7": MistralTokenizer.v7()}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {}}}}]
short = [{"role": "user", "content": "first"}]
long = [*short, {"role": "assistant", "content": "answer"}, {"role": "user", "content": "second"}]
system = [{"role": "system", "content": "rules"}]


def rendered(tokenizer, messages, **options):
    return tokenizer.encode_chat_completion(ChatCompletionRequest(messages=messages, **options))


for name, tokenizer in TOKENIZERS.items():
    kept = {}
    for kind, start, options in ("plain", [], {}), ("system", system, {}), ("tools", [], {"tools": TOOLS}):
        before, after = (rendered(tokenizer, start + messages, **options) for messages in (short, long))
        kept[kind] = after.tokens[: len(before.tokens)] == before.tokens
        print(name, kind, kept[kind], after.text)
    assert kept == {"plain": True, "system": name == "v7", "tools": False}, (name, kept)
    assert after.text.index("first") < after.text.index("add") < after.text.index("second")
PYTHON
