#!/usr/bin/env bash
# openenv 0.10.0: an environment whose action has a field of type int and a validator that raises ValueError, as pydantic's
# documentation writes validators, served over its WebSocket. Four sessions, each with one step that the action refuses.
#
# Seen: a text for the number and an unknown field are answered by VALIDATION_ERROR, and the session goes on. A number that the
# validator refuses is answered by SESSION_ERROR, "Unable to serialize unknown type: <class 'ValueError'>", and the server
# closes the session with its environment. The same rule as a constraint of the field, Field(ge=0), is answered like a type.
# From memory one would say: every refused action is a VALIDATION_ERROR with its reason, and the episode goes on.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q openenv==0.10.0
"$folder/venv/bin/python" - 2>/dev/null <<'PYTHON'
import json
import socket
import threading
import time

import uvicorn
from openenv.core.env_server import Action, Environment, Observation, State, create_fastapi_app
from pydantic import Field, field_validator
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect


class Move(Action):
    number: int
    other: int = Field(0, ge=0)

    @field_validator("number")
    @classmethod
    def check(cls, value):
        if value < 0:
            raise ValueError("must not be negative")
        return value


class Game(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(self, seed=None, episode_id=None):
        return Observation()

    def step(self, action, timeout_s=None):
        return Observation(reward=1.0)

    @property
    def state(self):
        return State()


def answered(action):
    """(code of the refusal, whether the session goes on)"""
    with connect(f"ws://127.0.0.1:{PORT}/ws", proxy=None) as session:
        session.send(json.dumps({"type": "step", "data": action}))
        reply = json.loads(session.recv(timeout=20))
        print(action, reply)
        try:
            session.send(json.dumps({"type": "step", "data": {"number": 1}}))
            return reply["data"]["code"], json.loads(session.recv(timeout=20))["type"] == "observation"
        except ConnectionClosed:
            return reply["data"]["code"], False


listening = socket.create_server(("127.0.0.1", 0))
PORT = listening.getsockname()[1]
server = uvicorn.Server(uvicorn.Config(create_fastapi_app(Game, Move, Observation, max_concurrent_envs=8)))
threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True).start()
while not server.started:
    time.sleep(0.1)
assert answered({"number": "many"}) == ("VALIDATION_ERROR", True)
assert answered({"number": 1, "no_such_field": 2}) == ("VALIDATION_ERROR", True)
assert answered({"number": 1, "other": -1}) == ("VALIDATION_ERROR", True)
assert answered({"number": -1}) == ("SESSION_ERROR", False)
PYTHON
