"""One HTML file from data, styles and scripts. It fetches nothing, and what a run wrote cannot execute in it.

Everything of a run travels as JSON in a data block, never as markup; the scripts put it on the page as text only. A
content security policy allows these scripts by their hash and nothing else.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import html
import json
from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

ASSETS = Path(__file__).parent / "assets"
SCRIPTS = ("dom.js", "charts.js", "sections.js", "comparison.js", "rows.js", "browser.js", "main.js")


def data_block(name: str, value: Any) -> str:
    """A JSON block no script of a run can break out of."""
    return f'<script type="application/json" id="{name}">{safe_json(value)}</script>'


def safe_json(value: Any) -> str:
    """JSON in ASCII without the characters that begin or end markup: `<`, `>` and `&` are escaped.

    NaN and infinities become null, which JSON lacks; lone surrogates and NUL stay escapes.
    """
    write = functools.partial(json.dumps, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    try:
        text = write(value)
    except (TypeError, ValueError):
        text = write(finite(value))  # walks all numbers: of 100,000 rollouts a second
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return text


def finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(v) for v in value]
    return value


def render(title: str, report: Mapping[str, Any], rollouts: Mapping[str, Any], written_from: str = "") -> str:
    """The complete page. Never raises because of what a run contains.

    written_from: the fingerprint of what it shows; "" while the run is still running.
    """
    script = "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in SCRIPTS)
    script = f'"use strict";\n(() => {{\n{script}\n}})();\n'
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    safe_title = html.escape(title.encode("utf-8", "replace").decode().replace("\0", "�"))
    return Template((ASSETS / "page.html").read_text(encoding="utf-8")).substitute(
        title=safe_title,
        written_from=html.escape(written_from),
        script_hash=digest,
        # rows next to the page: beside a file on disk, or from the server that the page came from
        files=" file: 'self'" if rollouts.get("files") else "",
        style=(ASSETS / "page.css").read_text(encoding="utf-8"),
        report=data_block("report-data", report),
        rollouts=data_block("rollout-data", rollouts),
        script=script,
    )
