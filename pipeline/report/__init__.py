"""A run, a stage or a comparison as one HTML file that opens anywhere: no server, no request, nothing to install.

The rollouts of a large run are in files next to it, which it loads as they are looked at.

collect.py     what is on disk
summary.py     what it says, as plain data
comparison.py  what a comparison adds
rollouts.py    scored rollouts as columns
rollout_files.py  those of a large run, in files next to its page
live.py        the report of a run that is not over
page.py        data, styles and scripts into one file; assets/ holds them as they are
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.report import comparison_page, page, rollout_files, rollouts, summary
from pipeline.report.collect import Stage, read_rows, read_stages, runs_of_seeds
from pipeline.run.files import atomic_write, sha256_file, sha256_json
from pipeline.run.stage_dir import STOPPED
from pipeline.stages import seed_table

FINGERPRINT = re.compile(r'name="whetstone-report" content="(\w+) (\d+)"')  # and how many files are next to the page
HEAD_CHARACTERS = 4096  # of a page, which hold its fingerprint
RELOAD_S = 15  # seconds between two loads of the page of a run that lives
LIVE_TAIL = 4 << 20  # bytes read at the end of each rollouts.jsonl for such a page


def write_report(run_dir: str | Path, *, live: bool = False) -> Path:
    """Write RUN/report.html and return its path. RUN: a run, one stage of it, a comparison, or a run of several seeds.

    live: the run is still running: the page reloads itself, and shows only the newest rollouts, to be written quickly.
    Raises ConfigError where there is no run, or a file of it cannot be read.
    """
    directory = Path(run_dir)
    written_from = "" if live else fingerprint(directory)  # before anything is read: a later change shows
    compared = comparison_page.read(directory)
    stages = compared.stages if compared else read_stages(directory)
    path = directory / "report.html"
    data = describe(directory, stages) | ({"comparison": compared.data, "facts": compared.facts} if compared else {})
    data |= {"seeds": runs_of_seeds(directory)} if runs_of_seeds(directory) else {}
    data |= {"live": {"reload_s": RELOAD_S, "written": time.time()}} if live else {}
    columns = rollout_columns(stages, directory, live=live, version=written_from[:12])
    files = len(columns.get("files", ()))
    atomic_write(path, page.render(f"{directory.name} · Whetstone", data, columns, f"{written_from} {files}"))
    rollout_files.remove_others(directory, version=written_from[:12] if files else "")
    return path


def rollout_columns(stages: Sequence[Stage], directory: Path, *, live: bool, version: str) -> dict[str, Any]:
    """The rollouts as columns: all of a small run, and the newest of a live one, else those without their texts, which
    are written into files."""
    token_text = rollouts.TokenText(stages)
    lines, size = rollouts.extent(stages)
    if live or (lines <= rollouts.LIMIT and size <= rollouts.PAGE_BYTES):
        rows, total = rollouts.gather(stages, tail=LIVE_TAIL if live else None)
        return {**rollouts.columns(rows, token_text), "total": total}
    limit = min(rollouts.FILES_LIMIT, lines * rollouts.FILES_BYTES // max(size, 1))
    rows, total = rollouts.gather(stages, limit)
    return {**rollout_files.write(rows, token_text, directory, version=version), "total": total}


def report_up_to_date(run_dir: str | Path) -> Path | None:
    """RUN/report.html if it was written from what is on disk now, by this code; None where it has to be written.

    Sizes and times of the run's files are compared, not their contents: to read all rollouts takes as long as writing.
    A comparison and a run of several seeds read other runs' files too, and are always written.
    """
    directory = Path(run_dir)
    if any((directory / name).exists() for name in ("compare", seed_table.NAME)):
        return None
    path = directory / "report.html"
    try:
        with path.open(encoding="utf-8") as page_file:
            head = page_file.read(HEAD_CHARACTERS)
    except (OSError, UnicodeDecodeError):
        return None
    found = FINGERPRINT.search(head)
    if found is None or found[1] != fingerprint(directory):
        return None
    files = list((directory / rollout_files.FOLDER).glob(f"{found[1][:12]}-*.js"))
    return path if len(files) == int(found[2]) else None


def fingerprint(directory: Path) -> str:
    """SHA-256 of names, sizes and times of the files that a report of the directory reads, and of the report's code."""
    names = ("manifest.json", "metrics.jsonl", "timing.jsonl", "rollouts.jsonl", STOPPED)
    files = sorted(path for name in names for path in (directory / name, *directory.glob(f"*/{name}")))
    facts = [(str(path.relative_to(directory)), path.stat().st_size, path.stat().st_mtime_ns)
             for path in files if path.is_file()]  # fmt: skip
    code = [path for path in sorted(Path(__file__).parent.rglob("*")) if path.suffix in (".py", ".js", ".css", ".html")]
    return sha256_json([facts, [sha256_file(path) for path in code]])


def describe(directory: Path, stages: Sequence[Stage]) -> dict[str, Any]:
    """The report's data but for its rollouts."""
    by_name = {s.name: s for s in stages}
    rows = summary.policies(stages)
    judged = (r for s in stages if s.kind == "evaluate" for r in read_rows(s.path / "rollouts.jsonl"))
    versions = {k: v for s in stages if s.manifest is not None for k, v in s.manifest.get("versions", {}).items()}
    return {
        "name": directory.name,
        "facts": summary.facts(stages),
        "policies": rows,
        "headline": summary.headline(rows, judged),
        "opens_on": summary.opens_on(stages, rows),
        "lineage": summary.lineage(stages),
        "stages": [summary.describe_stage(s, by_name) for s in stages],
        "versions": versions,
    }
