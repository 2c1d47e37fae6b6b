#!/usr/bin/env bash
# lighteval 0.13.0: what its tasks for AIMO and MATH pay, by their own metrics, on a number with and without \boxed{}.
#
# Seen: the normaliser of both tasks gives the content of the last \boxed{}, and the empty text where there is none; it is
# applied to the gold too. AIMO's golds are bare numbers, so all are empty: for gold 57, "The answer is 12." and "57" are
# right, "The answer is $\boxed{57}$." is wrong. The metric of the MATH tasks, maj@4, has no normaliser of these names: it
# sets them without a word and compares the whole answer with the whole reference solution, so four times
# "The answer is $\boxed{57}$." is wrong and four copies of the reference's text are right.
# helm_normalizer, offered beside it for exact match and F1, reads 3.5 as 35, -5 as 5, and 1.0 as 10, so 1.0 is not 1.
# From memory one would say: an answer in a box is compared with the gold, one without is wrong, and maj@4 votes on the boxes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0+cpu 2>/dev/null ||  # else from the index of its CPU builds
  "$folder/venv/bin/pip" install -q --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
"$folder/venv/bin/pip" install -q lighteval==0.13.0 transformers==5.17.0
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
from lighteval.metrics.normalizations import helm_normalizer
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.tasks import aimo, math

problem = "How many?"
aimo_row = aimo.aimo_prompt({"problem": problem, "answer": 57})
math_row = math.math_prompt({"problem": problem, "solution": r"There are $\boxed{57}$."})


def paid(task, row, text, samples=1):
    (score,) = task.metrics[0].compute_sample(doc=row, model_response=ModelResponse(text=[text] * samples)).values()
    return score


expected = {r"The answer is $\boxed{57}$.": (0, 0), "57": (1, 0), "The answer is 12.": (1, 0), r"There are $\boxed{57}$.": (0, 1)}
for text, scores in expected.items():
    seen = paid(aimo.task, aimo_row, text), paid(math.math_algebra, math_row, text, samples=4)
    print(f"gold 57 | {text} | AIMO {seen[0]}, MATH maj@4 {seen[1]}")
    assert seen == scores, text
for one, other in (("3.5", "35"), ("-5", "5"), ("1.0", "10")):
    print(f"HELM: {one} and {other} are {helm_normalizer(one)} and {helm_normalizer(other)}")
    assert helm_normalizer(one) == helm_normalizer(other)
assert helm_normalizer("1.0") != helm_normalizer("1")
PYTHON
