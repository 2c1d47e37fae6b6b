#!/usr/bin/env bash
# peft 0.21.2: add_weighted_adapter(combination_type="linear") does not give the weighted sum of two adapters' deltas.
#
# Seen, for two random LoRA adapters of rank 4 on one layer: with weights (0.5, 0.5) the merged delta is 104% of the mean
# delta's norm away from the mean, with (1, -1) 99% away from the difference. A and B are weighted and added each by
# itself, so the product has the cross terms B1 A2 and B2 A1. dare_linear, magnitude_prune and ties do the same: at density
# 1.0, where nothing is pruned, the first two equal "linear". "cat" and "svd" of sufficient rank give the sum to rounding.
# From memory one would say: linear is the linear combination of the updates; cat is a way to store it, and svd an
# approximation.
# What it costs: averaging the adapters of two seeds or checkpoints ("souping") with the default gives a third adapter.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0+cpu 2>/dev/null ||  # else from the index of its CPU builds
  "$folder/venv/bin/pip" install -q --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
"$folder/venv/bin/pip" install -q transformers==5.17.0 peft==0.21.2
"$folder/venv/bin/python" - <<'PYTHON'
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
lora = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], init_lora_weights=False)  # random A and B
model = get_peft_model(LlamaForCausalLM(config), lora, adapter_name="one")
model.add_adapter("two", lora)
layer = model.base_model.model.model.layers[0].self_attn.q_proj
one, two = (layer.get_delta_weight(name).detach() for name in ("one", "two"))


def gap(kind, weights, **more):
    name = f"{kind} {weights}".replace(".", "_")
    model.add_weighted_adapter(["one", "two"], weights, name, combination_type=kind, **more)
    wanted = weights[0] * one + weights[1] * two
    value = float((layer.get_delta_weight(name).detach() - wanted).norm() / wanted.norm())
    print(f"{kind:16} {weights} {value:.1e} of the wanted delta's norm away from it")
    return value


for weights in ([0.5, 0.5], [1.0, -1.0]):
    linear = gap("linear", weights)
    assert linear > 0.8
    assert gap("dare_linear", weights, density=1.0) == linear == gap("magnitude_prune", weights, density=1.0)
    assert gap("ties", weights, density=1.0) > 0.8
    assert gap("cat", weights) < 1e-6 and gap("svd", weights, svd_rank=8) < 1e-5
PYTHON
