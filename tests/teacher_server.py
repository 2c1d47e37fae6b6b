"""A small HTTP server with a real model behind it that answers as vLLM does to what a served teacher asks."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch

from pipeline.config.schema import Model
from pipeline.models import models

MAX_LOGPROBS = 40  # --max-logprobs; vLLM's default is 20


@contextmanager
def serving(model_dir: Path) -> Iterator[str]:
    """The address of a server with this model, until the block ends."""
    model = models.load_policy(str(model_dir), Model()).eval()
    tokenizer = models.load_tokenizer(str(model_dir), Model())
    one_at_a_time = threading.Lock()

    def entries(ids: list[int], k: int) -> list[dict[str, Any] | None]:
        with torch.no_grad(), one_at_a_time:
            logprobs_TV = model(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)
        out: list[dict[str, Any] | None] = [None]  # nothing comes before the first token
        for before_V, token in zip(logprobs_TV, ids[1:], strict=False):
            order = before_V.argsort(descending=True).tolist()
            shown = [token, *(t for t in order[:k] if t != token)]  # the prompt's own token first, as vLLM does
            out.append({str(t): {"logprob": float(before_V[t]), "rank": order.index(t) + 1} for t in shown})
        return out

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(200, {"data": [{"id": str(model_dir)}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/tokenize":
                ids = tokenizer(body["prompt"], add_special_tokens=body["add_special_tokens"]).input_ids
                self.answer(200, {"tokens": ids})
            elif body["prompt_logprobs"] > MAX_LOGPROBS:
                asked = body["prompt_logprobs"]
                self.answer(400, {"message": f"Requested {asked} prompt logprobs, more than {MAX_LOGPROBS}"})
            else:
                found = entries(body["prompt"], body["prompt_logprobs"])
                self.answer(200, {"choices": [{"text": "", "prompt_logprobs": found}]})

        def answer(self, code: int, content: dict[str, Any]) -> None:
            data = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # all rows of a step arrive at once

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
