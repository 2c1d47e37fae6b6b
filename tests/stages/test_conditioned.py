"""Asking: templates against text written by hand, plain transformers against our generator, guidance against a full
forward pass, the KL against torch's own, and the stage and its probe on a tiny model."""

import io
import json
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.__main__ import main
from pipeline.config.load import ConfigError
from pipeline.config.schema import Attribute, Generate, Model, Prompts, Sampling, Tiny
from pipeline.credit.conditioning import Axis, Conditions
from pipeline.data import condition_prompts
from pipeline.data.encoding import render_ids
from pipeline.generation.generator import Request
from pipeline.generation.hf_engine import TransformersGenerator
from pipeline.models.models import load_policy, load_tokenizer, make_tiny
from pipeline.records import Prompt, Rollout, Scored
from pipeline.research.probe import probe_accuracy
from pipeline.stages import conditioned
from pipeline.stages.context import Judged
from pipeline.stages.control_curve import is_monotone, measure, obtained_of, rank_correlation, solvable
from pipeline.stages.imitation import ImitationRow, as_dataset, completion_logprobs, imitation_loss, pad
from pipeline.stages.label_tokens import check_trained, extend
from pipeline.stages.sft import train
from tests.small_chain import command, manifest, write_rows

REWARD = Axis("reward", (0.25, 0.75), "<{bin}> ").fitted([0.0, 0.5, 1.0])
SHORT = Axis("length", (4.0,), "({bin})", of="length", prefer="low").fitted([2.0, 9.0])
BOTH = Conditions((REWARD, SHORT))
CHATML = ("{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
          "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}")  # fmt: skip
ENDS = frozenset({2})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    place = tmp_path_factory.mktemp("tiny")
    make_tiny(Tiny(hidden_size=32, intermediate_size=64, num_hidden_layers=2), place, seed=0)
    return str(place)


@pytest.fixture
def tokenizer(tiny):
    return load_tokenizer(tiny, Model())


def rendered(tokenizer, template, conditions, turns, **how):
    tokenizer.chat_template = condition_prompts.labelled_template(template, conditions)
    messages = [{"role": role, "content": content} for role, content in turns]
    return tokenizer.apply_chat_template(messages, tokenize=False, **how)


# --- the exported template -----------------------------------------------------------------------------------------

TURNS = [("system", "Be brief."), ("user", "2+2?"), ("assistant", "4"), ("user", "3+3?")]


@pytest.mark.parametrize(
    ("how", "label"),
    [
        ({}, ""),
        ({"ask": None}, ""),
        ({"ask": "none"}, ""),
        ({"ask": "best"}, "<2> (0)"),
        ({"ask": "1"}, "<1> "),
        ({"ask": 1}, "<1> "),
        ({"ask": {"length": 1}}, "(1)"),
        ({"ask": {"length": 0, "reward": 0}}, "<0> (0)"),
    ],
)
def test_the_template_places_the_label_before_the_first_user_turn_and_changes_nothing_else(tokenizer, how, label):
    text = rendered(tokenizer, CHATML, BOTH, TURNS, add_generation_prompt=True, **how)
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        f"<|im_start|>user\n{label}2+2?<|im_end|>\n"
        "<|im_start|>assistant\n4<|im_end|>\n<|im_start|>user\n3+3?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_asking_for_a_bin_that_does_not_exist_is_refused_by_the_template(tokenizer):
    with pytest.raises(Exception, match="ask: 7 cannot be asked; give best, 0, 1, 2, or a mapping of reward, length"):
        rendered(tokenizer, CHATML, BOTH, TURNS, ask="7")


def test_the_template_and_our_own_rendering_give_the_same_ids(tokenizer):
    source = Prompts(path="x", chat=True)
    for template, how in ((CHATML, source), (condition_prompts.plain_template(tokenizer), Prompts(path="x"))):
        tokenizer.chat_template = template
        ours = render_ids({"prompt": "a1>b2:"}, how, tokenizer, label=BOTH.text(BOTH.best))
        tokenizer.chat_template = condition_prompts.labelled_template(template, BOTH)
        messages = [{"role": "user", "content": "a1>b2:"}]
        theirs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False, ask="best")
        assert list(theirs) == ours


def test_what_can_be_asked_is_saved_beside_the_model_and_read_back(tokenizer, tmp_path):
    condition_prompts.save(BOTH, tokenizer, tmp_path)
    assert condition_prompts.load(tmp_path) == BOTH
    assert condition_prompts.label_of(tmp_path, "best") == ("<2> (0)", [])
    text, [warning] = condition_prompts.label_of(tmp_path, "3")
    assert text == "<3> " and "beyond the bins trained" in warning
    with pytest.raises(ConfigError, match="label: no attribute 'colour' can be requested; have: reward, length"):
        condition_prompts.label_of(tmp_path, "colour=2")


