"""Checks of a run beyond its keys, made before torch is imported: data, verifiers, models, directories.

Every check returns lines and none raises, so that `plan` lists all mistakes and `run` stops on them within a second.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import rewards
import verifiers
from pipeline.config import stage_graph
from pipeline.config.errors import LineageError
from pipeline.config.load import Config, ConfigError, nearest
from pipeline.config.mistakes import beside_yaml, near_path
from pipeline.config.registry import policies_before
from pipeline.config.schema import KINDS, Policy, Prompts, trains_adapter
from pipeline.config.stage_graph import references, reward_dirs, strict_of
from pipeline.credit import selection
from pipeline.data import prompts, sample_pool
from pipeline.data.tool_schemas import ToolSet
from pipeline.distributed.notices import notice
from pipeline.generation.program_runs import program_mistakes
from pipeline.models import families
from pipeline.models.model_dir import fault, is_local
from pipeline.plan import prompt_checks
from pipeline.plan.data_checks import data_mistakes, faults_of, hub_answers, imitates_prompts, rows_of
from pipeline.run import trackers
from pipeline.run.manifest import verified_manifest
from pipeline.run.stage_dir import StageDir

TRIED_ROWS = 100  # whose columns a reward function is tried with


def check(cfg: Config, stages: Sequence[str] | None = None) -> None:
    """Raise ConfigError with every mistake that prevents these stages from running; None: all stages of the YAML."""
    found = mistakes(cfg, stages)
    if found:
        raise ConfigError(found)


def mistakes(cfg: Config, stages: Sequence[str] | None = None) -> list[str]:
    """Mistakes of these stages; for a comparison, of everything that it would run."""
    names = list(stages if stages is not None else cfg.stages)
    compared = [name for name in names if cfg.blocks[name].kind == "compare"]
    lines = [line for name in compared for line in comparison_mistakes(cfg, name)]
    for name in (name for name in names if cfg.blocks[name].kind == "time_to_target"):
        lines += comparison_mistakes(cfg, name)
    if not compared or len(compared) < len(names):
        lines += chain_mistakes(cfg, names, alone=stages is not None)
    return list(dict.fromkeys(lines))


def comparison_mistakes(cfg: Config, name: str) -> list[str]:
    """Mistakes of all parts of a comparison or of time_to_target, as one chain in an order in which they can run."""
    try:
        (stage_graph.check if cfg.block(name).kind == "compare" else stage_graph.target_check)(cfg, name)
    except ConfigError as exc:
        return list(exc.mistakes)
    return chain_mistakes(cfg, stage_graph.stages_of(cfg, name), alone=False)


def chain_mistakes(cfg: Config, names: Sequence[str], *, alone: bool) -> list[str]:
    """Mistakes of stages that run one after another. alone: a single stage runs, so its parents must be complete."""
    lines = [] if names else ["stages: name at least one stage to run"]
    lines += place_mistakes(cfg)
    lines += trackers.missing(cfg)
    lines += model_mistakes(cfg, names)
    lines += reward_mistakes(cfg, names)
    if cfg.tools is not None:
        lines += faults_of("tools", partial(ToolSet, cfg.tools, path=cfg.path))
    if cfg.program is not None:
        lines += program_mistakes(cfg.program.command)
    lines += prompt_checks.label_mistakes(cfg)
    imitated = any(imitates_prompts(cfg.blocks[name]) for name in names)
    read: list[tuple[Prompts, Sequence[prompts.Row]]] = []
    for source in cfg.prompts.sources or [None]:
        own = cfg.prompts if source is None else cfg.prompts.of_source(source)
        lines += data_mistakes(
            cfg, own, "prompts" if source is None else f"prompts.sources.{source}", _required(cfg, names, source),
            completions=imitated, parts=_parts_of_tasks(cfg, names, source), kept=read,
        )  # fmt: skip
    for number, name in enumerate(names):
        block = cfg.blocks[name]
        lines += reference_mistakes(cfg, name, names[:number], alone=alone)
        lines += pool_mistakes(cfg, name, names[:number], alone=alone)
        if isinstance(block, Policy) and cfg.generate.backend == "ray":
            lines.append(f"generate.backend: ray starts its engines again for each batch, and {name} would wait for "
                         "that in every step; give vllm_server")  # fmt: skip
        if getattr(block, "filters", None):
            lines += faults_of(f"{name}.filters", partial(selection.parse, block.filters))
        if isinstance(getattr(block, "ptx_data", None), Prompts):
            lines += data_mistakes(cfg, block.ptx_data, f"{name}.ptx_data", {}, completions=True)
        if isinstance(getattr(block, "data", None), Prompts):
            preference = ("chosen", "rejected") if KINDS[block.kind].reads_pairs else ()
            lines += data_mistakes(cfg, block.data, f"{name}.data", {}, completions=not preference, columns=preference)
    if not lines:
        lines = prompt_checks.context_mistakes(cfg, prompt_checks.longest_prompt(cfg, read))
    return [line if line.startswith(f"{cfg.path}: ") else f"{cfg.path}: {line}" for line in dict.fromkeys(lines)]


def place_mistakes(cfg: Config) -> list[str]:
    """Check that the run directory can be created and written."""
    closed = f"{cfg.run_dir} may not be written; fix its permissions, or choose another with runs_dir=..."
    try:
        directory = next(p for p in (cfg.run_dir, *cfg.run_dir.parents, Path.cwd()) if p.exists())
    except PermissionError:
        return [f"runs_dir: {closed}"]
    if not directory.is_dir():
        return [f"runs_dir: {directory} is a file; choose another with runs_dir=..."]
    if not os.access(directory, os.W_OK | os.X_OK):
        return [f"runs_dir: {closed}"]
    return []


# --- models --------------------------------------------------------------------------------------------------------


def model_mistakes(cfg: Config, names: Sequence[str]) -> list[str]:
    lines = []
    if cfg.model.path is not None:
        found = fault(cfg.model.path) or _hub_fault(cfg.model.path)
        lines += [f"model.path: {found}"] if found else family_mistakes(cfg, names)
    template = cfg.model.chat_template
    if template is not None and template.endswith((".jinja", ".j2", ".txt")) and not Path(template).is_file():
        hint = near_path(template) or beside_yaml(cfg.path, template)
        lines.append(f"model.chat_template: {template} does not exist{hint}")
    return lines


def family_mistakes(cfg: Config, names: Sequence[str]) -> list[str]:
    """What config.json alone rules out: this model, or LoRA with the stages' settings."""
    config = families.read_config(cfg.model.path or "")
    adapted = [name for name in names if trains_adapter(cfg.blocks[name])]
    lines = [f"{name}.peft.{line}" for name in adapted for line in families.lora_mistakes(cfg.blocks[name].peft)]
    if config is None:
        return lines
    quantization = cfg.model.quantization if adapted else None
    lines += [f"model.path: {line}" for line in families.mistakes(config, quantization=quantization)]
    return lines + [f"{name}.peft.{line}" for name in adapted
                    for line in families.tied_mistakes(config, cfg.blocks[name].peft)]  # fmt: skip


