"""Real architectures with real chat templates go through rendering, SFT, RL, adapters, saves and syncs."""

from __future__ import annotations

import json

import pytest
import torch

from pipeline.config.schema import Model, Prompts
from pipeline.data import encoding
from pipeline.models import adapters, models, saved_check, weights
from pipeline.models.saved_check import outputs
from tests import family_runs
from tests.family_twins import FAMILIES, FAST, perturb, save

EVERY_STAGE = ("qwen2", "qwen3", "llama", "gemma2", "smollm3")
ROW = {"prompt": "a1>b1:", "completion": "R", "task": {"start": "a1", "goal": "b1"}}


@pytest.fixture(scope="module", params=FAST)
def family(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    save(FAMILIES[request.param], path)
    return FAMILIES[request.param], path


def rendered(path, source):
    tokenizer = models.load_tokenizer(str(path), Model())
    ends = models.end_ids(tokenizer, models.load_policy(str(path), Model()))
    ids = encoding.render_ids(ROW, source, tokenizer)
    return tokenizer, ids, encoding.completion_ids(ROW, source, tokenizer, ids, stop_token_ids=ends), ends


def test_a_turn_is_trained_to_end_with_the_templates_own_end_and_begins_with_one_bos(family):
    kind, path = family
    tokenizer, ids, completion, ends = rendered(path, Prompts(chat=True))
    assert tokenizer.convert_ids_to_tokens(completion[-1]) == kind.end and completion[-1] in ends
    assert sum(token in ends for token in completion) == 1
    bos = tokenizer.convert_tokens_to_ids(kind.bos) if kind.bos else None
    assert (ids + completion).count(bos) == (1 if kind.bos else 0)
    assert tokenizer.decode(ids + completion).count("a1>b1:") == 1


def test_thinking_tags_are_in_the_answer_or_in_the_prompt(tmp_path):
    save(FAMILIES["qwen3"], tmp_path)
    tokenizer, ids, completion, _ = rendered(tmp_path, Prompts(chat=True))
    assert "<think>" not in tokenizer.decode(ids) and tokenizer.decode(completion).startswith("<think>\n\n</think>")
    tokenizer, ids, completion, _ = rendered(tmp_path, Prompts(chat=True, chat_kwargs={"enable_thinking": False}))
    assert tokenizer.decode(ids).endswith("</think>\n\n") and tokenizer.decode(completion) == "R<|im_end|>"


# --- weights: what is saved, and what a generator gets --------------------------------------------------------------


def file_tensors(path):
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(path.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def test_named_weights_are_what_save_pretrained_writes(family, tmp_path):
    """Names and values; beside them only the second name of a tied tensor, which a file does not hold."""
    _, path = family
    model = models.load_policy(str(path), Model())
    perturb(model, seed=3)
    models.save(model, models.load_tokenizer(str(path), Model()), tmp_path)
    written, named = file_tensors(tmp_path), dict(weights.named_weights(model))
    aliases = named.keys() - written.keys()
    assert written.keys() <= named.keys() and len(aliases) == bool(weights.tied_names(model))
    assert all(torch.equal(written[name], named[name]) for name in written)


def test_a_copy_of_the_model_takes_every_weight_and_buffer(family):
    _, path = family
    one, other = (models.load_policy(str(path), Model()).eval() for _ in range(2))
    perturb(other, seed=5)
    weights.copy_into(one, weights.named_weights(other))
    assert torch.equal(outputs(one), outputs(other))
    theirs = dict(weights.persistent_buffers(other)) | dict(other.named_parameters())
    for name, tensor in (dict(weights.persistent_buffers(one)) | dict(one.named_parameters())).items():
        assert torch.equal(tensor, theirs[name]), name


def test_an_adapter_on_every_linear_layer_is_merged_into_what_is_saved(family, tmp_path):
    """Experts included, which are one tensor in memory and many in a checkpoint."""
    _, path = family
    policy = models.load_policy(str(path), Model())
    policy = adapters.add_lora(policy, {"r": 2, "target_modules": "all-linear"}, key="test")
    family_runs.perturb_trained(policy)
    expected = saved_check.outputs(policy)
    models.save(policy, models.load_tokenizer(str(path), Model()), tmp_path)
    again = models.load_policy(str(tmp_path), Model())
    assert torch.allclose(saved_check.outputs(again), expected, atol=1e-5)
    start = models.load_policy(str(path), Model())
    assert not torch.allclose(saved_check.outputs(start), expected, atol=1e-3)


def test_the_canary_sees_one_stale_tensor_of_any_kind(family):
    """Experts, norms, caps, convolutions: each is left behind in turn."""
    _, path = family
    assert family_runs.unseen_when_stale(path) == []


# --- every stage, with vLLM where it is installed ---------------------------------------------------------------------


@pytest.mark.stages
@pytest.mark.parametrize("name", EVERY_STAGE)
def test_a_family_runs_every_stage_with_weights_in_step(name, tmp_path, forked):
    path = tmp_path / "model"
    save(FAMILIES[name], path)
    trainer = "{max_steps: 4, per_device_train_batch_size: 8, learning_rate: 1.0e-3, max_length: 256}"
    config = tmp_path / "run.yaml"
    config.write_text(
        f"run: family\nruns_dir: {tmp_path}\nmodel: {{path: {path}}}\nrewards: {{gridworld: {{}}}}\n"
        "prompts: {procedural: gridworld, rows: 400, heldout: 0.2, chat: true}\n"
        "sampling: {max_tokens: 12}\nevaluation: {samples: 4, prompts: 8}\n"
        "stages: [base, sft, feedme, reward_model, ppo, grpo, conditioned, evaluate]\n"
        f"sft: {{policy: base, trainer: {trainer}}}\n"
        # nothing is solved by a random model: keep whatever ended
        f"feedme: {{rounds: 1, prompts: 8, filters: [{{threshold: 0.0}}], random_control: false, trainer: {trainer}}}\n"
        f"reward_model: {{prompts: 16, data: {{path: {tmp_path}/pairs.jsonl, heldout: 0.2}}, trainer: {trainer}}}\n"
        "ppo: {reward: {reward_model: {}}, steps: 2, prompts: 8, samples: 2, critic: {warmup_steps: 0}}\n"
        "grpo: {steps: 2, prompts: 8, samples: 4}\n"
        f"conditioned: {{prompts: 8, demonstrations: 100, per_bin: 8, shuffled_control: false, trainer: {trainer}}}\n"
    )
    pairs = [{"prompt": f"a{i}>b{i}:", "chosen": "R", "rejected": "LLUD"} for i in range(1, 6)] * 4
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
    done = forked("run", str(config))
    assert done.returncode == 0, done.stdout[-4500:]
    for stage in ("ppo", "grpo"):
        metrics = json.loads((tmp_path / "family" / stage / "manifest.json").read_text())["metrics"]
        assert metrics["canary_max_abs"] < 1e-3 and metrics["mismatch_mean_abs"] < 1e-3
