"""The words after a value: units by one name each, and words that no unit is made of."""

from __future__ import annotations

import re

from verifiers._math.lexer import Unsupported

MULTIPLIERS = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
NO_UNITS = frozenset(
    "or and not no to is are if maybe perhaps about approximately roughly around more less than at least most mod false"
    " wrong incorrect plus minus times over squared cubed nan either otherwise undefined half third quarter".split()
)
_UNIT = re.compile(r"([^\W\d_]+(?:[ /.-]+[^\W\d_]+)*)\.?(\^[23])?")
UNIT_ALIASES = {
    "centimeters": "cm", "centimeter": "cm", "centimetres": "cm", "centimetre": "cm", "meters": "m", "meter": "m",
    "metres": "m", "metre": "m", "kilometers": "km", "kilometer": "km", "millimeters": "mm", "millimeter": "mm",
    "inches": "inch", "inch": "inch", "in": "inch", "feet": "foot", "ft": "foot", "kilograms": "kg", "kilogram": "kg",
    "grams": "g", "gram": "g", "seconds": "second", "sec": "second", "s": "second", "hours": "hour", "hrs": "hour",
    "hr": "hour", "h": "hour", "minutes": "minute", "min": "minute", "dollars": "dollar", "degrees": "degree",
    "miles per hour": "mph", "mi/h": "mph", "kilometers per hour": "km/h", "kph": "km/h", "liters": "l", "litres": "l",
    "liter": "l", "litre": "l", "units": "unit",
}  # fmt: skip


def unit_name(words: str) -> str:
    """One name for a unit's spellings, `cm^2` for square centimeters. Raises Unsupported for words that are no unit."""
    words = words.lower().strip(" .")
    found = _UNIT.fullmatch(words)
    plain = re.split(r"[ /.-]+", found[1]) if found else []
    if found is None or len(plain) > 4 or NO_UNITS & set(plain):
        raise Unsupported(f"the words {words[:40]!r}")
    stem, power = found[1], found[2] or ""
    for prefix, implied in (("square ", "^2"), ("sq ", "^2"), ("sq. ", "^2"), ("cubic ", "^3")):
        if stem.startswith(prefix):
            stem, power = stem.removeprefix(prefix), implied
    return UNIT_ALIASES.get(stem, stem.removesuffix("s")) + power
