"""A Slurm script for a run: nodes and GPUs, rendezvous of the ranks, an early signal, and requeueing.

Slurm signals the job some time before its time limit (`--signal`); the job passes SIGTERM on, and every rank finishes
its step and writes a checkpoint (`pipeline.run.shutdown`). The job then requeues itself, and the same command resumes.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from pipeline.config.load import ConfigError, nearest
from pipeline.distributed.sharding import MODES

DEFAULTS = {
    "nodes": "1", "gpus": "8", "cpus": "64", "hours": "24", "mode": "ddp", "stage": "run", "partition": "",
    "account": "", "warn_s": "180", "port": "29500", "venv": ".venv",
}  # fmt: skip
WHOLE_NUMBERS = ("nodes", "gpus", "cpus", "hours", "warn_s", "port")
LEAST_WARNING_S = 60  # a running step has 20 s to finish, and a checkpoint must reach the disk

SCRIPT = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node={gpus}
#SBATCH --cpus-per-task={cpus}
#SBATCH --time={hours}:00:00
#SBATCH --signal=B:TERM@{warn_s}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={name}-%j.log{more}
# The run directory must lie where all nodes see it. Submit from the repository: sbatch THIS_FILE
set -u
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export HF_HUB_OFFLINE=${{HF_HUB_OFFLINE:-1}}

asked_to_stop=0
trap 'asked_to_stop=1; kill -TERM "$step"' TERM  # srun passes it on to every launcher, and that to its ranks

# since Slurm 22.05 a step no longer takes the job's own cpus-per-task, and all would share one core
srun --kill-on-bad-exit=1 --cpus-per-task="$SLURM_CPUS_PER_TASK" \\
  bash -c '{python} -m accelerate.commands.launch --config_file {launch_file} \\
  --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * {gpus}))" --machine_rank "$SLURM_NODEID" \\
  --main_process_ip "$0" --main_process_port {port} -m pipeline {words}' "$head" &
step=$!
wait "$step"
code=$?
if [ "$asked_to_stop" = 1 ]; then
  wait "$step"  # the first wait ended with the signal
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def parsed(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Split the words into the job's options, with the keys of DEFAULTS, and the words for the pipeline.

    Raises ConfigError.
    """
    settings, overrides = dict(DEFAULTS), []
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise ConfigError([f"{word!r} on the command line: expected key=value, as nodes=2"])
        if key in DEFAULTS:
            settings[key] = value
        else:
            overrides.append(word)
    mistakes = [f"sbatch: {key} must be a whole number above 0, found {settings[key]!r}"
                for key in WHOLE_NUMBERS if not settings[key].isdigit() or not int(settings[key])]  # fmt: skip
    if settings["mode"] not in MODES:
        mistakes.append(f"sbatch: no mode {settings['mode']!r}{nearest(settings['mode'], MODES)}")
    if not mistakes and int(settings["warn_s"]) < LEAST_WARNING_S:
        mistakes.append(f"sbatch: warn_s {settings['warn_s']}: a checkpoint may need {LEAST_WARNING_S} s; give more")
    if mistakes:
        raise ConfigError(mistakes)
    return settings, overrides


def sbatch(config: str, words: Sequence[str]) -> str:
    """The batch script. words: see `parsed`. Raises ConfigError."""
    settings, overrides = parsed(words)
    more = "".join(f"\n#SBATCH --{key}={settings[key]}" for key in ("partition", "account") if settings[key])
    inner = " ".join(shlex.quote(word) for word in (settings["stage"], config, *overrides))
    return SCRIPT.format(
        **{key: settings[key] for key in WHOLE_NUMBERS}, more=more, name=f"whetstone-{Path(config).stem}",
        python=f"{settings['venv']}/bin/python", launch_file=f"configs/accelerate/{settings['mode']}.yaml",
        words=inner.replace("'", "'\\''"),
    )  # fmt: skip


__all__ = ["sbatch"]