def test_a_model_without_labels_can_be_asked_for_none_and_nothing_else(tmp_path):
    assert condition_prompts.label_of(tmp_path, "none") == ("", [])
    with pytest.raises(ConfigError, match="it was not trained on condition labels"):
        condition_prompts.label_of(tmp_path, "best")


def test_a_label_the_vocabulary_cannot_write_is_refused(tokenizer):
    condition_prompts.check_written(["<0> ", "<1> "], tokenizer, "c.yaml: conditioned.label")
    with pytest.raises(ConfigError, match=r"conditioned\.label: '★0' cannot be written in this model's vocabulary"):
        condition_prompts.check_written(["★0"], tokenizer, "c.yaml: conditioned.label")


# --- training ------------------------------------------------------------------------------------------------------


def test_the_loss_is_likelihood_plus_the_kl_that_torch_computes():
    torch.manual_seed(0)
    ours, base = (torch.randn(5, 9).log_softmax(-1) for _ in range(2))
    targets = torch.tensor([0, 3, 8, 2, 2])
    expected = torch.nn.functional.nll_loss(ours, targets, reduction="sum")
    expected += 0.3 * torch.nn.functional.kl_div(ours, base, log_target=True, reduction="sum")
    assert torch.allclose(imitation_loss(ours, base, targets, kl_coef=0.3), expected)
    assert torch.allclose(imitation_loss(ours, ours, targets, kl_coef=9.0),
                          torch.nn.functional.nll_loss(ours, targets, reduction="sum"))  # fmt: skip


def test_labelled_and_bare_prompts_are_compared_on_the_same_completion_tokens(tiny):
    examples = [
        ImitationRow((5, 6, 7, 8), (9, 10, 2), unlabelled_ids=(7, 8)),
        ImitationRow((5, 6, 7), (11, 2), unlabelled_ids=(7,)),
    ]
    rows = [dict(row) for row in as_dataset(examples, reference=True)]
    batch, model = pad(rows), load_policy(tiny, Model()).eval()
    with torch.no_grad():
        labelled = completion_logprobs(model, batch["input_ids"], batch["attention_mask"], batch["labels"])
        bare = completion_logprobs(model, batch["reference_ids"], batch["reference_mask"], batch["reference_labels"])
        alone = model(torch.tensor([[7, 11]])).logits[0].log_softmax(-1)
    assert labelled.shape == bare.shape == (5, model.config.vocab_size)
    assert torch.allclose(bare[3:], alone, atol=1e-5)  # unmoved by the longer row beside it


def test_new_tokens_leave_every_old_row_as_it_was_and_stay_tied(tiny):
    model = load_policy(tiny, Model())
    old = model.get_input_embeddings().weight.detach().clone()
    extend(model, len(old) + 3, seed=1)
    new = model.get_input_embeddings().weight
    assert torch.equal(new[: len(old)], old) and model.get_output_embeddings().weight.data_ptr() == new.data_ptr()
    again = load_policy(tiny, Model())
    extend(again, len(old) + 3, seed=1)
    assert torch.equal(again.get_input_embeddings().weight, new)
    assert len({tuple(row.tolist()) for row in new[len(old) :]}) == 3
    assert new[len(old) :].std() < 3 * old.std()


def test_an_adapter_that_leaves_new_embeddings_untrained_is_refused():
    check_trained(None, "x")
    check_trained({"r": 8, "modules_to_save": ["embed_tokens", "lm_head"]}, "x")
    with pytest.raises(ConfigError, match=r"modules_to_save: \[embed_tokens, lm_head\]"):
        check_trained({"r": 8}, "c.yaml: conditioned.peft")


def test_each_attribute_measures_what_it_is_called_after():
    rollout = Rollout(Prompt(0, "p", (1,)), 0, (4, 5, 2), (0.0,) * 3, "RR", True)
    one = Scored(rollout, 0.75, "pass", {"style": 0.5})
    assert [measure(of, one) for of in ("reward", "correct", "format", "length", "style")] == [0.75, 1, 1, 3, 0.5]
    with pytest.raises(ValueError, match=r"'tone' is no part of the rewards .* length, style"):
        measure("tone", one)


