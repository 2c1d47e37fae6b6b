"""The serving side of a bridge, for programs in Python. Standard library only, and nothing of ours.

Runs in another interpreter: a program passes this file's directory on sys.path, or its text. `serve` forks a process
for each connection, which has its own process group, so that what a session starts ends with it.
"""

import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import sys

PR_SET_PDEATHSIG = 1


def serve(descriptor, run):
    """Fork `run(requests, answer)` for each connection to the listening socket, until stdin closes.

    run: gets an iterator of requests, and a function that sends an answer.
    """
    listening = socket.socket(fileno=descriptor)
    poll = select.poll()
    poll.register(listening, select.POLLIN)
    poll.register(sys.stdin, select.POLLHUP)
    # descriptor of a connection, and of its process -> (connection, process, descriptor of the process)
    sessions: dict = {}
    while True:
        for number, _ in poll.poll():
            if number == sys.stdin.fileno():
                for _, process, _ in sessions.values():
                    kill(process)
                return
            if number == listening.fileno():
                connection, _ = listening.accept()
                process = forked(connection, listening, sessions, run)
                one = (connection, process, os.pidfd_open(process))
                for own, event in ((connection.fileno(), select.POLLRDHUP), (one[2], select.POLLIN)):
                    sessions[own] = one
                    poll.register(own, event)
            elif number in sessions:  # the other side has closed it, or its process has ended
                connection, process, of_process = sessions[number]
                kill(process)
                for own in (connection.fileno(), of_process):
                    poll.unregister(own)
                    del sessions[own]
                connection.close()
                os.close(of_process)


def forked(connection, listening, sessions, run):
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.setsid()
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        listening.close()
        for other, _, _ in sessions.values():  # else a session would hold the others' connections open
            other.close()
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        session(connection, run)
        code = 0
    except Exception as exc:  # the border: a request or an answer that cannot be written
        print(shown(exc), file=sys.stderr, flush=True)
    finally:
        os._exit(code)


def kill(process):
    """End a session and what it has started, and reap it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process, 0)


def session(connection, run):
    with connection, connection.makefile("rb") as requests, connection.makefile("wb") as answers:

        def answer(reply):
            answers.write(json.dumps(reply).encode() + b"\n")
            answers.flush()

        run(map(json.loads, requests), answer)


def shown(exc):
    """An exception in one line, with its cause where a library wraps it."""
    text = f"{type(exc).__name__}: {' '.join(str(exc).split())}"
    return text[:600]
