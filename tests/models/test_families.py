"""Real architectures with real chat templates go through rendering, SFT, RL, adapters, saves and syncs."""

from __future__ import annotations

import json

import pytest
import torch

from pipeline.config.schema import Model, Prompts
from pipeline.data import prompts
from pipeline.models import adapters, families, models, saved_check, weights
from pipeline.models.saved_check import outputs
from tests import family_runs
from tests.families import FAMILIES, FAST, perturb, save

ROW = {"prompt": "a1>b1:", "completion": "R", "task": {"start": "a1", "goal": "b1"}}
RESULTS = json.loads(family_runs.RESULTS.read_text())
TRIED = list(RESULTS["families"])


@pytest.fixture(scope="module", params=FAST)
def family(request, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    save(FAMILIES[request.param], path)
    return FAMILIES[request.param], path


def rendered(path, source):
    tokenizer = models.load_tokenizer(str(path), Model())
    ends = models.end_ids(tokenizer, models.load_policy(str(path), Model()))
    ids = prompts.render_ids(ROW, source, tokenizer)
    return tokenizer, ids, prompts.completion_ids(ROW, source, tokenizer, ids, ends=ends), ends


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


# --- every family -----------------------------------------------------------------------------------------------------


def test_at_least_thirty_families_are_tried_and_the_page_is_made_of_their_results():
    assert len(TRIED) >= 30 and set(TRIED) | set(RESULTS["refused"]) <= set(FAMILIES)
    assert family_runs.TABLE.read_text() == family_runs.render(RESULTS), "run python -m tests.family_runs table"


def test_the_results_hold_what_plan_says_of_each_family():
    for name, result in RESULTS["families"].items():
        assert families.mistakes(family_runs.config_of(name)) == [], name
        assert result["config"] == family_runs.facts_of(family_runs.config_of(name)), name
        assert "not vLLM" in families.line(result["config"], dtype="float32", attn="sdpa", gpu=False) or (
            families.why_not_vllm_on_cpu(result["config"], "float32") is None
        )
    for name, why in RESULTS["refused"].items():
        assert families.mistakes(family_runs.config_of(name))[0] == why


@pytest.mark.long
@pytest.mark.stages
@pytest.mark.parametrize("name", TRIED)
def test_a_family_does_what_the_page_says_of_it(name):
    expected, result = RESULTS["families"][name], family_runs.try_family(name, backend="transformers")
    for part in ("sft", "grpo", "lora", "qlora", "packed"):
        assert result[part] == expected[part], part
    if result["lora"] is True:
        assert result["export"] <= 1e-5
    if result["grpo"] is True:
        assert result["canary_max_abs"] < 1e-3 and result["mismatch_mean_abs"] < 1e-3
        assert result["every_weight"] == [], "a weight that training leaves alone could be stale and not be seen"
