"""seeds=1,2,3 and workers=2 on the command line."""

import pytest

from pipeline.config.load import ConfigError
from pipeline.config.run_words import take_seeds, take_workers, words_of_seed


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


@pytest.mark.parametrize(
    ("words", "workers", "rest"),
    [
        (["a=b"], 1, ["a=b"]),
        (["workers=2", "a=b"], 2, ["a=b"]),
        (["workers=1"], 1, []),
        (["a.workers=3"], 1, ["a.workers=3"]),
    ],
)
def test_workers_are_taken_from_the_words(words, workers, rest):
    assert take_workers(words) == (workers, rest)


@pytest.mark.parametrize("word", ["workers=0", "workers=", "workers=two", "workers=-1", "workers=1.5"])
def test_a_count_of_workers_that_is_none_is_refused_in_one_line(word):
    with pytest.raises(ConfigError, match="expected how many stages run at once, as workers=2"):
        take_workers([word])
