"""Word problems: what is judged on shares nothing with what is trained on, and every demonstration is right."""

import json
import re
from pathlib import Path

from verifiers import math_answer, word_problems

TRAIN = list(word_problems.generate(3000, 1))
HELDOUT = list(word_problems.heldout(640, 1))


def shape(row) -> str:
    """The template of a prompt: numbers, names and things replaced."""
    text = re.sub(r"\d+", "#", row["prompt"])
    return re.sub("|".join([*word_problems.NAMES, *word_problems.THINGS]), "@", text)


def test_heldout_rows_share_neither_template_nor_pair_of_numbers_with_training_rows():
    assert not {shape(r) for r in TRAIN} & {shape(r) for r in HELDOUT}
    sums = {}
    for rows, name in ((TRAIN, "train"), (HELDOUT, "heldout")):
        first_two = [re.match(r"(\d+) [-+*] (\d+)", r["completion"]) for r in rows]
        sums[name] = {tuple(sorted(map(int, m.groups()))) for m in first_two if m}
    assert len(sums["train"]) > 300 and len(sums["heldout"]) > 100 and not sums["train"] & sums["heldout"]


def test_every_demonstration_computes_its_own_gold():
    """Python's arithmetic on the demonstration's own equations is the oracle."""
    for row in TRAIN + HELDOUT:
        equations = re.findall(r"(\d+) ([-+*/]) (\d+) = (\d+)\.", row["completion"])
        assert equations, row
        for a, sign, b, result in equations:
            value = {"+": int(a) + int(b), "-": int(a) - int(b), "*": int(a) * int(b), "/": int(a) / int(b)}[sign]
            assert value == int(result) > 0, row
        assert equations[-1][-1] == row["task"]["gold"]
        assert math_answer.verify(row["completion"], {"gold": row["task"]["gold"]}).status == "pass"


def test_five_kinds_come_equally_often_and_the_seed_decides_all():
    kinds = [row["kind"] for row in TRAIN]
    assert {kinds.count(k) for k in word_problems.KINDS} == {600} and len(word_problems.KINDS) == 5
    assert list(word_problems.generate(50, 1)) == TRAIN[:50] != list(word_problems.generate(50, 2))


def test_the_committed_heldout_file_is_what_the_command_writes():
    path = Path(__file__).parents[2] / "configs/real/heldout.jsonl"
    assert [json.loads(line) for line in path.read_text().splitlines()] == HELDOUT
