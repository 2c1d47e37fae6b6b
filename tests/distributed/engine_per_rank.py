"""Run on every rank: an engine of vLLM beside the trainer's process group, closed and opened again.

accelerate launch --config_file configs/accelerate/ddp.yaml --num_processes 2 engine_per_rank.py MODEL
"""

import gc
import json
import sys

import torch.distributed

from pipeline.config.schema import Generate, Model, Sampling
from pipeline.distributed import ranks
from pipeline.generation.generator import Request
from pipeline.generation.vllm_engine import VllmGenerator


def sampled(path: str) -> list[int]:
    generator = VllmGenerator(path, Model(path=path), Generate(), max_model_len=32)
    return list(generator.sample([Request((1, 2, 3), 7, 8)], Sampling(max_tokens=8), frozenset({0}))[0].ids)


def main(path: str) -> None:
    ranks.start()
    first = sampled(path)
    gc.collect()  # the engine is gone
    seen = ranks.gather([ranks.rank()])
    second = sampled(path)
    ranks.leave()
    out = {"rank": ranks.rank(), "same": first == second, "ids": first, "seen": seen,
           "left": not torch.distributed.is_initialized()}  # fmt: skip
    sys.stdout.write(f"RANK {json.dumps(out)}\n")  # one write: the ranks share a pipe


main(*sys.argv[1:])
