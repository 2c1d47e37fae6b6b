#!/usr/bin/env bash
# ollama 0.6.3 (Python client), transformers 5.24.0 and langchain-core 1.8.3 make a tool's JSON Schema of one Python
# function.
#
# Seen in the request that ollama sends for chat(tools=[book]), and from the other two:
#                                        ollama                     transformers            langchain-core
#   required                             also what has a default    without a default       without a default
#   kind: Literal["room", "suite"]       {"type": "string"}         enum                    enum
#   tags: list[str] | None = None        {"type": "array"}          items                   items
#   seat: int | str                      "integer, string" or "string, integer", by the hash seed of the process
#                                                                   ["integer", "string"]   anyOf
#   nights: int = 2                      no default                 no default              default
#   stars: Annotated[int, Field(le=5)]   no limit                   no limit                maximum
#   prices: dict[str, int]               {"type": "object"}         integers                integers; with strict=True:
#                                                                   an object that may hold nothing ({} alone is valid)
# ollama's schema comes from pydantic; of each parameter the names of its types and the description are then kept.
# Parameters with None among their types are taken off "required", those with a default are not.
# From memory one would say: an argument with a default is optional, a Literal is an enum, and a function gives one
# schema in each process.
# What it costs: prompts of one tool differ between the client that made the training data and the one that serves the
# model, with unions even between two runs; and the model is told to write every argument, and not which kinds exist.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q ollama==0.6.3 transformers==5.24.0 langchain-core==1.8.3 jsonschema==4.26.0
cat > "$folder/show.py" <<'PYTHON'
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Annotated, Literal

import jsonschema
import ollama
from langchain_core.utils.function_calling import convert_to_openai_function
from pydantic import Field
from transformers.utils import get_json_schema


def book(
    city: str, kind: Literal["room", "suite"], seat: int | str, prices: dict[str, int], nights: int = 2,
    tags: list[str] | None = None, stars: Annotated[int, Field(le=5)] = 3,
) -> str:
    """Book a hotel.

    Args:
        city: The city
        kind: What is booked
        seat: Number or name of the seat
        prices: Price of each extra
        nights: How many nights
        tags: Notes
        stars: Stars of the hotel
    """


sent = []


class Server(BaseHTTPRequestHandler):
    def do_POST(self):
        sent.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        reply = json.dumps({"model": "m", "message": {"role": "assistant", "content": ""}, "done": True}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Server)
threading.Thread(target=server.serve_forever, daemon=True).start()
client = ollama.Client(f"http://127.0.0.1:{server.server_port}", trust_env=False)
client.chat("m", [{"role": "user", "content": "A room in Rome"}], tools=[book])
by_ollama = sent[0]["tools"][0]["function"]["parameters"]
seat = by_ollama["properties"]["seat"]["type"]
print("seat by ollama:", seat)
if len(sys.argv) > 1:
    sys.exit()
by_transformers = get_json_schema(book)["function"]["parameters"]
by_langchain = convert_to_openai_function(book)["parameters"]
strict = convert_to_openai_function(book, strict=True)["parameters"]["properties"]["prices"]
for name, schema in (("ollama", by_ollama), ("transformers", by_transformers), ("langchain-core", by_langchain)):
    print(name, "requires", schema["required"])
    print(*(f"  {key}: {json.dumps(value)}" for key, value in schema["properties"].items()), sep="\n")
print("langchain-core, strict:", strict)
needed = ["city", "kind", "seat", "prices"]
assert by_ollama["required"] == [*needed, "nights", "stars"]
assert by_transformers["required"] == by_langchain["required"] == needed
words = {key: {k: v for k, v in value.items() if k != "description"} for key, value in by_ollama["properties"].items()}
assert words.pop("seat") in ({"type": "integer, string"}, {"type": "string, integer"})
types = ["string", "string", "object", "integer", "array", "integer"]
assert list(words.values()) == [{"type": word} for word in types]
for schema in (by_transformers, by_langchain):
    assert schema["properties"]["kind"]["enum"] == ["room", "suite"]
    assert '"items": {"type": "string"}' in json.dumps(schema["properties"]["tags"])
    jsonschema.validate({"a": 1}, schema["properties"]["prices"])
assert by_transformers["properties"]["seat"]["type"] == ["integer", "string"]
assert not {"default", "maximum"} & {key for value in by_transformers["properties"].values() for key in value}
assert by_langchain["properties"]["nights"]["default"] == 2 and by_langchain["properties"]["stars"]["maximum"] == 5
validator = jsonschema.Draft202012Validator(strict)
assert validator.is_valid({}) and not validator.is_valid({"a": 1})
PYTHON
"$folder/venv/bin/python" "$folder/show.py" 2>&1 | grep -v "PyTorch was not found"
for seed in 0 1; do PYTHONHASHSEED=$seed "$folder/venv/bin/python" "$folder/show.py" seat; done 2>&1 | grep "^seat" |
  tee "$folder/seats"
test "$(sort -u "$folder/seats" | wc -l)" = 2
