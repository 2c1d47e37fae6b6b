"""Run on every rank under FSDP2: a reference that follows the policy, sharded, held against a whole one.

accelerate launch --config_file configs/accelerate/fsdp2.yaml --num_processes 2 shard_reference.py MODEL
"""

import json
import sys
from typing import Any

import torch

from pipeline.config.schema import Kl, Loss, Model, Optimizer
from pipeline.distributed import ranks, sharding
from pipeline.models.models import load_policy
from pipeline.update import sharded
from pipeline.update.forward import CompletionLogprobs, Row
from pipeline.update.learner import Learner
from pipeline.update.reference import Copy

ROWS = [Row((1, 2, 3), tuple(range(4, 4 + n)), (True,) * n) for n in (1, 5, 2, 9, 3)]
EMA = Kl(reference="ema", ema=0.75)


def sharded_forward(path: str, device: Any) -> CompletionLogprobs:
    forward = CompletionLogprobs(load_policy(path, Model(path=path), to_shard=True), temperature=0.8)
    return sharded.shard(forward, device, trained=False)


def largest_gap(one: Any, two: Any) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(one, two, strict=True))


@torch.no_grad()
def main(path: str) -> None:
    ranks.start()
    policy = CompletionLogprobs(load_policy(path, Model(path=path), to_shard=True), temperature=0.8)
    learner = Learner(sharding.accelerator(), policy, None, loss=Loss(), optimizer=Optimizer(), critic_settings=None,
                      updates=1, max_tokens=9, budget=16)  # fmt: skip
    whole = CompletionLogprobs(load_policy(path, Model(path=path)), temperature=0.8)
    copy = Copy(sharded_forward(path, learner.device), learner, EMA)
    weights: list[Any] = list(copy.forward.parameters())
    shares = [p.to_local().numel() / p.numel() for p in weights]
    out: dict[str, Any] = {"rank": ranks.rank(), "share": sum(shares) / len(shares)}
    out["logprobs"] = largest_gap(copy.logprobs(ROWS), Copy(whole, learner, Kl()).logprobs(ROWS))
    start = {name: p.clone() for name, p in whole.model.named_parameters()}
    for parameter in learner.model.parameters():
        parameter.add_(0.01)
    copy.after_step(1)
    now = {name: ranks.full_tensor(p) for name, p in copy.forward.model.named_parameters()}
    out["ema"] = largest_gap(now.values(), [start[name] + 0.0025 for name in now])
    state = copy.state()
    out["saved"] = largest_gap(now.values(), [state["model." + n] for n in now]) if ranks.is_main() else 0.0
    held = [state]
    torch.distributed.broadcast_object_list(held)  # every rank reads the checkpoint file
    again = Copy(sharded_forward(path, learner.device), learner, EMA)
    again.load_state(held[0])
    out["resumed"] = largest_gap(again.logprobs(ROWS), copy.logprobs(ROWS))
    out["moved"] = largest_gap(copy.logprobs(ROWS), Copy(whole, learner, Kl()).logprobs(ROWS))
    ranks.leave()
    out["left"] = not torch.distributed.is_initialized()
    sys.stdout.write(f"RANK {json.dumps(out)}\n")  # one write: the ranks share a pipe


main(*sys.argv[1:])
