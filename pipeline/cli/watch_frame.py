"""What `watch` shows, as lines of text. Pure: a view in, lines out."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.cli.watch_view import FIGURES, AlarmDistance, ShownSample, View
from pipeline.run import console

BARS = "▁▂▃▄▅▆▇█"
BOLD, QUIET, RED, YELLOW, GREEN, PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[33m", "\x1b[32m", "\x1b[0m"
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")
STALLED_S = 600.0


@dataclass(frozen=True, slots=True)
class Frame:
    lines: list[str]
    alive: bool


def draw(view: View, *, width: int, colour: bool) -> Frame:
    """The view in lines of at most `width` characters; without escape sequences where colour is False."""
    lines = [*header(view, width), "", *figures(view, width), *alarm_lines(view.alarms), *sample_lines(view, width)]
    lines = [fit(line, width) for line in lines]
    return Frame(lines if colour else [ESCAPE.sub("", line) for line in lines], view.alive)


def header(view: View, width: int) -> list[str]:
    done = sum(complete for *_, complete in view.stages)
    state = f"{GREEN}running{PLAIN}" if view.alive else ("complete" if done == len(view.stages) else
                                                        f"{YELLOW}not running{PLAIN}")  # fmt: skip
    stages = [f"{'✓' if complete else '…'} {name}" + (f" {accuracy:.3f}" if accuracy is not None else "")
              for name, accuracy, complete in view.stages]  # fmt: skip
    title = f"{BOLD}{view.stage}{PLAIN}"
    if view.steps or view.step:
        title += f"  step {view.step}" + (f" of {view.steps}" if view.steps else "")
    if view.seconds_per_step is not None:
        title += f"  {view.seconds_per_step:.1f} s per step"
        if view.alive and view.steps and view.steps > view.step:
            title += f"  {console.clock(view.seconds_per_step * (view.steps - view.step))} left"
    if view.alive and view.age_s is not None:
        slow = view.age_s > max(STALLED_S, 10 * (view.seconds_per_step or 0))
        title += f"  {YELLOW if slow else QUIET}last step {console.clock(view.age_s)} ago{PLAIN}"
    room = width - len(ESCAPE.sub("", state)) - 2  # the end of a long path distinguishes runs
    name = view.name if len(view.name) <= room else f"…{view.name[1 - room :]}"
    lines = [f"{BOLD}{name}{PLAIN}  {state}", *wrapped(stages, width), title]
    if view.alarm and not view.alive:
        lines += [f"  {RED}stopped by an alarm:{PLAIN} {line}" if n == 0 else f"  {line}"
                  for n, line in enumerate(textwrap.wrap(clean(view.alarm), max(width - 24, 30)))]  # fmt: skip
        lines.append("  what to do: docs/tasks.md, Alarms")
    elif not view.alive and done < len(view.stages):
        lines.append("  not complete: run the same command again to resume")
    return lines


def wrapped(parts: Sequence[str], width: int) -> list[str]:
    """Parts side by side, in as many lines as they need."""
    lines = [""]
    for part in parts:
        if len(lines[-1]) + len(part) + 2 > width and lines[-1]:
            lines.append("")
        lines[-1] += f"  {part}"
    return lines


def figures(view: View, width: int) -> list[str]:
    room = max(min(width - 68, 40), 8)
    lines = [f"{'':26}{'now':>9}  {'':{room}}  {QUIET}first     lowest    highest{PLAIN}"] if view.curves else []
    for name, values in view.curves.items():
        first_and_range = "  ".join(f"{console.number(value):8}" for value in (values[0], min(values), max(values)))
        bars = f"{sparkline(values, room):{room}}"
        lines.append(f"  {FIGURES[name]:24}{console.number(values[-1]):>9}  {bars}  {QUIET}{first_and_range}{PLAIN}")
    return lines or ["  no step has been logged yet"]


def sparkline(values: Sequence[float], room: int) -> str:
    """Values as bars from lowest to highest, means of equal stretches where there are more than room."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return ""
    count = min(len(values), room)
    parts = [values[len(values) * i // count : len(values) * (i + 1) // count] for i in range(count)]
    low, high = min(finite), max(finite)
    out = ""
    for part in parts:
        known = [value for value in part if math.isfinite(value)]
        height = (sum(known) / len(known) - low) / (high - low) if known and high > low else 0.0
        out += BARS[min(int(height * len(BARS)), len(BARS) - 1)] if known else " "
    return out


def alarm_lines(alarms: Sequence[AlarmDistance]) -> list[str]:
    if not alarms:
        return []
    lines = ["", f"{BOLD}alarms{PLAIN}{'':34}{'now':>9}{'limit':>9}  {QUIET}of the way to the limit{PLAIN}"]
    for alarm in alarms:
        shade = RED if alarm.share >= 1 else YELLOW if alarm.share >= 0.5 else GREEN
        full = round(10 * min(max(alarm.share, 0.0), 1.0))
        share = max(alarm.share, 0.0) + 0.0  # no "-0%"
        note = "" if alarm.stops else f"  {QUIET}reported only{PLAIN}"
        lines.append(f"  {alarm.name:38}{alarm.now:>9.3g}{alarm.limit:>9.3g}  "
                     f"{shade}{'█' * full}{PLAIN}{'·' * (10 - full)} {share:.0%}{note}")  # fmt: skip
    return lines


def sample_lines(view: View, width: int) -> list[str]:
    if not view.samples:
        return []
    lines = ["", f"{BOLD}newest samples{PLAIN}" + (f"  {QUIET}{view.sampled_at}{PLAIN}" if view.sampled_at else "")]
    for sample in view.samples:
        lines += _sample(sample, width)
    return lines


def _sample(sample: ShownSample, width: int) -> list[str]:
    right = sample.status == "pass"
    mark = f"{GREEN}✓{PLAIN}" if right else f"{RED}✗{PLAIN}"
    reward = "no score" if sample.reward is None else console.number(sample.reward)
    half = max((width - 20) // 2, 20)
    lines = [f"  {mark} {reward:>8}  {_end(sample.prompt, half)} → {console.visible(clean(sample.completion), half)}"]
    expected = ", ".join(clean(sample.expected).splitlines())
    notes = [f"expected {console.visible(expected, half)}"] if expected else []
    notes += [console.visible(clean(sample.detail), half)] if sample.detail else []
    return lines + ([f"{'':13}{QUIET}{'; '.join(notes)}{PLAIN}"] if notes else [])


def _end(text: str, limit: int) -> str:
    """The end of a prompt, which holds the question; the rest is often the same in every row."""
    flat = clean(text).replace("\n", "\\n")
    return flat if len(flat) <= limit else "…" + flat[len(flat) - limit + 1 :]


def clean(text: str) -> str:
    """Without control characters: what a model wrote must not steer the terminal."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c == "\n" or c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def fit(line: str, width: int) -> str:
    """At most `width` characters, escape sequences not counted."""
    if len(ESCAPE.sub("", line)) <= width:
        return line
    out, used = "", 0
    for piece in re.split(f"({ESCAPE.pattern})", line):
        if ESCAPE.fullmatch(piece):
            out += piece
            continue
        taken = piece[: max(width - 1 - used, 0)]
        out, used = out + taken, used + len(taken)
    return out + "…" + PLAIN


__all__ = ["Frame", "draw", "sparkline"]
