"""examples/first_run.ipynb runs from top to bottom and its model has learned; with nbclient where it is installed."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "first_run.ipynb"
# each cell as a notebook runs it: one namespace, and the value of a last expression is shown
AS_CODE = """
import ast, json, sys
scope = {"__name__": "__main__"}
for cell in json.load(open(sys.argv[1]))["cells"]:
    if cell["cell_type"] != "code":
        continue
    tree = ast.parse("".join(cell["source"]))
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), scope)
    if last is not None:
        shown = eval(compile(ast.Expression(last.value), "cell", "eval"), scope)
        print("" if shown is None else getattr(shown, "_repr_svg_", lambda: repr(shown))())
"""
AS_NOTEBOOK = """
import json, sys
import nbclient, nbformat
book = nbformat.read(sys.argv[1], 4)
nbclient.NotebookClient(book, timeout=900, resources={"metadata": {"path": sys.argv[2]}}).execute()
for cell in book.cells:
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        print(output.get("text", "") or data.get("image/svg+xml") or data.get("text/plain", ""))
"""


def test_the_notebook_holds_no_outputs_and_is_valid_json() -> None:
    book = json.loads(NOTEBOOK.read_text())
    assert book["nbformat"] == 4 and all(not cell.get("outputs") for cell in book["cells"])
    for cell in book["cells"]:
        if cell["cell_type"] == "code":
            compile("".join(cell["source"]), "cell", "exec")


@pytest.mark.long
@pytest.mark.stages
def test_the_notebook_trains_plots_and_talks(tmp_path) -> None:
    installed = all(importlib.util.find_spec(name) for name in ("nbclient", "ipykernel"))
    command = [sys.executable, "-c", AS_NOTEBOOK if installed else AS_CODE, str(NOTEBOOK), str(NOTEBOOK.parent)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RUNS_DIR": str(tmp_path)}
    done = subprocess.run(command, cwd=NOTEBOOK.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    accuracy = {stage: float(value) for stage, value in re.findall(r"^(base|sft|grpo) +([\d.]+) ", done.stdout, re.M)}
    assert accuracy["grpo"] > accuracy["sft"] > accuracy["base"], done.stdout[-2000:]
    assert "<polyline points=" in done.stdout and "NaN" not in done.stdout
    assert re.search(r'\{"prompt": "a1>d4:", "completion": "[RLUD]+"', done.stdout)
    assert (tmp_path / "first_run" / "report.html").is_file()
