"""Environments for Prime Intellect's `verifiers` package, written into a folder by the tests that play them."""

from __future__ import annotations

from pathlib import Path

VERSION = "0.4.0"

# one turn; a second reward with a weight; tasks that go wrong in every way
EQUAL = """
import time
import verifiers.v1 as vf

class EqualData(vf.TaskData):
    gold: str
    fault: str = ""

class EqualTask(vf.Task[EqualData]):
    @vf.reward
    async def right(self, trace: vf.Trace) -> float:
        if self.data.fault == "raises":
            raise RuntimeError("the reward broke")
        if self.data.fault == "hangs":
            time.sleep(600)
        if self.data.fault == "lies":
            return float("nan")
        return float(trace.last_reply == self.data.gold)

class Equal(vf.Taskset[EqualTask]):
    def load(self):
        for number in range(12):
            yield EqualTask(EqualData(prompt=f"{number}=", gold=str(number)), self.config.task)

__all__ = ["Equal"]
"""

# a reward that only a rollout can give
NEEDS = """
import verifiers.v1 as vf

class NeedsTask(vf.Task[vf.TaskData]):
    @vf.reward
    async def tidy(self, trace: vf.Trace, runtime: vf.Runtime) -> float:
        return 1.0

class Needs(vf.Taskset[NeedsTask]):
    def load(self):
        yield NeedsTask(vf.TaskData(prompt="Tidy up."), self.config.task)

__all__ = ["Needs"]
"""

# a tool, and rewards of which one has a weight
SUMS = '''
import verifiers.v1 as vf

class SumData(vf.TaskData):
    answer: str

class Adder(vf.Toolset[vf.ToolsetConfig]):
    TOOL_PREFIX = None

    @vf.tool
    def add(self, left: int, right: int) -> str:
        """Add two numbers."""
        return str(left + right)

class SumTask(vf.Task[SumData]):
    @vf.reward
    async def right(self, trace: vf.Trace) -> float:
        return float(trace.last_reply == self.data.answer)

    @vf.reward(weight=0.5)
    async def called(self, trace: vf.Trace) -> float:
        return float(bool(trace.tool_messages))

    @classmethod
    def toolsets(cls, config):
        return [Adder(vf.ToolsetConfig())]

class Sums(vf.Taskset[SumTask]):
    def load(self):
        for n in range(1, 9):
            yield SumTask(SumData(prompt=f"{n}+{n}", system_prompt="Add.", answer=str(2 * n)), self.config.task)

__all__ = ["Sums"]
'''

# the environment speaks after each turn, three times at most, and pays for each 1
TALKS = """
import verifiers.v1 as vf

class TalkTask(vf.Task[vf.TaskData]):
    @vf.reward
    async def ones(self, trace: vf.Trace) -> float:
        return sum((message.content or "").count("1") for message in trace.assistant_messages) / 3

class Talks(vf.Taskset[TalkTask]):
    def load(self):
        for number in range(12):
            yield TalkTask(vf.TaskData(prompt=f"{number}="), self.config.task)

class TalkConfig(vf.EnvConfig):
    player: vf.AgentConfig = vf.AgentConfig()

class TalkEnv(vf.Env[TalkConfig]):
    async def run(self, task, agents):
        async with agents.player.interaction(task) as talk:
            segment = await talk.turn()
            for question in ("2=", "3="):
                if segment.terminated:
                    return
                if "boom" in segment.last_reply:
                    raise RuntimeError("the environment broke")
                segment = await talk.turn(question)

__all__ = ["Talks", "TalkEnv"]
"""


def written(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name, source in (("equal", EQUAL), ("needs", NEEDS), ("sums", SUMS), ("talks", TALKS)):
        (folder / f"{name}.py").write_text(source)
    return folder
