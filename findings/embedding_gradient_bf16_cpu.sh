#!/usr/bin/env bash
# torch 2.13.0 on CPU: the gradient of a bfloat16 embedding row stops at 256.
#
# Seen: a row looked up 4,096 times, each with gradient 1, gets gradient 256, not 4,096: embedding backward adds in
# bfloat16, and 256 + 1 is 256 there. index_add_ of 4,096 x 0.01 gives 4.0, while scatter_add_ of the same gives 41.
# From memory one would say: reductions of bfloat16 on CPU accumulate in float32, and index_add_ equals scatter_add_.
# So a frequent token (a newline, a role header) of a model trained in plain bfloat16 learns from its first few hundred
# occurrences of a batch only; float32 master weights avoid it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0+cpu 2>/dev/null ||  # else from the index of its CPU builds
  "$folder/venv/bin/pip" install -q --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
"$folder/venv/bin/pip" install -q numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import torch

assert torch.__version__.startswith("2.13.0"), torch.__version__
index = torch.zeros(4096, dtype=torch.long)
embedding = torch.nn.Embedding(2, 1, dtype=torch.bfloat16)
embedding(index).sum().backward()
gradient = embedding.weight.grad[0].item()
hundredth = torch.full((4096,), 0.01, dtype=torch.bfloat16)
added = torch.zeros(1, dtype=torch.bfloat16).index_add_(0, index, hundredth).item()
scattered = torch.zeros(1, dtype=torch.bfloat16).scatter_add_(0, index, hundredth).item()
print(f"torch {torch.__version__}: embedding gradient {gradient} of 4096; index_add_ {added}, scatter_add_ {scattered}, exact 41.0")
assert gradient == 256.0 and added == 4.0 and scattered == 41.0
PYTHON
