"""What can be wrong with a run besides its keys, found before torch is imported: data, verifiers, models, places.

Every check gives lines and none raises, so that `plan` lists all mistakes and `run` stops on them within a second.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import rewards
import verifiers
from pipeline.config import stage_graph
from pipeline.config.library_fields import nearest
from pipeline.config.load import Config, ConfigError
from pipeline.config.schema import Policy, Prompts
from pipeline.config.stage_graph import references, strict_of
from pipeline.credit import selection
from pipeline.data import prompts
from pipeline.models.model_dir import fault, is_local
from pipeline.run.stage_dir import LineageError, StageDir, verify_outputs

TOLD = 3  # rows told of one fault before the rest is counted


def check(cfg: Config, stages: Sequence[str] | None = None) -> None:
    """Raises ConfigError with every mistake that stands in the way of these stages; None: all the YAML names."""
    found = mistakes(cfg, stages)
    if found:
        raise ConfigError(found)


def mistakes(cfg: Config, stages: Sequence[str] | None = None) -> list[str]:
    """Of these stages; of a comparison, of all that it would run."""
    names = list(stages if stages is not None else cfg.stages)
    compared = [name for name in names if cfg.blocks[name].kind == "compare"]
    lines = [line for name in compared for line in comparison_mistakes(cfg, name)]
    if not compared or len(compared) < len(names):
        lines += chain_mistakes(cfg, names, alone=stages is not None)
    return list(dict.fromkeys(lines))


def comparison_mistakes(cfg: Config, name: str) -> list[str]:
    """Of all its parts, as one chain in the order in which they may run."""
    try:
        stage_graph.check(cfg, name)
    except ConfigError as exc:
        return list(exc.mistakes)
    return chain_mistakes(cfg, stage_graph.stages_of(cfg, name), alone=False)


def chain_mistakes(cfg: Config, names: Sequence[str], *, alone: bool) -> list[str]:
    """Of stages that run one after another. alone: one runs by itself, so its parents must be complete."""
    lines = [] if names else ["stages: name at least one stage to run"]
    lines += place_mistakes(cfg)
    lines += model_mistakes(cfg, names)
    lines += _reward_mistakes("rewards", cfg.rewards, cfg)
    lines += away_mistakes(cfg, names)
    lines += data_mistakes(
        cfg, cfg.prompts, "prompts", _required(cfg, names), completions=_imitates_prompts(cfg, names)
    )
    for number, name in enumerate(names):
        block = cfg.blocks[name]
        lines += reference_mistakes(cfg, name, names[:number], alone=alone)
        lines += pool_mistakes(cfg, name, names[:number], alone=alone)
        if isinstance(block, Policy) and cfg.generate.backend == "ray":
            lines.append(f"generate.backend: ray starts its engines anew for each batch, and {name} would wait for "
                         "that in every step; give vllm_server")  # fmt: skip
        if getattr(block, "reward", None):
            lines += _reward_mistakes(f"{name}.reward", block.reward, cfg)
        if strict_of(block):
            lines += _reward_mistakes(f"{name}.monitor.strict", strict_of(block), cfg)
        if getattr(block, "filters", None):
            lines += _told(f"{name}.filters", partial(selection.parse, block.filters))
        if isinstance(getattr(block, "ptx_data", None), Prompts):
            lines += data_mistakes(cfg, block.ptx_data, f"{name}.ptx_data", {}, completions=True)
        if isinstance(getattr(block, "data", None), Prompts):
            preference = ("chosen", "rejected") if block.kind == "reward_model" else ()
            lines += data_mistakes(cfg, block.data, f"{name}.data", {}, completions=not preference, columns=preference)
    return [line if line.startswith(f"{cfg.path}: ") else f"{cfg.path}: {line}" for line in dict.fromkeys(lines)]


def place_mistakes(cfg: Config) -> list[str]:
    """The run directory can be made and written."""
    closed = f"{cfg.run_dir} may not be written; mend its permissions, or choose another with runs_dir=..."
    try:
        place = next(p for p in (cfg.run_dir, *cfg.run_dir.parents, Path.cwd()) if p.exists())
    except PermissionError:
        return [f"runs_dir: {closed}"]
    if not place.is_dir():
        return [f"runs_dir: {place} is a file; choose another with runs_dir=..."]
    if not os.access(place, os.W_OK | os.X_OK):
        return [f"runs_dir: {closed}"]
    return []


# --- models --------------------------------------------------------------------------------------------------------


def model_mistakes(cfg: Config, names: Sequence[str]) -> list[str]:
    lines = []
    if cfg.model.path is not None:
        found = fault(cfg.model.path) or _hub_fault(cfg.model.path)
        lines += [f"model.path: {found}"] if found else []
    template = cfg.model.chat_template
    if template is not None and template.endswith((".jinja", ".j2", ".txt")) and not Path(template).is_file():
        lines.append(f"model.chat_template: {template} does not exist")
    return lines


def _hub_fault(path: str) -> str | None:
    """What keeps a Hub id from being read: a name that is none, or a Hub that is away and no copy here."""
    if is_local(path):
        return None
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        here = isinstance(try_to_load_from_cache(path, "config.json"), str)
    except HFValidationError:
        return f"{path!r} is neither a directory nor a Hub id (owner/name)"
    if here or hub_answers():
        return None
    return (
        f"{path!r} is not in the local cache and the Hub does not answer; give a local directory, or mend the network"
    )


def hub_answers(timeout_s: float = 3.0) -> bool:
    """Whether the Hub can be reached at all; where not, the process is told to use its cache and not to wait for it."""
    import socket
    from urllib.parse import urlsplit

    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return False
    address = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((address.hostname or "", address.port or 443), timeout_s).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"  # an unreachable Hub costs most of a minute a look-up
        return False
    return True


def reference_mistakes(cfg: Config, name: str, before: Sequence[str], *, alone: bool) -> list[str]:
    """Every model a stage starts from is a stage that is complete or runs before it, or a directory with a model.

    alone: the stage runs by itself, so its parents must be complete and unaltered.
    """
    lines = []
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
    """Every pool of scored samples is a stage that is complete or runs before it, or a file."""
    lines = []
    for reference in getattr(cfg.blocks[name], "pool", None) or []:
        where = f"{name}.pool"
        if reference in cfg.blocks:
            lines += [] if reference in before else _parent_fault(cfg, where, reference, alone=alone)
        elif not Path(reference).is_file():
            lines.append(f"{where}: {reference!r} is neither a stage of this YAML nor a file of scored samples"
                         f"{nearest(reference, cfg.blocks)}")  # fmt: skip
    return lines


def _parent_fault(cfg: Config, where: str, stage: str, *, alone: bool) -> list[str]:
    parent = StageDir(cfg.run_dir, stage)
    try:
        verify_outputs(parent)
    except LineageError as exc:
        if parent.manifest_path.is_file():
            return [str(exc)]
        order = f"run it first: python -m pipeline {stage} {cfg.path}" if alone else f"put {stage} before it in stages"
        return [f"{where}: stage {stage!r} is not complete in {cfg.run_dir}; {order}"]
    return []


# --- data ----------------------------------------------------------------------------------------------------------


def data_mistakes(
    cfg: Config,
    source: Prompts,
    where: str,
    required: Mapping[str, frozenset[str]],
    *,
    completions: bool,
    columns: Sequence[str] = (),
) -> list[str]:
    """The rows can be read, have the columns that are asked for, and leave something to train and to judge on."""
    rows: list[prompts.Row] = []
    named: list[prompts.Row] = []
    dirs = cfg.verifier_dirs
    lines = _told(where, lambda: rows.extend(_rows(cfg, source, where))) or _told(
        where, lambda: named.extend(prompts.named_heldout(source, seed=cfg.seed, where=where, dirs=dirs))
    )
    if not lines:
        lines = _faults(rows, source, where, required, completions=completions, columns=columns)
    if not lines and named:
        lines = _faults(named, prompts.named_source(source), f"{where}.heldout_path", required)
    return lines or _told(where, lambda: _split_faults(rows, named, source, where))


def _rows(cfg: Config, source: Prompts, where: str) -> list[prompts.Row]:
    if source.path and not source.procedural and not Path(source.path).exists() and not _is_file_name(source.path):
        found = None if hub_answers() or _cached_data(source.path) else "the Hub does not answer"
        if found:
            raise ConfigError([f"{where}.path: {source.path!r} is no local file and {found}"])
    return prompts.load_rows(source, seed=cfg.seed, where=where, dirs=cfg.verifier_dirs)


def _is_file_name(path: str) -> bool:
    return Path(path).suffix in (".jsonl", ".json", ".parquet")


def _cached_data(path: str) -> bool:
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    return (home / "datasets" / path.replace("/", "___")).exists() or (
        home / "hub" / f"datasets--{path.replace('/', '--')}"
    ).exists()


def _faults(
    rows: Sequence[prompts.Row], source: Prompts, where: str, required: Mapping[str, frozenset[str]], *,
    completions: bool = False, columns: Sequence[str] = (),
) -> list[str]:  # fmt: skip
    """What rows lack, the first few of it. One row stands for all where no column is asked for but the prompt's."""
    simple = source.template is None and source.task is None and not completions and not columns and not required
    faults: list[str] = []
    for number, row in enumerate(rows[:1] if simple else rows, 1):
        faults += _row_faults(row, number, source, where, required, completions=completions, columns=columns)
        if len(faults) > 50:
            break
    return faults[:TOLD] + ([f"{where}: more rows have such faults"] if len(faults) > TOLD else [])


