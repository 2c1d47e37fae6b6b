#!/usr/bin/env bash
# torch 2.13.0: autocast to bfloat16 on CPU leaves log_softmax, logsumexp, exp and pow in bfloat16.
#
# Seen: inside torch.autocast("cpu", torch.bfloat16) log_softmax of a matrix product returns bfloat16; only losses such as
# cross_entropy and mse_loss return float32. The log-prob of a uniform choice among 262,144 tokens comes out as -12.5
# instead of -12.4766. On CUDA the same functions are on the list of operations that autocast runs in float32.
# From memory one would say: autocast protects softmax, log_softmax, exp and sums by running them in float32.
# So code that computes token log-probs by log_softmax under autocast is right on a GPU and off by 0.02 nats on a CPU.
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
x = torch.randn(8, 8)
with torch.autocast("cpu", dtype=torch.bfloat16):
    y = x @ x
    kinds = {
        "log_softmax": torch.log_softmax(y, -1).dtype,
        "logsumexp": torch.logsumexp(y, -1).dtype,
        "exp": torch.exp(y).dtype,
        "pow": torch.pow(y, 2).dtype,
        "cross_entropy": torch.nn.functional.cross_entropy(y, torch.zeros(8, dtype=torch.long)).dtype,
    }
    uniform = torch.zeros(262_144, dtype=torch.bfloat16).log_softmax(-1)[0].item()
print(f"torch {torch.__version__}: {kinds}; log-prob of 1 in 262,144: {uniform}, exact -12.4766")
low = {kinds[name] for name in ("log_softmax", "logsumexp", "exp", "pow")}
assert low == {torch.bfloat16} and kinds["cross_entropy"] == torch.float32 and uniform == -12.5
PYTHON
