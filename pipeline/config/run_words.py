"""Words of `run` and `plan` that are no keys of a YAML.

seeds=1,2,3   one YAML as several runs that differ in their seed alone
workers=2     up to so many stages at once, of one run or of all seeds; each starts when what it needs is complete
"""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config.mistakes import ConfigError


def take_seeds(words: Sequence[str]) -> tuple[list[int], list[str]]:
    """The seeds of a `seeds=` word, [] without one, and the other words.

    Raises ConfigError for a list that is no list of different whole numbers, and for a `seed=` beside it.
    """
    given = [word.partition("=")[2] for word in words if word.partition("=")[0] == "seeds"]
    rest = [word for word in words if word.partition("=")[0] != "seeds"]
    if not given:
        return [], rest
    parts = [part.strip() for part in given[-1].strip("[]").split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise ConfigError([f"seeds={given[-1]} on the command line: expected whole numbers, as seeds=1,2,3"])
    seeds = [int(part) for part in parts]
    if len(set(seeds)) < len(seeds):
        raise ConfigError([f"seeds={given[-1]} on the command line: names a seed twice"])
    if any(word.partition("=")[0] == "seed" for word in rest):
        raise ConfigError(["seed= and seeds= on the command line: give one of the two"])
    return seeds, rest


def take_workers(words: Sequence[str]) -> tuple[int, list[str]]:
    """The number of a `workers=` word, 1 without one, and the other words. Raises ConfigError for what is no count."""
    given = [word.partition("=")[2] for word in words if word.partition("=")[0] == "workers"]
    rest = [word for word in words if word.partition("=")[0] != "workers"]
    if not given:
        return 1, rest
    if not (given[-1].isascii() and given[-1].isdigit() and int(given[-1]) > 0):
        raise ConfigError(
            [f"workers={given[-1]} on the command line: expected how many stages run at once, as workers=2"]
        )
    return int(given[-1]), rest


def words_of_seed(words: Sequence[str], run: str, seed: int) -> list[str]:
    """Overrides of one of the runs: runs/RUN/seed-N."""
    return [*words, f"seed={seed}", f"run={run}/seed-{seed}"]
