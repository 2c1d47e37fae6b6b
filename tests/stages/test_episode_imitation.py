"""FeedME, labels and preferences on episodes with tools: trained on what was sampled, never on what tools answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from loop_kit import manifest
from test_tool_stage import CONFIG, ROOT, killed_and_resumed, write_rows

from pipeline.__main__ import main
from pipeline.data.condition_prompts import with_start
from pipeline.models import models
from pipeline.records import Prompt, Rollout, Scored
from pipeline.stages import conditioned, feedme, preference_rounds
from pipeline.stages.imitation import IGNORED, ImitationRow, sampled_rows
from pipeline.stages.preference_rounds import samples_of
from pipeline.stages.reward_model import preference_pairs
from pipeline.stages.sampled_only import SampledOnly, flags_of, single_rows, with_flags

START, LATER = Prompt(3, "p", (1, 2)), Prompt(3, "p", (1, 2, 9, 9))
CALL = Rollout(START, 0, (4, 0), (-0.5, -0.5), "call", True)
ANSWER = Rollout(LATER, 0, (5, 0), (-0.5, -0.5), "answer", True, turn=1, episode={"answer": "answer"})
ONE_ROW = Rollout(START, 1, (4, 0, 7, 7, 6, 0), (-0.5, -0.5, 0.0, 0.0, -0.5, -0.5), "t", True,
                  sampled=(True, True, False, False, True, True), episode={"answer": "6"})  # fmt: skip
SPLIT = [Scored(CALL, 0.0, "pass"), Scored(ANSWER, 1.0, "pass")]


# --- what filters see and what is trained ---------------------------------------------------------------------------


def test_an_episode_of_several_rows_is_one_candidate_with_the_reward_of_all():
    candidate = feedme.as_candidate(SPLIT)
    assert (candidate.prompt, candidate.reward, candidate.key, candidate.passed) == (3, 1.0, (4, 0, 5, 0), True)


def test_filters_measure_an_episode_by_what_was_sampled():
    assert feedme.as_candidate([Scored(ONE_ROW, 1.0, "pass")]).key == (4, 0, 6, 0)


def test_every_row_of_an_episode_is_trained_and_what_tools_answered_is_not():
    assert sampled_rows(SPLIT) == [ImitationRow((1, 2), (4, 0)), ImitationRow((1, 2, 9, 9), (5, 0))]
    [row] = sampled_rows([Scored(ONE_ROW, 1.0, "pass")])
    assert row.labels == [4, 0, IGNORED, IGNORED, 6, 0]


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "labelled"),
    [
        ((1, 5, 6, 2), (1, 8, 5, 6, 2)),
        ((1, 5, 6, 2, 4, 0, 7), (1, 8, 5, 6, 2, 4, 0, 7)),
        ((1, 5, 6, 9, 2), (1, 8, 5, 6, 9, 2)),
        ((3, 5, 6, 2), None),
        ((1, 6, 2), None),
    ],
    ids=["the prompt", "a later turn", "words that an environment added", "another beginning", "another user message"],
)
def test_a_label_is_put_into_the_prompt_of_any_row_and_taken_out_again(ids: Any, labelled: Any) -> None:
    old, new = (1, 5, 6, 2), (1, 8, 5, 6, 2)  # start, user's words, start of the answer; 8 is the label
    assert with_start(ids, old, new) == labelled
    if labelled is not None:
        assert with_start(labelled, new, old) == ids


def test_a_label_that_merges_with_the_first_word_replaces_its_token():
    assert with_start((1, 5, 6, 2, 4), (1, 5, 6, 2), (1, 8, 55, 6, 2)) == (1, 8, 55, 6, 2, 4)


def test_all_rows_of_an_episode_are_labelled_or_none():
    own, labelled = Prompt(3, "p", (1, 2)), Prompt(3, "p", (1, 8, 2), label="<8> ")
    rows = conditioned.labelled_rows(SPLIT, own, labelled)
    assert [(row.prompt_ids, row.unlabelled_ids) for row in rows] == [((1, 8, 2), (1, 2)), ((1, 8, 2, 9, 9), LATER.ids)]
    moved = [SPLIT[0], Scored(Rollout(Prompt(3, "p", (9, 9)), 0, (5,), (0.0,), "", True, turn=1), 1.0, "pass")]
    assert conditioned.labelled_rows(moved, own, labelled) == []


# --- preferences ------------------------------------------------------------------------------------------------------


def test_episodes_of_several_rows_are_no_preference_and_are_counted():
    assert single_rows([*SPLIT, Scored(ONE_ROW, 1.0, "pass")]) == ([Scored(ONE_ROW, 1.0, "pass")], 1)


def test_answers_to_prompts_that_an_environment_changed_are_not_paired():
    import random

    other = Rollout(Prompt(3, "p", (1, 2, 3)), 2, (6, 0), (0.0, 0.0), "t", True)
    samples = [Scored(ONE_ROW, 1.0, "pass"), Scored(other, 0.0, "fail")]
    assert preference_pairs(samples, per_prompt=4, rng=random.Random(0)) == []


def test_masks_of_trls_preference_batches_leave_out_what_tools_answered():
    from trl.trainer.dpo_trainer import DataCollatorForPreference
    from trl.trainer.kto_trainer import DataCollatorForUnpairedPreference

    flags = flags_of([Scored(ONE_ROW, 1.0, "pass")])
    [pair] = with_flags([{"prompt_ids": [1, 2], "chosen_ids": [4, 0, 7, 7, 6, 0], "rejected_ids": [5, 0]}], flags)
    batch = SampledOnly(DataCollatorForPreference(pad_token_id=0))([pair])
    assert batch["completion_mask"].tolist() == [[0, 0, 1, 1, 0, 0, 1, 1], [0, 0, 1, 1, 0, 0, 0, 0]]
    rows = with_flags([{"prompt_ids": [1], "completion_ids": [5, 0], "KL_completion_ids": [4, 0, 7, 7, 6, 0],
                        "label": True}], flags)  # fmt: skip
    batch = SampledOnly(DataCollatorForUnpairedPreference(pad_token_id=0))(rows)
    assert batch["completion_mask"].tolist() == [[0, 1, 1]]
    assert batch["KL_completion_mask"].tolist() == [[0, 1, 1, 0, 0, 1, 1]]


def test_rows_of_plain_completions_have_no_flags():
    assert with_flags([{"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}], flags_of(SPLIT)) == [
        {"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}
    ]


# --- stages on a tiny model -----------------------------------------------------------------------------------------

FIT = "trainer: {max_steps: 4, per_device_train_batch_size: 8, learning_rate: 1.0e-3, logging_steps: 1}"
STAGES = f"""
feedme: {{policy: sft, rounds: 2, prompts: 8, samples: 4, filters: [{{threshold: 0.0}}, {{top_k: 2}}], {FIT}}}
conditioned: {{policy: sft, prompts: 8, samples: 4, edges: [0.5], label: "{{bin}}*", per_bin: 8, online_rounds: 1,
               kl_coef: 0.1, {FIT}}}
