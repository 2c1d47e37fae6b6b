#!/usr/bin/env bash
# langdetect 1.0.9, which IFEval and the RLVR functions use to check the language and the case of an answer.
#
# Seen, with the seed fixed: "YES" is Welsh, "NO" Vietnamese, "HELLO WORLD" Somali, "A" Tagalog, "etchings" German, "Hello"
# Finnish or Norwegian; a number has no language and raises. "The answer is 4." is English, in capitals too.
# IFEval's rule for capitals wants upper case and English, so YES fails it: five of the 832 published verdicts on GPT-4.
# From memory one would say: the check for capitals tests the case, and a seed makes the detector right on plain English.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q langdetect==1.0.9
"$folder/venv/bin/python" - <<'PYTHON'
from langdetect import DetectorFactory, LangDetectException, detect

DetectorFactory.seed = 0
texts = ["YES", "NO", "HELLO WORLD", "A", "etchings", "The answer is 4.", "THE ANSWER IS 4."]
seen = {text: detect(text) for text in texts}
print(seen)
assert seen == {"YES": "cy", "NO": "vi", "HELLO WORLD": "so", "A": "tl", "etchings": "de", "The answer is 4.": "en",
                "THE ANSWER IS 4.": "en"}
assert detect("Hello") in ("fi", "no")
try:
    detect("42")
    raise SystemExit("a number has a language")
except LangDetectException as exc:
    print("42:", exc)
PYTHON
