"""Which module may import which, read from the syntax tree: the checker behind test_arrows.py.

Nothing is imported; sources are passed as text, so that a test can plant a broken arrow and see it found.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

OURS = ("verifiers", "rewards", "pipeline", "benchmarks", "tests")

# Each may import the packages to its left and itself: verifiers <- rewards <- pipeline.
PACKAGES = ("verifiers", "rewards", "pipeline")

# Inside pipeline, each row may import itself and the rows above it. A folder or module that no row names is an error.
ROWS: tuple[frozenset[str], ...] = (
    frozenset({"records", "seeds", "stats"}),
    frozenset({"config"}),
    frozenset({"distributed"}),
    frozenset({"score", "credit"}),
    frozenset({"data"}),
    frozenset({"models"}),
    frozenset({"run"}),
    frozenset({"generation"}),
    frozenset({"update"}),
    frozenset({"stages"}),
    frozenset({"research"}),
    frozenset({"plan"}),
    frozenset({"report"}),
    frozenset({"cli"}),
    frozenset({"__main__"}),
)

# torch, the standard library, and of ours only each other
PURE = ("pipeline.credit", "pipeline.update.losses", "pipeline.update.surrogates")
HEAVY = ("torch", "transformers", "vllm", "trl", "peft", "accelerate", "datasets")  # never in verifiers/
VLLM_HOME = "pipeline.generation"


@dataclass(frozen=True, slots=True)
class Import:
    """One imported name, in full: `from a.b import c` is a.b.c, whether c is a module or something in one."""

    name: str
    line: int
    lazy: bool  # inside a function, or for the type checker only


def module_name(path: str) -> str:
    """pipeline/update/losses.py -> pipeline.update.losses; a package is its __init__.py."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def within(name: str, root: str) -> bool:
    return name == root or name.startswith(root + ".")


def is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def from_names(node: ast.ImportFrom, path: str) -> list[str]:
    """The full names of `from x import a, b`, relative ones resolved against the file's package."""
    base = node.module or ""
    if node.level:
        package = path.removesuffix(".py").split("/")[:-1]
        above = package[: len(package) - (node.level - 1)]
        base = ".".join([*above, *([node.module] if node.module else [])])
    return [base if alias.name == "*" else f"{base}.{alias.name}" for alias in node.names]


def called_names(node: ast.Call) -> list[str]:
    """importlib.import_module("x") and __import__("x") import as surely as the statement does."""
    function = node.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name not in ("import_module", "__import__") or not node.args:
        return []
    first = node.args[0]
    return [first.value] if isinstance(first, ast.Constant) and isinstance(first.value, str) else []


def imports_of(source: str, path: str) -> list[Import]:
    """Every import of a file, at any depth."""
    return list(_walk(ast.parse(source, path), path, lazy=False))


def _walk(node: ast.AST, path: str, *, lazy: bool) -> Iterator[Import]:
    names: list[str] = []
    if isinstance(node, ast.Import):
        names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        names = from_names(node, path)
    elif isinstance(node, ast.Call):
        names = called_names(node)
    for name in names:
        yield Import(name, getattr(node, "lineno", 0), lazy)
    inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for_types = node.body if isinstance(node, ast.If) and is_type_checking(node.test) else []
    for child in ast.iter_child_nodes(node):
        yield from _walk(child, path, lazy=inside or child in for_types)


def package_fault(module: str, name: str) -> str | None:
    here, there = module.split(".")[0], name.split(".")[0]
    if here not in PACKAGES or there not in OURS:
        return None
    if there not in PACKAGES:
        return f"nothing in {here}/ imports {there}/"
    if PACKAGES.index(there) > PACKAGES.index(here):
        return f"{here}/ never imports {there}/ (verifiers <- rewards <- pipeline)"
    return None


def row_of(part: str) -> int | None:
    return next((index for index, row in enumerate(ROWS) if part in row), None)


def row_fault(module: str, name: str, parts: frozenset[str]) -> str | None:
    """The order inside pipeline; parts: the modules and packages directly in pipeline/."""
    here, there = module.split(".")[1:2], name.split(".")[1:2]
    if not within(module, "pipeline") or not within(name, "pipeline") or not here or not there:
        return None
    if there[0] not in parts:  # `from pipeline import __version__`: a name in pipeline/__init__.py
        return None
    mine, other = row_of(here[0]), row_of(there[0])
    if mine is None or other is None:
        return None  # reported once for the file itself, see placeless
    return f"pipeline.{here[0]} is below pipeline.{there[0]} and must not import it" if other > mine else None


def outside_fault(module: str, found: Import) -> str | None:
    """What a module may import from third-party packages."""
    top = found.name.split(".")[0]
    pure = next((home for home in PURE if within(module, home)), None)
    if pure is not None:
        beside = [home for home in PURE if home.rpartition(".")[0] == pure.rpartition(".")[0]]
        ours = module != "pipeline.credit" and any(within(found.name, home) for home in beside)
        allowed = top == "torch" or top in sys.stdlib_module_names or ours
        return None if allowed else f"{pure} imports torch, the standard library and nothing else"
    if within(module, "verifiers") and top in HEAVY:
        return f"verifiers/ never imports {top}"
    if top == "vllm" and module.split(".")[0] in PACKAGES:
        if not within(module, VLLM_HOME):
            return f"vllm is imported only in {VLLM_HOME}/"
        if not found.lazy:
            return "vllm is imported inside a function, so that a machine without it can load this file"
    return None


def placeless(paths: Mapping[str, str]) -> list[str]:
    """Files directly in pipeline/ that no row of ROWS names."""
    seen = {module_name(path).split(".")[1]: path for path in paths if module_name(path).startswith("pipeline.")}
    return [
        f"{path}: pipeline.{part} is in no row of ROWS in tests/arrows.py; move the module into a folder"
        for part, path in sorted(seen.items())
        if row_of(part) is None
    ]


def broken_arrows(sources: Mapping[str, str]) -> list[str]:
    """sources: path from the repository's root -> text. One line for each broken arrow, naming file and line."""
    parts = frozenset(module_name(path).split(".")[1] for path in sources if module_name(path).startswith("pipeline."))
    broken = placeless(sources)
    for path, source in sorted(sources.items()):
        module = module_name(path)
        for found in imports_of(source, path):
            faults = (
                package_fault(module, found.name),
                row_fault(module, found.name, parts),
                outside_fault(module, found),
            )
            broken += [f"{path}:{found.line}: imports {found.name}: {fault}" for fault in faults if fault]
    return broken
