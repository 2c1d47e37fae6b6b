"""The `tools` block: its two ways to name tools, and what does not go together with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config.load import ConfigError, load

BASE = """
run: t
model: {path: x/y}
prompts: {procedural: gridworld}
rewards: {gridworld: {}}
"""


def config(tmp_path: Path, text: str) -> str:
    (tmp_path / "t.yaml").write_text(BASE + text)
    return str(tmp_path / "t.yaml")


def test_tools_are_named_in_a_list_or_with_their_settings(tmp_path: Path) -> None:
    for text, use in (("[calculator]", ["calculator"]), ("{python: {timeout_s: 3}}", {"python": {"timeout_s": 3}})):
        tools = load(config(tmp_path, f"tools: {{use: {text}}}\nstages: [grpo]\ngrpo: {{policy: model}}\n")).tools
        assert tools is not None
        assert tools.use == use


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tools: {max_turns: 3}\nstages: [grpo]", "tools: name at least one"),
        ("tools: {use: [calculator], max_tokens: 100}\nstages: [grpo]", "shorter than one turn"),
        ("tools: {use: [calculator]}\nstages: [reward_model]", "stage 'reward_model' samples plain completions"),
        ("tools: {use: [calculator]}\nstages: [feedme]\nfeedme: {pool: [sft]}", "feedme.pool: a pool is read as plain"),
        ("tools: {use: [calculator]}\nstages: [dpo]\ndpo: {pool: [sft]}", "dpo.pool: a pool is read as plain"),
        ("tools: {use: [calculator]}\nstages: [conditioned]\nconditioned: {guidance: 1.5}", "conditioned.guidance"),
        (
            "tools: {use: [calculator]}\nstages: [conditioned]\nconditioned: {demonstrations: 9}",
            "conditioned.demonstrations: it is made for plain completions",
        ),
        (
            "tools: {openenv: {url: 'http://127.0.0.1:1', action: text}}\nstages: [conditioned]",
            "a label is put in front of the first user message, which your tools writes itself",
        ),
        ("program: {command: [x]}\nstages: [conditioned]", "which your program writes itself"),
        (
            "tools: {use: [calculator]}\nstages: [grpo]\ngrpo: {overlap: true, loss: {importance: truncate}}",
            "grpo.overlap",
        ),
        ("tools: {use: [calculator]}\nstages: [grpo]\ngrpo: {episodes: {environment: gridworld}}", "grpo.episodes"),
        (
            "tools: {use: [calculator]}\nstages: [grpo]\ngrpo: {groups: {overlong_buffer: 9}}",
            "grpo.groups.overlong_buffer",
        ),
        ("tools: {use: [calculator], max_turn: 3}\nstages: [grpo]", "did you mean 'max_turns'"),
        ("program: {command: []}\nstages: [grpo]", "program.command"),
        ("program: {command: [x]}\ntools: {use: [calculator]}\nstages: [grpo]", "leave the block `tools` out"),
        ("program: {command: [x], context: 100}\nstages: [grpo]", "program.context: 100 tokens are fewer"),
        ("program: {command: [x]}\nstages: [reward_model]", "with program the stages are"),
        ("program: {command: [x]}\nstages: [grpo]\ngrpo: {credit: {kind: gdpo}}", "leave it out, or program"),
        ("tools: {use: [calculator], format: xml}\nstages: [grpo]", "tools.format"),
    ],
)
def test_what_does_not_go_together_is_reported_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(config(tmp_path, text + "\n"))
    assert any(words in line for line in caught.value.mistakes), caught.value.mistakes
