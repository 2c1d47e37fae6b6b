"""The report in a headless Chromium: no error, no request, every chart drawn, and filters that work by real clicks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from browser import Page, installed
from report_kit import HOSTILE, figures, rollout, write_run, write_stage

from pipeline.report import write_report
from pipeline.stages.comparison import findings

pytest.importorskip("websockets", reason="no websockets package to speak to Chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(installed() is None, reason="no chromium installed: apt-get install chromium"),
]
ASSETS = Path(__file__).parents[2] / "pipeline/report/assets"
DRAWN = """[...document.querySelectorAll('figure.chart')].filter((f) => {
  const marks = [...f.querySelectorAll('path.line, circle.point, .node rect')];
  return !marks.some((m) => m.getBoundingClientRect().width + m.getBoundingClientRect().height > 0)
    || /NaN|undefined|Infinity/.test(f.innerHTML);
}).map((f) => f.querySelector('figcaption').textContent)"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_run(tmp_path_factory.mktemp("runs") / "run", hostile=HOSTILE))


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_comparison(tmp_path_factory.mktemp("runs") / "compared"))


@pytest.fixture(scope="module")
def comparison_by_reward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_comparison(tmp_path_factory.mktemp("runs") / "by_reward", heldout_judged=False))


def write_comparison(root: Path, **more: Any) -> Path:
    """Two methods and a control over two seeds, as `compare` leaves them. more: further figures of each policy."""
    accuracy = {"sft": 0.4, "feedme": 0.7, "grpo": 0.65, "grpo_random": 0.4}
    judges: list[dict[str, Any]] = []
    for seed in (1, 2):
        rows = [
            {
                "policy": n,
                **figures(a),
                **more,
                "accuracy_by_prompt": [a - 0.1, a, a + 0.1],
                "reward_by_prompt": [3 * a - 1, 3 * a, 3 * a + 1],
                "pass_at": [a, a + 0.1, a + 0.15],
                "kl_from_start": 0.0 if n == "sft" else 2.0,
                "best_answer_mass": a / 2,
                "sampled_tokens": 0 if n == "sft" else 1000,
                "learned_tokens": 500,
                "forward_tokens": 800,
                "wall_s": 3.0,
                "proxy": 0.1,
            }
            for n, a in accuracy.items()
        ]
        best = [
            {"n": n, "kl": 0.1 * n, "reward": 0.3, "judged": 0.2 * n, "accuracy_by_prompt": [0.4, 0.5, 0.6]}
            for n in (1, 2, 4)
        ]
        judges.append(
            {
                "policies": rows,
                "prompts": ["p0", "p1", "p2"],
                "parameters": 1000,
                "best_of": {"gold": best, "proxy": best},
            }
        )
        samples = [rollout("p0", f"{n}{i}", policy=n, sample=i) for n in accuracy for i in range(3)]
        write_stage(root / f"seed-{seed}", "sft", metrics=figures(0.4))
        write_stage(root / f"seed-{seed}", "grpo", parents=("sft",), metrics=figures(0.65))
        write_stage(root / f"seed-{seed}", "judge", parents=("sft", "grpo"), metrics=judges[-1], rollouts=samples)
    roles = {"sft": "start", "feedme": "method", "grpo": "method", "grpo_random": "control of grpo"}
    rows = findings.table(judges, roles, "sft", 1000)
    pairs = findings.pairs(judges, ["feedme", "grpo"])
    controls = findings.against(judges, {"grpo": "grpo_random"})
    path = [
        {
            "tokens": 200.0 * i,
            "accuracy": 0.4 + 0.05 * i,
            "kl": 0.4 * i,
            "best_answer_mass": 0.2,
            "reward": 0.3 + 0.1 * i * (3 - i),
            "proxy": 0.2 * i,
        }
        for i in range(1, 6)
    ]
    write_stage(
        root,
        "compare",
        metrics={
            "table": rows + findings.best_of_rows(judges, [4], "sft"),
            "pairs": pairs,
            "controls": controls,
            "online": findings.against(judges, {"feedme": "grpo_random"}),
            "paths": {"grpo": [path, path], "feedme": [[], []]},
            "sentences": [
                findings.sentence(r, pairs, controls, [], start="sft", seeds=2) for r in rows if r["role"] == "method"
            ],
            "start": "sft",
            "measure": findings.measure(judges),
            "best_of": judges[0]["best_of"]["gold"],
            "runs": ["seed-1", "seed-2"],
            "seeds": [1, 2],
            "budget": 1000,
            "proxy": {
                "model": "rm",
                "pairs": 30,
                "pair_accuracy": 0.7,
                "seed": 1,
                "paths": {"grpo": path},
                "findings": [findings.overoptimised("grpo", path)],
            },
        },
    )
    return root


