"""whetstone ui: this machine only, and ratings that a stage can train on; the page in a real browser, by clicks."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from browser import Page

from pipeline.cli import human_ratings, ui_server
from pipeline.cli.human_ratings import RatingDesk
from pipeline.config.load import ConfigError
from pipeline.config.schema import Model, Prompts, Tiny
from pipeline.data import sample_pool
from pipeline.models import models
from pipeline.records import Prompt, Rollout, Scored
from tests.small_chain import command, manifest

CHARACTERS = "abcde12345>:<0RLUD "
SCRIPT = "<img src=x onerror=document.title='owned'>"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("m") / "model"
    models.make_tiny(Tiny(characters=CHARACTERS), place, seed=1)
    return place


def rollouts(tokenizer: Any, answers: dict[str, list[str]]) -> list[dict[str, Any]]:
    out = []
    for number, (prompt, texts) in enumerate(answers.items()):
        asked = Prompt(number, prompt, tuple(tokenizer(prompt).input_ids), {"start": "a1", "goal": "b2"})
        for sample, text in enumerate(texts):
            ids = (*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id)
            scored = Scored(Rollout(asked, sample, ids, (0.0,) * len(ids), text, True), 0.5, "pass", {"r": 0.5})
            out.append(sample_pool.as_row(sample_pool.Entry(scored, "grpo")))
    return out


@pytest.fixture
def runs(tmp_path, model) -> Path:
    """A run with one finished stage and one that is going on, and a directory that is no run."""
    stage = tmp_path / "runs" / "mine" / "grpo"
    stage.mkdir(parents=True)
    tokenizer = models.load_tokenizer(str(model), Model())
    rows = rollouts(tokenizer, {"a1>b2:": ["RD", "DR", "RD"], "a1>c1:": ["RR", "LL"], f"a1>{SCRIPT}": [SCRIPT]})
    (stage / "rollouts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (stage / "metrics.jsonl").write_text('{"step": 3, "reward_mean": 0.25}\n{"step": 4, "reward_')
    (tmp_path / "runs" / "notes").mkdir()
    return tmp_path / "runs"


@pytest.fixture
def serving(runs) -> Iterator[ThreadingHTTPServer]:
    server = ui_server.server(runs, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def request(
    server: ThreadingHTTPServer, method: str, path: str, body: object = None, **headers: str
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    text = None if body is None else json.dumps(body)
    sent = {"Host": f"127.0.0.1:{server.server_port}", "X-Whetstone": "1", **headers}
    connection.request(method, path, text, {name.replace("_", "-"): value for name, value in sent.items()})
    reply = connection.getresponse()
    data = reply.read()
    return reply.status, json.loads(data) if "json" in (reply.getheader("Content-Type") or "") else data.decode()


def test_a_large_runs_report_loads_its_rollouts_from_the_server(serving, runs, monkeypatch):
    monkeypatch.setattr("pipeline.report.rollouts.LIMIT", 0)
    (runs / "mine" / "grpo" / "manifest.json").write_text(json.dumps({
        "stage": "grpo", "status": "complete", "parents": {}, "seed": 1, "config": {"stage": {"kind": "grpo"}},
        "inputs": {}, "outputs": {}, "metrics": {}, "tokens": {"completion": 0}, "wall_s": 1.0}))  # fmt: skip
    status, text = request(serving, "GET", "/report/mine/")
    assert status == 200
    (file,) = (runs / "mine" / "report_data").iterdir()
    assert file.name in text
    status, script = request(serving, "GET", f"/report/mine/report_data/{file.name}")
    assert status == 200 and script.startswith("whetstoneRows(0,{")
    for other in ("grpo/rollouts.jsonl", "report_data/../grpo/rollouts.jsonl", "report_data/none-0000.js"):
        assert request(serving, "GET", f"/report/mine/{other}")[0] == 404


def test_runs_are_listed_with_their_stages_as_far_as_they_are(serving) -> None:
    status, (run,) = request(serving, "GET", "/api/runs")
    assert status == 200 and (run["name"], run["rate"], run["ratings"]) == ("mine", ["grpo"], 0)
    assert run["stages"] == [
        {"name": "grpo", "state": "running or stopped", "step": 3, "figure": "reward_mean", "value": 0.25}
    ]
    assert request(serving, "GET", "/report/mine")[0] == 200 and "mine" in request(serving, "GET", "/report/mine")[1]


def test_it_answers_this_machine_only(serving, runs) -> None:
    assert serving.server_address[0] == "127.0.0.1"
    for host in ("evil.example:80", "evil.example", "127.0.0.1.evil.example:80", ""):
        assert request(serving, "GET", "/api/runs", Host=host)[0] == 403
    body = {"run": "mine", "stage": "grpo", "key": "x", "rating": 7}
    assert request(serving, "POST", "/api/rate", body, X_Whetstone="0")[0] == 403  # as another site would send
    assert not (runs / "mine" / human_ratings.RATINGS).exists()


@pytest.mark.parametrize("name", ["..", "notes", "%2e%2e", "..%2f..%2fetc", "mine/grpo", "nowhere"])
def test_nothing_but_a_run_is_opened(name, serving) -> None:
    assert request(serving, "GET", f"/report/{name}")[0] == 404
    assert request(serving, "GET", f"/api/sample?run={name}&stage=grpo")[0] == 404


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/api/rate", {"rating": 8}), ("/api/rate", {"rating": 0}), ("/api/rate", {"rating": "7"}),
        ("/api/rate", {"rating": True}), ("/api/rate", {"rating": 3, "key": "none"}), ("/api/rate", {"stage": "../x"}),
        ("/api/prefer", {"better": "none", "worse": "none"}), ("/api/rate", []), ("/api/skip", {"keys": ["none"]}),
    ],
)  # fmt: skip
def test_a_wrong_request_writes_nothing(path, body, serving, runs) -> None:
    key = request(serving, "GET", "/api/sample?run=mine&stage=grpo")[1]["next"]["key"]
    given = {"run": "mine", "stage": "grpo", "key": key, **body} if isinstance(body, dict) else body
    assert request(serving, "POST", path, given)[0] == 400
    assert sorted(p.name for p in (runs / "mine").iterdir()) == ["grpo"]


def test_each_answer_is_rated_once_and_the_file_is_a_pool(runs, model) -> None:
    desk = RatingDesk(runs / "mine")
    given: dict[str, int] = {}
    while (sample := desk.next_sample("grpo")) is not None:
        given[sample["key"]] = len(given) % 7 + 1
        desk.rate("grpo", sample["key"], given[sample["key"]])
        desk.rate("grpo", sample["key"], 1)  # a second click changes nothing
    assert len(given) == 5  # six samples, two of them the same answer
    assert RatingDesk(runs / "mine").next_sample("grpo") is None  # known to a server that starts later
    tokenizer = models.load_tokenizer(str(model), Model())
    pool = sample_pool.read(runs / "mine" / "ratings.jsonl", Prompts(path="x"), tokenizer, frozenset({2}))
    assert sorted(entry.scored.reward for entry in pool) == [1.0, 2.0, 3.0, 4.0, 5.0]
    sampled = [json.loads(line) for line in (runs / "mine" / "grpo" / "rollouts.jsonl").read_text().splitlines()]
    assert {entry.scored.rollout.ids for entry in pool} == {tuple(row["ids"]) for row in sampled}
    assert {entry.stage for entry in pool} == {"grpo"}


def test_of_each_prompt_one_pair_is_compared_and_no_other_can_be_read_from_the_file(runs, model) -> None:
    desk = RatingDesk(runs / "mine")
    chosen = []
    while (pair := desk.next_pair("grpo")) is not None:
        better, worse = pair["answers"]
        assert better["completion"] != worse["completion"]
        chosen.append((pair["prompt"], better["completion"], worse["completion"]))
        desk.prefer("grpo", better["key"], worse["key"])
    assert len(chosen) == 2  # the third prompt has one answer
    tokenizer = models.load_tokenizer(str(model), Model())
    pool = sample_pool.read(runs / "mine" / "comparisons.jsonl", Prompts(path="x"), tokenizer, frozenset({2}))
    found = [(e.scored.rollout.prompt.text, e.scored.rollout.text, e.scored.reward) for e in pool]
    assert found == [row for p, b, w in chosen for row in ((p, b, 1.0), (p, w, 0.0))]


def test_a_line_that_a_crash_left_half_written_costs_no_later_one(tmp_path) -> None:
    path = tmp_path / "ratings.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b": ')
    human_ratings.append(path, [{"c": 3}])
    assert human_ratings.read_rows(path) == [{"a": 1}, {"c": 3}]


def test_mistakes_are_one_line(tmp_path) -> None:
    with pytest.raises(ConfigError, match="no such directory"):
        ui_server.server(tmp_path / "nowhere", 0)
    with pytest.raises(ConfigError, match="port=many: expected a number"):
        ui_server.ui(tmp_path, ["port=many"])
    with pytest.raises(ConfigError, match="port=99999 cannot be used"):
        ui_server.ui(tmp_path, ["port=99999"])


# --- in a browser -----------------------------------------------------------------------------------------------------


def waited(page: Page, expression: str) -> Any:
    """The value of an expression once it is true."""
    wait = f"""new Promise((done, fail) => {{ const began = Date.now(); const look = () => {{
        const value = {expression};
        if (value) done(value); else if (Date.now() - began > 15000) fail(new Error('waited in vain'));
        else setTimeout(look, 20); }}; look(); }})"""
    result = page.call("Runtime.evaluate", expression=wait, awaitPromise=True, returnByValue=True)
    assert "exceptionDetails" not in result, (result["exceptionDetails"], page.errors)
    return result["result"].get("value")


def opened(page: Page, server: ThreadingHTTPServer) -> None:
    page.errors.clear()
    page.call("Page.navigate", url=f"http://127.0.0.1:{server.server_port}/")
    waited(page, "document.documentElement && document.documentElement.dataset.ready")


def test_clicks_and_keys_rate_and_compare_and_hostile_samples_stay_text(page, serving, runs) -> None:
    opened(page, serving)
    assert page.text(".run h2") == "mine" and "step 3, reward mean 0.250" in page.text(".run table")
    page.click(".run .rate")
    waited(page, "document.querySelector('[data-rating]')")
    for number in range(5):
        before = page.js("document.getElementById('desk').dataset.shown")
        if number < 3:
            page.click('[data-rating="7"]')
        else:
            page.call("Input.dispatchKeyEvent", type="keyDown", key="2", text="2")
            page.call("Input.dispatchKeyEvent", type="keyUp", key="2")
        waited(page, f"document.getElementById('desk').dataset.shown !== {json.dumps(before)}")
    assert page.text("#done").startswith("Nothing left") and page.text("#counts") == "5 rated, 0 compared"
    page.choose("#mode", "pair")
    waited(page, "document.querySelector('[data-better]')")
    first = page.text("#prompt")
    page.click('[data-better="1"]')
    waited(page, f"document.getElementById('prompt')?.textContent !== {json.dumps(first)}")
    page.click("#skip")
    waited(page, "document.getElementById('done')")
    ratings = human_ratings.read_rows(runs / "mine" / "ratings.jsonl")
    assert sorted(row["rating"] for row in ratings) == [2, 2, 7, 7, 7]
    assert [row["reward"] for row in human_ratings.read_rows(runs / "mine" / "comparisons.jsonl")] == [1.0, 0.0]
    assert page.js("document.title") == "Runs · Whetstone" and not page.errors, page.errors
    assert all(address.startswith("http://127.0.0.1:") for address in page.requests)


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, True)])
def test_no_width_scrolls_sideways_and_every_button_is_large_enough(width, dark, page, serving) -> None:
    page.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600)
    scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    page.call("Emulation.setEmulatedMedia", features=scheme)
    opened(page, serving)
    page.click(".run .rate")
    waited(page, "document.querySelector('[data-rating]')")
    assert page.js("document.documentElement.scrollWidth") <= width
    small = "[...document.querySelectorAll('button')].filter((b) => b.getBoundingClientRect().height < 40).length"
    assert page.js(small) == 0


@pytest.mark.stages
def test_ratings_by_clicks_end_in_a_round_of_feedme(page, tmp_path, no_engine_left_behind) -> None:
    """A run samples, a person clicks, FeedME trains on what got 7 of 7."""
    few = ["grpo.steps=2", "grpo.prompts=8", "grpo.samples=4", "stages=[base, sft, grpo]", "sft.trainer.max_steps=30"]
    assert command(tmp_path, "run", *few) == 0
    server = ui_server.server(tmp_path, 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        opened(page, server)
        page.click(".run .rate")
        waited(page, "document.querySelector('[data-rating]')")
        page.choose("#stage", "grpo")
        waited(page, "document.querySelector('[data-rating]')")
        for number in range(12):
            before = page.js("document.getElementById('desk').dataset.shown")
            page.click(f'[data-rating="{7 if number % 2 else 1}"]')
            waited(page, f"document.getElementById('desk').dataset.shown !== {json.dumps(before)}")
    finally:
        server.shutdown()
        server.server_close()
    pool = f"feedme.pool=[{tmp_path / 'small' / 'ratings.jsonl'}]"
    trained = ["feedme.rounds=1", "feedme.filters=[{threshold: 7}]", "feedme.trainer.max_steps=2"]
    assert command(tmp_path, "feedme", *few, pool, *trained) == 0
    assert manifest(tmp_path, "feedme")["status"] == "complete"
    assert len(human_ratings.read_rows(tmp_path / "small" / "ratings.jsonl")) == 12
