"""The report as it looks: full-page screenshots against stored ones, at four widths, light, dark and printed; by
keyboard alone; and the page of a run that is still running.

Screenshots are compared as thumbnails, so that another machine's fonts do not count and a section that moved, broke or
lost its colour does. After a wanted change: SCREENS=write python -m pytest tests/report/test_report_screens.py
"""

from __future__ import annotations

import base64
import io
import os
import time
from pathlib import Path
from typing import Any

import pytest
from browser import Page, installed
from report_kit import figures, write_run, write_stage

import pipeline.report as report
from pipeline.report import write_report
from pipeline.report.live import LiveReport

pytest.importorskip("websockets", reason="no websockets package to speak to Chromium")
Image = pytest.importorskip("PIL.Image", reason="no Pillow to compare screenshots")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(installed() is None, reason="no chromium installed: apt-get install chromium"),
]
STORED = Path(__file__).parent / "screens"
THUMB = {390: 40, 768: 64, 1280: 80, 1920: 96}  # width of the page -> width of its thumbnail, in pixels
CELLS = (16, 64)  # what is compared: so many means of colour over the whole page, whatever its height
MEAN, TALLER = 1.8, 0.06  # of 255: mean difference; and share by which the heights may differ
LOOKS = [*((width, "light") for width in (390, 768, 1280, 1920)), (390, "dark"), (1280, "dark"), (1280, "print")]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_run(tmp_path_factory.mktemp("runs") / "run"))


def thumbnail(page: Page, width: int) -> Any:
    """The whole page, made small."""
    size = page.call("Page.getLayoutMetrics")["cssContentSize"]
    clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
    shot = page.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)["data"]
    picture = Image.open(io.BytesIO(base64.b64decode(shot))).convert("RGB")
    small = THUMB[width]
    return picture.resize((small, round(small * picture.height / picture.width)), Image.Resampling.BOX)


def difference(one: Any, other: Any) -> float:
    """Mean difference of colour over the cells. A line of text more or less moves it by 1, a fault by more than 2."""
    pages = [page.resize(CELLS, Image.Resampling.BOX).tobytes() for page in (one, other)]
    return sum(abs(a - b) for a, b in zip(*pages, strict=True)) / len(pages[0])


def alike(one: Any, other: Any) -> bool:
    taller = abs(one.height - other.height) / max(one.height, other.height)
    return difference(one, other) <= MEAN and taller <= TALLER


def shown(page: Page, run: Path, width: int, look: str) -> Any:
    page.open(run, width=width, dark=look == "dark")
    if look == "print":
        page.call("Emulation.setEmulatedMedia", media="print")
    page.settle()
    taken = thumbnail(page, width)
    page.call("Emulation.setEmulatedMedia", media="")
    return taken


@pytest.mark.parametrize(("width", "look"), LOOKS)
def test_the_page_looks_as_it_did(page: Page, run: Path, tmp_path: Path, width: int, look: str) -> None:
    taken = shown(page, run, width, look)
    stored = STORED / f"{width}-{look}.png"
    if os.environ.get("SCREENS") == "write":
        STORED.mkdir(exist_ok=True)
        taken.save(stored, optimize=True)
    wanted = Image.open(stored).convert("RGB")
    taken.save(tmp_path / stored.name)
    assert alike(wanted, taken), (difference(wanted, taken), wanted.size, taken.size, f"see {tmp_path / stored.name}")


@pytest.mark.parametrize(
    "fault",
    [
        "body { background: #888 !important; }",  # a lost colour
        "#stage-grpo { display: none; }",  # a lost section
        ".charts { display: block !important; } .chart { width: 30%; }",  # a broken grid
        "#result { padding-left: 45%; }",  # a section out of place
    ],
)
def test_a_fault_of_the_page_is_seen_by_the_comparison(page: Page, run: Path, fault: str) -> None:
    wanted = shown(page, run, 1280, "light")
    page.js(f"document.head.append(Object.assign(document.createElement('style'), {{textContent: {fault!r}}}))")
    page.settle()
    assert not alike(wanted, thumbnail(page, 1280))


FOCUSED = """(() => {
  const e = document.activeElement, b = e.getBoundingClientRect(), s = getComputedStyle(e);
  return { tag: e.tagName, text: (e.textContent || '').slice(0, 30), href: e.getAttribute('href') || '', id: e.id,
    seen: b.width * b.height > 0 && b.bottom > 0 && b.top < innerHeight, ring: s.outlineStyle !== 'none' };
})()"""


