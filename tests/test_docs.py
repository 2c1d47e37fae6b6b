"""Documentation: the configuration accepts what it says, its links lead somewhere, its commands exist."""

import re
from pathlib import Path

import pytest
import yaml

from pipeline.config.load import load
from pipeline.config.schema import KINDS

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


PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "benchmarks/NOTES.md", *(ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_and_every_file_a_page_names_exists(page):
    text = page.read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if not link.startswith(("http:", "https:"))]
    missing = [link for link in links if not (page.parent / link).exists()]
    named = re.findall(
        r"`((?:pipeline|tests|benchmarks|configs|verifiers|rewards|examples|requirements)/[\w./-]+\.\w+)`", text
    )
    missing += [path for path in named if not (ROOT / path).exists()]
    assert missing == []


def test_the_index_of_the_documentation_names_every_page():
    index = (ROOT / "docs/README.md").read_text()
    assert [
        page.name for page in (ROOT / "docs").glob("*.md") if page.name != "README.md" and page.name not in index
    ] == []


def test_every_make_target_that_readme_names_exists():
    targets = re.findall(r"^([a-z_-]+(?: [a-z_-]+)*):", (ROOT / "Makefile").read_text(), re.M)
    known = {name for line in targets for name in line.split()} | set(KINDS)
    assert set(re.findall(r"\bmake ([a-z_-]+)", (ROOT / "README.md").read_text())) - known == set()
