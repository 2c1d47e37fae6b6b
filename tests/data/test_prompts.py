import json
import zlib
from dataclasses import replace

import pyarrow
import pyarrow.parquet
import pytest

from pipeline.config.load import ConfigError, load
from pipeline.config.schema import Model, Prompts, Tiny
from pipeline.data import encoding, prompts
from pipeline.distributed.notices import forget
from pipeline.models import models
from pipeline.run.stage_dir import StageDir
from pipeline.stages.context import Context

ROWS = [{"prompt": f"q{i}", "completion": f"a{i}", "gold": str(i)} for i in range(40)]
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}<eos>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"  # noqa: E501


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    place = tmp_path_factory.mktemp("tiny")
    models.make_tiny(Tiny(), place, seed=1)
    return models.load_tokenizer(str(place), Model())


@pytest.fixture
def chat(tokenizer):
    tokenizer.chat_template = TEMPLATE
    yield tokenizer
    tokenizer.chat_template = None


def ends(tokenizer):
    return frozenset({tokenizer.eos_token_id})


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def test_jsonl_parquet_and_a_folder_of_shards_give_the_same_rows(tmp_path):
    jsonl = write(tmp_path / "x.jsonl", ROWS)
    parquet = tmp_path / "x.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), parquet)
    shards = tmp_path / "shards"
    shards.mkdir()
    write(shards / "0.jsonl", ROWS[:25])
    write(shards / "1.jsonl", ROWS[25:])
    read = [prompts.load_rows(Prompts(path=str(p)), seed=1) for p in (jsonl, parquet, shards)]
    assert read[0] == read[1] == read[2] == ROWS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows"),
        ('{"a": 1}\n{oops', ":2: not JSON"),
        ("[1, 2]", ":1: expected an object, found list; a file that holds one JSON list of rows is named .json"),
        ('[\n{"a": 1},\n{"a": 2}]', ":1: not JSON: Expecting value; a file that holds one JSON list of rows is named"),
        ('{"a": 1},\n{"a": 2}', ":1: not JSON: a comma after the object; remove it"),
        ('{"a": 1} {"a": 2}', ":1: not JSON: more than one value in the line"),
    ],
)
def test_a_bad_file_is_reported_in_one_line_with_its_line(tmp_path, text, message):
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        prompts.load_rows(Prompts(path=str(path)), seed=1)
    assert message in str(error.value) and "x.jsonl" in str(error.value) and "\n" not in str(error.value)


def test_a_csv_is_refused_with_the_way_to_convert_it(tmp_path):
    (tmp_path / "x.csv").write_text("question,answer\na,1\n")
    with pytest.raises(ConfigError, match=r"x\.csv: CSV is not read; write it as Parquet or JSONL, .*from_csv"):
        prompts.load_rows(Prompts(path=str(tmp_path / "x.csv")), seed=1)


