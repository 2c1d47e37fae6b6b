"""Episodes per second of the agent loop, against a loop that starts one interpreter for each tool call.

Both play the same episodes with the same scripted policy: three calls of a Python tool, whose results must be right,
and an answer. The other side is what a short script does: episode after episode, `python -c` for each call, the chat
template for each turn. `subprocess_threads` is the same with as many episodes at once as there are cores. Ours runs
every call in the sandbox, with the variables of the calls before it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.measure import in_turns

EPISODES, CALLS = 24, 3
TIMEOUT_S = 60.0


def said(turn: int) -> str:
    """What the policy says in a turn: a call, in the end the answer."""
    if turn == CALLS:
        return "done"
    call = {"name": "python", "arguments": {"code": f"print({turn + 6} * 7)"}}
    return f"<tool_call>\n{json.dumps(call)}\n</tool_call>"


class Scripted:
    """A generator that takes no time: an episode's turn is the number of results in its prompt."""

    name = "scripted"

    def __init__(self, tokenizer: Any) -> None:
        end = tokenizer.eos_token_id
        self._turns = [(*tokenizer(said(turn), add_special_tokens=False).input_ids, end) for turn in range(CALLS + 1)]
        self._tokenizer = tokenizer

    def sample(self, requests: Sequence[Any], *_: Any) -> list[Any]:
        from pipeline.generation.generator import Sample

        texts = self._tokenizer.batch_decode([list(request.ids) for request in requests])
        ids = [self._turns[text.count("</tool_response>")] for text in texts]
        return [Sample(one, (-0.5,) * len(one), True) for one in ids]


def subprocess_episode(tokenizer: Any, schemas: Sequence[Any]) -> None:
    """One episode of the short script."""
    messages: list[Any] = [{"role": "user", "content": "Compute."}]
    for turn in range(CALLS + 1):
        tokenizer.apply_chat_template(messages, tools=list(schemas), add_generation_prompt=True)
        text = said(turn)
        messages.append({"role": "assistant", "content": text})
        if turn == CALLS:
            return
        call = json.loads(text.split("\n")[1])
        out = subprocess.run([sys.executable, "-c", call["arguments"]["code"]], capture_output=True, text=True,
                             timeout=TIMEOUT_S, check=True).stdout.strip()  # fmt: skip
        assert out == str((turn + 6) * 7), out
        messages.append({"role": "tool", "content": out})


def run(rounds: int = 3) -> dict[str, Any]:
    import trl

    from pipeline.config.schema import Model, Prompts, Sampling, Tiny, Tools
    from pipeline.data.encoding import render_ids
    from pipeline.data.tool_schemas import ToolSet
    from pipeline.generation.tool_episodes import ToolPlayer
    from pipeline.models import models
    from pipeline.records import Prompt
    from verifiers import sandbox

    if problem := sandbox.unavailable():
        return {"skipped": problem, "ratios": {}}
    with tempfile.TemporaryDirectory() as folder:
        models.make_tiny(Tiny(characters="".join(map(chr, range(32, 127))) + "\n"), Path(folder), seed=1)
        tokenizer = models.load_tokenizer(folder, Model())
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.eos_token = "<|im_end|>"
    template = Path(trl.__file__).parent / "chat_templates" / "qwen3_instruct_2507.jinja"
    tokenizer.chat_template = template.read_text(encoding="utf-8")
    settings, source = Tools(use=["python"]), Prompts(chat=True)
    tools = ToolSet(settings, path="benchmark")
    player = ToolPlayer(tools, settings, source, tokenizer, frozenset({tokenizer.eos_token_id}), context=1 << 16)
    row = {"prompt": "Compute.", "tools": tools.schemas}
    prompt = Prompt(0, "Compute.", tuple(render_ids(row, source, tokenizer)), {}, row)
    generator: Any = Scripted(tokenizer)

    def ours() -> None:
        played = player.play(generator, [prompt], Sampling(max_tokens=512), samples=EPISODES, key=("bench",))
        records = [one.episode for one in played if one.episode is not None]
        assert len(records) == EPISODES
        for record in records:
            results = [m["content"].strip() for m in record["messages"] if m["role"] == "tool"]
            assert results == [str((turn + 6) * 7) for turn in range(CALLS)], results

    def loop() -> None:
        for _ in range(EPISODES):
            subprocess_episode(tokenizer, tools.schemas)

    def threads() -> None:
        with ThreadPoolExecutor(sandbox.size()) as pool:
            list(pool.map(lambda _: subprocess_episode(tokenizer, tools.schemas), range(EPISODES)))

    spent = in_turns({"ours": ours, "subprocess": loop, "subprocess_threads": threads}, rounds=rounds)
    wall = {name: times["wall"] for name, times in spent.items()}
    return {
        "ratios": {"tool_episodes_vs_subprocess": wall["subprocess"] / wall["ours"]},
        "vs_subprocess_threads": round(wall["subprocess_threads"] / wall["ours"], 2),
        "episodes_per_s": {name: round(EPISODES / seconds, 2) for name, seconds in wall.items()},
        "episodes": EPISODES, "calls_per_episode": CALLS, "seconds": spent,
    }  # fmt: skip
