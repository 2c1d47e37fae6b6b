"""The final answer of a completion, and one spelling for the many ways to write the same symbols."""

from __future__ import annotations

import re
import unicodedata

from verifiers import after_thinking
from verifiers._math import statement

MAX_CHARS = 2000  # of an answer; no honest final answer is longer

SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", "0123456789-+n", strict=True))
SIGNS = {
    "−": "-", "‐": "-", "‑": "-", "–": "-", "—": "-",
    "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": r"\div ",
    "√": r"\sqrt ", "π": r"\pi ", "∞": r"\infty ", "∪": r"\cup ", "∩": r"\cap ", "≤": r"\le ", "≥": r"\ge ",
    "≠": r"\ne ", "∈": r"\in ", "±": r"\pm ", "∓": r"\mp ", "∅": r"\emptyset ", "°": r"^\circ ", "ℝ": r"\mathbb{R}",
    "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "λ": r"\lambda ", "φ": r"\phi ",
    "€": r"\text{ euros}", "£": r"\text{ pounds}", "⁄": "/", "∕": "/", "…": r"\ldots ", "≈": r"\approx ",
    "μ": r"\mu ", "Ω": r"\Omega ", "∠": r"\angle ", "∖": r"\setminus ",
}  # fmt: skip
_SUPERSCRIPT_RUN = re.compile(f"[{''.join(SUPERSCRIPTS)}]+")
_VULGAR_FRACTION = re.compile("[¼½¾⅐-⅞]")
_BOX_OR_BRACE = re.compile(
    r"(?P<box>\\(?:boxed|fbox)\s*\{)|\\(?:boxed|fbox)\s+(?P<open>[^\s${}\\]+)|\\.|[{}]", re.DOTALL
)
_GAP = r"(?:[\s$]|\\[()\[\],;: ]|\\q?quad(?![a-zA-Z]))*"
_JOINS_BOXES = re.compile(rf"{_GAP}(?:(?:,|;|&|(?:and|or)\b|\\(?:text|mathrm)\{{[\s,]*(?:and|or)\s*\}}){_GAP}){{1,3}}")
MAX_BETWEEN_BOXES = 60  # characters
_NUMBER_ALONE = re.compile(r"\s*([-+−]?[0-9][0-9,.]{0,30}%?)\s*")
_WHOLE_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{(.*)\}", re.DOTALL)


def final_answer(completion: str, *, box_needed: bool = True) -> str | None:
    r"""The content of the last \boxed{...} after the thinking; None if there is no box, or it does not close.

    The last box only: an earlier one is a step, and taking any would reward guessing many. Without box_needed, a
    completion that has no box may also state its answer: `<answer>...</answer>`, `#### 73`, `**Final Answer:** 73`,
    `The correct answer is 73.`, or a heading `### Answer` with the answer below it. The last statement counts, and
    only closing words that do not take it back may follow it.
    """
    answer = after_thinking(completion)
    has_box, inside = _last_box(answer)
    if has_box or box_needed:
        return inside
    _, opened, tail = answer.rpartition("<answer>")
    if opened and "</answer>" in tail:
        return statement.unlabelled(tail.partition("</answer>")[0].strip()) or None
    return statement.last_stated(answer)


def no_answer(completion: str, *, box_needed: bool) -> str:
    """Why a completion has no final answer, in words for the verdict's detail: the commonest cause has its fix."""
    alone = _NUMBER_ALONE.fullmatch(after_thinking(completion))
    if alone is None:
        return "no final answer in a box that closes" if box_needed else "no final answer"
    example = rf"\boxed{{{alone[1]}}}" if box_needed else f"The answer is {alone[1]}"
    return f"a bare number is not a stated answer: write `{example}`, or use the verifier exact"


def boxed_content(text: str) -> str:
    r"""The content of the last closed \boxed{...} of a gold, whatever words stand around it; text itself without."""
    has_box, inside = _last_box(text)
    return inside if has_box and inside is not None else text


