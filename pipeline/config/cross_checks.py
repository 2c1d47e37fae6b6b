"""Checks across keys: keys that contradict each other, counts that do not divide, blocks that need another block."""

from __future__ import annotations

import importlib.util
import re
from typing import TYPE_CHECKING

from pipeline.config.install_hint import install_command
from pipeline.config.library_fields import VLLM_ENGINE, block_mistakes
from pipeline.config.mistakes import nearest
from pipeline.config.policy_checks import NEEDS_VALIDATION, policy_mistakes
from pipeline.config.schema import Attribute, Conditioned, Dpo, Feedme, Kto, Policy, trains_adapter

if TYPE_CHECKING:
    from pipeline.config.load import Config

MEASURES = ("reward", "correct", "format", "length")  # what an attribute may measure besides parts of the rewards
MOST_TINY = 1e9  # parameters: above this, a typo would use up the machine's memory


def cross_checks(config: Config) -> list[str]:
    """The mistakes that involve more than one field, one line each."""
    out: list[str] = []
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", config.run) or ".." in config.run:
        out.append(f"run: {config.run!r} must be a name of letters, digits, '.', '_', '-', or several with / between, "
                   "none of them '..'")  # fmt: skip
    if "base" in config.stages and (config.model.path is None) == (config.model.tiny is None):
        out.append("model: give either path (a local directory or Hub id) or tiny (a model made here)")
    tiny = config.model.tiny
    if tiny and tiny.hidden_size % tiny.num_attention_heads:
        out.append(f"model.tiny: hidden_size {tiny.hidden_size} is not divisible by {tiny.num_attention_heads} heads")
    if tiny and tiny.parameters > MOST_TINY:
        out.append(f"model.tiny: {tiny.parameters:.3g} parameters; a model made here has at most {MOST_TINY:.3g}")
    if sum(source is not None for source in (config.prompts.path, config.prompts.procedural, config.prompts.prime)) > 1:
        out.append("prompts: give one of path, procedural and prime")
    duplicates = {s for s in config.stages if config.stages.count(s) > 1}
    if duplicates:
        out.append(f"stages: {sorted(duplicates)[0]!r} is listed twice; give the second a block and name of its own")
    if (config.generate.backend == "vllm_server") != bool(config.generate.url):
        out.append("generate: backend vllm_server and url go together, as in {backend: vllm_server, "
                   "url: http://localhost:8000}")  # fmt: skip
    if config.evaluation.k > config.evaluation.samples:
        out.append(f"evaluation.k: pass@{config.evaluation.k} needs as many samples; evaluation.samples is "
                   f"{config.evaluation.samples}")  # fmt: skip
    if (config.prompts.procedural or config.prompts.prime) and config.prompts.heldout_split:
        out.append("prompts: procedural and prime rows have no splits; give heldout (a share) or heldout_path")
    if config.prompts.heldout + config.prompts.validation >= 1 and config.prompts.validation:
        out.append(f"prompts.validation: heldout {config.prompts.heldout:g} and validation "
                   f"{config.prompts.validation:g} leave nothing to train on")  # fmt: skip
    out += _quantization_mistakes(config)
    out += _tool_mistakes(config)
    out += _program_mistakes(config)
    out += block_mistakes("generate.vllm", config.generate.vllm, VLLM_ENGINE)
    for name, block in config.blocks.items():
        if isinstance(block, Policy):
            out += policy_mistakes(name, block, config)
        if isinstance(block, (Feedme, Dpo, Kto)) and block.keep == "best" and not config.prompts.validation:
            out.append(f"{name}.keep: {NEEDS_VALIDATION}")
        if isinstance(block, Conditioned):
            out += _label_checks(name, block, config)
    return out


def _label_checks(name: str, block: Conditioned, config: Config) -> list[str]:
    """Mistakes in what a label describes: the attributes, or only the reward."""
    out: list[str] = []
    known = [*MEASURES, *config.rewards]
    parts: dict[str, Conditioned | Attribute] = {f"{name}.attributes.{key}": a for key, a in block.attributes.items()}
    for where, part in (parts or {name: block}).items():
        if part.bins == "edges" and part.edges != sorted(set(part.edges)):
            out.append(f"{where}.edges: must rise, found {part.edges}")
        if "{bin}" not in part.label:
            out.append(f"{where}.label: {part.label!r} must hold {{bin}}, where the bin's number goes")
        if isinstance(part, Attribute) and part.of not in known:
            out.append(f"{where}.of: nothing called {part.of!r} is measured{nearest(part.of, known)}")
    return out


