"""Which file a kind of stage is in. Read without importing any of them."""

from __future__ import annotations

MODULES = {
    "base": "base",
    "sft": "sft",
    "feedme": "feedme",
    "reward_model": "reward_model",
    "ppo": "ppo",
    "grpo": "grpo",
    "conditioned": "conditioned",
    "offline_q": "offline_q",
    "stitch": "stitch",
    "probe": "probe",
    "evaluate": "evaluate",
    "judge": "judge",
    "compare": "compare",
}