def _row_faults(
    row: prompts.Row, number: int, source: Prompts, where: str, required: Mapping[str, frozenset[str]], *,
    completions: bool, columns: Sequence[str],
) -> list[str]:  # fmt: skip
    lines = _told(where, lambda: prompts.prompt_text(row, source, number=number, where=where))
    if lines:
        return lines
    of = source.path or source.procedural
    lines += [f"{where}: row {number} of {of} has no column {c!r}{nearest(c, row)}" for c in columns if c not in row]
    if completions:
        lines += _told(where, lambda: prompts.completion_value(row, source, number=number, where=where))
    if required:
        task: dict[str, Any] = {}
        lines += _told(where, lambda: task.update(prompts.task_of(row, source, number=number)))
        if not lines:
            for name, needed in required.items():
                for missing in sorted(needed - task.keys()):
                    lines.append(f"{where}: row {number} of {of} has no field {missing!r}, which verifier {name!r} "
                                 f"needs{nearest(missing, task)}; map it in prompts.task")  # fmt: skip
    return lines


def _split_faults(rows: Sequence[prompts.Row], named: Sequence[prompts.Row], source: Prompts, where: str) -> None:
    parts = prompts.split(rows, source, where=where, heldout=named)
    if not parts.train:
        raise ConfigError([f"{where}.heldout: no row left to train on; all {len(rows)} are held out"])
    if where == "prompts" and not parts.heldout:
        raise ConfigError([f"{where}.heldout: none of the {len(rows)} rows is held out, so nothing can be judged; "
                           "raise the share, or give heldout_path"])  # fmt: skip


