"""Plan of one run: what each of its stages would do, whether it is stale and why, memory, time, examples."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import rewards
from pipeline.config import stage_graph
from pipeline.config.load import Config, ConfigError
from pipeline.config.registry import kind_of
from pipeline.config.schema import Policy, trains_adapter
from pipeline.config.work import Data, Work
from pipeline.generation.tool_calls import recognised_format
from pipeline.plan import data_plan, estimate, prompt_checks
from pipeline.plan.data_plan import Marked
from pipeline.plan.estimate import ADAPTER_SHARE, Memory, Shape
from pipeline.plan.trial import Measure, Trial
from pipeline.run import console, lineage, shutdown

MIB = 1 << 20
FEW_PROMPTS = 30  # held-out prompts below which an interval of accuracy spans about a third of the scale
# on top of the counts: a stage's lock, data and manifest; a step of TRL's trainer; a policy step's sync and records
START_S, TRAINER_STEP_S, POLICY_STEP_S = 1.0, 0.0085, 0.05
WORTH_SHARING = 32  # as pipeline.update.packing, which imports torch
LOAD_S = 0.5  # per policy that is only evaluated: to load it into the generator and remove it


@dataclass(frozen=True, slots=True)
class Plan:
    works: list[Work]
    data: Data
    stale: dict[str, str | None]
    memory: dict[str, Memory]
    seconds: dict[str, float]
    examples: dict[str, Marked]  # kind of row -> its tokens, each marked if trained on
    tools: str = ""  # what an episode may call, and how calls are read
    trial: Trial | None = None

    def as_json(self) -> dict[str, Any]:
        """The plan as JSON, for `plan CONFIG json=true`."""
        return {
            w.name: {"why": self.stale[w.name], "steps": w.steps, "samples": w.samples, "sampled_tokens": w.tokens,
                     "memory": self.memory[w.name].parts if w.name in self.memory else None,
                     "memory_bytes": self.memory[w.name].total if w.name in self.memory else None,
                     "seconds": self.seconds.get(w.name)}
            for w in self.works
        }  # fmt: skip


def make(cfg: Config, measure: Measure | None) -> Plan:
    """The plan of a valid config. measure: the trial; None: without one the plan has no memory and no time."""
    started = time.monotonic()
    tokenizer = tokenizer_of(cfg)
    data, examples, inputs = data_plan.data_of(cfg, tokenizer)
    read_s = time.monotonic() - started  # as each stage reads them again
    if too_long := prompt_checks.context_mistakes(cfg, inputs.longest):
        raise ConfigError([f"{cfg.path}: {line}" for line in too_long])
    measured = replace(measure(inputs), read_s=read_s) if measure is not None else None
    works = [estimate.work_of(cfg, name, data) for name in cfg.stages]
    for work in works:
        work.label_tokens = len(tokenizer(label_of(cfg.blocks[work.name]), add_special_tokens=False)["input_ids"])
    known = {n: m for n in cfg.stages if (m := estimate.like_it(cfg, n, lineage.stage_config(cfg, n))) is not None}
    estimate.expect_lengths(cfg, works, data, known)
    compared = {w.name: [make(each, measure) for each in stage_graph.runs_of(cfg, w.name)]
                for w in works if w.kind == "compare"}  # fmt: skip
    for work in works:
        if work.name in compared:
            add_parts(work, [part for one in compared[work.name] for part in one.works])
    stale = {name: lineage.why_stale(cfg, name, kind_of(cfg, name).module) for name in cfg.stages}
    memory: dict[str, Memory] = {}
    seconds: dict[str, float] = {}
    if measured is not None:
        shape = Shape(**measured.shape)
        for work in works:
            memory[work.name] = estimate.memory_of(cfg, work.name, shape, data, measured)
            if work.name in compared and work.name not in known:
                of_parts = [s for one in compared[work.name] for s in one.seconds.values()]
                seconds[work.name] = START_S + sum(of_parts) / stage_graph.at_once(cfg, work.name)
            else:
                seconds[work.name] = seconds_of(cfg, work, data, measured, known.get(work.name))
        if works:
            seconds[works[0].name] += measured.imports_s + measured.engine_s
    return Plan(works, data, stale, memory, seconds, examples, tools_line(cfg, tokenizer), measured)


def add_parts(work: Work, parts: Sequence[Work]) -> None:
    """The work of a comparison: that of all stages of its runs."""
    work.steps, work.samples = sum(part.steps for part in parts), sum(part.samples for part in parts)
    work.judged, work.at_most = sum(part.judged for part in parts), any(part.at_most for part in parts)
    work.mean_tokens = sum(part.tokens for part in parts) / max(work.samples, 1)
    work.source = "its parts"


def label_of(block: Any) -> str:
    """The label in front of each prompt of a stage that trains on conditions; empty for any other stage."""
    labels = [a.label for a in getattr(block, "attributes", {}).values()] or [getattr(block, "label", "")]
    return "".join(labels).replace("{bin}", "0")


_tiny_tokenizers: dict[str, Any] = {}  # by the `model` block; a seed changes weights alone


def tokenizer_of(cfg: Config) -> Any:
    import tempfile
    from pathlib import Path

    from pipeline.models import models

    if cfg.model.path is not None:
        return models.load_tokenizer(cfg.model.path, cfg.model)
    done = cfg.run_dir / "base" / "model"
    if done.is_dir():
        return models.load_tokenizer(str(done), cfg.model)
    assert cfg.model.tiny is not None
    key = repr(cfg.model)
    if key not in _tiny_tokenizers:
        with tempfile.TemporaryDirectory() as directory:
            models.make_tiny(cfg.model.tiny, Path(directory), seed=cfg.seed)
            _tiny_tokenizers[key] = models.load_tokenizer(directory, cfg.model)
    return _tiny_tokenizers[key]


def seconds_of(cfg: Config, work: Work, data: Data, trial: Trial, done: Mapping[str, Any] | None) -> float:
    """Seconds from a run of the same stage on disk, else the estimated tokens divided by the trial's rates, the start
    of each training, and its checkpoints."""
    if done is not None:
        return float(done["wall_s"])
    block = cfg.blocks[work.name]
    spent = (work.tokens + work.judged * work.mean_tokens) / trial.sampled_per_s
    spent += work.reread * row_tokens(block, work, data, trial, cfg.evaluation.samples) / trial.fetched_per_s
    if work.steps:
        policy = isinstance(block, Policy)
        training = (policy_seconds if policy else trainer_seconds)(block, work, data, trial)
        size = 12 * Shape(**trial.shape).parameters * (ADAPTER_SHARE if trains_adapter(block) else 1)
        saved = work.trainings * shutdown.checkpoints_in(training / work.trainings, round(size))
        if policy:
            saved = max(saved, (work.steps - 1) // block.checkpoint_every)
        spent += training + work.trainings * trial.load_s + saved * size / shutdown.WRITTEN_PER_S
    return START_S + trial.read_s + spent + (LOAD_S + trial.load_s) * work.loads


def policy_seconds(block: Policy, work: Work, data: Data, trial: Trial) -> float:
    """Seconds of the updates and weight syncs of a policy's steps."""
    per_row, without_head = row_tokens(block, work, data, trial, block.samples), body_tokens(work, data, trial)
    looks = (block.epochs * block.minibatches > 1) + bool(block.kl.coef or block.kl.target)
    critics = block.critic is not None
    fetched = (looks * per_row + 2 * bool(block.reward) * without_head) / trial.fetched_per_s
    learned = work.passes * (per_row + critics * without_head) / trial.learned_per_s
    updates = work.steps * block.epochs * block.minibatches * (1 + critics)
    synced = POLICY_STEP_S + trial.sync_s + trial.canary_s
    return work.samples * (fetched + learned) + work.steps * synced + updates * trial.optimizer_s


