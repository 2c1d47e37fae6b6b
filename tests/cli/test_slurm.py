"""The Slurm script: what it asks for, that a shell can read it, and what it does when told to stop."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.cli.slurm import sbatch
from pipeline.config.load import ConfigError

CONFIG = "configs/demo/pipeline.yaml"


def test_the_script_asks_for_what_was_said_and_a_shell_can_read_it(capsys):
    assert main(["sbatch", CONFIG, "nodes=4", "gpus=8", "hours=12", "mode=fsdp2", "partition=big", "seed=2"]) == 0
    script = capsys.readouterr().out
    directives = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH --")]
    wanted = {"nodes=4", "gpus-per-node=8", "time=12:00:00", "partition=big", "requeue", "signal=B:TERM@180"}
    assert wanted <= set(directives) and not [d for d in directives if d.startswith("account")]
    assert "--config_file configs/accelerate/fsdp2.yaml" in script
    assert f"-m pipeline run {CONFIG} seed=2" in script
    assert subprocess.run(["bash", "-n"], input=script, text=True, check=False).returncode == 0


def stand_ins(place: Path, body: str) -> dict[str, str]:
    """srun that does `body` in place of the launch, scontrol that writes down what it is asked."""
    place.mkdir()
    for name, text in {
        "srun": f"#!/bin/bash\n{body}\n",
        "scontrol": f'#!/bin/bash\n[ "$1" = show ] && echo node1 && echo node2 && exit\necho "$@" >> {place}/told\n',
    }.items():
        (place / name).write_text(text)
        (place / name).chmod(0o755)
    return {**os.environ, "PATH": f"{place}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]",
            "SLURM_CPUS_PER_TASK": "64"}  # fmt: skip


def test_asked_to_stop_it_waits_for_the_checkpoint_and_requeues(tmp_path):
    """The batch shell gets the signal; srun must get it too, and have ended before the job goes back into the queue."""
    env = stand_ins(tmp_path / "bin", f"trap 'sleep 0.5; touch {tmp_path}/saved; exit 143' TERM; kill -TERM $PPID; "
                                      "while true; do sleep 0.1; done")  # fmt: skip
    done = subprocess.run(["bash", "-c", sbatch(CONFIG, [])], env=env, timeout=30, check=False)
    assert done.returncode != 0 and (tmp_path / "saved").exists()
    assert (tmp_path / "bin" / "told").read_text() == "requeue 7\n"


@pytest.mark.parametrize("code", [0, 2])
def test_a_run_that_ends_by_itself_is_not_requeued_and_its_code_is_the_jobs(tmp_path, code):
    env = stand_ins(tmp_path / "bin", f"exit {code}")
    done = subprocess.run(["bash", "-c", sbatch(CONFIG, [])], env=env, timeout=30, check=False)
    assert done.returncode == code and not (tmp_path / "bin" / "told").exists()


def test_ranks_meet_at_the_first_node(tmp_path):
    """What srun is asked to start, with one node's variables filled in."""
    env = stand_ins(tmp_path / "bin", f'echo "$@" > {tmp_path}/asked; while [[ "$1" = -* ]]; do shift; done; '
                                      f'"$@" > {tmp_path}/started')  # fmt: skip
    script = sbatch(CONFIG, ["nodes=2", "gpus=4", "note='quoted' words"]).replace(".venv/bin/python", "printf '%s\\n'")
    script = script.replace("bash -c 'printf '%s\\n'", "bash -c 'echo")
    subprocess.run(["bash", "-c", script], env={**env, "SLURM_NNODES": "2", "SLURM_NODEID": "1"}, check=True)
    assert "--cpus-per-task=64" in (tmp_path / "asked").read_text().split("bash")[0]
    words = (tmp_path / "started").read_text().split()
    given = {words[i]: words[i + 1] for i in range(len(words) - 1) if words[i].startswith("--")}
    assert given["--num_machines"] == "2" and given["--num_processes"] == "8" and given["--machine_rank"] == "1"
    assert given["--main_process_ip"] == "node1" and "note='quoted' words" in (tmp_path / "started").read_text()


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("nodes=0", "nodes must be a whole number above 0"),
        ("mode=fsdp", "no mode 'fsdp'; did you mean 'fsdp2'"),
        ("warn_s=5", "a checkpoint may need 60 s"),
        ("nodes", "expected key=value"),
    ],
)
def test_a_mistake_is_reported(word, told):
    with pytest.raises(ConfigError, match=told):
        sbatch(CONFIG, [word])
