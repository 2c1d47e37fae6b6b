"""The report: what it says against figures set by hand, and that nothing a run wrote can act in it."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_kit import HOSTILE, figures, rollout, write_run, write_stage

from pipeline.config.load import ConfigError
from pipeline.report import report_up_to_date, rollouts, summary, write_report
from pipeline.report.collect import curves, read_rows, read_stages
from pipeline.report.page import data_block


class Parsed(HTMLParser):
    """Tags with their attributes, and the text of each script by its id."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.inside: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = (dict(attrs).get("id") or "code") if tag == "script" else None

    def handle_endtag(self, tag: str) -> None:
        self.inside = None

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.scripts[self.inside] = self.scripts.get(self.inside, "") + data

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def parsed(path: Path) -> Parsed:
    return Parsed(path.read_text(encoding="utf-8"))


def report_of(path: Path) -> dict:
    return json.loads(parsed(path).scripts["report-data"])


def carried(path: Path) -> dict:
    return json.loads(parsed(path).scripts["rollout-data"])


def test_text_of_a_run_cannot_become_markup(tmp_path: Path) -> None:
    page = parsed(write_report(write_run(tmp_path / "run", hostile=HOSTILE)))
    assert page.count("script") == 3  # two blocks of data and our own code
    assert page.count("img") == 0
    shown = json.loads(page.scripts["rollout-data"])
    assert HOSTILE in shown["tables"]["completion"], "it is there to be read, unchanged"
    assert HOSTILE in shown["tables"]["detail"]


def test_a_data_block_is_plain_ascii_without_any_bracket() -> None:
    text = data_block("x", {"a": HOSTILE, "b": float("nan"), "c": [float("inf"), 1.5]})
    inner = text.removeprefix('<script type="application/json" id="x">').removesuffix("</script>")
    assert inner.isascii() and not set("<>&\0") & set(inner)
    assert json.loads(inner) == {"a": HOSTILE, "b": None, "c": [None, 1.5]}


def test_the_page_names_no_place_to_fetch_from(tmp_path: Path) -> None:
    page = parsed(write_report(write_run(tmp_path / "run")))
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, name, value)
    policy = next(a["content"] for t, a in page.tags if t == "meta" and a.get("http-equiv"))
    assert policy and policy.startswith("default-src 'none'; script-src 'sha256-")


def test_a_name_with_markup_stays_a_name(tmp_path: Path) -> None:
    page = parsed(write_report(write_run(tmp_path / "<b>run&")))
    assert page.count("b") == 0


def test_the_headline_is_the_paired_difference_of_start_and_best(tmp_path: Path) -> None:
    head = report_of(write_report(write_run(tmp_path / "run")))["headline"]
    assert (head["before"]["policy"], head["after"]["policy"]) == ("sft", "feedme")
    # every prompt gained exactly a quarter: no resample of prompts can say otherwise
    assert head["difference"]["mean"] == pytest.approx(0.25)
    assert head["difference"]["ci95"] == pytest.approx([0.25, 0.25])
    assert head["difference"]["prompts"] == 20


def test_a_control_stands_beside_its_policy(tmp_path: Path) -> None:
    rows = {r["policy"]: r for r in report_of(write_report(write_run(tmp_path / "run")))["policies"]}
    assert rows["feedme"]["control_accuracy"] == 0.41
    assert rows["grpo"].get("control") is None


