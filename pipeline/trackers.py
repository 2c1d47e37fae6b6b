"""Every line of metrics also to trackio, tensorboard or wandb, through accelerate's trackers. Named in `trackers:`.

What they are told is what metrics.jsonl holds: the file stays the record, a tracker that fails stops no run.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from pipeline import ranks
from pipeline.config import Config, ConfigError
from verifiers._secrets import hidden

Listener = Callable[[Mapping[str, Any]], None]


@contextmanager
def tracking(cfg: Config, stage: str) -> Iterator[list[Listener]]:
    """What to tell each line of metrics of one stage. Raises ConfigError where a tracker is not installed."""
    if not cfg.trackers or not ranks.is_main():
        yield []
        return
    opened = [_open(name, cfg, stage) for name in cfg.trackers]
    for tracker in opened:
        tracker.start()
    try:
        yield [_listener(tracker) for tracker in opened]
    finally:
        for tracker in opened:
            tracker.finish()


def _open(name: str, cfg: Config, stage: str) -> Any:
    if importlib.util.find_spec(name) is None:
        raise ConfigError([f"{cfg.path}: trackers: {name} is not installed; pip install {name}, or leave it out"])
    from accelerate import PartialState
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    PartialState()  # the trackers ask it whether they are on the main process
    project = cfg.run.replace("/", "-")
    make = LOGGER_TYPE_TO_CLASS[name]
    if name == "tensorboard":
        return make(stage, cfg.run_dir / "tensorboard")
    if name == "trackio":
        os.environ.setdefault("TRACKIO_DIR", str((cfg.run_dir / "trackio").resolve()))
        return make(project, name=stage, resume="allow", auto_log_gpu=False, auto_log_cpu=False)
    return make(project, name=stage, dir=str(cfg.run_dir))


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