def test_a_missing_file_and_a_truncated_parquet_are_reported(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        prompts.load_rows(Prompts(path=str(tmp_path / "no.jsonl")), seed=1)
    bad = tmp_path / "bad.parquet"
    bad.write_bytes(b"PAR1 this is not parquet")
    with pytest.raises(ConfigError, match=r"bad\.parquet: not readable as Parquet"):
        prompts.load_rows(Prompts(path=str(bad)), seed=1)


def test_a_row_without_its_column_is_named_with_the_nearest_one():
    with pytest.raises(ConfigError, match=r"row 3 .*no column 'prompt'; did you mean 'promt'\?"):
        prompts.prompt_text({"promt": "x"}, Prompts(path="x.jsonl"), number=3)


def test_a_template_is_filled_once_and_a_value_that_looks_like_a_mark_stays_as_it_is():
    row = {"question": "What does f'{answer}' print?", "answer": "42", "other": "{question}"}
    source = Prompts(template="Q: {question} {other} {{question}} \\boxed{} {unknown}")
    asked = "What does f'{answer}' print?"
    assert prompts.prompt_text(row, source) == f"Q: {asked} {{question}} {{{asked}}} \\boxed{{}} {{unknown}}"


def test_the_split_is_a_hash_of_the_text_and_no_prompt_is_on_both_sides():
    doubled = [*ROWS, *({**r, "completion": "another"} for r in ROWS)]
    split = prompts.split(doubled, Prompts(heldout=0.25))
    train, heldout = ({r["prompt"] for r in side} for side in (split.train, split.heldout))
    assert heldout == {r["prompt"] for r in ROWS if zlib.crc32(r["prompt"].encode()) % 10_000 < 2500}
    assert not train & heldout and len(split.train) + len(split.heldout) == 80


def test_validation_prompts_are_neither_trained_on_nor_held_out_and_move_no_held_out_prompt():
    without, split = (prompts.split(ROWS, Prompts(heldout=0.25, validation=v)) for v in (0.0, 0.25))
    assert split.heldout == without.heldout and not without.validation
    hashes = {r["prompt"]: zlib.crc32(r["prompt"].encode()) % 10_000 for r in ROWS}
    assert [r["prompt"] for r in split.validation] == [p for p, h in hashes.items() if 2500 <= h < 5000]
    assert len(split.train) + len(split.validation) == len(without.train) and split.validation


def test_a_validation_prompt_is_barred_from_every_other_data_set_of_the_run(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"q{i}", "completion": "a"}) + "\n" for i in range(80)))
    config = tmp_path / "c.yaml"
    config.write_text(f"run: r\nruns_dir: {tmp_path}\nmodel: {{tiny: {{}}}}\nstages: [base, sft]\n"
                      f"prompts: {{path: {path}, heldout: 0.2, validation: 0.2}}\nsft: {{}}\n")  # fmt: skip
    cfg = load(config)
    ctx = Context(cfg, "sft", StageDir(tmp_path, "sft"))
    kept_apart = {row["prompt"] for row in [*ctx.split.validation, *ctx.split.heldout]}
    assert ctx.split.validation and all(text in ctx.barred for text in kept_apart)
    assert len(ctx.barred) == len(kept_apart)
    own = ctx.rows_of(replace(cfg.prompts, heldout=0.0, validation=0.0), "sft.data")
    assert not {row["prompt"] for row in own.train} & kept_apart


def test_a_named_held_out_prompt_is_held_out_whatever_its_hash():
    source = Prompts(heldout=0.0)
    split = prompts.split(ROWS, source, heldout=[{"prompt": "q7"}])
    assert [r["prompt"] for r in split.heldout] == ["q7"]


def loaded(tmp_path, prompts_block, *overrides):
    write(tmp_path / "rows.jsonl", ROWS)
    config = tmp_path / "c.yaml"
    config.write_text("run: t\nstages: [base]\nmodel: {tiny: {}}\nrewards: {exact: {}}\n"
                      f"prompts: {{path: {tmp_path / 'rows.jsonl'}, {prompts_block}}}\n")  # fmt: skip
    return load(config, list(overrides)).prompts


@pytest.mark.parametrize("named", ["heldout_path: other.jsonl", "heldout_split: test"])
def test_where_rows_to_evaluate_on_are_named_no_share_is_held_out_unless_it_is_given(tmp_path, named):
    assert loaded(tmp_path, named).heldout == 0.0
    assert loaded(tmp_path, f"{named}, heldout: 0.25").heldout == 0.25
    assert loaded(tmp_path, named, "prompts.heldout=0.25").heldout == 0.25
    assert loaded(tmp_path, "rows: 9").heldout == 0.1


