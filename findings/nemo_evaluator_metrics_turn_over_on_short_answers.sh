#!/usr/bin/env bash
# nemo-evaluator 0.2.8 (the newest for Python 3.10 and 3.11), its built-in scorers bleu and chrf for benchmarks of
# one's own ("byob"), and sacrebleu 2.6.0, on answers of a few words. The first says of its chrF that it mirrors
# sacreBLEU's formula.
#
# Seen (nemo-evaluator, sacrebleu), chrF and chrF++ of an answer that equals the reference:
#   "no" for "no"           33.3 and 37.5     100 and 100
#   "yes" for "yes"         50.0 and 50.0     100 and 100
#   "Paris" for "Paris"     83.3 and 75.0     100 and 100
# An order of n-grams for which the text is too short counts as 0 and is not left out.
# Seen, BLEU of an answer that shares no word with the reference:
#   "no" for "yes"                        bleu_1 0.5    bleu_4 0.84   0
#   "the blue one" for "a red house"      bleu_1 0.25   bleu_4 0.45   0
# One is added to both counts of each order: for single words too, and an order without n-grams is 1 of 1.
# So by chrf a right "no" (33) is worth less than the wrong "in 1984" for "in 1985" (73); by bleu_4 a wrong word has
# 0.84.
# From memory one would say: equal texts have chrF 100, and smoothing leaves BLEU at or near 0 where no word is shared.
# What it costs: a policy paid by bleu_4 on short answers has 0.84 for any single word; a right answer adds 0.16.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q sacrebleu==2.6.0
"$folder/venv/bin/pip" install -q --no-deps nemo-evaluator==0.2.8  # without its servers; only the scorers are imported
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import sysconfig
import types

import sacrebleu

for name in ("nemo_evaluator", "nemo_evaluator.contrib", "nemo_evaluator.contrib.byob"):  # not initialised
    package = types.ModuleType(name)
    package.__path__ = ["/".join([sysconfig.get_paths()["purelib"], *name.split(".")])]
    sys.modules[name] = package

from nemo_evaluator.contrib.byob.decorators import ScorerInput
from nemo_evaluator.contrib.byob.scorers import bleu, chrf


PLACES = {"chrf": 1, "chrf_pp": 1, "bleu_1": 2, "bleu_4": 2}


def scores(response, reference):
    sample = ScorerInput(response=response, target=reference, metadata={})
    ours = {key: round(value, 3) for key, value in {**chrf(sample), **bleu(sample)}.items()}
    theirs = [
        round(sacrebleu.sentence_chrf(response, [reference]).score, 1),
        round(sacrebleu.sentence_chrf(response, [reference], word_order=2).score, 1),
        round(sacrebleu.sentence_bleu(response, [reference]).score / 100, 3),
    ]
    print(f"{response!r} for {reference!r}: {ours}; sacrebleu's chrF, chrF++, BLEU: {theirs}")
    return [round(ours[key], places) for key, places in PLACES.items()], theirs


for word, wanted in {"no": [33.3, 37.5], "yes": [50.0, 50.0], "Paris": [83.3, 75.0]}.items():
    ours, theirs = scores(word, word)
    assert ours[:2] == wanted and theirs[:2] == [100, 100]
for (response, reference), wanted in {
    ("no", "yes"): [0.5, 0.84],
    ("the blue one", "a red house"): [0.25, 0.45],
}.items():
    ours, theirs = scores(response, reference)
    assert ours[2:] == wanted and theirs[2] == 0
near, _ = scores("in 1984", "in 1985")
assert near[0] == 73.5
long = "the committee agreed to meet again in the spring of next year"
ours, theirs = scores(long, long)
assert ours[:2] == theirs[:2] == [100, 100] and ours[3] == 1 and theirs[2] == 1  # long texts are as one expects
PYTHON