@pytest.mark.parametrize("name", ["run", "comparison", "comparison_by_reward"])
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (390, True)])
def test_every_chart_is_drawn_without_an_error_or_a_request(
    page: Page, request: pytest.FixtureRequest, name: str, width: int, dark: bool
) -> None:
    page.open(request.getfixturevalue(name), width=width, dark=dark)
    assert page.errors == [] and page.requests == []
    assert page.count("figure.chart") >= 6
    assert page.js(DRAWN) == [], "charts without a visible mark, or with a number that is none"
    assert page.js("document.documentElement.scrollWidth") <= width, "a phone must not scroll sideways"


def test_a_comparison_by_reward_shows_mean_rewards_and_no_shares(page: Page, comparison_by_reward: Path) -> None:
    page.open(comparison_by_reward)
    text = page.js("document.querySelector('#answer').innerText")
    assert "Held-out reward" in text and "a mean reward of 2.100" in text and "+0.900" in text
    assert "70.0%" not in text and "pass@k" not in page.js("document.querySelector('#frontier').innerText")


def open_unfiltered(page: Page, run: Path) -> None:
    page.open(run)
    page.click("#clear-filters")


def test_rollouts_open_on_the_failures_of_the_best_policy_with_the_expected_answer(page: Page, run: Path) -> None:
    page.open(run)
    assert page.text("#rollout-count").startswith("80 of 511")  # stage evaluate, policy feedme: 20 prompts x 4
    values = page.js("['#f-stage', '#f-source', '#f-sort'].map((id) => document.querySelector(id).value)")
    assert values == ["evaluate", "feedme", "failures"]
    shown = page.js("[...document.querySelectorAll('.row .reward')].map((n) => n.title)")
    assert shown[0] == "fail" and shown == sorted(shown), "failures come before passes"
    assert page.text("#shown-expected") == "gold: 42"


# samples of every edge of the lineage, and the box of a stage in whose inside one lies
BEHIND = """[...document.querySelectorAll('#lineage path.edge')].flatMap((edge) => {
  const length = edge.getTotalLength(), found = [];
  for (let i = 0; i <= 200; i++) {
    const p = edge.getPointAtLength((length * i) / 200);
    for (const r of document.querySelectorAll('#lineage .node rect')) {
      const b = r.getBBox();
      if (p.x > b.x + 1 && p.x < b.x + b.width - 1 && p.y > b.y + 1 && p.y < b.y + b.height - 1)
        found.push(r.parentNode.textContent);
    }
  }
  return found;
})"""


@pytest.mark.parametrize("width", [390, 768, 1280, 1920])
def test_lineage_edges_have_heads_and_pass_beside_the_boxes(page: Page, run: Path, width: int) -> None:
    page.open(run, width=width)
    edges = page.count("#lineage path.edge")
    assert edges == 7 and page.count("#lineage path.edge[marker-end]") == edges and page.count("#arrow-head") == 1
    assert page.js(BEHIND) == []


def test_columns_without_a_value_are_left_out_and_a_wide_table_says_that_it_scrolls(page: Page, run: Path) -> None:
    page.open(run, width=390)
    titles = page.js("[...document.querySelectorAll('#result thead th')].map((n) => n.textContent)")
    assert "accuracy" in titles and "by the stage itself" not in titles, "no row of this run has the second"
    hint = "document.querySelector('#result .more-columns').hidden"
    page.settle()
    assert page.js(hint) is False
    page.js("document.querySelector('#result .scroll').scrollLeft = 1e6")
    page.settle()
    assert page.js(hint) is True


def test_two_points_are_shown_as_numbers(page: Page, tmp_path: Path) -> None:
    steps = [{"step": 10, "loss": 2.5}, {"step": 20, "loss": 1.25}]
    write_stage(tmp_path / "run", "sft", metrics=figures(0.5), steps=steps)
    page.open(write_report(tmp_path / "run"))
    assert page.text("#stage-sft .few b") == "2.500 → 1.250"
    assert page.text("#stage-sft .few li").endswith("step 10 → step 20")
    assert page.count("#stage-sft svg") == 0


def test_what_a_run_wrote_is_shown_and_never_run(page: Page, run: Path) -> None:
    open_unfiltered(page, run)
    page.click("#f-search")
    page.write("stolen")
    assert page.text("#rollout-count").startswith("1 of ")
    assert "window.stolen=1" in page.text("#shown-answer")
    assert page.js("window.stolen === undefined") and page.errors == []
    assert page.count("#rollouts img") == 0


