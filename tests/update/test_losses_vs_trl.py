"""One identical batch through TRL 1.16's own loss and through ours: same loss, same gradient in every weight.

Same tiny random Qwen2, token ids, advantages and old log-probs. The old log-probs are perturbed so far that both clip
bounds are active; a row is padded on the left of its prompt and on the right of its completion.

Where we depart on purpose is not compared here: a fully masked row counts in TRL's denominator and not in ours.
"""

import copy
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import trl  # its names are loaded when they are used: a quarter of the time to collect all tests
from torch import Tensor

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from pipeline.credit.advantages import group_advantages, leave_one_out
from pipeline.credit.group_credits import decoupled
from pipeline.update.logprobs import chunked_token_logprobs
from pipeline.update.losses import (
    Aggregation,
    aggregate,
    cispo_surrogate,
    clipped_surrogate,
    clipped_tokens,
    denominator,
    gspo_surrogate,
    kl_loss,
)
from pipeline.update.surrogates import off_policy_keep, sapo_surrogate, top_entropy, vespo_surrogate

pytestmark = pytest.mark.slow  # not each test, but the import of TRL's trainers before the first

TEMPERATURE, MAX_LENGTH, VOCABULARY = 0.8, 10, 40
BETA = 0.3
BOUNDS: dict[str, Any] = {"clip_low": 0.2, "clip_high": 0.28}
TRL_BOUNDS = {"epsilon": 0.2, "epsilon_high": 0.28}


@dataclass(frozen=True)
class Setting:
    """One method: how TRL is told, and how it is put together here."""

    trl: dict[str, Any]
    surrogate: str
    kind: Aggregation
    bounds: dict[str, Any] = field(default_factory=lambda: BOUNDS)
    kl: str | None = None
    keep: str | None = None


SETTINGS = {
    "grpo": Setting({"loss_type": "grpo", **TRL_BOUNDS}, "clipped", "sequence_mean"),
    "grpo_k3": Setting(
        {"loss_type": "grpo", **TRL_BOUNDS, "use_bias_correction_kl": False}, "clipped", "sequence_mean", kl="k3"
    ),
    "grpo_unbiased_kl": Setting(
        {"loss_type": "grpo", **TRL_BOUNDS, "use_bias_correction_kl": True},
        "clipped",
        "sequence_mean",
        kl="unbiased",
    ),
    "two_sided": Setting(
        {"loss_type": "grpo", **TRL_BOUNDS, "delta": 1.3}, "clipped", "sequence_mean", {**BOUNDS, "ratio_max": 1.3}
    ),
    "dr_grpo": Setting({"loss_type": "dr_grpo", **TRL_BOUNDS}, "clipped", "constant_length"),
    "dapo": Setting({"loss_type": "dapo", **TRL_BOUNDS}, "clipped", "token_mean"),
    "gspo": Setting(
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.03, "epsilon_high": 0.04},
        "gspo",
        "sequence_mean",
        {"clip_low": 0.03, "clip_high": 0.04},
    ),
    # TRL names CISPO's bound itself, we its distance from 1; the lower side is open in both
    "cispo": Setting(
        {"loss_type": "cispo", "epsilon_high": 1.28}, "cispo", "token_mean", {"clip_low": 1.0, "clip_high": 0.28}
    ),
    "luspo": Setting(
        {"loss_type": "luspo", "importance_sampling_level": "sequence", "epsilon": 0.03, "epsilon_high": 0.04},
        "gspo",
        "sequence_sum",
        {"clip_low": 0.03, "clip_high": 0.04},
    ),
    "sapo": Setting(
        {"loss_type": "sapo", "sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.4},
        "sapo",
        "sequence_mean",
        {"tau_positive": 1.0, "tau_negative": 1.4},
    ),
    "vespo": Setting(
        {
            "loss_type": "vespo",
            "vespo_k_pos": 2.0,
            "vespo_lambda_pos": 3.0,
            "vespo_k_neg": 3.0,
            "vespo_lambda_neg": 2.0,
        },
        "vespo",
        "token_mean",
        {"positive": (2.0, 3.0), "negative": (3.0, 2.0)},
    ),
    "off_policy_mask": Setting(
        {"loss_type": "grpo", **TRL_BOUNDS, "off_policy_mask_threshold": 0.05}, "clipped", "sequence_mean", keep="near"
    ),
    "top_entropy": Setting(
        {"loss_type": "dapo", **TRL_BOUNDS, "top_entropy_quantile": 0.4}, "clipped", "token_mean", keep="entropy"
    ),
}
RANKED = {"top_entropy"}  # TRL ranks the tokens of a micro-batch, we those of the step


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {"<pad>": 0, "<eos>": 1, **{f"w{i}": i for i in range(2, VOCABULARY)}}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,  # far from uniform, so that a wrong temperature or position shows
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
        tie_word_embeddings=True,
    )
    return cast(PreTrainedModel, Qwen2ForCausalLM(config).float())


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    """Eight rows; a hole in two completions, as a tool's answer leaves it."""
    generator = torch.Generator().manual_seed(1)
    prompt_mask = torch.ones(8, 5, dtype=torch.long)
    prompt_mask[1, :2] = prompt_mask[5, :4] = 0
    lengths = torch.tensor([7, 3, 1, 7, 5, 2, 6, 4])
    completion_mask = (torch.arange(7) < lengths[:, None]).long()
    tool_mask = torch.ones_like(completion_mask)
    tool_mask[0, 2:4] = tool_mask[6, 1] = 0
    return {
        "prompt_ids": torch.randint(2, VOCABULARY, (8, 5), generator=generator) * prompt_mask,
        "prompt_mask": prompt_mask,
        "completion_ids": torch.randint(1, VOCABULARY, (8, 7), generator=generator) * completion_mask,
        "completion_mask": completion_mask,
        "tool_mask": tool_mask,
        "advantages": torch.tensor([1.2, -0.7, 0.9, -1.1, 0.6, -0.4, 1.5, -0.8]),
        "noise": torch.randn(8, 7, generator=generator),
        "reference_noise": torch.randn(8, 7, generator=generator),
    }


