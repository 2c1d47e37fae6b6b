"""Rows of well-known data sets -> our columns. One pure function a format, named under `prompts.format`.

Out comes a row with `prompt` (text or messages) and what the format holds of `completion`, `chosen`, `rejected` and
`task`, the verifier's fields. The other columns stay, so that a template may use them.
What a format names as its licence is what its publishers state; check it before you ship a model.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from verifiers import instructions

Row = dict[str, Any]
Convert = Callable[[Mapping[str, Any]], Row]

COUNTDOWN = (
    "Using the numbers {numbers}, write an equation that equals {target}. You may use +, -, * and / and each number "
    "exactly once. Give the equation between <answer> and </answer>, for example <answer>(1 + 2) / 3</answer>."
)
MBPP = "{text}\nYour code should pass these tests:\n{tests}"
BOXED = "\\boxed"
TURN = re.compile(r"\n\n(Human|Assistant): ")
ROLES = {"Human": "user", "Assistant": "assistant"}


class Unsupported(ValueError):
    """The row is of its format, and asks for what no verifier of ours can judge: that is the text."""


@dataclass(frozen=True, slots=True)
class Format:
    """columns: what a row must have. hub: where such rows are published. wording: what is written around every row."""

    convert: Convert
    columns: tuple[str, ...]
    hub: str
    licence: str
    wording: str | None = None


def gsm8k(row: Mapping[str, Any]) -> Row:
    """`answer` is reasoning, then `#### 42`; calculator marks <<3*4=12>> are taken out of the demonstration."""
    reasoning, marks, gold = row["answer"].rpartition("####")
    if not marks or not gold.strip():
        raise ValueError("its answer has no '#### ' with a final number after it")
    clean = re.sub(r"<<[^<>]*>>", "", reasoning).strip()
    number = gold.strip().replace(",", "")
    return {
        "prompt": row["question"],
        "completion": f"{clean}\nThe answer is $\\boxed{{{number}}}$.",
        "task": {"gold": number},
    }


def math(row: Mapping[str, Any]) -> Row:
    """The gold is what the solution's last \\boxed holds."""
    gold = last_boxed(row["solution"])
    if gold is None:
        raise ValueError("its solution has no \\boxed answer")
    return {"prompt": row["problem"], "completion": row["solution"], "task": {"gold": gold}}


def last_boxed(text: str) -> str | None:
    """Contents of the last \\boxed{...} or \\fbox{...}, braces balanced; `\\boxed 7` too. None where there is none."""
    start = max(text.rfind(BOXED), text.rfind("\\fbox"))
    if start < 0:
        return None
    rest = text[start:].split("boxed" if text.startswith(BOXED, start) else "fbox", 1)[1].lstrip()
    if not rest.startswith("{"):
        bare = re.match(r"[^\s$.]+", rest)
        return bare.group() if bare else None
    depth = 0
    for place, character in enumerate(rest):
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return rest[1:place].strip()
    return None


def hh_rlhf(row: Mapping[str, Any]) -> Row:
    """Two transcripts that part in the last turn: what they share is the prompt."""
    chosen, rejected = transcript(row["chosen"]), transcript(row["rejected"])
    shared = 0
    for a, b in zip(chosen[:-1], rejected[:-1], strict=False):
        if a != b:
            break
        shared += 1
    if shared != len(chosen) - 1 or shared != len(rejected) - 1 or chosen[-1]["role"] != "assistant" or not shared:
        raise ValueError("its two transcripts do not part in their last answer")
    return {"prompt": chosen[:-1], "chosen": chosen[-1:], "rejected": rejected[-1:]}


def transcript(text: str) -> list[dict[str, str]]:
    """`\\n\\nHuman: ... \\n\\nAssistant: ...` -> messages. Raises ValueError where the text is no transcript."""
    pieces = TURN.split("\n\n" + text.lstrip("\n"))
    if pieces[0].strip() or len(pieces) < 3:
        raise ValueError("it is no transcript of Human and Assistant")
    pairs = zip(pieces[1::2], pieces[2::2], strict=True)
    return [{"role": ROLES[role], "content": content.strip()} for role, content in pairs]


def ultrafeedback(row: Mapping[str, Any]) -> Row:
    """Binarized: `prompt`, and two conversations of which only the last turn differs."""
    chosen, rejected = list(row["chosen"]), list(row["rejected"])
    if not chosen or chosen[-1]["role"] != "assistant" or not rejected or rejected[-1]["role"] != "assistant":
        raise ValueError("chosen and rejected do not end with the assistant's turn")
    head = chosen[:-1] or [{"role": "user", "content": row["prompt"]}]
    return {"prompt": head, "completion": chosen[-1:], "chosen": chosen[-1:], "rejected": rejected[-1:]}


