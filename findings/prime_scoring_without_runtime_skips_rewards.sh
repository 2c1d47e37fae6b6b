#!/usr/bin/env bash
# verifiers 0.4.0 (Prime Intellect): a task with two rewards, of which one takes the runtime, scored on a finished conversation
# with Task.score(trace), as its own `replay` command re-scores saved rollouts.
#
# Seen: the reward that takes the runtime is left out: no error, no entry in trace.rewards, nothing on the console, and
# trace.reward is the sum of the others. With a default for the parameter it is called with it. A wrong answer that the skipped
# reward would have punished is full marks.
# From memory one would say: a reward that cannot be computed raises, or is None in trace.rewards, where the package itself
# puts None for a reward that should have run.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q verifiers==0.4.0
"$folder/venv/bin/python" - <<'PYTHON'
import asyncio

import verifiers.v1 as vf


class Checked(vf.Task[vf.TaskData]):
    @vf.reward
    async def polite(self, trace: vf.Trace) -> float:
        return 1.0

    @vf.reward(weight=-1.0)
    async def wrong(self, trace: vf.Trace, runtime: vf.Runtime) -> float:
        return 1.0


class WithDefault(Checked):
    @vf.reward(weight=-1.0)
    async def wrong(self, trace: vf.Trace, runtime: vf.Runtime | None = None) -> float:
        return 1.0


def scored(kind):
    task = kind(vf.TaskData(prompt="1+1"))
    nodes = [vf.MessageNode(message=vf.UserMessage(content="1+1")),
             vf.MessageNode(parent=0, message=vf.AssistantMessage(content="3, please"), sampled=True)]
    trace = vf.Trace(task=vf.TraceTask(type=kind.__name__, data=task.data), nodes=nodes, is_completed=True, ok=True,
                     agent=vf.AgentInfo(config=vf.AgentConfig(model="policy")))
    asyncio.run(task.score(trace))
    return trace.reward, dict(trace.rewards)


seen = [scored(Checked), scored(WithDefault)]
print(seen)
assert seen[0][0] == 1.0 and set(seen[0][1]) == {"polite"}, seen
assert seen[1][0] == 0.0 and set(seen[1][1]) == {"polite", "wrong"}, seen
PYTHON
