"""The table of commands: every command has its own help and keys, no name is listed twice, typos get the nearest."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import __main__ as cli
from pipeline.cli import commands, slurm
from pipeline.cli.chaos import Settings
from pipeline.config.load import ConfigError
from pipeline.config.registry import KINDS

ROOT = Path(__file__).parents[2]


def printed(capsys, *words: str) -> str:
    assert cli.main(list(words)) == 0
    return capsys.readouterr().out


def refused(capsys, *words: str) -> str:
    assert cli.main(list(words)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_the_overview_lists_every_command_once(capsys):
    listed = [line.split()[0] for line in printed(capsys, "--help").splitlines() if line.startswith("  ")]
    assert sorted(listed) == sorted(commands.COMMANDS) and len(set(listed)) == len(listed)
    assert {kind.name for kind in KINDS.values() if kind.summary} <= set(listed)
    assert printed(capsys, "help") == printed(capsys, "--help")


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_command_has_its_own_help_both_ways(capsys, name):
    text = printed(capsys, "help", name)
    assert text.startswith(f"usage: whetstone {name}") and f"example: whetstone {name}" in text
    assert all(f"  {key}" in text for key in commands.COMMANDS[name].keys)
    assert printed(capsys, name, "--help") == text


def test_the_version_is_that_of_the_project(capsys):
    assert f'version = "{printed(capsys, "--version").split()[1]}"' in (ROOT / "pyproject.toml").read_text()


def test_an_unknown_command_names_the_nearest(capsys):
    assert refused(capsys, "exprt") == "no command 'exprt'; did you mean 'export'?"
    assert refused(capsys, "help", "exprt") == "no command 'exprt'; did you mean 'export'?"
    assert refused(capsys, "exprt", "runs/demo") == "no command 'exprt'; did you mean 'export'?"


def test_without_its_first_word_a_command_says_what_it_needs(capsys):
    assert refused(capsys, "run") == "run: name a YAML, as in: whetstone run configs/demo/pipeline.yaml"
    assert refused(capsys, "serve") == "serve: name a run's directory, as in: whetstone serve runs/demo"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["export", "r", "stag=x"], "export: 'stag=x' on the command line: expected key=value; did you mean 'stage'?"),
        (["chat", "r", "best"], "chat: 'best' on the command line: expected key=value"),
        (["report", "r", "x=1"], "report: 'x=1' on the command line: it takes no further words"),
        (["schema", "x"], "schema: 'x' on the command line: it takes no further words"),
        (["gpu-check", "sise=mid"], "gpu-check: 'sise=mid' on the command line: expected key=value; did you mean"),
    ],
)  # fmt: skip
def test_each_command_checks_its_own_keys(capsys, words, line):
    assert refused(capsys, *words).startswith(line)


def test_the_table_has_the_keys_that_the_commands_read():
    assert commands.COMMANDS["sbatch"].keys.keys() == slurm.DEFAULTS.keys()
    _, rest = Settings.taken_from(
        [f"{key}={'kill' if key == 'ending' else 1}" for key in commands.COMMANDS["chaos"].keys]
    )
    assert rest == []
    assert commands.own_and_rest("serve", ["host=0.0.0.0", "port=1"]) == ({"host": "0.0.0.0"}, ["port=1"])
    with pytest.raises(ConfigError):
        commands.options("export", ["port=1"])


def test_the_schema_and_the_keys_come_as_text(capsys):
    assert json.loads(printed(capsys, "schema"))["title"] == "Whetstone pipeline"
    assert "grpo.loss.clip_high" in printed(capsys, "config", "grpo.loss")
    assert "arXiv:2503.14476" in printed(capsys, "config", "--method", "dapo")


def test_the_console_script_is_the_module(tmp_path):
    """What pip would install as `whetstone`, called as pip's wrapper does."""
    target = next(line for line in (ROOT / "pyproject.toml").read_text().splitlines() if line.startswith("whetstone ="))
    module, _, function = target.partition('"')[2].strip('"').partition(":")
    code = f"import sys; from {module} import {function}; sys.argv = ['whetstone', '--version']; {function}()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("whetstone ")


def test_the_reader_of_a_pipe_may_leave():
    command = f"{sys.executable} -m pipeline schema | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "{\n" and "Traceback" not in done.stderr