def tldr(row: Mapping[str, Any]) -> Row:
    """Reddit posts and their summaries: `prompt` ends in TL;DR:; pairs have `chosen` and `rejected`."""
    out: Row = {"prompt": row["prompt"]}
    for column in ("completion", "chosen", "rejected"):
        if column in row:
            text = row[column]
            out[column] = text if text[:1].isspace() else " " + text  # the token after `TL;DR:` begins with a space
    if len(out) == 1:
        raise ValueError("it has neither completion nor chosen and rejected")
    return out


def mbpp(row: Mapping[str, Any]) -> Row:
    """Both published forms: `text` or (sanitized) `prompt`; imports and set-up go in front of the tests."""
    tests = list(row["test_list"])
    setup = "\n".join(row.get("test_imports") or []) or row.get("test_setup_code") or ""
    if setup:
        tests = [f"{setup}\n{test}" for test in tests]
    entry = entry_point(row["test_list"][0], row["code"])
    shown = MBPP.format(text=row.get("text") or row["prompt"], tests="\n".join(row["test_list"]))
    return {
        "prompt": shown,
        "completion": f"```python\n{row['code'].strip()}\n```",
        "task": {"prompt": shown, "entry_point": entry, "tests": tests},
    }


def entry_point(test: str, code: str) -> str:
    """The function of `code` that the first test calls. Raises ValueError where it calls none."""
    defined = {n.name for n in ast.walk(ast.parse(code)) if isinstance(n, ast.FunctionDef | ast.ClassDef)}
    for node in ast.walk(ast.parse(test)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in defined:
            return node.func.id
    raise ValueError("its first test calls no function that its code defines")


def countdown(row: Mapping[str, Any]) -> Row:
    """`nums` and `target`."""
    numbers = [int(n) for n in row["nums"]]
    return {
        "prompt": COUNTDOWN.format(numbers=numbers, target=row["target"]),
        "task": {"numbers": numbers, "target": int(row["target"])},
    }


def tulu_rlvr(row: Mapping[str, Any]) -> Row:
    """`messages`, `ground_truth`, and `dataset`, which says which verifier judges: read by `verifier: by_task`."""
    source, truth = str(row["dataset"]).lower(), row["ground_truth"]
    messages = [dict(turn) for turn in row["messages"]]
    while messages and messages[-1]["role"] == "assistant":
        messages.pop()
    if "ifeval" in source:
        constraint = json.loads(truth) if isinstance(truth, str) else dict(truth)
        return {"prompt": messages, "task": {"verifier": "instructions", "instructions": ifeval_rules(constraint)}}
    # its problems ask for the answer in words as often as in a box
    return {"prompt": messages, "task": {"verifier": "math_answer", "gold": str(truth), "box_needed": False}}


def _quantified(check: str, given: Mapping[str, Any], around: int) -> Row:
    n = int(given["N"])
    bounds = {"at least": {"at_least": n}, "at most": {"at_most": n},
              "around": {"at_least": n - around, "at_most": n + around}}  # fmt: skip
    return {"check": check, **bounds[given["quantifier"]]}


# the functions of RLVR-IFeval (open-instruct's if_functions.py) that `verifiers/instructions.py` has the meaning of
IFEVAL: dict[str, Callable[[Mapping[str, Any]], Row]] = {
    "verify_keywords": lambda a: {"check": "includes", "words": a["keyword_list"]},
    "validate_forbidden_words": lambda a: {"check": "excludes", "words": a["forbidden_words"]},
    "verify_letter_frequency": lambda a: {"check": "letter", "letter": a["letter"], "exactly": a["N"]},
    "validate_word_constraint": lambda a: _quantified("words", a, around=max(round(a["N"] * 0.1), 1)),
    "verify_sentence_constraint": lambda a: _quantified("sentences", a, around=1),
    "validate_placeholders": lambda a: {"check": "placeholders", "at_least": a["N"]},
    "verify_bullet_points": lambda a: {"check": "bullets", "exactly": a["N"]},
    "validate_title": lambda a: {"check": "wrapped", "open": "<<", "close": ">>"},
    "validate_highlighted_sections": lambda a: {"check": "highlights", "at_least": a["N"]},
    "validate_sections": lambda a: {"check": "sections", "heading": a["section_splitter"], "exactly": a["N"]},
    "validate_json_format": lambda a: {"check": "json"},
    "validate_repeat_prompt": lambda a: {"check": "repeats", "text": a["original_prompt"]},
    "validate_uppercase": lambda a: {"check": "case", "case": "upper"},
    "validate_lowercase": lambda a: {"check": "case", "case": "lower"},
    "validate_end": lambda a: {"check": "ends_with", "text": a["end_phrase"]},
    "validate_quotation": lambda a: {"check": "wrapped", "open": '"', "close": '"', "whole": True},
    "validate_no_commas": lambda a: {"check": "no", "characters": ","},
}


def ifeval_rules(constraint: Mapping[str, Any]) -> list[Row]:
    """`func_name` and its arguments as instructions. Raises Unsupported where no check of ours means the same."""
    name = str(constraint["func_name"])
    if name == "verify_postscript" and constraint.get("postscript_marker") in ("P.S.", "P.P.S."):
        return [{"check": "postscript"}, {"check": "includes", "words": [constraint["postscript_marker"]]}]
    if name not in IFEVAL:
        raise Unsupported(name)
    try:
        rule = IFEVAL[name]({key: value for key, value in constraint.items() if value is not None})
        instructions.follows("-", rule)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise Unsupported(f"{name} with such arguments") from exc
    return [rule]


FORMATS: dict[str, Format] = {
    "gsm8k": Format(gsm8k, ("question", "answer"), "openai/gsm8k", "MIT"),
    "math": Format(math, ("problem", "solution"), "EleutherAI/hendrycks_math", "MIT"),
    "hh_rlhf": Format(hh_rlhf, ("chosen", "rejected"), "Anthropic/hh-rlhf", "MIT"),
    "ultrafeedback": Format(
        ultrafeedback, ("prompt", "chosen", "rejected"), "HuggingFaceH4/ultrafeedback_binarized", "MIT"
    ),
    "tldr": Format(tldr, ("prompt",), "trl-lib/tldr, trl-lib/tldr-preference", "modified MIT; Reddit posts"),
    "mbpp": Format(mbpp, ("code", "test_list"), "google-research-datasets/mbpp", "CC BY 4.0", MBPP),
    "countdown": Format(countdown, ("nums", "target"), "Jiayi-Pan/Countdown-Tasks-3to4", "not stated", COUNTDOWN),
    "tulu_rlvr": Format(
        tulu_rlvr, ("messages", "ground_truth", "dataset"), "allenai/RLVR-GSM-MATH-IF-Mixed-Constraints", "ODC-BY"
    ),
}


def convert(row: Mapping[str, Any], name: str, *, number: int, where: str) -> Row:
    """The row in our columns, its own kept. Raises ValueError naming the row, the column and the format;
    Unsupported where it has all and cannot be judged."""
    form = FORMATS[name]
    missing = [column for column in form.columns if column not in row]
    if missing:
        have = ", ".join(sorted(row))
        raise ValueError(
            f"{where}: row {number} has no column {missing[0]!r}, which format {name!r} reads; have: {have}"
        )
    try:
        return {**row, **form.convert(row)}
    except Unsupported:
        raise
    except (ValueError, TypeError, KeyError, SyntaxError, AttributeError, IndexError) as exc:
        reason = f"{type(exc).__name__}: {exc}" if not isinstance(exc, ValueError) else str(exc)
        raise ValueError(f"{where}: row {number} is not of format {name!r}: {reason}") from exc


def own_text(prompt: str, name: str | None) -> str:
    """The prompt without the words that its format gives to every row."""
    wording = FORMATS[name].wording if name else None
    if wording is None:
        return prompt
    filled = re.fullmatch("(.*)".join(map(re.escape, re.split(r"\{\w+\}", wording))), prompt, re.DOTALL)
    return "\n".join(filled.groups()) if filled else prompt


def ngrams(text: str, n: int) -> set[tuple[str, ...]]:
    """Runs of n words, lower case, punctuation off. A text shorter than n words is one run: itself."""
    words = re.findall(r"\w+", text.lower())
    if not words:
        return set()
    return {tuple(words[i : i + n]) for i in range(max(len(words) - n + 1, 1))}


def contaminated(train: list[str], heldout: list[str], n: int) -> list[int]:
    """Places in `train` of texts that share a run of n words with a held-out text.

    Source: 13-grams as in GPT-3, arXiv:2005.14165 appendix C.
    """
    seen = set().union(*(ngrams(text, n) for text in heldout)) if heldout else set()
    return [place for place, text in enumerate(train) if not seen.isdisjoint(ngrams(text, n))]
