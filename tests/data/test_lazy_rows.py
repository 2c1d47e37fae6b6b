"""Rows that stay in their file: the same rows, splits and prompts as of a list in memory, without the memory."""

import json
import os
import tracemalloc
import zlib

import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader

from pipeline.config.load import ConfigError
from pipeline.config.schema import Model, Prompts, PromptSource, Tiny
from pipeline.data import lazy_rows, prompts
from pipeline.data.encoding import Demonstrations
from pipeline.data.lazy_rows import Mapped
from pipeline.data.prompt_keys import TextSet
from pipeline.models import models
from pipeline.stages.imitation import ImitationRow, as_dataset, pad

# an answer that is not the last one is written otherwise, so that each turn becomes a row of its own
REWRITING = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}{{ '<eos>' if loop.last else '.' }}{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"  # noqa: E501


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    place = tmp_path_factory.mktemp("tiny")
    models.make_tiny(Tiny(), place, seed=1)
    return models.load_tokenizer(str(place), Model())


def rows_of(count):
    """Prompts of different lengths, every fifth one a copy of an earlier one with another gold."""
    return [{"prompt": f"{'ab' * (i % 7)}q{i - i % 5 // 4 * 3}", "completion": f"a{i}", "gold": str(i)}
            for i in range(count)]  # fmt: skip


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_empty_lines_a_byte_order_mark_and_a_last_line_without_end_leave_the_rows_as_they_are(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n  \t\r\n{"a": "\xe2\x80\xa8"}\n\n\n{"a": 3}')
    rows = prompts.load_rows(Prompts(path=str(path)), seed=1)
    assert list(rows) == [{"a": 1}, {"a": "\u2028"}, {"a": 3}] == rows
    assert rows[-1] == {"a": 3} and list(rows[1:]) == [{"a": "\u2028"}, {"a": 3}] and len(rows[:2]) == 2
    assert [row.origin for row in rows] == [f"row {n} of {path}" for n in (1, 2, 3)]
    with pytest.raises(IndexError):
        rows[3]


def test_a_bad_line_is_named_when_it_is_read_counting_empty_lines(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"prompt": "a"}\n\n' * 30 + "{oops\n" + '{"prompt": "b"}\n')
    rows = prompts.load_rows(Prompts(path=str(path)), seed=1)
    with pytest.raises(ConfigError, match=r"x\.jsonl:61: not JSON"):
        prompts.split(rows, Prompts())


def test_splits_are_those_of_a_list_and_of_the_hash_written_out(tmp_path):
    rows = rows_of(500)
    for share, validation in ((0.25, 0.1), (0.33333, 0.0), (1.0, 0.0), (0.0, 0.0)):
        source = Prompts(path=write(tmp_path / "x.jsonl", rows), heldout=share, validation=validation)
        named = [{"prompt": rows[3]["prompt"]}]
        lazy = prompts.split(prompts.load_rows(source, seed=1), source, heldout=named)
        listed = prompts.split(rows, source, heldout=named)
        assert (lazy.train, lazy.heldout, lazy.validation) == (listed.train, listed.heldout, listed.validation)

        def part(text, source=source):
            point = zlib.crc32(text.encode()) % 10_000
            if point < source.heldout * 10_000 or text == rows[3]["prompt"]:
                return "heldout"
            return "validation" if point < (source.heldout + source.validation) * 10_000 else "train"

        assert list(lazy.train) == [row for row in rows if part(row["prompt"]) == "train"]
        assert list(lazy.validation) == [row for row in rows if part(row["prompt"]) == "validation"]
        assert list(lazy.heldout) == named


def test_prompts_that_are_built_again_are_those_that_were_kept(tmp_path, tokenizer, monkeypatch):
    rows = rows_of(300)
    source = Prompts(path=write(tmp_path / "x.jsonl", rows), heldout=0.2, max_prompt_tokens=13)
    kept = prompts.LazyPrompts(prompts.split(rows, source).train, source, tokenizer)
    monkeypatch.setattr(lazy_rows, "KEPT_BYTES", 2000)
    built = prompts.LazyPrompts(prompts.split(prompts.load_rows(source, seed=1), source).train, source, tokenizer)
    assert list(built) == list(kept) and 1 < len(built.kept) < 50 < len(kept.kept) == len(kept)
    assert built[3] is built[3] and built[-1] is not built[-1] == kept[-1], "the first ones are kept"

    first: dict[str, object] = {}
    for row in rows:
        if zlib.crc32(row["prompt"].encode()) % 10_000 >= 2000:
            first.setdefault(row["prompt"], row)
    wanted = [row for text, row in first.items() if len(tokenizer(text).input_ids) <= 13]
    assert [p.row for p in built] == wanted == list(built.rows) and len(wanted) < len(first) < len(rows)
    assert [p.index for p in built] == list(range(len(wanted)))
    assert all(built.find(p.text) == p for p in kept) and built.find("of no prompt") is None
    assert built.lengths.tolist() == [len(p.ids) for p in kept] and prompts.longest(built, []) == built.lengths.max()
    assert isinstance(kept.in_memory(), list) and built.in_memory() is built


def test_rows_of_several_sources_follow_one_another(tmp_path, tokenizer):
    rows = rows_of(40)
    files = {name: write(tmp_path / f"{name}.jsonl", part) for name, part in (("a", rows[:25]), ("b", rows[25:]))}
    source = Prompts(sources={name: PromptSource(path=path) for name, path in files.items()})
    joined = prompts.load_rows(source, seed=1)
    assert [row["task"]["gold"] for row in joined] == [row["gold"] for row in rows]
    assert [row["source"] for row in joined] == ["a"] * 25 + ["b"] * 15 and joined[-1]["source"] == "b"


def test_a_data_set_may_have_more_shards_than_files_are_kept_open(tmp_path, monkeypatch):
    shards = tmp_path / "shards"
    shards.mkdir()
    for number in range(100):
        write(shards / f"{number:03}.jsonl", [{"prompt": f"{number} {i}"} for i in range(3)])
    before = len(os.listdir("/proc/self/fd"))
    rows = prompts.load_rows(Prompts(path=str(shards)), seed=1)
    assert [row["prompt"] for row in rows] == [f"{number} {i}" for number in range(100) for i in range(3)]
    assert rows[299]["prompt"] == "99 2" and rows[0]["prompt"] == "0 0"
    assert len(os.listdir("/proc/self/fd")) - before <= lazy_rows.OPEN_FILES


def test_a_file_is_indexed_once_and_again_when_it_has_changed(tmp_path):
    path = tmp_path / "x.jsonl"
    source = Prompts(path=write(path, rows_of(10)))
    first = prompts.load_rows(source, seed=1)
    assert prompts.load_rows(source, seed=1) is first
    with path.open("a") as file:
        file.write('{"prompt": "more"}\n')
    assert len(prompts.load_rows(source, seed=1)) == 11
    with pytest.raises(ConfigError, match="has changed since this run began to read it"):
        first[0]


def test_a_set_of_texts_contains_what_was_put_in_it_alone():
    texts = TextSet.of([f"held out {i}" for i in range(1000)])
    assert len(texts) == 1000 and all(f"held out {i}" in texts for i in range(1000))
    assert not any(f"trained on {i}" in texts for i in range(1000)) and 3 not in texts and "" not in TextSet.of([])


def test_demonstrations_that_are_encoded_again_are_those_that_were_kept(tmp_path, tokenizer, monkeypatch):
    rows = rows_of(120)
    rows[5]["imitate"] = False
    source = Prompts(path=write(tmp_path / "x.jsonl", rows))
    ends = frozenset({tokenizer.eos_token_id})
    kept = Demonstrations(rows, source, tokenizer, stop_token_ids=ends)
    monkeypatch.setattr(lazy_rows, "KEPT_BYTES", 5000)
    encoded = Demonstrations(prompts.load_rows(source, seed=1), source, tokenizer, stop_token_ids=ends)
    assert list(encoded) == list(kept) and 1 < len(encoded.kept) < 30 < len(kept.kept) == 119 == len(encoded)
    texts = [tokenizer.decode(one.prompt_ids) + tokenizer.decode(one.completion_ids) for one in encoded]
    assert texts == [row["prompt"] + row["completion"] + "<eos>" for row in rows if "imitate" not in row]
    assert encoded.lengths.tolist() == [len(one.prompt_ids) + len(one.completion_ids) for one in kept]
    assert encoded.report == kept.report and "1 rows labelled as bad" in str(encoded.report)


def test_a_row_with_several_demonstrations_gives_each_of_them_again(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", REWRITING)
    talk = [{"role": role, "content": text} for role, text in
            (("user", "q1"), ("assistant", "a1"), ("user", "q2"), ("assistant", "a2"))]  # fmt: skip
    rows = [{"messages": talk}, {"messages": talk[:2]}]
    built = {}
    for size in (1 << 20, 0):
        monkeypatch.setattr(lazy_rows, "KEPT_BYTES", size)
        built[size] = Demonstrations(rows, Prompts(), tokenizer, stop_token_ids=frozenset({tokenizer.eos_token_id}))
    assert list(built[0]) == list(built[1 << 20]) and not built[0].kept
    assert [tokenizer.decode(one.completion_ids) for one in built[0]] == ["a1<eos>", "a2<eos>", "a1<eos>"]


def test_the_trainers_data_set_gives_the_columns_of_one_in_memory_in_every_order():
    examples = [
        ImitationRow((i, 2), (3,) * (1 + i % 3), unlabelled_ids=(9,), trained=None if i % 2 else (False,) * (1 + i % 3))
        for i in range(20)
    ]
    chosen = [i for i in range(20) if i % 4]
    lazy = as_dataset(examples, reference=True, chosen=chosen)
    in_memory = Dataset.from_dict({
        "input_ids": [[i, 2] + [3] * (1 + i % 3) for i in chosen],
        "labels": [[-100, -100] + [3 if i % 2 else -100] * (1 + i % 3) for i in chosen],
        "reference_ids": [[9] + [3] * (1 + i % 3) for i in chosen],
        "reference_labels": [[-100] + [3 if i % 2 else -100] * (1 + i % 3) for i in chosen],
    })  # fmt: skip
    assert list(lazy) == list(in_memory) and lazy[3] == in_memory[3] and len(lazy) == len(in_memory) == 15
    batches = []
    for data in (lazy, in_memory):
        order = torch.Generator().manual_seed(3)
        loader = DataLoader(data, 4, shuffle=True, collate_fn=pad, generator=order)
        batches.append([{name: column.tolist() for name, column in batch.items()} for batch in loader])
    assert batches[0] == batches[1] and len(batches[0]) == 4


def test_reading_splitting_and_rendering_a_file_takes_a_small_part_of_its_size_in_memory(
    tmp_path, tokenizer, monkeypatch
):
    path, count = tmp_path / "x.jsonl", 2000
    with path.open("w") as file:
        for i in range(count):
            file.write(json.dumps({"prompt": f"question {i}", "completion": f"{i} " * 2100, "gold": i}) + "\n")
    size = path.stat().st_size
    monkeypatch.setattr(lazy_rows, "KEPT_BYTES", 1 << 20)
    source = Prompts(path=str(path), heldout=0.1)
    tracemalloc.start()
    rows = prompts.load_rows(source, seed=1)
    parts = prompts.split(rows, source)
    train = prompts.LazyPrompts(parts.train, source, tokenizer)
    assert sum(1 for _ in train) == len(train) > 1500 and prompts.barred_texts(parts, source)
    shown = Demonstrations(parts.train[:200], source, tokenizer, stop_token_ids=frozenset({tokenizer.eos_token_id}))
    data = as_dataset(Mapped(shown, lambda d: ImitationRow(d.prompt_ids, d.completion_ids)), reference=False)
    assert len(data) == 200 == sum(len(row["labels"]) > 4000 for row in data) and len(shown.kept) < 20
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size > 18e6 and peak < size / 10, f"{peak / 1e6:.1f} MB of {size / 1e6:.1f}"
