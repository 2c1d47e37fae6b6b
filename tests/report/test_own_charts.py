"""Charts that a stage describes in its own metrics: what the report takes of them, whatever a manifest holds."""

from __future__ import annotations

import pytest

from pipeline.report.summary import chart_figures


def test_a_chart_with_series_is_kept_as_described():
    chart = {"title": "t", "xLabel": "x", "logX": True, "series": [{"name": "a", "x": [1, 2], "y": [3, None]}]}
    assert chart_figures([chart]) == [chart]


@pytest.mark.parametrize("charts", [None, "text", 3, [None], [{}], [{"series": None}], [{"series": [{"name": "a"}]}]])
def test_what_is_no_chart_is_left_out(charts: object):
    assert chart_figures(charts) == []
