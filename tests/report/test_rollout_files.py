"""The rollouts of a large run: what is in the files next to its page, and what writing them takes."""

from __future__ import annotations

import json
import re
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from browser import Page
from report_kit import HOSTILE, figures, rollout, write_run, write_stage

from pipeline.report import report_up_to_date, rollout_files, rollouts, write_report
from pipeline.report.collect import read_stages

CALL = re.compile(r"whetstoneRows\((\d+),(.*)\);\n", re.DOTALL)


@pytest.fixture
def always_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files for runs of any size, of at most 50 rows each."""
    monkeypatch.setattr(rollouts, "LIMIT", 0)
    monkeypatch.setattr(rollout_files, "ROWS", 50)


def page_columns(path: Path) -> dict[str, Any]:
    block = re.search(r'<script type="application/json" id="rollout-data">(.*?)</script>', path.read_text(), re.DOTALL)
    assert block is not None
    return json.loads(block[1])


def loaded(path: Path, data: dict[str, Any]) -> list[dict[str, Any]]:
    """Each file's rows, as the page gets them."""
    out = []
    for number, (name, _) in enumerate(data["files"]):
        text = (path.parent / data["folder"] / name).read_text(encoding="ascii")
        call = CALL.fullmatch(text)
        assert call is not None and int(call[1]) == number
        assert not set("<>&\0") & set(text)
        out.append(json.loads(call[2]))
    return out


def texts(files: list[dict[str, Any]], column: str) -> list[str]:
    return [part["tables"][column][code] for part in files for code in part["coded"][column]]


def test_page_and_files_together_give_every_row_back(tmp_path: Path, always_files: None) -> None:
    rows = [
        rollout(f"p{i % 7}", f"answer {i} {HOSTILE if i == 60 else ''}", reward=None if i % 9 == 0 else i / 128,
                step=i // 10, sample=i % 4, status="fail" if i % 3 else "pass",
                logprobs=[-0.5] * (i % 5), ids=[7] * (i % 5))
        for i in range(130)
    ]  # fmt: skip
    write_stage(tmp_path / "run", "grpo", metrics=figures(0.5), rollouts=rows)
    path = write_report(tmp_path / "run")
    data = page_columns(path)
    files = loaded(path, data)
    assert [first for _, first in data["files"]] == [0, 50, 100] and data["count"] == data["total"] == 130
    written = [json.loads(line) for line in (tmp_path / "run/grpo/rollouts.jsonl").read_text().splitlines()]
    assert texts(files, "completion") == [row["completion"] for row in written]
    assert texts(files, "prompt") == [row["prompt"] for row in written]
    assert data["step"] == [row["step"] for row in written] and data["sample"] == [row["sample"] for row in written]
    assert [data["tables"]["status"][code] for code in data["coded"]["status"]] == [row["status"] for row in written]
    expected = [None if row["reward"] is None else round(row["reward"], 4) for row in written]
    assert data["reward"] == data["parts"]["grid"] == expected
    assert data["length"] == [n for part in files for n in part["tokens"]] == [len(row["ids"]) for row in written]
    assert data["mean_logprob"] == [-500 if row["ids"] else None for row in written]
    groups = {
        code: {written[i]["prompt"] for i, c in enumerate(data["coded"]["prompt"]) if c == code} for code in range(7)
    }
    assert all(len(prompts) == 1 for prompts in groups.values()), "a prompt has one number in all files"


def test_a_new_report_removes_the_files_of_the_last_one(tmp_path: Path, always_files: None) -> None:
    run = write_run(tmp_path / "run")
    first = page_columns(write_report(run))["files"]
    assert report_up_to_date(run) is not None
    with (run / "grpo" / "rollouts.jsonl").open("a") as log:
        log.write(json.dumps(rollout("new", "row")) + "\n")
    second = page_columns(write_report(run))["files"]
    names = sorted(path.name for path in (run / "report_data").iterdir())
    assert names == sorted(name for name, _ in second) and not {n for n, _ in first} & set(names)
    (run / "report_data" / names[0]).unlink()
    assert report_up_to_date(run) is None, "a page without a file of its rows is not whole"
    write_report(run, live=True)
    assert not (run / "report_data").exists(), "a page of a live run carries its rows itself"


