"""Checks across keys: keys that contradict each other, counts that do not divide, blocks that need another block."""

from __future__ import annotations

import importlib.util
import re
from typing import TYPE_CHECKING

from pipeline.config.library_fields import VLLM_ENGINE, block_mistakes
from pipeline.config.mistakes import nearest
from pipeline.config.schema import Attribute, Conditioned, Feedme, Policy, trains_adapter

if TYPE_CHECKING:
    from pipeline.config.load import Config

MEASURES = ("reward", "correct", "format", "length")  # what an attribute may measure besides parts of the rewards
NEEDS_VALIDATION = (
    "best chooses by prompts that are neither trained on nor held out, else the held-out figure would be that of the "
    "best of several tries; give prompts.validation, as prompts: {validation: 0.1}"
)
MOST_TINY = 1e9  # parameters: above this, a typo would use up the machine's memory


def cross_checks(config: Config) -> list[str]:
    """The mistakes that involve more than one field, one line each."""
    out: list[str] = []
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)*", config.run) or ".." in config.run:
        out.append(f"run: {config.run!r} must be a name of letters, digits, '.', '_', '-'")
    if "base" in config.stages and (config.model.path is None) == (config.model.tiny is None):
        out.append("model: give either path (a local directory or Hub id) or tiny (a model made here)")
    tiny = config.model.tiny
    if tiny and tiny.hidden_size % tiny.num_attention_heads:
        out.append(f"model.tiny: hidden_size {tiny.hidden_size} is not divisible by {tiny.num_attention_heads} heads")
    if tiny and tiny.parameters > MOST_TINY:
        out.append(f"model.tiny: {tiny.parameters:.3g} parameters; a model made here has at most {MOST_TINY:.3g}")
    if config.prompts.path and config.prompts.procedural:
        out.append("prompts: give path or procedural, not both")
    duplicates = {s for s in config.stages if config.stages.count(s) > 1}
    if duplicates:
        out.append(f"stages: {sorted(duplicates)[0]!r} is listed twice; give the second a block and name of its own")
    if (config.generate.backend == "vllm_server") != bool(config.generate.url):
        out.append("generate: backend vllm_server and url go together, as in {backend: vllm_server, "
                   "url: http://localhost:8000}")  # fmt: skip
    if config.evaluation.k > config.evaluation.samples:
        out.append(f"evaluation.k: pass@{config.evaluation.k} needs as many samples; evaluation.samples is "
                   f"{config.evaluation.samples}")  # fmt: skip
    if config.prompts.procedural and config.prompts.heldout_split:
        out.append("prompts: procedural rows have no splits; give heldout (a share) or heldout_path")
    if config.prompts.heldout + config.prompts.validation >= 1 and config.prompts.validation:
        out.append(f"prompts.validation: heldout {config.prompts.heldout:g} and validation "
                   f"{config.prompts.validation:g} leave nothing to train on")  # fmt: skip
    out += _quantization_mistakes(config)
    out += block_mistakes("generate.vllm", config.generate.vllm, VLLM_ENGINE)
    for name, block in config.blocks.items():
        if isinstance(block, Policy):
            out += _policy_checks(name, block, config)
        if isinstance(block, Feedme) and block.keep == "best" and not config.prompts.validation:
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


def _quantization_mistakes(config: Config) -> list[str]:
    if config.model.quantization is None:
        return []
    if not any(trains_adapter(block) for block in config.blocks.values()):
        return ["model.quantization: quantized weights cannot be trained and no stage uses LoRA; give one a `peft` "
                "block, as {r: 16, target_modules: all-linear}"]  # fmt: skip
    if importlib.util.find_spec("bitsandbytes") is None:
        return ["model.quantization: needs bitsandbytes; pip install bitsandbytes, or leave the key out"]
    return []


