"""whetstone ui RUNS_DIR: a local page that lists runs as they go, opens their reports, and lets people rate samples.

It listens on 127.0.0.1 only, answers only requests for that host (no other site can reach it through a name that
resolves to this machine), and takes writes only with a header that another site's page cannot send.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from pipeline.cli.commands import options
from pipeline.cli.human_ratings import RatingDesk
from pipeline.config.load import ConfigError
from pipeline.report import write_report
from pipeline.report.collect import is_stage, tail_rows
from pipeline.report.rollout_files import FOLDER
from pipeline.run.manifest import read_manifest

HOST, PORT = "127.0.0.1", 8760
ASSETS = Path(__file__).with_name("assets")
REPORT_CSS = Path(__file__).parents[1] / "report" / "assets" / "page.css"
FILES = {"/": ("ui.html", "text/html"), "/ui.js": ("ui.js", "text/javascript"), "/ui.css": ("ui.css", "text/css")}
MAX_BODY = 1 << 16
ROLLOUT_FILE = re.compile(rf"{FOLDER}/\w+-\d+\.js")
HEADER = "X-Whetstone"  # a page of another site may not send it without asking first, which is refused
POLICY = "default-src 'self'; style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline'; img-src 'self' data:"
SHOWN = ("heldout_accuracy", "heldout_pair_accuracy", "reward_mean", "loss")


class Runs:
    """The runs of a directory, read again for each request."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._desks: dict[str, RatingDesk] = {}
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Runs, the newest first."""
        runs = [run for run in self.root.iterdir() if run.is_dir() and any(map(is_stage, run.iterdir()))]
        return [run.name for run in sorted(runs, key=changed_at, reverse=True)]

    def directory(self, name: str) -> Path:
        """Raises LookupError for what is no run of this directory, whatever it points at."""
        if name not in self.names():
            raise LookupError(f"no run {name!r}")
        return self.root / name

    def desk(self, name: str) -> RatingDesk:
        run = self.directory(name)
        with self._lock:
            return self._desks.setdefault(name, RatingDesk(run))

    def described(self) -> list[dict[str, Any]]:
        return [self._described(name) for name in self.names()]

    def _described(self, name: str) -> dict[str, Any]:
        run = self.root / name
        stages = [stage_line(stage) for stage in sorted(run.iterdir(), key=changed_at) if is_stage(stage)]
        desk = self.desk(name)
        return {"name": name, "changed": changed_at(run), "stages": stages, "rate": desk.stages(), **desk.counts()}


def changed_at(directory: Path) -> float:
    """When a run or stage last wrote a file of its own."""
    files = [*directory.glob("*.json*"), *directory.glob("*/*.json*")]
    return max((file.stat().st_mtime for file in files if file.is_file()), default=directory.stat().st_mtime)


def is_live(directory: Path) -> bool:
    """Whether a stage has begun and not ended: its report is written quickly and loads itself again."""
    return any(is_stage(stage) and not (stage / "manifest.json").is_file() for stage in directory.iterdir())


def stage_line(stage: Path) -> dict[str, Any]:
    """A stage's name, state, step and headline figure."""
    manifest = read_manifest(stage / "manifest.json")
    rows = tail_rows(stage / "metrics.jsonl", size=1 << 16)
    figures = {**(rows[-1] if rows else {}), **(manifest["metrics"] if manifest else {})}
    name = next((name for name in SHOWN if isinstance(figures.get(name), int | float)), None)
    return {"name": stage.name, "state": str(manifest["status"]) if manifest else "running or stopped",
            "step": rows[-1].get("step") if rows else None, "figure": name,
            "value": figures[name] if name else None}  # fmt: skip


