"""Formats of JSON Schema, and its regular expressions: ECMA-262's, translated for the module `regex`."""

from __future__ import annotations

import datetime
import ipaddress
import re
from collections.abc import Callable

_DIGIT = "0-9"
_WORD = "0-9A-Z_a-z"
_SPACE = r"\t-\r \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
_CLASSES = {
    "d": _DIGIT,
    "w": _WORD,
    "s": _SPACE,
    "D": r"\x00-/:-\U0010ffff",
    "W": r"\x00-/:-@\[-\^`{-\U0010ffff",
    "S": r"\x00-\x08\x0e-\x1f!-\u009f\u00a1-\u167f\u1681-\u1fff\u200b-\u2027\u202a-\u202e\u2030-\u205e"
    r"\u2060-\u2fff\u3001-\ufefe\uff00-\U0010ffff",
}
_EDGE = rf"(?:(?<=[{_WORD}])(?![{_WORD}])|(?<![{_WORD}])(?=[{_WORD}]))"
_NO_EDGE = rf"(?:(?<=[{_WORD}])(?=[{_WORD}])|(?<![{_WORD}])(?![{_WORD}]))"
_TOKEN = re.compile(
    r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"  # a pair of surrogates is one character
    r"|\\u\{[0-9a-fA-F]+\}|\\u[0-9a-fA-F]{4}|\\x[0-9a-fA-F]{2}|\\c[A-Za-z]|\\[pP]\{[^{}]*\}|\\k<\w+>"
    r"|\\.|\{\d+(?:,\d*)?\}|.",
    re.DOTALL,
)


def ecma(pattern: str) -> str:
    """The pattern for the module `regex`, with ECMA-262's meaning under its flag u.

    There \\d and \\w are ASCII, $ is the very end, a dot stops at all four line ends and [ is a plain character in a
    class. Raises ValueError for an escape that ECMA does not know.
    """
    out: list[str] = []
    inside = False
    for token in _TOKEN.findall(pattern):
        if token[0] == "\\":
            out.append(_escape(token, pattern, inside=inside))
        elif inside:
            inside = token != "]"
            out.append("\\[" if token == "[" else token)
        elif token == "[":
            inside = True
            out.append(token)
        else:
            out.append({"$": r"\Z", ".": r"[^\n\r\u2028\u2029]", "{": r"\{"}.get(token, token))
    return "".join(out)


def _escape(token: str, pattern: str, *, inside: bool) -> str:
    kind = token[1:2]
    if kind in _CLASSES:
        return _CLASSES[kind] if inside else f"[{_CLASSES[kind]}]"
    if kind == "u" and len(token) > 2:
        return re.escape(_character(token))
    if kind == "c" and len(token) == 3:
        return rf"\x{ord(token[2].upper()) - 64:02x}"
    if kind == "k" and len(token) > 2:
        return f"(?P={token[3:-1]})"
    if kind == "b":
        return r"\x08" if inside else _EDGE
    if kind == "B" and not inside:
        return _NO_EDGE
    if kind == "/":
        return "/"
    if kind.isascii() and kind.isalpha() and not (kind in "tnvfrx" or (kind in "pP" and len(token) > 2)):
        raise ValueError(f"{pattern!r}: ECMA has no escape {token!r}")
    return token


def _character(token: str) -> str:
    if token[2] == "{":
        return chr(int(token[3:-1], 16))
    if len(token) == 12:
        high, low = int(token[2:6], 16), int(token[8:], 16)
        return chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))
    return chr(int(token[2:], 16))


def _date(text: str) -> bool:
    if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        return False
    try:
        datetime.date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _time(text: str) -> bool:
    """RFC 3339, with an offset; second 60 only where it is 23:59 in UTC."""
    read = re.fullmatch(r"([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.[0-9]+)?(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))", text)
    if read is None:
        return False
    hour, minute, second = (int(read[i]) for i in (1, 2, 3))
    offset_h, offset_m = int(read[5] or 0), int(read[6] or 0)
    if hour > 23 or minute > 59 or second > 60 or offset_h > 23 or offset_m > 59:
        return False
    offset = (offset_h * 60 + offset_m) * (-1 if read[4] == "-" else 1)
    return second < 60 or (hour * 60 + minute - offset) % 1440 == 1439


def _date_time(text: str) -> bool:
    return len(text) > 11 and text[10] in "Tt" and _date(text[:10]) and _time(text[11:])


def _address(version: type[ipaddress.IPv4Address | ipaddress.IPv6Address]) -> Callable[[str], bool]:
    def holds(text: str) -> bool:
        try:
            version(text)
        except ValueError:
            return False
        return "%" not in text and text.isascii()

    return holds


def _hostname(text: str) -> bool:
    label = r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)"
    return len(text) <= 253 and re.fullmatch(rf"{label}(?:\.{label})*", text) is not None


_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"


def _email(text: str) -> bool:
    local, at, domain = text.rpartition("@")
    plain = re.fullmatch(rf"{_ATOM}(?:\.{_ATOM})*", local) or re.fullmatch(r'"(?:[^"\\\r\n]|\\.)*"', local)
    if not (at and plain and len(local) <= 64):
        return False
    if domain.startswith("[") and domain.endswith("]"):
        literal = domain[1:-1]
        return FORMATS["ipv6"](literal[5:]) if literal[:5] == "IPv6:" else FORMATS["ipv4"](literal)
    return _hostname(domain)


_URI_CHARACTERS = r"(?:[A-Za-z0-9._~:/?#\[\]@!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*"


def _uri_reference(text: str) -> bool:
    return re.fullmatch(_URI_CHARACTERS, text) is not None and text.count("#") <= 1


def _uri(text: str) -> bool:
    return _uri_reference(text) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", text) is not None


_DURATION = re.compile(
    r"P(?!$)(?:[0-9]+W|(?:[0-9]+Y)?(?:[0-9]+M)?(?:[0-9]+D)?(?:T(?!$)(?:[0-9]+H)?(?:[0-9]+M)?(?:[0-9]+S)?)?)"
)
_UUID = re.compile(r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}")
_POINTER = re.compile(r"(?:/(?:[^~/]|~[01])*)*")
_RELATIVE_POINTER = re.compile(r"(?:0|[1-9][0-9]*)(?:#|(?:/(?:[^~/]|~[01])*)*)")

#: what is checked; any other format is an annotation
FORMATS: dict[str, Callable[[str], bool]] = {
    "date": _date,
    "time": _time,
    "date-time": _date_time,
    "duration": lambda text: _DURATION.fullmatch(text) is not None,
    "email": _email,
    "hostname": _hostname,
    "ipv4": _address(ipaddress.IPv4Address),
    "ip-address": _address(ipaddress.IPv4Address),  # draft-03's name
    "ipv6": _address(ipaddress.IPv6Address),
    "uri": _uri,
    "uri-reference": _uri_reference,
    "uuid": lambda text: _UUID.fullmatch(text) is not None,
    "json-pointer": lambda text: _POINTER.fullmatch(text) is not None,
    "relative-json-pointer": lambda text: _RELATIVE_POINTER.fullmatch(text) is not None,
}