def _hub_fault(path: str) -> str | None:
    """Why a Hub id cannot be read: not a valid id, or the Hub is unreachable and there is no local copy."""
    if is_local(path):
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        here = isinstance(try_to_load_from_cache(path, "config.json"), str)
    except HFValidationError:
        return f"{path!r} is neither a directory nor a Hub id (owner/name){near_path(path)}"
    if here or hub_answers():
        return None
    fix = near_path(path) or "; give a local directory, or fix the network"
    return f"{path!r} is not in the local cache and the Hub does not answer{fix}"


def reference_mistakes(cfg: Config, name: str, before: Sequence[str], *, alone: bool) -> list[str]:
    """Check that every model a stage refers to is a stage that is complete or runs earlier, or a model directory.

    alone: only this stage runs, so its parents must be complete and unchanged.
    """
    lines = []
    block = cfg.blocks[name]
    if block.kind == "evaluate" and not (block.policies or policies_before(cfg, name)):
        lines.append(f"{name}.policies: no policy stage comes before this one; move it behind one, or name some")
    for key, reference in references(cfg, name):
        stage = reference.partition("/")[0]
        of_the_run = key.startswith("rewards.")
        where = key if of_the_run else f"{name}.{key}"
        if stage in cfg.blocks:
            if of_the_run and stage not in before and _parent_fault(cfg, where, stage, alone=alone):
                lines.append(f"{where}: stage {stage!r} is not complete in {cfg.run_dir}, and {name} is scored by it; "
                             f"name a saved model, or give {stage} in the `reward` of the stages after it")  # fmt: skip
            elif of_the_run:
                continue
            elif stage == name:
                lines.append(f"{where}: {name} cannot start from itself")
            elif stage not in before:
                lines += _parent_fault(cfg, where, stage, alone=alone)
        elif "/" in reference or is_local(reference):
            found = fault(reference) or (None if is_local(reference) else _hub_fault(reference))
            lines += [f"{where}: {found}"] if found else []
        elif reference != "model" or cfg.model.path is None:
            lines.append(f"{where}: {reference!r} is neither a stage of this YAML nor a model"
                         f"{nearest(reference, cfg.blocks)}")  # fmt: skip
    return lines


