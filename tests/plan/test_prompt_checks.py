"""What the model could not read or answer is refused by plan and at the start of a run, before a model is made."""

import json
from typing import Any

import pytest
import yaml

from pipeline.__main__ import main
from pipeline.config.load import ConfigError, load
from pipeline.plan import preflight, prompt_checks

ROWS = [{"prompt": f"{a}+{b}=", "completion": str(a + b), "gold": str(a + b)} for a in range(5) for b in range(5)]


@pytest.fixture
def config(tmp_path, monkeypatch):
    """Write a config with these rows, characters and blocks."""
    monkeypatch.chdir(tmp_path)

    def write(characters="0123456789+=", rows=ROWS, stages=("base", "sft"), **more):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        raw = {"run": "x", "stages": list(stages), "sampling": {"max_tokens": 4}, "rewards": {"math_answer": {}},
               "model": {"tiny": {"characters": characters}}, "prompts": {"path": "rows.jsonl", "heldout": 0.3},
               "sft": {"policy": "base"}}  # fmt: skip
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw | more))
        return "c.yaml"

    return write


def mistakes(path):
    return [line.removeprefix("c.yaml: ") for line in preflight.mistakes(load(path))]


@pytest.mark.parametrize("command", [["plan", "c.yaml", "trial=false"], ["run", "c.yaml"]])
def test_prompts_with_characters_that_a_tiny_model_lacks_are_refused(config, capsys, tmp_path, command):
    config("0123456789")
    assert main(command) == 2
    line = ("c.yaml: model.tiny.characters: prompts: characters that are not listed: '+='; add them; the first is "
            "in row 1 of rows.jsonl")  # fmt: skip
    assert capsys.readouterr().err.splitlines() == [line] and not (tmp_path / "runs").exists()


def test_demonstrations_pairs_held_out_rows_and_labels_must_be_readable_too(config, tmp_path):
    odd = {**ROWS[0], "completion": "0!"}
    assert mistakes(config(rows=[*ROWS, odd]))[0].endswith("'!'; add them; the first is in row 26 of rows.jsonl")
    assert mistakes(config(rows=[*ROWS, odd], stages=["base"])) == []  # nothing imitates it
    (tmp_path / "other.jsonl").write_text(json.dumps({**ROWS[0], "prompt": "9?"}) + "\n")
    named = {"path": "rows.jsonl", "heldout_path": "other.jsonl"}
    assert "prompts.heldout_path: characters that are not listed: '?'" in mistakes(config(prompts=named))[0]
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"prompt": "1+1=", "chosen": "2", "rejected": "x"}) + "\n")
    pairs = {"policy": "base", "data": {"path": "pairs.jsonl", "heldout": 0.0}}
    assert "dpo.data: characters that are not listed: 'x'" in mistakes(config(stages=["base", "dpo"], dpo=pairs))[0]
    labelled: dict[str, Any] = {"policy": "base", "pool": ["base"]}
    (line,) = mistakes(config(stages=["base", "conditioned"], conditioned=labelled))
    assert line == "model.tiny.characters: conditioned.label: characters that are not listed: '<> '; add them"
    assert mistakes(config("0123456789+=<> ", stages=["base", "conditioned"], conditioned=labelled)) == []
    named = labelled | {"attributes": {"size": {"of": "length", "label": "{bin}+", "words": ["1", "a"]}}}
    (line,) = mistakes(config(stages=["base", "conditioned"], conditioned=named))
    assert "conditioned.attributes.size.label: characters that are not listed: 'a'" in line


def test_an_empty_prompt_is_refused(config):
    rows = [{**row, "question": row["prompt"]} for row in ROWS]
    (line,) = mistakes(config(rows=[*rows, {**rows[0], "question": ""}],
                              prompts={"path": "rows.jsonl", "template": "{question}"}))  # fmt: skip
    assert line == "prompts.template: row 26 of rows.jsonl: the template gives an empty prompt; fill in its columns, " \
                   "or remove the row"  # fmt: skip


def test_a_completion_that_does_not_fit_behind_the_longest_prompt_is_refused_with_both_fixes(config, tmp_path):
    (line,) = mistakes(config(sampling={"max_tokens": 256}))
    assert line == ("sampling.max_tokens: 256 tokens, 4 of the longest prompt and 16 for a label are 276; the model "
                    "has 128; set it to at most 108, or raise model.tiny.max_position_embeddings to 276")  # fmt: skip
    assert mistakes(config(sampling={"max_tokens": 108})) == []
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.json").write_text(json.dumps({"text_config": {"max_position_embeddings": 64}}))
    cfg = load(config(model={"path": str(tmp_path / "m")}))
    assert prompt_checks.context_mistakes(cfg, 44) == []
    (line,) = prompt_checks.context_mistakes(cfg, 45)
    assert line.endswith("the model has 64; set it to at most 3, or drop long prompts by prompts.max_prompt_tokens")


def test_an_evaluation_before_every_policy_is_refused(config):
    assert mistakes(config(stages=["evaluate", "base"])) == [
        "evaluate.policies: no policy stage comes before this one; move it behind one, or name some"]  # fmt: skip


def test_a_row_that_cannot_be_read_is_an_error(config):
    cfg = load(config())
    with pytest.raises(ConfigError, match="no column 'prompt'"):
        prompt_checks.row_mistakes(cfg, [{"question": "x"}], cfg.prompts, "prompts")
