"""make chaos: kill every stage at seeded instants, resume it, and compare its outputs by hash with an undisturbed run.

The reference is one `python -m pipeline run` from a cold start. Each stage is then run again from the reference's
parents, in processes that receive SIGKILL (or SIGTERM or SIGINT) at random instants.
These processes are forked from servers that have already imported the libraries, because starting a new interpreter
for each kill would spend most of the time on imports. Each server has its own hash seed, to reveal any order that
depends on the process.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import runpy
import select
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.config.load import Config, ConfigError, load
from pipeline.config.schema import Generate
from pipeline.distributed import process
from pipeline.run import console, lineage
from pipeline.run.manifest import verified_manifest

SERVERS = 2  # with the reference's process three hash seeds; each takes 10 to 20 s of imports
STUCK_S = 1800.0
LEAD_S = 6.0  # approximate loading time of a stage before its first new work
ENDINGS = {"kill": signal.SIGKILL, "term": signal.SIGTERM, "int": signal.SIGINT}


@dataclass(frozen=True, slots=True)
class Settings:
    kills: int = 20
    instants_seed: int = 0
    ending: str = "kill"

    @classmethod
    def taken_from(cls, overrides: Sequence[str]) -> tuple[Settings, list[str]]:
        """Split the key=value words into these settings and the config's overrides. Raises ConfigError."""
        ours: dict[str, Any] = {}
        rest = []
        for word in overrides:
            key, _, value = word.partition("=")
            if key not in ("kills", "instants_seed", "ending"):
                rest.append(word)
            elif key == "ending":
                if value not in ENDINGS:
                    raise ConfigError([f"ending={value}: give kill (SIGKILL), term (SIGTERM) or int (SIGINT)"])
                ours[key] = value
            elif not value.isdigit():
                raise ConfigError([f"{key}={value}: expected a whole number"])
            else:
                ours[key] = int(value)
        return cls(**ours), rest


@dataclass(slots=True)
class Server:
    """A process that has imported everything and forks one child per request. It starts with its first request."""

    log: Path
    command: Sequence[str] = (sys.executable, "-m", "pipeline.cli.chaos")
    started: subprocess.Popen[bytes] | None = field(init=False, default=None)
    took_s: float = field(init=False, default=0.0)  # duration of the last child, from its fork

    @property
    def process(self) -> subprocess.Popen[bytes]:
        self.started = self.started or self._start()
        return self.started

    def _start(self) -> subprocess.Popen[bytes]:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONHASHSEED"}
        return subprocess.Popen(
            list(self.command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
            bufsize=0,  # select() cannot see a line that is still in a buffer
        )  # fmt: skip

    def run(
        self,
        words: Sequence[str],
        *,
        end_after_s: float | None = None,
        end_when: Callable[[], bool] | None = None,
        ending: str = "kill",
        **more: Any,
    ) -> tuple[int, bool]:
        """Run `python -m pipeline WORDS` in a child and return (exit code, whether we interrupted it).

        more: passed on to the server's `prepare`.
        """
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"words": list(words), "log": str(self.log), **more}).encode() + b"\n")
        child = self._answer(STUCK_S)["pid"]
        forked = time.monotonic()
        answer = self._watched(end_when) if end_when else self._answer(STUCK_S if end_after_s is None else end_after_s)
        if answer:
            self.took_s = time.monotonic() - forked
            return answer["code"], False
        if end_after_s is None and end_when is None:
            raise TimeoutError(f"{' '.join(words)} did not end within {STUCK_S:.0f} s; see {self.log}")
        with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
            os.kill(child, ENDINGS[ending])
        return self._answer(60.0)["code"], True

    def _watched(self, end_when: Callable[[], bool]) -> dict[str, Any]:
        """The server's answer, or an empty dict once `end_when` returns True."""
        answer: dict[str, Any] = {}
        while not answer and not end_when():
            answer = self._answer(0.01)
        return answer

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        """The server's next line; empty if none arrives in time."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], timeout_s)
        return json.loads(self.process.stdout.readline()) if ready else {}

    def close(self) -> None:
        if self.started is None:
            return
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(30)


def chaos(config: str, overrides: Sequence[str]) -> int:
    """Return 0 if every stage reproduces the reference's bytes, else 1; if the undisturbed run fails, its exit code."""
    settings, rest = Settings.taken_from(overrides)
    cfg = load(config, rest)
    root = cfg.run_dir.with_name(f"{cfg.run_dir.name}-chaos")
    started = time.monotonic()
    reference = load(config, [*rest, f"run={_run_name(root, cfg)}/reference"])
    done = subprocess.run([sys.executable, "-m", "pipeline", "run", config, *rest, f"run={reference.run}"])
    if done.returncode:
        console.say(f"chaos: the undisturbed run ended with {done.returncode}, so there is nothing to compare with")
        return done.returncode
    command = (sys.executable, "-m", "pipeline.cli.chaos", cfg.generate.backend)
    servers = [Server(root / f"server-{i}.log", command) for i in range(SERVERS)]
    try:
        same = [_stage(config, rest, cfg, reference, root, name, settings, servers) for name in cfg.stages]
    finally:
        for server in servers:
            server.close()
    console.say(f"chaos: {sum(same)} of {len(same)} stages end in the reference's bytes after {settings.kills} "
                f"interruptions each, in {console.clock(time.monotonic() - started)}")  # fmt: skip
    return 0 if all(same) else 1


