"""A run, a stage or a comparison as one HTML file that opens anywhere: no server, no request, nothing to install.

collect.py     what is on disk
summary.py     what it says, as plain data
comparison.py  what a comparison adds
rollouts.py    scored rollouts as columns
live.py        the report of a run that is not over
page.py        data, styles and scripts into one file; assets/ holds them as they are
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.report import comparison_page, page, rollouts, summary
from pipeline.report.collect import Stage, read_rows, read_stages, runs_of_seeds
from pipeline.run.files import atomic_write, sha256_file, sha256_json
from pipeline.run.stage_dir import STOPPED
from pipeline.stages import seed_table

FINGERPRINT = 'name="whetstone-report" content="{}"'
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
    rows, total = rollouts.gather(stages, tail=LIVE_TAIL if live else None)
    data = describe(directory, stages) | ({"comparison": compared.data, "facts": compared.facts} if compared else {})
    data |= {"seeds": runs_of_seeds(directory)} if runs_of_seeds(directory) else {}
    data |= {"live": {"reload_s": RELOAD_S, "written": time.time()}} if live else {}
    columns = rollouts.columns(rows, rollouts.TokenText(stages))
    atomic_write(path, page.render(f"{directory.name} · Whetstone", data, {**columns, "total": total}, written_from))
    return path


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
    return path if FINGERPRINT.format(fingerprint(directory)) in head else None


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
    judged = [r for s in stages if s.kind == "evaluate" for r in read_rows(s.path / "rollouts.jsonl")]
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
