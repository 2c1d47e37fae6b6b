"""whetstone COMMAND CONFIG [key=value ...], also as python -m pipeline. `whetstone help` lists the commands.

Exit codes: 0 done; 2 the user's mistake, one line each; 3 a run stopped by one of its own alarms; 130 interrupted;
143 stopped by SIGTERM. After 130 and 143 the same command resumes.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.config.load import Config


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    if "--verbose" in words:
        words.remove("--verbose")
        os.environ["WHETSTONE_VERBOSE"] = "1"
    from pipeline.run import shutdown

    try:
        return answer(words)
    except KeyboardInterrupt:
        report(shutdown.stop_line("interrupted"))
        return 130
    except shutdown.Stopped:
        report(shutdown.stop_line())
        return shutdown.exit_code()
    except BrokenPipeError:  # the reader of a pipe has left, as `whetstone config | head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ValueError as exc:
        if not is_users(exc):
            raise
        report("\n".join(getattr(exc, "mistakes", [str(exc)])))
        return 2
    except OSError as exc:
        from pipeline.run.files import disk_fault

        line = disk_fault(exc)
        if line is None:
            raise
        report(line)
        return 2
    except RuntimeError as exc:
        from pipeline.distributed import ranks

        if ranks.lost_another(exc):
            return ranks.give_up(exc)
        from pipeline.config.errors import Alarm

        if not isinstance(exc, Alarm):
            raise
        report(f"stopped by an alarm: {exc}")
        return 3


def answer(words: Sequence[str]) -> int:
    """Help and version, or the command. Raises ConfigError."""
    from pipeline.cli import commands

    if not words or words[0] in ("-h", "--help"):
        print(commands.overview())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"whetstone {version()}")
        return 0
    if any(word in ("-h", "--help") for word in words[1:]):
        print(commands.usage(words[0]))
        return 0
    if words[0] == "help":
        print(commands.usage(words[1]) if len(words) > 1 else commands.overview())
        return 0
    return dispatch(words[0], words[1:])


def version() -> str:
    """Of the installed package, or of the checkout."""
    import importlib.metadata
    import tomllib

    project = Path(__file__).parents[1] / "pyproject.toml"
    if project.is_file():
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
    return importlib.metadata.version("whetstone-rl")


def report(text: str) -> None:
    """To stderr, without secrets that a library may have put into its message."""
    from verifiers._secrets import hidden

    print(hidden(text), file=sys.stderr)


def report_traceback(kind: type[BaseException], exc: BaseException, trace: TracebackType | None) -> None:
    """For sys.excepthook: our bugs come with a traceback, without secrets."""
    import traceback

    report("".join(traceback.format_exception(kind, exc, trace)).rstrip())


def is_users(exc: ValueError) -> bool:
    """A mistake reported in one line, ours by type; a ValueError of a library is our bug and keeps its traceback."""
    return hasattr(exc, "mistakes") or type(exc).__name__ == "LineageError"


def dispatch(command: str, words: Sequence[str]) -> int:
    from pipeline.cli.commands import COMMANDS
    from pipeline.config.load import ConfigError, nearest

    code = of_no_run(command, words)
    if code is not None:
        return code
    if not words:
        if command not in COMMANDS:
            raise ConfigError([f"no command {command!r}{nearest(command, COMMANDS)}"])
        kinds = {"RUN_DIR": "a run's directory", "NAME": "a recipe"}
        named = kinds.get(COMMANDS[command].takes, "a YAML")
        raise ConfigError([f"{command}: name {named}, as in: whetstone {COMMANDS[command].example}"])
    first, rest = words[0], words[1:]
    if command == "recipe":
        from pipeline.cli.recipes import recipe_path

        command, first = "run", recipe_path(first)
    if command in COMMANDS and COMMANDS[command].takes == "RUN_DIR":
        return of_a_run(command, Path(first), rest)
    if command == "plan":
        from pipeline.plan import plan

        return plan(first, rest)
    if command == "sbatch":
        from pipeline.cli.slurm import parsed, sbatch
        from pipeline.config.run_words import take_seeds

        settings, overrides = parsed(rest)
        checked(settings["stage"], first, take_seeds(overrides)[1])
        print(sbatch(first, rest), end="")
        return 0
    if command == "chaos":
        from pipeline.cli.chaos import chaos

        return chaos(first, rest)
    if command == "run":
        from pipeline.config.run_words import take_seeds, take_workers

        workers, rest = take_workers(rest)
        seeds, rest = take_seeds(rest)
        if seeds:
            return train_seeds(first, rest, seeds, workers)
        return train([checked(command, first, rest)], command, workers)
    return train([checked(command, first, rest)], command)


def of_no_run(command: str, words: Sequence[str]) -> int | None:
    """The exit code of a command that reads neither a YAML nor a run's directory; None for any other."""
    if command == "gpu-check":
        from pipeline.cli.gpu_check import main as gpu_check
        from pipeline.distributed import process

        process.prepare(None)
        return gpu_check(words)
    if command == "check":
        from pipeline.cli.check import check

        return check(words)
    if command == "ui" and words:
        from pipeline.cli.ui_server import ui

        ui(Path(words[0]), words[1:])
        return 0
    if command == "new":
        from pipeline.cli.new import new

        new(words)
        return 0
    if command in ("config", "schema"):
        from pipeline.cli import commands, config_docs

        commands.own_and_rest(command, words)  # refuses words where it takes none
        print(config_docs.config(words) if command == "config" else config_docs.schema_text().rstrip())
        return 0
    return None


