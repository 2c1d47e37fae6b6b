"""One spelling of an answer -> tokens. Linear in the text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal


class UnsupportedNotation(ValueError):
    """The text is outside the grammar, or too large to read."""


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
    " rm bf it mathstrut thinspace ~ boxed fbox underline ensuremath".split()
) | {" "}
SAME_COMMAND = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom", "leq": "le", "geq": "ge",
    "leqslant": "le", "geqslant": "ge", "neq": "ne", "lt": "<", "gt": ">", "varnothing": "emptyset", "to": "rightarrow",
    "ast": "cdot", "bullet": "cdot", "lbrace": "{", "rbrace": "}", "lbrack": "[", "rbrack": "]", "land": "and",
    "lor": "or", "degree": "circ", "backslash": "setminus", "varphi": "phi", "vert": "|", "mid": "|", "lvert": "|",
    "rvert": "|", "colon": ":", "dots": "ldots", "textmu": "mu", "Rightarrow": "rightarrow", "implies": "rightarrow",
    "textdegree": "circ", "smallsetminus": "setminus",
}  # fmt: skip
MATH_FONTS = frozenset("mathrm mathbf mathit mathsf mathtt mathnormal operatorname bold boldsymbol bm pmb".split())
TEXT_COMMANDS = MATH_FONTS | frozenset("text textbf textit textrm textnormal textsf texttt textup emph mbox".split())
FUNCTION_WORDS = frozenset(
    "sqrt sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh log ln lg exp pi infty".split()
)
UNIT_WORDS = frozenset("cm mm km kg mg ml mL mph kph ft in lb oz hr hrs min sec pct".split())
UNIT_LETTERS = frozenset("m s g h l L A C F H J K N T V W".split())  # as units after a number, in \\mathrm only
ANSWER_WORDS = frozenset("yes no".split())
MAX_FONT_DEPTH = 4  # of fonts within fonts

_PIECE = re.compile(
    r"""(?P<space>\s+)
    |(?P<num>\d{1,3}(?:,\\[!,]\s*\d{3}|\{,\}\s*\d{3}|\\[,;!]\s*\d{3}(?!\d)
        |\\?[ ]\d{3}(?!\d|[ ]*(?:/|\\[dt]?frac))  # 1 000, but not the mixed number 1 250/999
        |(?P<comma>,\d{3}))+(?!\d)(?:\.\d+)?|\d+\.\d+|\d+\.(?!\d)|\.\d+|\d+)
    |\\(?P<command>[a-zA-Z]+|.)
    |(?P<unit>(?:km/h|mi/h|cm/s|m/s)(?![a-zA-Z]))
    |(?P<word>[a-zA-Z]+)
    |(?P<sign>[-+*/^_=<>!|(){}\[\],;:%&'~])""",
    re.VERBOSE | re.DOTALL,
)
_SCIENTIFIC = re.compile(r"[eE]([-+]?\d{1,4})(?![\d.])")


def tokens_of(text: str, depth: int = 0) -> list[Token]:
    """Raises Unsupported for a symbol without a meaning here and for more than MAX_TOKENS tokens."""
    found: list[Token] = []
    at, brackets, spaced = 0, 0, False
    while at < len(text):
        piece = _PIECE.match(text, at)
        if piece is None:
            raise UnsupportedNotation(f"the sign {text[at]!r}")
        kind, raw, at = str(piece.lastgroup if piece.lastgroup != "comma" else "num"), piece[0], piece.end()
        if kind == "space":
            spaced = True
            continue
        if kind == "num" and piece["comma"] and brackets:
            # in brackets a comma separates: (1,234) is a pair
            raw = raw.partition(",")[0]
            at = piece.start() + len(raw)
        if kind == "command" and (name := SAME_COMMAND.get(piece["command"], piece["command"])) in TEXT_COMMANDS:
            content, at = _argument(text, at)
            new = _font_tokens(name, content, spaced, _context(found), depth)
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
        brackets += sum((t.text in "([") - (t.text in ")]") for t in new if t.kind == "sign")
        brackets += sum((t.text == "\\{") - (t.text == "\\}") for t in new)
        found += new
        spaced = spaced and not new
        if len(found) > MAX_TOKENS:
            raise UnsupportedNotation(f"more than {MAX_TOKENS} tokens")
    return [*(_with_unit_symbols(found) if depth == 0 else found), Token("end", "")]


def _context(found: list[Token]) -> Literal["start", "value", "unit"]:
    """What the next words come after: nothing or an operator, a value, or a unit that may go on (`m/`, `kg \\cdot`)."""
    for i in range(len(found) - 1, -1, -1):
        token = found[i]
        if token.kind == "text":
            return "unit"
        joins = token.text in ("/", "*", "^", "{", "}", "-", "(") if token.kind == "sign" else token.kind == "num"
        joins = joins or (token.kind == "command" and token.text in ("cdot", "times"))
        if not joins or not any(earlier.kind == "text" for earlier in found[max(0, i - 6) : i]):
            break
    if not found:
        return "start"
    last = found[-1]
    closes = last.kind == "sign" and last.text in (")", "]", "}", "|", "%", "\\}", "!")
    ends = last.kind in ("num", "letter") or closes or (last.kind == "command" and last.text in ("pi", "infty", "circ"))
    return "value" if ends else "start"


def _is_micro(after: Token, rest: list[Token]) -> bool:
    return after.kind == "text" or (after.kind == "letter" and after.text in UNIT_LETTERS and not rest)


def _with_unit_symbols(tokens: list[Token]) -> list[Token]:
    r"""`5\,\mu\text{m}` and `5\,\Omega`: a Greek letter that belongs to a unit, as text."""
    out: list[Token] = []
    for i, token in enumerate(tokens):
        after = tokens[i + 1] if i + 1 < len(tokens) else Token("end", "")
        valued = bool(out) and (out[-1].kind == "num" or out[-1].text in ("}", ")"))
        if out and out[-1] == Token("text", "μ") and token.kind in ("text", "letter"):
            out[-1] = Token("text", "μ" + token.text)
        elif token.kind == "command" and token.text == "mu" and valued and _is_micro(after, tokens[i + 2 :]):
            out.append(Token("text", "μ"))
        elif token.kind == "command" and token.text == "Omega" and valued and after.kind in ("end", "text"):
            out.append(Token("text", "ohm"))
        elif token.kind == "command" and token.text == "Omega" and out and out[-1].text in ("k", "M", "m"):
            out[-1] = Token("text", out[-1].text + "ohm")
        else:
            out.append(token)
    return out


def _digits(raw: str) -> str:
    digits = re.sub(r"[^\d.]", "", raw)
    if len(digits) > MAX_DIGITS:
        raise UnsupportedNotation(f"a number of {len(digits)} digits")
    return digits


def _argument(text: str, at: int) -> tuple[str, int]:
    """The content of the braces at or after white space, braces within them included, and where they end."""
    opened = re.compile(r"\s*\{").match(text, at)
    if opened is None:
        raise UnsupportedNotation("a text without its braces")
    depth, start = 1, opened.end()
    for piece in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += (piece[0] == "{") - (piece[0] == "}")
        if depth == 0:
            return text[start : piece.start()], piece.end()
    raise UnsupportedNotation("a text whose braces do not close")


_WORDS_ONLY = re.compile(r"[^\d\\^_=+*|{}$<>]*")
_VALUE_FIRST = re.compile(
    r"\s*[-+(\[]?\s*(?:\d|\.\d|\\?\$|\\(?:d?frac|tfrac|sqrt|pi|boxed|text|math|bold|left)\b|\\[a-z]*{)"
)


def _font_tokens(
    command: str, content: str, spaced: bool, context: Literal["start", "value", "unit"], depth: int
) -> list[Token]:
    r"""`\text{ cm}` is words or a unit; `\textbf{5 apples}` and `\mathbf{\frac12}` are what stands in them."""
    words = content.strip()
    if words in ("or", "and", ", and", ", or", ",and", ",or"):
        return [Token("command", "or" if "or" in words else "and")]
    if words in ("%", "\\%"):
        return [Token("sign", "%")]
    if command in MATH_FONTS:
        if len(words) == 1 and words.isascii() and words.isalpha():
            is_unit = command == "mathrm" and context != "start" and words in UNIT_LETTERS
            return [Token("text" if is_unit or context == "unit" else "letter", words, spaced)]
        if words in FUNCTION_WORDS:
            return [Token("command", words, spaced)]
    if _WORDS_ONLY.fullmatch(words):
        return [Token("text", words, spaced)] if words else []
    if context != "start":
        return [Token("text", words, spaced)]
    if not (_VALUE_FIRST.match(words) or "=" in words or (command in MATH_FONTS and not words.isalnum())):
        return [Token("text", words, spaced)]
    if depth >= MAX_FONT_DEPTH:
        raise UnsupportedNotation("fonts within fonts")
    return tokens_of(content, depth + 1)[:-1]


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
    if word in ("or", "and") and (spaced or after_number):
        return [Token("command", word, spaced)]
    if word.lower() in ANSWER_WORDS and not spaced and not after_number:
        return [Token("text", word, spaced)]
    if (after_number and word in UNIT_WORDS) or (len(word) >= 4 and set(word.lower()) & set("aeiou")):
        return [Token("text", word, spaced)]
    return [Token("letter", letter, spaced and i == 0) for i, letter in enumerate(word)]
