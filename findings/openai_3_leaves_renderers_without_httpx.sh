#!/usr/bin/env bash
# openai 3 depends on httpx2 in place of httpx: renderers 0.1.12, which asks for openai >= 1.108.1 and imports httpx
# without asking for it, cannot be imported after a plain installation.
#
# Seen: `import renderers` ends with "No module named 'httpx'"; with openai 2.50.0 it works. The cause of openai's own
# APIConnectionError is a class of httpx2, which is no subclass of httpx's, so that a handler for httpx's errors misses it.
# From memory one would say: openai brings httpx along, and its connection errors are caused by httpx's.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
try() {  # try VERSION: what `import renderers` prints with this openai
  python3 -m venv "$folder/$1"
  "$folder/$1/bin/pip" install -q renderers==0.1.12 "openai==$1"
  "$folder/$1/bin/python" -c "import renderers; print('imported')" 2>&1 | tail -n 1
}
for version in 2.50.0 3.57.0; do echo "openai $version: $(try $version)"; done | tee "$folder/seen"
grep -qx "openai 2.50.0: imported" "$folder/seen"
grep -qx "openai 3.57.0: ModuleNotFoundError: No module named 'httpx'" "$folder/seen"
"$folder/3.57.0/bin/pip" install -q httpx==0.28.1
"$folder/3.57.0/bin/python" - <<'PYTHON'
import socket

import httpx
import openai

with socket.socket() as free:  # a port at which nobody answers
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
try:
    openai.OpenAI(api_key="-", base_url=f"http://127.0.0.1:{port}/v1", max_retries=0).models.list()
    raise SystemExit("somebody answered")
except openai.APIConnectionError as error:
    cause = type(error.__cause__)
print("cause:", f"{cause.__module__}.{cause.__name__}")
assert cause.__module__.startswith("httpx2") and not issubclass(cause, httpx.HTTPError)
PYTHON