dpo: {{policy: sft, prompts: 8, samples: 8, {FIT}}}
kto: {{policy: sft, prompts: 8, samples: 8, {FIT}}}
"""
# writes the calls of earlier turns without quotes, as no policy samples them
REWRITES = """{%- for message in messages -%}
  {%- if message.role in ('user', 'tool') -%}{{- message.content + '=' -}}
  {%- elif message.tool_calls -%}
    {%- set quote = '"' if loop.last else '' -%}
    {%- for call in message.tool_calls -%}
      {{- '[' + call.function.name + '(expression=' + quote + call.function.arguments.expression + quote + ')]' -}}
    {%- endfor -%}{{- eos_token -}}
  {%- else -%}{{- message.content + eos_token -}}{%- endif -%}
{%- endfor -%}"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("episodes")
    write_rows(place)
    (place / "rewrites.jinja").write_text(REWRITES)
    config = CONFIG % {"root": ROOT}
    (place / "t.yaml").write_text(config.replace("stages: [base, sft, grpo]", "stages: [base, sft, feedme]") + STAGES)
    return place


def spied(module: Any, monkeypatch: pytest.MonkeyPatch, name: str, position: int) -> list[Any]:
    """What the function is given at this position, call by call; it runs as before."""
    seen, real = [], getattr(module, name)

    def spy(*arguments: Any, **named: Any) -> Any:
        seen.append(arguments[position])
        return real(*arguments, **named)

    monkeypatch.setattr(module, name, spy)
    return seen


def stored(root: Path, run: str, stage: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "runs" / run / stage / "rollouts.jsonl").read_text().splitlines()]


