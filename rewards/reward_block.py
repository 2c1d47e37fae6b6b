"""What a `rewards:` block says, read without building it: verifiers, reward models, fields that a task must have."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import verifiers
from rewards import shaping
from rewards.graders import GRADER_KINDS, columns_needed
from rewards.source_parts import parts_for

Block = Mapping[str, Mapping[str, Any] | None]  # part name -> its fields
SHAPING: dict[str, Callable[..., shaping.RewardFunction]] = {
    "length": shaping.length,
    "repetition": shaping.repetition,
    "missing_eos": shaping.missing_eos,
    "format": shaping.format,
    "random": shaping.random,
    "tool_calls": shaping.tool_calls,
    "environment": shaping.environment,
}
KINDS = ("verifier", "learned", "function", "potential", "surrogate", *GRADER_KINDS, *SHAPING)
LEARNED_NAMES = ("reward_model", "learned")  # parts with these names are reward models by default


def default_kind(name: str, dirs: Sequence[str | Path]) -> str:
    """The kind of a part that names none. Raises ValueError for a name that is no kind and no verifier."""
    if name in KINDS:
        return name
    if name in LEARNED_NAMES:
        return "learned"
    if name in verifiers.available(dirs) or any((Path(directory) / f"{name}.py").is_file() for directory in dirs):
        return "verifier"  # if the file is none, loading it says what it lacks
    known = [*SHAPING, "reward_model", *verifiers.available(dirs)]
    raise ValueError(
        f"rewards.{name}: not a known reward{nearest(name, known)}; a verifier of your own is found through the "
        f"top-level key verifier_dirs: [its folder]; otherwise give a kind or use one of: {', '.join(known)}"
    )


def verifiers_of(
    block: Block, dirs: Sequence[str | Path]
) -> Iterator[tuple[str, verifiers.Verifier, Mapping[str, Any]]]:
    """Yield (part name, verifier, fields of the part) for each verifier part of a `rewards:` block.

    Raises ValueError for a verifier that cannot be loaded, and a `task` or `fields` that is no block of keys.
    """
    known = verifiers.available(dirs)
    for name, fields in real_parts(block).items():
        verifier = str(fields.get("verifier") or name)
        if verifier in known and fields.get("kind", "verifier") == "verifier":
            for key in ("task", "fields"):
                if not isinstance(fields.get(key) or {}, Mapping):
                    raise ValueError(f"rewards.{name}.{key}: {fields[key]!r} is no block of keys")
            yield name, verifiers.load(verifier, dirs), fields


def real_parts(block: Block) -> dict[str, dict[str, Any]]:
    """The fields of each part of a `rewards:` block; of a surrogate part those of the part that it stands in for."""
    out = parts_for(block, None)
    for name, fields in out.items():
        if fields.get("kind") == "surrogate":
            settings, of = fields.get("settings"), str(fields.get("of", ""))
            settings = dict(settings) if isinstance(settings, Mapping) else {}
            weight = {"weight": fields["weight"]} if "weight" in fields else {}
            named = {} if "kind" in settings else {"kind": "verifier", "verifier": settings.get("verifier") or of}
            out[name] = settings | named | weight
    return out


def judges_answers(block: Block, dirs: Sequence[str | Path]) -> bool:
    """Whether a part says right or wrong: a verifier, a grader or the environment of an episode.

    Without one every scored row has status `pass`, and a figure of accuracy means nothing.
    """
    kinds = [fields.get("kind") or default_kind(name, dirs) for name, fields in real_parts(block).items()]
    return any(kind in ("verifier", "environment", *GRADER_KINDS) for kind in kinds)


def learned_models(block: Block) -> dict[str, str]:
    """Map each reward-model part of a `rewards:` block to the model it names.

    A part is a reward model if its kind is `learned`, or if it has no kind and is named `reward_model` or `learned`.
    This rule is defined only here.
    """
    return {
        name: str((fields or {}).get("model") or name)
        for name, fields in block.items()
        if ((fields or {}).get("kind") or ("learned" if name in LEARNED_NAMES else None)) == "learned"
    }


def fields_needed(
    block: Block, dirs: Sequence[str | Path], reward_dirs: Sequence[str | Path] = ()
) -> dict[str, frozenset[str]]:
    """Map the name of a verifier, or of a grader part -> fields its tasks must have, without those that the part's
    `task` or `fields` provides."""
    needed = {
        verifier.name: verifier.required_fields - {*(fields.get("task") or {}), *(fields.get("fields") or {})}
        for _, verifier, fields in verifiers_of(block, dirs)
    }
    columns = {name: columns_needed(name, fields, reward_dirs) for name, fields in real_parts(block).items()}
    return needed | {name: names for name, names in columns.items() if names}


def module_file(module: str, dirs: Sequence[str | Path]) -> Path | None:
    """The file of a module in one of the directories; None: it can only be an installed one."""
    inside = Path(*module.removesuffix(".py").split(".")).with_suffix(".py")
    return next((path for directory in dirs if (path := Path(directory) / inside).is_file()), None)


def nearest(word: str, known: Sequence[str]) -> str:
    """`; did you mean 'X'?`, or nothing where no known word is close."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""