def pool_mistakes(cfg: Config, name: str, before: Sequence[str], *, alone: bool) -> list[str]:
    """Check that every pool of scored samples is a stage that is complete or runs earlier, or a file of such rows."""
    where = f"{name}.pool"
    lines, counts = list[str](), list[sample_pool.RowCounts]()
    references = getattr(cfg.blocks[name], "pool", None) or []
    for reference in references:
        if reference in cfg.blocks:
            lines += [] if reference in before else _parent_fault(cfg, where, reference, alone=alone)
        elif not Path(reference).is_file():
            hint = near_path(reference) or beside_yaml(cfg.path, reference) or nearest(reference, cfg.blocks)
            lines.append(f"{where}: {reference!r} is neither a stage of this YAML nor a file of scored samples{hint}")
        else:
            found = faults_of(where, lambda r=reference: counts.append(_counted(r, cfg.prompts, where)))  # type: ignore[misc]
            lines += [line if line.startswith(where) else f"{where}: {line}" for line in found]
    if not lines and counts and len(counts) == len(references) and not any(each.scored for each in counts):
        lines.append(f"{where}: no row of {', '.join(references)} has a score, so there is nothing to train on; "
                     f"give ratings in a column {' or '.join(sample_pool.SCORES)}")  # fmt: skip
    return lines


def _counted(reference: str, source: Prompts, where: str) -> sample_pool.RowCounts:
    """Rows of a file, read as the stage reads them, and a line that says how many count. Raises ConfigError."""
    counts = sample_pool.count_rows(Path(reference), source)
    notice(f"{where}: {counts.scored} of {counts.rows} rows of {reference} have a score, in the column "
           f"{' or '.join(counts.columns)}; those of held-out prompts are left out of them")  # fmt: skip
    return counts


def _parent_fault(cfg: Config, where: str, stage: str, *, alone: bool) -> list[str]:
    parent = StageDir(cfg.run_dir, stage)
    try:
        verified_manifest(parent.path)
    except LineageError as exc:
        if parent.manifest_path.is_file():
            return [str(exc)]
        order = f"run it first: python -m pipeline {stage} {cfg.path}" if alone else f"put {stage} before it in stages"
        return [f"{where}: stage {stage!r} is not complete in {cfg.run_dir}; {order}"]
    return []


# --- rewards -------------------------------------------------------------------------------------------------------


def _required(cfg: Config, names: Sequence[str], source: str | None) -> dict[str, frozenset[str]]:
    """Verifier name -> fields its tasks must have, for the rewards of the run and of its stages. source: of
    prompts.sources, if there are several."""
    out: dict[str, frozenset[str]] = {}
    for block in (rewards.parts_for(block, source) for block in _readable_blocks(cfg, names).values()):
        out |= rewards.fields_needed(block, cfg.verifier_dirs, reward_dirs(cfg))
    return out


def _parts_of_tasks(cfg: Config, names: Sequence[str], source: str | None) -> dict[str, Mapping[str, Any]]:
    """Verifier or `by_task` -> the reward part that reads the rows' tasks. source: as in _required."""
    out: dict[str, Mapping[str, Any]] = {}
    for block in (rewards.parts_for(block, source) for block in _readable_blocks(cfg, names).values()):
        out |= {verifier.name: fields for _, verifier, fields in rewards.verifiers_of(block, cfg.verifier_dirs)}
        for fields in block.values():
            if (fields or {}).get("verifier") == "by_task":
                out["by_task"] = fields
    return out