def test_rows_that_named_held_out_rows_keep_out_of_training_are_counted(capsys):
    forget()
    source = Prompts(path="a.jsonl", heldout=0.25, heldout_path="b.jsonl")
    split = prompts.split(ROWS, source, heldout=[{"prompt": "q7"}, {"prompt": "other"}])
    lines = capsys.readouterr().err.splitlines()
    assert (
        lines[0] == "prompts.heldout_path: 1 of 40 rows are not trained on, because their prompts are also in b.jsonl"
    )
    assert lines[1].startswith(f"prompts.heldout: {39 - len(split.train)} of 40 rows are neither trained nor evaluated")
    prompts.split(ROWS, Prompts(heldout=0.0), heldout=[{"prompt": "other"}])
    assert not capsys.readouterr().err


def test_a_completion_ends_with_exactly_one_end_token(tokenizer):
    eos = tokenizer.eos_token_id
    for completion in ("RRU", "RRU<eos>"):
        row = {"prompt": "a1:", "completion": completion}
        ids = encoding.completion_ids(row, Prompts(), tokenizer, [], stop_token_ids=ends(tokenizer))
        assert ids.count(eos) == 1 and ids[-1] == eos and len(ids) == 4


def test_messages_go_through_the_template_and_keep_no_newline_after_the_end(chat):
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}
    ids = encoding.render_ids(row, Prompts(), chat)
    assert chat.decode(ids) == "<user>hi<assistant>"
    done = encoding.completion_ids(row, Prompts(), chat, ids, stop_token_ids=ends(chat))
    assert chat.decode(done) == "yo<eos>"


def test_a_label_and_a_system_turn_stand_where_they_should(chat):
    row = {"prompt": "hi"}
    ids = encoding.render_ids(row, Prompts(system="be good", chat=True), chat, label="<4> ")
    assert chat.decode(ids) == "<system>be good<user><4> hi<assistant>"
    assert row == {"prompt": "hi"}


def test_messages_without_a_template_are_refused_with_the_fix(tokenizer):
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]}
    with pytest.raises(ConfigError, match=r"model\.chat_template"):
        encoding.render_ids(row, Prompts(), tokenizer)


def test_a_row_that_the_chat_template_refuses_is_named_with_the_templates_words(chat):
    chat.chat_template = "{{ raise_exception('System role not supported') if messages[0].role == 'system' }}" + TEMPLATE
    row, source = {"prompt": "hi", "completion": "yo"}, Prompts(system="be good")
    with pytest.raises(
        ConfigError, match=r"^prompts: row 7 of the data: the chat template refuses it: System role not supported$"
    ):
        encoding.render_ids(row, source, chat, number=7)
    with pytest.raises(ConfigError, match=r"row 7 of the data: the chat template refuses it"):
        encoding.completion_ids(row, source, chat, [], stop_token_ids=ends(chat), number=7)


@pytest.mark.parametrize(
    "day",
    ["{{ strftime_now('%d %b %Y') }}", "{{ date_string if date_string else strftime_now('%d %b %Y') }}"],
)
def test_a_template_that_writes_the_day_gives_the_same_prompt_on_every_day(chat, day):
    chat.chat_template = day + TEMPLATE
    row = {"prompt": "hi", "completion": "yo"}
    ids = encoding.render_ids(row, Prompts(chat=True), chat)
    assert ids == chat("26 Jul 2024<user>hi<assistant>").input_ids
    assert (
        chat.decode(encoding.completion_ids(row, Prompts(chat=True), chat, ids, stop_token_ids=ends(chat))) == "yo<eos>"
    )
    if "date_string" in day:
        asked = encoding.render_ids(row, Prompts(chat=True, chat_kwargs={"date_string": "1 May 2025"}), chat)
        assert asked == chat("1 May 2025<user>hi<assistant>").input_ids


def test_tasks_map_columns_and_a_missing_field_names_row_verifier_and_fix(tokenizer):
    check = prompts.TaskCheck({None: {"math_answer": frozenset({"gold"})}})
    found = prompts.LazyPrompts(ROWS, Prompts(task={"answer": "gold"}), tokenizer, check=check)
    assert found[3].task == {"answer": "3"}
    with pytest.raises(ConfigError, match=r"row 1 \('q0'\) has no field 'gold', which verifier 'math_answer' needs"):
        check.finish()


