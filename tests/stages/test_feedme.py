"""FeedME: the pool it learns from, when it stops, its rivals, and the stage itself on a tiny model."""

import json
import math
import os
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from pipeline.config.load import ConfigError
from pipeline.config.schema import Model, Prompts, Stop, Tiny
from pipeline.data import sample_pool
from pipeline.data.sample_pool import Entry
from pipeline.models.models import load_tokenizer, make_tiny
from pipeline.records import Prompt, Rollout, Scored
from pipeline.stages import feedme
from pipeline.stages.feedme import has_demonstrations, stop_reason, with_share
from pipeline.stages.imitation import ImitationRow
from pipeline.stages.sampling import best_of, reward_when_solved
from tests.small_chain import command, manifest, write_rows

SOURCE = Prompts(path="x")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    place = tmp_path_factory.mktemp("tiny")
    make_tiny(Tiny(hidden_size=16, intermediate_size=32, num_hidden_layers=1), place, seed=0)
    return load_tokenizer(str(place), Model())


def scored(prompt, reward, *, text="a", status="pass", finished=True, index=0):
    rollout = Rollout(Prompt(index, prompt, (7, 8)), 0, (9, ord(text[0])), (0.0, 0.0), text, finished)
    return Scored(rollout, reward, status, {"r": reward})


def read(path, tokenizer):
    return sample_pool.read(path, SOURCE, tokenizer, frozenset({2}))


# --- the pool ------------------------------------------------------------------------------------------------------


def test_a_row_of_the_pool_comes_back_with_its_stage_round_and_label(tmp_path, tokenizer):
    entry = Entry(scored("p", 0.5), "feedme", 3, "<4> ")
    path = write_rows(tmp_path / "rollouts.jsonl", [json.loads(json.dumps(sample_pool.as_row(entry)))])
    assert read(path, tokenizer) == [entry]


def test_human_ratings_become_samples_with_an_end_token_and_the_mean_of_their_raters(tmp_path, tokenizer):
    rows: list[dict[str, Any]] = [
        {"prompt": "2+2=", "completion": "4", "rating": 7},
        {"prompt": "2+2=", "completion": "4", "rating": 6},
        {"prompt": "2+2=", "completion": "5", "rating": 1},
        {"prompt": "2+2=", "completion": "fish", "rating": None},
    ]
    found = [e.scored for e in read(write_rows(tmp_path / "r.jsonl", rows), tokenizer)]
    assert [s.reward for s in found][:2] == [6.5, 1.0] and math.isnan(found[2].reward)
    assert [s.scorable for s in found] == [True, True, False]
    first = found[0].rollout
    assert tokenizer.decode(first.prompt.ids) == "2+2=" and first.ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(first.ids[:-1]) == "4" and first.finished


def test_ratings_in_parquet_or_json_are_the_same_samples(tmp_path, tokenizer):
    rows: list[dict[str, Any]] = [{"prompt": "2+2=", "completion": "4", "rating": 7},
                                  {"prompt": "2+2=", "completion": "5", "rating": None}]  # fmt: skip
    (tmp_path / "r.json").write_text(json.dumps(rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "r.parquet")
    expected = [
        (e.scored.rollout.ids, e.scored.scorable) for e in read(write_rows(tmp_path / "r.jsonl", rows), tokenizer)
    ]
    for name in ("r.json", "r.parquet"):
        assert [(e.scored.rollout.ids, e.scored.scorable) for e in read(tmp_path / name, tokenizer)] == expected
        assert sample_pool.count_rows(tmp_path / name, SOURCE) == sample_pool.RowCounts(2, 1, ("rating",))


def test_a_pool_is_counted_once_until_its_file_changes(tmp_path, monkeypatch):
    reads, plain = [], sample_pool._numbered

    def counting(path):
        reads.append(path)
        return plain(path)

    monkeypatch.setattr(sample_pool, "_numbered", counting)
    path = write_rows(tmp_path / "r.jsonl", [{"prompt": "a", "completion": "b", "rating": 1}])
    assert sample_pool.count_rows(path, SOURCE) == sample_pool.count_rows(path, SOURCE)
    assert reads == [path]
    write_rows(path, [{"prompt": "a", "completion": "b", "rating": 1}] * 3)
    os.utime(path, ns=(1, 1))  # a change within the clock's resolution
    assert sample_pool.count_rows(path, SOURCE).scored == 3


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a", "completion": "b"}, r"r\.jsonl:1: no score; give a column rating, score or reward"),
        ({"prompt": "a", "completion": "b", "rating": "7"}, r"r\.jsonl:1: rating must be a number or null, found '7'"),
        ({"prompt": "a", "rating": 7}, "row 1 .* has no column 'completion'"),
        ({"ids": [1], "prompt_ids": [1]}, r"r\.jsonl:1: not a scored rollout \(KeyError"),
    ],
)
def test_a_row_that_is_no_sample_is_reported_by_its_line(tmp_path, tokenizer, row, words):
    with pytest.raises(ConfigError, match=words):
        read(write_rows(tmp_path / "r.jsonl", [row]), tokenizer)


