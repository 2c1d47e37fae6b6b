"""The words after a value: units in one canonical form, and words that are never a unit."""

from __future__ import annotations

import re
from collections import Counter

from verifiers._math.lexer import UnsupportedNotation

MULTIPLIERS = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
NO_UNITS = frozenset(
    "or and not no to is are if maybe perhaps about approximately roughly around more less than at least most mod false"
    " wrong incorrect plus minus times over nan either otherwise undefined half third quarter".split()
)
MAX_WORDS = 6
MAX_PHRASE = 4
_ALIASES = {
    "m": "meter meters metre metres", "cm": "centimeter centimeters centimetre centimetres",
    "mm": "millimeter millimeters millimetre millimetres", "km": "kilometer kilometers kilometre kilometres",
    "um": "μm micrometer micrometers micron microns", "nm": "nanometer nanometers",
    "inch": "inches in", "foot": "feet ft", "yard": "yards yd yds", "mile": "miles mi",
    "kg": "kilogram kilograms kilo kilos", "g": "gram grams gramme grammes", "mg": "milligram milligrams",
    "pound": "pounds lb lbs", "ounce": "ounces oz", "l": "liter liters litre litres",
    "ml": "milliliter milliliters millilitre millilitres", "second": "seconds sec secs s", "minute": "minutes min mins",
    "hour": "hours hr hrs h", "day": "days", "week": "weeks", "month": "months", "year": "years yr yrs",
    "dollar": "dollars usd", "cent": "cents", "degree": "degrees deg", "celsius": "centigrade", "fahrenheit": "",
    "radian": "radians rad", "unit": "units", "ohm": "ohms ω", "kohm": "kilohm kilohms",
    "n": "newton newtons", "j": "joule joules", "kj": "kilojoule kilojoules", "w": "watt watts",
    "kw": "kilowatt kilowatts", "v": "volt volts", "a": "ampere amperes amp amps", "ma": "milliampere milliamperes",
    "pa": "pascal pascals", "kpa": "kilopascal kilopascals", "hz": "hertz", "khz": "kilohertz", "k": "kelvin kelvins",
    "c": "coulomb coulombs", "t": "tesla teslas", "f": "farad farads", "mol": "mole moles mols", "ev": "electronvolt",
    "ms": "millisecond milliseconds", "kn": "kilonewton kilonewtons", "ua": "", "uf": "", "us": "", "ns": "", "mv": "",
    "kcal": "kilocalorie kilocalories", "cal": "calorie calories", "atm": "atmosphere atmospheres", "acre": "acres",
}  # fmt: skip
UNITS = {name: name for name in _ALIASES} | {alias: name for name, many in _ALIASES.items() for alias in many.split()}
_COMPOSED = {"mph": "mile/hour", "kph": "km/hour", "kmh": "km/hour", "mps": "m/second", "fps": "foot/second"}
_TEMPERATURE = re.compile(r"(?:degrees?|deg|°|\\circ|\^circ|\^\\circ)\s*((?i:celsius|centigrade|fahrenheit)|[CcFf])\b")
_MEGA = re.compile(r"M(?=(?:W|V|J|N|Pa|Hz|eV|ohm)\b)")
_SPACE = re.compile(r"\\[,;:! ]|~|\\cdot|\\times|[*\N{MIDDLE DOT}]|(?<=\w)-(?=[^\W\d])")
_FONT = re.compile(r"\\(?:text|mathrm|mathsf|operatorname)\b")
_PIECE = re.compile(r"\s*(?:(?P<word>[^\W\d_]+)\.?|\^(?P<power>-?[1-3])(?!\d)|(?P<sign>[/()]))")


def unit_name(words: str) -> str:
    r"""One name for the spellings of a unit: `m second^-2` for `m/s^2`, `m\,s^{-2}` and `meters per second squared`.

    Words that are no known unit (`red apples`) are a unit by themselves. Raises Unsupported for words that are none.
    """
    text = _MEGA.sub("mega", _TEMPERATURE.sub(_temperature, words))
    text = re.sub(r"\\Omega\b", "ohm", re.sub(r"\\mu\s*|\N{GREEK SMALL LETTER MU}", "u", text))
    text = re.sub(r"[{}]", "", _FONT.sub(" ", _SPACE.sub(" ", text))).strip(" .").lower()
    pieces = _pieces(text, words)
    plain = [piece for piece in pieces if piece[0].isalpha()]
    if not plain or len(plain) > MAX_WORDS or NO_UNITS & set(plain):
        raise UnsupportedNotation(f"the words {words[:40]!r}")
    exponents: Counter[str] = Counter()
    for name, exponent in _factors(pieces, words):
        for part, sign in _parts(name):
            exponents[part] += sign * exponent
    return " ".join(name if n == 1 else f"{name}^{n}" for name, n in sorted(exponents.items()) if n) or "unit"


def _temperature(match: re.Match[str]) -> str:
    return " celsius" if match[1][0] in "Cc" else " fahrenheit"


def _pieces(text: str, words: str) -> list[str]:
    for name, composed in _COMPOSED.items():
        text = re.sub(rf"\b{name}\b", composed, text)
    pieces, at = [], 0
    while at < len(text):
        piece = _PIECE.match(text, at)
        if piece is None:
            raise UnsupportedNotation(f"the words {words[:40]!r}")
        pieces.append(piece["word"] or piece["power"] or piece["sign"])
        at = piece.end()
    return ["/" if piece == "per" else piece for piece in pieces]


def _factors(pieces: list[str], words: str) -> list[tuple[str, int]]:
    """(unit or run of words, exponent) of each factor; a slash inverts the next factor or the bracket after it."""
    factors: list[tuple[str, int]] = []
    sign, power, bracket = 1, 1, False
    for i, piece in enumerate(pieces):
        if piece == "/":
            sign = -1
        elif piece in "()":
            bracket = piece == "("
            sign = sign if bracket else 1
        elif piece in ("square", "sq", "cubic"):
            power = 3 if piece == "cubic" else 2
        elif piece in ("squared", "cubed") or not piece.isalpha():
            if not factors:
                raise UnsupportedNotation(f"the words {words[:40]!r}")
            name, exponent = factors[-1]
            factors[-1] = (name, exponent * {"squared": 2, "cubed": 3}.get(piece, 0) or exponent * int(piece))
        elif factors and not bracket and _is_phrase(factors[-1][0], piece, pieces[i - 1]):
            factors[-1] = (f"{factors[-1][0]} {piece}", factors[-1][1])
        else:
            factors.append((piece, sign * power))
            sign, power = sign if bracket else 1, 1
    if any(name.count(" ") >= MAX_PHRASE for name, _ in factors):
        raise UnsupportedNotation(f"the words {words[:40]!r}")
    return factors


def _is_phrase(name: str, word: str, before: str) -> bool:
    """Whether a word goes on with the run of words before it: `red apples`, but `N m` is a product."""
    return name.endswith(before) and before.isalpha() and not (word in UNITS and name in UNITS)


def _parts(name: str) -> list[tuple[str, int]]:
    if name in UNITS:
        return [(UNITS[name], 1)]
    return [(name.removesuffix("s"), 1)]
