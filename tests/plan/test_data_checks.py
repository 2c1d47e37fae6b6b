"""What `plan` says of data that would train on the wrong thing, through the command line as a user meets it."""

import json

import pytest
import yaml

from pipeline.__main__ import main
from pipeline.distributed.notices import forget

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CHARACTERS = "".join(map(chr, range(32, 127))) + "\n"
ROWS = [{"prompt": f"What is {i}+1?", "completion": f"\\boxed{{{i + 1}}}", "gold": str(i + 1)} for i in range(30)]


@pytest.fixture
def planned(tmp_path, capsys, monkeypatch):
    """plan of a run on these rows -> (exit code, lines of stderr, stdout)."""
    monkeypatch.chdir(tmp_path)

    def plan(rows, stages=("base", "sft"), **more):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        raw = {
            "run": "x", "stages": list(stages), "sampling": {"max_tokens": 16},
            "model": {"tiny": {"characters": CHARACTERS}, "chat_template": TEMPLATE},
            "prompts": {"path": "rows.jsonl", "heldout": 0.3}, "rewards": {"math_answer": {}},
            "sft": {"policy": "base"}, "grpo": {"policy": "base"}, "feedme": {"policy": "base"},
        }  # fmt: skip
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw | more))
        code = main(["plan", "c.yaml", "trial=false"])
        out, err = capsys.readouterr()
        return code, err.splitlines(), out

    return plan


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"gold": None}, "field 'gold' is null"),
        ({"gold": float("nan")}, "field 'gold' is nan"),
        ({"gold": {"answer": "7"}}, "gold"),
        ({"gold": ["7"]}, "gold"),
        ({"prompt": None}, "column 'prompt' is null; fill it in"),
        ({"prompt": [1, 2]}, "column 'prompt' is a list that holds 1"),
        ({"completion": None}, "column 'completion' is null; fill it in"),
        ({"completion": 7}, "column 'completion' holds 7, not text"),
        ({"messages": [{"role": "assistant", "content": "x"}], "prompt": None}, "column 'prompt' is null"),
        ({"tools": "oops"}, "column 'tools' holds text that is not JSON"),
    ],
)
def test_a_row_that_cannot_be_used_is_one_line_with_file_row_and_column(row, words, planned):
    code, lines, _ = planned([*ROWS, {**ROWS[0], **row}])
    assert code == 2 and len(lines) == 1
    assert "row 31 of rows.jsonl" in lines[0] and words in lines[0] and "Error" not in lines[0]


def test_a_gold_that_no_answer_can_meet_is_reported_and_the_run_goes_on(planned):
    code, lines, _ = planned([*ROWS, {**ROWS[0], "prompt": "odd", "gold": "\\frac{1}{"}])
    assert code == 0
    assert any("can pass no answer to 1 of 31 rows tried; row 31 of rows.jsonl" in line for line in lines)
    code, lines, _ = planned([{**row, "gold": "\\frac{1}{"} for row in ROWS])
    assert code == 2 and "can pass no answer to 30 of 30 rows tried" in lines[-1]


def test_rows_whose_messages_hold_only_the_prompt_plan(planned):
    rows = [{"messages": [{"role": "user", "content": row["prompt"]}], "gold": row["gold"]} for row in ROWS]
    for stages in (["base", "grpo"], ["base", "feedme"]):
        code, lines, out = planned(rows, stages)
        assert code == 0 and "sampled from, not imitated" in out, lines
    code, (line,), _ = planned(rows)
    assert code == 2 and "no row of rows.jsonl holds an answer to imitate" in line


def test_a_verifier_that_rows_name_must_exist(planned):
    rows = [{**row, "verifier": "math_answr"} for row in ROWS]
    code, lines, _ = planned(rows, rewards={"r": {"kind": "verifier", "verifier": "by_task"}})
    assert (
        code == 2 and "names 'math_answr'; by_task needs the name of a verifier; did you mean 'math_answer'" in lines[0]
    )


def test_each_kind_of_row_is_shown_with_its_trained_tokens(planned):
    def talk(i):
        said = (("user", f"hi {i}"), ("assistant", "yo"), ("user", "so"), ("assistant", "no"))
        return {"messages": [{"role": role, "content": content} for role, content in said], "gold": "1"}

    _, _, out = planned([*map(talk, range(9)), *ROWS])
    (several,) = [line for line in out.splitlines() if "several turns" in line]
    assert "<assistant>[y][o][<eos>]<user>so<assistant>[n][o][<eos>]" in several
    (text,) = [line for line in out.splitlines() if "from prompts (text)" in line]
    assert text.endswith("[<eos>]") and "What is [" not in text


def test_a_template_that_fails_matters_only_to_a_stage_that_imitates(planned):
    refuses = "{% if not add_generation_prompt %}{{ raise_exception('only prompts') }}{% endif %}" + TEMPLATE
    model = {"tiny": {}, "chat_template": refuses}
    rows = [{"prompt": [{"role": "user", "content": row["prompt"]}], "completion": "x", "gold": "1"} for row in ROWS]
    assert planned(rows, ["base", "grpo"], model=model)[0] == 0
    code, lines, _ = planned(rows, model=model)
    assert code == 2 and "the chat template refuses it: only prompts" in lines[-1] and "rows.jsonl" in lines[-1]


def test_rows_of_a_named_file_cost_no_share_of_the_training_rows_and_no_limit_is_mentioned_without_one(
    planned, tmp_path
):
    (tmp_path / "test.jsonl").write_text(json.dumps({**ROWS[0], "prompt": "What is one?"}) + "\n")
    source = {"path": "rows.jsonl", "heldout_path": "test.jsonl"}
    code, lines, out = planned(ROWS, prompts=source)
    assert code == 0 and not lines and "data: 30 rows, 30 prompts to train on, 1 held out" in out
    assert "1 held-out prompt is too few" in out and "limit" not in out and "max_prompt_tokens" not in out
    _, _, out = planned([*ROWS, {**ROWS[0], "prompt": "x" * 60}], prompts=source | {"max_prompt_tokens": 40})
    assert "; 3.1% dropped: longer than prompts.max_prompt_tokens 40\n" in out


def test_prompts_that_are_also_in_the_held_out_file_are_counted_and_if_all_are_the_line_names_its_key(
    planned, tmp_path
):
    forget()
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS[:10]))
    source = {"path": "rows.jsonl", "heldout_path": "test.jsonl"}
    code, lines, out = planned(ROWS, prompts=source)
    line = "prompts.heldout_path: 10 of 30 rows are not trained on, because their prompts are also in test.jsonl"
    assert code == 0 and "data: 20 rows" in out and lines == [line]
    code, lines, _ = planned(ROWS, prompts=source | {"heldout_path": "rows.jsonl"})
    assert code == 2 and len(lines) == 1
    assert "prompts.heldout_path: no row left to train on: all 30 prompts are also in rows.jsonl" in lines[0]


def test_prompts_whose_rows_differ_in_their_golds_are_counted(planned):
    forget()
    code, lines, _ = planned([*ROWS, {**ROWS[0], "gold": "77"}, {**ROWS[1], "id": 9}])
    assert code == 0 and len(lines) == 1
    assert "prompts: 1 prompt has several rows whose answers differ (gold); the verifiers take that of the" in lines[0]
