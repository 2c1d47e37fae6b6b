"""Labels that are sentences, and the combinations of attributes that are left out of training."""

import itertools

import pytest

from pipeline.credit.conditioning import Axis, Conditions
from pipeline.research.descriptions import chosen_unseen, sentence, shares

LENGTH = Axis("length", (7.5,), "{bin}, ", "length", words=("short", "long"))
COLUMN = Axis("column", (0.5, 1.5), "ends at {bin}: ", "column", words=("a", "b", "c"))
CONDITIONS = Conditions((LENGTH, COLUMN))


def test_a_label_of_words_reads_as_a_sentence_and_survives_being_saved():
    assert CONDITIONS.text({"length": 0, "column": 2}) == "short, ends at c: "
    assert sentence(CONDITIONS, (1, 0)) == "long, ends at a:"
    assert Conditions.from_json(CONDITIONS.as_json()).text({"length": 1, "column": 1}) == "long, ends at b: "


def test_a_bin_beyond_the_words_shows_its_number():
    assert LENGTH.text(LENGTH.beyond) == "2, "


def test_words_must_name_every_bin_and_no_two_alike():
    with pytest.raises(ValueError, match="2 bins; give each a word"):
        Axis("length", (7.5,), "{bin}", words=("short",))
    with pytest.raises(ValueError, match="same word"):
        Axis("length", (7.5,), "{bin}", words=("short", "short"))


@pytest.mark.parametrize("seed", range(8))
def test_unseen_combinations_leave_every_bin_of_every_axis_trained(seed):
    cells = list(itertools.product(range(2), range(3), range(2)))
    unseen = chosen_unseen(cells, share=0.5, seed=seed)
    assert len(unseen) == 6
    for axis, count in enumerate((2, 3, 2)):
        assert {cell[axis] for cell in cells if cell not in unseen} == set(range(count))


def test_too_many_unseen_combinations_are_refused():
    with pytest.raises(ValueError, match="2 of 2 combinations cannot be left out"):
        chosen_unseen([(0, 0), (1, 1)], share=0.9, seed=1)


def test_shares_are_means_over_the_trained_and_over_the_unseen_combinations():
    lines = [
        {"trained": t, "length": x, "all": x / 2, "control_length": 0.5, "control_all": 0.1}
        for t, x in ((True, 1.0), (True, 0.8), (False, 0.4))
    ]
    found = shares(lines, ["length"])
    assert found["seen_length"] == pytest.approx(0.9) and found["unseen_length"] == pytest.approx(0.4)
    assert found["seen_all"] == pytest.approx(0.45) and found["control_unseen_all"] == pytest.approx(0.1)