@pytest.mark.long
def test_feedme_trains_kept_episodes_without_what_tools_answered_and_a_killed_run_ends_in_the_same_bytes(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    trained = spied(feedme, monkeypatch, "train", 2)
    assert main(["run", "t.yaml"]) == 0
    tokenizer = models.load_tokenizer(str(root / "runs/t/sft/model"), models.Model())
    rows = {(tuple(r["prompt_ids"]), tuple(r["ids"])): r for r in stored(root, "t", "feedme")}
    kept = [row for row in trained[0] if row.trained is not None]
    assert kept, "some kept episode called the calculator"
    for row in kept:
        record = rows[row.prompt_ids, row.completion_ids]  # the ids that were sampled, and no others
        assert list(row.trained) == record["sampled"] and record["reward"] >= 0
        answers = [m["content"] for m in record["episode"]["messages"] if m["role"] == "tool"]
        masked = [i for i, on in zip(row.completion_ids, row.trained, strict=True) if not on]
        assert tokenizer.decode(masked).split("=")[:-1] == answers, "all that tools answered, and only that"
        assert [i for i in row.labels if i != IGNORED] == [i for i, on in zip(row.completion_ids, row.trained,
                                                                              strict=True) if on]  # fmt: skip
    figures = manifest(root / "runs", "feedme")["metrics"]
    assert {"tool_calls_mean", "random_control_accuracy", "more_sft_accuracy", "best_of_n_accuracy"} <= figures.keys()
    killed_and_resumed(root, stage="feedme")
    for name in ("rollouts.jsonl", "metrics.jsonl", "model/model.safetensors"):
        one, two = (root / "runs" / run / "feedme" / name for run in ("t", "t2"))
        assert one.read_bytes() == two.read_bytes(), name


@pytest.mark.long
def test_feedme_trains_a_row_per_turn_where_the_template_rewrites_history(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    trained = spied(feedme, monkeypatch, "train", 2)
    words = ["run=rewritten", "model.chat_template=rewrites.jinja", "feedme.rounds=1", "feedme.random_control=false"]
    assert main(["run", "t.yaml", *words]) == 0
    rows = stored(root, "rewritten", "feedme")
    assert any(row.get("turn") for row in rows) and not any("sampled" in row for row in rows)
    by_ids = {(tuple(r["prompt_ids"]), tuple(r["ids"])): r for r in rows}
    later = [row for row in trained[0] if by_ids[row.prompt_ids, row.completion_ids].get("turn")]
    assert later, "the later turns of kept episodes are trained, from the prompt that they were sampled from"
    counted = manifest(root / "runs", "feedme", "rewritten")["metrics"]["rounds"][0]
    assert counted["sampled"] == 32 and counted["kept"] <= 16, "episodes are counted, not rows"


@pytest.mark.long
def test_labels_and_preferences_train_on_episodes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root)
    rows = spied(preference_rounds, monkeypatch, "train", 3)
    examples = spied(conditioned, monkeypatch, "train", 2)
    words = ["run=others", "stages=[base, sft, conditioned, dpo, kto, evaluate]"]
    assert main(["run", "t.yaml", *words]) == 0
    labelled = [row for row in examples[0] if row.prompt_ids != row.unlabelled_ids]
    assert labelled and any(row.trained is not None for row in labelled)
    curve = manifest(root / "runs", "conditioned", "others")["metrics"]["control_curve"]
    assert [c["n"] for c in curve] == [2 * len(curve_prompts(root))] * 2
    for pairs in rows:
        assert any(not all(row.get("chosen_sampled", row.get("completion_sampled"))) for row in pairs)
    judged = manifest(root / "runs", "evaluate", "others")["metrics"]["policies"]
    assert [row["policy"] for row in judged] == ["base", "sft", "conditioned", "dpo", "kto"]
    assert all("tool_calls_mean" in row for row in judged)


def curve_prompts(root: Path) -> set[int]:
    """Held-out prompts, by their index."""
    return {row["prompt_index"] for row in stored(root, "others", "evaluate")}


def test_where_every_history_is_rewritten_a_preference_stage_says_what_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from pipeline.config.load import ConfigError

    monkeypatch.setattr(preference_rounds, "round_samples", lambda *_, **__: SPLIT)
    ctx: Any = SimpleNamespace(block=SimpleNamespace(reward=None), scorer=None, tokens={"completion": 0}, name="dpo",
                               cfg=SimpleNamespace(path="t.yaml"))  # fmt: skip
    with pytest.raises(ConfigError, match=r"rewrites the history of all 1 episodes.* feedme and grpo train each turn"):
        samples_of(ctx, "p", 0)