def _reward_blocks(cfg: Config, names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Key -> block, for every reward block that would be used."""
    blocks: dict[str, Mapping[str, Any]] = {"rewards": cfg.rewards}
    for name in names:
        blocks[f"{name}.reward"] = getattr(cfg.blocks[name], "reward", None) or {}
        blocks[f"{name}.monitor.strict"] = strict_of(cfg.blocks[name])
    return blocks


def _readable_blocks(cfg: Config, names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """The reward blocks whose verifiers and graders can be loaded; `reward_mistakes` reports the others."""
    return {
        where: block for where, block in _reward_blocks(cfg, names).items()
        if not faults_of(where, partial(rewards.fields_needed, block, cfg.verifier_dirs, reward_dirs(cfg)))
    }  # fmt: skip


def reward_mistakes(cfg: Config, names: Sequence[str]) -> list[str]:
    """Mistakes of every reward block that would be used, and of the files of verifiers that it names."""
    if lines := faults_of("verifier_dirs", partial(verifiers.available, cfg.verifier_dirs)):
        return lines
    for where, block in _reward_blocks(cfg, names).items():
        lines += _reward_mistakes(where, block, cfg) if block or where == "rewards" else []
    return lines + away_mistakes(cfg, names)


def away_mistakes(cfg: Config, names: Sequence[str]) -> list[str]:
    """Verifiers that cannot run on this machine, each with its fix; otherwise every row would end as an error."""
    lines = []
    for where, block in _readable_blocks(cfg, names).items():
        for part, verifier, fields in rewards.verifiers_of(block, cfg.verifier_dirs):
            given = {**(fields.get("fields") or {}), **(fields.get("task") or {})}
            lines += faults_of(f"{where}.{part}", partial(_ask_whether_it_runs, verifier, given, cfg))
    return lines


def _ask_whether_it_runs(verifier: verifiers.Verifier, given: Mapping[str, Any], cfg: Config) -> None:
    why = verifier.unavailable(given)
    if why and verifier.unavailable({**_first_task(cfg), **given}):
        raise ValueError(f"{verifier.name} cannot run here: {' '.join(why.split())}")


def _first_task(cfg: Config) -> dict[str, Any]:
    """The first row's task; mistakes in the data are reported elsewhere."""
    return next(iter(_first_tasks(cfg, 1)), {})


def _first_tasks(cfg: Config, count: int) -> list[dict[str, Any]]:
    source, tasks = replace(cfg.prompts, rows=count), list[dict[str, Any]]()
    faults_of("prompts", lambda: tasks.extend(
        prompts.task_of(row, source, number=i) for i, row in enumerate(rows_of(cfg, source, "prompts"), 1)
    ))  # fmt: skip
    return tasks


def _reward_mistakes(where: str, block: Mapping[str, Any], cfg: Config) -> list[str]:
    def build() -> None:
        built = rewards.build(
            block, verifier_dirs=cfg.verifier_dirs, reward_dirs=reward_dirs(cfg), learned=lambda reference: _no_reward
        )
        with closing(built):
            _try_functions(built, where, block, cfg)

    return [line.replace(f"{where}: rewards.", f"{where}.", 1) for line in faults_of(where, build)]


def _try_functions(built: rewards.Composite, where: str, block: Mapping[str, Any], cfg: Config) -> None:
    """Raises ValueError for a reward function that can score no row. Columns of episodes are unknown before a run."""
    names = {name for name, fields in rewards.parts_for(block, None).items() if fields.get("kind") == "function"}
    episodes = cfg.tools is not None or cfg.program is not None
    tasks = [] if not names or episodes or cfg.prompts.sources else _first_tasks(cfg, TRIED_ROWS)
    if not tasks:
        return
    columns = {name: value for task in reversed(tasks) for name, value in task.items()}
    try:
        raised = built.try_functions(names, columns)
    except ValueError as exc:
        raise ValueError(f"rewards.{exc}") from None
    for line in raised:
        notice(f"{where}.{line}, for a made-up completion; a row for which it raises has no score")


def _no_reward(prompt_ids: list[list[int]], completion_ids: list[list[int]]) -> list[float]:
    raise AssertionError("a check scores nothing")
