"""Tool calls of many episodes at once: each with a deadline, and each on the rank that holds its episode's tools.

A call that raises is an answer to the policy; one that does not return in time, or that says the tool itself is broken,
is a fault of its own episode alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from pipeline.config.schema import Tools
from pipeline.data.tool_schemas import ToolSet
from pipeline.distributed import ranks
from verifiers import sandbox
from verifiers._secrets import hidden
from verifiers.deadline import DeadlinePool, Job
from verifiers.tools import Toolbox, ToolBroken, ToolError, ToolLate


class Numbered(Protocol):
    number: int


E = TypeVar("E", bound=Numbered)


@dataclass(frozen=True, slots=True)
class Called:
    """What a call gave. fine: whether it returned; else text says what was wrong with it."""

    text: str
    fine: bool

    @classmethod
    def of(cls, box: Toolbox, name: str, arguments: Mapping[str, Any]) -> Called:
        """Raises ToolBroken."""
        try:
            return cls(box.call(name, arguments), True)
        except ToolError as exc:
            return cls(str(exc), False)
        except ToolBroken:
            raise
        except Exception as exc:  # the untrusted border: a user's tool; the policy reads what it raised
            return cls(hidden(f"{type(exc).__name__}: {exc}"), False)


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """fault: `tool_timeout` or `tool_broken`, and text says more; else value is what the function returned."""

    value: Any = None
    fault: str = ""
    text: str = ""


class ToolRuns(Generic[E]):
    """The tools of `count` episodes; this rank holds its share of them."""

    def __init__(self, tools: ToolSet, count: int, settings: Tools) -> None:
        self._mine = ranks.share(count)
        self._boxes: dict[int, Toolbox] = {}
        self._tools, self._timeout_s = tools, settings.timeout_s
        # twice the sandbox's workers: one call waits while another runs, and none waits long
        self._pool = DeadlinePool(2 * sandbox.size())

    def each(
        self, episodes: Sequence[E], function: Callable[[Toolbox, E], Any], *, jobs: Callable[[E], int] = lambda _: 1
    ) -> Iterator[tuple[E, RunOutcome]]:
        """function(its tools, episode) for every episode, many at once; in order, the same on every rank.

        jobs: number of calls that the function makes for an episode; each has its seconds.
        """
        mine = [one for one in episodes if one.number in self._mine]
        submitted = [self._pool.submit(partial(self._run, function, one), self._timeout_s * max(jobs(one), 1))
                     for one in mine]  # fmt: skip
        self._pool.wait(submitted)
        by_number = dict(ranks.gather([(one.number, self._outcome(one, job))
                                       for one, job in zip(mine, submitted, strict=True)]))  # fmt: skip
        for one in episodes:
            yield one, by_number[one.number]

    def _run(self, function: Callable[[Toolbox, E], Any], one: E) -> Any:
        if one.number not in self._boxes:
            self._boxes[one.number] = self._tools.open()
        return function(self._boxes[one.number], one)

    def _outcome(self, one: E, job: Job) -> RunOutcome:
        if job.late:
            self._boxes.pop(one.number, None)  # a thread still uses it
            return RunOutcome(None, "tool_timeout", f"a tool did not return within {job.timeout_s:g} s")
        if job.exception is not None:
            fault = "tool_timeout" if isinstance(job.exception, ToolLate) else "tool_broken"
            return RunOutcome(None, fault, hidden(f"{type(job.exception).__name__}: {job.exception}"))
        return RunOutcome(job.result)

    def close(self) -> None:
        """Close every session, each with the same deadline."""
        closing = [self._pool.submit(box.close, self._timeout_s) for box in self._boxes.values()]
        self._pool.wait(closing)
        self._boxes.clear()
        self._pool.close()
