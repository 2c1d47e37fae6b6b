"""Run interdependent stages in a few processes at once: one per core, each with one thread.

A process runs several stages, because importing the libraries takes as long as a small stage; one that has to wait for
its first stage imports them meanwhile. The output of each stage goes to its own file; the parent prints one line per
stage.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import importlib
import importlib.util
import math
import multiprocessing
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.config.errors import LineageError
from pipeline.config.load import Config, ConfigError
from pipeline.config.registry import kind_of
from pipeline.distributed import process
from pipeline.models.model_dir import thread_count
from pipeline.run import console, shutdown
from pipeline.run.alarms import Alarm
from verifiers._killable import PR_SET_PDEATHSIG

STAGES_A_PROCESS = 8  # a generator does not return all of its memory: a long-lived process grows with every stage


@dataclass(frozen=True, slots=True)
class PooledStage:
    """One stage of one run. after: (run, stage) of the parts it waits for."""

    cfg: Config
    name: str
    after: Sequence[tuple[str, str]] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str]:
        return self.cfg.run, self.name

    @property
    def label(self) -> str:
        return f"{Path(self.cfg.run).name}/{self.name}"


@dataclass(frozen=True, slots=True)
class Ended:
    """Result of a part. error: the kind of one of our exceptions; None on success. ran: False if it was up to date."""

    seconds: float
    error: str | None = None
    words: str = ""
    ran: bool = True


def run_parts(
    parts: Sequence[PooledStage],
    *,
    workers: int,
    logs: Path,
    setting: str = "workers",
    follow: Callable[[PooledStage, Path], None] | None = None,
) -> None:
    """Bring every part up to date, at most `workers` at once. setting: where the user gives that number.

    follow: called every second, and at its end, with each part that runs and the file of its output.
    Re-raises the exception of the first part that fails; parts that are complete by then stay complete.
    """
    logs.mkdir(parents=True, exist_ok=True)
    known = {p.key for p in parts}
    waiting, done, running = list(parts), set[tuple[str, str]](), dict[Future[Ended], PooledStage]()
    begun, took = time.monotonic(), defaultdict[str, list[float]](list)
    unfinished = [p for p in parts if not (p.cfg.run_dir / p.name / "manifest.json").is_file()]
    with processes(min(workers, len(parts))) as pool, stopping(pool):
        while waiting or running:
            ready = [p for p in waiting if all(a in done for a in p.after if a in known)][: workers - len(running)]
            if not ready and not running:
                raise ValueError(f"parts wait for one another: {', '.join(p.label for p in waiting)}")
            for part in ready:
                waiting.remove(part)
                running[pool.submit(bring_up, part, str(log_of(part, logs)))] = part
            for _ in range(min(workers, len(unfinished) - 1) - len(running)):
                pool.submit(warm_up, parts[0].cfg, libraries_of(unfinished))
            unfinished = []
            finished, _ = wait(running, timeout=1 if follow else None, return_when=FIRST_COMPLETED)
            for part in running.values() if follow else ():
                follow(part, log_of(part, logs))  # type: ignore[misc]
            for future in finished:
                part = running.pop(future)
                result = ended(future, part, setting, workers)
                if result.ran:
                    took[part.name].append(result.seconds)
                left = seconds_left([p.name for p in (*waiting, *running.values())], took, workers)
                times = f"{console.clock(time.monotonic() - begun)} so far, {console.clock(left)} left"
                report(part, result, f"{len(done) + 1}/{len(parts)}", times, logs)
                done.add(part.key)


def seconds_left(names: Sequence[str], took: Mapping[str, Sequence[float]], workers: int) -> float:
    """Of stages that are not complete: each takes as long as those of its name took on average, or as all did.

    names: one per part, also of those that run: the time they have spent is not subtracted. NaN where none has ended.
    """
    averages = {name: sum(seconds) / len(seconds) for name, seconds in took.items()}
    if not averages:
        return math.nan if names else 0.0
    other = sum(averages.values()) / len(averages)
    return sum(averages.get(name, other) for name in names) / workers


def log_of(part: PooledStage, logs: Path) -> Path:
    return logs / f"{part.label.replace('/', '-')}.log"


def processes(count: int) -> ProcessPoolExecutor:
    """Worker processes that die with this process."""
    context = multiprocessing.get_context("spawn")  # a forked torch can hang
    return ProcessPoolExecutor(count, context, begin, (os.getpid(),), max_tasks_per_child=STAGES_A_PROCESS)


@contextlib.contextmanager
def stopping(pool: ProcessPoolExecutor) -> Iterator[None]:
    """Where this process is asked to stop, so are its workers, and they are waited for: each saves a checkpoint."""
    try:
        yield
    except (shutdown.Stopped, KeyboardInterrupt):
        try:
            for worker in multiprocessing.active_children():
                worker.terminate()
            pool.shutdown(cancel_futures=True)
        except KeyboardInterrupt:  # Ctrl-C again
            for worker in multiprocessing.active_children():
                worker.kill()
            raise
        raise


def begin(parent: int) -> None:
    """In a worker: quiet libraries, and have the kernel kill it when the parent dies for any reason. The parent's lock
    on the run is then released, and a restarted command must not find a second writer. Ctrl-C reaches it through the
    parent alone.

    It ends without taking its modules and models apart one by one, which takes seconds.
    """
    atexit.register(leave)  # registered before all others, so called last
    process.prepare_environment(None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before prctl took effect
        os._exit(1)


def leave() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def ended(future: Future[Ended], part: PooledStage, setting: str, workers: int) -> Ended:
    """The part's result. Raises ConfigError if its process was killed, as the kernel does when memory runs out."""
    try:
        return future.result()
    except BrokenProcessPool as exc:
        words = f"a process was killed while {part.label} or a part beside it ran, most likely out of memory"
        advice = f"with {setting}=1 to use less memory" if workers > 1 else "with more memory free"
        raise ConfigError([f"{words}; run the same command to resume, {advice}"]) from exc


