"""Whetstone's pipeline, folder by folder. Imports point up this list only; tests/test_arrows.py checks it.

records        what flows: prompts, rollouts, scored rollouts
seeds          all randomness, as a pure function of (seed, stage, step, index)
stats          means, intervals and tests of difference
config/        YAML -> typed config; every mistake in one line
distributed/   the processes of a run: their settings and ranks, and how a model is sharded over them
score          rollouts -> scored rollouts, through rewards/ and verifiers/
credit/        scored rollouts -> advantages, selection or condition labels. Pure
data/          dataset rows -> prompts, the held-out split, pools of scored samples
models/        load, save and adapt models
run/           what a run leaves on disk and prints: manifests, lineage, checkpoints, alarms, trackers, console
generation/    prompts -> rollouts, by vLLM or transformers; weight sync and canary
update/        credit -> new weights: losses (pure), the learner, the policy loop
stages/        one file per stage; comparison/ holds methods against each other
research/      stages and figures that answer a question instead of making a model
plan/          what a run would do and cost, and every mistake in its config
report/        HTML from what a run wrote
cli/           the commands besides `run`: export, chat, doctor, chaos, slurm, ...
__main__       python -m pipeline COMMAND CONFIG [key=value ...]
"""