def test_a_missing_file_and_a_broken_line_are_reported(tmp_path, tokenizer):
    with pytest.raises(ConfigError, match="no such file of scored samples"):
        read(tmp_path / "none.jsonl", tokenizer)
    (tmp_path / "r.jsonl").write_text("{\n")
    with pytest.raises(ConfigError, match=r"r\.jsonl:1: not JSON"):
        read(tmp_path / "r.jsonl", tokenizer)


def test_placed_samples_are_of_this_runs_prompts_and_never_of_held_out_ones():
    known = [Prompt(0, "p", (1, 2), {"goal": "d4"})]
    entries = [Entry(scored(text, 1.0, index=5)) for text in ("p", "new", "held out", "new")]
    out = [e.scored.rollout.prompt for e in sample_pool.placed(entries, known, barred=["held out"])]
    assert [p.index for p in out] == [0, 1, 1]
    assert out[0] is known[0]  # its own task and ids, whatever label the sample was asked under


def test_only_scorable_samples_with_an_end_may_be_learned_from():
    entries = [Entry(scored("p", 1.0)), Entry(scored("p", math.nan, status="error")),
               Entry(scored("p", 1.0, finished=False))]  # fmt: skip
    assert sample_pool.usable(entries) == [entries[0].scored]


def test_every_row_of_a_file_of_ratings_is_accounted_for_in_one_line(tmp_path, tokenizer):
    rows: list[dict[str, Any]] = [
        {"prompt": "a1>b1:", "completion": "R", "rating": 7},
        {"prompt": "a1>b1:", "completion": "R", "rating": 5},  # merged with the first
        {"prompt": "a1>b1:", "completion": "RR", "rating": None},
        {"prompt": "held out", "completion": "R", "rating": 7},
        {"prompt": "held out", "completion": "R", "rating": 7},
        {"prompt": "a1>c1:", "completion": "RR", "rating": 1},
    ]
    entries = read(write_rows(tmp_path / "r.jsonl", rows), tokenizer)
    placed = sample_pool.placed(entries, [], barred=["held out"])
    assert len(sample_pool.usable(placed)) == 2
    assert sample_pool.left_out(entries, placed) == (
        "2 samples of 6 rows; not counted: 2 of held-out prompts, 1 without a rating or score, "
        "1 merged with other ratings of the same answer"
    )
    alone = entries[-1:]
    assert sample_pool.left_out(alone, alone) == ""


# --- rules and rivals ----------------------------------------------------------------------------------------------


def rounds(*accuracies, distinct=5.0):
    return [{"heldout_accuracy": a, "distinct_answers": distinct} for a in accuracies]


@pytest.mark.parametrize(
    ("accuracies", "rule", "stops"),
    [
        ((0.4, 0.5, 0.6), Stop(), False),
        ((0.4, 0.6, 0.6), Stop(), True),
        ((0.4, 0.6, 0.5), Stop(patience=2), False),
        ((0.4, 0.6, 0.5, 0.5), Stop(patience=2), True),
        ((0.4, 0.6, 0.605), Stop(min_gain=0.01), True),
        ((0.4, 0.6, 0.62), Stop(min_gain=0.01), False),
        ((0.4,), Stop(), False),
    ],
)
def test_rounds_stop_when_the_held_out_score_no_longer_rises(accuracies, rule, stops):
    assert (stop_reason(rounds(*accuracies), rule) is not None) is stops


def test_rounds_are_compared_by_validation_figures_where_there_are_any():
    distinct = {"distinct_answers": 1.0, "validation_distinct_answers": 5}
    figures = [{"heldout_accuracy": h, "validation_accuracy": 0.5, **distinct} for h in (0.4, 0.6)]
    assert "validation accuracy has not risen" in (stop_reason(figures, Stop(min_distinct=1.5)) or "")
    assert stop_reason([*figures, {**figures[1], "validation_accuracy": 0.6}], Stop(min_distinct=1.5)) is None


