"""seeds=1,2,3 on the command line."""

import pytest

from pipeline.config.load import ConfigError
from pipeline.config.seed_list import take_seeds, words_of_seed


@pytest.mark.parametrize(
    ("words", "seeds", "rest"),
    [
        (["grpo.steps=2"], [], ["grpo.steps=2"]),
        (["seeds=1,2,3", "run=a"], [1, 2, 3], ["run=a"]),
        (["seeds=[4, 5]"], [4, 5], []),
        (["seeds=7"], [7], []),
    ],
)
def test_seeds_are_taken_from_the_words(words, seeds, rest):
    assert take_seeds(words) == (seeds, rest)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["seeds=1,two"], "expected whole numbers, as seeds=1,2,3"),
        (["seeds="], "expected whole numbers"),
        (["seeds=1..3"], "expected whole numbers"),
        (["seeds=1,1"], "names a seed twice"),
        (["seeds=1,2", "seed=3"], "give one of the two"),
    ],
)
def test_a_list_that_is_none_is_refused_in_one_line(words, reason):
    with pytest.raises(ConfigError, match=reason):
        take_seeds(words)


def test_each_seed_has_a_run_of_its_own_below_the_run():
    assert words_of_seed(["a=b"], "demo", 3) == ["a=b", "seed=3", "run=demo/seed-3"]