def test_clicks_on_filters_leave_what_they_say(page: Page, run: Path) -> None:
    open_unfiltered(page, run)
    assert page.text("#rollout-count").startswith("511 of 511")
    page.click("#f-status-pass")  # off
    assert page.text("#rollout-count").startswith("101 of 511")  # 40 + 20 + 40 fail, and the malformed one
    page.click("#f-status-fail")
    assert page.text("#rollout-count").startswith("1 of 511")
    page.click("#clear-filters")
    assert page.text("#rollout-count").startswith("511 of 511")
    page.choose("#f-stage", "grpo")
    assert page.text("#rollout-count").startswith("180 of 511")
    page.click("#f-step-low")
    page.write("25")
    assert page.text("#rollout-count").startswith("30 of 511")  # steps 25 to 29, 6 rollouts each


def test_sorting_by_a_part_puts_its_best_first(page: Page, run: Path) -> None:
    open_unfiltered(page, run)
    page.choose("#f-sort", "+part:grid")
    first = page.text("#row-0 .reward")
    page.choose("#f-sort", "-part:grid")
    assert (first, page.text("#row-0 .reward")) == ("✕ 0", "✓ 1")


def test_two_policies_stand_side_by_side_on_the_same_prompt(page: Page, run: Path) -> None:
    open_unfiltered(page, run)
    page.click("#row-0")
    page.click("#tab-pair")
    assert page.text("#answers-left b") == "evaluate: sft" and page.text("#answers-right b") == "evaluate: feedme"
    assert page.text("#answers-right .note").startswith("3 of 4 pass")
    page.choose("#pair-right", "grpo, last third")
    assert page.text("#answers-right b") == "grpo, last third"
    page.click("#row-3")
    assert page.text("#pair-prompt") == page.js("document.querySelector('#row-3 .what').textContent.split(' ')[0]")


def test_the_list_is_walked_by_the_keyboard(page: Page, run: Path) -> None:
    open_unfiltered(page, run)
    page.click("#row-0")
    page.js("document.querySelector('#rollout-list').focus()")
    for _ in range(40):
        page.key("ArrowDown")
    assert page.js("document.querySelector('[aria-selected=true].row').id") == "row-40"
    page.key("End")
    assert page.js("document.querySelector('[aria-selected=true].row').id") == "row-510"
    assert page.count(".row") < 60, "only what is in sight is in the document"


def test_tokens_show_what_was_recorded_of_them(page: Page, run: Path) -> None:
    open_unfiltered(page, run)
    page.choose("#f-stage", "grpo")
    labels = page.js("[...document.querySelectorAll('#rollout-detail [aria-pressed]')].map((b) => b.textContent)")
    assert labels == ["log-prob", "advantage", "KL to the reference"]
    page.click("#rollout-detail [aria-pressed]:nth-child(3)")
    values = page.js("[...document.querySelectorAll('#token-view small')].map((n) => n.textContent)")
    assert values and set(values) == {"0.13"}  # 0.125 to two digits


def write_episodes(root: Path) -> Path:
    """A stage with one episode of two calls, and one row without an episode."""

    def call(number: int, name: str, **arguments: Any) -> dict[str, Any]:
        return {"type": "function", "id": f"call{number:05}", "function": {"name": name, "arguments": arguments}}

    messages = [
        {"role": "assistant", "content": "Let me look.", "reasoning_content": "Which file?",
         "tool_calls": [call(0, "shell", command="ls -l /data"), call(1, "calculator", expression="6 * 7")]},
        {"role": "tool", "name": "shell", "tool_call_id": "call00000", "content": f"total 1\nnotes.txt {HOSTILE}"},
        {"role": "tool", "name": "calculator", "tool_call_id": "call00001", "content": "42"},
        {"role": "assistant", "content": "It is 42."},
    ]  # fmt: skip
    episode = {"answer": "It is 42.", "ended_by": "answer", "fault": "", "turns": 2, "calls": 2, "tool_errors": 0,
               "malformed_calls": 0, "reward": 0.5, "messages": messages}  # fmt: skip
    rows = [rollout("What is in it?", "assistant: Let me look.", reward=0.75, episode=episode),
            rollout("Another", "no episode", reward=0.25)]  # fmt: skip
    write_stage(root, "grpo", metrics=figures(0.5), rollouts=rows)
    return write_report(root)


