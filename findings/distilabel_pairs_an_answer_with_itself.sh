#!/usr/bin/env bash
# distilabel 1.5.3: FormatTextGenerationDPO and FormatChatGenerationDPO make a pair of one answer with itself from
# equal ratings.
#
# Seen: for three answers with the ratings 5, 5, 5 the chosen and the rejected conversation are the same text, the
# first answer, with the same rating. It is kept and nothing is logged. Chosen is the first maximum and rejected the
# first minimum. With the ratings 4, 4, 2 the second answer is never used.
# From memory one would say: without a preference there is no pair: such a row is dropped or reported, or at least two
# different answers are taken.
# What it costs: ratings of a judge from 1 to 5 are often equal. DPO and a reward model have a loss of ln 2 on such a
# row, without a gradient; a method that also imitates the chosen answer (ORPO, CPO) imitates it whatever its rating
# is, 1 also.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q distilabel==1.5.3 datasets==5.2.0 requests==2.34.2  # not in its requirements
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" -W ignore - 2>&1 <<'PYTHON' | grep -v "received a pipeline"
from distilabel.steps import FormatChatGenerationDPO, FormatTextGenerationDPO

ANSWERS = ["Four.", "It is 4.", "2+2 is four"]
CASES = {(5, 5, 5): (0, 0), (1, 1, 1): (0, 0), (4, 4, 2): (0, 2), (2, 5, 5): (1, 0)}
for step, question in (
    (FormatTextGenerationDPO(), {"instruction": "What's 2+2?"}),
    (FormatChatGenerationDPO(), {"messages": [{"role": "user", "content": "What's 2+2?"}]}),
):
    step.load()
    rows = [{**question, "generations": ANSWERS, "ratings": list(ratings)} for ratings in CASES]
    made = next(step.process(rows))
    assert len(made) == len(CASES)  # none is dropped
    for (ratings, wanted), row in zip(CASES.items(), made, strict=True):
        pair = [row[side][-1]["content"] for side in ("chosen", "rejected")]
        print(type(step).__name__, ratings, pair, (row["chosen_rating"], row["rejected_rating"]))
        assert pair == [ANSWERS[index] for index in wanted], ratings
        assert (row["chosen"] == row["rejected"]) == (len(set(ratings)) == 1)
PYTHON
