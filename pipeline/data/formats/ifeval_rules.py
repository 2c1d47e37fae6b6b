"""Constraints of IFEval and of open-instruct's RLVR functions -> rules of the verifier `instructions`.

`func_name` with arguments is the form of RLVR-IFEval (open-instruct's if_functions.py), `instruction_id` with `kwargs`
that of IFEval and of newer sets. A constraint that no check means exactly is Unsupported: its row is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pipeline.data.formats.spec import Row, UnsupportedRow
from verifiers import instructions

Rule = Callable[[Mapping[str, Any]], Row]


def rules(constraint: Mapping[str, Any]) -> list[Row]:
    """The rules of one constraint. Raises Unsupported where no check of ours means the same."""
    if "instruction_id" in constraint or "instruction_id_list" in constraint:
        names = constraint.get("instruction_id", constraint.get("instruction_id_list"))
        names = [names] if isinstance(names, str) else names
        arguments = constraint.get("kwargs") or [{}] * len(names)
        return [checked(name, IFEVAL, given or {}) for name, given in zip(names, arguments, strict=True)]
    name = str(constraint["func_name"])
    given = {key: value for key, value in constraint.items() if value is not None and key != "func_name"}
    return [checked(name, RLVR, given)]


def checked(name: str, table: Mapping[str, Rule], given: Mapping[str, Any]) -> Row:
    """The rule, tried once, so that a bad argument is found here and not in the middle of a run."""
    if name not in table:
        raise UnsupportedRow(name)
    try:
        rule = table[name]({key: value for key, value in given.items() if value is not None})
        instructions.follows("-", rule)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise UnsupportedRow(f"{name} with such arguments") from exc
    return rule


def quantified(check: str, given: Mapping[str, Any], around: int) -> Row:
    n = int(given["N"])
    bounds = {"at least": {"at_least": n}, "at most": {"at_most": n},
              "around": {"at_least": n - around, "at_most": n + around}}  # fmt: skip
    return {"check": check, **bounds[given["quantifier"]]}


def related(check: str, count: Any, relation: str, **more: Any) -> Row:
    """IFEval's relations: at least n, less than n."""
    bounds = {"at least": {"at_least": int(count)}, "less than": {"at_most": int(count) - 1}}
    return {"check": check, **bounds[relation], **more}


# the functions of RLVR-IFEval that `verifiers/instructions.py` has the meaning of
RLVR: dict[str, Rule] = {
    "verify_keywords": lambda a: {"check": "includes", "words": a["keyword_list"]},
    "verify_keyword_frequency": lambda a: {"check": "frequency", "word": a["word"], "exactly": a["N"]},
    "validate_forbidden_words": lambda a: {
        "check": "excludes", "words": a["forbidden_words"], "within_words": True,
    },
    "validate_response_language": lambda a: {"check": "language", "language": a["language"]},
    "verify_paragraph_count": lambda a: {"check": "divided", "exactly": a["N"]},
    "validate_paragraphs": lambda a: {
        "check": "first_word", "paragraph": a["i"], "word": a["first_word"], "exactly": a["N"],
    },
    "verify_postscript": lambda a: {"check": "postscript", "marker": a["postscript_marker"]},
    "validate_choice": lambda a: {"check": "choice", "options": list(a["options"])},
    "validate_two_responses": lambda a: {"check": "two_responses"},
    "validate_frequency_capital_words": lambda a: quantified("capital_words", a, around=max(round(a["N"] * 0.1), 1)),
    "verify_letter_frequency": lambda a: {"check": "letter", "letter": a["letter"], "exactly": a["N"]},
    "validate_word_constraint": lambda a: quantified("words", a, around=max(round(a["N"] * 0.1), 1)),
    "verify_sentence_constraint": lambda a: quantified("sentences", a, around=1),
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
}  # fmt: skip

# IFEval's own instructions
IFEVAL: dict[str, Rule] = {
    "keywords:existence": lambda a: {"check": "includes", "words": a["keywords"]},
    "keywords:frequency": lambda a: related(
        "frequency", a["frequency"], a["relation"], word=a["keyword"], within_words=True
    ),
    "keywords:forbidden_words": lambda a: {"check": "excludes", "words": a["forbidden_words"]},
    "keywords:letter_frequency": lambda a: related(
        "letter", a["let_frequency"], a["let_relation"], letter=a["letter"]
    ),
    "length_constraints:number_sentences": lambda a: related("sentences", a["num_sentences"], a["relation"]),
    "length_constraints:number_paragraphs": lambda a: {"check": "divided", "exactly": a["num_paragraphs"]},
    "length_constraints:nth_paragraph_first_word": lambda a: {
        "check": "first_word", "paragraph": a["nth_paragraph"], "word": a["first_word"], "exactly": a["num_paragraphs"],
    },
    "length_constraints:number_words": lambda a: related("words", a["num_words"], a["relation"]),
    "detectable_content:postscript": lambda a: {"check": "postscript", "marker": a["postscript_marker"]},
    "detectable_content:number_placeholders": lambda a: {"check": "placeholders", "at_least": a["num_placeholders"]},
    "detectable_format:number_bullet_lists": lambda a: {"check": "bullets", "exactly": a["num_bullets"]},
    "detectable_format:number_highlighted_sections": lambda a: {
        "check": "highlights", "at_least": a["num_highlights"],
    },
    "detectable_format:multiple_sections": lambda a: {
        "check": "sections", "heading": a["section_spliter"], "at_least": a["num_sections"],
    },
    "detectable_format:json_format": lambda a: {"check": "json"},
    "detectable_format:constrained_response": lambda a: {
        "check": "choice", "options": ["My answer is yes.", "My answer is no.", "My answer is maybe."],
    },
    "detectable_format:title": lambda a: {"check": "wrapped", "open": "<<", "close": ">>"},
    "combination:two_responses": lambda a: {"check": "two_responses"},
    "combination:repeat_prompt": lambda a: {"check": "repeats", "text": a["prompt_to_repeat"]},
    "startend:end_checker": lambda a: {"check": "ends_with", "text": a["end_phrase"]},
    "startend:quotation": lambda a: {"check": "wrapped", "open": '"', "close": '"', "whole": True},
    "language:response_language": lambda a: {"check": "language", "language": a["language"]},
    "change_case:capital_word_frequency": lambda a: related(
        "capital_words", a["capital_frequency"], a["capital_relation"]
    ),
    "change_case:english_capital": lambda a: {"check": "case", "case": "upper"},
    "change_case:english_lowercase": lambda a: {"check": "case", "case": "lower"},
    "punctuation:no_comma": lambda a: {"check": "no", "characters": ","},
}  # fmt: skip
