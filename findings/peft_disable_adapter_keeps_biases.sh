#!/usr/bin/env bash
# peft 0.21.2: with LoraConfig(bias="all") disable_adapter() is not the base model.
#
# Seen: after the biases were trained (here: moved by 1), logits inside `with model.disable_adapter()` differ from those of
# the base, because the biases are trained in place and have no frozen copy.
# From memory one would say: disabling the adapter gives the base model back, which is how a LoRA run gets its KL
# reference without a second model. The KL is then measured against a model that moves along with the policy.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0+cpu 2>/dev/null ||  # else from the index of its CPU builds
  "$folder/venv/bin/pip" install -q --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
"$folder/venv/bin/pip" install -q numpy==2.4.6 transformers==5.17.0 peft==0.21.2 accelerate==1.15.0
"$folder/venv/bin/python" - <<'PYTHON'
import peft
import torch
import transformers
from transformers import Qwen2Config, Qwen2ForCausalLM

transformers.logging.set_verbosity_error()
assert peft.__version__ == "0.21.2", peft.__version__
torch.manual_seed(0)
shape = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2)
prompt = torch.arange(8)[None]
gaps = {}
for bias in ("none", "all"):
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=32, **shape)).eval()
    base = model(prompt).logits.detach()
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=4, target_modules=["q_proj"], bias=bias))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    with adapted.disable_adapter():
        gaps[bias] = (adapted(prompt).logits - base).abs().max().item()
print(f"peft {peft.__version__}: distance of the disabled adapter from the base: {gaps}")
assert gaps["none"] == 0.0 and gaps["all"] > 0.01
PYTHON