def _policy_checks(name: str, block: Policy, config: Config) -> list[str]:
    total = block.prompts * block.samples
    credit, kl, loss, sampling = block.credit, block.kl, block.loss, config.sampling
    reshaped = {"top_p": sampling.top_p < 1, "top_k": sampling.top_k > 0, "min_p": sampling.min_p > 0,
           "repetition_penalty": sampling.repetition_penalty != 1}  # fmt: skip
    checks = {
        f": {block.prompts} prompts x {block.samples} samples = {total} is not divisible by "
        f"minibatches {block.minibatches}": total % block.minibatches != 0,
        f".samples: {credit.kind} credit compares the samples of a prompt; give at least 2": (
            credit.kind in ("group", "leave_one_out") and block.samples < 2
        ),
        ".critic: gae credit needs a critic; add `critic: {}`, or choose another credit.kind": (
            credit.kind == "gae" and block.critic is None
        ),
        f".credit.gamma: {credit.kind} credit does not discount; leave it at 1, or choose gae or monte_carlo": (
            credit.gamma != 1 and credit.kind not in ("gae", "monte_carlo")
        ),
        f".critic: {credit.kind} credit has no critic; give critic: null, or credit.kind gae": (
            credit.kind != "gae" and block.critic is not None
        ),
        f".kl.kind: a reward penalty is k1 (its mean is the KL); found {kl.kind!r}": (
            kl.where == "reward" and kl.kind != "k1" and kl.coef > 0
        ),
        ".kl.kind: k1 in the loss has no gradient in expectation; give k2, k3 or unbiased": (
            kl.where == "loss" and kl.kind == "k1" and kl.coef > 0
        ),
        ".kl.target: steers kl.coef by factors, and 0 stays 0; give a coef to begin with": (
            kl.target is not None and kl.coef == 0
        ),
        f".kl.reference: {kl.reference} needs a KL to be of use; give kl.coef, or leave it out": (
            kl.reference != "frozen" and kl.coef == 0
        ),
        f".kl.reference: under peft the reference is the base with the adapter off; {kl.reference} would need a copy": (
            kl.reference != "frozen" and block.peft is not None
        ),
        ".kl.where: monte_carlo credit weighs scores of continuations, which carry no KL; give loss": (
            credit.kind == "monte_carlo" and kl.where == "reward" and kl.coef > 0
        ),
        ".ptx_data: without loss.ptx_coef nothing is imitated; give one, or leave the data out": (
            block.ptx_data is not None and loss.ptx_coef == 0
        ),
        ".overlap: samples are one update old, and nothing corrects for it; give loss.importance: truncate": (
            block.overlap and loss.importance == "none"
        ),
        ".overlap: one batch a step is drawn ahead; groups.dynamic, episodes and monte_carlo ask for more": (
            block.overlap and (block.groups.dynamic or block.episodes is not None or credit.kind == "monte_carlo")
        ),
        f".groups.overlong_buffer: {block.groups.overlong_buffer} exceeds sampling.max_tokens {sampling.max_tokens}": (
            block.groups.overlong_buffer > sampling.max_tokens
        ),
        **_choice_checks(block, config),
        **{
            f": sampling.{key} would change what is sampled and not what is trained on; leave it at its default": on
            for key, on in reshaped.items()
        },
    }
    return [name + message for message, wrong in checks.items() if wrong]


def _choice_checks(block: Policy, config: Config) -> dict[str, bool]:
    """Mistakes in how a stage chooses the step that it saves."""
    best = block.keep == "best"
    return {
        ".keep: best chooses among evaluation passes; give evaluate_every, as evaluate_every: 10": (
            best and block.evaluate_every is None
        ),
        f".keep: {NEEDS_VALIDATION}": best and not config.prompts.validation,
        ".keep: best evaluates single answers, which do not show what episodes learn; leave it out": (
            best and block.episodes is not None
        ),
        ".patience: stops by the passes that keep: best compares; add keep: best": (
            block.patience is not None and not best
        ),
        ".keep_by: chooses for keep: best; add keep: best": block.keep_by != "accuracy" and not best,
    }