PLAYS_TOOLS = ("base", "sft", "feedme", "ppo", "grpo", "policy", "dpo", "kto", "conditioned", "evaluate")


def _tool_mistakes(config: Config) -> list[str]:
    if (tools := config.tools) is None:
        return []
    out = _episode_mistakes("tools", config)
    if not (tools.use or tools.environment or tools.mcp or tools.prime or tools.openenv):
        out.append("tools: name at least one, as in tools: {use: [calculator]}, or give an environment")
    if config.sampling.max_tokens > tools.max_tokens:
        out.append(f"tools.max_tokens: an episode of {tools.max_tokens} tokens is shorter than one turn; "
                   f"sampling.max_tokens is {config.sampling.max_tokens}")  # fmt: skip
    return out


def _program_mistakes(config: Config) -> list[str]:
    if config.program is None:
        return []
    out = _episode_mistakes("program", config)
    if config.tools is not None:
        out.append("program: a program calls its own tools; leave the block `tools` out")
    for key in ("max_tokens", "context"):
        if config.sampling.max_tokens > (most := getattr(config.program, key)):
            out.append(f"program.{key}: {most} tokens are fewer than one call may sample; sampling.max_tokens is "
                       f"{config.sampling.max_tokens}")  # fmt: skip
    return out


def _episode_mistakes(key: str, config: Config) -> list[str]:
    """Mistakes of blocks that cannot play the episodes of the block `key`."""
    out = []
    for name, block in config.blocks.items():
        if name not in config.stages:
            continue
        if block.kind not in PLAYS_TOOLS:
            out.append(f"{key}: stage {name!r} samples plain completions; with {key} the stages are "
                       f"{', '.join(PLAYS_TOOLS)}")  # fmt: skip
        if isinstance(block, (Feedme, Dpo, Kto, Conditioned)) and block.pool:
            out.append(f"{name}.pool: a pool is read as plain completions; leave it out, or {key}")
        if isinstance(block, Conditioned):
            out += _labelled_episode_mistakes(key, name, block, config)
        if not isinstance(block, Policy):
            continue
        given = {"episodes": block.episodes is not None, "overlap": block.max_lag > 0,
                 "groups.overlong_buffer": block.groups.overlong_buffer > 0,
                 "credit.kind": block.credit.kind in ("monte_carlo", "gdpo", "optimal_baseline")}  # fmt: skip
        out += [f"{name}.{setting}: it is made for plain completions; leave it out, or {key}" for setting in given
                if given[setting]]  # fmt: skip
    return out


def _labelled_episode_mistakes(key: str, name: str, block: Conditioned, config: Config) -> list[str]:
    """Mistakes of a stage that puts a label in front of the first message of episodes."""
    out = []
    tools = config.tools
    if tools is None or tools.prime is not None or (tools.openenv is not None and tools.openenv.action):
        out.append(f"{name}: a label is put in front of the first user message, which your {key} writes itself; "
                   f"leave the stage out, or {key}")  # fmt: skip
    for setting, given in (("guidance", block.guidance != 1.0), ("demonstrations", block.demonstrations > 0)):
        if given:
            out.append(f"{name}.{setting}: it is made for plain completions; leave it out, or {key}")
    return out


def _quantization_mistakes(config: Config) -> list[str]:
    if config.model.quantization is None:
        return []
    if not any(trains_adapter(block) for block in config.blocks.values()):
        return ["model.quantization: quantized weights cannot be trained and no stage uses LoRA; give one a `peft` "
                "block, as {r: 16, target_modules: all-linear}"]  # fmt: skip
    if importlib.util.find_spec("bitsandbytes") is None:
        return [f"model.quantization: needs bitsandbytes; {install_command('bitsandbytes')}, or leave the key out"]
    return []
