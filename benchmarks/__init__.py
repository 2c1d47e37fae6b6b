"""Whetstone compared with the usual alternatives: the same work, in turns, on the same machine.

    __main__.py   python -m benchmarks [NAME ...]: runs them, prints a table, merges results/latest.json
    measure.py    turns, medians, ratios, the machine
    workload.py   model, prompts and settings, shared by both sides
    bench_worker.py, gate.py   one side in its own process, which runs one step per request
    ours.py, trl_side.py   what a worker runs: our stage, or TRL's trainer
    judge_path.py   the held-out accuracy of a side's weights, computed by the same code for all
    engine.py     our engine alone
    step.py long_prompt.py rollout.py scoring.py overlapped_scoring.py learn.py learn_short.py sync.py trainers.py
    start.py memory.py scale.py real.py   one question each

Each question is a module with `run() -> dict`: `ratios` by name, and further measurements.
NOTES.md reports which optimizations helped and which did not.
"""