def _imitates_prompts(cfg: Config, names: Sequence[str]) -> bool:
    """Whether a stage imitates the completions of the run's own prompts."""
    return any(_imitates(cfg.blocks[name]) for name in names)


def _imitates(block: Any) -> bool:
    if isinstance(block, Policy):
        return block.loss.ptx_coef > 0 and block.ptx_data is None
    if block.kind == "sft":
        return block.data is None
    return getattr(block, "demonstrations", 0) > 0 or getattr(block, "sft_share", 0) > 0


# --- rewards -------------------------------------------------------------------------------------------------------


def _required(cfg: Config, names: Sequence[str]) -> dict[str, frozenset[str]]:
    """Verifier name -> fields its tasks must have, over the run's rewards and those of its stages."""
    out: dict[str, frozenset[str]] = {}
    for block in _reward_blocks(cfg, names).values():
        out |= rewards.fields_needed(block, cfg.verifier_dirs)
    return out


def _reward_blocks(cfg: Config, names: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    """Key -> block, of all that would be scored by."""
    blocks: dict[str, Mapping[str, Any]] = {"rewards": cfg.rewards}
    for name in names:
        blocks[f"{name}.reward"] = getattr(cfg.blocks[name], "reward", None) or {}
        blocks[f"{name}.monitor.strict"] = strict_of(cfg.blocks[name])
    return blocks


def away_mistakes(cfg: Config, names: Sequence[str]) -> list[str]:
    """Verifiers that cannot run on this machine, each with the mend: else every row would end as an error."""
    lines = []
    for where, block in _reward_blocks(cfg, names).items():
        for part, verifier, fields in rewards.verifiers_of(block, cfg.verifier_dirs):
            given = {**(fields.get("fields") or {}), **(fields.get("task") or {})}
            lines += _told(f"{where}.{part}", partial(_ask_whether_it_runs, verifier, given, cfg))
    return lines


def _ask_whether_it_runs(verifier: verifiers.Verifier, given: Mapping[str, Any], cfg: Config) -> None:
    why = verifier.unavailable(given)
    if why and verifier.unavailable({**_first_task(cfg), **given}):
        raise ValueError(f"{verifier.name} cannot run here: {' '.join(why.split())}")


def _first_task(cfg: Config) -> dict[str, Any]:
    """The first row's task; what is wrong with the data is told elsewhere."""
    task: dict[str, Any] = {}
    _told("prompts", lambda: task.update(
        prompts.task_of(_rows(cfg, replace(cfg.prompts, rows=1), "prompts")[0], cfg.prompts, number=1)
    ))  # fmt: skip
    return task


def _reward_mistakes(where: str, block: Mapping[str, Any], cfg: Config) -> list[str]:
    lines = _told(
        where,
        lambda: rewards.build(block, verifier_dirs=cfg.verifier_dirs, learned=lambda reference: _no_reward).close(),
    )
    return [line.replace(f"{where}: rewards.", f"{where}.", 1) for line in lines]


def _no_reward(prompt_ids: list[list[int]], completion_ids: list[list[int]]) -> list[float]:
    raise AssertionError("a check scores nothing")


def _told(where: str, attempt: Callable[[], Any]) -> list[str]:
    """The lines of what goes wrong, each with its key."""
    try:
        attempt()
    except ConfigError as exc:
        return list(exc.mistakes)
    except (UnicodeDecodeError, json.JSONDecodeError) as exc:
        return [f"{where}: not readable: {' '.join(str(exc).split())}"]
    except (ValueError, TypeError, OSError, KeyError, AttributeError) as exc:
        # data sets, verifiers and reward functions are other people's: what they raise is told, not thrown
        text = " ".join(str(exc).split()) or type(exc).__name__
        return [text if text.startswith(where) else f"{where}: {text}"]
    return []
