"""What a gold query's ORDER BY settles: the query again without its LIMIT, and each row's rank as a last column."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

_SKIPPED = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`[^`]*`|\[[^\]]*\]|--[^\n]*|/\*.*?\*/", re.DOTALL)
_LIMIT = re.compile(r"\blimit\s+(\d+)(?:\s*(,|\boffset\b)\s*(\d+))?\s*;?\s*\Z", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Order:
    """ranked_query: all rows in the gold's order, the rank last, equal for rows that tie; empty where that is unknown.
    offset: rows that the gold skips.
    """

    ranked_query: str
    offset: int


@lru_cache(maxsize=4096)
def order_of(query: str) -> Order | None:
    """None where the outermost query has no ORDER BY; text in strings, comments and brackets is not looked at."""
    shape = _outermost(query)
    found = list(re.finditer(r"\border\s+by\b", shape, re.IGNORECASE))
    if not found:
        return None
    by = found[-1]
    limit = _LIMIT.search(shape, by.end())
    next_limit = re.search(r"\blimit\b", shape[by.end() :], re.IGNORECASE)
    end = limit.start() if limit else by.end() + next_limit.start() if next_limit else len(shape.rstrip().rstrip(";"))
    first, separator, second = limit.groups() if limit else ("0", None, None)
    offset = int(first if separator == "," else second or 0) if separator else 0
    terms = query[by.end() : end].strip()
    inner = query[: by.start()]
    return Order(_ranked(inner, shape[: by.start()], terms), offset)


def _outermost(query: str) -> str:
    """The query with blanks, one for one, for strings, comments and what stands in brackets."""
    shape = _SKIPPED.sub(lambda match: " " * len(match[0]), query)
    while (shorter := re.sub(r"\([^()]*\)", lambda match: " " * len(match[0]), shape)) != shape:
        shape = shorter
    return shape


def _ranked(query: str, shape: str, terms: str) -> str:
    """Aliases name columns of the result, so those are ranked outside; expressions inside the query.

    Empty where ties cannot be told: an ordinal, or a quoted name outside, means a constant to a window.
    """
    ordered = f"{query} ORDER BY {terms}"
    names = [re.sub(r"\s+(asc|desc)\s*$", "", term.strip(), flags=re.IGNORECASE) for term in terms.split(",")]
    selects = list(re.finditer(r"\bselect\b", shape, re.IGNORECASE))
    if not selects or any(name.isdigit() for name in names):
        return ""
    rest = shape[selects[-1].end() :]
    source = re.search(r"\bfrom\b", rest, re.IGNORECASE)
    compound = re.search(r"\b(union|intersect|except)\b", shape, re.IGNORECASE)
    aliases = {name.lower() for name in re.findall(r"\bas\s+(\w+)", query, re.IGNORECASE)}
    if (
        source
        and not compound
        and not re.match(r"\s*distinct\b", rest, re.IGNORECASE)
        and not (aliases & {name.lower() for name in names})
    ):
        at = selects[-1].end() + source.start()
        return f"{query[:at]}, dense_rank() OVER (ORDER BY {terms}) {query[at:]} ORDER BY {terms}"
    if any(quote in terms for quote in "\"`'["):
        return ""
    return f"SELECT *, dense_rank() OVER (ORDER BY {terms}) FROM ({ordered}) ORDER BY {terms}"


__all__ = ["Order", "order_of"]
