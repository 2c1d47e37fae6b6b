"""python -m pipeline COMMAND CONFIG [key=value ...]

Exit codes: 0 done; 2 the user's mistake, one line each; 3 a run stopped by one of its own alarms; 130 interrupted;
143 asked to stop by SIGTERM. After 130 and 143 the same command goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from pipeline.config.schema import KINDS

if TYPE_CHECKING:
    from pipeline.config.load import Config

COMMANDS = {
    "run": "all stages the YAML names; what is complete and unchanged is skipped",
    **{kind.name: kind.summary for kind in sorted(KINDS.values(), key=lambda kind: kind.order) if kind.summary},
    "recipe": "a historical lineage on the demo task: python -m pipeline recipe davinci-002|davinci-003",
}
AROUND = {
    "plan": "what a YAML would run, what it would cost, and every mistake in it; starts nothing",
    "sbatch": "a Slurm script for a YAML, to stdout: nodes=2 gpus=8 hours=24 mode=fsdp2 partition=NAME",
    "gpu-check": "every stage for a few steps on a mid-size random model, on a machine with a GPU",
    "chaos": "kill every stage at seeded instants, go on, compare the hashes: kills=20 instants_seed=0",
}
OF_A_RUN = {
    "report": "HTML report of a run: python -m pipeline report RUN_DIR",
    "lineage": "a run's tree from base model to final: python -m pipeline lineage RUN_DIR",
    "diff": "what differs between two runs: python -m pipeline diff RUN_DIR RUN_DIR",
    "export": "RUN_DIR/export: merged weights, tokenizer, template, model card; stage=NAME chooses",
    "push": "upload RUN_DIR/export to the Hub: repo=me/model",
    "generate": "answers of a run's model: prompt=TEXT or prompts=FILE, label=best, samples=4, to=FILE",
    "chat": "talk to a run's model; label=best asks a condition-trained one",
    "serve": "vLLM's OpenAI-compatible server on the run's model; key=value becomes --key value",
    "lm-eval": "EleutherAI's harness on the run's model: tasks=gsm8k,ifeval; key=value becomes --key value",
}


def parser() -> argparse.ArgumentParser:
    lines = "\n".join(f"  {name:14} {text}" for name, text in (COMMANDS | AROUND | OF_A_RUN).items())
    made = argparse.ArgumentParser(
        "python -m pipeline",
        description="Post-train small language models with RL, a stage or the whole chain at once.",
        epilog=f"commands:\n{lines}\n\nA stage with a name of its own in the YAML is run by that name.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("command")
    made.add_argument("config", nargs="?", default="", help="a YAML, or what a run left")
    made.add_argument("overrides", nargs="*", metavar="key=value", help="as seed=2 grpo.steps=10")
    return made


def main(argv: Sequence[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    from pipeline.run import shutdown

    try:
        return dispatch(arguments.command, arguments.config, arguments.overrides)
    except KeyboardInterrupt:
        print("\ninterrupted; run the same command again to go on from the last checkpoint", file=sys.stderr)
        return 130
    except shutdown.Stopped:
        print("stopped as asked; run the same command again to go on", file=sys.stderr)
        return shutdown.EXIT
    except ValueError as exc:
        if not is_users(exc):
            raise
        tell("\n".join(getattr(exc, "mistakes", [str(exc)])))
        return 2
    except OSError as exc:
        from pipeline.run.files import disk_fault

        told = disk_fault(exc)
        if told is None:
            raise
        tell(told)
        return 2
    except RuntimeError as exc:
        from pipeline.distributed import ranks

        if ranks.lost_another(exc):
            return ranks.give_up(exc)
        if type(exc).__name__ not in ("Alarm", "SavedModelDiffers"):
            raise
        tell(f"stopped by an alarm: {exc}")
        return 3


def tell(text: str) -> None:
    """To stderr, without the keys that a library may have put into its message."""
    from verifiers._secrets import hidden

    print(hidden(text), file=sys.stderr)


def tell_traceback(kind: type[BaseException], exc: BaseException, trace: TracebackType | None) -> None:
    """For sys.excepthook: our bugs come with a traceback, and not with a key."""
    import traceback

    tell("".join(traceback.format_exception(kind, exc, trace)).rstrip())


def is_users(exc: ValueError) -> bool:
    """A mistake told in one line, ours by type; a ValueError of a library is our bug and keeps its traceback."""
    return hasattr(exc, "mistakes") or type(exc).__name__ == "LineageError"


def dispatch(command: str, config: str, words: Sequence[str]) -> int:
    if command == "gpu-check":
        from pipeline.cli.gpu_check import main as gpu_check
        from pipeline.run import process

        process.prepare(None)
        return gpu_check([*([config] if config else []), *words])
    if not config:
        from pipeline.config.load import ConfigError

        raise ConfigError([f"{command}: name a YAML, as in: python -m pipeline {command} configs/demo/pipeline.yaml"])
    if command == "recipe":
        from pipeline.cli.recipes import recipe_path

        command, config = "run", recipe_path(config)
    if command in OF_A_RUN:
        return of_a_run(command, Path(config), words)
    if command == "plan":
        from pipeline.plan import plan

        return plan(config, words)
    if command == "sbatch":
        from pipeline.cli.slurm import parsed, sbatch

        asked, overrides = parsed(words)
        checked(asked["stage"], config, overrides)
        print(sbatch(config, words), end="")
        return 0
    if command == "chaos":
        from pipeline.cli.chaos import chaos

        return chaos(config, words)
    return train(checked(command, config, words), command)


def checked(command: str, config: str, overrides: Sequence[str]) -> Config:
    """The config, when nothing is wrong with it, its data, its verifiers or its models. Raises ConfigError before
    anything heavy loads."""
    from pipeline.config.load import ConfigError, nearest, read

    cfg, mistakes = read(config, overrides)
    if cfg is not None and command == "probe":
        cfg.blocks.setdefault("probe", KINDS["probe"].schema())  # looks at what a YAML trained without being part of it
    if cfg is not None and command not in COMMANDS and command not in cfg.blocks:
        mistakes.append(f"no command {command!r}{nearest(command, [*COMMANDS, *AROUND, *OF_A_RUN, *cfg.blocks])}")
    elif cfg is not None and command in KINDS and command not in cfg.blocks:
        mistakes.append(f"{config}: no block for stage {command!r}{nearest(command, cfg.blocks)}")
    if cfg is None or mistakes:
        raise ConfigError(mistakes)
    from pipeline.plan import preflight

    preflight.check(cfg, None if command == "run" else [command])
    return cfg


def train(cfg: Config, command: str) -> int:
    """Run the YAML's stages, or one of them."""
    from pipeline.run import process, shutdown
    from pipeline.run.lock import locked

    shutdown.install()
    with contextlib.ExitStack() as held:
        if int(os.environ.get("RANK", "0")) == 0:
            held.enter_context(locked(cfg.run_dir))
        process.prepare(process.thread_count(cfg.threads, cfg.model.path))
        from pipeline import stages
        from pipeline.distributed import ranks

        ranks.start()
        if command == "run":
            stages.run_all(cfg)
        else:
            stages.bring_up_to_date(cfg, command)
        if command in ("run", "compare") and ranks.is_main():
            from pipeline.report import write_report

            print(f"report: {write_report(cfg.run_dir)}")
    return 0


def of_a_run(command: str, run: Path, words: Sequence[str]) -> int:
    """Commands on what a run left, which read no YAML."""
    if command in ("lineage", "diff"):
        from pipeline.run import lineage

        drawn, sound = lineage.diff(run, words) if command == "diff" else lineage.lineage(run)
        print(drawn)
        return 0 if sound else 2
    if command == "report":
        from pipeline.report import write_report

        print(write_report(str(run)))
        return 0
    if command in ("generate", "chat"):
        from pipeline.run import process

        process.prepare(1)
        from pipeline.cli import chat

        chat.generate(run, words) if command == "generate" else chat.chat(run, words)
        return 0
    from pipeline.cli import export

    if command == "serve":
        export.serve(run, words)
    if command == "lm-eval":
        export.harness(run, words)
    print(export.export(run, words) if command == "export" else export.push(run, words))
    return 0


if __name__ == "__main__":
    sys.excepthook = tell_traceback
    sys.exit(main())