def test_the_bin_of_failures_is_shown_apart_from_what_can_be_asked():
    curve = [{"asked": i, "obtained": o} for i, o in enumerate((0.3, 0.1, 0.5, 0.9))]
    reward = Axis("reward", (0.1, 0.4, 0.8), "<{bin}>")
    assert solvable(reward, curve) == curve[1:] and is_monotone(curve[1:]) and not is_monotone(curve)
    assert solvable(SHORT, curve[:2]) == curve[:2]
    low = Axis("reward", (0.1, 0.4, 0.8), "<{bin}>", prefer="low")
    assert solvable(low, curve) == curve, "the lowest bin is what is asked for"


def test_beyond_the_bins_means_beyond_the_preferred_end():
    high, low = (Axis("length", (3.0, 5.0), "<{bin}>", of="length", prefer=p, seen=(9, 9, 9)) for p in ("high", "low"))
    assert (high.best, high.beyond, low.best, low.beyond) == (2, 3, 0, -1)
    assert "beyond the bins trained" in Conditions((low,)).warnings({"length": low.beyond})[0]


def test_a_linear_probe_reads_what_is_there_and_nothing_that_is_not():
    torch.manual_seed(0)
    signal = torch.eye(4, 16)[:, None] * 3
    fit, held = (signal + torch.randn(4, 200, 16) for _ in range(2))
    assert probe_accuracy(fit, held) > 0.9
    assert abs(probe_accuracy(torch.randn(4, 200, 16), torch.randn(4, 200, 16)) - 0.25) < 4 * math.sqrt(0.1875 / 800)


# --- the stage -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    place = tmp_path_factory.mktemp("runs")
    assert command(place, "run", "stages=[base,sft]") == 0
    return place


FEW = ["conditioned.prompts=64", "conditioned.samples=4", "conditioned.demonstrations=500", "conditioned.per_bin=50",
       "conditioned.trainer.max_steps=10", "conditioned.trainer.per_device_train_batch_size=32"]  # fmt: skip


@pytest.mark.stages
def test_a_trained_model_asked_through_plain_transformers_gives_the_ids_of_our_generator(runs):
    assert command(runs, "conditioned", *FEW, "conditioned.online_rounds=1",
                   "conditioned.online_trainer={max_steps: 4}") == 0  # fmt: skip
    place = runs / "small" / "conditioned" / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(place), AutoModelForCausalLM.from_pretrained(place).eval()
    greedy = Sampling(temperature=1e-4, max_tokens=16)
    ours = TransformersGenerator(str(place), Model(), Generate())
    for ask in ("best", "1", None):
        label, _ = condition_prompts.label_of(place, ask or "none")
        for text in ("a1>c1:", "e5>a2:", "b2>d4:"):
            messages = [{"role": "user", "content": text}]
            ids: Any = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt",
                                                return_dict=False, ask=ask)  # fmt: skip
            theirs = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=16)
            prompt = tuple(render_ids({"prompt": text}, Prompts(path="x"), tokenizer, label=label))
            [sample] = ours.sample([Request(prompt, 0, 16)], greedy, frozenset({tokenizer.eos_token_id}))
            assert theirs[0].tolist() == [*prompt, *sample.ids]


@pytest.mark.stages
def test_what_was_sampled_under_a_label_lies_in_the_pool_without_it(runs, monkeypatch):
    """The control and the KL must not see the label; and the control takes as many steps as the labels did."""
    learned = []

    def spy(ctx, start, examples, place, settings, **how):
        learned.append((how["key"][0], settings["max_steps"], examples))
        return train(ctx, start, examples, place, settings, **how)

    monkeypatch.setattr(conditioned, "train", spy)
    assert command(runs, "conditioned", *FEW, "conditioned.online_rounds=1", "run=bare", "stages=[conditioned]",
                   "conditioned.policy=" + str(runs / "small/sft/model"), "conditioned.filtered_control=true",
                   "conditioned.online_trainer={max_steps: 4}", "conditioned.shuffled_control=false") == 0  # fmt: skip
    tokenizer = load_tokenizer(str(runs / "small/sft/model"), Model())
    [(_, _, first), (_, _, online), (name, steps, filtered)] = learned
    assert (name, steps) == ("filtered", 14)
    assert any("<" in tokenizer.decode(list(e.prompt_ids)) for e in online)
    for example in filtered:
        assert "<" not in tokenizer.decode(list(example.prompt_ids))
    for example in [*first, *online]:
        assert "<" not in tokenizer.decode(list(example.unlabelled_ids))


