#!/usr/bin/env bash
# inspect_ai 0.3.285: the scorer match() takes the sign of a negative target for punctuation, and drops it.
#
# Seen: with target "-42", match() marks the answers "42" and "The result is 142" as correct; exact() marks "42" as correct too.
# With numeric=True signs count, but a number that touches %, ^ or a LaTeX brace is no number: "42%" and "\boxed{42}" are
# wrong for 42, while "42 apples", "**42**" and "1,042" for 1042 are read. answer("line") keeps a final full stop
# ("ANSWER: 42." is wrong for 42) and answer("word") drops it; answer("letter") reads "C or D" as C, and no letter in "**C**".
# From memory one would say: match() asks whether the text ends with the target, ignoring case and final punctuation, so an
# answer without the target's minus is wrong; and numeric=True is the laxer of the two.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q inspect-ai==0.3.285
"$folder/venv/bin/python" - <<'PYTHON'
import asyncio

from inspect_ai.model import ChatMessageUser, ModelName, ModelOutput
from inspect_ai.scorer import Target, answer, exact, match
from inspect_ai.solver import TaskState


def grade(scorer, text, target):
    output = ModelOutput.from_content("m", text)
    state = TaskState(model=ModelName("mockllm/model"), sample_id=1, epoch=1, input="q",
                      messages=[ChatMessageUser(content="q")], output=output)
    value = asyncio.run(scorer(state, Target(target))).value
    print(f"{scorer.__qualname__.split('.')[0]:8} {text!r:24} for {target!r:6} {value}")
    return "C" if value in ("C", 1, 1.0) else "I"


assert grade(match(), "42", "-42") == grade(match(), "The result is 142", "-42") == grade(exact(), "42", "-42") == "C"
numeric = match(numeric=True)
assert grade(numeric, "42", "-42") == "I" and grade(numeric, "-42", "-42") == "C"
assert [grade(numeric, t, "42") for t in ("42%", r"\boxed{42}", "42 apples", "**42**")] == ["I", "I", "C", "C"]
assert grade(numeric, "1,042", "1042") == "C"
assert (grade(answer("line"), "ANSWER: 42.", "42"), grade(answer("word"), "ANSWER: 42.", "42")) == ("I", "C")
assert (grade(answer("letter"), "ANSWER: C or D", "C"), grade(answer("letter"), "ANSWER: **C**", "C")) == ("C", "I")
PYTHON