def _last_box(text: str) -> tuple[bool, str | None]:
    r"""Whether there is a box at all, and the content of the last one, or None if it does not close.

    A box within a box is a part of the outer one. Boxes joined by nothing but `and`, `or` or a comma are one list:
    `\boxed{1} and \boxed{2}`. One pass: a thousand boxes that never close cost no more than one.
    """
    found: list[tuple[int, int, str | None]] = []  # start, end and content of each box
    start, depth = 0, 0
    for piece in _BOX_OR_BRACE.finditer(text):
        if depth == 0 and piece["open"]:  # \boxed 7
            found.append((piece.start(), piece.end(), piece["open"].rstrip(".,;:)")))
        elif depth == 0 and piece["box"]:
            start, depth = piece.end(), 1
            found.append((piece.start(), len(text), None))
        elif depth and (piece["box"] or piece[0] == "{"):
            depth += 1
        elif depth and piece[0] == "}":
            depth -= 1
            if depth == 0:
                found[-1] = (found[-1][0], piece.end(), text[start : piece.start()].strip())
    return bool(found), _joined(text, found)


def _joined(text: str, boxes: list[tuple[int, int, str | None]]) -> str | None:
    if not boxes or boxes[-1][2] is None:
        return None
    first = len(boxes) - 1
    while first and boxes[first - 1][2] and _joins(text[boxes[first - 1][1] : boxes[first][0]]):
        first -= 1
    contents = [unboxed(content) for _, _, content in boxes[first:] if content is not None]
    return ", ".join(dict.fromkeys(contents))


def _joins(between: str) -> bool:
    return len(between) <= MAX_BETWEEN_BOXES and _JOINS_BOXES.fullmatch(between) is not None


def unboxed(text: str) -> str:
    r"""text without the boxes that hold all of it: \boxed{\boxed{7}} is 7."""
    for _ in range(4):
        whole = _WHOLE_BOX.fullmatch(text.strip())
        if whole is None or not _closes_at_end(whole[1]):
            break
        text = whole[1].strip()
    return text


def _closes_at_end(inside: str) -> bool:
    depth = 0
    for piece in _BOX_OR_BRACE.finditer(inside):
        depth += (piece[0][-1] == "{" and (piece["box"] is not None or piece[0] == "{")) - (piece[0] == "}")
        if depth < 0:
            return False
    return depth == 0


def unreadable(answer: str) -> str | None:
    """Why an answer is not even looked at: too long, or holding characters that do not show."""
    if len(answer) > MAX_CHARS:
        return f"longer than {MAX_CHARS} characters"
    for char in answer:
        if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn") and char not in "\t\n\r":
            return f"holds the character U+{ord(char):04X}"
    return None


def one_spelling(text: str) -> str:
    """LaTeX in ASCII as far as it goes: compatibility forms folded, unicode signs as commands, dollars off."""
    text = _SUPERSCRIPT_RUN.sub(lambda run: "^{" + "".join(SUPERSCRIPTS[c] for c in run[0]) + "}", text)
    text = _VULGAR_FRACTION.sub(lambda char: _as_fraction(char[0]), text)
    text = unicodedata.normalize("NFKC", text)
    for sign, command in SIGNS.items():
        text = text.replace(sign, command)
    if r"\begin" not in text:  # where no row ends, two backslashes are one that was escaped twice
        text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)
    text = re.sub(r"(?<!\\)\$|\\[()\[\]](?![a-zA-Z])", " ", text).strip().removeprefix("=").lstrip()
    text = re.sub(r"\{\}\s*(?=\^)", "", text)
    text = re.sub(r"(?<=\d)\.{3,}", r"\\ldots ", text)
    return re.sub(r"[\s.,;]+$", "", text) if not text.endswith(r"\,") else text[:-2].strip()


def _as_fraction(char: str) -> str:
    top, _, bottom = unicodedata.normalize("NFKC", char).partition("⁄")
    return rf"\frac{{{top}}}{{{bottom}}}"


def squeezed(text: str) -> str:
    """text without what does not change its meaning, for comparing letter by letter. A space between digits stays:
    `1 1/2` is not `11/2`."""
    text = re.sub(r"\\(?:left|right|displaystyle|[,;!:> ])|~", " ", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\s+", " ", text)
    return re.sub(r"(?<!\d) | (?!\d)", "", text).strip()


def plain_words(text: str) -> str:
    r"""The words of `\text{Tuesday}.` or `(C)`, small, wrappers and outer brackets off; for answers that are text."""
    text = re.sub(r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|mathrm|mathbf|mbox|operatorname)\b\s*", "", text)
    text = re.sub(r"\\[,;!: ]|[{}~]", " ", text.replace("\\left", "").replace("\\right", ""))
    text = re.sub(r"\s+", " ", text).strip().strip(".,;:!'\"").strip().lower()
    single = re.fullmatch(r"\(\s*([a-z])\s*\)", text)
    return single[1] if single else text