def test_rounds_stop_when_answers_become_all_alike():
    assert "1.20 distinct answers" in (stop_reason(rounds(0.4, 0.6, distinct=1.2), Stop(min_distinct=1.5)) or "")
    assert stop_reason(rounds(0.4, 0.6, distinct=1.6), Stop(min_distinct=1.5)) is None


def test_the_share_of_demonstrations_is_of_the_whole():
    own, mix = [ImitationRow((1,), (2,))] * 30, [ImitationRow((3,), (4,))] * 7
    mixed = with_share(own, mix, 0.25, key=0)
    assert sum(e in mix for e in mixed) == 10 and len(mixed) == 40
    assert with_share(own, mix, 0.0, key=0) == own


def test_best_of_n_takes_the_best_of_each_n_and_leaves_the_rest_of_a_group():
    group = [scored("p", r, text=t) for r, t in ((0.1, "a"), (0.9, "b"), (0.3, "c"), (0.2, "d"), (1.0, "e"))]
    assert [s.reward for s in best_of(group, 2)] == [0.9, 0.3]
    assert [s.reward for s in best_of(group, 5)] == [1.0]
    assert best_of(group, 6) == []


def test_reward_when_solved_leaves_failures_out():
    assert reward_when_solved([scored("p", 0.5), scored("p", 1.0), scored("p", 0.0, status="fail")]) == 0.75
    assert math.isnan(reward_when_solved([scored("p", 0.0, status="fail")]))


@pytest.mark.parametrize(
    ("row", "has"),
    [
        ({"prompt": "p", "completion": "c"}, True),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, True),
        ({"messages": [{"role": "user", "content": "q"}]}, False),
        ({"messages": []}, False),
        ({"prompt": "p", "gold": "4"}, False),
    ],
)
def test_more_sft_is_a_control_only_where_there_is_something_to_imitate(row, has):
    ctx: Any = SimpleNamespace(split=SimpleNamespace(train=[row]), cfg=SimpleNamespace(prompts=SOURCE))
    assert has_demonstrations(ctx) is has


# --- the stage -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    assert command(place, "run", "stages=[base,sft]") == 0
    return place


FEW = ["feedme.prompts=64", "feedme.samples=4", "feedme.trainer.max_steps=8", "feedme.rounds=2"]


@pytest.mark.stages
def test_a_round_says_what_it_kept_and_the_control_kept_as_many(runs, capsys):
    assert command(runs, "feedme", *FEW, "feedme.filters=[{threshold: 0.25}, dedup]") == 0
    told = capsys.readouterr().out
    assert "feedme.filters: the filter is a bucket: rewards from" in told
    metrics = manifest(runs, "feedme")["metrics"]
    assert [r["kept"] for r in metrics["rounds"]] == [r["kept"] for r in metrics["random_control_rounds"]]
    for figures in metrics["rounds"]:
        assert 0 < figures["kept"] < figures["sampled"] == 256
        assert 0 < figures["prompt_coverage"] <= 1 and figures["heldout_kl"] > 0
    assert metrics["more_sft_steps"] == 16 and 0 <= metrics["best_of_n_accuracy"] <= 1
    # the controls cost nothing of the stage's own budget: 2 rounds x 64 x 4 samples of at most 16 tokens
    assert manifest(runs, "feedme")["tokens"]["completion"] <= 2 * 256 * 16


@pytest.mark.stages
def test_feedme_imitates_what_people_rated_best_and_samples_nothing(runs, tmp_path):
    rated = {"a1>d1:": (("RRRUD", 7), ("RRR", 1), ("URRDR", 7)), "a1>c1:": (("RR", 7),)}  # the last one is held out
    rows = [{"prompt": prompt, "completion": text, "rating": rating}
            for prompt, ratings in rated.items() for text, rating in ratings]  # fmt: skip
    path = write_rows(tmp_path / "ratings.jsonl", rows)
    offline = ["feedme.rounds=1", f"feedme.pool=['{path}']", "feedme.filters=[{threshold: 7}]"]
    assert command(runs, "feedme", *FEW, *offline, "feedme.random_control=false", "feedme.more_sft_control=false") == 0
    whole = manifest(runs, "feedme")
    assert whole["metrics"]["rounds"][0]["kept"] == 2 and whole["tokens"]["completion"] == 0
    assert str(path) in whole["inputs"]