def test_every_control_is_reached_by_the_tab_key_and_shows_that_it_has_the_focus(page: Page, run: Path) -> None:
    page.open(run, width=1280)
    page.js("document.documentElement.style.scrollBehavior = 'auto'")
    stops: list[dict[str, Any]] = []
    for _ in range(120):
        page.key("Tab")
        stop = page.js(FOCUSED)
        if stop["tag"] == "BODY" or (stops and stop == stops[0]):
            break
        stops.append(stop)
    assert stops[0]["href"] == "#main", "the first stop skips to the result"
    hidden = [stop for stop in stops if not stop["seen"] or not stop["ring"]]
    assert hidden == [], "focused, and not to be seen"
    links = [stop["href"] for stop in stops if stop["tag"] == "A"]
    sections = page.js("[...document.querySelectorAll('nav a')].map((a) => a.getAttribute('href'))")
    assert links[1 : 1 + len(sections)] == sections
    reached = {stop["id"] for stop in stops}
    assert {"f-stage", "f-source", "f-sort", "f-search", "clear-filters", "rollout-list"} <= reached
    assert sum(stop["tag"] == "svg" for stop in stops) >= 6, "charts are read with the arrow keys"


# --- a run that goes on -----------------------------------------------------------------------------------------------


def until(page: Page, expression: str, limit_s: float = 20) -> None:
    begun = time.monotonic()
    while True:
        try:
            if page.js(expression):
                return
        except AssertionError:
            pass  # between two pages
        assert time.monotonic() - begun < limit_s, f"never: {expression}"
        time.sleep(0.1)


def test_the_page_of_a_live_run_loads_itself_until_the_run_is_over(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "RELOAD_S", 1)
    root = tmp_path / "run"
    steps = [{"step": n, "reward_mean": n / 10} for n in range(1, 5)]
    write_stage(root, "grpo", complete=False, steps=steps)
    page.open(write_report(root, live=True))
    assert "this page reloads every" in page.text(".live") and page.errors == []
    write_stage(root, "grpo", complete=False, steps=[*steps, {"step": 5, "reward_mean": 0.9}])
    write_report(root, live=True)
    until(page, "document.querySelector('#report-data')?.textContent.includes('0.9')")
    page.click(".live button")
    assert "reloading is paused" in page.text(".live")
    write_stage(root, "grpo", metrics=figures(0.5), steps=steps)
    write_report(root)
    time.sleep(2.5)
    assert page.text(".live button") == "Resume", "a paused page stays as it is"
    page.js("sessionStorage.clear()")
    page.js("location.reload()")
    until(page, "document.documentElement.dataset.ready && !document.querySelector('.live')")
    assert page.errors == [] and page.requests == []


def test_a_page_that_was_not_written_for_long_stops_loading_itself(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report.time, "time", lambda: 1.0)
    write_stage(tmp_path / "run", "grpo", complete=False, steps=[{"step": 1, "reward_mean": 0.1}])
    page.open(write_report(tmp_path / "run", live=True))
    assert "the run may have stopped" in page.text(".live")


def test_a_live_report_is_written_now_and_then_and_never_stops_the_run(tmp_path: Path, capsys: Any) -> None:
    now = [100.0]
    live = LiveReport(tmp_path / "run", clock=lambda: now[0])
    live({"step": 1})  # there is no run yet
    assert "no such run directory" in capsys.readouterr().out
    write_stage(tmp_path / "run", "grpo", complete=False, steps=[{"step": 1, "reward_mean": 0.1}])
    page = tmp_path / "run" / "report.html"
    now[0] += 10
    live({"step": 2})
    assert not page.exists(), "not before its time"
    now[0] += 25
    live({"step": 3})
    assert '"live":{' in page.read_text()
    write_report(tmp_path / "run")
    assert '"live":{' not in page.read_text()


def test_the_navigation_says_on_a_phone_that_it_continues(page: Page, run: Path) -> None:
    mark = "getComputedStyle(document.querySelector('nav'), '::after').content"
    page.open(run, width=390)
    page.settle()
    assert page.js(mark) == '"›"' and page.js("document.querySelector('nav').classList.contains('continues')")
    page.js("document.querySelector('nav').scrollLeft = 1e6")
    page.settle()
    assert page.js(mark) == "none", "its last link is in sight"
    page.open(run, width=1280)
    page.settle()
    assert page.js(mark) == "none"


def test_names_of_policies_are_not_cut_at_the_edge_of_a_chart(page: Page, run: Path) -> None:
    for width in (390, 1280):
        page.open(run, width=width)
        beyond = """[...document.querySelectorAll('svg')].flatMap((svg) => [...svg.querySelectorAll('text.name')]
          .filter((t) => t.getBoundingClientRect().left < svg.getBoundingClientRect().left - 0.5)
          .map((t) => t.textContent))"""
        assert page.js(beyond) == []