def our_logprobs(model: PreTrainedModel, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Log-probs of the completion through the model's body and our chunked head; and their mask."""
    logprobs_BT, _, mask_BT = our_figures(model, batch)
    return logprobs_BT, mask_BT


def our_figures(model: PreTrainedModel, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs, entropies and mask."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    attention = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    hidden = model.base_model(input_ids=ids, attention_mask=attention).last_hidden_state
    length = batch["completion_ids"].shape[1]
    mask_BT = (batch["completion_mask"] * batch["tool_mask"]).bool()
    logprobs_BT, entropy_BT = chunked_token_logprobs(
        hidden[:, -length - 1 : -1],
        model.get_output_embeddings().weight,
        batch["completion_ids"],
        temperature=TEMPERATURE,
        chunk=5,
        mask_BT=mask_BT,
    )
    return logprobs_BT, entropy_BT, mask_BT


@pytest.fixture(scope="module")
def inputs(model: PreTrainedModel, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with old log-probs and reference log-probs some way off the policy's, and TRL's token count."""
    with torch.no_grad():
        logprobs_BT, mask_BT = our_logprobs(model, batch)
    return {
        **batch,
        "old_per_token_logps": logprobs_BT + 0.3 * batch["noise"],
        "ref_per_token_logps": logprobs_BT + 0.5 * batch["reference_noise"],
        "num_items_in_batch": mask_BT.sum(),
    }


def trl_trainer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path, options: dict[str, Any]
) -> Any:
    """A GRPOTrainer around a copy of the model, on the CPU, without vLLM."""
    arguments = trl.GRPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        report_to="none",
        temperature=TEMPERATURE,
        max_completion_length=MAX_LENGTH,
        per_device_train_batch_size=8,
        num_generations=4,
        gradient_checkpointing=False,
        **options,
    )
    prompts = Dataset.from_dict({"prompt": ["w2 w3", "w4"] * 4})
    make: Any = trl.GRPOTrainer  # its stubs name neither a lambda as reward nor what it adds to its own attributes
    trainer = make(
        model=copy.deepcopy(model),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=arguments,
        train_dataset=prompts,
        processing_class=tokenizer,
    )
    trainer.model.train()
    return trainer


def gradients(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def rows(inputs: dict[str, Tensor], part: slice) -> dict[str, Tensor]:
    return {name: x if x.ndim == 0 else x[part] for name, x in inputs.items()}


def trl_result(trainer: Any, inputs: dict[str, Tensor], parts: list[slice]) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of TRL, over micro-batches accumulated as its own training loop would."""
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation = len(parts)
    trainer.model.zero_grad()
    total = 0.0
    for part in parts:
        loss = trainer.compute_loss(trainer.model, rows(inputs, part))
        loss.backward()
        total += float(loss.detach())
    return total, gradients(trainer.model)


def our_result(
    model: PreTrainedModel, inputs: dict[str, Tensor], parts: list[slice], setting: Setting
) -> tuple[float, dict[str, Tensor]]:
    """The same from pure functions."""
    surrogate = {
        "clipped": clipped_surrogate, "gspo": gspo_surrogate, "cispo": cispo_surrogate, "sapo": sapo_surrogate,
        "vespo": vespo_surrogate,
    }[setting.surrogate]  # fmt: skip
    model.zero_grad()
    everything = (inputs["completion_mask"] * inputs["tool_mask"]).bool()
    whole = torch.stack([denominator(everything[part], kind=setting.kind) for part in parts]).sum()
    total = 0.0
    for part in parts:
        micro = rows(inputs, part)
        logprobs_BT, entropy_BT, mask_BT = our_figures(model, micro)
        old_BT = micro["old_per_token_logps"]
        loss_BT = surrogate(logprobs_BT, old_BT, micro["advantages"][:, None], mask_BT, **setting.bounds)  # type: ignore[operator]
        if setting.keep == "near":
            loss_BT = loss_BT * off_policy_keep(logprobs_BT, old_BT, micro["advantages"][:, None], mask_BT, limit=0.05)
        elif setting.keep == "entropy":
            loss_BT = loss_BT * top_entropy(entropy_BT, mask_BT, share=0.4)
        if setting.kl is not None:
            loss_BT = loss_BT + BETA * kl_loss(
                logprobs_BT,
                micro["ref_per_token_logps"],
                mask_BT,
                kind=setting.kl,  # type: ignore[arg-type]
                old_logprobs_BT=old_BT,
            )
        loss = aggregate(loss_BT, mask_BT, kind=setting.kind, max_length=MAX_LENGTH, total=whole)
        loss.backward()
        total += float(loss.detach())
    return total, gradients(model)


@pytest.mark.parametrize("parts", [[slice(0, 8)], [slice(0, 4), slice(4, 8)]], ids=["whole", "two_micro_batches"])
@pytest.mark.parametrize("name", SETTINGS)
def test_loss_and_gradient_equal_trls(
    name: str,
    parts: list[slice],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    inputs: dict[str, Tensor],
    tmp_path: Path,
) -> None:
    if name in RANKED and len(parts) > 1:
        pytest.skip("TRL ranks the tokens of a micro-batch, we those of the step")
    setting = SETTINGS[name]
    trainer = trl_trainer(model, tokenizer, tmp_path, setting.trl)
    # set afterwards: with a beta its constructor would load a reference model by name, which this model has none of
    trainer.beta = BETA if setting.kl else 0.0
    their_loss, their_gradients = trl_result(trainer, inputs, parts)
    our_loss, our_gradients = our_result(copy.deepcopy(model), inputs, parts, setting)
    assert our_loss == pytest.approx(their_loss, rel=1e-5)
    assert our_gradients.keys() == their_gradients.keys()
    for parameter, theirs in their_gradients.items():
        error = float((our_gradients[parameter] - theirs).norm() / theirs.norm())
        assert error < 1e-5, f"{parameter}: gradients differ by {error:.1e} relative"


def test_the_batch_has_tokens_beyond_both_bounds_so_that_equal_losses_mean_something(
    model: PreTrainedModel, inputs: dict[str, Tensor]
) -> None:
    logprobs_BT, mask_BT = our_logprobs(model, inputs)
    low_BT, high_BT = clipped_tokens(
        logprobs_BT, inputs["old_per_token_logps"], inputs["advantages"][:, None], mask_BT, **BOUNDS
    )
    beyond_BT = (logprobs_BT - inputs["old_per_token_logps"]).exp() > 1.3
    assert int(low_BT.sum()) >= 2 and int(high_BT.sum()) >= 2
    assert bool((beyond_BT & (inputs["advantages"] < 0)[:, None] & mask_BT).any())  # for the two-sided clip


def test_detail_1_log_probs_equal_those_trl_trains_on(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, inputs: dict[str, Tensor], tmp_path: Path
) -> None:
    trainer = trl_trainer(model, tokenizer, tmp_path, {})
    ours_BT, mask_BT = our_logprobs(model, inputs)
    theirs_BT, _, _ = trainer._get_per_token_logps_and_entropies(
        trainer.model,
        torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1),
        torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], 1),
        inputs["completion_ids"].shape[1],
    )
    torch.testing.assert_close(ours_BT[mask_BT], theirs_BT[mask_BT], rtol=0, atol=1e-5)


