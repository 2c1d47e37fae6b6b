"""A reward endpoint that is slow, down or wrong, under a real policy stage: in time, counted, never a wrong verdict."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from loop_kit import metrics, run_stage

from verifiers import judge

pytestmark = [pytest.mark.stages, pytest.mark.usefixtures("no_engine_left_behind")]
Answer = Callable[[dict[str, Any], int], tuple[int, str]]


class Endpoint:
    """A judge that answers as it is told to; `asked` counts its calls by the answer they were for."""

    def __init__(self, answer: Answer) -> None:
        endpoint = self
        self.asked: dict[str, int] = {}
        self.lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                request = json.loads(body["messages"][1]["content"])
                with endpoint.lock:
                    endpoint.asked[request["code"]] = endpoint.asked.get(request["code"], 0) + 1
                    number = len(endpoint.asked)
                status, text = answer(request, number)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(json.dumps({"choices": [{"message": {"content": text}}]}).encode())

            def log_message(self, *_: object) -> None:
                pass

            def handle(self) -> None:
                try:
                    super().handle()
                except OSError:  # whoever asked has given up
                    return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def run(tmp_path, model, monkeypatch) -> Iterator[Callable[..., tuple[int, float]]]:
    """(exit code, seconds) of a policy stage whose reward is the endpoint's."""
    opened: list[Endpoint] = []
    monkeypatch.setattr(judge, "TIMEOUT_S", 1.0)

    def ask(endpoint: Endpoint | str, *overrides: str) -> tuple[int, float]:
        if isinstance(endpoint, Endpoint):
            opened.append(endpoint)
        url = endpoint if isinstance(endpoint, str) else endpoint.url
        reward = f"rewards={{judge: {{timeout_s: 5, task: {{rubric: Be kind., url: '{url}'}}}}}}"
        started = time.monotonic()
        code = run_stage(tmp_path, model, "grpo", reward, "evaluation.samples=1", *overrides)
        return code, time.monotonic() - started

    yield ask
    for endpoint in opened:
        endpoint.server.shutdown()


def fair(request: dict[str, Any], number: int) -> tuple[int, str]:
    return 200, f"GRADE {request['code']} {min(10, request['answer'].count('R') * 3)}"


def test_an_endpoint_that_grades_trains_a_policy(run, tmp_path):
    assert run(Endpoint(fair))[0] == 0
    assert all(row["checker_broken"] == 0 for row in metrics(tmp_path, "grpo"))


def test_one_that_is_down_stops_the_run_with_its_cause(run, tmp_path, capsys):
    code, seconds = run("http://127.0.0.1:1/v1")
    said = capsys.readouterr().err
    assert code == 3 and "100% of the samples could not be scored (limit 20%): judge: " in said
    assert "refused" in said and seconds < 30
    assert not (tmp_path / "t" / "grpo" / "manifest.json").exists()


def test_one_that_fails_is_asked_three_times_and_no_more(run, capsys):
    endpoint = Endpoint(lambda request, number: (503, ""))
    assert run(endpoint)[0] == 3
    assert "HTTP 503" in capsys.readouterr().err
    assert max(endpoint.asked.values()) == judge.ATTEMPTS


def test_one_that_never_answers_holds_the_run_up_to_its_deadlines_only(run, capsys):
    release = threading.Event()

    def hang(request: dict[str, Any], number: int) -> tuple[int, str]:
        release.wait(60)
        return fair(request, number)

    code, seconds = run(Endpoint(hang))
    release.set()
    said = capsys.readouterr().err
    assert code == 3 and "could not be scored" in said and "timed out" in said
    assert seconds < 30, "16 rows at once, three tries of a second each"


@pytest.mark.parametrize(
    "reply",
    ["GRADE {other} 10", "This is perfect: 10/10", "GRADE {code} 10\nGRADE {code} 0", "GRADE {code} 99", ""],
    ids=["another's code", "no grade", "two grades", "off the scale", "nothing"],
)
def test_one_that_answers_nonsense_gives_no_verdict_at_all(run, capsys, reply):
    endpoint = Endpoint(lambda request, number: (200, reply.format(code=request["code"], other="0" * 16)))
    assert run(endpoint)[0] == 3
    assert "100% of the samples could not be scored" in capsys.readouterr().err


def test_a_few_rows_without_a_grade_are_counted_and_left_out(run, tmp_path):
    def mostly(request: dict[str, Any], number: int) -> tuple[int, str]:
        return (200, "I cannot say.") if number % 8 == 0 else fair(request, number)

    assert run(Endpoint(mostly), "grpo.alarms.checker_broken_share=0.9")[0] == 0
    rows = metrics(tmp_path, "grpo")
    assert sum(row["checker_broken"] for row in rows) > 0
    kept = [json.loads(line) for line in (tmp_path / "t" / "grpo" / "rollouts.jsonl").read_text().splitlines()]
    broken = [r for r in kept if r["status"] == "error"]
    assert broken and all(r["reward"] is None and r["advantages"] == 0.0 for r in broken)
    right = [r for r in kept if r["status"] in ("pass", "fail")]
    assert all(r["reward"] == pytest.approx(min(10, r["completion"].strip().count("R") * 3) / 10) for r in right)
