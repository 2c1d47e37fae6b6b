"""Trackers in real runs: they receive what metrics.jsonl holds, and one that fails stops no run."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from loop_kit import manifest, metrics, run_stage

from pipeline.run import trackers

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.stages, pytest.mark.usefixtures("no_engine_left_behind")]


def test_trackers_receive_what_metrics_jsonl_holds(tmp_path, model, monkeypatch):
    pytest.importorskip("tensorboard")
    names, trackio_dir = ["tensorboard"], tmp_path / "trackio"
    if importlib.util.find_spec("trackio") is not None:
        names.append("trackio")
        monkeypatch.setenv("TRACKIO_DIR", str(trackio_dir))
    assert run_stage(tmp_path, model, "grpo", f"trackers=[{', '.join(names)}]") == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    [run] = (tmp_path / "t" / "tensorboard").glob("grpo-*")
    events = EventAccumulator(str(run))
    events.Reload()
    told = [(e.step, e.value) for e in events.Scalars("reward_mean")]
    wrote = [(m["step"], m["reward_mean"]) for m in metrics(tmp_path, "grpo")]
    assert told == [(step, pytest.approx(value, rel=1e-6)) for step, value in wrote]


def test_a_tracker_that_is_not_installed_is_reported_before_training(tmp_path, model, capsys):
    if importlib.util.find_spec("wandb") is not None:
        pytest.skip("wandb is installed")
    assert run_stage(tmp_path, model, "grpo", "trackers=[wandb]") == 2
    assert "trackers: wandb is not installed; .venv/bin/pip install" in capsys.readouterr().err


def test_a_missing_tracker_leaves_a_finished_stage_where_it_is(tmp_path, model, capsys):
    if importlib.util.find_spec("wandb") is not None:
        pytest.skip("wandb is installed")
    assert run_stage(tmp_path, model, "grpo", "trackers=[]", "grpo.steps=1") == 0
    before = manifest(tmp_path, "grpo")["outputs"]
    for _ in range(2):  # the second try must not lose it either
        assert run_stage(tmp_path, model, "grpo", "trackers=[wandb]", "grpo.steps=2") == 2
        assert manifest(tmp_path, "grpo")["outputs"] == before
    assert "wandb is not installed" in capsys.readouterr().err


def test_a_stage_that_is_begun_again_gets_a_curve_of_its_own_in_trackio(tmp_path, model):
    pytest.importorskip("trackio")
    code = (
        "import sys, sqlite3, pathlib\n"
        "from loop_kit import run_stage\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "for steps in (1, 2):\n"
        "    assert run_stage(root, sys.argv[2], 'grpo', f'grpo.steps={steps}') == 0\n"
        "rows = sqlite3.connect(root / 'trackio' / 't.db').execute(\n"
        "    'select run_name, count(*) from metrics group by run_name').fetchall()\n"
        "print('CURVES', sorted(count for _, count in rows))\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    environment.pop("TRACKIO_DIR", None)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), str(model)], env=environment, text=True,
                          capture_output=True, cwd=ROOT)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "CURVES [1, 2]" in done.stdout


def test_trackio_is_the_default_says_nothing_and_asks_no_network(tmp_path, model):
    """In a process of its own, for it reads its place when it is imported."""
    pytest.importorskip("trackio")
    code = (
        "import socket, sys, sqlite3, pathlib\n"
        "from loop_kit import run_stage\n"
        "def refuse(*given, **more): raise AssertionError(f'the network was asked: {given}')\n"
        "socket.getaddrinfo = socket.create_connection = socket.socket.connect = refuse\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "assert run_stage(root, sys.argv[2], 'grpo') == 0\n"
        "rows = sqlite3.connect(root / 'trackio' / 't.db').execute('select count(*) from metrics').fetchone()\n"
        "print('TOLD', rows[0])\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    environment.pop("TRACKIO_DIR", None)
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path), str(model)], env=environment, text=True,
                          capture_output=True, cwd=ROOT)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "TOLD 2" in done.stdout and "Trackio" not in done.stdout


def test_a_tracker_that_fails_stops_no_run(tmp_path, model, capsys, monkeypatch):
    def no_disk(*given):
        raise OSError("no space on https://me:swordfish@example.org")

    monkeypatch.setattr(trackers, "_make", no_disk)
    assert run_stage(tmp_path, model, "grpo", "trackers=[trackio]") == 0
    said = capsys.readouterr().out
    assert "trackio: OSError: no space" in said and "swordfish" not in said
    assert len(metrics(tmp_path, "grpo")) == 2


def test_without_trackio_one_line_says_where_the_curves_are(tmp_path, model, capsys, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda n, *a: None if n == "trackio" else find(n, *a))
    monkeypatch.setattr(trackers, "_hinted", set())
    assert run_stage(tmp_path / "a", model, "grpo") == run_stage(tmp_path / "b", model, "grpo") == 0
    assert capsys.readouterr().out.count("adds a dashboard") == 1
    assert run_stage(tmp_path / "c", model, "grpo", "trackers=[]") == 0
    assert "pip install" not in capsys.readouterr().out
