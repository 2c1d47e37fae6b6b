"""One process per run: the lock on a run's directory."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config.errors import LineageError
from pipeline.run.lock import locked


def hold(root: str, ready, done) -> None:
    with locked(Path(root)):
        ready.set()
        done.wait(30)


def test_a_second_process_on_one_run_is_refused_and_says_who_holds_it(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    holder = context.Process(target=hold, args=(str(tmp_path), ready, done))
    holder.start()
    try:
        assert ready.wait(60)
        with pytest.raises(LineageError, match=f"in use by process {holder.pid}"), locked(tmp_path):
            pass
    finally:
        done.set()
        holder.join()
    with locked(tmp_path):
        pass


def test_a_directory_that_cannot_be_created_is_said_with_the_key():
    root = Path("/proc/none/r")
    with pytest.raises(LineageError, match=r"^/proc/none/r cannot be created .* with runs_dir="), locked(root):
        pass


def test_a_run_is_locked_against_its_own_process_too(tmp_path):
    with locked(tmp_path), pytest.raises(LineageError), locked(tmp_path):
        pass


def test_a_killed_process_leaves_no_lock_though_its_child_lives_on(tmp_path):
    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom pipeline.run.lock import locked\n"
        f"with locked(Path({str(tmp_path)!r})):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n        time.sleep(30); os._exit(0)\n"
        "    print(child, flush=True); time.sleep(30)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        process.kill()
        process.wait()
        os.kill(child, 0)  # it is alive
        with locked(tmp_path):
            pass
    finally:
        os.kill(child, 9)
        process.stdout.close()
