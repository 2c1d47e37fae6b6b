"""What a message says about installing a package: this environment's pip, and the versions it was tested with."""

import json
import sys
from pathlib import Path

from pipeline.config import install_hint


def environment(root: Path, monkeypatch, *, noted: dict | None) -> None:
    (root / "env/bin").mkdir(parents=True)
    (root / "env/bin/pip").touch()
    if noted is not None:
        (root / "env/installed.json").write_text(json.dumps(noted))
    monkeypatch.setattr(sys, "prefix", str(root / "env"))
    monkeypatch.chdir(root)


def test_pip_of_this_environment_with_its_constraints(tmp_path, monkeypatch):
    environment(tmp_path, monkeypatch, noted={"lock": "requirements/cpu.txt"})
    lock = install_hint.ROOT / "requirements/cpu.txt"
    assert install_hint.install_command("wandb") == f"env/bin/pip install -c {lock} wandb"
    monkeypatch.chdir(install_hint.ROOT)
    assert install_hint.install_command("wandb") == f"{tmp_path}/env/bin/pip install -c requirements/cpu.txt wandb"


def test_without_a_note_of_make_install_no_constraints_are_made_up(tmp_path, monkeypatch):
    environment(tmp_path, monkeypatch, noted=None)
    assert install_hint.install_command("wandb") == "env/bin/pip install wandb"
    (tmp_path / "env/bin/pip").unlink()
    assert install_hint.install_command("wandb").endswith(f"{Path(sys.executable).name} -m pip install wandb")
