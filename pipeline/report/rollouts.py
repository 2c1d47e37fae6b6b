"""Scored rollouts as columns, small enough to open quickly: repeated values are stored once and referenced.

A run may have more rollouts than a report should carry. Then all rollouts of some prompts are kept, chosen by a hash
of the prompt's text, so that the samples and steps of a prompt stay together and two policies can be compared.
"""

from __future__ import annotations

import itertools
import json
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.config.schema import recorded_kind
from pipeline.report.collect import Stage, read_rows, tail_rows

LIMIT = 12_000  # rollouts in a page that carries all itself
TOKENS = 600_000  # tokens with their figures in such a page
TEXT = 12_000_000  # characters of completions in such a page
PAGE_BYTES = 32 << 20  # of rollouts.jsonl that such a page may be written from
FILES_LIMIT = 200_000  # rollouts in a page with files next to it
FILES_BYTES = 256 << 20  # of rollouts.jsonl that such files may be written from
BUCKETS = 1 << 16  # of prompts by their hash
LONGEST = 20_000  # characters of one completion
EXPECTED = 2_000  # characters of a task's expected answer
ANSWERS = ("gold", "answer", "answers", "solution", "expected", "target", "reference", "ground_truth", "label", "test",
           "tests", "reference_solution")  # fmt: skip

Row = dict[str, Any]


class Table:
    """Distinct values in order of first appearance; a column then holds their indices."""

    def __init__(self) -> None:
        self.indices: dict[Any, int] = {}

    def index_of(self, value: Any) -> int:
        return self.indices.setdefault(value, len(self.indices))

    @property
    def values(self) -> list[Any]:
        return list(self.indices)


def extent(stages: Sequence[Stage]) -> tuple[int, int]:
    """(lines, bytes) of all rollouts on disk."""
    paths = [path for s in stages if (path := s.path / "rollouts.jsonl").is_file()]
    return sum(map(_lines, paths)), sum(path.stat().st_size for path in paths)


def _lines(path: Path) -> int:
    with path.open("rb") as log:
        return sum(block.count(b"\n") for block in iter(lambda: log.read(1 << 20), b""))


def gather(stages: Sequence[Stage], limit: int = LIMIT, tail: int | None = None) -> tuple[Iterator[Row], int]:
    """(rows to show, how many there are). Half of the room goes to judged samples, which compare policies.

    Where they do not all fit they are read twice, to count and to yield them: never are all of them in memory.
    tail: read only so many bytes at the end of each stage's file, and count only what they hold.
    """
    kinds = {s.name: recorded_kind(s.kind) for s in stages}
    first = sorted(stages, key=lambda s: not kinds[s.name].compares_policies)  # what compares policies is read most
    read = read_rows if tail is None else partial(tail_rows, size=tail)
    if tail is None and (lines := extent(stages)[0]) <= limit:
        return ({**row, "stage": s.name} for s in first for row in read(s.path / "rollouts.jsonl")), lines
    counts = {s.name: prompt_counts(read(s.path / "rollouts.jsonl")) for s in first}
    sizes = {name: sum(each) for name, each in counts.items()}
    shares = room(sizes, {name for name in sizes if kinds[name].compares_policies}, limit)

    def rows() -> Iterator[Row]:
        for stage in first:
            kept = whole_prompts(read(stage.path / "rollouts.jsonl"), counts[stage.name], shares[stage.name])
            yield from ({**row, "stage": stage.name} for row in kept)

    return rows(), sum(sizes.values())


