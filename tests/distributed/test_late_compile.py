"""A package that compiles functions at its import does so at their first call, and gives the same results."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.distributed.late_compile import at_first_call, compile_late

PACKAGE = """
import torch

@torch.compile
def double(x):
    return 2 * x

@torch.compile(dynamic=False)
def shift(x, *, by=1):
    "Adds."
    return x + by

module = torch.compile(torch.nn.Linear(2, 2))
"""


def test_functions_are_compiled_at_their_first_call_and_modules_at_once(tmp_path, monkeypatch):
    (tmp_path / "eager_compiler.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    calls = []

    def compile_now(model, **options):
        calls.append((getattr(model, "__name__", "module"), options))
        return model

    monkeypatch.setattr(torch, "compile", compile_now)
    compile_late("eager_compiler")
    compile_late("eager_compiler")
    finders = len(sys.meta_path)
    assert importlib.util.find_spec("eager_compiler") is not None  # asking whether it is there changes nothing
    import eager_compiler  # type: ignore[import-not-found]

    assert torch.compile is compile_now and len(sys.meta_path) == finders - 1
    assert calls == [("module", {})]
    assert eager_compiler.shift.__doc__ == "Adds."
    assert [eager_compiler.double(3), eager_compiler.double(4), eager_compiler.shift(1, by=5)] == [6, 8, 6]
    assert calls[1:] == [("double", {}), ("shift", {"dynamic": False})]


def test_a_package_whose_import_fails_leaves_the_compiler_as_it_was(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("raise RuntimeError('no library')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    before = torch.compile
    compile_late("broken_package")
    with pytest.raises(RuntimeError, match="no library"):
        import broken_package  # type: ignore[import-not-found]  # noqa: F401
    assert torch.compile is before


def test_a_function_that_is_never_called_is_never_compiled():
    def refuse(model, **options):
        raise AssertionError("compiled")

    run = at_first_call(refuse)(lambda x: x)
    with pytest.raises(AssertionError, match="compiled"):
        run(1)


def test_a_process_that_fine_tunes_does_not_import_the_compiler():
    """bitsandbytes as TRL imports it."""
    pytest.importorskip("bitsandbytes")
    code = (
        "import sys; from pipeline.distributed import process; process.prepare(1); import trl.trainer.sft_trainer;"
        "assert 'bitsandbytes' in sys.modules; sys.exit('torch._inductor.compile_fx' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
