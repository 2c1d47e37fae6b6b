"""The stages, one readable file each, and the chain that runs them in the order of the YAML.

Each stage module has `run(ctx) -> metrics`. It reads from its parents, leaves its model in ctx.dir.model_dir, and the
chain writes the manifest when it returns.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from pipeline.config.errors import Alarm, LineageError
from pipeline.config.load import Config, ConfigError
from pipeline.config.registry import KINDS, kind_of
from pipeline.distributed import process, ranks, sharding
from pipeline.models.model_dir import thread_count
from pipeline.run import console, lineage, trackers
from pipeline.run.follower_dir import FollowerDir
from pipeline.run.manifest import verified_manifest
from pipeline.run.stage_dir import StageDir
from pipeline.stats import headline_names


def check_can_run(cfg: Config, name: str) -> None:
    """Everything that can be known to stop the stage, before what it left earlier is moved. Raises ConfigError."""
    kind = kind_of(cfg, name)
    if ranks.world() > 1 and not kind.several_processes:
        several = ", ".join(each.name for each in KINDS.values() if each.several_processes)
        raise ConfigError([f"{cfg.path}: stage {name} ({kind.name}) runs on one process; run it first without "
                           f"torchrun, then the stages that share their work: {several}"])  # fmt: skip
    trackers.check(cfg)


def run_stage(cfg: Config, name: str, listeners: Sequence[trackers.Listener] = ()) -> dict[str, Any]:
    """Run one stage to its manifest, resuming it where it was killed. Parents must be complete.

    listeners: called with each new line of metrics.
    """
    check_can_run(cfg, name)
    process.prepare_libraries(thread_count(cfg.threads, cfg.model.path))
    from pipeline.stages.context import Context  # here, as it imports torch: a stage that is up to date needs neither

    module = kind_of(cfg, name).module
    ctx = Context(cfg, name, (StageDir if ranks.is_main() else FollowerDir)(cfg.run_dir, name))
    several = f", {sharding.mode()} over {ranks.world()} processes" if ranks.world() > 1 else ""
    console.say(f"── {name} ({cfg.run}, seed {cfg.seed}{several})")
    identity = {"config": lineage.stage_config(cfg, name), "code": lineage.code_of(module)}
    ctx.dir.open(identity)
    ctx.depend_on(*lineage.own_files(cfg, name))
    ranks.barrier()
    with trackers.tracking(cfg, ctx.dir) as curves:
        ctx.dir.logs.listeners += [*curves, *listeners]
        try:
            metrics = importlib.import_module(module).run(ctx)
        except Alarm as exc:
            ctx.dir.note_alarm(str(exc))
            raise
    manifest = ctx.dir.complete(seed=cfg.seed, parents=ctx.parents, inputs=ctx.inputs, metrics=metrics, **identity)
    ranks.barrier()
    best = ["best_policy"] if "best_policy" in metrics else []  # whose figures the others are
    summary = {name: metrics[name] for name in [*best, *headline_names([metrics])]}
    if summary and ranks.is_main():
        console.show_table([summary], list(summary))
    console.say(f"── {name} done in {console.clock(manifest['wall_s'])}: {ctx.dir.path}")
    return manifest


def up_to_date(cfg: Config, names: Sequence[str]) -> bool:
    """Whether none of these stages has to run, as far as that is known without torch, and without hashing outputs.

    Only for a single process; of several, one decides for all, which takes their process group.
    """
    if ranks.world() > 1 or not names:
        return False
    try:
        return all(lineage.why_stale(cfg, name, kind_of(cfg, name).module) is None for name in names)
    except LineageError:  # reported where the stage is run
        return False


def bring_up_to_date(cfg: Config, name: str, listeners: Sequence[trackers.Listener] = ()) -> bool:
    """Run a stage if it is stale, and say why. Returns whether it ran.

    Raises LineageError where its outputs were altered since.

    What stops it for sure is found before a finished result is moved; that goes to .replaced/, and is never replaced
    there by an unfinished one.
    """
    why = ranks.from_main(lambda: lineage.why_stale(cfg, name, kind_of(cfg, name).module))
    stage = StageDir(cfg.run_dir, name)
    if why is None:
        verified_manifest(stage.path)
        if ranks.is_main():
            stage.tidy()  # killed between its manifest and here
        console.say(f"── {name}: up to date; delete {stage.path} to rerun")
        return False
    console.say(f"── {name}: {why}")
    check_can_run(cfg, name)
    if not lineage.may_go_on(why) and ranks.is_main():
        console.say(f"── {name}: previous output moved to {stage.set_aside()}")
    run_stage(cfg, name, listeners)
    return True


def run_all(cfg: Config, listeners: Sequence[trackers.Listener] = ()) -> None:
    """Every stage the YAML names, in its order; what is complete and unchanged is skipped."""
    if not cfg.stages:
        raise ConfigError([f"{cfg.path}: stages: name at least one stage to run"])
    for name in cfg.stages:
        bring_up_to_date(cfg, name, listeners)
        process.free_memory()
