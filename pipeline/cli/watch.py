"""whetstone watch RUN: a run that is being written, in the terminal: curves, distance to each alarm, newest samples.

It only reads what the run writes, so it can be started, stopped and started again at any time, over a run that lives,
was killed or ended. Plain ANSI: the frame is written over the one before; to a pipe or a file it is written once.

watch.py        commands, the loop
watch_view.py   files -> what is shown
watch_frame.py  what is shown -> lines of text
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.cli import watch_frame, watch_view
from pipeline.cli.commands import options
from pipeline.config.load import ConfigError

HOME, CLEAR_REST, CLEAR_LINE = "\x1b[H", "\x1b[J", "\x1b[K"
START, END = "\x1b[?25l\x1b[2J", "\x1b[?25h"  # hide the cursor and clear; show it again
EVERY_S = 2.0


def watch(run: Path, words: Sequence[str]) -> int:
    """Show the run until it ends or Ctrl-C. Returns 0. Raises ConfigError where there is no run."""
    settings = options("watch", words)
    every = number(settings.get("every", str(EVERY_S)), "every", least=0.2)
    samples = int(number(settings.get("samples", "4"), "samples", least=0))
    live = sys.stdout.isatty() and settings.get("once", "false") != "true"
    shown = frame(
        run, settings.get("stage"), samples, colour=sys.stdout.isatty()
    )  # raises before the screen is cleared
    if not live:
        print("\n".join(shown.lines))
        return 0
    try:
        print(START, end="")
        while True:
            print(
                HOME + "".join(f"{line}{CLEAR_LINE}\n" for line in fitting(shown.lines)) + CLEAR_REST,
                end="",
                flush=True,
            )
            if not shown.alive:
                return 0
            time.sleep(every)
            shown = frame(run, settings.get("stage"), samples, colour=True)
    except KeyboardInterrupt:  # ends the view, not the run
        return 0
    finally:
        print(END, end="", flush=True)


def frame(run: Path, stage: str | None, samples: int, *, colour: bool) -> watch_frame.Frame:
    width = shutil.get_terminal_size((100, 40)).columns
    return watch_frame.draw(watch_view.read(run, stage, samples=samples), width=width, colour=colour)


def fitting(lines: Sequence[str]) -> list[str]:
    """What the terminal is high enough for: a line more would scroll the frame away."""
    return list(lines[: shutil.get_terminal_size((100, 40)).lines - 1])


def number(text: str, key: str, *, least: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not value >= least:
        raise ConfigError([f"watch: {key}={text} on the command line: expected a number of at least {least:g}"])
    return value


__all__ = ["watch"]