def test_an_episode_is_shown_as_a_conversation_with_its_calls_apart(page: Page, tmp_path: Path) -> None:
    page.open(write_episodes(tmp_path / "run"))
    page.click("#clear-filters")
    page.click("#row-0")
    said = page.js("[...document.querySelectorAll('#shown-conversation > li > b')].map((n) => n.textContent)")
    assert said == ["policy", "observation", "observation", "policy"]
    calls = page.js("[...document.querySelectorAll('#shown-conversation .call > span')].map((n) => n.textContent)")
    assert calls == ["calls shell", "calls calculator"]
    assert '"command": "ls -l /data"' in page.text("#shown-conversation .call pre")
    assert page.text("#shown-conversation .thinking") == "Which file?"
    assert page.text("#shown-ending") == "ended by answer · 2 turns · 2 calls · own reward 0.500"
    assert page.text("#shown-answer") == "It is 42."
    assert page.js("window.stolen === undefined") and page.errors == []
    edges = "[...document.querySelectorAll('#shown-conversation > li')].map((n) => n.getBoundingClientRect().left)"
    policy, tool, other, _ = page.js(edges)
    assert tool == other > policy, "observations are set in"
    colours = "[...document.querySelectorAll('.turn')].map((n) => getComputedStyle(n).borderLeftColor)"
    assert len(set(page.js(colours))) == 2
    page.click("#row-1")
    assert page.count("#shown-conversation") == 0 and page.text("#shown-answer") == "no episode"


def test_a_conversation_fits_a_phone(page: Page, tmp_path: Path) -> None:
    page.open(write_episodes(tmp_path / "run"), width=390)
    page.click("#clear-filters")
    assert page.count("#shown-conversation li") == 4
    assert page.js("document.documentElement.scrollWidth") <= 390


def test_a_chart_gives_its_numbers_to_the_arrow_keys_and_as_a_table(page: Page, run: Path) -> None:
    page.open(run)
    page.js("document.querySelector('#stage-grpo svg').focus()")
    page.key("End")
    assert "step 30" in page.text("#stage-grpo .tip:not([hidden])")
    page.click("#stage-grpo figure details.numbers summary")
    rows = "#stage-grpo figure details.numbers tbody tr"
    for _ in range(100):  # the table is made when the browser says that it was opened, on a busy machine frames later
        if page.count(rows):
            break
        page.settle()
    assert page.count(rows) == 60, "two lines of 30 steps"


def test_ten_thousand_rollouts_open_in_two_seconds(page: Page, tmp_path: Path) -> None:
    rows = [
        rollout(f"prompt {i % 700} " * 4, f"answer {i} " * 8, step=i // 100, ids=list(range(60)), logprobs=[-0.1] * 60)
        for i in range(10_000)
    ]
    write_stage(tmp_path / "run", "grpo", metrics=figures(0.5), rollouts=rows)
    path = write_report(tmp_path / "run")
    fastest = min(page.open(path) for _ in range(3))  # the machine is shared; what it can do is what counts
    assert page.text("#rollout-count").startswith("10,000 of 10,000")
    assert fastest < 2.0
    page.choose("#f-sort", "-length")
    assert page.errors == []


def test_it_prints_without_controls_and_without_cut_charts(page: Page, run: Path) -> None:
    page.open(run)
    page.call("Emulation.setEmulatedMedia", media="print")
    hidden = page.js("['nav', '.filters', '.numbers'].map((q) => getComputedStyle(document.querySelector(q)).display)")
    assert hidden == ["none"] * 3
    printed = page.call("Page.printToPDF", preferCSSPageSize=False)
    assert len(printed["data"]) > 20_000
    page.call("Emulation.setEmulatedMedia", media="")


def test_what_the_comparison_found_is_said_on_its_page(page: Page, comparison: Path) -> None:
    page.open(comparison)
    claims = page.js("[...document.querySelectorAll('#claims li')].map((n) => n.textContent)")
    assert [c.split()[0] for c in claims] == ["feedme", "grpo"]
    assert "grpo_random" in claims[1]
    table = json.loads(
        page.js("JSON.stringify([...document.querySelectorAll('#answer tbody th')].map((n) => n.textContent))")
    )
    assert table[:5] == ["sft", "feedme", "grpo", "grpo_random", "best of 4"]
    page.click("#tab-pair")
    assert page.text("#answers-left b") == "judge: sft"


def test_ticks_of_a_narrow_axis_read_apart_and_shares_do_not_begin_below_zero(page: Page, run: Path) -> None:
    page.open(run)
    source = "".join((ASSETS / name).read_text() for name in ("dom.js", "charts.js"))

    def value(expression: str) -> Any:
        return page.js(f"new Function({json.dumps(source + '; return ' + expression)})()")

    axis = "((low, high) => { const all = ticks(low, high, 4); return all.map((v) => tick(v, all)); })"
    assert value(f"{axis}(4.4405, 4.4431)") == ["4.441", "4.442", "4.443"]
    assert value(f"{axis}(0, 10)") == ["0", "2.5", "5", "7.5", "10"]
    assert value("extent([0, 0, 0], { percent: true })[0]") == 0
    assert value("extent([-0.2, 0.1], { percent: true })[0]") < -0.2
