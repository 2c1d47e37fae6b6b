"""500 mutated configs: each either gives its plan or is told off in lines that name file and key. Never a traceback."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import plan
from pipeline.config.load import ConfigError, read_yaml
from pipeline.plan import one_run

ROOT = Path(__file__).parents[2]
SMALL = {"rows": 40, "heldout": 0.25}
WORDS = ["", "many", "sft", "base", "1e-6", "-1", "nan", ".inf", "~", "a.b", "π", "x" * 300, "${HOME}", "!!python/none"]
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 300),
    st.floats(allow_nan=True),
    st.sampled_from(WORDS),
    st.text(max_size=8),
    st.lists(st.sampled_from(["sft", "base", 1, None]), max_size=3),
    st.dictionaries(st.sampled_from(["kind", "a", "weight", "verifier", "model"]), st.sampled_from([*WORDS, 1, None])),
)


def base_config() -> dict[str, Any]:
    raw = read_yaml(ROOT / "configs/demo/pipeline.yaml")
    raw["prompts"] |= SMALL
    return raw


def paths(value: Any, prefix: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in the YAML, blocks and leaves."""
    out = [prefix] if prefix else []
    if isinstance(value, dict):
        for key, inner in value.items():
            out += paths(inner, (*prefix, key))
    if isinstance(value, list):
        for number, inner in enumerate(value):
            out += paths(inner, (*prefix, number))
    return out


BASE = base_config()
PATHS = paths(BASE)


def mutated(raw: dict[str, Any], path: tuple[Any, ...], act: str, value: Any) -> None:
    place: Any = raw
    for part in path[:-1]:
        if not isinstance(place, (dict, list)) or (isinstance(place, dict) and part not in place):
            return  # an earlier mutation took it away
        if isinstance(place, list) and not (isinstance(part, int) and part < len(place)):
            return
        place = place[part]
    last = path[-1]
    if isinstance(place, list):
        if isinstance(last, int) and last < len(place):
            place[last] = value
        return
    if not isinstance(place, dict) or last not in place:
        return
    if act == "replace":
        place[last] = value
    elif act == "remove":
        del place[last]
    elif act == "misspell":
        place[str(last)[:-1] + "x"] = place.pop(last)
    elif act == "unknown":
        place[value if isinstance(value, (str, int, float, bool)) else "surprise"] = 1
    else:  # wrap
        place[last] = {str(last): place[last]}


MUTATIONS = st.lists(
    st.tuples(
        st.sampled_from(PATHS), st.sampled_from(["replace", "replace", "remove", "misspell", "unknown", "wrap"]), VALUES
    ),
    min_size=1,
    max_size=3,
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory of its own: what `runs_dir` and `run` are mutated into must not be in the tree."""
    where = tmp_path_factory.mktemp("fuzz")
    before = Path.cwd()
    os.chdir(where)
    yield where
    os.chdir(before)


@settings(max_examples=500, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(mutations=MUTATIONS)
def test_a_mutated_config_gives_its_plan_or_is_reported_by_key(place, mutations):
    raw = copy.deepcopy(BASE)
    for path, act, value in mutations:
        mutated(raw, path, act, value)
    config = place / "mutated.yaml"
    config.write_text(yaml.safe_dump(raw, allow_unicode=True))
    try:
        made = one_run.make(plan.sound(str(config), []), None)
    except ConfigError as exc:
        assert exc.mistakes, "refused without a word"
        for line in exc.mistakes:
            assert line.startswith(f"{config}"), line
            assert "\n" not in line and len(line) > len(f"{config}: "), line
            assert "Traceback" not in line
    else:
        assert [w.name for w in made.works] == raw["stages"]


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(text=st.text(alphabet="abc:[]{}-&*!#'\"\n\t ,0", max_size=40))
def test_any_text_as_a_config_is_reported_by_file(place, text):
    config = place / "text.yaml"
    config.write_text(text)
    with pytest.raises(ConfigError) as caught:
        plan.sound(str(config), [])
    assert all(line.startswith(f"{config}") and "\n" not in line for line in caught.value.mistakes)
