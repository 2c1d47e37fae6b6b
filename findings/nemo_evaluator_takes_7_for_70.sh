#!/usr/bin/env bash
# nemo-evaluator 0.3.0, the scorers of its own benchmarks mgsm and drop (numeric_match and fuzzy_match).
#
# Seen, mgsm with the gold answer 70 (its loader turns the gold into 7; the verdicts are the same for 70):
#   "Answer: 70", "Answer: 7" and "Answer: 700" are right; "The answer is 70." is wrong and "The answer is 7." is
#     right. Zeros at the end are cut from integers too; a full stop behind the number keeps the response's zero, not
#     the gold's.
#   With the gold 0, "I cannot solve this." is right: no number and 0 are both the empty text.
# Seen, drop: a response is right if it is a part of the gold or the gold is a part of it: for the gold "Paris" an
# empty response, "The" and "is"; for the gold "3", "Answer: 13".
# From memory one would say: numeric_match compares numbers, a zero is only cut behind a decimal point, a sentence's
# full stop does not matter, and a response that is empty fails.
# What it costs: scores of a small model are wrong in both directions, and most so for a model that answers nothing.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
# it asks for Python 3.12; the scorers run on 3.10 and 3.11 too. Only they and what registers them are imported.
"$folder/venv/bin/pip" install -q --no-deps --ignore-requires-python nemo-evaluator==0.3.0
"$folder/venv/bin/python" - <<'PYTHON'
import sys
import sysconfig
import types

package = types.ModuleType("nemo_evaluator")  # stands in for the package's __init__, which imports servers and clients
package.__path__ = [sysconfig.get_paths()["purelib"] + "/nemo_evaluator"]
sys.modules["nemo_evaluator"] = package

from nemo_evaluator.benchmarks.drop import drop_scorer
from nemo_evaluator.benchmarks.mgsm import mgsm_scorer
from nemo_evaluator.scoring import ScorerInput


def right(scorer, gold, response):
    found = scorer(ScorerInput(response=response, target=gold, metadata={"correct_answers": [gold]}))["correct"]
    print(f"{scorer.__name__:12} gold {gold!r:8} {response!r:24} {found}")
    return found


for gold in ("70", str(70).rstrip("0").rstrip(".")):  # the second is what the loader of mgsm makes of it
    for response, wanted in {
        "Answer: 70": True,
        "Answer: 7": True,
        "Answer: 700": True,
        "The answer is 70.": False,
        "The answer is 7.": True,
        "Answer: 71": False,
    }.items():
        assert right(mgsm_scorer, gold, response) == wanted
assert right(mgsm_scorer, "0", "Answer: 0") and right(mgsm_scorer, "0", "I cannot solve this.")
assert not right(mgsm_scorer, "0", "Answer: 5")
for response in ("", "The", "is", "Paris"):
    assert right(drop_scorer, "Paris", response)
assert not right(drop_scorer, "Paris", "London")
assert right(drop_scorer, "3", "Answer: 13") and not right(drop_scorer, "3", "Answer: 12")
PYTHON
