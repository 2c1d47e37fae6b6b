"""A vLLM server as the generator: rollouts over HTTP, token ids in and out; weights through a shared directory.

The server runs on other GPUs or another machine: `python -m pipeline serve RUN stage=sft rollouts=true port=8000`.
After each update, rank 0 writes a checkpoint under `generate.weights_dir` and every server reloads it, including a tied
head under its own name; the canary then compares both sides as it does in process. TRL calls this mode `server`.
Batch composition depends on arrival times, so a resumed run is not bitwise identical with this generator.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
import urllib.error
import urllib.request
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import torch

from pipeline.config.load import ConfigError
from pipeline.config.schema import Generate, Sampling
from pipeline.distributed import ranks
from pipeline.generation import server_key
from pipeline.generation.generator import OnDone, Request, Sample

T = TypeVar("T")
AT_ONCE = 256  # requests in flight; the server batches them
TIMEOUT_S = 1800.0
UNKNOWN_NAME = "no module or parameter named"  # from vLLM's error message


class SharedWeights:
    """Writes weights for the samplers to a private directory below `weights_dir`, which trainer and samplers share.

    Each checkpoint has a new name, so that a reader of the previous one is not disturbed. The last two are kept, older
    ones are deleted, and all are deleted with this object or at exit.
    model_dir: directory or Hub id of the model whose config is written with the weights.
    """

    def __init__(self, model_dir: str, weights_dir: str) -> None:
        self.model_dir = model_dir
        own = f"{socket.gethostname()}-{os.getpid()}-{time.time_ns()}"  # two runs may share weights_dir
        self.directory = Path(weights_dir).resolve() / own
        self.written = 0
        weakref.finalize(self, _remove_directory, self.directory, os.getpid())

    def write(self, weights: dict[str, torch.Tensor]) -> Path:
        from safetensors.torch import save_file
        from transformers import PreTrainedConfig

        self.written += 1
        directory = self.directory / f"{self.written:06d}"
        directory.mkdir(parents=True)
        config, _ = PreTrainedConfig.get_config_dict(self.model_dir)
        (directory / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
        for old in sorted(self.directory.iterdir())[:-2]:
            shutil.rmtree(old, ignore_errors=True)
        return directory


def _remove_directory(directory: Path, writer: int) -> None:
    if os.getpid() == writer:  # not in a forked process, which may end earlier
        shutil.rmtree(directory, ignore_errors=True)


def gather_for(main: Callable[[dict[str, torch.Tensor]], T], weights: Iterable[tuple[str, torch.Tensor]]) -> T:
    """Call `main` with copies of the weights on the first rank and return its result on all ranks.

    All ranks must call it, because each may hold a shard, and all wait for the result.
    """
    whole = {}
    for name, tensor in weights:  # all ranks help to gather each tensor in turn
        if ranks.is_main():
            whole[name] = tensor.detach().cpu().contiguous().clone()
    return ranks.from_main(lambda: main(whole))


class ServedGenerator:
    """Samples from `generate.url`; with several servers each rank samples from one, and all servers get the weights."""

    name = "vllm_server"

    def __init__(self, model_dir: str, generate: Generate) -> None:
        assert generate.url is not None, "config sees to it"
        urls = [generate.url] if isinstance(generate.url, str) else generate.url
        self.servers = [rollout_server(url) for url in urls]
        self.server = self.servers[ranks.rank() % len(self.servers)]
        self.checkpoints = SharedWeights(model_dir, generate.weights_dir)
        self.heads_own_name = True
        self.served = str(self.server.get("/v1/models")["data"][0]["id"])

    def sample(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        stop_token_ids: frozenset[int],
        on_done: OnDone | None = None,
    ) -> list[Sample]:
        self.server.post("/reset_prefix_cache", {})
        fields = {
            "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k or -1,
            "min_p": sampling.min_p, "repetition_penalty": sampling.repetition_penalty, "presence_penalty": 0.0,
            "frequency_penalty": 0.0, "stop_token_ids": sorted(stop_token_ids), "logprobs": 0, "return_token_ids": True,
            "skip_special_tokens": False,
        }  # fmt: skip

        def sample_one(numbered: tuple[int, Request]) -> Sample:
            index, request = numbered
            own = {"prompt": list(request.ids), "seed": request.seed % 2**63, "max_tokens": request.max_tokens}
            choice = self._complete({**fields, **own})
            ids = tuple(choice["token_ids"])
            out = Sample(
                ids, tuple(choice["logprobs"]["token_logprobs"]), finished=bool(ids) and ids[-1] in stop_token_ids
            )
            if on_done is not None:
                with reporting:
                    on_done(index, out)
            return out

        reporting = Lock()  # callbacks need not be thread-safe
        return at_once(sample_one, list(enumerate(requests)))

    def logprobs(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        self.server.post("/reset_prefix_cache", {})

        def logprobs_of(ids: Sequence[int]) -> list[float]:
            choice = self._complete({"prompt": list(ids), "max_tokens": 1, "temperature": 1.0, "prompt_logprobs": 0})
            by_position = choice["prompt_logprobs"][1:]
            return [one[str(token)]["logprob"] for one, token in zip(by_position, ids[1:], strict=True)]

        return at_once(logprobs_of, sequences)

    def sync(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        second: set[str] = set()

        def noting_aliases() -> Iterator[tuple[str, torch.Tensor]]:
            last = None
            for name, tensor in weights:
                if tensor is last:
                    second.add(name)
                last = tensor
                yield name, tensor

        gather_for(lambda whole: self._send(whole, second), noting_aliases())

    def _send(self, whole: dict[str, torch.Tensor], second: set[str]) -> None:
        """Send the weights. A server that shares head and embedding rejects a tied head's name; others need it."""
        if self.heads_own_name:
            try:
                self._push(whole)
                return
            except RuntimeError as exc:
                if UNKNOWN_NAME not in str(exc):
                    raise
                self.heads_own_name = False
        self._push({name: tensor for name, tensor in whole.items() if name not in second})

    def _push(self, weights: dict[str, torch.Tensor]) -> None:
        directory = self.checkpoints.write(weights)
        at_once(lambda server: _reload(server, directory), self.servers)

    def _complete(self, body: dict[str, Any]) -> dict[str, Any]:
        answer = self.server.post("/v1/completions", {"model": self.served, **body})
        choice: dict[str, Any] = answer["choices"][0]
        return choice


