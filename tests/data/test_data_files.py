"""Files, folders and data sets of the Hub give the same rows, and what cannot be read is one line."""

import gzip
import json
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from pipeline.config.load import ConfigError
from pipeline.config.schema import Prompts
from pipeline.data import data_files, prompts

TRAIN, TEST = [{"prompt": f"a{i}", "gold": str(i)} for i in range(5)], [{"prompt": "t0", "gold": "0"}]


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        text = json.dumps(rows) if path.name.startswith("list") else "".join(json.dumps(r) + "\n" for r in rows)
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def load(path, **settings):
    return prompts.load_rows(Prompts(path=str(path), **settings), seed=1)


LAYOUTS = {
    "files named for their splits": ("train.jsonl", "test.jsonl"),
    "the Hub's layout": ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
    "folders named for their splits": ("training/0.jsonl", "eval/0.jsonl"),
    "names around the split": ("my_train_rows.jsonl.gz", "list_of_test.json.gz"),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_a_folder_is_read_by_split(layout, tmp_path):
    write(tmp_path / layout[0], TRAIN)
    write(tmp_path / layout[1], TEST)
    assert load(tmp_path) == TRAIN and load(tmp_path, split="test") == TEST
    assert load(tmp_path, split="train[1:3]") == TRAIN[1:3]
    source = Prompts(path=str(tmp_path), heldout=0.0, heldout_split="test")
    named = prompts.named_heldout(source, seed=1)
    assert named == TEST and prompts.split(load(tmp_path), source, heldout=named).heldout == TEST
    with pytest.raises(ConfigError, match=r"prompts\.split: no file of split 'validation' in .*; have: test, train"):
        load(tmp_path, split="validation")


def test_a_configuration_is_a_folder(tmp_path):
    write(tmp_path / "main" / "train.jsonl", TRAIN)
    write(tmp_path / "other" / "train.jsonl", TEST)
    assert load(tmp_path, name="main") == TRAIN
    with pytest.raises(ConfigError, match=r"prompts\.name: .* has no folder 'mian'; have: main, other"):
        load(tmp_path, name="mian")


@pytest.mark.parametrize(
    ("files", "settings", "line"),
    [
        (["rows.jsonl"], {"split": "test"}, r"prompts\.split: .*rows\.jsonl is one file and has no split 'test'"),
        (["rows.jsonl"], {"heldout_split": "test"}, r"prompts\.heldout_split: .* has no splits; .*heldout_path"),
        (["train.jsonl", "more.jsonl"], {}, r"files of named splits and more\.jsonl, which names none"),
        (["rows.csv"], {}, r"prompts\.path: no \.jsonl, \.json or \.parquet file"),
        (["train.jsonl"], {"split": "train[:10%]"}, r"a part is read as train\[:100\]"),
    ],
)
def test_a_split_that_is_not_there_is_refused_with_the_fix(files, settings, line, tmp_path):
    for name in files:
        write(tmp_path / name, TRAIN)
    path = tmp_path / files[0] if files == ["rows.jsonl"] else tmp_path
    with pytest.raises(ConfigError, match=line):
        prompts.named_heldout(Prompts(path=str(path), **settings), seed=1)
        load(path, **{key: value for key, value in settings.items() if key != "heldout_split"})


def test_a_file_that_is_cut_short_is_one_line(tmp_path):
    path = write(tmp_path / "rows.jsonl.gz", TRAIN)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(ConfigError, match=r"rows\.jsonl\.gz: not readable after line"):
        load(path)
    path.write_bytes(b"\x1f\x8bnot gzip at all")
    with pytest.raises(ConfigError, match=r"rows\.jsonl\.gz: not readable"):
        load(path)


def test_json_lines_in_a_json_file_are_read_as_lines(tmp_path):
    (tmp_path / "rows.json").write_text("".join(json.dumps(row) + "\n" for row in TRAIN))
    assert load(tmp_path / "rows.json") == TRAIN
    (tmp_path / "list.json").write_text(json.dumps([1, 2]))
    with pytest.raises(ConfigError, match=r"list\.json: row 1: expected an object, found int"):
        load(tmp_path / "list.json")


def test_parquet_gives_each_tool_call_its_own_arguments_alone(tmp_path):
    """Arrow has one struct for all rows: every call comes back with every argument, null where it has none."""
    rows = [
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}],
         "tools": [{"name": "f", "parameters": {"properties": {name: {"type": "string"} for name in arguments}}}],
         "gold": None}
        for arguments in ({"a": "1"}, {"b": "2"}, {})
    ]  # fmt: skip
    path = write(tmp_path / "rows.parquet", rows)
    raw = pyarrow.parquet.read_table(path).to_pylist()
    assert raw[0]["messages"][0]["tool_calls"][0]["function"]["arguments"] == {"a": "1", "b": None}
    assert load(path, format="plain") == rows


