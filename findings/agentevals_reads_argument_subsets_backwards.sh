#!/usr/bin/env bash
# agentevals 0.0.9 and openevals 0.2.2 (which the first installs), create_trajectory_match_evaluator of each, with the
# same options. A trajectory has one turn with calls of a tool; tool_args_match_mode="superset" is to let a call have
# arguments beyond the reference's, "subset" is to let it have fewer.
#
# Seen (agentevals, openevals):
#   mode "subset", arguments "superset"       the model gives one more   False  True      one fewer   True   False
#   mode "subset", arguments "subset"         the model gives one more   True   False     one fewer   False  True
#   mode "unordered", arguments "superset"    the model gives one more   False  True
#   modes "strict" and "superset": both packages agree and do what they say
#   mode "unordered", the model makes the reference's own two calls in the other order: True True with arguments
#     "exact", but False False with "superset" and False True with "subset"
#   fields ["q", "limit"] to compare, the same q and no limit in either call: True False
# The modes "subset" and "unordered" exchange model and reference; only the second package exchanges them back before
# the arguments are compared. Each call takes the first one that fits, so a call that fits two can take the other's
# only match.
# From memory one would say: the two packages of one team agree; "superset" of arguments is looser than "exact", never
# stricter; unordered ignores the order; a field that both calls leave out is equal.
# What it costs: with "subset" and "superset" in agentevals a call that lacks an argument of the reference passes, and
# one that adds an argument fails; moving a test from one package to the other turns its verdicts round.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q agentevals==0.0.9 openevals==0.2.2 langchain==1.5.2 langchain-core==1.8.3 \
  langchain-openai==1.7.4 langsmith==0.15.1
LANGSMITH_TRACING=false "$folder/venv/bin/python" - <<'PYTHON'
import json

from agentevals.trajectory.match import create_trajectory_match_evaluator as first
from openevals.trajectory.match import create_trajectory_match_evaluator as second


def trajectory(*calls):
    calls = [
        {"id": f"call_{n}", "type": "function", "function": {"name": "search", "arguments": json.dumps(arguments)}}
        for n, arguments in enumerate(calls)
    ]
    return [{"role": "user", "content": "Find it."}, {"role": "assistant", "content": "", "tool_calls": calls}]


def verdicts(mode, arguments, model, reference, **more):
    found = []
    for evaluator in first, second:
        judge = evaluator(trajectory_match_mode=mode, tool_args_match_mode=arguments, **more)
        found.append(judge(outputs=trajectory(*model), reference_outputs=trajectory(*reference))["score"])
    print(f"mode {mode:10} arguments {arguments:9} model {model} reference {reference} {more or ''}: {found}")
    return found


PLAIN, LIMITED = {"q": "cats"}, {"q": "cats", "limit": 5}
for mode, arguments, more, fewer in (
    ("subset", "superset", [False, True], [True, False]),
    ("subset", "subset", [True, False], [False, True]),
    ("unordered", "superset", [False, True], [False, False]),
    ("strict", "superset", [True, True], [False, False]),
    ("superset", "superset", [True, True], [False, False]),
    ("strict", "subset", [False, False], [True, True]),
    ("superset", "subset", [False, False], [True, True]),
):
    assert verdicts(mode, arguments, [LIMITED], [PLAIN]) == more
    assert verdicts(mode, arguments, [PLAIN], [LIMITED]) == fewer
for arguments, wanted in {"exact": [True, True], "superset": [False, False], "subset": [False, True]}.items():
    assert verdicts("unordered", arguments, [LIMITED, PLAIN], [PLAIN, LIMITED]) == wanted
    assert verdicts("unordered", arguments, [LIMITED, PLAIN], [LIMITED, PLAIN]) == [True, True]
fields = {"tool_args_match_overrides": {"search": ["q", "limit"]}}
assert verdicts("strict", "exact", [PLAIN], [PLAIN], **fields) == [True, False]
assert verdicts("strict", "exact", [LIMITED], [LIMITED], **fields) == [True, True]
PYTHON
