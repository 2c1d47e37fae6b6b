"""One spelling of an answer -> tokens. Linear in the text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal


class Unsupported(ValueError):
    """The text is outside the grammar, or too large to look at."""


Kind = Literal["num", "letter", "command", "sign", "text", "end"]


@dataclass(frozen=True, slots=True)
class Token:
    """text: the digits of a number, a letter, a command's name, one sign, or what \\text{...} holds."""

    kind: Kind
    text: str
    spaced: bool = False  # white space stood before it


MAX_TOKENS = 600
MAX_DIGITS = 300
SKIPPED = frozenset(
    "left right big Big bigg Bigg bigl bigr Bigl Bigr displaystyle textstyle limits nolimits quad qquad , ; ! : >"
    " rm bf it mathstrut thinspace ~".split()
) | {" "}
SAME_COMMAND = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom", "leq": "le", "geq": "ge",
    "leqslant": "le", "geqslant": "ge", "neq": "ne", "lt": "<", "gt": ">", "varnothing": "emptyset", "to": "rightarrow",
    "ast": "cdot", "bullet": "cdot", "lbrace": "{", "rbrace": "}", "lbrack": "[", "rbrack": "]", "land": "and",
    "lor": "or", "degree": "circ", "backslash": "setminus", "varphi": "phi", "vert": "|", "mid": "|", "lvert": "|",
    "rvert": "|", "colon": ":",
}  # fmt: skip
TEXT_COMMANDS = frozenset(
    "text textbf textit textrm textnormal textsf mbox mathrm mathbf mathit operatorname bold".split()
)
FUNCTION_WORDS = frozenset(
    "sqrt sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp pi infty".split()
)
UNIT_WORDS = frozenset("cm mm km kg mg ml mL mph kph ft in lb oz hr hrs min sec".split())

_PIECE = re.compile(
    r"""(?P<space>\s+)
    |(?P<num>\d{1,3}(?:,\\!\d{3}|\{,\}\d{3}|\\,\d{3}(?!\d)|(?P<comma>,\d{3}))+(?!\d)(?:\.\d+)?|\d+\.\d+|\d+\.(?!\d)|\.\d+|\d+)
    |\\(?P<command>[a-zA-Z]+|.)
    |(?P<unit>(?:km/h|mi/h|cm/s|m/s)(?![a-zA-Z]))
    |(?P<word>[a-zA-Z]+)
    |(?P<sign>[-+*/^_=<>!|(){}\[\],;:%&'~])""",
    re.VERBOSE | re.DOTALL,
)
_SCIENTIFIC = re.compile(r"[eE]([-+]?\d{1,4})(?![\d.])")


def tokens_of(text: str) -> list[Token]:
    """Raises Unsupported for a sign without a meaning here and for more than MAX_TOKENS tokens."""
    found: list[Token] = []
    at, depth, spaced = 0, 0, False
    while at < len(text):
        piece = _PIECE.match(text, at)
        if piece is None:
            raise Unsupported(f"the sign {text[at]!r}")
        kind, raw, at = str(piece.lastgroup if piece.lastgroup != "comma" else "num"), piece[0], piece.end()
        if kind == "space":
            spaced = True
            continue
        if kind == "num" and piece["comma"] and depth:
            # in brackets a comma separates: (1,234) is a pair
            raw = raw.partition(",")[0]
            at = piece.start() + len(raw)
        if kind == "command" and (name := SAME_COMMAND.get(piece["command"], piece["command"])) in TEXT_COMMANDS:
            content, at = _braced(text, at)
            new = _text_tokens(name, content, spaced)
        elif kind == "command":
            new = _command_tokens(name, spaced)
        elif kind == "num":
            exponent = _SCIENTIFIC.match(text, at)
            at = exponent.end() if exponent else at
            new = [Token("num", _digits(raw) + (f"e{exponent[1]}" if exponent else ""), spaced)]
        elif kind == "unit":
            new = [Token("text", raw, spaced)]
        elif kind == "word":
            new = _word_tokens(raw, spaced, bool(found) and (found[-1].kind == "num" or found[-1].text in ")}"))
        else:
            new = [Token("sign", raw, spaced)] if raw != "~" else []
        depth += sum((t.text in "([") - (t.text in ")]") for t in new if t.kind == "sign")
        depth += sum((t.text == "\\{") - (t.text == "\\}") for t in new)
        found += new
        spaced = spaced and not new
        if len(found) > MAX_TOKENS:
            raise Unsupported(f"more than {MAX_TOKENS} tokens")
    return [*found, Token("end", "")]


def _digits(raw: str) -> str:
    digits = re.sub(r"[^\d.]", "", raw)
    if len(digits) > MAX_DIGITS:
        raise Unsupported(f"a number of {len(digits)} digits")
    return digits


def _braced(text: str, at: int) -> tuple[str, int]:
    """What the braces at or after white space hold, and where they end."""
    opened = re.compile(r"\s*\{([^{}]*)\}").match(text, at)
    if opened is None:
        raise Unsupported("a text without its braces")
    return opened[1], opened.end()


def _text_tokens(command: str, content: str, spaced: bool) -> list[Token]:
    words = content.strip()
    if words in ("or", "and", ", and", ", or", ",and", ",or"):
        return [Token("command", "or" if "or" in words else "and")]
    if words == "%":
        return [Token("sign", "%")]
    if command in ("mathrm", "mathbf", "mathit", "operatorname", "bold"):
        if len(words) == 1 and words.isascii() and words.isalpha():
            return [Token("letter", words, spaced)]
        if words in FUNCTION_WORDS:
            return [Token("command", words, spaced)]
    return [Token("text", words, spaced)] if words else []


def _command_tokens(name: str, spaced: bool) -> list[Token]:
    if name in SKIPPED:
        return []
    if name in ("{", "}"):
        return [Token("sign", f"\\{name}", spaced)]
    if name in ("langle", "rangle"):  # a vector, compared as a tuple
        return [Token("sign", "(" if name == "langle" else ")", spaced)]
    if name in ("<", ">", "[", "]", "|", ":", "%"):
        return [Token("sign", name, spaced)]
    return [Token("command", name, spaced)]


def _word_tokens(word: str, spaced: bool, after_number: bool) -> list[Token]:
    """A bare run of letters: a function, `or`, a unit after a number, a word, or a product of variables."""
    if word in FUNCTION_WORDS:
        return [Token("command", word, spaced)]
    if word.lower() in ("infinity", "inf"):
        return [Token("command", "infty", spaced)]
    if word in ("or", "and") and spaced:
        return [Token("command", word, spaced)]
    if (after_number and word in UNIT_WORDS) or (len(word) >= 4 and set(word.lower()) & set("aeiou")):
        return [Token("text", word, spaced)]
    return [Token("letter", letter, spaced and i == 0) for i, letter in enumerate(word)]