@pytest.mark.stages
def test_the_stop_rule_leaves_the_best_rounds_model(runs, capsys):
    harmful = ["feedme.trainer.learning_rate=0.3", "feedme.rounds=3", "feedme.stop={patience: 1}"]
    assert command(runs, "feedme", *FEW, *harmful, "feedme.filters=[dedup]",
                   "feedme.more_sft_control=false") == 0  # fmt: skip
    metrics = manifest(runs, "feedme")["metrics"]
    assert len(metrics["rounds"]) == 2 and "has not risen" in metrics["rounds"][-1]["stopped"]
    assert metrics["heldout_accuracy"] == metrics["rounds"][0]["heldout_accuracy"]
    assert metrics["heldout_kl"] == metrics["rounds"][0]["heldout_kl"] != metrics["rounds"][1]["heldout_kl"]
    assert len(metrics["random_control_rounds"]) == 1  # as many as the model that is kept went through
    assert "the model of round 1 is kept" in capsys.readouterr().out
    assert not list((runs / "small" / "feedme").glob(".model*"))


@pytest.mark.stages
def test_keep_best_leaves_the_model_of_the_round_with_the_best_validation_figure(runs, capsys):
    harmful = ["feedme.trainer.learning_rate=0.3", "feedme.rounds=2", "feedme.keep=best", "feedme.filters=[dedup]"]
    alone = ["feedme.more_sft_control=false", "feedme.random_control=false", "prompts.validation=0.1"]
    assert command(runs, "feedme", *FEW, *harmful, *alone) == 0
    metrics = manifest(runs, "feedme")["metrics"]
    scores = [figures["validation_accuracy"] for figures in metrics["rounds"]]
    assert metrics["best_round"] == scores.index(max(scores)) + 1 == 1 and len(scores) == 2
    assert metrics["chosen_by"] == "validation_accuracy" and metrics["rounds"][0]["validation_prompts"] <= 30
    assert metrics["heldout_accuracy"] == metrics["rounds"][0]["heldout_accuracy"]


@pytest.mark.stages
def test_a_filter_that_keeps_nothing_is_reported_with_the_best_reward_there_was(runs, capsys):
    assert command(runs, "feedme", *FEW, "feedme.filters=[{threshold: 3}]") == 2
    assert "round 1 kept 0 of 256 samples; the best reward was" in capsys.readouterr().err


def test_a_setting_that_has_no_effect_on_token_ids_is_refused(tmp_path, capsys):
    assert command(tmp_path, "run", "stages=[base,sft]", "sft.trainer.packing=true", "sft.trainer.max_steps=1") == 2
    assert "sft.trainer.packing: has no effect here" in capsys.readouterr().err


def test_a_wrong_filter_is_reported_before_anything_is_trained(runs, capsys):
    assert command(runs, "feedme", "feedme.filters=[{threshhold: 1}]") == 2
    assert "no filter 'threshhold'" in capsys.readouterr().err


def test_the_blind_control_samples_again_until_it_keeps_as_many_as_the_method(monkeypatch, capsys):
    """Most answers are cut at the length limit: max(counts) + 2 samples hold too few that ended."""
    keys = []

    def draw(ctx, generator, prompts, samples, *key, scorer):
        keys.append(key)
        ended = 3 if "more" in key else 1
        return [
            scored(p.text, 0.0, text=chr(97 + i), finished=i < ended, index=p.index)
            for p in prompts
            for i in range(samples)
        ]

    monkeypatch.setattr(feedme, "draw", draw)
    prompts = [Prompt(i, f"p{i}", (1,)) for i in range(3)]
    ctx: Any = SimpleNamespace(
        name="feedme", block=SimpleNamespace(pool=[], reward=None), scorer=None, train_prompts=prompts,
        generator=lambda policy: None,
    )  # fmt: skip
    counts = {0: 4, 1: 1}  # the third prompt kept nothing
    found = feedme.blind_samples(ctx, "policy", 0, counts)
    candidates = [feedme.as_candidate([s]) for s in found]
    kept = feedme.selection.blind(candidates, counts, seed=0)
    assert Counter(candidates[i].prompt for i in kept) == counts
    assert keys == [("control", 0), ("control", 0, "more", 1)]  # and only of the prompt that lacked some
    feedme.report_missing(ctx, 0, 3, 5)
    assert "kept 3 samples where the method kept 5" in capsys.readouterr().out


def test_unscorable_rows_replace_nothing():
    broken = replace(scored("p", 1.0), reward=math.nan)
    assert best_of([broken, scored("p", 0.5)], 1)[0].reward == 0.5
