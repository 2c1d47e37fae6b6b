"""A plan's counts against hand arithmetic, its example against the tokens, and its trial against a real run."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from loop_kit import manifest, run_stage

from pipeline import plan
from pipeline.__main__ import main
from pipeline.config.load import ConfigError, load
from pipeline.config.work import Data, trained_steps
from pipeline.plan import data_checks, data_plan, estimate, one_run
from pipeline.plan.estimate import Shape
from pipeline.plan.trial import Trial
from pipeline.records import read_scored
from pipeline.run.manifest import verified_manifest

ROOT = Path(__file__).parents[2]
DEMO, CHAOS, COMPARE = (str(ROOT / f"configs/demo/{name}.yaml") for name in ("pipeline", "chaos", "compare"))
DATA = Data(1000, 300, 120, (6.0, 6, 6), (8.0, 11, 12), 0.0, 0.0)


def work(*words: str, stage: str):
    return estimate.work_of(load(DEMO, list(words)), stage, DATA)


def test_policy_stages_sample_steps_times_prompts_times_samples():
    made = work("grpo.steps=7", "grpo.prompts=5", "grpo.samples=3", stage="grpo")
    assert (made.steps, made.batch, made.samples) == (7, 15, 105)
    assert not made.at_most
    refilled = work("grpo.steps=7", "grpo.groups.dynamic=true", "grpo.groups.refill_cap=2", stage="grpo")
    assert refilled.samples == 7 * 32 * 8 * 2 and refilled.at_most


def test_trainer_steps_are_the_librarys_own_arithmetic():
    assert trained_steps({"max_steps": 9, "per_device_train_batch_size": 4}, 1000) == (4, 9)
    # 101 rows, 8 a batch, 2 batches a step: 13 batches are 7 steps an epoch
    assert trained_steps({"gradient_accumulation_steps": 2, "num_train_epochs": 3}, 101) == (16, 21)


def test_rows_of_a_stages_own_data_are_counted_and_not_the_runs():
    own = replace(DATA, own_rows={"sft": 640, "reward_model": 320})
    cfg = load(DEMO, ["sft.data={path: x.jsonl}", "sft.trainer={per_device_train_batch_size: 64, num_train_epochs: 2}",
                      "reward_model={policy: sft, data: {path: y.jsonl}}",
                      "reward_model.trainer={per_device_train_batch_size: 32, num_train_epochs: 1}"])  # fmt: skip
    assert [estimate.work_of(cfg, name, own).steps for name in ("sft", "reward_model")] == [20, 10]


def test_feedme_samples_every_round_and_judges_its_control_too():
    made = work("feedme.rounds=3", "feedme.prompts=10", "feedme.samples=4", stage="feedme")
    # three rounds of two chains and the control that only trains on, all judged; the blind chain samples as much again
    assert made.samples == 120 and made.judged == 120 * 16 * (3 * 2 + 1) + 120
    assert made.steps == 120 * 3 * 3


def test_lengths_come_from_the_yaml_before_the_demonstrations():
    cfg = load(DEMO, ["expected_tokens={grpo: 5.5}"])
    works = [estimate.work_of(cfg, name, DATA) for name in ("grpo", "ppo")]
    estimate.expect_lengths(cfg, works, DATA, {})
    assert [(w.mean_tokens, w.source) for w in works] == [(5.5, "expected_tokens"), (8.0, "demonstrations")]
    assert works[0].tokens == round(5.5 * works[0].samples)


def test_lengths_of_a_run_on_disk_come_before_all_else():
    cfg = load(DEMO, ["expected_tokens={grpo: 5.5}"])
    works = [estimate.work_of(cfg, "grpo", DATA)]
    done = {"tokens": {"completion": works[0].samples * 4}, "metrics": {}}
    estimate.expect_lengths(cfg, works, DATA, {"grpo": done})
    assert works[0].tokens == works[0].samples * 4 and works[0].source == "a run on disk"


def test_what_is_sampled_on_from_within_answers_is_counted(model, tmp_path):
    words = ["grpo.credit={kind: monte_carlo, points: 2, continuations: 3}", "grpo.steps=6"]
    assert run_stage(tmp_path, model, "grpo", *words) == 0
    own = [len(s.rollout.ids) for s in read_scored(tmp_path / "t" / "grpo" / "rollouts.jsonl")]
    cfg = load(str(tmp_path / "config.yaml"), [*words, f"expected_tokens={{grpo: {sum(own) / len(own)}}}"])
    made = estimate.work_of(cfg, "grpo", DATA)
    estimate.expect_lengths(cfg, [made], DATA, {})
    done = manifest(tmp_path, "grpo")
    assert made.tokens == pytest.approx(4 * sum(own))
    assert made.tokens == pytest.approx(done["tokens"]["completion"], rel=0.1)
    again = estimate.work_of(cfg, "grpo", DATA)
    estimate.expect_lengths(cfg, [again], DATA, {"grpo": done})
    assert again.tokens == done["tokens"]["completion"] and again.source == "a run on disk"


def test_looks_on_the_way_are_judged_too():
    for every, looks in (("null", 1), ("4", 3)):
        cfg = load(DEMO, ["grpo.steps=10", f"grpo.evaluate_every={every}"])
        made = estimate.work_of(cfg, "grpo", DATA)
        estimate.expect_lengths(cfg, [made], DATA, {})
        assert made.judged == looks * 120 * 16


def test_memory_by_part_is_the_parameters_times_what_is_kept_of_each():
    shape = Shape(1000, 8, 2, 8, 50, 4)
    trial = Trial(libraries_bytes=7, generator_bytes=11, cache_bytes=13)
    cfg = load(DEMO, [])
    parts = estimate.memory_of(cfg, "ppo", shape, DATA, trial).parts
    assert (parts["libraries"], parts["generator"], parts["kv cache"]) == (7, 11, 13)
    assert (parts["weights"], parts["gradients"], parts["optimizer"]) == (4000, 4000, 8000)
    assert parts["requests"] == 1920 * 3 * 1024  # 120 held-out prompts x 16, more than a step's 256
    assert (parts["reference"], parts["critic"], parts["reward model"]) == (4000, 16000, 4000)
    named = load(DEMO, ["ppo.reward={preference: {kind: learned, model: reward_model}}"])
    assert estimate.memory_of(named, "ppo", shape, DATA, trial).parts["reward model"] == 4000
    assert "reference" not in estimate.memory_of(cfg, "grpo", shape, DATA, trial).parts  # no KL is asked for
    assert "weights" not in estimate.memory_of(cfg, "evaluate", shape, DATA, trial).parts


def test_what_learns_is_kept_in_float32_whatever_the_models_precision():
    """By hand, 1000 parameters in bfloat16: weights and gradients 4 bytes each, moments 8, a critic 16, others 2."""
    parts = estimate.memory_of(load(DEMO, []), "ppo", Shape(1000, 8, 2, 8, 50, 2), DATA, Trial()).parts
    assert (parts["weights"], parts["gradients"], parts["optimizer"]) == (4000, 4000, 8000)
    assert (parts["reference"], parts["critic"], parts["reward model"]) == (2000, 16000, 2000)
    lora = load(DEMO, ["ppo.peft={r: 4, target_modules: all-linear}"])
    parts = estimate.memory_of(lora, "ppo", Shape(1000, 8, 2, 8, 50, 2), DATA, Trial()).parts
    assert (parts["weights"], parts["gradients"], parts["optimizer"]) == (2000, 80, 160)


def test_checkpointing_keeps_one_layers_activations_and_what_goes_into_the_others():
    """By hand, width 8, 2 layers, rows of 16,384 tokens: 68 bytes a layer, or 4 a layer and 68 of one."""
    shape, held = Shape(1000, 8, 2, 8, 50, 4), {}
    for on in (False, True):
        cfg = load(DEMO, [f"grpo.gradient_checkpointing={str(on).lower()}", "grpo.prompts=4000"])
        held[on] = estimate.memory_of(cfg, "grpo", shape, DATA, Trial()).parts["activations"]
    assert held == {False: 16384 * 8 * 2 * 68, True: 16384 * 8 * (2 * 4 + 68)}


def test_a_token_budget_ends_sampling_with_the_step_that_reaches_it():
    cfg = load(DEMO, ["grpo.token_budget=10000", "grpo.steps=1000", "expected_tokens={grpo: 5.0}"])
    grpo = estimate.work_of(cfg, "grpo", DATA)
    estimate.expect_lengths(cfg, [grpo], DATA, {})
    assert (grpo.steps, grpo.samples, grpo.tokens) == (8, 2048, 10_240)  # 7 steps of 256 x 5 are 8,960
    roomy = load(DEMO, ["grpo.token_budget=1000000", "grpo.steps=7", "expected_tokens={grpo: 5.0}"])
    grpo = estimate.work_of(roomy, "grpo", DATA)
    estimate.expect_lengths(roomy, [grpo], DATA, {})
    assert grpo.steps == 7


def test_a_comparison_is_planned_part_by_part(tmp_path, capsys):
    words = [f"runs_dir={tmp_path}", "trial=false", "prompts.rows=2000", "compare.seeds=[4, 7]",
             "compare.methods=[feedme, grpo]", "compare.controls={grpo: grpo_random}", "compare.drawn_once={}",
             "compare.proxy=null", "compare.proxy_methods=[]", "compare.budget=50000"]  # fmt: skip
    assert plan.plan(COMPARE, [*words, "json=true"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert list(made) == ["compare/start", "compare/seed-4", "compare/seed-7"]
    assert list(made["compare/start"]) == ["base", "sft"]
    assert list(made["compare/seed-7"]) == ["feedme", "grpo", "grpo_random", "judge"]
    for name in ("feedme", "grpo", "grpo_random"):
        assert 50_000 <= made["compare/seed-4"][name]["sampled_tokens"] < 50_000 + 256 * 17
    assert plan.plan(COMPARE, words) == 0
    said = capsys.readouterr().out
    assert "seed-7/grpo_random" in said and "2 methods, 1 controls and twins, 2 seeds" in said
    assert plan.plan(COMPARE, [*words, "json=true", "stages=[compare]"]) == 0
    listed = json.loads(capsys.readouterr().out)["compare"]
    parts = [part for one in made.values() for part in one.values()]
    for figure in ("steps", "samples", "sampled_tokens"):
        assert listed[figure] == pytest.approx(sum(part[figure] for part in parts), abs=1) and listed[figure] > 0
    assert not list(tmp_path.iterdir()), "a plan leaves nothing"


def test_what_a_comparison_lacks_is_reported_part_by_part(tmp_path):
    words = [f"runs_dir={tmp_path}", "trial=false", "prompts.rows=200"]
    with pytest.raises(ConfigError, match="no block for 'grop'"):
        plan.plan(COMPARE, [*words, "compare.methods=[grop]", "compare.controls={}", "compare.drawn_once={}"])
    with pytest.raises(ConfigError, match=r"grpo\.policy: 'sfd'"):
        plan.plan(COMPARE, [*words, "grpo.policy=sfd"])


@pytest.mark.parametrize("word", ["rewards=gridworld", "rewards={gridworld: 1.0}", "prompts=q.jsonl", "stages=bse",
                                  "stages='base, grpo'"])  # fmt: skip
def test_a_refused_value_is_one_line_and_not_called_empty_as_well(word):
    with pytest.raises(ConfigError) as caught:
        plan.sound(str(DEMO), [word, "prompts.rows=50"] if not word.startswith("prompts") else [word])
    assert len(caught.value.mistakes) == 1, caught.value.mistakes


def test_the_example_is_trained_on_from_the_completion_to_its_end_token(tmp_path):
    cfg = load(CHAOS, [f"runs_dir={tmp_path}"])
    made = one_run.make(cfg, None)
    ((kind, tokens),) = made.examples.items()
    shown = "".join(text for text, _ in tokens)
    prompt = "".join(text for text, trained in tokens if not trained)
    assert kind == "prompts: text" and prompt.endswith(":") and shown.startswith(prompt)
    assert tokens[-1] == ("<eos>", True)
    assert not list(tmp_path.iterdir())  # a plan leaves nothing


def test_plans_of_one_model_block_make_its_tiny_model_once(tmp_path, monkeypatch):
    """A comparison plans many runs of one model, whose seeds differ."""
    from pipeline.models import models

    made = []
    make = models.make_tiny

    def counting(tiny, path, **more):
        made.append(tiny)
        return make(tiny, path, **more)

    monkeypatch.setattr(models, "make_tiny", counting)
    monkeypatch.setattr(one_run, "_tiny_tokenizers", {})
    words = [f"runs_dir={tmp_path}"]
    one, two = (one_run.tokenizer_of(load(DEMO, [*words, f"seed={seed}"])) for seed in (1, 2))
    assert len(made) == 1 and one("12")["input_ids"] == two("12")["input_ids"]
    other = one_run.tokenizer_of(load(DEMO, [*words, "model.tiny.characters='21'"]))
    assert len(made) == 2 and other("12")["input_ids"] != one("12")["input_ids"]


# CPU seconds of the whole demo's stages, one thread; the trial's rates by the same clock, beside the same neighbours
DEMO_CPU_S = {"base": 9.9, "sft": 36.4, "feedme": 109.3, "reward_model": 20.5, "ppo": 35.9, "grpo": 38.2,
              "conditioned": 164.2, "evaluate": 11.2}  # fmt: skip
DEMO_TRIAL = Trial(imports_s=2.9, engine_s=6.7, generator="vllm", sampled_per_s=12_758.0, fetched_per_s=89_518.0,
                   learned_per_s=46_328.0, shape={"parameters": 108_608, "hidden": 64, "layers": 2, "kv_width": 64,
                                                  "vocabulary": 22, "bytes_each": 4})  # fmt: skip


def test_the_demos_time_is_estimated_within_30_percent_from_a_trials_rates(tmp_path):
    made = one_run.make(load(DEMO, [f"runs_dir={tmp_path}"]), lambda inputs: DEMO_TRIAL)
    told = {name: made.seconds[name] for name in DEMO_CPU_S}
    assert told == {name: pytest.approx(seconds, rel=0.3) for name, seconds in DEMO_CPU_S.items()}
    assert sum(told.values()) == pytest.approx(sum(DEMO_CPU_S.values()), rel=0.15)


def test_prompt_tokens_cost_the_layers_alone_and_are_computed_once_per_group(tmp_path):
    """By hand: layers of 100 and a head of 300 numbers, so a prompt token costs a quarter of one with a log-prob."""
    assert Shape(400, 10, 2, 8, 30, 4).body_share == Shape(700, 10, 2, 8, 30, 4, embedding=600).body_share == 0.25
    shape = {**DEMO_TRIAL.shape, "parameters": 400, "hidden": 10, "vocabulary": 30}
    rates = replace(DEMO_TRIAL, fetched_per_s=1e9, learned_per_s=1.0, sampled_per_s=1e9, shape=shape)
    words = [f"runs_dir={tmp_path}", "stages=[base,sft,grpo]", "grpo.policy=sft", "grpo.groups.dynamic=false",
             "grpo.steps=3", "grpo.prompts=2", "expected_tokens={grpo: 5.0}"]  # fmt: skip
    for samples, prompts_computed in ((8, 2), (2, 4)):  # of 6 tokens: 42 are saved, which is worth it, or 6
        made = one_run.make(load(DEMO, [*words, f"grpo.samples={samples}"]), lambda inputs: rates)
        prompt = made.data.prompt_tokens[0]
        tokens = 3 * (2 * samples * 5 + 0.25 * prompts_computed * prompt)
        assert made.seconds["grpo"] == pytest.approx(tokens, abs=3)


def test_each_training_starts_by_loading_its_model_and_each_policy_step_syncs_it(tmp_path):
    """By hand: 4 rounds of FeedME, each for itself, for its random control and for more SFT, are 12 trainings."""
    words = [f"runs_dir={tmp_path}", "stages=[base,sft,feedme,grpo,evaluate]", "grpo.steps=5"]
    free, slow = DEMO_TRIAL, replace(DEMO_TRIAL, load_s=3.0, sync_s=2.0, canary_s=1.5)
    cfg = load(DEMO, words)
    told = [one_run.make(cfg, lambda inputs: free).seconds, one_run.make(cfg, lambda inputs: slow).seconds]
    more = {name: told[1][name] - told[0][name] for name in told[0]}
    assert more == pytest.approx({"base": 0, "sft": 3, "feedme": 36, "grpo": 3 + 5 * 3.5, "evaluate": 12}, abs=0.5)


def test_the_kl_to_the_start_costs_two_passes_over_the_held_out_samples(tmp_path):
    """By hand: 1 token per second without gradients, and prompts (a quarter per token) once per group of samples."""
    shape = {**DEMO_TRIAL.shape, "parameters": 400, "hidden": 10, "vocabulary": 30}
    rates = replace(DEMO_TRIAL, fetched_per_s=1.0, learned_per_s=1e9, sampled_per_s=1e9, shape=shape)
    words = [f"runs_dir={tmp_path}", "stages=[base,sft,grpo]", "grpo.policy=sft", "grpo.steps=1",
             "grpo.epochs=1", "grpo.minibatches=1", "expected_tokens={grpo: 5.0}",
             "evaluation={samples: 8, prompts: 10, k: 4}"]  # fmt: skip
    made = one_run.make(load(DEMO, words), lambda inputs: rates)
    assert made.seconds["grpo"] == pytest.approx(2 * (10 * 8 * 5 + 0.25 * 10 * made.data.prompt_tokens[0]), abs=3)


@pytest.mark.parametrize(
    ("words", "written"), [((), 1), (("grpo.checkpoint_every=3",), 3), (("grpo.peft={r: 4}",), 0.02)]
)
def test_checkpoints_cost_time(tmp_path, words, written):
    """By hand: 12 bytes per trained number, 320 MB per second: 10 s. The first is due after 100 s."""
    rates = replace(DEMO_TRIAL, fetched_per_s=1e9, learned_per_s=1e9, sampled_per_s=1e9, sync_s=20.0,
                    shape={**DEMO_TRIAL.shape, "parameters": 3_200_000_000 // 12})  # fmt: skip
    words = [f"runs_dir={tmp_path}", "stages=[base,sft,grpo]", "grpo.policy=sft", "grpo.steps=10", *words]
    made = one_run.make(load(DEMO, words), lambda inputs: rates)
    assert made.seconds["grpo"] == pytest.approx(10 * 20 + 10 * written, abs=3)


def test_a_given_model_is_expected_to_sample_to_the_limit_before_it_is_trained():
    cfg = load(DEMO, ["stages=[base,sft]", "sampling.max_tokens=13"])
    assert DATA.completion_tokens is not None
    for path, expected in ((None, DATA.completion_tokens[0]), ("a/model", 13)):
        cfg.model.path = path
        works = [estimate.work_of(cfg, name, DATA) for name in cfg.stages]
        estimate.expect_lengths(cfg, works, DATA, {})
        assert [work.mean_tokens for work in works] == [expected, DATA.completion_tokens[0]]


def test_labels_in_front_of_prompts_cost_time(tmp_path):
    words = [f"runs_dir={tmp_path}", "stages=[base,conditioned]", "conditioned.policy=base"]
    long = one_run.make(load(DEMO, [*words, "conditioned.label='<1234{bin}> '"]), lambda inputs: DEMO_TRIAL)
    short = one_run.make(load(DEMO, [*words, "conditioned.label='{bin}'"]), lambda inputs: DEMO_TRIAL)
    body = (108_608 - 64 * 22) / 108_608  # a label is computed without the head
    more = 7 * body * 2400 * 128 / DEMO_TRIAL.learned_per_s  # tokens, steps, rows
    assert long.seconds["conditioned"] - short.seconds["conditioned"] == pytest.approx(more, abs=0.5)


@pytest.mark.stages
@pytest.mark.timeout(600)
def test_a_plan_predicts_the_tokens_and_the_memory_that_the_run_then_takes(tmp_path, capsys):
    """Sampled tokens within 2%, peak memory within 15%: the first run's lengths serve the second seed's plan."""
    words = [f"runs_dir={tmp_path}", "stages=[base,sft,grpo]", "grpo.groups.dynamic=false", "sft.trainer.max_steps=150",
             "prompts.rows=3000", "grpo.prompts=32"]  # fmt: skip

    def run(*more: str) -> None:
        """In a process of its own, whose peak memory is measured."""
        command = [sys.executable, "-m", "pipeline", "run", CHAOS, *words, *more]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
        assert done.returncode == 0, done.stderr

    def planned(*more: str) -> dict[str, Any]:
        """The trial runs in a process of its own."""
        assert main(["plan", CHAOS, *words, "json=true", *more]) == 0
        return json.loads(capsys.readouterr().out)

    before = planned()
    run()
    took = {name: verified_manifest(tmp_path / "chaos" / name)["wall_s"] for name in ("base", "sft", "grpo")}
    expected = sum(stage["seconds"] for stage in before.values())
    assert 1 / 3 < sum(took.values()) / expected < 3, "the machine may be given away between trial and run"
    second_plan = planned("run=second", "seed=2")
    run("run=second", "seed=2")
    made = {name: verified_manifest(tmp_path / "second" / name) for name in ("base", "sft", "grpo")}
    assert second_plan["grpo"]["sampled_tokens"] == pytest.approx(made["grpo"]["tokens"]["completion"], rel=0.1)
    again = planned("run=second", "seed=2", "trial=false")  # token counts need no trial
    assert again["grpo"]["sampled_tokens"] == pytest.approx(made["grpo"]["tokens"]["completion"], rel=0.02)
    peak = max(stage["memory_bytes"] for stage in second_plan.values())
    assert peak == pytest.approx(max(m["peak_rss_bytes"] for m in made.values()), rel=0.15)


def test_a_pool_of_ratings_foresees_no_samples(tmp_path):
    """451 ratings are trained on and nothing is sampled, in any of the stages that take a pool."""
    ratings = tmp_path / "ratings.jsonl"
    ratings.write_text('{"prompt": "a1>b2:", "completion": "RD", "rating": 7}\n' * 451)
    words = [
        f"runs_dir={tmp_path}",
        f"feedme.pool={ratings}",
        f"reward_model.pool={ratings}",
        f"conditioned.pool={ratings}",
    ]
    cfg = load(DEMO, [*words, "feedme.trainer={per_device_train_batch_size: 10, num_train_epochs: 1}",
                      "feedme.rounds=1", "feedme.more_sft_control=false"])  # fmt: skip
    assert data_plan.pool_rows(cfg, cfg.block("feedme").pool) == 451
    data = replace(DATA, pool_rows=dict.fromkeys(("feedme", "reward_model", "conditioned"), 451))
    works = [estimate.work_of(cfg, name, data) for name in ("feedme", "reward_model", "conditioned")]
    assert [work.samples for work in works] == [0, 0, 0]
    again = load(DEMO, [*words, "conditioned.online_rounds=2", "conditioned.prompts=10", "conditioned.samples=4"])
    assert estimate.work_of(again, "conditioned", data).samples == 2 * 10 * 4, "the rounds after the pool sample"
    assert works[0].judged == 120 * 16 * 2 and works[0].steps == 46 * 2  # 451 rows, 10 per step, with the control


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        (AttributeError("'NoneType' object has no attribute 'get'"), "x: null has no attribute 'get'"),
        (KeyError("gold"), "x: no key 'gold'"),
        (ValueError(""), "x: it failed without a message"),
    ],
)
def test_a_plan_speaks_of_values_and_not_of_classes(raised, line):
    def attempt():
        raise raised

    assert data_checks.faults_of("x", attempt) == [line]


def test_a_plan_prints_no_address_of_the_validation_library():
    from pydantic import TypeAdapter

    (line,) = data_checks.faults_of("x", lambda: TypeAdapter(dict[str, int]).validate_python({"a": "many"}))
    assert line.startswith("x: a: input should be a valid integer") and "http" not in line


def test_a_plan_names_the_tools_and_how_calls_are_read():
    cfg = load(str(Path(CHAOS).parents[1] / "tools/calculator.yaml"))
    plain = SimpleNamespace(chat_template=None)
    assert one_run.tools_line(cfg, plain) == "tools: calculator; calls are read as pythonic"
    assert one_run.tools_line(replace(cfg, tools=None), plain) == ""
