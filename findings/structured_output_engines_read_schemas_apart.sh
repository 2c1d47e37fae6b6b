#!/usr/bin/env bash
# xgrammar 0.2.7 and llguidance 1.7.6, two engines that vLLM offers for structured output, read one JSON Schema apart.
#
# Seen, against jsonschema 4.26.0:
#   {"type": "string", "pattern": "b"} and "abc": valid; llguidance accepts, xgrammar refuses: it anchors the pattern
#   an object with a property the schema does not name: valid; llguidance accepts, xgrammar refuses (strict by default)
#   {"allOf": [{"type": "integer"}, {"minimum": 5}]} and 3: invalid; llguidance refuses, xgrammar accepts, with a warning
#   {"not": {"type": "string"}} and "a": invalid; llguidance refuses the schema, xgrammar accepts the value
#   {"type": "object"} with properties a, b and {"b": 1, "a": 2}: valid; both refuse: order of properties is fixed
#   "format": "email" and "x": valid (annotation only); both refuse
# From memory one would say: a pattern is a search, undeclared properties are allowed, what cannot be expressed raises.
# So with "auto", which engine vLLM takes decides which answers a policy can give, and some it forces are invalid.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0+cpu 2>/dev/null ||  # else from the index of its CPU builds
  "$folder/venv/bin/pip" install -q --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
"$folder/venv/bin/pip" install -q numpy==2.4.6
"$folder/venv/bin/pip" install -q transformers==5.17.0 pydantic typing_extensions apache-tvm-ffi==0.1.15.post2
"$folder/venv/bin/pip" install -q --no-deps xgrammar==0.2.7  # without triton, which only its GPU kernels use
"$folder/venv/bin/pip" install -q llguidance==1.7.6 jsonschema==4.26.0
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import json

import jsonschema
import xgrammar
from llguidance import LLMatcher, LLTokenizer

letters = [chr(i) for i in range(128)] + ["<eos>"]
compiler = xgrammar.GrammarCompiler(
    xgrammar.TokenizerInfo(letters, vocab_type=xgrammar.VocabType.RAW, stop_token_ids=[128])
)


def by_xgrammar(schema, text):
    matcher = xgrammar.GrammarMatcher(compiler.compile_json_schema(json.dumps(schema)))
    return all(matcher.accept_token(ord(letter)) for letter in text) and matcher.accept_token(128)


def by_llguidance(schema, text):
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema))
    if LLMatcher.validate_grammar(grammar):
        return None
    matcher = LLMatcher(LLTokenizer("byte"), grammar)
    return matcher.consume_tokens(list(text.encode())) and matcher.is_accepting()


pair = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}
cases = [  # schema, value, valid, xgrammar, llguidance (None: refuses the schema)
    ({"type": "string", "pattern": "b"}, '"abc"', True, False, True),
    ({"type": "object", "properties": {"a": {"type": "integer"}}}, '{"a": 1, "z": 2}', True, False, True),
    ({"allOf": [{"type": "integer"}, {"minimum": 5}]}, "3", False, True, False),
    ({"not": {"type": "string"}}, '"a"', False, True, None),
    (pair, '{"b": 1, "a": 2}', True, False, False),
    ({"type": "string", "format": "email"}, '"x"', True, False, False),
]
for schema, text, *expected in cases:
    seen = [jsonschema.Draft202012Validator(schema).is_valid(json.loads(text)), by_xgrammar(schema, text),
            by_llguidance(schema, text)]
    print(f"{json.dumps(schema)[:70]:70} {text:18} valid {seen[0]} xgrammar {seen[1]} llguidance {seen[2]}")
    assert seen == expected, (schema, text, seen, expected)
PYTHON
