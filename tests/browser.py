"""A headless Chromium driven over its debugging protocol: real clicks, real keys, and a record of what went wrong.

Nothing is fetched: it opens files, and every request that is not for one is noted.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --remote-debugging-port=0"
).split()
KEYS = {"ArrowDown": 40, "ArrowUp": 38, "ArrowLeft": 37, "ArrowRight": 39, "End": 35, "Home": 36, "Tab": 9, "Enter": 13}


def installed() -> str | None:
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """One open page. errors: exceptions and console errors; requests: addresses that are not files or data."""

    def __init__(self, connection: Any) -> None:
        self.connection, self.number = connection, 0
        self.errors: list[str] = []
        self.requests: list[str] = []
        for domain in ("Runtime", "Log", "Page", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.number += 1
        self.connection.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self.connection.recv(timeout=60))
            if message.get("id") == self.number:
                assert "error" not in message, message["error"]
                return message["result"]
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        method, parameters = message.get("method"), message.get("params", {})
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(parameters["exceptionDetails"]))
        elif method == "Log.entryAdded" and parameters["entry"]["level"] in ("error", "warning"):
            self.errors.append(json.dumps(parameters["entry"]))
        elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "warning"):
            self.errors.append(json.dumps(parameters["args"]))
        elif method == "Network.requestWillBeSent":
            address = parameters["request"]["url"]
            if not address.startswith(("file:", "data:")):
                self.requests.append(address)

    def open(self, path: Path, *, width: int = 1200, height: int = 900, dark: bool = False) -> float:
        """Seconds until the page says that it is ready, rollouts and all."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        # without smooth scrolling, during which a click would miss
        features = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce"}
        self.call("Emulation.setEmulatedMedia", features=[{"name": n, "value": v} for n, v in features.items()])
        begun = time.monotonic()
        self.call("Page.navigate", url=path.resolve().as_uri())
        while not self.js("document.documentElement?.dataset.ready || ''"):
            assert time.monotonic() - begun < 60, (self.errors, "the page never became ready")
            time.sleep(0.02)
        return float(self.js("document.documentElement.dataset.ready")) / 1000

    def js(self, expression: str) -> Any:
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def click(self, selector: str) -> None:
        """A press and a release of the mouse in its middle: what lies under something else is missed."""
        self.js(
            f"document.querySelector({json.dumps(selector)}).scrollIntoView({{block: 'center', behavior: 'instant'}})"
        )
        box = self.js(
            f"(() => {{ const b = document.querySelector({json.dumps(selector)}).getBoundingClientRect(); "
            "return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)
        self.settle()

    def settle(self) -> None:
        """Two frames later: events that a click sets off have been handled."""
        frames = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))"
        self.call("Runtime.evaluate", expression=frames, awaitPromise=True)

    def key(self, name: str) -> None:
        code = KEYS[name]
        for kind in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code)

    def write(self, text: str) -> None:
        for letter in text:
            self.call("Input.dispatchKeyEvent", type="char", text=letter)

    def choose(self, selector: str, value: str) -> None:
        """Pick an option by the keyboard, as a person without a mouse would."""
        options = f"[...document.querySelector({json.dumps(selector)}).options].map((o) => o.value)"
        place = self.js(f"{options}.indexOf({json.dumps(value)})")
        assert place >= 0, f"{selector} has no option {value!r}"
        self.js(f"document.querySelector({json.dumps(selector)}).focus()")
        self.key("Home")
        for _ in range(place):
            self.key("ArrowDown")

    def text(self, selector: str) -> str:
        return str(self.js(f"document.querySelector({json.dumps(selector)}).textContent"))

    def count(self, selector: str) -> int:
        return int(self.js(f"document.querySelectorAll({json.dumps(selector)}).length"))


@contextlib.contextmanager
def chromium() -> Iterator[Page]:
    from websockets.sync.client import connect

    program = installed()
    assert program is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stderr is not None
            line = next(one for one in process.stderr if "DevTools listening on" in one)
            port = line.split(":")[-1].split("/")[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=30) as answer:
                target = next(t for t in json.load(answer) if t["type"] == "page")
            with connect(target["webSocketDebuggerUrl"], max_size=None, open_timeout=30) as connection:
                yield Page(connection)
        finally:
            process.terminate()
            process.wait(20)
