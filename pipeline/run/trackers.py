"""Every line of metrics also to trackio, tensorboard or wandb, through accelerate's trackers: those that `trackers:`
names, else trackio where it is installed.

They receive what metrics.jsonl holds: the file stays the record, and a tracker that fails stops no run. A stage gets a
curve of its own each time it begins; a resumed stage continues its curve, without the steps that are replayed.
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

from pipeline.config.install_hint import install_command
from pipeline.config.load import Config, ConfigError
from pipeline.distributed import ranks
from pipeline.run.stage_dir import StageDir
from verifiers._secrets import hidden

Listener = Callable[[Mapping[str, Any]], None]


_hinted: set[str] = set()


def missing(cfg: Config) -> list[str]:
    """A line for each tracker that the YAML names and that is not installed."""
    return [f"{cfg.path}: trackers: {name} is not installed; {install_command(name)}, or leave it out"
            for name in cfg.trackers or [] if importlib.util.find_spec(name) is None]  # fmt: skip


def check(cfg: Config) -> None:
    """Raises ConfigError where a tracker that the YAML names is not installed."""
    if mistakes := missing(cfg):
        raise ConfigError(mistakes)


@contextmanager
def tracking(cfg: Config, directory: StageDir) -> Iterator[list[Listener]]:
    """Listeners for each line of metrics of one stage. Raises ConfigError where a tracker that was named is missing."""
    check(cfg)
    names = requested(cfg) if ranks.is_main() else []
    run_name = directory.begun.tracker_run() if names else ""
    opened = [tracker for name in names if (tracker := _open(name, cfg, directory.name, run_name)) is not None]
    try:
        yield [_listener(tracker) for tracker in opened]
    finally:
        for tracker in opened:
            _quietly(tracker.name, lambda tracker=tracker: _finish(tracker))  # type: ignore[misc]


def requested(cfg: Config) -> list[str]:
    """The trackers of the YAML; without any, trackio, or one line that says how to get it."""
    if cfg.trackers is not None:
        return list(cfg.trackers)
    if importlib.util.find_spec("trackio") is not None:
        return ["trackio"]
    if not _hinted:
        _hinted.add("trackio")
        print(f"curves: in metrics.jsonl, and live with `whetstone watch {cfg.run_dir}`; "
              f"{install_command('trackio')} adds a dashboard; trackers: [] hides this", flush=True)  # fmt: skip
    return []


def _open(name: str, cfg: Config, stage: str, run_name: str) -> Any:
    """The tracker, started; None where it fails: the run's record is metrics.jsonl."""
    from accelerate import PartialState

    PartialState()  # the trackers ask it whether they are on the main process

    def start() -> Any:
        tracker = _make(name, cfg, stage, run_name)
        tracker.start()
        return tracker

    return _quietly(name, start)


def _make(name: str, cfg: Config, stage: str, run_name: str) -> Any:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    project = cfg.run.replace("/", "-")
    make = LOGGER_TYPE_TO_CLASS[name]
    if name == "tensorboard":
        return make(run_name, cfg.run_dir / "tensorboard")
    if name == "trackio":  # reads its directory once per process, so one for all runs below runs_dir
        os.environ.setdefault("TRACKIO_DIR", str((Path(cfg.runs_dir) / "trackio").resolve()))
        return make(project, name=run_name, group=stage, resume="allow", auto_log_gpu=False, auto_log_cpu=False)
    return make(project, name=run_name, id=run_name, group=stage, resume="allow", dir=str(cfg.run_dir))


def _finish(tracker: Any) -> None:
    tracker.finish()
    if tracker.name == "trackio":
        import trackio

        trackio.finish()  # else it ends the run a second time when the process does, with a line about it


def _quietly(name: str, act: Callable[[], Any]) -> Any:
    """act() without what it prints. What it raises is somebody else's server or disk: one line reports it."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return act()
    except Exception as exc:
        print(f"{hidden(f'{name}: {type(exc).__name__}: {exc}')}; the curves are in metrics.jsonl", flush=True)
        return None


def _listener(tracker: Any) -> Listener:
    warned: list[str] = []

    def report(metrics: Mapping[str, Any]) -> None:
        numbers = {k: v for k, v in metrics.items() if isinstance(v, (int, float)) and k != "step"}
        try:
            tracker.log(numbers, step=metrics.get("step"))
        except Exception as exc:  # somebody else's server or disk; the run's record is metrics.jsonl
            if not warned:
                why = hidden(f"{tracker.name}: {type(exc).__name__}: {exc}")
                print(f"{why}; the curves continue in metrics.jsonl alone", flush=True)
                warned.append(tracker.name)

    return report


__all__ = ["check", "tracking"]