class PageHandler(BaseHTTPRequestHandler):
    """Requests of the page. runs: set by the subclass that `handler` makes, since http.server creates the instances."""

    runs: Runs

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _answer(self, act: Callable[[], tuple[str, bytes]]) -> None:
        try:
            if (self.headers.get("Host") or "").rpartition(":")[0] not in (HOST, "localhost"):
                raise PermissionError("this page is for this machine only")
            kind, body = act()
        except LookupError as exc:
            self._send(404, "application/json", json.dumps({"error": str(exc)}).encode())
        except PermissionError as exc:
            self._send(403, "application/json", json.dumps({"error": str(exc)}).encode())
        except (ValueError, OSError) as exc:  # a run that is being written or removed meanwhile included
            self._send(400, "application/json", json.dumps({"error": " ".join(str(exc).split())}).encode())
        else:
            self._send(200, kind, body)

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        for name, value in (("Content-Type", f"{kind}; charset=utf-8"), ("Content-Length", str(len(body))),
                            ("Cache-Control", "no-store"), ("Content-Security-Policy", POLICY),
                            ("X-Content-Type-Options", "nosniff")):  # fmt: skip
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _get(self) -> tuple[str, bytes]:
        parts = urlsplit(self.path)
        if parts.path == "/page.css":
            return "text/css", REPORT_CSS.read_bytes()
        if parts.path in FILES:
            name, kind = FILES[parts.path]
            return kind, (ASSETS / name).read_bytes()
        if parts.path == "/api/runs":
            return as_json(self.runs.described())
        if parts.path.startswith("/report/"):
            name, _, file = unquote(parts.path[8:]).partition("/")
            run = self.runs.directory(name)
            if file:
                return "text/javascript", report_file(run, file)
            return "text/html", write_report(run, live=is_live(run)).read_bytes()
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        if parts.path in ("/api/sample", "/api/pair"):
            desk, stage = self.runs.desk(query.get("run", "")), query.get("stage", "")
            upcoming = desk.next_sample(stage) if parts.path == "/api/sample" else desk.next_pair(stage)
            return as_json({"next": upcoming, **desk.counts()})
        raise LookupError(f"nothing at {parts.path}")

    def _post(self) -> tuple[str, bytes]:
        if self.headers.get(HEADER) != "1":
            raise PermissionError(f"a write needs the header {HEADER}")
        size = int(self.headers.get("Content-Length") or 0)
        if not 0 < size <= MAX_BODY:
            raise ValueError("the body is empty or too long")
        body = json.loads(self.rfile.read(size))
        if not isinstance(body, dict):
            raise ValueError("the body is not an object")
        desk, stage = self.runs.desk(str(body.get("run"))), str(body.get("stage"))
        if self.path == "/api/rate":
            desk.rate(stage, str(body.get("key")), body.get("rating"))  # type: ignore[arg-type]
        elif self.path == "/api/prefer":
            desk.prefer(stage, str(body.get("better")), str(body.get("worse")))
        elif self.path == "/api/skip":
            desk.pass_over(stage, [str(key) for key in body.get("keys", ())])
        else:
            raise LookupError(f"nothing at {self.path}")
        return as_json(desk.counts())

    def log_message(self, *_: object) -> None:
        return

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # the browser has left
            return


def handler(runs: Runs) -> type[PageHandler]:
    class Bound(PageHandler):
        pass

    Bound.runs = runs
    return Bound


def report_file(run: Path, file: str) -> bytes:
    """A file of rollouts that a report loads. Raises LookupError for any other."""
    if not ROLLOUT_FILE.fullmatch(file) or not (run / file).is_file():
        raise LookupError(f"no file {file!r} of a report")
    return (run / file).read_bytes()


def as_json(value: object) -> tuple[str, bytes]:
    return "application/json", json.dumps(value).encode()


def server(root: Path, port: int) -> ThreadingHTTPServer:
    """The server, bound to this machine only. port 0 takes a free one. Raises ConfigError."""
    if not root.is_dir():
        raise ConfigError([f"ui: {root}: no such directory; name the one that holds your runs, as runs/"])
    try:
        return ThreadingHTTPServer((HOST, port), handler(Runs(root)))
    except (OSError, OverflowError) as exc:
        raise ConfigError([f"ui: port={port} cannot be used ({exc}); name another, as port=8761"]) from None


def ui(root: Path, words: Sequence[str]) -> None:
    """Serve until interrupted. Raises ConfigError."""
    port = options("ui", words).get("port", str(PORT))
    if not port.isdecimal():
        raise ConfigError([f"ui: port={port}: expected a number"])
    serving = server(root, int(port))
    print(f"http://{HOST}:{serving.server_port}/ shows {root}; only this machine can reach it. Ctrl-C ends it.",
          flush=True)  # fmt: skip
    try:
        serving.serve_forever()
    except KeyboardInterrupt:
        print("", flush=True)
    finally:
        serving.server_close()


__all__ = ["Runs", "server", "ui"]
