"""Whetstone's pipeline, file by file, in the order data flows.

    config.py      YAML -> typed config; every mistake in one line
    prompts.py     dataset rows -> prompts, and the held-out split
    generate.py    prompts -> rollouts, by vLLM or transformers; weight sync and canary
    engines.py     which backend a config means; one engine a process, shared by its stages
    score.py       rollouts -> scored, through rewards/ and verifiers/
    credit/        scored -> learning signal: advantages, selection, conditions. Pure
    update/        learning signal -> new weights: losses (pure), the learner, the one loop
    stages/        one file a stage, each a few calls of the above
    runs.py        what a stage leaves on disk: manifest, metrics, rollouts, checkpoints
    plan/          what a run would do and cost, or every mistake in its config
    report/        HTML from what a run wrote
    __main__.py    python -m pipeline COMMAND CONFIG [key=value ...]

Beside them: records.py (what flows), seeds.py (all randomness), models.py (load and save), stats.py, console.py, and
alarms.py (reasons to stop).
"""
