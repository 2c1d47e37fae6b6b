#!/usr/bin/env bash
# outlines-core 0.2.14 and llguidance 1.9.1 build a constraint from one JSON Schema; the texts they allow differ.
#
# Seen (outlines-core writes a regular expression, llguidance a grammar; R: the schema is refused):
#   {"type": "integer", "minimum": 5} and 3              outlines-core allows it, llguidance does not
#   {"type": "integer", "multipleOf": 5} and 7           outlines-core allows it, llguidance does not
#   an array with uniqueItems and [1,1]                  outlines-core allows it, llguidance R
#   oneOf integer or number, and 1 (valid for both)      outlines-core allows it, llguidance R
#   {"type": "string", "format": "date"}, "2024-02-30"   outlines-core allows it, llguidance does not
#   an undeclared property                               outlines-core forbids it, llguidance allows it
#   line breaks between members                          outlines-core forbids them, llguidance allows them
#   1.0 for an integer, "\u0041" for a string            valid JSON and valid by schema; forbidden by both
#   properties in another order than the schema's        valid; forbidden by both
# From memory one would say: a constrained generation is valid by its schema, and a keyword that an engine cannot express
# raises. So the same schema under two engines gives two sets of answers, one of them with invalid values.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q outlines-core==0.2.14 llguidance==1.9.1 jsonschema==4.26.0
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import json
import re

import jsonschema
from llguidance import LLMatcher, LLTokenizer
from outlines_core.json_schema import build_regex_from_schema


def by_outlines(schema, text):
    return re.fullmatch(build_regex_from_schema(json.dumps(schema)), text) is not None


def by_llguidance(schema, text):
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema))
    if LLMatcher.validate_grammar(grammar):
        return None
    matcher = LLMatcher(LLTokenizer("byte"), grammar)
    return matcher.consume_tokens(list(text.encode())) and matcher.is_accepting()


one = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
two = {"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}
cases = [  # schema, text, valid, outlines-core, llguidance (None: refuses the schema)
    ({"type": "integer", "minimum": 5}, "3", False, True, False),
    ({"type": "integer", "multipleOf": 5}, "7", False, True, False),
    ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "[1,1]", False, True, None),
    ({"oneOf": [{"type": "integer"}, {"type": "number"}]}, "1", False, True, None),
    ({"type": "string", "format": "date"}, '"2024-02-30"', True, True, False),
    (one, '{"a":1,"z":2}', True, False, True),
    (one, '{\n  "a": 1\n}', True, False, True),
    (two, '{"b":1,"a":2}', True, False, False),
    ({"type": "integer"}, "1.0", True, False, False),
    ({"type": "string"}, '"\\u0041"', True, False, False),
]
for schema, text, *expected in cases:
    valid = jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))
    seen = [valid, by_outlines(schema, text), by_llguidance(schema, text)]
    print(f"{json.dumps(schema)[:72]:72} {text!r:20} valid {seen[0]} outlines-core {seen[1]} llguidance {seen[2]}")
    assert seen == expected, (schema, text, seen, expected)
PYTHON
