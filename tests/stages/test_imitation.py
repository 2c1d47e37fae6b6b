"""The head that SFT trains through on a CPU, against TRL's own on the same batch."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Gemma3TextConfig, PreTrainedConfig, Qwen2Config
from trl.trainer.utils import add_fused_lm_head

from pipeline.stages.imitation import IGNORED, tile_head
from pipeline.update import logprobs

SIZES: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 128,
}  # fmt: skip
CONFIGS: dict[str, PreTrainedConfig] = {
    "tied": Gemma3TextConfig(**SIZES, num_key_value_heads=1, head_dim=8, tie_word_embeddings=True),
    "untied": Qwen2Config(**SIZES, num_key_value_heads=4, tie_word_embeddings=False),
}


def make(kind: str) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind], attn_implementation="sdpa")
    add_fused_lm_head(model, outputs=("log_probs", "entropy", "is_top1"))
    return model


def batch() -> dict[str, Tensor]:
    """Four rows with prompts, padding and a row without anything to imitate."""
    ids_BL = torch.randint(3, 300, (4, 12), generator=torch.Generator().manual_seed(1))
    labels_BL = ids_BL.clone()
    labels_BL[:, :5] = labels_BL[1, 9:] = labels_BL[3] = IGNORED
    attention_BL = torch.ones_like(ids_BL)
    attention_BL[1, 9:] = 0
    return {"input_ids": ids_BL, "attention_mask": attention_BL, "labels": labels_BL}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("count", [None, 40])
def test_tiles_give_trls_loss_figures_and_gradients(
    kind: str, count: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(logprobs.BLOCK, "cpu", 64)
    items = {} if count is None else {"num_items_in_batch": torch.tensor(count)}
    theirs, ours = make(kind), make(kind)
    tile_head(ours)
    expected, got = (model(**batch(), **items, fused_lm_head=True) for model in (theirs, ours))
    for name in ("loss", "log_probs", "entropy", "is_top1", "label_mask"):
        torch.testing.assert_close(got[name], expected[name].to(got[name].dtype), msg=name)
    (2 * expected.loss).backward()
    for _ in range(2):  # of two micro-batches the gradients add up
        ours(**batch(), **items, fused_lm_head=True).loss.backward()
    for (name, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, msg=name)


def test_without_the_fused_head_the_model_is_as_it_was() -> None:
    plain, tiled = make("tied"), make("tied")
    tile_head(tiled)
    torch.testing.assert_close(tiled(**batch()).loss, plain(**batch()).loss)
    prompt = batch()["input_ids"][:1, :5]
    assert tiled.generate(prompt, max_new_tokens=3, do_sample=False).shape == (1, 8)


def test_a_head_that_is_more_than_a_product_stays_trls() -> None:
    model = make("tied")
    model.config.final_logit_softcapping = 30.0
    of_trl = model.forward
    tile_head(model)
    assert model.forward == of_trl
