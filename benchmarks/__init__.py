"""Whetstone beside what people would use instead: the same work, in turns, on the same machine.

    __main__.py   python -m benchmarks [NAME ...]: runs them, prints a table, merges results/latest.json
    measure.py    turns, medians, ratios, the machine
    workload.py   the model, prompts and settings both sides are given
    worker.py     one side in a process of its own, a step at a time on demand
    ours.py, trl_side.py   what a worker runs: our stage, or TRL's trainer
    judge.py      one judge for both: held-out accuracy of the weights a side has reached
    engine.py     our engine alone
    step.py long_prompt.py rollout.py score.py learn.py learn_short.py sync.py trainers.py start.py memory.py scale.py
                  one question each

Each question is a module with `run() -> dict`: `ratios` by the names of the issue, and what it measured beside them.
NOTES.md says what paid and what did not.
"""
