"""Remove keys and tokens from text that is written to disk: details of verdicts, error lines, manifests."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

REDACTED = "(redacted)"
SECRET_NAME = re.compile(
    r"(^|_)(api_?key|access_?key|private_?key|secret(_key)?|passw(or)?d|credentials?|authorization)$"
    r"|^(hub_|hf_|auth_|access_|api_|bearer_)?token$",  # but not eos_token or max_tokens
    re.IGNORECASE,
)
# for environment variables, where TOKEN never means a number of tokens
SECRET_VARIABLE = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
SHORTEST = 8  # shorter values are likely to be common words

_LOGIN_IN_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")
_QUERY = re.compile(r"(?<=[?&])([\w.-]*(?:key|token|secret|password|signature|sig|auth))=[^&\s'\"<>)\]]+",
                    re.IGNORECASE)  # fmt: skip
_HEADER = re.compile(r"\b((?:proxy-)?authorization|x-api-key|api-key)(['\"]?\s*[:=]\s*['\"]?)(?:\w+\s+)?[^\s'\",;}]+",
                     re.IGNORECASE)  # fmt: skip
_BEARER = re.compile(r"\b(bearer|basic)\s+(?=[A-Za-z]*[\d.~+/=_-])[\w.~+/=-]{8,}", re.IGNORECASE)
_KNOWN_FORM = re.compile(r"\b(hf_[A-Za-z0-9]{20,}|sk-[\w-]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16})\b")


def hidden(text: str, secrets: Sequence[str] | None = None) -> str:
    """text without values of secret environment variables, credentials in URLs, and strings that look like tokens.

    secrets: `secret_values()`, for a caller with many texts, since reading the environment takes longer than a text.
    """
    for value in secret_values() if secrets is None else secrets:
        text = text.replace(value, REDACTED)
    text = _LOGIN_IN_URL.sub(REDACTED, text)
    text = _QUERY.sub(rf"\1={REDACTED}", text)
    text = _HEADER.sub(rf"\1\2{REDACTED}", text)
    text = _BEARER.sub(rf"\1 {REDACTED}", text)
    return _KNOWN_FORM.sub(REDACTED, text)


def secret_values() -> list[str]:
    """The values of secret environment variables, longest first, since one may contain another."""
    named = (value.strip() for name, value in os.environ.items() if SECRET_VARIABLE.search(name))
    long_enough = {value for value in named if len(value) >= SHORTEST and not os.path.exists(value)}  # no path is a key
    return sorted(long_enough, key=len, reverse=True)


__all__ = ["REDACTED", "SECRET_NAME", "hidden", "secret_values"]
