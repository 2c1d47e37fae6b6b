"""docs/tasks.md: every YAML that it shows is complete, short, and plans without a mistake on the rows beside it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from pipeline.__main__ import main
from pipeline.config.schema import Tiny
from pipeline.models import models

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/tasks.md").read_text()
YAMLS = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
ROWS = dict(re.findall(r"^`(\w+\.jsonl)`[^`]*?(?:`[^`\n]*`[^`]*?)*```json\n(.*?)```", PAGE, re.M | re.S))
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if m.role == 'assistant' %}<eos>{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("model") / "tiny"
    models.make_tiny(Tiny(max_position_embeddings=2048), place, seed=1)
    (place / "chat_template.jinja").write_text(TEMPLATE)
    return place


def test_the_page_has_a_yaml_for_each_task_and_rows_for_all_but_the_one_that_makes_its_own():
    assert [yaml.safe_load(text)["run"] for text in YAMLS] == [
        "first", "answers", "demonstrations", "preferences", "preferences-ppo", "ratings", "countdown",
    ]  # fmt: skip
    assert set(ROWS) == {"answers.jsonl", "demonstrations.jsonl", "pairs.jsonl", "ratings.jsonl"}


@pytest.mark.parametrize("text", YAMLS, ids=lambda text: yaml.safe_load(text)["run"])
def test_a_yaml_of_the_page_plans_without_a_mistake(text, model, tmp_path, monkeypatch, capsys):
    assert len(text.splitlines()) < 10, "short, since defaults serve"
    monkeypatch.chdir(tmp_path)
    for name, row in ROWS.items():  # the row of the page, for a hundred prompts
        one = json.loads(row)
        rows = [{**one, "prompt": f"{one['prompt']} ({number})"} for number in range(100)]
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("my.yaml").write_text(text)
    raw = yaml.safe_load(text)
    override = [] if "tiny" in raw["model"] else [f"model.path={model}", "model.dtype=float32"]
    assert main(["plan", "my.yaml", "trial=false", *override]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    for stage in raw["stages"]:
        assert re.search(rf"^  {stage} ", out, re.M), f"{stage} is not in the plan"
    assert "warning" not in out


def test_readme_shows_the_first_run_of_the_page():
    shown = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert YAMLS[0] in shown and "tiny" in yaml.safe_load(YAMLS[0])["model"]


def test_the_readings_that_the_report_marks_are_in_the_table():
    table = PAGE.split("## Alarms")[1].split("## Two GPUs")[0]
    for name in ("malformed", "truncated", "groups_with_signal"):
        assert f'"{name}"' in (ROOT / "pipeline/report/summary.py").read_text()
        assert f"| `{name}`, `! check`" in table


def test_every_alarm_of_the_code_is_in_the_table_with_what_to_do():
    source = (ROOT / "pipeline/run/alarms.py").read_text()
    assert len(re.findall(r"^def check_", source, re.M)) == 9, "another alarm: name it on the page"
    table = PAGE.split("## Alarms")[1].split("## Two GPUs")[0]
    for words in ("after the weight sync", "log-probs of the sampled tokens differ", "KL of policy to reference",
                  "could not be scored", "rewrites the history of",
                  "every group had constant reward", "no token left to train on"):  # fmt: skip
        assert words in " ".join(source.replace('"\n            f"', "").replace('"\n            "', "").split())
        assert words in table
    for limit in ("gap", "fall", "length", "format", "commonest", "duplicates"):
        assert limit in table


def test_the_exit_codes_of_the_command_are_explained():
    table = PAGE.split("## Exit codes")[1].split("## Alarms")[0]
    assert re.findall(r"^\| (\d+) \|", table, re.M) == ["0", "2", "3", "130", "143"]


def test_the_commands_for_two_gpus_name_what_exists():
    part = PAGE.split("## Two GPUs")[1]
    assert (ROOT / re.findall(r"--config_file (\S+)", part)[0]).is_file()
    assert ".venv/bin/torchrun --nproc_per_node 2 -m pipeline run" in part
