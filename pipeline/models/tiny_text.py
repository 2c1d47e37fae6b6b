"""What a tiny model can read: its tokenizer has one token per byte of `model.tiny.characters` and drops any other."""

from __future__ import annotations

import re

SPECIAL = ("<pad>", "<bos>", "<eos>")
_SPECIAL = re.compile("|".join(SPECIAL))


def unknown_characters(text: str, characters: str) -> str:
    """The distinct characters of a text that the tokenizer drops wholly or in part, in their order."""
    if not (found := dict.fromkeys(_SPECIAL.sub("", text))):
        return ""
    known = set(characters.encode("utf-8", "surrogatepass"))
    return "".join(c for c in found if not known.issuperset(c.encode("utf-8", "surrogatepass")))