def test_distinct_prompts_keep_first_appearance_and_drop_what_is_too_long(tokenizer):
    rows = [*ROWS[:2], ROWS[0], {**ROWS[2], "prompt": "x" * 50}]
    found = prompts.LazyPrompts(rows, Prompts(max_prompt_tokens=10), tokenizer)
    assert [p.text for p in found] == ["q0", "q1"] and [p.index for p in found] == [0, 1]


def test_a_procedural_source_is_a_function_of_the_seed():
    source = Prompts(procedural="gridworld", rows=30)
    assert prompts.load_rows(source, seed=1) == prompts.load_rows(source, seed=1)
    assert prompts.load_rows(source, seed=1) != prompts.load_rows(source, seed=2)
    with pytest.raises(ConfigError, match="no verifier 'gridword'; did you mean 'gridworld'"):
        prompts.load_rows(Prompts(procedural="gridword"), seed=1)


def test_a_line_of_jsonl_ends_where_the_file_says_and_not_at_unicode_separators(tmp_path):
    path = tmp_path / "rows.jsonl"
    said = "one\u2028two\u0085three"
    path.write_text("\ufeff" + json.dumps({"prompt": said}, ensure_ascii=False) + "\r\n\n" + '{"prompt": "b"}', "utf-8")
    assert list(prompts.numbered_rows(path)) == [(1, {"prompt": said}), (3, {"prompt": "b"})]


@pytest.mark.parametrize(("line", "why"), [(b'{"a": 1', "not JSON"), (b"[1]", "found list"), (b'"\xff"', "not UTF-8")])
def test_a_bad_line_of_jsonl_is_named(tmp_path, line, why):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"{}\n" + line + b"\n")
    with pytest.raises(ConfigError, match=rf"rows\.jsonl:2: .*{why}"):
        list(prompts.numbered_rows(path))


def test_rows_of_a_file_are_held_out_of_procedural_ones_too(tmp_path):
    task = {"verifier": "gridworld", "start": "a1", "goal": "b1"}
    path = tmp_path / "held.jsonl"
    path.write_text(json.dumps({"prompt": "a1>b1:", "task": task}) + "\n")
    config = tmp_path / "c.yaml"
    config.write_text(
        "run: t\nstages: [base]\nrewards: {gridworld: {}}\nmodel: {tiny: {}}\n"
        f"prompts: {{procedural: gridworld, rows: 400, heldout: 0.0, heldout_path: {path}}}\n"
    )
    ctx = Context(load(config), "base", StageDir(tmp_path, "base"))
    assert [row["prompt"] for row in ctx.split.heldout] == ["a1>b1:"]
    assert "a1>b1:" not in {row["prompt"] for row in ctx.split.train}


def test_what_the_run_holds_out_is_held_out_of_a_stages_own_rows_too(tmp_path):
    rows = [{"prompt": f"{a}>b1:", "completion": "R", "task": {}} for a in ("a1", "a2", "a3")]
    (tmp_path / "held.jsonl").write_text(json.dumps(rows[0]) + "\n")
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = tmp_path / "c.yaml"
    config.write_text(
        "run: t\nstages: [base, sft]\nrewards: {gridworld: {}}\nmodel: {tiny: {}}\n"
        f"prompts: {{procedural: gridworld, rows: 40, heldout: 0.0, heldout_path: {tmp_path / 'held.jsonl'}}}\n"
        f"sft: {{data: {{path: {tmp_path / 'own.jsonl'}, heldout: 0.0}}}}\n"
    )
    cfg = load(config)
    ctx = Context(cfg, "sft", StageDir(tmp_path, "sft"))
    assert [row["prompt"] for row in ctx.rows_of(cfg.blocks["sft"].data, "sft.data").train] == ["a2>b1:", "a3>b1:"]
