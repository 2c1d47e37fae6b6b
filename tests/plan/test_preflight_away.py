"""A verifier that cannot run on this machine is reported before anything loads: one line, exit 2, with the fix."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.__main__ import main
from verifiers import sandbox

CODE = {"prompt": "Write f.", "entry_point": "f", "tests": ["assert f() == 1"]}
RUBRIC = {"prompt": "Say hello.", "rubric": "It is kind."}
CONFIG = """
run: t
model: {{tiny: {{}}}}
sampling: {{max_tokens: 16}}
prompts: {{path: {rows}, heldout: 0.3}}
rewards: {rewards}
stages: [base, grpo]
grpo: {{policy: base}}
"""


@pytest.fixture
def told(tmp_path, monkeypatch, capsys):
    """The lines of a plan that must not be made; none where the config is sound."""

    def ask(task: dict, rewards: str, *overrides: str) -> list[str]:
        rows = tmp_path / "rows.jsonl"
        rows.write_text("".join(json.dumps({**task, "prompt": f"{task['prompt']} {i}"}) + "\n" for i in range(20)))
        config = tmp_path / "config.yaml"
        config.write_text(CONFIG.format(rows=rows, rewards=rewards))
        code = main(["plan", str(config), f"runs_dir={tmp_path}", "trial=false", *overrides])
        said = capsys.readouterr()
        assert code == (2 if said.err else 0), said.out
        return [line.removeprefix(f"{config}: ") for line in said.err.splitlines()]

    return ask


@pytest.fixture
def no_bubblewrap(tmp_path, monkeypatch) -> Iterator[None]:
    empty = tmp_path / "bin"
    empty.mkdir()
    monkeypatch.setenv("PATH", str(empty))
    monkeypatch.delenv(sandbox.CHOICE, raising=False)
    sandbox.close()
    yield
    monkeypatch.undo()
    sandbox.close()


def test_a_missing_sandbox_is_one_line_with_the_package_to_install(told, no_bubblewrap):
    (line,) = told(CODE, "{python_tests: {}}")
    assert line.startswith("rewards.python_tests: python_tests cannot run here: ")
    assert "apt-get install bubblewrap" in line


def test_a_stages_own_reward_and_its_monitor_are_asked_too(told, no_bubblewrap):
    sound = "{missing_eos: {}}"
    (line,) = told(CODE, sound, "grpo.reward={code: {kind: verifier, verifier: python_tests}}")
    assert line.startswith("grpo.reward.code: python_tests cannot run here: ")
    (line,) = told(CODE, sound, "grpo.monitor.strict={python_tests: {}}")
    assert line.startswith("grpo.monitor.strict.python_tests: python_tests cannot run here: ")


def test_a_wrong_name_of_an_isolation_is_reported_and_not_thrown(told, no_bubblewrap, monkeypatch):
    monkeypatch.setenv(sandbox.CHOICE, "docker")
    (line,) = told(CODE, "{python_tests: {}}")
    assert line.startswith("rewards.python_tests: ") and "have: bwrap, landlock, unsafe-none" in line


@pytest.mark.parametrize(
    ("rewards", "row"),
    [("{judge: {task: {url: 'http://127.0.0.1:9/v1'}}}", {}), ("{judge: {}}", {"url": "http://127.0.0.1:9/v1"})],
    ids=["for all rows", "in each row"],
)
def test_a_judge_needs_an_endpoint_from_somewhere(told, monkeypatch, rewards, row):
    monkeypatch.delenv("WHETSTONE_JUDGE_URL", raising=False)
    (line,) = told(RUBRIC, "{judge: {}}")
    assert line.startswith("rewards.judge: judge cannot run here: set WHETSTONE_JUDGE_URL")
    assert told(RUBRIC | row, rewards) == []


def test_what_no_stage_asks_for_may_be_away(told, no_bubblewrap):
    assert Path(sandbox.__file__).is_file() and told(CODE, "{missing_eos: {}}") == []
