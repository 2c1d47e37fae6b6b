"""The revaluation benchmark: what its worlds pay, what its samples show, its table, and a small real run of it."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.research.revaluation import summary
from pipeline.research.revaluation_methods import METHODS, new_samples, old_walks
from pipeline.run.manifest import read_manifest
from verifiers import revalue

CONFIG = Path(__file__).parents[2] / "configs" / "revalue" / "pipeline.yaml"
BEST = {"before": ("ABCD", 0.7), "reward_moves": ("AEFG", 1.4), "reward_appears": ("AEFG", 1.4),
        "shortcut": ("ACD", 1.0), "new_path": ("AEBCD", 1.1)}  # fmt: skip


@pytest.mark.parametrize("name", BEST)
def test_a_change_makes_another_walk_the_best(name):
    walk, earned = BEST[name]
    world = revalue.WORLDS[name]
    assert world.best_walk() == walk and world.earned(walk) == pytest.approx(earned)


def test_only_the_changed_steps_are_sampled_first_each_on_to_an_end():
    assert revalue.first_samples("reward_moves") == [("ABC", "CD"), ("AEF", "FG")]
    assert revalue.first_samples("reward_appears") == [("AEF", "FG")]
    assert revalue.first_samples("shortcut") == [("A", "ACD")]
    assert revalue.first_samples("new_path") == [("AE", "EBCD")]


def test_no_log_of_the_old_world_holds_a_new_best_walk():
    logged = Counter(walk.places for walk in old_walks(3))
    assert logged == {"ABCD": 3 * revalue.GADGETS, "AEFG": 3 * revalue.GADGETS}
    assert {walk.world for walk in old_walks(3)} == {"before"}


def test_more_new_walks_only_add_to_fewer_and_every_seed_has_its_own():
    few, many = new_samples("new_path", 2, seed=1), new_samples("new_path", 4, seed=1)
    assert many[: len(few)] == few and len(few) == revalue.GADGETS * 3
    assert new_samples("new_path", 4, seed=2) != many
    assert {walk.places for walk in many} <= {"EBCD", "ABCD", "AEFG", "AEBCD"}


def test_the_environment_pays_on_arrival_what_the_world_says():
    environment = revalue.Environment()
    shown = environment.reset({"gadget": 1, "world": "new_path"})
    got = []
    for place in "EBCD":
        assert shown == revalue.prompt(1, environment.place)
        shown, paid, over = environment.step(revalue.symbol(1, place))
        got.append((paid, over))
    assert got == [(0.4, False), (-0.3, False), (0.0, False), (1.0, True)]
    environment.reset({"gadget": 1})
    assert environment.step(revalue.symbol(1, "C")) == ("", 0.0, True), "the shortcut is not there before"


def test_steps_to_right_is_where_a_policy_stays_right():
    def cell(walks, steps, right, seed=1):
        return {"seed": seed, "prompts": "state", "method": "td", "change": "shortcut", "walks": walks,
                "steps": steps, "right": right}  # fmt: skip

    (line,) = summary([cell(-1, 0, 0.0), cell(0, 2, 0.7), cell(4, 14, 0.3), cell(16, 50, 0.9)])
    assert line["steps_to_right"] == 50, "it was right at once by luck, and wrong again later"
    (line,) = summary([cell(-1, 0, 0.0), cell(0, 2, 0.6), cell(0, 2, 0.8, seed=2)])
    assert line["at_once"] == pytest.approx(0.7) and line["at_once_range"] == [0.6, 0.8]
    assert line["steps_to_right"] == 2
    (line,) = summary([cell(-1, 0, 0.0), cell(0, 2, 0.49)])
    assert line["steps_to_right"] is None


def test_mistakes_in_the_block_are_reported_in_one_line(tmp_path, capsys):
    assert main(["seed_1", str(CONFIG), f"runs_dir={tmp_path}", "seed_1.methods=[hope]"]) == 2
    assert "seed_1.methods: no method 'hope'" in capsys.readouterr().err
    assert main(["seed_1", str(CONFIG), f"runs_dir={tmp_path}", "seed_1.online_walks=[6]"]) == 2
    assert "must be multiples of 4" in capsys.readouterr().err


@pytest.mark.stages
def test_a_model_with_planning_is_right_at_once_where_td_is_not_and_a_killed_run_keeps_its_cells(tmp_path, monkeypatch):
    words = ["seed_1", str(CONFIG), f"runs_dir={tmp_path}", "seed_1.seeds=[1]", "seed_1.memories=[state]",
             "seed_1.changes=[reward_appears]", "seed_1.walks=[0]", "seed_1.methods=[td, search_3]",
             "seed_1.trainer.max_steps=60"]  # fmt: skip

    def interrupted(*_):
        raise KeyboardInterrupt

    search, td = METHODS["search_3"], METHODS["td"]
    monkeypatch.setitem(METHODS, "search_3", interrupted)
    assert main(words) == 130
    monkeypatch.setitem(METHODS, "search_3", search)
    monkeypatch.setitem(METHODS, "td", interrupted)  # it was finished: its cell is read
    assert main(words) == 0
    monkeypatch.setitem(METHODS, "td", td)

    directory = tmp_path / "revalue" / "seed_1"
    made = read_manifest(directory / "manifest.json")
    assert made is not None
    table = {line["method"]: line for line in made["metrics"]["table"]}
    assert table["td"]["before"] < 0.1 and table["search_3"]["before"] < 0.1
    assert table["td"]["at_once"] < 0.1, "0.7 against a stale 0.4"
    assert table["search_3"]["at_once"] > 0.9, "1.4 against 0.7: exp(10 x 0.7) to one"
    logged = [json.loads(line)["method"] for line in (directory / "metrics.jsonl").open()]
    assert logged == ["td", "td", "search_3", "search_3"]