def report(part: PooledStage, ended: Ended, number: str, times: str, logs: Path) -> None:
    """Print one line; if the part failed, re-raise its exception. number: as in 3/24. times: spent and left."""
    if ended.error is None:
        console.say(f"  {number} {part.label} {ended.seconds:.0f} s  ({times})")
        return
    words = f"{part.label}: {ended.words} (its output: {log_of(part, logs)})"
    raise {"Alarm": Alarm(words), "LineageError": LineageError(words)}.get(ended.error, ConfigError([words]))


def libraries_of(parts: Sequence[PooledStage]) -> list[str]:
    """Modules that these stages import: their own, and before them TRL's trainers."""
    kinds = [kind_of(part.cfg, part.name) for part in parts]
    # TRL's x_trainer.py lies beside x_config.py
    trainers = [kind.trl_config.partition(":")[0].replace("_config", "_trainer") for kind in kinds if kind.trl_config]
    return list(dict.fromkeys([*trainers, *(kind.module for kind in kinds)]))


def warm_up(cfg: Config, modules: Sequence[str]) -> None:
    """In a worker that has no stage yet: import what its stages will need. What fails here is reported by a stage."""
    with printing_to(os.devnull):
        process.prepare_libraries(thread_count(cfg.threads, cfg.model.path))
        for name in modules:
            with contextlib.suppress(ImportError):
                importlib.import_module(name)
        if importlib.util.find_spec("vllm") is not None:  # else a stage says in its log what it takes instead
            from pipeline.generation import engines

            engines.preload(cfg.generate)


def bring_up(part: PooledStage, log: str) -> Ended:
    """In a worker: run the stage unless it is up to date. Our exceptions are returned as text: they do not pickle."""
    from pipeline.stages import bring_up_to_date

    begun = time.monotonic()
    shutdown.install(part.cfg.run_dir)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with printing_to(log):
        try:
            ran = bring_up_to_date(part.cfg, part.name)
        except (ConfigError, LineageError, Alarm) as exc:
            return Ended(time.monotonic() - begun, type(exc).__name__, str(exc))
        except shutdown.Stopped:  # asked by the parent, which no longer reads results
            return Ended(time.monotonic() - begun, "Stopped")
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a worker that waits has nothing to save
            process.free_memory()
    return Ended(time.monotonic() - begun, ran=ran)


@contextlib.contextmanager
def printing_to(path: str) -> Iterator[None]:
    """Redirect standard output and error to a file, including what C++ code writes."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with Path(path).open("ab") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        try:
            yield
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(kept[0], 1)
            os.dup2(kept[1], 2)
            os.close(kept[0])
            os.close(kept[1])
