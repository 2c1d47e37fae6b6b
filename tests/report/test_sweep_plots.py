"""The plots of a sweep: which accuracy stands at which value, and that the page draws it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from browser import Page
from test_report_browser import write_comparison

from pipeline.report import write_report
from pipeline.report.comparison_page import sweep_plots

AXES: dict[str, list[Any]] = {"samples": [8, 16], "optimizer.learning_rate": [0.0001, 0.0003, 0.001]}


def row(method: str, accuracy: float) -> dict[str, object]:
    return {"method": method, "accuracy": accuracy, "ci95": [accuracy - 0.1, accuracy + 0.1]}


def test_the_key_with_the_most_values_is_the_axis_and_the_other_makes_the_lines() -> None:
    rows = [
        row(f"grpo-samples-{n}-learning_rate-{rate}", n / 100 + rate)
        for n in (8, 16)
        for rate in (0.0001, 0.0003, 0.001)
    ]
    (plot,) = sweep_plots({"grpo": AXES}, rows[:-1])  # without the last row, as in a table of fewer methods
    assert (plot["method"], plot["key"], plot["values"]) == (
        "grpo",
        "optimizer.learning_rate",
        ["0.0001", "0.0003", "0.001"],
    )
    assert [line["name"] for line in plot["lines"]] == ["samples 8", "samples 16"]
    assert plot["lines"][0]["y"] == pytest.approx([0.0801, 0.0803, 0.081])
    assert plot["lines"][1]["y"] == [pytest.approx(0.1601), pytest.approx(0.1603), None]
    assert plot["lines"][1]["low"][2] is None
    assert plot["lines"][0]["high"] == pytest.approx([0.1801, 0.1803, 0.181])


def test_the_page_draws_one_point_per_value(page: Page, tmp_path: Path) -> None:
    root = write_comparison(tmp_path / "compared")
    path = root / "compare" / "manifest.json"
    manifest = json.loads(path.read_text())
    method = next(r for r in manifest["metrics"]["table"] if r["method"] == "grpo")
    variants = [{**method, "method": f"grpo-learning_rate-{rate}"} for rate in (0.0001, 0.0003, 0.001)]
    manifest["metrics"]["table"] += variants
    manifest["config"] = {"stage": {"sweep": {"grpo": {"optimizer.learning_rate": [0.0001, 0.0003, 0.001]}}}}
    path.write_text(json.dumps(manifest))
    page.open(write_report(root))
    assert page.text("#sweep figcaption strong") == "grpo: held-out accuracy by optimizer.learning_rate"
    assert page.js("document.querySelectorAll('#sweep circle.point').length") == 3
    ticks = page.js("JSON.stringify([...document.querySelectorAll('#sweep svg text')].map((n) => n.textContent))")
    assert [t for t in json.loads(ticks) if t.startswith("0.0")] == ["0.0001", "0.0003", "0.001"]