def _run_name(root: Path, cfg: Config) -> str:
    return str(root.relative_to(cfg.runs_dir))


def _stage(
    config: str, rest: list[str], cfg: Config, reference: Config, root: Path, name: str, settings: Settings,
    servers: Sequence[Server],
) -> bool:  # fmt: skip
    """Run one stage undisturbed, then with interruptions, in as many passes as its kills need; compare each pass.

    The undisturbed pass measures how long the stage takes in a process that has nothing to import, which may be a
    tenth of the reference's time. Instants drawn from the longer time would mostly hit finished stages.
    """
    parents = verified_manifest(reference.run_dir / name)["parents"]
    draw = random.Random(f"{settings.instants_seed} {name}")
    directory = root / name
    words = [name, config, *rest, f"run={_run_name(root, cfg)}/{name}"]
    done, passes, course_s, reported_at = 0, 0, 0.0, time.monotonic()
    while done < settings.kills or not passes:
        shutil.rmtree(directory, ignore_errors=True)
        _link_parents(reference.run_dir, directory, parents)
        instants = sorted(draw.uniform(0.0, course_s) for _ in range(settings.kills - done)) if passes else []
        ended, took_s = _one_pass(words, instants, min(LEAD_S, course_s / 4), draw, servers, settings.ending)
        done += ended
        course_s = course_s or took_s
        passes += 1
        fault = _compare(reference.run_dir / name, directory / name)
        if fault:
            console.say(f"chaos: {name}: {fault}")
            return False
    spent = console.clock(time.monotonic() - reported_at)
    console.say(f"chaos: {name}: same bytes after {done} interruptions in {passes} passes, {spent}")
    return True


def _one_pass(
    words: Sequence[str], instants: Sequence[float], longest_lead_s: float, draw: random.Random,
    servers: Sequence[Server], ending: str,
) -> tuple[int, float]:  # fmt: skip
    """Interrupt at each instant in turn until the stage completes; return (interruptions, seconds of the last process).

    A process first reads back what its predecessor finished, so the start of its time is drawn at random too: some
    die while starting, some while reading back, most during new work.
    """
    at = 0.0
    for number, instant in enumerate(instants):
        end_after_s = instant - at + draw.uniform(0.0, longest_lead_s)
        server = draw.choice(servers)
        code, ended = server.run(words, end_after_s=end_after_s, ending=ending)
        if not ended:
            _expect(code, (0,), words)
            return number, server.took_s
        _expect(code, (-ENDINGS[ending], 143, 130, 0), words)
        at = instant
    server = draw.choice(servers)
    code, _ = server.run(words, ending=ending)
    _expect(code, (0,), words)
    return len(instants), server.took_s


def _expect(code: int, good: Sequence[int], words: Sequence[str]) -> None:
    if code not in good:
        raise RuntimeError(f"python -m pipeline {' '.join(words)} ended with {code}, expected one of {list(good)}")


def _link_parents(source: Path, directory: Path, parents: Sequence[str]) -> None:
    """Hard-link the finished stages that this one starts from; they are only read."""
    for parent in parents:
        shutil.copytree(source / parent, directory / parent, copy_function=os.link)


def _compare(expected: Path, done: Path) -> str | None:
    one, two = (verified_manifest(p.parent / p.name) for p in (expected, done))
    names = sorted(f for f in {*one["outputs"], *two["outputs"]} if one["outputs"].get(f) != two["outputs"].get(f))
    counts = lineage.differences({"tokens": one["tokens"]}, {"tokens": two["tokens"]})
    if not names and not counts:
        return None
    where = lineage.first_difference(expected / "metrics.jsonl", done / "metrics.jsonl")
    return f"differs in {', '.join(names + counts)}" + (f"; metrics.jsonl {where}" if where else "")


def serve(backend: str, prepare: Callable[[Mapping[str, Any]], None] = lambda request: None) -> None:
    """Fork a child for each request on stdin; report its pid, then its exit code. The child runs `prepare` first.

    backend: the generate.backend of what will be run, whose libraries are imported before the first fork.
    """
    main = runpy.run_module("pipeline.__main__", run_name="command line")["main"]  # the user's entry point
    from pipeline.generation import engines

    process.prepare(int(os.environ.get("OMP_NUM_THREADS", "1")))
    from trl import SFTTrainer  # noqa: F401

    import pipeline.stages.context  # noqa: F401

    engines.preload(Generate(backend=backend))  # type: ignore[arg-type]
    gc.collect()
    gc.freeze()  # the children's collections then skip the libraries' million objects and do not copy their pages
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if child == 0:
            _become(Path(request["log"]))
            code = 1
            try:
                prepare(request)
                code = main(request["words"])
            except Exception:  # goes into the log; a child must never continue as a second server
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)
        print(json.dumps({"pid": child}), flush=True)
        status = os.waitpid(child, 0)[1]
        print(json.dumps({"code": os.waitstatus_to_exitcode(status)}), flush=True)


def _become(log: Path) -> None:
    """Detach the child from the server: write output to the log, do not use the server's pipes, and handle Ctrl-C,
    which a shell disables for background processes."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    log.parent.mkdir(parents=True, exist_ok=True)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(out, stream)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)


if __name__ == "__main__":
    serve(sys.argv[1])
