#!/usr/bin/env bash
# sacrebleu 2.6.0 with the references in the other order, as ragas 0.4.3 passes them in its BleuScore.
#
# Seen: corpus_bleu wants one list for each set of references. Given one list for each sentence, as in NLTK, it raises nothing:
# two hypotheses with [[reference 1], [reference 2]] are scored as the first hypothesis alone, against both references, so the
# second may be anything: BLEU 100, hyp_len 8 of 17 tokens. chrF and TER drop it too (100 and 0).
# ragas splits response and reference at ". " and passes them like that: a response whose second sentence is unrelated has 1.0,
# one that stops after the first sentence 0.87, and one with the right second and a wrong first sentence 0.06.
# From memory one would say: lists of other lengths raise, as they do in most metrics; ragas gives the BLEU of the response.
# What it costs: as a reward or a metric of longer answers it reads their first sentence and nothing else.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q sacrebleu==2.6.0 pydantic==2.14.4
"$folder/venv/bin/pip" install -q --no-deps --target "$folder/packages" ragas==0.4.3
PACKAGES="$folder/packages" "$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import os
import sys
import types
from pathlib import Path

import sacrebleu

first, second = "The cat sat on the mat today.", "The dog slept in the warm kitchen all day."
unrelated = "Nobody knows what happened next in this story."
bleu = sacrebleu.corpus_bleu([first, unrelated], [[first], [second]])
print("sacrebleu, one list for each sentence:", bleu)
print("sacrebleu, one list for each set:     ", sacrebleu.corpus_bleu([first, unrelated], [[first, second]]))
assert bleu.score > 99.9 and bleu.sys_len == 8
assert sacrebleu.corpus_chrf([first, unrelated], [[first], [second]]).score > 99.9
assert sacrebleu.corpus_ter([first, unrelated], [[first], [second]]).score == 0
assert sacrebleu.corpus_bleu([first, unrelated], [[first, second]]).score < 60

root = Path(os.environ["PACKAGES"])
for name in ("ragas", "ragas.metrics", "ragas.metrics.collections"):  # packages without what their __init__ imports
    module = types.ModuleType(name)
    module.__path__ = [str(root.joinpath(*name.split(".")))]
    sys.modules[name] = module
base = types.ModuleType("ragas.metrics.collections.base")  # the class of all metrics imports the clients of model servers
base.BaseMetric = type("BaseMetric", (), {"__init__": lambda self, **options: None})
sys.modules[base.__name__] = base
from ragas.metrics.collections._bleu_score import BleuScore

reference = f"{first} {second}"
responses = {"the reference": reference, "wrong second": f"{first} {unrelated}", "first alone": first,
             "wrong first": f"{unrelated} {second}"}
scores = {name: asyncio.run(BleuScore().ascore(reference=reference, response=text)).value for name, text in responses.items()}
print("ragas:", scores)
assert scores["wrong second"] > 0.999 and scores["first alone"] > 0.8 and scores["wrong first"] < 0.1
PYTHON