def test_best_bins_without_a_sample_in_common_leave_the_filtered_control_out(capsys, monkeypatch):
    monkeypatch.setattr(conditioned, "train", lambda *given, **how: pytest.fail("nothing to imitate"))
    prompt = Prompt(0, "p", (1,), {})
    right = Scored(Rollout(prompt, 0, (1,) * 9, (0.0,) * 9, "", True), 1.0, "pass", {})
    short = Scored(Rollout(prompt, 1, (1,) * 2, (0.0,) * 2, "", True), 0.0, "fail", {})
    attributes = {"reward": Attribute(edges=[0.5]), "length": Attribute(of="length", edges=[4.0], prefer="low")}
    axes = (Axis("reward", (0.5,), "<{bin}>").fitted([1.0, 0.0]),
            Axis("length", (4.0,), "({bin})", of="length", prefer="low").fitted([9.0, 2.0]))  # fmt: skip
    ctx: Any = SimpleNamespace(name="conditioned")
    assert conditioned.filtered_sft(ctx, [right, short], Conditions(axes), attributes, 10) == {}
    said = capsys.readouterr().out
    assert said == "conditioned: filtered_control is not available: no sample lies in the best bin of every attribute\n"


def test_an_axis_less_the_prompts_mean_obtains_distances_from_it():
    axis = Axis("length", (-1.0, 1.0), "({bin})", of="length", prefer="low", per_prompt=True)

    def judged(lengths):
        rollouts = [Rollout(Prompt(i, "", (1,), {}), 0, (1,) * n, (0.0,) * n, "", True) for i, n in enumerate(lengths)]
        return Judged({}, [Scored(r, 1.0, "pass", {}) for r in rollouts])

    assert obtained_of(axis, [judged([2, 10]), judged([4, 30])]) == [{0: -1.0, 1: -10.0}, {0: 1.0, 1: 10.0}]
    absolute = replace(axis, per_prompt=False)
    assert obtained_of(absolute, [judged([2, 10])]) == [{0: 2.0, 1: 10.0}]
    assert Conditions.from_json(Conditions((axis,)).as_json()).main.per_prompt


def test_a_prompt_that_nothing_could_score_is_left_out_of_the_curve_and_does_not_make_it_perfect():
    axis = Axis("reward", (0.3, 0.6), "({bin})")

    def judged(rewards):
        rollouts = [Rollout(Prompt(i, "", (1,), {}), 0, (1,), (0.0,), "", True) for i in range(len(rewards))]
        told = {"heldout_accuracy": 1.0, "mean_completion_tokens": 1.0}
        scored = [
            Scored(r, x, "error" if math.isnan(x) else "pass", {}) for r, x in zip(rollouts, rewards, strict=True)
        ]
        return Judged(told, scored)

    answers = [judged([0.9, math.nan]), judged([0.5, math.nan]), judged([0.1, 0.2])]
    assert obtained_of(axis, answers) == [{0: 0.9}, {0: 0.5}, {0: 0.1, 1: 0.2}]
    apart = obtained_of(replace(axis, per_prompt=True), answers)
    assert apart[0] == {0: pytest.approx(0.4)} and apart[2] == {0: pytest.approx(-0.4), 1: 0.0}
    lost = [{"asked": i, "obtained": math.nan} for i in range(3)]
    assert math.isnan(rank_correlation(lost)) and not is_monotone(lost)


@pytest.mark.stages
def test_the_report_of_control_names_every_bin_its_interval_and_what_lies_beyond(runs):
    metrics = manifest(runs, "conditioned")["metrics"]
    assert [c["asked"] for c in metrics["control_curve"]] == [0, 1, 2, 3, 4]
    assert (metrics["best_bin"], metrics["best_label"]) == (4, "<4> ")
    for row in metrics["control_curve"]:
        assert row["ci95"][0] <= row["obtained"] <= row["ci95"][1] and row["seen"] > 0
        low, high = row["target"]
        assert (low is None or row["promised"] >= low) and (high is None or row["promised"] < high)
    assert "beyond the bins trained" in metrics["extrapolation"]["warning"]
    assert len(metrics["shuffled_curve"]) == 5 and len(metrics["top_accuracy_by_round"]) == 2
    rows = [json.loads(line) for line in (runs / "small" / "conditioned" / "rollouts.jsonl").open()]
    assert {(r["round"], r["asked"]) for r in rows} == {(0, ""), (1, "<4> ")}


@pytest.mark.stages
def test_the_probe_reads_a_trained_model_and_refuses_one_without_labels(runs, capsys):
    assert command(runs, "probe", "probe.prompts=20", "probe.samples=1", "probe.scales=[1.0]") == 0
    metrics = manifest(runs, "probe")["metrics"]
    assert [row["layer"] for row in metrics["layers"]] == [0, 1] and metrics["chance"] == 0.2
    assert {(s["layer"], s["direction"]) for s in metrics["steering"]} == {
        (-1, "none"), (0, "label"), (0, "random"), (1, "label"), (1, "random")}  # fmt: skip
    assert command(runs, "probe", "probe.policy=sft") == 2
    assert "has no conditions.json" in capsys.readouterr().err