REWARDS = [1.0, 0.0, 0.25, 1.0, 0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("method", "options", "estimate"),
    [
        ("GRPO", {"scale_rewards": "group"}, lambda r: group_advantages(r, scale=True)),
        ("GRPO", {"scale_rewards": "none"}, lambda r: group_advantages(r, scale=False)),
        ("RLOO", {"normalize_advantages": False, "beta": 0.0}, leave_one_out),
    ],
    ids=["grpo", "dr_grpo", "rloo"],
)
def test_advantages_equal_those_trl_makes_of_the_same_rewards(
    method: str,
    options: dict[str, Any],
    estimate: Any,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:
    arguments = getattr(trl, f"{method}Config")(
        output_dir=str(tmp_path),
        use_cpu=True,
        bf16=False,
        report_to="none",
        max_completion_length=4,
        per_device_train_batch_size=8,
        num_generations=4,
        **options,
    )
    trainer = getattr(trl, f"{method}Trainer")(
        model=copy.deepcopy(model),
        reward_funcs=lambda completions, **_: REWARDS[: len(completions)],
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["w2 w3", "w4"]}),
        processing_class=tokenizer,
    )
    generated = trainer._generate_and_score_completions([{"prompt": "w2 w3"}] * 4 + [{"prompt": "w4"}] * 4)
    ours_PG = estimate(torch.tensor(REWARDS).view(2, 4))
    torch.testing.assert_close(ours_PG.flatten(), generated["advantages"], rtol=1e-5, atol=1e-7)
    assert ours_PG[0].any()


def test_gdpo_advantages_equal_those_trl_makes_of_two_rewards(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Right answers (0 or 1) and a length reward of another scale, with weights 1 and 0.5."""
    right, short = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0], [-0.1, -0.3, -0.2, -0.2, -0.4, -0.1, -0.1, -0.2]
    arguments = trl.GRPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", max_completion_length=4,
        per_device_train_batch_size=8, num_generations=4, reward_weights=[1.0, 0.5],
        multi_objective_aggregation="normalize_then_sum",
    )  # fmt: skip
    make: Any = trl.GRPOTrainer
    trainer = make(
        model=copy.deepcopy(model),
        reward_funcs=[
            lambda completions, **_: right[: len(completions)],
            lambda completions, **_: short[: len(completions)],
        ],
        args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["w2 w3", "w4"]}),
        processing_class=tokenizer,
    )
    theirs = trainer._generate_and_score_completions([{"prompt": "w2 w3"}] * 4 + [{"prompt": "w4"}] * 4)["advantages"]
    ours_PG = decoupled(torch.tensor([right, short]).view(2, 2, 4), [1.0, 0.5])
    torch.testing.assert_close(ours_PG.flatten(), theirs, rtol=1e-5, atol=1e-6)
