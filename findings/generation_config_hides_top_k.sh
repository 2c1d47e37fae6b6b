#!/usr/bin/env bash
# transformers 5.17.0: GenerationConfig() reads top_k None, temperature None, do_sample None; sampling still keeps 50.
#
# Seen: GenerationConfig().top_k is None, and generate(do_sample=True) of a model of 64 tokens leaves 50 finite scores per
# step: the default of 50 is filled in inside generate. top_k=0 switches it off.
# From memory one would say: GenerationConfig().top_k is 50, or, once it reads None, nothing is cut.
# So code that copies `model.generation_config.top_k` into another engine samples from another distribution.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0+cpu 2>/dev/null ||  # else from the index of its CPU builds
  "$folder/venv/bin/pip" install -q --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
"$folder/venv/bin/pip" install -q numpy==2.4.6 transformers==5.17.0
"$folder/venv/bin/python" - <<'PYTHON'
import torch
import transformers
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM

transformers.logging.set_verbosity_error()
assert transformers.__version__ == "5.17.0", transformers.__version__
shape = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2)
model = Qwen2ForCausalLM(Qwen2Config(vocab_size=64, eos_token_id=1, pad_token_id=0, bos_token_id=2, **shape)).eval()
how = dict(do_sample=True, max_new_tokens=1, return_dict_in_generate=True, output_scores=True)
prompt = torch.arange(3, 9)[None]
kept = [int(torch.isfinite(model.generate(prompt, **how, **k).scores[0]).sum()) for k in ({}, {"top_k": 0})]
default = GenerationConfig()
print(f"transformers {transformers.__version__}: top_k reads {default.top_k}, sampling keeps {kept[0]} of 64, with top_k=0 {kept[1]}")
assert default.top_k is None and model.generation_config.top_k is None and kept == [50, 64]
PYTHON
