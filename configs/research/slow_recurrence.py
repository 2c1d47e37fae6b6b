"""The verifier `recurrence` beside this file, after a wait of 0.2 s: a check that really is slow."""

from __future__ import annotations

import time
from pathlib import Path

from verifiers import Verdict
from verifiers._user_files import import_user_file

_quick = import_user_file("recurrence_behind_a_wait", Path(__file__).with_name("recurrence.py"))
Task, EXAMPLES, mutate = _quick.Task, _quick.EXAMPLES, _quick.mutate
WAIT_S = 0.2


def verify(completion: str, task: Task) -> Verdict:
    time.sleep(WAIT_S)
    return _quick.verify(completion, task)
