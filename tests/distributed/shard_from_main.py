"""Run on every rank under FSDP2: shard the model of a directory, and print what this rank held and holds.

accelerate launch --config_file configs/accelerate/fsdp2.yaml --num_processes 2 shard_from_main.py MODEL
"""

import json
import resource
import sys
from typing import Any

import torch.distributed

from pipeline.config.schema import Model, Optimizer
from pipeline.distributed import ranks, sharding
from pipeline.models.models import load_policy
from pipeline.update.forward import CompletionLogprobs
from pipeline.update.learner import parameter_groups
from pipeline.update.sharded import train_on


class Module:
    def __del__(self) -> None:
        print("taken apart", flush=True)


module = Module()


def held(parameter: Any) -> int:
    return getattr(parameter, "to_local", lambda: parameter)().numel()


def main(path: str, keep: str = "") -> None:
    ranks.start()
    model = load_policy(path, Model(path=path), to_shard=True)
    out: dict[str, Any] = {"rank": ranks.rank(), "read": sum(not p.is_meta for p in model.parameters())}
    policy = CompletionLogprobs(model, temperature=1.0)
    backend = train_on(sharding.accelerator(), policy, lambda m: parameter_groups(1e-3, 1e-3, m), Optimizer())
    out["share"] = sum(map(held, backend.forward.parameters())) / sum(p.numel() for p in backend.forward.parameters())
    out["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    out["packs"], out["tied"] = policy.packs, model.lm_head.weight is model.model.embed_tokens.weight
    if not keep:
        saved = load_policy(path, Model(path=path))
        pairs = [(ranks.full_tensor(own.detach()), value) for (_, own), (_, value) in
                 zip(model.named_parameters(), saved.named_parameters(), strict=True)]  # fmt: skip
        pairs += [(own, value) for (_, own), (_, value) in
                  zip(model.named_buffers(), saved.named_buffers(), strict=True)]  # fmt: skip
        out["same"] = all(bool((own == value).all()) for own, value in pairs)
    ranks.leave()
    out["left"] = not torch.distributed.is_initialized()
    sys.stdout.write(f"RANK {json.dumps(out)}\n")  # one write: the ranks share a pipe


main(*sys.argv[1:])