def peak_of_writing(root: Path, count: int) -> int:
    """Peak of the writer's allocations in bytes, for rollouts of 3 kB each."""
    write_stage(root, "grpo", metrics=figures(0.5))
    with (root / "grpo" / "rollouts.jsonl").open("w") as log:
        for i in range(count):
            log.write(json.dumps(rollout(f"p{i}", "word " * 500, ids=list(range(40)), logprobs=[-0.1] * 40)) + "\n")
    stages = read_stages(root)
    tracemalloc.start()
    rows, total = rollouts.gather(stages, rollouts.FILES_LIMIT)
    data = rollout_files.write(rows, rollouts.TokenText(stages), root, version="v")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert total == data["count"] == count
    return peak


def test_memory_does_not_grow_with_the_rollouts_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_files, "CHARACTERS", 300_000)
    small, large = peak_of_writing(tmp_path / "a", 300), peak_of_writing(tmp_path / "b", 1500)
    per_row = (large - small) / 1200
    assert per_row < 600, "numbers alone stay in memory: a row has 3,000 bytes on disk"


def test_above_the_limit_rows_are_dropped_as_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [rollout(f"p{i % 100}", f"{i}") for i in range(1000)]
    write_stage(tmp_path, "grpo", metrics=figures(0.5), rollouts=rows)
    kept, total = rollouts.gather(read_stages(tmp_path), 200)
    prompts = [row["prompt"] for row in kept]
    assert total == 1000 and len(prompts) == 200 and all(prompts.count(p) == 10 for p in prompts)


# --- in a browser -----------------------------------------------------------------------------------------------------


def until(page: Page, expression: str) -> None:
    ends = time.monotonic() + 30
    while not page.js(expression):
        assert time.monotonic() < ends, (expression, page.errors)
        page.settle()


def test_files_are_loaded_from_disk_as_their_rows_are_looked_at(page: Page, tmp_path: Path, always_files: None) -> None:
    run = write_run(tmp_path / "run", hostile=HOSTILE)
    path = write_report(run)
    page.open(path)
    assert page.errors == [] and page.requests == []
    page.click("#clear-filters")
    assert page.text("#rollout-count").startswith("511 of 511")
    until(page, "!document.querySelector('#row-0 .what').textContent.startsWith('…')")
    page.js("document.querySelector('#rollout-list').focus()")
    page.key("End")
    last = "document.querySelector('[aria-selected=true].row').id === 'row-510'"
    until(page, f"document.querySelector('#shown-prompt') && {last}")
    page.click("#f-search")
    page.write("LD17")
    until(page, "document.querySelector('#rollout-count').textContent.startsWith('11 of 511')")  # LD17, LD170 to LD179
    page.click("#clear-filters")
    page.click("#row-0")
    page.click("#tab-pair")
    until(
        page,
        "document.querySelector('#answers-left li') && !/…/.test(document.querySelector('#answers-left').textContent)",
    )
    assert page.text("#answers-right .note").startswith("3 of 4 pass")
    assert page.js("window.stolen === undefined") and page.errors == []
    for name in (run / "report_data").iterdir():
        name.unlink()
    page.open(path)
    assert "is not next to this page" in page.text("#rollout-absent")


@pytest.mark.long
def test_a_hundred_thousand_rollouts_open_in_two_seconds(page: Page, tmp_path: Path) -> None:
    stage = write_stage(tmp_path / "run", "grpo", metrics=figures(0.5))
    with (stage / "rollouts.jsonl").open("w") as log:
        for i in range(100_000):
            row = rollout(f"prompt {i % 7000} " * 4, f"answer {i} " * 8, step=i // 100, ids=list(range(60)),
                          logprobs=[-0.1] * 60, status="pass" if i % 3 else "fail")  # fmt: skip
            log.write(json.dumps(row) + "\n")
    path = write_report(tmp_path / "run")
    fastest = min(page.open(path) for _ in range(3))  # the machine is shared; what it can do is what counts
    assert page.text("#rollout-count").startswith("100,000 of 100,000")
    assert fastest < 2.0
    page.choose("#f-sort", "-length")
    assert page.errors == []
