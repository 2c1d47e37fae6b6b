"""Every line of metrics also to trackio, tensorboard or wandb, through accelerate's trackers: those that `trackers:`
names, else trackio where it is installed.

What they are told is what metrics.jsonl holds: the file stays the record, a tracker that fails stops no run.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.config.load import Config, ConfigError
from pipeline.distributed import ranks
from verifiers._secrets import hidden

Listener = Callable[[Mapping[str, Any]], None]


_said: set[str] = set()


@contextmanager
def tracking(cfg: Config, stage: str) -> Iterator[list[Listener]]:
    """What to tell each line of metrics of one stage. Raises ConfigError where a tracker that was named is missing."""
    names = asked(cfg) if ranks.is_main() else []
    opened = [tracker for name in names if (tracker := _open(name, cfg, stage)) is not None]
    try:
        yield [_listener(tracker) for tracker in opened]
    finally:
        for tracker in opened:
            _quietly(tracker.name, lambda tracker=tracker: _finish(tracker))  # type: ignore[misc]


def asked(cfg: Config) -> list[str]:
    """The trackers of the YAML; where it is silent, trackio, or one line that says how to get it."""
    if cfg.trackers is not None:
        return list(cfg.trackers)
    if importlib.util.find_spec("trackio") is not None:
        return ["trackio"]
    if not _said:
        _said.add("trackio")
        print("curves: in metrics.jsonl alone; pip install trackio shows them live; trackers: [] asks none", flush=True)
    return []


def _open(name: str, cfg: Config, stage: str) -> Any:
    """The tracker, started; None where it fails: the run's record is metrics.jsonl."""
    if importlib.util.find_spec(name) is None:
        raise ConfigError([f"{cfg.path}: trackers: {name} is not installed; pip install {name}, or leave it out"])
    from accelerate import PartialState

    PartialState()  # the trackers ask it whether they are on the main process

    def start() -> Any:
        tracker = _make(name, cfg, stage)
        tracker.start()
        return tracker

    return _quietly(name, start)


def _make(name: str, cfg: Config, stage: str) -> Any:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    project = cfg.run.replace("/", "-")
    make = LOGGER_TYPE_TO_CLASS[name]
    if name == "tensorboard":
        return make(stage, cfg.run_dir / "tensorboard")
    if name == "trackio":  # reads its place once a process, so one for all runs of a directory
        os.environ.setdefault("TRACKIO_DIR", str((Path(cfg.runs_dir) / "trackio").resolve()))
        return make(project, name=stage, resume="allow", auto_log_gpu=False, auto_log_cpu=False)
    return make(project, name=stage, dir=str(cfg.run_dir))


def _finish(tracker: Any) -> None:
    tracker.finish()
    if tracker.name == "trackio":
        import trackio

        trackio.finish()  # else it ends the run a second time when the process does, with a line about it


def _quietly(name: str, act: Callable[[], Any]) -> Any:
    """act() without the greetings that it prints. What it raises is somebody else's server or disk: it is told."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return act()
    except Exception as exc:
        print(f"{hidden(f'{name}: {type(exc).__name__}: {exc}')}; the curves are in metrics.jsonl", flush=True)
        return None


def _listener(tracker: Any) -> Listener:
    warned: list[str] = []

    def tell(metrics: Mapping[str, Any]) -> None:
        numbers = {k: v for k, v in metrics.items() if isinstance(v, (int, float)) and k != "step"}
        try:
            tracker.log(numbers, step=metrics.get("step"))
        except Exception as exc:  # somebody else's server or disk; the run's record is metrics.jsonl
            if not warned:
                why = hidden(f"{tracker.name}: {type(exc).__name__}: {exc}")
                print(f"{why}; the curves go on in metrics.jsonl alone", flush=True)
                warned.append(tracker.name)

    return tell


__all__ = ["tracking"]
