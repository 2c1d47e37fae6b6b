"""whetstone new: a file of any format gives a YAML that plans clean, with the verifier that fits its rows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from sandboxes import needs_sandbox

from pipeline.__main__ import main
from pipeline.cli.new import FINAL_ANSWER, best_rating, plain_questions, template_for
from pipeline.cli.other_columns import check_choices, choices_missing
from pipeline.cli.pick_verifier import pick
from pipeline.config.schema import Model, Prompts, Tiny
from pipeline.data.prompt_columns import prompt_text
from pipeline.models import models
from pipeline.plan import sound

FILES = sorted((Path(__file__).parents[1] / "corpora" / "formats").iterdir())
CHARACTERS = "".join(map(chr, range(32, 127))) + "\n"
TEMPLATE = (
    "{% if tools %}[{{ tools | tojson }}]{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}{% endfor %}"
    "{% if m.role == 'assistant' %}<eos>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
# what the stages of a file must be, beside base and evaluate
EXPECTED = {
    "verl.parquet": (["grpo"], "by_task"),
    "openai_rft.jsonl": (["grpo"], "math_answer"),
    "open_instruct_ifeval.jsonl": (["grpo"], "by_task"),
    "open_instruct_rlvr.jsonl": (["grpo"], "by_task"),
    "nemo_response.jsonl": (["sft", "grpo"], "math_answer"),
    "alpaca.jsonl": (["sft"], "missing_eos"),
    "sharegpt.jsonl": (["sft"], "missing_eos"),
    "openai_preference.jsonl": (["dpo"], "missing_eos"),
    "trl_explicit_preference.jsonl": (["dpo"], "missing_eos"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("model")
    models.make_tiny(Tiny(characters=CHARACTERS, max_position_embeddings=640), place, seed=1)
    tokenizer = models.load_tokenizer(str(place), Model())
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(place)
    return place


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name)
def test_every_format_gives_a_yaml_that_plans_clean(file, model, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["new", str(model), str(file), "to=mine.yaml"]) == 0
    cfg = sound("mine.yaml", [])
    assert (cfg.stages[0], cfg.stages[-1], cfg.run) == ("base", "evaluate", "mine")
    if file.name in EXPECTED:
        stages, verifier = EXPECTED[file.name]
        assert (cfg.stages[1:-1], list(cfg.rewards)) == (stages, [verifier])
    text = Path("mine.yaml").read_text()
    assert "# " in text and [path.name for path in tmp_path.iterdir()] == ["mine.yaml"]


@pytest.mark.stages
def test_what_it_writes_trains(model, tmp_path, monkeypatch, no_engine_left_behind) -> None:
    monkeypatch.chdir(tmp_path)
    file = next(path for path in FILES if path.name == "nemo_response.jsonl")
    assert main(["new", str(model), str(file), "to=mine.yaml"]) == 0
    short = ["generate.backend=transformers", "sft.trainer.max_steps=2", "grpo.steps=2", "grpo.prompts=2",
             "grpo.samples=4", "sampling.max_tokens=8", "evaluation={samples: 1, prompts: 2, k: 1}",
             "grpo.alarms.no_signal_steps=50", "model.dtype=float32"]  # fmt: skip
    assert main(["run", "mine.yaml", *short]) == 0
    assert json.loads(Path("runs/mine/grpo/manifest.json").read_text())["status"] == "complete"


def rows_of(golds: list[object], column: str = "gold", **more: object) -> list[dict[str, object]]:
    return [{"prompt": f"Question {i}?", column: gold, **more} for i, gold in enumerate(golds)]


@needs_sandbox
@pytest.mark.parametrize(
    ("tasks", "verifier", "renamed"),
    [
        (rows_of(["7", "1,024", "-3.5"]), "math_answer", None),
        (rows_of([7, 8, 9], "answer"), "math_answer", {"gold": "answer"}),
        (rows_of([r"\frac{1}{2}", "x^2+1", r"\sqrt{2}"]), "math_answer", None),
        (rows_of(["A", "C", "B"], "label"), "multiple_choice", {"gold": "label"}),
        (rows_of(["Paris", "New Delhi", "Rome"], "answer"), "exact", {"gold": "answer"}),
        (rows_of(["A long explanation of the matter, which nobody repeats word by word. " * 3] * 3), "", None),
        ([{"prompt": "p"}], "", None),
        ([{"prompt": "p", "numbers": [1, 2], "target": 3}], "countdown", None),
        ([{"prompt": "p", "entry_point": "f", "tests": ["assert f(1) == 1"]}], "python_tests", None),
        ([{"prompt": "p", "cases": [{"stdin": "1", "stdout": "1"}]}], "python_stdio", None),
        ([{"prompt": "p", "schema": {"type": "object"}}], "json_schema", None),
        ([{"prompt": "p", "verifier": "exact", "gold": "a"}, {"prompt": "p", "verifier": "numeric", "gold": "1"}],
         "by_task", None),
        ([{"prompt": "p", "reward_model": {"ground_truth": "7"}}], "math_answer",
         {"gold": "reward_model.ground_truth"}),
    ],
)  # fmt: skip
def test_the_verifier_follows_from_fields_and_golds(tasks, verifier, renamed) -> None:
    choice = pick(tasks)
    assert (choice.verifier, choice.task) == (verifier, renamed) and choice.why


def test_a_plain_column_of_questions_is_found_and_named(model, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"query": f"What is {n} + 1?", "final_answer": str(n + 1)} for n in range(30)]
    Path("sums.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["new", str(model), "sums.jsonl"]) == 0
    written = yaml.safe_load(Path("sums.yaml").read_text())
    assert written["prompts"]["prompt"] == "query" and written["prompts"]["task"] == {"gold": "final_answer"}
    assert written["prompts"]["template"] == "{query}\n" + FINAL_ANSWER
    assert written["prompts"]["chat"] is True and math.isclose(written["prompts"]["heldout"], 0.1, abs_tol=0.2)


def test_rated_answers_are_filtered_and_not_imitated_as_they_are(model, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"Name {n}", "completion": "x", "rating": n % 7 + 1} for n in range(30)]
    Path("rated.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["new", str(model), "rated.jsonl"]) == 0
    written = yaml.safe_load(Path("rated.yaml").read_text())
    assert written["stages"] == ["base", "feedme", "evaluate"] and written["feedme"]["pool"] == ["rated.jsonl"]
    assert written["feedme"]["filters"][0] == {"threshold": 7}


def test_an_answer_that_nobody_rated_does_not_make_ratings_demonstrations(model, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"Name {n}", "completion": "x", "rating": None if n == 3 else n % 7 + 1} for n in range(30)]
    Path("ratings.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["new", str(model), "ratings.jsonl"]) == 0
    written = yaml.safe_load(Path("ratings.yaml").read_text())
    assert written["stages"] == ["base", "feedme", "evaluate"] and "sft" not in written
    assert written["feedme"]["filters"][0] == {"threshold": 7}


def test_a_rating_is_the_highest_number_and_null_is_none() -> None:
    assert best_rating([{"rating": None}, {"rating": 3}, {"rating": 5.5}]) == 5.5
    assert best_rating([{"score": 1}, {"rating": None, "score": 2}]) == 2
    assert best_rating([{"rating": None}]) is None
    assert best_rating([{"rating": True}, {"rating": 2}]) is None
    assert best_rating([{"prompt": "a"}]) is None


def test_rows_of_question_and_answer_are_read_by_their_own_columns(model, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(30)]
    Path("add.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["new", str(model), "add.jsonl"]) == 0
    text = Path("add.yaml").read_text()
    source = yaml.safe_load(text)["prompts"]
    assert (source["format"], source["prompt"], source["task"]) == ("plain", "question", {"gold": "answer"})
    assert source["template"] == "{question}\nReason step by step and put the final answer in \\boxed{}."
    assert "Prime" not in text and "every row has an answer in 'answer'" in text


@pytest.mark.parametrize(
    ("row", "plain"),
    [
        ({"question": "1+1?", "answer": "2"}, True),
        ({"question": "1+1?", "answer": 2, "level": "easy"}, True),
        ({"question": "1+1?", "answer": "1+1=2\n#### 2"}, False),  # GSM8K
        ({"question": "1+1?", "answer": "2", "task": "math"}, False),  # Prime Intellect's
        ({"question": "1+1?", "answer": ["2"]}, False),
    ],
)
def test_only_plain_questions_skip_the_recognition_of_formats(row, plain) -> None:
    assert plain_questions([row]) is plain


def test_a_template_asks_for_the_final_answer_only_where_it_is_read_and_not_yet_asked_for() -> None:
    math = pick([{"gold": "7"}])
    assert template_for(math, "q", {"1+1?"}) == "{q}\n" + FINAL_ANSWER
    assert template_for(math, "q", {"1+1? Answer in \\boxed{}."}) is None
    assert template_for(pick([{"prompt": "p"}]), "q", {"1+1?"}) is None


def made(rows: list[dict[str, object]], model: Path, directory: Path, monkeypatch) -> dict[str, object]:
    """The YAML that `new` writes for the rows."""
    monkeypatch.chdir(directory)
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["new", str(model), "rows.jsonl"]) == 0
    return yaml.safe_load(Path("rows.yaml").read_text())


@pytest.mark.parametrize(
    ("columns", "stages", "source"),
    [
        (("instruction", "response"), ["sft"], {"prompt": "instruction", "completion": "response"}),
        (("prompt", "response"), ["sft"], {"completion": "response"}),
        (("instruction", "context", "response"), ["sft"], {"template": "{instruction}\n\n{context}"}),
        (("prompt", "response", "rating"), ["feedme"], {"completion": "response"}),
        (("question", "metadata.gold"), ["grpo"], {"prompt": "question", "task": {"gold": "metadata.gold"}}),
        (("question", "answer.value"), ["grpo"], {"prompt": "question", "task": {"gold": "answer.value"}}),
        (("Question", "Answer"), ["grpo"], {"prompt": "Question", "task": {"gold": "Answer"}}),
    ],
)
def test_less_usual_columns_are_found_and_named(columns, stages, source, model, tmp_path, monkeypatch) -> None:
    def row(n: int) -> dict[str, object]:
        values = {"rating": n % 7, "metadata.gold": {"gold": str(n)}, "answer.value": {"value": n, "unit": "m"}}
        texts = {"Answer": str(n), "response": "An answer."}
        return {c.partition(".")[0]: values.get(c, texts.get(c, f"What is {n}?")) for c in columns}

    written = made([row(n) for n in range(30)], model, tmp_path, monkeypatch)
    assert written["stages"] == ["base", *stages, "evaluate"]
    prompts: Any = written["prompts"]
    assert source.items() <= prompts.items()


ROW = {"question": "What is it?", "answer": "1"}


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "p"}], "new: rows.jsonl: no column has an answer to check (gold, answer, "),
        ([ROW] * 7 + [{"question": "q"}] + [ROW] * 2,
         "new: row 8 of rows.jsonl has no column 'answer', which 9 of 10 rows have; fill it in, or remove the row"),
        ([ROW, {"answer": "2"}, ROW], "new: row 2 of rows.jsonl has no column 'question', which 2 of 3 rows have"),
        ([ROW, {"question": "", "answer": "2"}], "new: row 2 of rows.jsonl: column 'question' is empty"),
        ([ROW | {"answer": True}], "new: rows.jsonl: column 'answer' holds true and false, which no verifier"),
        ([{"question": "q", "meta": {"gold": "1", "answer": "2"}}], "meta.gold, meta.answer may hold the answer"),
        ([{"question": "q", "choices": ["a", "b"], "answer": n} for n in (0, 1)], "'answer' is the number of a choice"),
        ([{"question": "q", "options": ["a", "b"], "label": n} for n in "01"], "'label' is the number of a choice"),
        ([{"foo": "1"}], "new: rows.jsonl has no column 'prompt' and none of messages, question, "),
    ],
)  # fmt: skip
def test_rows_with_nothing_to_learn_from_are_refused_in_one_line(rows, said, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["new", "Qwen/Qwen2.5-0.5B-Instruct", "rows.jsonl"]) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1 and not Path("rows.yaml").exists()


def test_a_number_that_is_the_text_of_a_choice_stays_the_answer() -> None:
    tasks = [{"question": "1+1?", "choices": ["1", "2", "3"], "answer": "2"}]
    check_choices(tasks, pick(tasks), "rows.jsonl")


def test_choices_that_the_prompt_does_not_list_are_said_with_the_template_that_does() -> None:
    tasks = [{"question": "Which?", "choices": ["this", "that"], "answer": letter} for letter in "AB"]
    line = choices_missing(tasks, pick(tasks), ["Which?", "Which?"], "question")
    assert line and line.endswith(r'add to prompts: template: "{question}\nA. {choices.0}\nB. {choices.1}"')
    source = Prompts(template=yaml.safe_load(line.rpartition("template: ")[2]))
    filled = prompt_text(tasks[0], source)
    assert filled == "Which?\nA. this\nB. that" and choices_missing(tasks, pick(tasks), [filled] * 2, "q") is None


def test_the_commands_in_the_file_name_it_as_it_was_given(model, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("sub").mkdir()
    Path("rows.jsonl").write_text("\n".join(json.dumps({"prompt": f"{n}?", "gold": str(n)}) for n in range(30)))
    assert main(["new", str(model), "rows.jsonl", "to=sub/mine.yaml"]) == 0
    assert "whetstone plan sub/mine.yaml, then whetstone run sub/mine.yaml." in Path("sub/mine.yaml").read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "no MODEL; as in: whetstone new"),
        (["{model}"], "no FILE"),
        (["./nowhere", "{rows}"], "./nowhere does not exist"),
        (["{model}", "missing.jsonl"], "missing.jsonl does not exist"),
        (["{model}", "{empty}"], "has no rows"),
        (["{model}", "{odd}"], "has no column 'prompt'"),
        (["{model}", "{rows}", "to={rows}"], "exists; name another file"),
        (["{model}", "{rows}", "too=x"], "one word too many"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(words, said, model, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in {"rows": '{"prompt": "a", "gold": "1"}', "empty": "", "odd": '{"foo": 1}'}.items():
        (tmp_path / f"{name}.jsonl").write_text(text)
    places = {name: str(tmp_path / f"{name}.jsonl") for name in ("rows", "empty", "odd")} | {"model": str(model)}
    before = sorted(tmp_path.iterdir())
    assert main(["new", *(word.format(**places) for word in words)]) == 2
    err = capsys.readouterr().err
    assert said in err and "Traceback" not in err and sorted(tmp_path.iterdir()) == before


def test_tiny_is_no_name_of_a_model_and_the_line_says_what_to_write(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rows.jsonl").write_text('{"prompt": "1+1=", "gold": "2"}\n')
    assert main(["new", "tiny", "rows.jsonl"]) == 2
    assert "docs/tasks.md, section `A first run`" in capsys.readouterr().err
    assert "## A first run" in (Path(__file__).parents[2] / "docs/tasks.md").read_text()
    assert not Path("rows.yaml").exists()
