"""GRPO on the runs of an agent's own program: two steps on a tiny model; killed, they end in the same bytes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from loop_kit import manifest, metrics
from test_tool_stage import CONFIG, killed_and_resumed, write_rows

from pipeline.__main__ import main

AGENT = """
import json, os, sys, urllib.request
TOOL = {"type": "function", "function": {"name": "calculator", "description": "", "parameters": {
    "type": "object", "properties": {"expression": {"type": "string"}}, "required": ["expression"]}}}

def chat(messages):
    body = json.dumps({"model": "policy", "messages": messages, "tools": [TOOL]}).encode()
    headers = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
    request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body, headers)
    return json.load(urllib.request.urlopen(request))["choices"][0]["message"]

messages = [{"role": "user", "content": json.load(sys.stdin)["prompt"]}]
for _ in range(3):
    messages.append(chat(messages))
    for call in messages[-1].get("tool_calls", []):
        left, _, right = json.loads(call["function"]["arguments"]).get("expression", "").partition("*")
        result = str(int(left) * int(right)) if left.isdigit() and right.isdigit() else "?"
        messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
    if messages[-1]["role"] == "assistant":
        break
print(messages[-1]["content"])
"""
TOOLS = "tools: {use: [calculator], format: pythonic, max_turns: 3, max_tokens: 150}"
PROGRAM = "program: {command: [python, agent.py], format: pythonic, max_turns: 3, max_tokens: 150, context: 256}"


@pytest.mark.long
def test_two_steps_of_grpo_train_on_a_programs_calls_and_a_killed_run_ends_in_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path, tools=[{"type": "function", "function": {"name": "calculator", "parameters": {}}}])
    assert TOOLS in CONFIG
    config = (
        CONFIG.replace(TOOLS, PROGRAM)
        .replace("steps: 3", "steps: 2")
        .replace("{samples: 2, k: 2}", "{samples: 1, k: 1}")
    )
    (tmp_path / "t.yaml").write_text(config % {"root": Path(__file__).resolve().parents[2]})
    (tmp_path / "agent.py").write_text(AGENT)
    assert main(["run", "t.yaml"]) == 0
    steps = metrics(tmp_path / "runs", "grpo")
    assert [step["ended_by/answer"] for step in steps] == pytest.approx([1.0] * 2)
    assert sum(step["tool_calls_mean"] for step in steps) > 0, "the policy has learned from SFT to call"
    assert {"heldout_accuracy", "tool_calls_mean"} <= manifest(tmp_path / "runs", "grpo")["metrics"].keys()
    rows = [json.loads(line) for line in (tmp_path / "runs/t/grpo/rollouts.jsonl").read_text().splitlines()]
    called = next(row for row in rows if "episode" in row and row["episode"]["calls"])
    assert {"user", "assistant", "tool"} <= {m["role"] for m in called["episode"]["messages"]}
    assert any(not on for on in called["sampled"]), "what the tool answered is not trained on"
    start, end = (tmp_path / "runs/t" / stage / "model/model.safetensors" for stage in ("sft", "grpo"))
    assert start.read_bytes() != end.read_bytes()
    killed_and_resumed(tmp_path)
    for name in ("rollouts.jsonl", "model/model.safetensors"):
        one, two = (tmp_path / "runs" / run / "grpo" / name for run in ("t", "t2"))
        assert one.read_bytes() == two.read_bytes(), name
