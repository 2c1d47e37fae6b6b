"""The typed shape of a YAML: every block's dataclass under one name. No logic but each stage's estimate of its work.

run_schema.py     model, prompts, sampling, generation, evaluation
policy_schema.py  policy optimisation: ppo, grpo, distill and their parts
preference_schema.py  dpo and kto
stage_schema.py   the other stages; research_schema.py those of the research questions
alarm_config.py   alarms and the monitor

The text under a field is its meaning, shown by `whetstone config` and docs/config.md. What TRL, PEFT or vLLM already
name is not repeated here: it passes through `trainer:`, `peft:` and `vllm:`. load.py reads a YAML into these classes.
"""

from pipeline.config.alarm_config import STRICT, Alarms, Monitor, NonNegative, Positive, Share
from pipeline.config.policy_schema import (
    BY_GROUP,
    Credit,
    Critic,
    Distill,
    Episodes,
    Groups,
    Grpo,
    Kl,
    Loss,
    Optimizer,
    Overlap,
    Policy,
    Ppo,
    Sampler,
    Segments,
    Teacher,
    trains_adapter,
)
from pipeline.config.preference_schema import Dpo, Kto
from pipeline.config.registry import KINDS, StageKind, recorded_kind
from pipeline.config.research_schema import (
    Descriptions,
    OfflineQ,
    Probe,
    Revalue,
    SegmentStudy,
    Stitch,
    SurrogateChain,
    SurrogateStudy,
    TimeToTarget,
)
from pipeline.config.run_schema import (
    TOOL_FORMATS,
    Evaluation,
    Generate,
    Model,
    OpenEnv,
    Prime,
    Program,
    Prompts,
    PromptSource,
    Sampling,
    Tiny,
    Tools,
)
from pipeline.config.stage_schema import (
    Attribute,
    Base,
    Compare,
    Conditioned,
    Evaluate,
    Feedme,
    Judge,
    RewardModel,
    Sft,
    Stop,
)

__all__ = [
    "BY_GROUP", "KINDS", "STRICT", "TOOL_FORMATS", "Alarms", "Attribute", "Base", "Compare", "Conditioned", "Credit",
    "Critic", "Descriptions", "Distill", "Dpo", "Episodes", "Evaluate", "Evaluation", "Feedme", "Generate", "Groups",
    "Grpo", "Judge", "Kl", "Kto", "Loss", "Model", "Monitor", "NonNegative", "OfflineQ", "OpenEnv", "Optimizer",
    "Overlap", "Policy", "Positive", "Ppo", "Prime", "Probe", "Program", "PromptSource", "Prompts", "Revalue",
    "RewardModel", "Sampler", "Sampling", "SegmentStudy", "Segments", "Sft", "Share", "StageKind", "Stitch", "Stop",
    "SurrogateChain", "SurrogateStudy", "Teacher", "TimeToTarget", "Tiny", "Tools", "recorded_kind", "trains_adapter",
]  # fmt: skip
