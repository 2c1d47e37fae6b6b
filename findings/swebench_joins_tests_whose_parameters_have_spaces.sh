#!/usr/bin/env bash
# swebench 5.0.2, its parser for pytest (flask, xarray, pvlib and more), on the summary that pytest 9.2.0 prints with -rA.
#
# Seen: a test's name ends at its first space, so test_size[a b-2], which fails, and test_size[a c-3], which passes, are one
# test, "test_size[a", with the verdict of the last line: FAILED, since pytest lists passed tests first. XPASS is left out.
# Six results become four. The second parser, of astropy, scikit-learn and sphinx, keeps spaces, but a failing test whose
# parameter holds " - " is cut there.
# From memory one would say: a result is keyed by its node id, and parameters are part of it.
# What it costs: one parameter that a patch breaks fails its passing siblings, and a test that is gone from the log passes
# with a sibling.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q pytest==9.2.0
"$folder/venv/bin/pip" install -q --no-deps --target "$folder/packages" swebench==5.0.2
cd "$folder"
cat > test_names.py <<'PYTHON'
import pytest


@pytest.mark.parametrize("text, size", [("a b", 2), ("a c", 3), ("x - y", 1)])
def test_size(text, size):
    assert len(text) == size


@pytest.mark.parametrize("text", ["one", "two"])
def test_one(text):
    assert text == "one"


@pytest.mark.xfail
def test_expected_to_fail():
    pass
PYTHON
venv/bin/python -m pytest -rA --tb=no -p no:cacheprovider test_names.py > log.txt || true  # some fail on purpose
venv/bin/python - <<'PYTHON'
import sys
import types
from pathlib import Path

root = Path("packages/swebench")
for name in ("swebench", "swebench.harness", "swebench.harness.log_parsers"):  # packages without what their __init__ imports
    module = types.ModuleType(name)
    module.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
    sys.modules[name] = module
from swebench.harness.log_parsers.python import parse_log_pytest, parse_log_pytest_v2

log = Path("log.txt").read_text()
print(log[log.index("= short test summary"):])
first, second = parse_log_pytest(log, None), parse_log_pytest_v2(log, None)
print("parse_log_pytest:   ", first)
print("parse_log_pytest_v2:", second)
assert first == {"test_names.py::test_size[a": "FAILED", "test_names.py::test_size[x": "FAILED",
                 "test_names.py::test_one[one]": "PASSED", "test_names.py::test_one[two]": "FAILED"}
assert second["test_names.py::test_size[a c-3]"] == "PASSED" and second["test_names.py::test_size[a b-2]"] == "FAILED"
assert "test_names.py::test_size[x" in second and len(second) == 5
PYTHON
