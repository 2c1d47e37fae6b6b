#!/usr/bin/env bash
# openenv 0.10.0: an environment whose reset takes a keyword, started over its WebSocket with that keyword misspelled.
#
# Seen: the misspelled argument is dropped and the episode starts with the default, with no word in the answer. A value of
# another type than the one that reset's signature names is passed on as it is. A step with an unknown field is refused.
# From memory one would say: an argument that reset does not take is refused, as in a call of the Python method and as a step
# is, and values are checked against the type hints.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q openenv==0.10.0
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
from fastapi.testclient import TestClient
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app


class Seen(Observation):
    level: str = ""


class Game(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(self, seed: int | None = None, episode_id: str | None = None, level: int = 1):
        return Seen(level=repr(level))

    def step(self, action, timeout_s=None):
        return Seen()

    @property
    def state(self):
        return State()


client = TestClient(create_fastapi_app(Game, Action, Seen, max_concurrent_envs=8))
with client.websocket_connect("/ws") as session:

    def said(kind, data):
        session.send_json({"type": kind, "data": data})
        reply = session.receive_json()
        print(kind, data, reply)
        return reply

    assert said("reset", {"level": 3})["data"]["observation"]["level"] == "3"
    assert said("reset", {"levle": 3})["data"]["observation"]["level"] == "1"
    assert said("reset", {"level": "3"})["data"]["observation"]["level"] == "'3'"
    assert said("step", {"levle": 3})["data"]["code"] == "VALIDATION_ERROR"
PYTHON
