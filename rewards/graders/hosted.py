"""Runs Python graders that other people wrote, never in this process.

isolation `sandbox` (the default): one sandboxed process per call, standard library only, no network, no files, bounded
CPU, memory and time. isolation `process`: a process of its own with this environment's packages, a scrubbed
environment and bounds on CPU and memory; it can read files and use the network, so it is for code you trust.
"""

from __future__ import annotations

import json
import math
import queue
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rewards.graders.grader_part import Grade, GraderRow
from verifiers import sandbox
from verifiers._killable import Killable, Killed

ISOLATIONS = ("sandbox", "process")
MEMORY_MB = 8192  # of a process of its own: address space, of which numerical libraries map far more than they use
REPLY_BYTES = 1 << 20
PROCESSES = 2
GUEST = Path(__file__).with_name("grader_guest.py")


class HostFailed(RuntimeError):
    """The call brought no grades: the rows are then graded one by one."""


@dataclass(frozen=True)
class HostedGrader:
    """A Python grader. style: what `grader_guest` calls it as; entry: its name in the source, "" for the only one.

    timeout_s: CPU seconds of one call; the wall time may be twice that.
    """

    style: str
    source: str
    file: str
    entry: str
    isolation: str = "sandbox"
    timeout_s: float = 30.0
    options: Mapping[str, Any] = field(default_factory=dict)
    conversational: bool = False
    # last in, first out: a second process starts only where two calls overlap
    _processes: queue.LifoQueue[Killable] = field(default_factory=queue.LifoQueue, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.isolation not in ISOLATIONS:
            raise ValueError(f"isolation: no choice {self.isolation!r}; have: {', '.join(ISOLATIONS)}")
        try:
            compile(self.source, self.file, "exec", dont_inherit=True)
        except (SyntaxError, ValueError) as exc:
            raise ValueError(f"{self.file} is not Python: {exc}") from None
        for _ in range(PROCESSES if self.isolation == "process" else 0):
            self._processes.put(Killable("rewards.graders.grader_guest:answer", cpu_s=self.timeout_s,
                                         memory_mb=MEMORY_MB))  # fmt: skip

    def unavailable(self) -> str | None:
        reason = sandbox.unavailable() if self.isolation == "sandbox" else None
        return f"{reason}; or isolation: process, for code you trust" if reason else None

    def grade(self, rows: Sequence[GraderRow]) -> list[Grade]:
        """Raises HostFailed where the call as a whole fails."""
        request = {"style": self.style, "source": self.source, "file": self.file, "entry": self.entry,
                   "options": dict(self.options), "rows": [self._given(row) for row in rows]}  # fmt: skip
        reply = self._sandboxed(request) if self.isolation == "sandbox" else self._processed(request)
        if "raised" in reply:
            raise HostFailed(str(reply["raised"]))
        return [Grade(value, str(detail)) for value, detail in reply["grades"]]

    def _given(self, row: GraderRow) -> dict[str, Any]:
        """The row as the tool that the grader was written for passes it."""
        if self.style == "trl_reward":
            task = {name: value for name, value in row.task.items() if name not in ("prompt", "completion")}
            prompts, completions = self._messages(row) if self.conversational else (row.prompt, row.completion)
            return {"task": task, "prompts": prompts, "completions": completions,
                    "completion_ids": list(row.completion_ids)}  # fmt: skip
        if self.style == "openai_python":
            return {"sample": row.task["sample"], "item": row.task["item"]}
        if self.style == "open_instruct":
            return {"tokenized_prediction": list(row.completion_ids), "prediction": row.completion,
                    "label": ground_truth(row.task), "query": row.prompt}  # fmt: skip
        return {"data_source": row.task.get("data_source", ""), "solution_str": row.completion,
                "ground_truth": ground_truth(row.task), "extra_info": row.task.get("extra_info") or {}}  # fmt: skip

    def _messages(self, row: GraderRow) -> tuple[Any, Any]:
        """Prompt and completion as TRL passes rows of conversations."""
        prompt = next((row.task[name] for name in ("prompt", "messages") if isinstance(row.task.get(name), list)), None)
        return prompt or [{"role": "user", "content": row.prompt}], [{"role": "assistant", "content": row.completion}]

    def _sandboxed(self, request: Mapping[str, Any]) -> dict[str, Any]:
        seconds = max(1, math.ceil(self.timeout_s))
        limits = sandbox.Limits(wall_s=2.0 * seconds, cpu_s=seconds)
        script = GUEST.read_text(encoding="utf-8") + "\nmain()\n"
        output = sandbox.run_script(script, json.dumps(request), output_bytes=REPLY_BYTES, limits=limits)
        if isinstance(output, str):
            raise HostFailed(output)
        try:
            reply = json.loads(output)
        except ValueError:
            raise HostFailed("the grader's process ended without a reply") from None
        assert isinstance(reply, dict)
        return reply

    def _processed(self, request: Mapping[str, Any]) -> dict[str, Any]:
        process = self._processes.get()
        try:
            reply = process.ask(request)
        except (Killed, ValueError) as exc:
            raise HostFailed(str(exc)) from None
        finally:
            self._processes.put(process)
        assert isinstance(reply, dict)
        return reply


def ground_truth(task: Mapping[str, Any]) -> Any:
    """The answer to compare with, under the names that verl's and open-instruct's rows and ours have for it.

    Raises HostFailed where the row has none.
    """
    model = task.get("reward_model")
    for value in (task.get("ground_truth"), model.get("ground_truth") if isinstance(model, Mapping) else None,
                  task.get("gold"), task.get("label")):  # fmt: skip
        if value is not None:
            return value
    raise HostFailed("the row has no ground_truth; name its column, as fields: {ground_truth: answer}")


__all__ = ["ISOLATIONS", "HostFailed", "HostedGrader", "ground_truth"]
