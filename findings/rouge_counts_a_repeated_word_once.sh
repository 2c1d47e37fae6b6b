#!/usr/bin/env bash
# rouge 1.0.1, rouge-chinese 1.0.3 and rouge-score 0.1.2, three packages that give ROUGE as F1 of n-grams, on repeated text.
#
# Seen (rouge, rouge-chinese, rouge-score):
#   "cat cat cat cat cat cat" for "cat"            ROUGE-1   1.0    1.0    0.286     ROUGE-L   1.0    0.286  0.286
#   a sentence three times for the sentence once   ROUGE-1   1.0    1.0    0.5       ROUGE-L   1.0    0.5    0.5
#   the same, ROUGE-2                                        0.8    0.857  0.4
#   two sentences in the other order               ROUGE-L   1.0    0.5    0.5
#   "The answer is 42." for "the answer is 42"     ROUGE-1   0.75   0.5    1.0       ROUGE-L   0.75   0.5    1.0
# The first two count sets of n-grams (exclusive=True), so each n-gram counts once however often it is written; rouge does so
# in its ROUGE-L too, which it adds up over sentences.
# From memory one would say: counts are clipped, so what is repeated beyond the reference lowers precision, and three packages
# of one metric differ in stemming at most.
# What it costs: a policy that is paid by ROUGE-1 or ROUGE-2 repeats itself for free, and figures of one table made with two of
# the packages cannot be compared.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q rouge==1.0.1 rouge-chinese==1.0.3 rouge-score==0.1.2
"$folder/venv/bin/python" - <<'PYTHON'
import rouge
import rouge_chinese
from rouge_score import rouge_scorer

sentence = "the cat sat ."
CASES = {
    ("cat cat cat cat cat cat", "cat"): [(1.0, 0.0, 1.0), (1.0, 0.0, 0.286), (0.286, 0.0, 0.286)],
    (" ".join([sentence] * 3), sentence): [(1.0, 0.8, 1.0), (1.0, 0.857, 0.5), (0.5, 0.4, 0.5)],
    ("one two three. four five six.", "four five six. one two three."): [(1.0, 0.8, 1.0), (1.0, 0.8, 0.5), (1.0, 0.8, 0.5)],
    ("The answer is 42.", "the answer is 42"): [(0.75, 0.667, 0.75), (0.5, 0.333, 0.5), (1.0, 1.0, 1.0)],
}
scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
for (text, reference), wanted in CASES.items():
    seen = []
    for package in rouge, rouge_chinese:
        scores = package.Rouge().get_scores(text, reference)[0]
        seen.append(tuple(round(scores[name]["f"], 3) for name in ("rouge-1", "rouge-2", "rouge-l")))
    scores = scorer.score(reference, text)
    seen.append(tuple(round(scores[name].fmeasure, 3) for name in ("rouge1", "rouge2", "rougeL")))
    print(text, "|", reference, seen)
    assert seen == wanted, (text, reference)
PYTHON
