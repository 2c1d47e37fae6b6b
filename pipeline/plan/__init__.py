"""make plan: every mistake in a config, or what it would run: stages, rows, tokens, memory, time, one example.

one_run.py          plan of one run
comparison_plan.py  plan of a comparison, which consists of many runs
estimate.py         counts of steps, tokens and memory
learning_rate.py    advice on learning rates, from the model's size and LoRA
trial.py            measures the machine for some seconds (`trial=false` skips it, and with it the memory and time
                    estimates)
trial_process.py    the separate process in which it does so

A plan starts no stage and writes nothing into the run's directory.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from shutil import which

from pipeline.config.load import Config, ConfigError, read
from pipeline.config.mistakes import without_followups
from pipeline.config.run_words import take_seeds, take_workers
from pipeline.distributed import process
from pipeline.models import families
from pipeline.models.model_dir import thread_count
from pipeline.plan import comparison_plan, learning_rate, one_run, preflight
from pipeline.plan.trial_process import TrialProcess
from pipeline.run import console


def precision(cfg: Config, config_json: families.Fields) -> str:
    """`model.dtype`; `auto` as a run resolves it where the choice of the generator depends on it."""
    if cfg.model.dtype != "auto" or not families.is_recurrent(config_json):
        return cfg.model.dtype
    from pipeline.models.precision import precision_of

    return str(precision_of(str(cfg.model.path), cfg.model)).removeprefix("torch.")


def plan(config: str, words: Sequence[str]) -> int:
    """Print the plan and return 0. Raises ConfigError with all mistakes."""
    options = {"trial": True, "json": False}
    overrides = []
    workers, words = take_workers(words)
    seeds, words = take_seeds(words)
    for word in [*words, *([f"seed={seeds[0]}"] if seeds else [])]:
        key, _, value = word.partition("=")
        if key in options and value in ("true", "false"):
            options[key] = value == "true"
        else:
            overrides.append(word)
    cfg = sound(config, overrides)
    config_json = families.read_config(cfg.model.path) if cfg.model.path and not options["json"] else None
    if config_json is not None:
        gpu, backend = bool(which("nvidia-smi")), cfg.generate.backend
        dtype = precision(cfg, config_json)
        console.say(families.line(config_json, dtype=dtype, attn=cfg.model.attn, gpu=gpu, backend=backend))
        for line in learning_rate.advice(cfg, config_json):
            console.say(f"learning rate of {line}")
    with ExitStack() as stack:
        measure = None
        if options["trial"]:
            if not options["json"]:
                console.say(
                    "trying the model: loading it, some samples, some updates (trial=false leaves this out) ..."
                )
            measure = stack.enter_context(TrialProcess(cfg)).measure
        process.prepare(thread_count(cfg.threads, cfg.model.path))
        if compared := comparison_plan.comparison_of(cfg):
            parts = comparison_plan.make(cfg, compared, measure)
            if options["json"]:
                print(json.dumps(comparison_plan.as_json(parts), indent=1))
            else:
                comparison_plan.show(cfg, compared, parts)
            return 0
        made = one_run.make(cfg, measure)
    if options["json"]:
        print(json.dumps(made.as_json(), indent=1))
    else:
        one_run.show(cfg, made)
        if seeds:
            order = "one after another" if workers == 1 else f"up to {workers} stages at once, each with such memory"
            console.say(f"seeds: {len(seeds)} runs like this one, in {cfg.run_dir}/seed-N, {order}: "
                        f"{len(seeds) / workers:.3g} times its time, {len(seeds)} times its tokens")  # fmt: skip
    return 0


def sound(config: str, overrides: Sequence[str]) -> Config:
    """Load a config whose keys, data, verifiers and models have no mistakes. Raises ConfigError with all mistakes."""
    cfg, mistakes = read(config, overrides)
    if cfg is not None:
        compared = comparison_plan.comparison_of(cfg)
        found = preflight.mistakes(cfg, [compared] if compared else None)
        of_keys = [line.removeprefix(f"{config}: ") for line in mistakes]
        found = without_followups([line.removeprefix(f"{config}: ") for line in found], of_keys)
        mistakes += [f"{config}: {line}" for line in found if line not in of_keys]
    if mistakes or cfg is None:
        raise ConfigError(mistakes)
    return cfg


__all__ = ["plan", "sound"]