def trainer_seconds(block: Any, work: Work, data: Data, trial: Trial) -> float:
    """Seconds of the steps of TRL's trainer."""
    row_s = work.sequences_per_row * row_tokens(block, work, data, trial) / trial.learned_per_s
    steps = work.steps * (work.likely if work.at_most else 1.0)
    return steps * (work.batch * row_s + trial.optimizer_s + TRAINER_STEP_S)


def row_tokens(block: Any, work: Work, data: Data, trial: Trial, samples: int = 1) -> float:
    """What a sample costs the stage's model, in tokens that pass the layers and the head. Its prompt passes the layers
    alone, and once for `samples` rows of it where they are packed."""
    if block.kind == "reward_model":
        return body_tokens(work, data, trial)
    prompt = data.prompt_tokens[0] + work.label_tokens
    shares = (samples - 1) * prompt >= WORTH_SHARING
    return work.mean_tokens + Shape(**trial.shape).body_share * prompt / (samples if shares else 1)


def body_tokens(work: Work, data: Data, trial: Trial) -> float:
    """The same for a reward model or a critic, which has no such head."""
    return Shape(**trial.shape).body_share * (data.prompt_tokens[0] + work.label_tokens + work.mean_tokens)


# --- output -----------------------------------------------------------------------------------------------------------