def train_seeds(config: str, words: Sequence[str], seeds: Sequence[int], workers: int) -> int:
    """The YAML once per seed, in runs/NAME/seed-N, and the table of means over the seeds in runs/NAME."""
    from pipeline.config.load import ConfigError
    from pipeline.config.run_words import words_of_seed

    cfg = checked("run", config, words)
    if compared := [name for name in cfg.stages if cfg.blocks[name].kind in ("compare", "time_to_target")]:
        raise ConfigError([f"{config}: seeds= on the command line: {compared[0]} runs several seeds itself; "
                           f"give {compared[0]}.seeds"])  # fmt: skip
    cfgs = [checked("run", config, words_of_seed(words, cfg.run, seed)) for seed in seeds]
    code = train(cfgs, "run", workers)
    from pipeline.distributed import ranks
    from pipeline.report import write_report
    from pipeline.stages.seed_table import write_table

    if ranks.is_main():
        write_table(cfgs, cfg.run_dir)
        print(f"report: {write_report(cfg.run_dir)}")
    return code


def checked(command: str, config: str, overrides: Sequence[str]) -> Config:
    """The config, if nothing is wrong with it, its data, its verifiers or its models.

    Raises ConfigError before anything heavy loads.
    """
    from pipeline.cli.commands import COMMANDS
    from pipeline.config.load import ConfigError, nearest, read
    from pipeline.config.registry import KINDS

    if command not in COMMANDS and not Path(config).is_file():
        raise ConfigError([f"no command {command!r}{nearest(command, COMMANDS)}"])
    cfg, mistakes = read(config, overrides)
    if cfg is not None and command == "probe":
        cfg.blocks.setdefault("probe", KINDS["probe"].schema())  # it needs no block: it changes nothing of the run
    if cfg is not None and command not in COMMANDS and command not in cfg.blocks:
        mistakes.append(f"no command {command!r}{nearest(command, [*COMMANDS, *cfg.blocks])}")
    elif cfg is not None and command in KINDS and command not in cfg.blocks:
        mistakes.append(f"{config}: no block for stage {command!r}{nearest(command, cfg.blocks)}")
    if cfg is None or mistakes:
        raise ConfigError(mistakes)
    from pipeline import stages

    if not stages.up_to_date(cfg, cfg.stages if command == "run" else [command]):
        from pipeline.plan import preflight

        preflight.check(cfg, None if command == "run" else [command])
    return cfg


def train(cfgs: Sequence[Config], command: str, workers: int = 1) -> int:
    """Run the YAML's stages, or one of them; of several configs, one after another. workers: stages at once."""
    from pipeline.distributed import process
    from pipeline.models.model_dir import thread_count
    from pipeline.run import shutdown
    from pipeline.run.lock import locked

    shutdown.install(cfgs[0].run_dir if len(cfgs) == 1 else cfgs[0].run_dir.parent)
    with contextlib.ExitStack() as held:
        if int(os.environ.get("RANK", "0")) == 0:
            for cfg in cfgs:
                held.enter_context(locked(cfg.run_dir))
        process.prepare_environment(thread_count(cfgs[0].threads, cfgs[0].model.path))
        from pipeline import stages
        from pipeline.distributed import ranks

        ranks.start()
        if workers > 1 and not all(stages.up_to_date(cfg, cfg.stages) for cfg in cfgs):
            side_by_side(cfgs, workers)
        for cfg in cfgs:
            if command == "run":
                run_with_report(cfg)
                continue
            stages.bring_up_to_date(cfg, command)
            if command == "compare" and ranks.is_main():
                from pipeline.report import write_report

                print(f"report: {write_report(cfg.run_dir)}")
        ranks.leave()
    return 0