def test_dates_and_decimals_of_parquet_are_text_as_in_json(tmp_path):
    import datetime
    import decimal

    path = write(tmp_path / "rows.parquet", [{"gold": datetime.date(2024, 1, 2), "n": decimal.Decimal("0.50")}])
    assert load(path, format="plain") == [{"gold": "2024-01-02", "n": "0.50"}]


def test_the_hub_gives_the_values_that_the_file_holds(tmp_path):
    golds = ["2024-01-02T03:04:05", "0.50", "1e3", "007"]
    rows: list[dict[str, Any]] = [{"prompt": f"p{i}", "gold": gold} for i, gold in enumerate(golds)]
    mixed = [*rows, {"prompt": "p", "gold": 3}]
    path = write(tmp_path / "train.jsonl", mixed)
    from_hub = data_files._read_hub(str(tmp_path), "train", None, "prompts")
    assert from_hub == mixed == load(path)
    library: Any = datasets.load_dataset(str(tmp_path), split="train")
    guessed = [row["gold"] for row in library]
    assert guessed != [row["gold"] for row in mixed]  # what the library's own reader makes of them


@pytest.mark.parametrize("value", [None, float("nan"), 7, [1, 2], [], {"text": "x"}, ""])
@pytest.mark.parametrize("column", ["prompt", "completion", "messages", "chosen"])
def test_a_value_that_is_no_text_names_file_row_column_and_fix(column, value, tmp_path):
    row = {"prompt": "p", "completion": "c", "chosen": "a", "rejected": "b"}
    if column == "messages":
        row = {}
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "q", "completion": "c"}) + "\n" + json.dumps({**row, column: value}) + "\n")
    source = Prompts(path=str(path), format="plain")
    read = prompts.load_rows(source, seed=1)[1]
    with pytest.raises(ValueError, match=f"column '{column}' ") as error:
        if column in ("prompt", "messages"):
            prompts.prompt_text(read, source)
        elif column == "completion":
            prompts.completion_value(read, source, number=2, where="prompts")
        else:
            from pipeline.data import columns

            columns.text_or_messages(read[column], column)
    said = str(error.value)
    assert "\n" not in said and any(word in said for word in ("fill it in", "must be", "write it", "name the field"))
    assert column == "chosen" or f"row 2 of {path}" in said


def test_messages_as_json_text_are_read_as_messages(tmp_path):
    said = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]
    path = write(tmp_path / "rows.jsonl", [{"messages": json.dumps(said)}, {"prompt": json.dumps(said[:1])}])
    source = Prompts(path=str(path))
    rows = load(path)
    assert [prompts.prompt_text(row, source) for row in rows] == ["user: hi", "user: hi"]
    assert prompts.completion_value(rows[0], source, number=1, where="prompts") == said[1:]


def test_one_turn_is_a_prompt_or_a_mistake():
    source = Prompts(path="x")
    asked = {"messages": [{"role": "user", "content": "hi"}]}
    assert prompts.prompt_text(asked, source) == "user: hi" and not prompts.has_completion(asked, source)
    with pytest.raises(ConfigError, match="column 'messages' holds one assistant turn and no prompt before it"):
        prompts.prompt_text({"messages": [{"role": "assistant", "content": "hi"}]}, source)


def test_dotted_columns_look_into_structs_and_a_wrong_one_gets_the_nearest():
    row = {"reward_model": {"ground_truth": "7"}, "extra": {"asked": ["a", "b"]}, "a.b": "own"}
    source = Prompts(prompt="extra.asked.1", task={"gold": "reward_model.ground_truth", "x": "a.b"})
    assert prompts.prompt_text(row, source) == "b" and prompts.task_of(row, source) == {"gold": "7", "x": "own"}
    template = Prompts(template="{extra.asked.0}: {reward_model.ground_truth} {reward_model.no}")
    assert prompts.prompt_text(row, template) == "a: 7 {reward_model.no}"
    with pytest.raises(ConfigError, match=r"no column 'reward_model\.ground_trut'; did you mean 'ground_truth'"):
        prompts.task_of(row, Prompts(task={"gold": "reward_model.ground_trut"}), number=1)