def test_a_report_is_up_to_date_until_a_file_of_its_run_changes(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert report_up_to_date(run) is None, "there is none yet"
    path = write_report(run)
    assert report_up_to_date(run) == path
    with (run / "grpo" / "rollouts.jsonl").open("a") as log:
        log.write("{}\n")
    assert report_up_to_date(run) is None
    write_report(run, live=True)
    assert report_up_to_date(run) is None, "a page of a live run shows the newest rollouts alone"


def test_a_run_still_going_is_reported_as_such(tmp_path: Path) -> None:
    data = report_of(write_report(write_run(tmp_path / "run")))
    assert ["stages", "6 complete, not complete: ppo"] in data["facts"]
    killed = next(s for s in data["stages"] if s["name"] == "ppo")
    assert not killed["complete"] and killed["curves"][0]["x"] == [1, 2, 3, 4, 5]


def test_one_stage_can_be_reported_alone(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    data = report_of(write_report(run / "grpo"))
    assert [s["name"] for s in data["stages"]] == ["grpo"]


def test_no_run_is_a_mistake_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such run directory"):
        write_report(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no stage"):
        write_report(tmp_path / "empty")


def test_a_broken_line_is_named_and_a_half_written_one_is_not_yet_there(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"ste')
    assert [r["step"] for r in read_rows(path)] == [1, 2]
    path.write_text('{"step": 1}\n{"step\n{"step": 3}\n')
    with pytest.raises(ConfigError, match=r"metrics\.jsonl:2: not JSON"):
        list(read_rows(path))


def test_parents_come_before_their_children_whatever_their_names(tmp_path: Path) -> None:
    run = tmp_path / "run"
    write_stage(run, "a_last", kind="grpo", parents=("m_middle",))
    write_stage(run, "m_middle", kind="sft", parents=("z_first",))
    write_stage(run, "z_first", kind="base")
    stages = read_stages(run)
    assert [s.name for s in stages] == ["z_first", "m_middle", "a_last"]
    tree = summary.lineage(stages)
    assert [n["depth"] for n in tree["nodes"]] == [0, 1, 2]
    assert tree["edges"] == [["z_first", "m_middle"], ["m_middle", "a_last"]]


def test_the_monitor_shows_the_worst_step_and_how_near_its_limit_it_came(tmp_path: Path) -> None:
    stage = next(s for s in read_stages(write_run(tmp_path / "run")) if s.name == "grpo")
    found = {c["name"]: c for c in summary.checks(stage)}
    assert (found["mismatch_mean_abs"]["worst"], found["mismatch_mean_abs"]["step"]) == (0.08, 8)
    assert found["mismatch_mean_abs"]["state"] == "near"  # limit 0.1
    assert found["canary_max_abs"]["state"] == "good"


def test_a_conditioned_stage_without_its_control_is_reported_by_what_it_reached() -> None:
    reached = {"top_bin_accuracy": 0.6, "best_bin": 1}
    assert summary.controls_of(reached) == {"asked_best": 0.6}
    found = summary.controls_of(
        {**reached, "shuffled_curve": [{"accuracy": 0.1}, {"accuracy": 0.3}, {"accuracy": 0.2}]}
    )
    assert (found["control"], found["control_accuracy"]) == ("shuffled labels", 0.3)


def test_the_canarys_limit_is_the_one_the_run_had(tmp_path: Path) -> None:
    steps = [{"step": 0, "canary_max_abs": 0.06}]
    for name, tolerance in (("coarse", 0.25), ("fine", 1e-3)):
        write_stage(tmp_path, name, kind="grpo", steps=steps, metrics={"canary_tolerance": tolerance})
    states = {s.name: summary.checks(s)[0]["state"] for s in read_stages(tmp_path)}
    assert states == {"coarse": "good", "fine": "bad"}


def test_the_hacking_monitors_limits_count_only_where_they_can_stop_the_run(tmp_path: Path) -> None:
    steps = [{"step": i, "monitor_gap_rise": g, "monitor_commonest": 0.1, "monitor_strict": 0.5}
             for i, g in enumerate((-0.9, 0.02, 0.1))]  # fmt: skip
    limits = {"gap": 0.15, "fall": 0.15, "alarm": None}
    write_stage(tmp_path, "on", kind="grpo", steps=steps, block={"monitor": limits})
    write_stage(tmp_path, "off", kind="grpo", steps=steps, block={"monitor": limits | {"alarm": False}})
    stages = {s.name: s for s in read_stages(tmp_path)}
    on, off = ({c["name"]: c for c in summary.checks(stages[name])} for name in ("on", "off"))
    gap = on["monitor_gap_rise"]
    assert (gap["worst"], gap["step"], gap["limit"], gap["state"]) == (0.1, 2, 0.15, "near")
    assert off["monitor_gap_rise"]["limit"] is None and "monitor_fall" not in on


def test_settings_show_what_differs_from_the_defaults_and_from_the_parent(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    write_stage(run, "again", kind="grpo", parents=("sft",), shared={"rewards": {"grid": {"weight": 2.0}}})
    stages = {s.name: s for s in read_stages(run)}
    assert ["steps", "30", "100"] in summary.own_settings(stages["grpo"])
    assert summary.changed_settings(stages["again"], stages) == [["rewards.grid.weight (parent sft)", "1", "2"]]
    assert summary.changed_settings(stages["grpo"], stages) == []


def test_curves_of_many_steps_are_thinned_and_keep_their_end(tmp_path: Path) -> None:
    write_stage(tmp_path, "grpo", steps=[{"step": i, "reward_mean": i * 2.0} for i in range(5000)])
    line = curves(read_stages(tmp_path)[0])[0]
    assert len(line["x"]) <= 501 and line["x"][0] == 0 and line["x"][-1] == 4999
    assert all(y == 2 * x for x, y in zip(line["x"], line["series"]["reward_mean"], strict=True))


# --- rollouts -----------------------------------------------------------------------------------------------------


def test_columns_give_every_row_back() -> None:
    rows = [
        rollout("p", "abc", reward=0.12345, step=3, advantages=-0.5, kl=[0.001, 0.002, 0.003, 0.004]),
        rollout("q", "", reward=None, status="error", step=4, advantages=[1.0], kl=[0.5]),
    ]
    data = rollouts.columns([{**r, "stage": "grpo"} for r in rows], lambda stage, token: f"t{token}")
    assert data["count"] == 2 and data["tokens"] == [4, 1]
    back = [{n: data["tables"][n][data["coded"][n][i]] for n in data["tables"]} for i in range(2)]
    assert [b["prompt"] for b in back] == ["p", "q"] and [b["status"] for b in back] == ["pass", "error"]
    assert data["reward"] == [0.1235, None] and data["parts"]["grid"] == [0.1235, None]
    assert data["per_token"]["advantages"] == [-500, -500, -500, -500, 1000]
    assert data["per_token"]["kl"] == [1, 2, 3, 4, 500]
    assert [data["words"][i] for i in data["ids"]] == ["t0", "t1", "t2", "t3", "t0"]


def test_a_part_that_appears_late_is_empty_before() -> None:
    rows = [rollout("p", "a"), rollout("p", "b", parts={"grid": 1.0, "late": 0.5}), rollout("p", "c")]
    data = rollouts.columns([{**r, "stage": "x"} for r in rows], lambda stage, token: "t")
    assert data["parts"]["late"] == [None, 0.5, None]


def test_too_many_rollouts_are_cut_by_whole_prompts() -> None:
    rows = [rollout(f"p{i % 50}", f"{i}", step=i // 50) for i in range(1000)]
    kept = list(rollouts.whole_prompts(rows, rollouts.prompt_counts(rows), 200))
    prompts = {r["prompt"] for r in kept}
    assert len(kept) == 200 and len(prompts) == 10
    assert [r for r in rows if r["prompt"] in prompts] == kept, "all steps of each prompt, in order"


def test_room_is_shared_and_what_a_stage_leaves_goes_to_the_others() -> None:
    sizes = {"evaluate": 4000, "grpo": 50_000, "feedme": 100, "ppo": 50_000}
    shares = rollouts.room(sizes, {"evaluate"}, 10_000)
    assert shares == {"evaluate": 4000, "feedme": 100, "grpo": 2950, "ppo": 2950}
    assert rollouts.room({"evaluate": 20_000}, {"evaluate"}, 10_000) == {"evaluate": 10_000}


def test_the_page_says_how_much_of_the_run_it_carries(tmp_path: Path) -> None:
    data = carried(write_report(write_run(tmp_path / "run")))
    assert data["total"] == data["count"] == 90 + 180 + 240


def test_tokens_read_as_their_tokenizer_writes_them(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    place = write_stage(tmp_path / "run", "sft", metrics=figures(0.5), rollouts=[rollout("p", "ab")])
    (place / "model").mkdir()
    vocabulary = {"a": 0, "b": 1, "<eos>": 2}
    Tokenizer(models.WordLevel(vocabulary, unk_token="a")).save(str(place / "model" / "tokenizer.json"))
    data = carried(write_report(tmp_path / "run"))
    assert [data["words"][i] for i in data["ids"]] == ["a", "b", "<eos>"]
