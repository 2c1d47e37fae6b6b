"""Checks of a run's data, made before torch is imported. Every check returns lines and none raises."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

import verifiers
from pipeline.config.library_fields import nearest
from pipeline.config.load import Config, ConfigError
from pipeline.config.mistakes import beside_yaml
from pipeline.config.schema import Policy, Prompts
from pipeline.data import columns, prompts
from pipeline.data.prompt_keys import prompt_keys
from pipeline.distributed.notices import notice
from pipeline.plan import prompt_checks

REPORTED = 3  # rows listed for one fault; the rest is counted
SAMPLED = 500  # rows whose golds are checked
Required = Mapping[str, frozenset[str]]  # verifier -> fields its tasks must have


def data_mistakes(
    cfg: Config, source: Prompts, where: str, required: Required, *, completions: bool, columns: Sequence[str] = (),
    parts: Mapping[str, Mapping[str, Any]] | None = None,
    kept: list[tuple[Prompts, Sequence[prompts.Row]]] | None = None,
) -> list[str]:  # fmt: skip
    """Check that the rows can be read, have the needed columns, and leave something to train and evaluate on.

    parts: verifier or `by_task` -> the reward part that reads the rows' tasks, used to check their golds.
    kept: receives the source with its rows, for a further check.
    """
    read: list[Sequence[prompts.Row]] = []
    dirs = cfg.verifier_dirs
    lines = misplaced(cfg, source, where) or faults_of(where, lambda: read.append(rows_of(cfg, source, where)))
    lines = lines or faults_of(
        where, lambda: read.append(prompts.named_heldout(source, seed=cfg.seed, where=where, dirs=dirs))
    )
    if lines:
        return lines
    rows, named = read
    if kept is not None:
        kept.append((source, rows))
    try:
        lines = _faults(rows, source, where, required, completions=completions, columns=columns)
        lines = lines or gold_mistakes(rows, source, where, parts or {}, dirs)
        key, own = f"{where}.{prompts.heldout_key(source)}", prompts.named_source(source)
        lines = lines or _faults(named, own, key, required)
        lines = lines or prompt_checks.row_mistakes(cfg, rows, source, where, completions=completions, sides=columns)
        lines = lines or prompt_checks.row_mistakes(cfg, named, own, key)
    except ConfigError as exc:  # a line of a file that cannot be parsed, found when it is read
        return exc.mistakes
    if not lines and required:
        report_conflicts(rows, source, where, sorted({"gold"}.union(*required.values())))
    return lines or faults_of(where, lambda: _split_faults(rows, named, source, where))


def rows_of(cfg: Config, source: Prompts, where: str) -> Sequence[prompts.Row]:
    """Read the rows. A data set that is not local is reported at once if the Hub cannot be reached."""
    if source.path and not source.procedural and not Path(source.path).exists():
        away = not prompts.is_file_name(source.path) and not hub_answers() and not _cached_data(source.path)
        if away:
            raise ConfigError([f"{where}.path: {source.path!r} is no local file and the Hub does not answer"])
    return prompts.load_rows(source, seed=cfg.seed, where=where, dirs=cfg.verifier_dirs)


def misplaced(cfg: Config, source: Prompts, where: str) -> list[str]:
    """Files of rows that exist beside the YAML, but not from the directory of the command."""
    paths = {"path": None if source.procedural else source.path, "heldout_path": source.heldout_path}
    return [f"{where}.{key}: {path} does not exist{prompts.searched(Path(path))}{hint}" for key, path in paths.items()
            if path and not Path(path).exists() and (hint := beside_yaml(cfg.path, path))]  # fmt: skip


def hub_answers(timeout_s: float = 3.0) -> bool:
    """Whether the Hub can be reached; if not, sets this process to use the local cache without waiting for the Hub."""
    import socket
    from urllib.parse import urlsplit

    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return False
    address = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        socket.create_connection((address.hostname or "", address.port or 443), timeout_s).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"  # each look-up on an unreachable Hub takes most of a minute
        return False
    return True


def _cached_data(path: str) -> bool:
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface")).expanduser()
    return (home / "datasets" / path.replace("/", "___")).exists() or (
        home / "hub" / f"datasets--{path.replace('/', '--')}"
    ).exists()


# --- columns --------------------------------------------------------------------------------------------------------


def _faults(
    rows: Sequence[prompts.Row], source: Prompts, where: str, required: Required, *,
    completions: bool = False, columns: Sequence[str] = (),
) -> list[str]:  # fmt: skip
    """What the rows lack, limited to the first few faults."""
    faults: list[str] = []
    for number, row in enumerate(rows, 1):
        faults += _row_faults(row, number, source, where, required, completions=completions, needed_columns=columns)
        if len(faults) > 50:
            break
    if completions and not faults and not any(prompts.has_completion(row, source) for row in rows):
        faults.append(f"{where}.completion: no row of {source.label} holds an answer to imitate")
    return faults[:REPORTED] + ([f"{where}: more rows have such faults"] if len(faults) > REPORTED else [])


def _row_faults(
    row: prompts.Row, number: int, source: Prompts, where: str, required: Required, *,
    completions: bool, needed_columns: Sequence[str],
) -> list[str]:  # fmt: skip
    lines = faults_of(where, lambda: prompts.prompt_text(row, source, number=number, where=where))
    if lines:
        return lines
    at = columns.origin(row, number, source.label)
    for name in needed_columns:
        if name not in row:
            lines.append(f"{where}: {at} has no column {name!r}{nearest(name, row)}")
        else:
            lines += faults_of(f"{where}: {at}", lambda name=name: columns.text_or_messages(row[name], name))  # type: ignore[misc]
    if completions and not _only_a_prompt(row, source):
        lines += faults_of(where, lambda: prompts.completion_value(row, source, number=number, where=where))
    lines += faults_of(f"{where}: {at}", lambda: columns.tools_of(row))
    if required:
        task: dict[str, Any] = {}
        lines += faults_of(where, lambda: task.update(prompts.task_of(row, source, number=number)))
        if not lines:
            lines += _task_faults(task, at, where, required)
    return lines


def _only_a_prompt(row: prompts.Row, source: Prompts) -> bool:
    """Whether a stage skips and counts this row: labelled as bad, or a conversation that ends with a question."""
    labelled = row.get("imitate") is False
    return labelled or (source.completion not in row and "messages" in row)


def _task_faults(task: Mapping[str, Any], at: str, where: str, required: Required) -> list[str]:
    lines = []
    for name, needed in required.items():
        for field in sorted(needed):
            if field not in task:
                lines.append(f"{where}: {at} has no field {field!r}, which verifier {name!r} needs"
                             f"{nearest(field, task)}; map it in prompts.task")  # fmt: skip
            elif (reason := columns.unusable(task[field])) is not None:
                lines.append(f"{where}: {at}: field {field!r} {reason}, so verifier {name!r} can pass no answer; "
                             "fill it in, or remove the row")  # fmt: skip
    return lines


# --- golds ----------------------------------------------------------------------------------------------------------


def gold_mistakes(
    rows: Sequence[prompts.Row], source: Prompts, where: str, parts: Mapping[str, Mapping[str, Any]],
    dirs: Sequence[str],
) -> list[str]:  # fmt: skip
    """Check a sample of rows for golds that no answer can match.

    A gold of the wrong type is a mistake; an unreadable one is a line on stderr. Real data sets contain some golds that
    no grammar can read. They are graded as errors and masked, so some of them are reported without stopping a run; if
    no sampled gold is usable, that is a mistake.
    """
    step = max(len(rows) // SAMPLED, 1)
    sample = [(index + 1, rows[index]) for index in range(0, len(rows), step)]
    lines: list[str] = []
    known = verifiers.available(dirs) if parts else {}  # once: to look for the files takes longer than a row
    load = cache(partial(verifiers.load, directories=dirs))
    for verifier, part in parts.items():
        with verifiers.GoldCheck() as check:
            of_row = partial(_gold_fault, source=source, where=where, verifier=verifier, part=part, known=known,
                             load=load, check=check)  # fmt: skip
            faults = [fault for number, row in sample if (fault := of_row(row, number)) is not None]
        if not faults:
            continue
        lines += [f"{where}: {at}: {reason}" for at, reason, structured in faults if structured][:REPORTED]
        at, reason, _ = faults[0]
        line = (f"{where}: verifier {verifier!r} can pass no answer to {len(faults)} of {len(sample)} rows tried; "
                f"{at}: {reason}")  # fmt: skip
        if len(faults) == len(sample):
            lines = lines or [line]
        elif not lines:
            notice(f"{line}; {_golds_command(verifier, source)} lists them")
    return lines


def _golds_command(verifier: str, source: Prompts) -> str:
    """The command that checks every row, where it reads the file."""
    if verifier == "by_task" or not (source.path or "").endswith(".jsonl"):
        return "python -m verifiers golds"
    fields = "".join(f" --field {field}={column}" for field, column in (source.task or {}).items() if field != column)
    return f"python -m verifiers golds {source.path} {verifier}{fields}"


def _gold_fault(
    row: prompts.Row, number: int, *, source: Prompts, where: str, verifier: str, part: Mapping[str, Any],
    known: Iterable[str], load: Callable[[str], verifiers.Verifier], check: verifiers.GoldCheck,
) -> tuple[str, str, bool] | None:  # fmt: skip
    """(row, reason, whether the gold is a struct or list), with columns renamed and constants set as in the part; None
    where an answer can pass. known: names of verifiers. Raises ConfigError for a verifier that hangs."""
    task = {**prompts.task_of(row, source, number=number)}
    task |= {field: task[column] for field, column in (part.get("fields") or {}).items() if column in task}
    task |= part.get("task") or {}
    at = columns.origin(row, number, source.label)
    name = verifier
    if verifier == "by_task":
        name = str(task.get("verifier"))
        if name not in known:
            have = f"names {name!r}" if "verifier" in task else "has no field 'verifier'"
            return at, f"its task {have}; by_task needs the name of a verifier{nearest(name, known)}", True
    try:
        reason = check.fault(load(name), task)
    except ValueError as exc:
        raise ConfigError([f"{where}: {at}: {exc}"]) from None
    return None if reason is None else (at, reason, isinstance(task.get("gold"), Mapping | list))


def report_conflicts(rows: Sequence[prompts.Row], source: Prompts, where: str, fields: Sequence[str]) -> None:
    """Print a line that counts the prompts whose rows differ in these fields of their tasks."""
    hashes = prompt_keys(rows, source, where=where).hashes
    _, prompt, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    answers: dict[int, set[str]] = {}
    for index in map(int, np.flatnonzero(counts[prompt] > 1)):
        task = prompts.task_of(rows[index], source, number=index + 1)
        answers.setdefault(int(prompt[index]), set()).add(repr([task.get(name) for name in fields]))
    conflicts = sum(len(found) > 1 for found in answers.values())
    if conflicts:
        few = "prompt has" if conflicts == 1 else "prompts have"
        notice(f"{where}: {conflicts} {few} several rows whose answers differ ({', '.join(fields)}); the verifiers "
               "take that of the first row")  # fmt: skip


# --- splits ---------------------------------------------------------------------------------------------------------


def _split_faults(rows: Sequence[prompts.Row], named: Sequence[prompts.Row], source: Prompts, where: str) -> None:
    parts = prompts.split(rows, source, where=where, heldout=named)
    if not parts.train and len(named) and prompts.among(rows, named, source).all():
        key = prompts.heldout_key(source)
        raise ConfigError([f"{where}.{key}: no row left to train on: all {len(rows)} prompts are also in "
                           f"{source.heldout_path or source.heldout_split}; name other rows to evaluate on, or remove "
                           f"{key} to hold out a share"])  # fmt: skip
    if not parts.train:
        raise ConfigError([f"{where}.heldout: no row left to train on; all {len(rows)} are held out"])
    if source.validation and not parts.validation:
        raise ConfigError([f"{where}.validation: none of the {len(rows)} rows is in this share; raise it"])
    if where == "prompts" and not parts.heldout:
        raise ConfigError([f"{where}.heldout: none of the {len(rows)} rows is held out, so nothing can be evaluated; "
                           "raise the share, or give heldout_path"])  # fmt: skip


def imitates_prompts(block: Any) -> bool:
    """Whether a stage imitates the completions of the run's own prompts."""
    if isinstance(block, Policy):
        return block.loss.ptx_coef > 0 and block.ptx_data is None
    if block.kind == "sft":
        return block.data is None
    return getattr(block, "demonstrations", 0) > 0 or getattr(block, "sft_share", 0) > 0


