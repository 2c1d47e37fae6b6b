"""A stage's directory under interruptions: what is finished is kept, what is half written is made again, once."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.errors import LineageError
from pipeline.run import files, stage_logs
from pipeline.run.manifest import verified_manifest
from pipeline.run.stage_dir import StageDir

IDENTITY: dict[str, Any] = {"config": {"stage": {"lr": 1}}, "code": {"a.py": "1"}}


def stage(tmp_path: Path, name: str = "sft") -> StageDir:
    made = StageDir(tmp_path / "run", name)
    made.open(IDENTITY)
    return made


def rows(place: Path, name: str = "metrics.jsonl") -> list[dict]:
    return [json.loads(line) for line in (place / name).read_text().splitlines()]


def finish(directory: StageDir, **more) -> dict:
    return directory.complete(seed=1, parents={}, inputs={}, metrics={}, **IDENTITY, **more)


def write_model(place: Path) -> None:
    (place / "model.bin").write_bytes(b"weights")


# --- pieces and their logs --------------------------------------------------------------------------------------------


def test_a_finished_piece_is_read_and_not_made_again(tmp_path):
    made = []

    def make(place: Path) -> None:
        made.append(place)
        write_model(place)

    for _ in range(2):
        directory = stage(tmp_path)
        place = directory.checkpoints.once("round-0", make)
        assert (place / "model.bin").read_bytes() == b"weights"
    assert len(made) == 1


def test_a_piece_that_fails_half_way_leaves_nothing_to_be_read(tmp_path):
    def half(place: Path) -> None:
        (place / "model.bin").write_bytes(b"wei")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        stage(tmp_path).checkpoints.once("round-0", half)
    place = stage(tmp_path).checkpoints.once("round-0", write_model)
    assert (place / "model.bin").read_bytes() == b"weights"


def test_an_altered_piece_is_made_again(tmp_path, capsys):
    place = stage(tmp_path).checkpoints.once("round-0", write_model)
    (place / "model.bin").write_bytes(b"wEights")
    again = stage(tmp_path).checkpoints.once("round-0", write_model)
    assert (again / "model.bin").read_bytes() == b"weights"
    assert "damaged" in capsys.readouterr().out


def test_what_is_sealed_again_is_whole(tmp_path):
    directory = stage(tmp_path)
    place = directory.checkpoints.path / "training"
    place.mkdir(parents=True)
    for step in (1, 2):
        write_model(place)
        directory.checkpoints.seal(place, step=step)
    assert (directory.checkpoints.index_of(place) or {})["step"] == 2


def test_one_name_for_two_pieces_is_our_own_mistake(tmp_path):
    directory = stage(tmp_path)
    directory.checkpoints.once("heldout", write_model)
    with pytest.raises(AssertionError, match="heldout"):
        directory.checkpoints.once("heldout", write_model)


def course(directory: StageDir, stop_after: int) -> None:
    """A stage of three rounds, each: a piece that logs a row itself, then a row; killed after `stop_after` writes."""
    done = 0

    def write(act) -> None:
        nonlocal done
        if done >= stop_after:
            raise KeyboardInterrupt
        act()
        done += 1

    for number in range(3):

        def make(place: Path, number: int = number) -> None:
            write(lambda: directory.logs.log({"in": number}))
            directory.logs.tokens["completion"] += 10
            write_model(place)

        directory.checkpoints.once(f"round-{number}", make)
        write(
            lambda number=number: directory.logs.log({"after": number, "tokens": directory.logs.tokens["completion"]})
        )
        write(lambda number=number: directory.logs.append("rollouts.jsonl", [{"round": number}]))
    finish(directory)


@pytest.mark.parametrize("first", range(9))
@pytest.mark.parametrize("second", [0, 2, 5])
def test_killed_twice_anywhere_the_logs_end_in_the_same_bytes(tmp_path, first, second):
    course(stage(tmp_path / "straight"), 99)
    for stop_after in (first, second):
        with pytest.raises(KeyboardInterrupt):
            course(stage(tmp_path / "killed"), stop_after)
    course(stage(tmp_path / "killed"), 99)
    one, two = (json.loads((tmp_path / n / "run/sft/manifest.json").read_text()) for n in ("straight", "killed"))
    assert one["outputs"] == two["outputs"]
    assert one["tokens"] == two["tokens"] == {"prompt": 0, "completion": 30}


def test_a_piece_half_made_finds_its_checkpoints_and_the_log_that_led_to_them(tmp_path):
    """What a trainer saves on its way counts only with the rows that it logged by then."""

    def train(directory: StageDir, place: Path, stop_at: int) -> None:
        work = directory.checkpoints.path / "training"
        begin = 0
        if (index := directory.checkpoints.index_of(work)) is not None:
            begin = index["step"]
            directory.logs.go_to(index["mark"])
        begun.append(begin)
        for step in range(begin, 4):
            if step == stop_at:
                raise KeyboardInterrupt
            directory.logs.log({"step": step})
            if step == 1:
                work.mkdir()
                directory.checkpoints.seal(work, step=2)
        write_model(place)

    begun: list[int] = []
    first, again = stage(tmp_path), stage(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        first.checkpoints.once("trained", lambda place: train(first, place, 3))
    again.checkpoints.once("trained", lambda place: train(again, place, 99))
    assert begun == [0, 2]
    assert rows(again.path) == [{"step": step} for step in range(4)]


def test_half_a_line_of_a_killed_writer_is_replaced(tmp_path):
    directory = stage(tmp_path)
    directory.logs.log({"step": 1})
    with (directory.path / "metrics.jsonl").open("a") as out:
        out.write('{"step": 2, "lo')
    again = stage(tmp_path)
    for step in (1, 2):
        again.logs.log({"step": step})
    assert rows(again.path) == [{"step": 1}, {"step": 2}]


def test_rows_of_an_earlier_try_that_come_out_otherwise_are_cut_off(tmp_path):
    directory = stage(tmp_path)
    for step in (1, 2, 3):
        directory.logs.log({"step": step, "loss": 0.5})
    again = stage(tmp_path)
    again.logs.log({"step": 1, "loss": 0.25})
    assert rows(again.path) == [{"step": 1, "loss": 0.25}]


def test_the_log_is_readable_while_it_is_being_written(tmp_path):
    directory = stage(tmp_path)
    for step in range(5):
        directory.logs.log({"step": step})
        assert [r["step"] for r in files.read_jsonl(directory.path / "metrics.jsonl")] == list(range(step + 1))


# --- checkpoints -----------------------------------------------------------------------------------------------------


def write_state(step: int, place: Path) -> None:
    (place / "state.pt").write_bytes(str(step).encode())


def save(directory: StageDir, step: int) -> None:
    directory.logs.log({"step": step})
    directory.checkpoints.save(step, partial(write_state, step))


def test_two_checkpoints_are_kept_and_with_them_only_the_pieces_after_the_older(tmp_path):
    directory = stage(tmp_path)
    for step in range(1, 7):
        directory.checkpoints.once(f"step-{step - 1}-0", write_model)
        save(directory, step)
    kept = sorted(p.name for p in directory.checkpoints.path.iterdir())
    assert kept == ["done-step-5-0", "step-5", "step-6"]


def test_the_best_steps_that_a_resumed_run_may_choose_are_kept_and_no_others(tmp_path):
    stage = StageDir(tmp_path, "grpo")
    stage.open()

    def write(path):
        (path / "x").write_text("x")

    def best():
        return sorted(int(path.name[5:]) for path in stage.checkpoints.path.glob("best-*"))

    for step in range(1, 8):
        if step in (1, 3, 4, 6):
            stage.checkpoints.save_best(step, write)
        if step in (2, 5, 7):
            stage.checkpoints.save(step, write)
    # checkpoints 5 and 7 are left: the best step is 4 at the one and 6 at the other
    assert best() == [4, 6]
    stage.checkpoints.drop_best_after(5)  # a run that goes on from 5 does step 6 again
    assert best() == [4]


def test_resume_takes_the_newest_checkpoint_and_the_log_goes_back_to_it(tmp_path):
    directory = stage(tmp_path)
    save(directory, 1)
    save(directory, 2)
    directory.logs.log({"step": 3})
    found = stage(tmp_path).checkpoints.resume()
    assert found is not None and found.step == 2
    assert [r["step"] for r in rows(directory.path)] == [1, 2]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no index", "index cut"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_taken(tmp_path, damage, capsys):
    directory = stage(tmp_path)
    save(directory, 10)
    save(directory, 20)
    newest = directory.checkpoints.path / "step-20"
    if damage == "truncated":
        (newest / "state.pt").write_bytes(b"2")
    elif damage == "flipped":
        (newest / "state.pt").write_bytes(b"2O")
    elif damage == "no index":
        (newest / "index.json").unlink()
    else:
        index = (newest / "index.json").read_text()
        (newest / "index.json").write_text(index[: len(index) // 2])
    found = stage(tmp_path).checkpoints.resume()
    assert found is not None and found.step == 10
    assert "damaged" in capsys.readouterr().out
    assert [r["step"] for r in rows(directory.path)] == [10]


def test_a_log_shorter_than_the_checkpoint_says_makes_the_checkpoint_unusable(tmp_path):
    directory = stage(tmp_path)
    save(directory, 1)
    save(directory, 2)
    path = directory.path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-3])  # a machine that died before the log reached its disk
    found = stage(tmp_path).checkpoints.resume()
    assert found is not None and found.step == 1


def test_a_checkpoint_that_does_not_fit_the_disk_leaves_the_one_before(tmp_path):
    directory = stage(tmp_path)
    save(directory, 1)

    def full(place: Path) -> None:
        (place / "state.pt").write_bytes(b"2")
        raise RuntimeError("SafetensorError: IoError(Os { code: 28, message: No space left on device (os error 28) })")

    with pytest.raises(OSError) as caught:
        directory.checkpoints.save(2, full)
    assert "disk is full" in (files.disk_fault(caught.value) or "")
    found = stage(tmp_path).checkpoints.resume()
    assert found is not None and found.step == 1


# --- the manifest ----------------------------------------------------------------------------------------------------


def test_a_stage_begun_again_is_not_complete_until_it_is(tmp_path):
    directory = stage(tmp_path)
    finish(directory)
    assert directory.manifest() is not None
    assert stage(tmp_path).manifest() is None


def test_checkpoints_go_only_after_the_manifest_stands(tmp_path, monkeypatch):
    directory = stage(tmp_path)
    save(directory, 1)

    def die(self) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(StageDir, "tidy", die)
    with pytest.raises(KeyboardInterrupt):
        finish(directory)
    assert directory.manifest() is not None and (directory.checkpoints.path / "step-1").is_dir()


@pytest.mark.parametrize("fault", ["changed", "missing"])
def test_an_output_that_is_not_what_the_manifest_says_is_refused_by_name(tmp_path, fault):
    directory = stage(tmp_path)
    directory.model_dir.mkdir()
    write_model(directory.model_dir)
    finish(directory)
    verified_manifest(directory.path)
    path = directory.model_dir / "model.bin"
    path.write_bytes(b"weighty") if fault == "changed" else path.unlink()
    with pytest.raises(LineageError, match=r"model/model\.bin.*" + fault):
        verified_manifest(directory.path)


def test_what_is_set_aside_is_kept_until_the_next(tmp_path):
    directory = stage(tmp_path)
    directory.logs.log({"step": 1})
    aside = directory.set_aside()
    assert rows(aside) == [{"step": 1}] and not directory.path.exists()


def test_another_generator_than_the_one_begun_with_is_refused(tmp_path):
    stage(tmp_path).begun.drawn_by("vllm")
    again = stage(tmp_path)
    again.begun.drawn_by("vllm")
    with pytest.raises(LineageError, match="begun with the generator vllm"):
        again.begun.drawn_by("transformers")


def test_seconds_of_killed_tries_count_though_the_clock_jumps(tmp_path, monkeypatch):
    directory = stage(tmp_path)
    monkeypatch.setattr(stage_logs.time, "time", lambda: 0.0)  # a clock set back to 1970
    directory.logs.seconds_before = 100.0
    directory.logs.log_timing({"step": 1})
    assert 100.0 <= stage(tmp_path).logs.seconds_before < 160.0


def test_half_a_line_of_times_is_dropped_when_the_stage_goes_on(tmp_path):
    directory = stage(tmp_path)
    directory.logs.log_timing({"step": 1})
    with (directory.path / "timing.jsonl").open("a") as out:
        out.write('{"step": 2, "elapsed_s": 2.')
    stage(tmp_path).logs.log_timing({"step": 2})
    stage(tmp_path)
    assert [row["step"] for row in rows(directory.path, "timing.jsonl")] == [1, 2]


# --- previous results ------------------------------------------------------------------------------------------------


def test_an_unfinished_stage_never_replaces_a_finished_one_that_was_set_aside(tmp_path):
    directory = stage(tmp_path)
    directory.logs.log({"step": 1})
    finish(directory)
    finished = directory.set_aside()
    for attempt in (2, 3):  # two tries that fail before they end
        again = stage(tmp_path)
        again.logs.log({"step": attempt})
        unfinished = again.set_aside()
        assert rows(finished) == [{"step": 1}] and (finished / "manifest.json").is_file()
        assert unfinished != finished and rows(unfinished) == [{"step": attempt}]
    last = stage(tmp_path)
    last.logs.log({"step": 4})
    finish(last)
    assert last.set_aside() == finished and rows(finished) == [{"step": 4}]


def test_a_replayed_row_is_not_reported_to_trackers_again(tmp_path):
    reported: list[dict] = []
    directory = stage(tmp_path)
    directory.begun.tracker_run()
    directory.logs.listeners.append(lambda row: reported.append(dict(row)))
    save(directory, 1)
    for step in (2, 3):
        directory.logs.log({"step": step})
    again = stage(tmp_path)  # killed after step 3: goes back to the checkpoint of step 1
    again.logs.listeners.append(lambda row: reported.append(dict(row)))
    assert again.checkpoints.resume() is not None
    for step in (2, 3, 4):
        again.logs.log({"step": step})
    assert [row["step"] for row in reported] == [1, 2, 3, 4]


def test_rows_that_come_out_otherwise_are_reported(tmp_path):
    reported: list[dict] = []
    directory = stage(tmp_path)
    directory.begun.tracker_run()
    directory.logs.log({"step": 1, "loss": 0.5})
    again = stage(tmp_path)
    again.logs.listeners.append(lambda row: reported.append(dict(row)))
    again.logs.log({"step": 1, "loss": 0.25})
    assert reported == [{"step": 1, "loss": 0.25}]


def test_the_name_of_a_curve_lasts_for_a_resume_and_ends_with_the_stage(tmp_path):
    directory = stage(tmp_path)
    name = directory.begun.tracker_run()
    assert stage(tmp_path).begun.tracker_run() == name
    finish(directory)
    assert stage(tmp_path).begun.tracker_run() != name