def show(cfg: Config, plan: Plan) -> None:
    data, trial = plan.data, plan.trial
    mean, high, longest = data.prompt_tokens
    console.say(f"{cfg.path}: run {cfg.run}, seed {cfg.seed}, in {cfg.run_dir}")
    validation = f", {data.validation_prompts} for validation" if data.validation_prompts else ""
    console.say(f"data: {data.rows} rows, {data.train_prompts} prompts to train on, {data.heldout_prompts} held out"
                f"{validation}")  # fmt: skip
    for line in cautions(cfg, data.heldout_prompts):
        console.say(f"  {line}")
    limit = cfg.prompts.max_prompt_tokens
    dropped = f"; {data.dropped:.1%} dropped: longer than prompts.max_prompt_tokens {limit}" if limit else ""
    console.say(f"  prompt tokens: mean {mean:.1f}, 95% up to {high}, longest {longest}{dropped}")
    if data.completion_tokens is not None:
        mean, high, longest = data.completion_tokens
        console.say(f"  demonstrations: mean {mean:.1f} tokens, 95% up to {high}, longest {longest}; "
                    f"{data.truncated:.1%} longer than sampling.max_tokens {cfg.sampling.max_tokens}")  # fmt: skip
    console.show_table(rows_of(plan),
                       ["stage", "why", "steps", "batch", "samples", "tokens sampled", "memory", "time"])  # fmt: skip
    sources = sorted({f"{w.source} ({w.name})" for w in plan.works if w.samples})
    if sources:
        console.say("  mean length of samples from: " + ", ".join(sources))
    if trial is not None:
        _show_memory(plan)
        todo = console.clock(sum(s for name, s in plan.seconds.items() if plan.stale[name] is not None))
        console.say(f"time: {todo} for what is stale, {console.clock(sum(plan.seconds.values()))} in all, at "
                    f"{trial.sampled_per_s:,.0f} tokens/s sampled by {trial.generator} and "
                    f"{trial.learned_per_s:,.0f} tokens/s learned")  # fmt: skip
    if plan.tools:
        console.say(plan.tools)
    data_plan.show(plan.examples)


def tools_line(cfg: Config, tokenizer: Any) -> str:
    """The tools of the run by name, and the format in which calls are read; empty without tools."""
    if cfg.tools is None:
        return ""
    tools = cfg.tools
    environment = [tools.environment.rpartition(":")[2]] if tools.environment else []
    names = [*tools.use, *environment, *(f"MCP server {name}" for name in tools.mcp)]
    call_format = tools.format or recognised_format(tokenizer.chat_template or "")
    return f"tools: {', '.join(names)}; calls are read as {call_format}" if names and call_format else ""


def cautions(cfg: Config, heldout: int) -> list[str]:
    """What makes the figures of this run say less than they seem to."""
    out = []
    if 0 < heldout < FEW_PROMPTS:
        few = "prompt is" if heldout == 1 else "prompts are"
        out.append(f"{heldout} held-out {few} too few to tell policies apart; raise prompts.heldout, or name a "
                   "file by prompts.heldout_path")  # fmt: skip
    if not rewards.judges_answers(cfg.rewards, cfg.verifier_dirs):
        out.append("rewards: no part says right or wrong, so policies are compared by their mean reward")
    return out


def rows_of(plan: Plan) -> list[dict[str, Any]]:
    """One table row per stage."""
    return [_row(work, plan) for work in plan.works]


def _row(work: Work, plan: Plan) -> dict[str, Any]:
    memory = plan.memory.get(work.name)
    least = "≤ " if work.at_most else ""
    return {
        "stage": work.name,
        "why": plan.stale[work.name] or "up to date",
        "steps": f"{least}{work.steps}" if work.steps else "",
        "batch": work.batch or "",
        "samples": f"{work.samples:,}" if work.samples else "",
        "tokens sampled": f"{work.tokens:,}" if work.samples else "",
        "memory": f"{memory.total / MIB:,.0f} MiB" if memory else "",
        "time": console.clock(plan.seconds[work.name]) if work.name in plan.seconds else "",
    }


def _show_memory(plan: Plan) -> None:
    name, peak = max(plan.memory.items(), key=lambda item: item[1].total)
    parts = ", ".join(f"{part} {size / MIB:,.1f}" for part, size in peak.parts.items())
    console.say(f"memory: {peak.total / MIB:,.0f} MiB at most, in {name}; by part in MiB: {parts}")
