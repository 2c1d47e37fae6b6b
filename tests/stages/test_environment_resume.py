"""Other people's environments, killed and resumed: they may answer anything again, but no step is recorded twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loop_kit import PLAIN_TEMPLATE, manifest
from public_packages import interpreter
from ranks_kit import free_port

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """
run: t
seed: 1
model:
  tiny: {{hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32,
         characters: "0123456789=", max_position_embeddings: 128}}
  chat_template: template.jinja
{environment}
rewards: {{environment: {{weight: 1.0}}}}
sampling: {{max_tokens: 4}}
generate: {{backend: transformers}}
evaluation: {{samples: 2, k: 2, prompts: 2}}
stages: [base, grpo]
grpo: {{policy: base, steps: 5, prompts: 2, samples: 4, checkpoint_every: 2, optimizer: {{learning_rate: 1.0e-3}}}}
"""
# both pay at random, so that nothing but a record can give the same rewards again
TASKSET = """
import random
import verifiers.v1 as vf

class LuckTask(vf.Task[vf.TaskData]):
    @vf.reward
    async def luck(self, trace: vf.Trace) -> float:
        return random.SystemRandom().random()

class Luck(vf.Taskset[LuckTask]):
    def load(self):
        for number in range(40):
            yield LuckTask(vf.TaskData(prompt=f"{number}="), self.config.task)

__all__ = ["Luck"]
"""
SERVER = """
import random, sys
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app
import uvicorn

class Say(Action):
    text: str

class Reply(Observation):
    reply: str = ""

class Luck(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(self, seed=None, episode_id=None, **kwargs):
        self.steps = 0
        return Reply(reply="1=")

    def step(self, action, timeout_s=None, **kwargs):
        self.steps += 1
        return Reply(reply="2=", reward=random.SystemRandom().random(), done=self.steps == 2)

    @property
    def state(self):
        return State()

app = create_fastapi_app(Luck, Say, Reply, max_concurrent_envs=8)
uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
"""


@pytest.fixture
def openenv(tmp_path: Path) -> Iterator[str]:
    """A server that has room for the episodes of one step, and for no session that a killed run left open."""
    (tmp_path / "server.py").write_text(SERVER)
    port = free_port()
    process = subprocess.Popen([str(interpreter("openenv", "0.10")), "server.py", str(port)], cwd=tmp_path)
    assert wait_until(lambda: process.poll() is not None or healthy(f"http://127.0.0.1:{port}/health"), 120)
    # so many rows that no step holds a prompt twice
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps({"prompt": f"{n}="}) + "\n" for n in range(40)))
    yield (f"prompts: {{path: rows.jsonl, heldout: 0.3, chat: true}}\n"
           f"tools: {{openenv: {{url: 'http://127.0.0.1:{port}', action: text, observation: reply}}, max_turns: 3, "
           "max_tokens: 60}")  # fmt: skip
    process.kill()
    process.wait()


@pytest.fixture
def prime(tmp_path: Path) -> str:
    python = interpreter("verifiers", "0.4.0")
    (tmp_path / "tasksets").mkdir()
    (tmp_path / "tasksets" / "luck.py").write_text(TASKSET)
    return (f"prompts: {{prime: &luck {{python: {python}, taskset: luck, dirs: [tasksets]}}, heldout: 0.3, chat: true}}"
            "\ntools: {prime: *luck, max_turns: 3, max_tokens: 60}")  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", ["prime", "openenv"])
def test_a_killed_run_resumes_without_a_row_twice_and_keeps_the_rewards_it_had_recorded(
    name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    (tmp_path / "template.jinja").write_text(PLAIN_TEMPLATE)
    (tmp_path / "t.yaml").write_text(CONFIG.format(environment=request.getfixturevalue(name)))
    stage = tmp_path / "runs" / "t" / "grpo"
    before = {key: row for key, row in killed(tmp_path, stage, after_steps=3).items() if key[0] < 3}
    assert len(before) == 24
    assert wait_until(lambda: not left_behind(tmp_path)), left_behind(tmp_path)
    assert subprocess.run(command(), cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL).returncode == 0
    after = rows_of(stage)
    assert all(after[key] == row for key, row in before.items()), "recorded once: the environment was not asked again"
    episodes = [key for key, row in after.items() if "episode" in row]
    assert len(episodes) == len({key[:3] for key in episodes}) == 5 * 2 * 4
    assert [json.loads(line)["step"] for line in (stage / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5]
    assert manifest(tmp_path / "runs", "grpo")["metrics"]["steps"] == 5
    assert all(row["status"] != "error" for row in after.values()), "every episode found its environment"


def command() -> list[str]:
    return [sys.executable, "-m", "pipeline", "run", "t.yaml"]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def killed(place: Path, stage: Path, *, after_steps: int) -> dict[Any, Any]:
    """Start the run, kill it with SIGKILL when it has logged so many steps; the rows that it left."""
    process = subprocess.Popen(command(), cwd=place, env=environment(), stdout=subprocess.DEVNULL)
    log = stage / "metrics.jsonl"
    wait_until(lambda: process.poll() is not None or (log.exists() and log.read_text().count("\n") >= after_steps), 400)
    process.kill()
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    return rows_of(stage)


def rows_of(stage: Path) -> dict[Any, Any]:
    """(step, prompt, sample, turn) -> row. Fails for two rows with one key."""
    lines = [line for line in (stage / "rollouts.jsonl").read_text().splitlines(keepends=True) if line.endswith("\n")]
    rows = [json.loads(line) for line in lines]
    out = {(row["step"], row["prompt_index"], row["sample"], row.get("turn", 0)): row for row in rows}
    assert len(out) == len(rows)
    return out


def healthy(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=1).read()
    except OSError:
        return False
    return True


def wait_until(condition: Any, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.05)
    return bool(condition())


def left_behind(place: Path) -> list[str]:
    """Command lines of processes that a run in this folder started and that outlived it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            is_here = (process / "cwd").readlink() == place
        except OSError:
            continue
        if (is_here or str(place) in words) and "server.py" not in words and int(process.name) != os.getpid():
            found.append(words)
    return found