@pytest.mark.stages
def test_a_runs_model_is_asked_from_the_command_line(runs, tmp_path, capsys):
    run = str(runs / "small")
    tasks = write_rows(tmp_path / "tasks.jsonl", [{"prompt": "a1>c1:"}, {"prompt": "e5>a2:"}])
    assert main(["generate", run, "stage=conditioned", f"prompts={tasks}", "label=best", "samples=2", "seed=3",
                 f"to={tmp_path / 'out.jsonl'}"]) == 0  # fmt: skip
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").open()]
    assert [a["prompt"] for a in answers] == ["a1>c1:"] * 2 + ["e5>a2:"] * 2 and answers[0]["label"] == "<4> "
    greedy = []
    for seed in "12":  # at temperature 0 the seed changes nothing, and neither does guidance of one
        capsys.readouterr()
        assert main(["generate", run, "stage=conditioned", "prompt=a1>c1:", "label=4", "temperature=0", "guidance=1",
                     f"seed={seed}"]) == 0  # fmt: skip
        greedy.append(capsys.readouterr().out)
    assert greedy[0] == greedy[1] and json.loads(greedy[0])["label"] == "<4> "


@pytest.mark.stages
def test_what_cannot_be_asked_from_the_command_line_is_reported(runs, capsys):
    run = str(runs / "small")
    assert main(["generate", run, "stage=conditioned", "prompt=a1>c1:", "label=9"]) == 0
    assert "warning: reward=9 is beyond the bins trained, 0 to 4" in capsys.readouterr().err
    for words, told in ((["stage=sft", "prompt=x", "label=best"], "it was not trained on condition labels"),
                        (["stage=conditioned", "label=best"], "give prompt=TEXT, or prompts=FILE.jsonl"),
                        (["stage=conditioned", "prompt=x", "temperature=hot"], "temperature=hot: expected a number"),
                        (["stage=conditioned", "prompt=x", "lable=best"], "did you mean 'label'?")):  # fmt: skip
        assert main(["generate", run, *words]) == 2
        assert told in capsys.readouterr().err


@pytest.mark.stages
def test_chat_answers_line_by_line_until_the_input_ends(runs, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("a1>c1:\ne5>a2:\n"))
    assert main(["chat", str(runs / "small"), "stage=conditioned", "label=best"]) == 0
    told = capsys.readouterr().out
    assert "requesting '<4>'" in told and told.count("> ") >= 3


@pytest.mark.stages
def test_two_attributes_special_tokens_guidance_and_kl_run_together(runs):
    two = "{correct: {of: correct, label: '<{bin}>'}, length: {of: length, label: ':{bin}>', edges: [0.0], " \
          "per_prompt: true, prefer: low}}"  # fmt: skip
    settings = [f"conditioned.attributes={two}", "conditioned.vocabulary=special", "conditioned.guidance=1.5",
                "conditioned.kl_coef=0.1", "conditioned.shuffled_control=false"]  # fmt: skip
    assert command(runs, "conditioned", *FEW, *settings) == 0
    metrics = manifest(runs, "conditioned")["metrics"]
    assert metrics["joint"]["asked"] == "<1>:0>" and set(metrics["attribute_curves"]) == {"length"}
    tokenizer = AutoTokenizer.from_pretrained(runs / "small" / "conditioned" / "model")
    ids = tokenizer.apply_chat_template([{"role": "user", "content": "a1>c1:"}], return_dict=False, ask="best")
    assert len(ids) == 2 + len("a1>c1:")  # a token a label


@pytest.mark.stages
def test_the_pool_of_one_stage_teaches_another_without_sampling(runs):
    assert command(runs, "conditioned", *FEW, "conditioned.shuffled_control=false") == 0
    offline = "{kind: conditioned, policy: sft, pool: [conditioned], demonstrations: 500, per_bin: 50, " \
              "shuffled_control: false, trainer: {max_steps: 5}}"  # fmt: skip
    assert command(runs, "again", f"again={offline}") == 0
    again, first = manifest(runs, "again"), manifest(runs, "conditioned")
    assert again["tokens"]["completion"] == 0 and set(again["parents"]) == {"sft", "conditioned"}
    assert again["metrics"]["pool_size"] == first["metrics"]["pool_size"]
