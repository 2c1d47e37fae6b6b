"""Documentation: the configuration accepts what it says, its links lead somewhere, its commands exist."""

import re
from pathlib import Path

import pytest
import yaml

from pipeline.config.load import load
from pipeline.config.presets import PRESETS
from pipeline.config.schema import KINDS

ROOT = Path(__file__).parent.parent
POLICY_PAGE = (ROOT / "docs/policy.md").read_text()


def test_the_table_of_methods_names_every_preset_and_nothing_else():
    table = POLICY_PAGE.split("## Methods")[1].split("PPO-ptx is")[0]
    cells = re.findall(r"^\| (`[^|]+) \|", table, re.M)
    assert {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)} == PRESETS.keys()


def fenced(page):
    return re.findall(r"```yaml\n(.*?)```", (ROOT / page).read_text(), re.S)


SHARED = {"prompts", "rewards", "model", "sampling", "evaluation", "generate"}
EXAMPLES = [
    (page, i) for page in ("docs/policy.md", "docs/distill.md", "docs/compare.md") for i in range(len(fenced(page)))
]


@pytest.mark.parametrize(("page", "number"), EXAMPLES)
def test_the_blocks_that_a_page_shows_are_taken_by_the_config(tmp_path, page, number):
    shown = yaml.safe_load(fenced(page)[number])
    raw = yaml.safe_load((ROOT / "configs/demo/pipeline.yaml").read_text())
    kept = ("run", "seed", "model", "prompts", "rewards", "sampling", "evaluation", "base", "sft", "grpo")
    raw = {key: raw[key] for key in kept if key in raw} | {"stages": ["base", "sft"]} | shown
    config = tmp_path / "example.yaml"
    config.write_text(yaml.safe_dump(raw))
    blocks = load(str(config), []).blocks
    assert all(name in blocks for name in shown if isinstance(shown[name], dict) and name not in SHARED)


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


def test_readme_shows_the_verifier_that_the_scaffold_writes(tmp_path):
    from verifiers._scaffold import write

    written = write("my_task", tmp_path).read_text()
    shown = re.search(r"```python\n(class Task.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert shown is not None
    code, examples = shown[1].split("EXAMPLES = ")
    pieces = [line for line in code.splitlines() if line.strip() not in ("", "...")]
    pieces += re.findall(r"Example\(.*?\)", examples)
    assert [piece for piece in pieces if piece not in written] == [] and len(pieces) == 10