PYTHON_WORDS = {"'NoneType' object": "null", "'dict' object": "a block of keys", "'list' object": "a list",
                "'str' object": "text", "'int' object": "a whole number", "'float' object": "a number",
                "'bool' object": "true or false"}  # fmt: skip


def plain(exc: Exception) -> str:
    """An error from third-party code in one line, without class names and links to library pages."""
    if isinstance(exc, ValidationError):
        found = exc.errors(include_url=False)
        return "; ".join(
            f"{'.'.join(map(str, each['loc']))}: {each['msg'][0].lower()}{each['msg'][1:]}" for each in found
        )
    if isinstance(exc, KeyError):
        return f"no key {exc.args[0]!r}" if exc.args else "a key is missing"
    text = " ".join(str(exc).split())
    for python, words in PYTHON_WORDS.items():
        text = text.replace(python, words)
    return text or "it failed without a message"


def faults_of(where: str, attempt: Callable[[], Any]) -> list[str]:
    """Run `attempt` and return a line with its key for each thing that goes wrong."""
    try:
        attempt()
    except ConfigError as exc:
        return list(exc.mistakes)
    except (UnicodeDecodeError, json.JSONDecodeError) as exc:
        return [f"{where}: not readable: {' '.join(str(exc).split())}"]
    except (ValueError, TypeError, OSError, KeyError, AttributeError, ImportError, SyntaxError) as exc:
        # data sets, verifiers and reward functions are third-party code: their exceptions are reported, not raised
        text = plain(exc)
        return [text if text.startswith(where) else f"{where}: {text}"]
    return []
