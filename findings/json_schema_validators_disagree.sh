#!/usr/bin/env bash
# Three JSON Schema validators for Python give three verdicts on plain schemas of draft 2020-12.
#
# Seen with jsonschema 4.26.0, fastjsonschema 2.22.3 and jsonschema-rs 0.61.2:
#   {"multipleOf": 0.01} and 4.35          refused, accepted, accepted (division of binary floats)
#   {"pattern": "^a$"} and "a\n"           accepted, refused, refused (Python's $ also matches before a last newline)
#   {"pattern": "^\\d$"} and an Arabic digit  accepted, accepted, refused (ECMA's \d is ASCII)
#   {"format": "date"} and "2024-02-30"    accepted, refused, accepted (asserted by fastjsonschema only)
#   {"dependentRequired": {"a": ["b"]}}    refused, accepted, refused on {"a": 1} (fastjsonschema knows drafts up to 7)
# From memory one would say: validators that pass the official test suite agree on multipleOf, pattern and format.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q jsonschema==4.26.0 fastjsonschema==2.22.3 jsonschema-rs==0.61.2
"$folder/venv/bin/python" - <<'PYTHON'
import fastjsonschema
import jsonschema
import jsonschema_rs

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def verdicts(schema, value):
    schema = {"$schema": DIALECT, **schema}
    try:
        fastjsonschema.compile(schema)(value)
        fast = True
    except fastjsonschema.JsonSchemaValueException:
        fast = False
    return (jsonschema.Draft202012Validator(schema).is_valid(value), fast, jsonschema_rs.validator_for(schema).is_valid(value))


cases = [
    ({"multipleOf": 0.01}, 4.35, (False, True, True)),
    ({"pattern": "^a$"}, "a\n", (True, False, False)),
    ({"pattern": "^\\d$"}, "\u0663", (True, True, False)),
    ({"type": "string", "format": "date"}, "2024-02-30", (True, False, True)),
    ({"type": "object", "dependentRequired": {"a": ["b"]}}, {"a": 1}, (False, True, False)),
]
for schema, value, expected in cases:
    seen = verdicts(schema, value)
    print(schema, repr(value), seen)
    assert seen == expected, (schema, value, seen, expected)
PYTHON
