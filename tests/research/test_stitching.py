"""The stitching benchmark: what its logs hold and lack, how it judges, and a small real run of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.research.stitching import credit_accuracy, summary
from pipeline.run.manifest import read_manifest
from verifiers import stitch

CONFIG = Path(__file__).parents[2] / "configs" / "stitch" / "pipeline.yaml"
TURNS = [turn for walk in stitch.logs() for turn in walk]


def test_every_walk_is_logged_equally_often_and_the_best_one_from_place_1_never():
    walks = Counter(tuple([w[0].place, *(t.to for t in w)]) for w in stitch.logs())
    assert walks == {(2, 3): 16, (1, 4): 16, (1, 2, 5): 16}
    assert (1, 2, 3) not in walks


def test_no_gadget_shares_a_symbol_with_another():
    symbols = [s for gadget in stitch.SYMBOLS for s in gadget]
    assert len(symbols) == len(set(symbols)) == 80 and not set(symbols) & set("0123456789:<>")


def test_the_environment_pays_at_the_ends_what_the_logs_say():
    for walk in stitch.logs():
        environment = stitch.Environment()
        shown = environment.reset({"gadget": walk[0].gadget, "place": walk[0].place})
        for turn in walk:
            assert shown == stitch.prompt(turn.gadget, turn.place)
            shown, paid, over = environment.step(stitch.symbol(turn.gadget, turn.to))
            assert (paid, over) == (turn.reward, turn is walk[-1])


def test_a_step_that_is_none_ends_the_walk_unpaid():
    environment = stitch.Environment()
    environment.reset({"gadget": 0, "place": 1})
    assert environment.step(stitch.symbol(0, 3)) == ("", 0.0, True)


def test_credit_is_judged_by_the_order_of_the_best_play_that_follows():
    best = {(1, 2): 1.0, (1, 4): 0.6, (2, 3): 1.0, (2, 5): 0.0}
    own = {(1, 2): 0.0, (1, 4): 0.6, (2, 3): 1.0, (2, 5): 0.0}
    assert credit_accuracy([best[t.place, t.to] for t in TURNS], 0.6) == 1.0
    assert credit_accuracy([-best[t.place, t.to] for t in TURNS], 0.6) == 0.0
    assert credit_accuracy([own[t.place, t.to] for t in TURNS], 0.6) == 0.5
    assert credit_accuracy([1.0] * len(TURNS), 0.6) == 0.5
    nearly = [best[t.place, t.to] + (0.405 if (t.place, t.to) == (1, 4) else 0.0) for t in TURNS]
    assert credit_accuracy(nearly, 0.6) == 0.75, "a gap of half a percent of the spread is a tie"


def test_a_table_line_is_the_mean_over_seeds_with_the_worst_and_the_best():
    runs = [{"method": "sft", "prompts": "state", "seed": s, "stitched": x, "credit_accuracy": 0.5}
            for s, x in ((1, 0.2), (2, 0.4))]  # fmt: skip
    (line,) = summary(runs)
    assert (line["stitched"], line["low"], line["high"], line["seeds"]) == (pytest.approx(0.3), 0.2, 0.4, [1, 2])


@pytest.mark.stages
def test_values_and_best_in_data_labels_stitch_from_the_logs_alone_where_imitation_does_not(tmp_path):
    methods = ["sft", "grpo", "conditions_best", "offline_q_awr", "offline_q_shift"]
    assert main(["stitch", str(CONFIG), f"runs_dir={tmp_path}", "stitch.seeds=[1]", "stitch.memories=[state]",
                 f"stitch.methods=[{', '.join(methods)}]", "stitch.loop.steps=40"]) == 0  # fmt: skip
    made = read_manifest(tmp_path / "stitch" / "stitch" / "manifest.json")
    assert made is not None
    table = {line["method"]: line for line in made["metrics"]["table"]}
    assert list(table) == methods
    assert table["sft"]["stitched"] == pytest.approx(0.25, abs=0.05), (
        "half the logs' steps from 1, half of those from 2"
    )
    assert table["grpo"]["stitched"] < 0.05 and table["grpo"]["credit_accuracy"] == 0.5
    assert table["conditions_best"]["stitched"] >= 0.9
    for method in ("offline_q_awr", "offline_q_shift"):
        assert table[method]["stitched"] >= 0.6 and table[method]["credit_accuracy"] == 1.0


def test_an_unknown_method_is_reported_with_the_nearest(tmp_path, capsys):
    assert main(["stitch", str(CONFIG), f"runs_dir={tmp_path}", "stitch.methods=[grp]"]) == 2
    assert "stitch.methods: no method 'grp'; did you mean 'grpo'?" in capsys.readouterr().err
