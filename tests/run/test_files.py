"""Files that are complete or absent, and JSON lines."""

from pathlib import Path

import pytest

from pipeline.run import files


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "manifest.json"
    files.atomic_write(path, "old")

    def die(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", die)
    with pytest.raises(OSError):
        files.atomic_write(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["manifest.json"]


def test_json_says_null_for_what_json_cannot_say(tmp_path):
    assert files.dump_json({"b": float("nan"), "a": float("inf"), "c": Path("x")}) == '{"a": null, "b": null, "c": "x"}'


def test_a_log_being_written_is_read_without_its_unfinished_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2')
    assert list(files.read_jsonl(path)) == [{"step": 1}]


def test_json_lines_are_the_same_whichever_way_a_list_is_written():
    """Long lists of plain numbers take a short way; what JSON lacks, and what is not plain, does not."""
    given = {"ids": [1, 2], "logprobs": [-0.5, -2], "gap": [0.0, float("nan"), float("inf")], "at": (Path("a"), None)}
    assert files.dump_json(given) == (
        '{"at": ["a", null], "gap": [0.0, null, null], "ids": [1, 2], "logprobs": [-0.5, -2]}'
    )
    assert files.dump_json([True, "x", {2: 1.5}]) == '[true, "x", {"2": 1.5}]'