def at_once(send: Callable[[Any], T], items: Sequence[Any], *, most: int = AT_ONCE) -> list[T]:
    """send(item) for each, at most so many in flight; the server batches them. Results in order."""
    with ThreadPoolExecutor(min(most, max(len(items), 1))) as pool:
        return list(pool.map(send, items))


def _reload(server: ServerClient, directory: Path) -> None:
    server.post("/collective_rpc", {"method": "reload_weights", "kwargs": {"weights_path": str(directory)}})
    server.post("/reset_prefix_cache", {})  # cached keys and values belong to the old weights


@dataclass(frozen=True, slots=True)
class ServerClient:
    """JSON over HTTP. location: the config key that names the server; how: the command that starts one."""

    url: str
    location: str
    how: str

    def get(self, path: str) -> dict[str, Any]:
        return self._answer(urllib.request.Request(self.url + path, headers=server_key.headers()))

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        data = json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **server_key.headers()}
        return self._answer(urllib.request.Request(self.url + path, data, headers))

    def _answer(self, request: urllib.request.Request) -> dict[str, Any]:
        """Raises ConfigError if no server listens, or if it refuses the request; RuntimeError for its own errors."""
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                text = answer.read()
        except urllib.error.HTTPError as exc:
            if exc.code == 404:
                raise ConfigError([f"{self.location}: {self.url} has no {request.selector}; start it with "
                                   f"`{self.how}`"]) from exc  # fmt: skip
            if exc.code == 401:
                raise ConfigError([f"{self.location}: {self.url} needs the key that it was started with; set "
                                   f"{server_key.SERVER_KEY} here too"]) from exc  # fmt: skip
            message = " ".join(exc.read().decode(errors="replace").split())[:300]
            if exc.code == 400 and request.selector == "/v1/completions":
                raise ConfigError([f"{self.location}: {self.url} refuses the request: {message}"]) from exc
            raise RuntimeError(f"{self.url}{request.selector}: {exc.code}: {message}") from exc
        except (urllib.error.URLError, ConnectionError) as exc:
            reason = getattr(exc, "reason", exc)
            raise ConfigError([f"{self.location}: no server answers at {self.url} ({reason}); start one with "
                               f"`{self.how}`"]) from exc  # fmt: skip
        out: dict[str, Any] = json.loads(text) if text else {}
        return out


def rollout_server(url: str) -> ServerClient:
    how = "python -m pipeline serve RUN stage=NAME rollouts=true port=8000"
    return ServerClient(url.rstrip("/"), "generate.url", how)


def wait_until_ready(url: str, *, seconds: float) -> None:
    """Wait until the server answers. Raises ConfigError if it does not answer in time."""
    until = time.monotonic() + seconds
    while True:
        try:
            rollout_server(url).get("/v1/models")
            return
        except (ConfigError, ConnectionError):
            if time.monotonic() > until:
                raise
            time.sleep(1.0)


__all__ = ["ServedGenerator", "ServerClient", "wait_until_ready"]
