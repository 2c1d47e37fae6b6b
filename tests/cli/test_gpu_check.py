import json

import pytest

from pipeline.__main__ import main
from pipeline.cli import gpu_check
from pipeline.config.load import load


def test_the_check_is_a_config_without_a_mistake(tmp_path):
    import yaml

    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(gpu_check.recipe(tmp_path, size="mid", dtype="bfloat16")))
    assert tuple(load(path).stages) == gpu_check.STAGES


def test_a_named_model_replaces_the_random_one(tmp_path):
    recipe = gpu_check.recipe(tmp_path, size="mid", dtype="bfloat16", model="some/model")
    assert recipe["model"] == {"path": "some/model", "dtype": "bfloat16"}


def test_without_a_gpu_it_says_so_and_how_to_try_it(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert main(["gpu-check"]) == 2
    assert "no CUDA device here; size=small dtype=float32 tries the check on a CPU" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.stages
def test_the_check_runs_every_stage_and_reports_sync_and_phases(tmp_path, capsys):
    assert main(["gpu-check", f"to={tmp_path}", "size=small", "dtype=float32"]) == 0
    rows = {row["stage"]: row for row in json.loads((tmp_path / "gpu-check.json").read_text())["stages"]}
    assert tuple(rows) == gpu_check.STAGES
    assert rows["ppo"]["planned_gib"] >= rows["grpo"]["planned_gib"] > 0, "a critic and a reward model more"
    for stage in ("ppo", "grpo"):
        assert rows[stage]["canary"] < 1e-3 and rows[stage]["update_s"] > 0 and rows[stage]["tokens_per_s"] > 0
