"""Which file a kind of stage is in. Read without importing any of them."""

from __future__ import annotations

MODULES = {
    "base": "pipeline.stages.base",
    "sft": "pipeline.stages.sft",
    "feedme": "pipeline.stages.feedme",
    "reward_model": "pipeline.stages.reward_model",
    "ppo": "pipeline.stages.ppo",
    "grpo": "pipeline.stages.grpo",
    "conditioned": "pipeline.stages.conditioned",
    "offline_q": "pipeline.research.offline_q",
    "stitch": "pipeline.research.stitching",
    "probe": "pipeline.research.probe",
    "evaluate": "pipeline.stages.evaluate",
    "judge": "pipeline.stages.comparison.method_judge",
    "compare": "pipeline.stages.comparison.compare",
}