def side_by_side(cfgs: Sequence[Config], workers: int) -> None:
    """The stages of all runs, `workers` at once; the reports are written meanwhile, and once more at an alarm."""
    from pipeline.config.errors import Alarm
    from pipeline.report import write_report
    from pipeline.report.collect import is_stage
    from pipeline.report.live import LiveReport
    from pipeline.stages.side_by_side import run_side_by_side

    reports = {cfg.run: LiveReport(cfg.run_dir) for cfg in cfgs}
    try:
        run_side_by_side(cfgs, workers, reports)
    except Alarm:
        for cfg in cfgs:
            if any(is_stage(path) for path in cfg.run_dir.iterdir()):
                print(f"report: {write_report(cfg.run_dir)}")
        raise


def run_with_report(cfg: Config) -> None:
    """All stages; the report is written while they train, and once more at the end, also at one by an alarm."""
    from pipeline import stages
    from pipeline.config.errors import Alarm
    from pipeline.distributed import ranks
    from pipeline.report import report_up_to_date, write_report
    from pipeline.report.live import LiveReport

    if not ranks.is_main():
        return stages.run_all(cfg)
    try:
        stages.run_all(cfg, [LiveReport(cfg.run_dir)])
    except Alarm:
        print(f"report: {write_report(cfg.run_dir)}")
        raise
    print(f"report: {report_up_to_date(cfg.run_dir) or write_report(cfg.run_dir)}")


def of_a_run(command: str, run: Path, words: Sequence[str]) -> int:
    """Commands on a finished run, which read no YAML."""
    from pipeline.cli.commands import own_and_rest

    own_and_rest(command, words)  # refuses words that it does not take
    for path in [run, *(map(Path, words) if command == "diff" else [])]:
        refuse_file(command, path)
    if command in ("lineage", "diff"):
        from pipeline.run import lineage

        text, sound = lineage.diff(run, words) if command == "diff" else lineage.lineage(run)
        print(text)
        return 0 if sound else 2
    if command == "watch":
        from pipeline.cli.watch import watch

        return watch(run, words)
    if command == "report":
        from pipeline.report import write_report

        print(write_report(str(run)))
        return 0
    if command in ("generate", "chat"):
        from pipeline.distributed import process

        process.prepare(1)
        from pipeline.cli import chat

        chat.generate(run, words) if command == "generate" else chat.chat(run, words)
        return 0
    if command == "proxy":
        from pipeline.distributed import process

        process.prepare(1)
        from pipeline.cli.proxy_server import serve_proxy

        serve_proxy(run, words)
        return 0
    from pipeline.cli import export

    if command == "serve":
        export.serve(run, words)
    if command == "lm-eval":
        export.harness(run, words)
    if command == "export":
        print(f"exporting {export.chosen(run, words)}", file=sys.stderr)
    print(export.export(run, words) if command == "export" else export.push(run, words))
    return 0


def refuse_file(command: str, path: Path) -> None:
    """Raise ConfigError where a file was given for a run's directory, such as its YAML."""
    from pipeline.config.load import ConfigError
    from pipeline.config.yaml_reader import read_yaml

    if not path.is_file():
        return
    what, directory = "a file", "runs/NAME"
    if path.suffix in (".yaml", ".yml"):
        what = "a YAML"
        with contextlib.suppress(ConfigError):
            raw = read_yaml(path)
            directory = str(Path(str(raw.get("runs_dir", "runs"))) / str(raw.get("run", "NAME")))
    raise ConfigError([f"{command}: {path} is {what}; give the run's directory, as {directory}"])


def script() -> None:
    """The console script `whetstone`."""
    sys.excepthook = report_traceback
    sys.exit(main())


if __name__ == "__main__":
    script()
