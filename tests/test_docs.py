"""What the documents tell people to write is what the config takes."""

import re
from pathlib import Path

import pytest
import yaml

from pipeline.config.load import load

ROOT = Path(__file__).parent.parent
METHODS = [
    (name.strip(), re.findall(r"`([a-z_]+: .+?)`", settings))
    for name, settings in re.findall(
        r"^\| ([\w. +-]+) \| (.+) \|$",
        (ROOT / "docs/policy.md").read_text().split("## Methods")[1].split("`kl.target`")[0],
        re.M,
    )
    if "`" in settings
]


def test_the_table_of_methods_was_read():
    assert len(METHODS) == 10 and all(settings for _, settings in METHODS)


@pytest.mark.parametrize(("name", "settings"), METHODS, ids=[name for name, _ in METHODS])
def test_a_method_of_the_table_is_taken_by_the_config(tmp_path, name, settings):
    raw = yaml.safe_load((ROOT / "configs/demo/pipeline.yaml").read_text())
    block = {"kind": "grpo", "policy": "sft"}
    for text in settings:
        if "{...}" not in text:
            block |= yaml.safe_load(text)
    kept = ("run", "seed", "model", "prompts", "rewards", "evaluation", "sft")
    raw = {key: raw[key] for key in kept} | {"sampling": {"max_tokens": 1024}, "method": block}
    config = tmp_path / "method.yaml"
    config.write_text(yaml.safe_dump(raw | {"stages": ["base", "sft", "method"]}))
    assert load(str(config), []).blocks["method"].kind == block["kind"]
