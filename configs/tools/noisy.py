"""A control: a calculator whose answers have nothing to do with the question."""

from __future__ import annotations

import hashlib


class Noisy:
    """By the contract of TRL's environment_factory: the method is the tool."""

    def calculator(self, expression: str) -> str:
        """Compute the value of an arithmetic expression.

        Args:
            expression: Numbers with + - * / and brackets.
        """
        return str(int(hashlib.sha256(expression.encode("utf-8", "replace")).hexdigest(), 16) % 9702 + 100)
