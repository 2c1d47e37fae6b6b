"""The official JSON-Schema-Test-Suite, as the source package of jsonschema carries it, against json_schema."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

import verifiers

DIALECTS = {
    "draft4": "http://json-schema.org/draft-04/schema#",
    "draft6": "http://json-schema.org/draft-06/schema#",
    "draft7": "http://json-schema.org/draft-07/schema#",
    "draft2019-09": "https://json-schema.org/draft/2019-09/schema",
    "draft2020-12": "https://json-schema.org/draft/2020-12/schema",
}


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("suite")
    package = f"jsonschema=={importlib.metadata.version('jsonschema')}"
    pip = [sys.executable, "-m", "pip"] if shutil.which("pip") is None else ["pip"]
    command = [*pip, "download", "-q", "--no-deps", "--no-binary", "jsonschema", "-d", str(directory), package]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip(f"the source package of {package} cannot be had")
    (archive,) = directory.glob("*.tar.gz")
    with tarfile.open(archive) as file:
        file.extractall(directory, filter="data")
    return next(directory.glob("*/json/tests"))


def outside(schema: Any) -> bool:
    """Whether the schema names a document that would have to be fetched, or stands for one by another's id."""
    text = json.dumps(schema)
    return "localhost" in text or "http://example.com" in text or "vocab" in text


def graded(directory: Path, dialect: str, *, formats: bool) -> tuple[int, list[str]]:
    """How many rows were graded, and those graded otherwise than the suite says."""
    verifier, rows, wrong = verifiers.load("json_schema"), 0, []
    for path in sorted(directory.glob("*.json")):
        for group in json.loads(path.read_text(encoding="utf-8")):
            schema = group["schema"]
            if isinstance(schema, dict) and "$schema" not in schema:
                schema = {"$schema": dialect, **schema}
            for test in group["tests"]:
                task = {"schema": schema, "formats": formats}
                (verdict,) = verifier.grade([json.dumps(test["data"])], [task])
                rows += 1
                if verdict.status != ("pass" if test["valid"] else "fail") and not (
                    verdict.status == "error" and outside(schema)
                ):
                    found = f"{verdict.status} {verdict.detail}"
                    wrong.append(f"{path.stem}: {group['description']}: {test['description']}: {found}"[:200])
    return rows, wrong


@pytest.mark.long
@pytest.mark.parametrize("draft", DIALECTS)
def test_only_references_to_other_documents_differ_from_the_suite(suite: Path, draft: str) -> None:
    rows, wrong = graded(suite / draft, DIALECTS[draft], formats=False)
    assert rows > 500 and not wrong, "\n".join(wrong)


FORMATS_CHECKED = ("date", "time", "date-time", "duration", "email", "ipv4", "ipv6", "uuid", "json-pointer",
                   "relative-json-pointer")  # fmt: skip


@pytest.mark.long
@pytest.mark.parametrize("name", FORMATS_CHECKED)
def test_a_format_is_what_the_suite_says(suite: Path, name: str) -> None:
    directory = suite / "draft2020-12" / "optional" / "format"
    one = directory / "one" / name
    one.mkdir(parents=True)
    (one / f"{name}.json").write_bytes((directory / f"{name}.json").read_bytes())
    rows, wrong = graded(one, DIALECTS["draft2020-12"], formats=True)
    assert rows > 5 and not wrong, "\n".join(wrong)
