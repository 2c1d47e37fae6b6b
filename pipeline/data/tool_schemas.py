"""Schemas of tools, as chat templates read them, in the rows of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pipeline.config.load import ConfigError
from pipeline.config.schema import Tools
from pipeline.data.columns import DataRow, Row, origin
from pipeline.data.lazy_rows import RowView
from verifiers import tools as registry
from verifiers.tools import Tool, Toolbox
from verifiers.tools._mcp import mcp_tool
from verifiers.tools._openenv import OpenEnvServer, openenv_tool
from verifiers.tools._prime import PrimeEnvironment, prime_tool


def schemas_of(functions: Mapping[str, Callable[..., Any]]) -> list[Row]:
    """One schema per function, from its type hints and docstring. Raises ValueError naming what is missing."""
    from transformers.utils import get_json_schema

    out = []
    for name, function in functions.items():
        try:
            out.append(getattr(function, "schema", None) or get_json_schema(function))
        except Exception as exc:  # DocstringParsingException, TypeHintParsingException: no common base of their own
            text = " ".join(str(exc).split())
            raise ValueError(f"tool {name!r}: its schema cannot be made: {text or type(exc).__name__}") from exc
    return out


def with_tools(rows: Sequence[Row], schemas: Sequence[Row]) -> Sequence[Row]:
    """Rows with the tools that the policy may call; a row that names its own keeps them."""

    def change(row: Row, number: int) -> Row:
        return row if row.get("tools") else DataRow({**row, "tools": list(schemas)}, origin(row, number))

    return RowView(rows, change=change) if schemas else rows


class ToolSet:
    """The tools of a run. answers_turns: whether an environment gets whole turns; it then offers its own tools.

    Raises ConfigError where one is unknown, cannot run here, or has no schema.
    """

    def __init__(self, settings: Tools, *, path: str) -> None:
        used = settings.use if isinstance(settings.use, dict) else {name: {} for name in settings.use}
        try:
            self.tools: list[tuple[Tool, Mapping[str, Any]]] = [
                (registry.load(name, settings.dirs), given) for name, given in used.items()
            ]
            if settings.environment is not None:
                self.tools.append((registry.load_class(settings.environment), {}))
            self.tools += [(mcp_tool(name, command, timeout_s=settings.timeout_s), {})
                           for name, command in settings.mcp.items()]  # fmt: skip
            if settings.prime is not None:
                self.tools.append((prime_tool(PrimeEnvironment(**asdict(settings.prime)),
                                              timeout_s=settings.timeout_s), {}))  # fmt: skip
            if settings.openenv is not None:
                self.tools.append((openenv_tool(OpenEnvServer(**asdict(settings.openenv)),
                                                timeout_s=settings.timeout_s), {}))  # fmt: skip
            for tool, _ in self.tools:
                if reason := getattr(tool.module, "unavailable", lambda: None)():
                    raise ValueError(f"{tool.name} cannot run here: {reason}")
            probe = self.open()
            self.schemas = schemas_of(probe.functions)
            self.answers_turns = probe.answers_turns
            probe.close()
        except (ValueError, TypeError, OSError) as exc:
            raise ConfigError([f"{path}: tools: {exc}"]) from exc

    def open(self) -> Toolbox:
        """The tools of one episode."""
        return Toolbox(self.tools)