def room(sizes: Mapping[str, int], judged: set[str], limit: int) -> dict[str, int]:
    """How many rows each stage may show: judged stages get what they need up to half, the rest is split equally.

    A stage that needs less leaves its share to the others.
    """
    out = dict.fromkeys(sizes, 0)
    left = limit
    others = [n for n in sizes if n not in judged]
    for names, share in ((sorted(judged), limit // 2 if others else limit), (others, limit)):
        names = sorted((n for n in names if sizes[n]), key=lambda n: sizes[n])
        free = min(share, left)
        for i, name in enumerate(names):
            out[name] = min(sizes[name], free // (len(names) - i))
            free -= out[name]
        left -= sum(out[n] for n in names)
    return out


def bucket_of(row: Row) -> int:
    """Of the row's prompt, by a hash of its text."""
    return zlib.crc32(str(row.get("prompt")).encode("utf-8", "surrogatepass")) * BUCKETS >> 32


def prompt_counts(rows: Iterable[Row]) -> array[int]:
    """Rows per bucket of prompts."""
    counts = array("q", bytes(8 * BUCKETS))
    for row in rows:
        counts[bucket_of(row)] += 1
    return counts


def whole_prompts(rows: Iterable[Row], counts: Sequence[int], limit: int) -> Iterator[Row]:
    """All rows of as many buckets of prompts as fit, at least one bucket; order is kept. counts: as prompt_counts."""
    size, end = 0, len(counts)
    for bucket, count in enumerate(counts):
        if size + count > limit and size:
            end = bucket
            break
        size += count
    return itertools.islice((row for row in rows if bucket_of(row) < end), max(limit, 1))


def columns(
    rows: Iterable[Row], token_text: Callable[[str, int], str], *, tokens: int | None = TOKENS, text: int | None = TEXT
) -> dict[str, Any]:
    """Rows -> columns. token_text(stage, id): what a token reads as.

    tokens, text: how many tokens and characters there is room for; None: for all.

    Per-token figures are written as integer thousandths, flat, with the number of tokens of each row; None where none
    were recorded or the page's room for them is used up. `advantages` may be one number a row: it holds for all tokens.
    """
    tables = {name: Table() for name in ("stage", "source", "prompt", "expected", "status", "detail", "completion",
                                         "label", "conversation")}  # fmt: skip
    plain: dict[str, list[Any]] = {n: [] for n in ("step", "sample", "reward", "finished", "length", "tokens")}
    coded: dict[str, list[int]] = {n: [] for n in tables}
    parts: dict[str, list[float | None]] = {}
    flat: dict[str, list[int]] = {"ids": [], "logprobs": [], "advantages": [], "kl": []}
    words = Table()
    count = characters = 0
    for row in rows:
        answer = shortened(str(row.get("completion", "")), LONGEST)
        talk = conversation_of(row)
        characters += len(answer) + len(talk)
        if text is not None and characters > text:
            break
        values = {"stage": row["stage"], "source": source_of(row), "prompt": str(row.get("prompt", "")),
                  "expected": expected_of(row.get("task")),
                  "status": str(row.get("status", "")), "detail": str(row.get("detail") or ""), "completion": answer,
                  "label": str(row.get("asked", "")), "conversation": talk}  # fmt: skip
        for name, table in tables.items():
            coded[name].append(table.index_of(values[name]))
        ids = row.get("ids") or []
        plain["step"].append(step_of(row))
        plain["sample"].append(row.get("sample"))
        plain["reward"].append(rounded(row.get("reward")))
        plain["finished"].append(1 if row.get("finished") else 0)
        plain["length"].append(len(ids))
        fits = tokens is None or len(flat["ids"]) + len(ids) <= tokens
        plain["tokens"].append(len(ids) if fits else 0)
        if fits:
            flat["ids"] += [words.index_of(token_text(row["stage"], i)) for i in ids]
            for name in ("logprobs", "advantages", "kl"):
                flat[name] += thousandths(row.get(name), len(ids))
        for name in (row.get("parts") or {}).keys() - parts.keys():
            parts[name] = [None] * count
        for name, column in parts.items():
            column.append(rounded((row.get("parts") or {}).get(name)))
        count += 1
    recorded = {n: flat[n] for n in ("logprobs", "advantages", "kl") if any(v != ABSENT for v in flat[n])}
    return {
        "count": count,
        "tables": {n: t.values for n, t in tables.items()},
        "coded": coded,
        **plain,
        "parts": parts,
        "words": words.values,
        "ids": flat["ids"],
        "per_token": recorded,
        "absent": ABSENT,
    }


ABSENT = -(2**31)  # stands for a figure that was not recorded


def thousandths(values: Any, count: int) -> list[int]:
    if isinstance(values, (int, float)):
        values = [values] * count
    if not isinstance(values, list) or len(values) != count:
        return [ABSENT] * count
    try:  # nearly always all are numbers, and of a usual size
        out = [round(v * 1000) for v in values]
        if max(map(abs, out), default=0) < 10**9:
            return out
    except (TypeError, ValueError, OverflowError):
        pass
    return [round(v * 1000) if isinstance(v, (int, float)) and abs(v) < 1e6 else ABSENT for v in values]


def rounded(value: Any) -> float | None:
    return round(float(value), 4) if isinstance(value, (int, float)) and abs(value) < 1e300 else None


def expected_of(task: Any) -> str:
    """What the verifier compares an answer with: the task's answer where a field is called one, else all its fields."""
    if not isinstance(task, Mapping) or not task:
        return ""
    answers = {name: value for name, value in task.items() if name in ANSWERS and value not in (None, "")}
    fields = answers or {name: value for name, value in task.items() if name not in ("prompt", "messages")}
    values = list(fields.values())
    fields = {name: value for n, (name, value) in enumerate(fields.items()) if value not in values[:n]}  # each once
    lines = (v if isinstance(v, str) else json.dumps(v, ensure_ascii=False, default=str) for v in fields.values())
    text = "\n".join(f"{name}: {line}" for name, line in zip(fields, lines, strict=True))
    return shortened(text, EXPECTED)


def shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}… [{len(text) - limit} more characters]"


def conversation_of(row: Row) -> str:
    """The conversation of an episode as JSON, `turns` of [role, text, thinking, calls of [name, arguments]] and how it
    ended; "" for a row that is none. What is too long for the page is cut, each text apart."""
    episode = row.get("episode")
    if not isinstance(episode, Mapping) or not isinstance(episode.get("messages"), list):
        return ""
    turns, room = [], LONGEST
    for message in episode["messages"]:
        calls = [[str(function.get("name")), json.dumps(function.get("arguments"), ensure_ascii=False, indent=1)]
                 for call in message.get("tool_calls") or () if (function := call.get("function", {}))]  # fmt: skip
        texts = [str(message.get("content") or ""), str(message.get("reasoning_content") or "")]
        cut = [shortened(text, room) for text in texts]
        room = max(room - sum(map(len, texts)) - sum(len(one[1]) for one in calls), 200)
        turns.append([str(message.get("role", "?")), *cut, calls])
    about = {key: episode.get(key) for key in ("ended_by", "turns", "calls", "reward", "answer")}
    return json.dumps({**about, "messages": turns}, ensure_ascii=False)


def source_of(row: Row) -> str:
    """The policy that was evaluated, else the stage that sampled."""
    return str(row["policy"]) if "policy" in row else str(row["stage"])


def step_of(row: Row) -> int | None:
    """The step, or the round, it was sampled in."""
    found = row.get("step", row.get("round"))
    return found if isinstance(found, int) else None


class TokenText:
    """Token id -> text, by the tokenizer each stage saved beside its model; `⟨id⟩` where there is none."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.tokenizers = {s.name: s.path / "model" / "tokenizer.json" for s in stages}
        self.fallback = next((p for p in self.tokenizers.values() if p.is_file()), None)
        self.loaded: dict[Path, Any] = {}
        self.known: dict[tuple[str, int], str] = {}

    def __call__(self, stage: str, token: int) -> str:
        key = (stage, token)
        if key not in self.known:
            self.known[key] = self._decode(self.tokenizers.get(stage), token)
        return self.known[key]

    def _decode(self, path: Path | None, token: int) -> str:
        path = path if path is not None and path.is_file() else self.fallback
        if path is None:
            return f"⟨{token}⟩"
        if path not in self.loaded:
            from tokenizers import Tokenizer

            self.loaded[path] = Tokenizer.from_file(str(path))
        return self.loaded[path].decode([token], skip_special_tokens=False) or f"⟨{token}⟩"
