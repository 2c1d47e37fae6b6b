"""PyPI has another package that imports as `verifiers`. Installed beside ours, each overwrites files of the other."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path

FIX = "pip uninstall -y verifiers && pip install --force-reinstall --no-deps whetstone-rl"
FOREIGN = ("envs", "parsers", "rubrics", "types.py")  # of theirs; ours has none of these names


def fault(package_dir: Path) -> str | None:
    """Why the folder of this package cannot be trusted, with the fix; None where it is ours alone."""
    try:
        other = importlib.metadata.distribution("verifiers")
    except importlib.metadata.PackageNotFoundError:
        other = None
    if other is not None and Path(str(other.locate_file("verifiers"))).resolve() == package_dir.resolve():
        return f"{package_dir} also holds PyPI's package verifiers {other.version}, which overwrites our files: {FIX}"
    found = [name for name in FOREIGN if (package_dir / name).exists()]
    if len(found) > 1:
        return f"{package_dir} also holds {', '.join(found)} of PyPI's package verifiers: {FIX}"
    return None
