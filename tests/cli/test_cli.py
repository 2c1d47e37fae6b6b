"""Mistakes on the command line: one line each with file, key or row and the fix, exit 2, before models load."""

import importlib.util
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import yaml

from pipeline import __main__ as cli
from pipeline.config.load import load
from pipeline.distributed.notices import forget
from pipeline.plan import preflight

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "configs/demo/pipeline.yaml"
ROWS = [{"prompt": f"a{i}>b{i}:", "completion": "R", "start": f"a{i}", "goal": f"b{i}"} for i in range(1, 6)]


@pytest.fixture
def write(tmp_path, monkeypatch):
    """A YAML of the demo with changes, in a directory of its own; returns its path."""
    monkeypatch.chdir(tmp_path)

    def make(**changes) -> str:
        raw = yaml.safe_load(DEMO.read_text())
        raw["prompts"]["rows"] = 60
        for key, value in changes.items():
            place, *rest = key.split("__")
            inner = raw
            for part in rest:
                inner, place = inner.setdefault(place, {}), part
            inner[place] = value
        Path("config.yaml").write_text(yaml.safe_dump(raw))
        return "config.yaml"

    return make


def told(capsys, *words: str) -> list[str]:
    """The lines of a command that must end with 2, and without torch having been asked to do anything."""
    assert cli.main(list(words)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    return captured.err.splitlines()


def write_rows(rows, name="rows.jsonl") -> dict:
    Path(name).write_text("".join(json.dumps(r) + "\n" for r in rows))
    return {"path": name, "procedural": None, "rows": None}


def test_a_config_that_is_not_there_is_named(write, capsys):
    write()
    (line,) = told(capsys, "run", "confg.yaml")
    assert line == "confg.yaml: no such config file; did you mean 'config.yaml'?"


def test_a_command_that_does_not_exist_gets_the_nearest(write, capsys):
    (line,) = told(capsys, "grpoo", write())
    assert "no command 'grpoo'; did you mean 'grpo'?" in line


@pytest.mark.parametrize(
    "word,line",
    [
        ("grpo.stepz=3", "grpo: unknown key 'stepz'; did you mean 'steps'?"),
        ("sft.trainer.lerning_rate=1", "sft.trainer: unknown key 'lerning_rate'; did you mean 'learning_rate'?"),
        (
            "grpo.steps=2.5",
            "grpo.steps: input should be a valid integer, got a number with a fractional part, found 2.5",
        ),
        ("sft.trainer.max_steps=many", "sft.trainer.max_steps: expected a whole number, found 'many'"),
        (
            "feedme.pool=[sf]",
            "feedme.pool: 'sf' is neither a stage of this YAML nor a file of scored samples; did you mean 'sft'?",
        ),
        ("grpo.policy=sf", "grpo.policy: 'sf' is neither a stage of this YAML nor a model; did you mean 'sft'?"),
        ("grpo.minibatches=3", "grpo: 32 prompts x 8 samples = 256 is not divisible by minibatches 3"),
        (
            "conditioned.attributes={x: {edges: [1.0, -1.0]}}",
            "conditioned.attributes.x.edges: must rise, found [1.0, -1.0]",
        ),
        (
            "conditioned.attributes={x: {of: lenght}}",
            "conditioned.attributes.x.of: nothing called 'lenght' is measured; did you mean 'length'?",
        ),
        ("conditioned.label=high", "conditioned.label: 'high' must hold {bin}, where the bin's number goes"),
        (
            "conditioned.attributes={x: {of: gridworld, label: '<x>'}}",
            "conditioned.attributes.x.label: '<x>' must hold {bin}, where the bin's number goes",
        ),
        ("model.tiny.hidden_size=63", "model.tiny: hidden_size 63 is not divisible by 2 heads"),
    ],
)
def test_one_wrong_word_gives_one_line_with_the_key_and_the_fix(write, capsys, word, line):
    assert told(capsys, "run", write(), word) == [f"config.yaml: {line}"]


def test_a_word_that_sets_nothing_is_reported(write, capsys):
    line = "'steps' on the command line: expected key=value, as in ppo.steps=10"
    assert told(capsys, "run", write(), "steps") == [line]


def test_a_missing_data_file_is_named_by_its_key(write, capsys):
    (line,) = told(capsys, "run", write(prompts__path="rows.jsonl", prompts__procedural=None))
    assert line == f"config.yaml: prompts.path: rows.jsonl does not exist in {Path.cwd()}"
    Path("row.jsonl").touch()
    (line,) = told(capsys, "run", "config.yaml")
    assert line == "config.yaml: prompts.path: rows.jsonl does not exist; did you mean 'row.jsonl'?"


def test_rows_beside_a_yaml_of_another_directory_are_pointed_out(write, capsys, monkeypatch, tmp_path):
    write(prompts__path="rows.jsonl", prompts__procedural=None, prompts__heldout_path="held.jsonl")
    write_rows(ROWS)
    write_rows(ROWS, "held.jsonl")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert told(capsys, "run", "../config.yaml") == [
        f"../config.yaml: prompts.{key}: {name} does not exist in {tmp_path / 'elsewhere'}; it is beside the YAML: "
        f"paths are relative to the directory of the command, so write ../{name}"
        for key, name in (("path", "rows.jsonl"), ("heldout_path", "held.jsonl"))
    ]


@pytest.mark.parametrize("command", ["report", "watch", "export", "chat", "serve", "lineage", "generate", "push"])
def test_a_yaml_in_place_of_a_run_directory_is_named_as_such(write, capsys, command):
    (line,) = told(capsys, command, write(run="mine"))
    assert line == f"{command}: config.yaml is a YAML; give the run's directory, as runs/mine"


def test_a_file_in_place_of_the_second_run_of_a_diff_is_named(write, capsys, tmp_path):
    config = write(run="mine", runs_dir="out")
    (line,) = told(capsys, "diff", str(tmp_path), config)
    assert line == "diff: config.yaml is a YAML; give the run's directory, as out/mine"
    Path("log.txt").touch()
    assert told(capsys, "report", "log.txt") == ["report: log.txt is a file; give the run's directory, as runs/NAME"]


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([{"prompt": "a", "completion": "b", "stars": 5}], "rated.jsonl:1: no score; give a column rating, score or "
         "reward; have: completion, prompt, stars"),
        ([{"prompt": "a", "completion": "b", "rating": 5}, {"prompt": "a", "completion": "b", "rating": "5"}],
         "rated.jsonl:2: rating must be a number or null, found '5'"),
        ([{"prompt": "a", "rating": 5}], "prompts.completion: row 1 of rated.jsonl has no column 'completion'; have: "
         "prompt, rating"),
        ([{"prompt": "a", "completion": "b", "rating": None}], "no row of rated.jsonl has a score, so there is nothing "
         "to train on; give ratings in a column rating or score or reward"),
        ([{"ids": [1], "prompt_ids": [1]}], "rated.jsonl:1: not a scored rollout (KeyError: 'prompt_index')"),
    ],
)  # fmt: skip
def test_the_rows_of_a_pool_are_read_before_anything_trains(write, capsys, rows, line):
    write_rows(rows, "rated.jsonl")
    assert told(capsys, "run", write(feedme__pool=["rated.jsonl"]))[-1] == f"config.yaml: feedme.pool: {line}"


def test_how_many_rows_of_a_pool_have_a_score_is_reported(write, capsys):
    forget()
    ratings = [5, None, 3, math.nan]
    write_rows([{"prompt": f"p{n}", "completion": "b", "score": r} for n, r in enumerate(ratings)], "rated.jsonl")
    preflight.check(load(write(feedme__pool=["rated.jsonl"])))
    line = "feedme.pool: 2 of 4 rows of rated.jsonl have a score, in the column score; those of held-out prompts are"
    assert capsys.readouterr().err.startswith(line)


def test_an_unknown_reward_mentions_where_verifiers_of_ones_own_are_found(write, capsys):
    (line,) = told(capsys, "run", write(rewards={"sum_ok": {}}))
    assert line.startswith("config.yaml: rewards.sum_ok: not a known reward")
    assert "a verifier of your own is found through the top-level key verifier_dirs: [its folder]" in line


def test_a_model_directory_that_does_not_exist_gets_the_nearest_and_the_fix(write, capsys):
    Path("model").mkdir()
    (line,) = told(capsys, "run", write(model={"path": "./modl"}))
    fix = "name a directory of save_pretrained, or a Hub id (owner/name)"
    assert line == f"config.yaml: model.path: ./modl does not exist; did you mean 'model'?; {fix}"


def test_an_empty_data_set_is_refused(write, capsys):
    Path("rows.jsonl").write_text("")
    (line,) = told(capsys, "run", write(prompts__path="rows.jsonl", prompts__procedural=None))
    assert line == "config.yaml: prompts: rows.jsonl has no rows"


def test_a_line_that_is_no_json_is_named_by_its_number(write, capsys):
    Path("rows.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    (line,) = told(capsys, "run", write(prompts__path="rows.jsonl", prompts__procedural=None))
    assert "rows.jsonl:2: not JSON" in line


def test_a_file_that_is_no_text_is_reported_and_not_thrown(write, capsys):
    Path("rows.jsonl").write_bytes(b"\xff\xfe\x00{")
    (line,) = told(capsys, "run", write(prompts__path="rows.jsonl", prompts__procedural=None))
    assert line.startswith("config.yaml: rows.jsonl:1: not UTF-8")


def test_a_row_without_the_verifiers_field_is_named(write, capsys):
    rows = [{"prompt": f"{i}+1=", "completion": "2", "gold": "2"} for i in range(8)]
    del rows[4]["gold"]
    changes: dict = {"prompts__procedural": None, "prompts__rows": None, "rewards": {"math_answer": {}}}
    (line,) = told(capsys, "run", write(prompts__path="rows.jsonl", **changes)) if write_rows(rows) else []
    assert "row 5 of rows.jsonl has no field 'gold', which verifier 'math_answer' needs" in line


def test_held_out_rows_of_a_file_of_their_own_are_read_and_checked_too(write, capsys):
    write_rows([{"prompt": f"{i}+1=", "completion": "2", "gold": "2"} for i in range(8)])
    changes: dict = {"prompts__procedural": None, "prompts__rows": None, "prompts__path": "rows.jsonl",
                     "prompts__heldout_path": "held.jsonl", "rewards": {"math_answer": {}}}  # fmt: skip
    (line,) = told(capsys, "run", write(**changes))
    assert "held.jsonl does not exist" in line
    Path("held.jsonl").write_text('{"prompt": "1+1=", "glod": "2"}\n')
    (line,) = told(capsys, "run", write(**changes))
    assert "prompts.heldout_path: row 1 of held.jsonl has no field 'gold'" in line and "'glod'" in line


def test_a_row_without_the_prompt_column_gets_the_nearest(write, capsys):
    write_rows([{"promt": "a", "completion": "R"}] * 3)
    lines = told(capsys, "run", write(prompts__path="rows.jsonl", prompts__procedural=None))
    assert lines[0] == (
        "config.yaml: prompts.prompt: row 1 of rows.jsonl has no column 'prompt'; did you mean 'promt'?"
    )


@pytest.mark.parametrize("missing,words", [("tokenizer.json", "has no tokenizer"), ("config.json", "no config.json")])
def test_a_model_directory_that_lacks_a_part_is_reported_before_anything_loads(write, capsys, missing, words):
    place = Path("model")
    place.mkdir()
    for name in {"config.json", "tokenizer.json", "model.safetensors"} - {missing}:
        (place / name).write_text("{}")
    (line,) = told(capsys, "run", write(model={"path": "./model"}))
    assert line.startswith("config.yaml: model.path: ./model has") and words in line


def test_a_hub_that_is_away_is_reported_at_once(write, capsys, monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody answers
    (line,) = told(capsys, "run", write(model={"path": "nobody/no-such-model"}))
    assert "'nobody/no-such-model' is not in the local cache and the Hub does not answer" in line
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    monkeypatch.delenv("HF_HUB_OFFLINE")


def test_a_stage_alone_whose_parent_is_missing_says_what_to_run(write, capsys):
    (line,) = told(capsys, "grpo", write())
    assert "grpo.policy: stage 'sft' is not complete" in line and "python -m pipeline sft config.yaml" in line


def test_a_chain_in_the_wrong_order_says_what_to_put_before(write, capsys):
    (line,) = told(capsys, "run", write(stages=["base", "grpo", "sft"]))
    assert "put sft before it in stages" in line


def test_rows_that_an_update_imitates_are_read_and_need_completions(write, capsys):
    config = write(grpo__loss={"ptx_coef": 0.2}, grpo__ptx_data={"path": "typo.jsonl"})
    (line,) = told(capsys, "run", config)
    assert line.startswith("config.yaml: grpo.ptx_data.path: typo.jsonl does not exist")
    write_rows([{"prompt": f"a{i}"} for i in range(20)], "typo.jsonl")
    assert "grpo.ptx_data.completion: row 1 of typo.jsonl has no column 'completion'" in told(capsys, "run", config)[0]


@pytest.mark.parametrize(
    "change",
    [{"grpo__loss": {"ptx_coef": 0.2}}, {"conditioned__demonstrations": 5}, {"feedme__sft_share": 0.5}],
)
def test_a_stage_that_imitates_the_runs_own_prompts_needs_their_completions(write, capsys, change):
    rows = [{"prompt": f"a{'1' * (i + 1)}:", "start": f"a{i % 5 + 1}", "goal": f"b{i % 5 + 1}"} for i in range(40)]
    (stage,) = [key.partition("__")[0] for key in change]
    source = {"path": "rows.jsonl", "heldout": 0.25}
    write_rows(rows)
    none = {"grpo__loss": {}, "conditioned__demonstrations": 0, "feedme__sft_share": 0.0}
    reference = dict.fromkeys([f"{stage}__policy"], "base")
    config = write(stages=["base", stage], prompts=source, **{**none, **reference, **change})
    assert "prompts.completion: row 1 of rows.jsonl has no column 'completion'" in told(capsys, "run", config)[0]
    preflight.check(load(write(stages=["base", stage], prompts=source, **{**none, **reference})))


def test_reward_models_among_the_runs_own_rewards_are_looked_for(write, capsys, monkeypatch):
    own: dict[str, dict] = {"gridworld": {"weight": 1.0}, "rm": {"kind": "learned", "model": "typo/model"}}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (line,) = told(capsys, "run", write(rewards=own))
    assert line.startswith("config.yaml: rewards.rm: 'typo/model' is not in the local cache")
    own["rm"]["model"] = "./gone"
    (line,) = told(capsys, "run", write(rewards=own))
    assert line.startswith("config.yaml: rewards.rm: ./gone does not exist")
    own["rm"]["model"] = "reward_model"
    lines = told(capsys, "run", write(rewards=own, stages=["base", "sft", "reward_model", "grpo"]))
    assert [line.partition(" is scored by it")[0].rpartition(" ")[2] for line in lines] == [
        "base",
        "sft",
        "reward_model",
    ]
    assert all("rewards.rm: stage 'reward_model' is not complete" in line for line in lines)


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("grpo.policy=sfd", "grpo.policy: 'sfd' is neither a stage of this YAML nor a model; did you mean 'sft'?"),
        ("feedme.filters=[{thresold: 1}]", "feedme.filters: "),
        ("grpo_random.reward={randm: {}}", "grpo_random.reward.randm: not a known reward; did you mean 'random'?"),
        ("conditioned.pool=[no.jsonl]", "conditioned.pool: 'no.jsonl' is neither a stage"),
        ("sft_gold.data={path: no.jsonl}", "sft_gold.data.path: no.jsonl does not exist"),
        ("compare.controls={sft: sft_more}", "compare.controls: 'sft' is not among the methods"),
    ],
)
def test_a_mistake_in_a_method_is_reported_before_a_comparison_trains(tmp_path, capsys, monkeypatch, word, line):
    monkeypatch.setattr(cli, "train", lambda *given: pytest.fail("it would train"))
    words = [str(DEMO.with_name("compare.yaml")), "prompts.rows=200", f"runs_dir={tmp_path}", word]
    for command in (["compare", *words], ["run", *words, "stages=[compare]"]):
        (said,) = told(capsys, *command)
        assert said.removeprefix(f"{words[0]}: ").startswith(line)
    assert not list(tmp_path.iterdir())


def test_all_mistakes_are_listed_and_not_the_first(write, capsys):
    words = ["grpo.stepz=3", "sft.trainer.max_steps=many", "prompts.rows=-1", "grpo.minibatches=3", "ppo.policy=sftt",
             "feedme.filters=[{thresold: 1}]", "rewards.gridworl={}"]  # fmt: skip
    lines = told(capsys, "plan", write(), *words)
    for name in ("stepz", "max_steps", "prompts.rows", "not divisible", "sftt", "thresold", "gridworl"):
        assert sum(name in line for line in lines) == 1, (name, lines)
    assert len(lines) == len(words)


def test_a_run_in_use_is_refused_by_a_second(write, capsys, monkeypatch):
    from pipeline.run.lock import locked

    config = write()
    with locked(Path("runs/demo")):
        (line,) = told(capsys, "run", config)
    assert "runs/demo is in use by process" in line and "run=..." in line


def test_a_run_directory_that_may_not_be_written_is_reported(write, capsys):
    Path("occupied").write_text("a file")
    (line,) = told(capsys, "run", write(runs_dir="occupied"))
    assert line == "config.yaml: runs_dir: occupied is a file; choose another with runs_dir=..."


def test_a_directory_without_the_right_to_write_is_reported_in_one_line(write, capsys):
    """As root every write is allowed, so the check runs as another user in a child."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o555)
    cfg = load(write(), [f"runs_dir={place}"])
    child = os.fork()
    if child == 0:
        told = False
        try:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            told = preflight.place_mistakes(cfg) == [
                f"runs_dir: {place}/demo may not be written; fix its permissions, or choose another with runs_dir=..."
            ]
        finally:
            os._exit(0 if told else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    place.rmdir()


def test_ctrl_c_ends_with_130_and_says_how_to_go_on(write, capsys, monkeypatch):
    def interrupt(cfg, command, workers):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "train", interrupt)
    assert cli.main(["run", write()]) == 130
    assert "run the same command to resume" in capsys.readouterr().err


def test_a_full_disk_ends_with_2_and_one_line(write, capsys, monkeypatch):
    def fill(cfg, command, workers):
        raise OSError(28, "No space left on device", "runs/demo/sft/metrics.jsonl")

    monkeypatch.setattr(cli, "train", fill)
    assert cli.main(["run", write()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("runs/demo/sft/metrics.jsonl: the disk is full") and "run the same command to resume" in line


def test_our_own_faults_keep_their_traceback(write, monkeypatch):
    def fault(cfg, command, workers):
        raise ValueError("a library's own")

    monkeypatch.setattr(cli, "train", fault)
    with pytest.raises(ValueError, match="a library's own"):
        cli.main(["run", write()])


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["run", str(DEMO), "grpo.stepz=1"],
        ["run", str(DEMO), "model.path=./no"],
        ["compare", str(DEMO.with_name("compare.yaml")), "grpo.policy=sfd", "prompts.rows=200"],
    ],
)
def test_help_and_mistakes_come_without_torch(words):
    code = (
        "import sys, runpy\n"
        f"sys.argv = ['pipeline', *{words!r}]\n"
        "try:\n    runpy.run_module('pipeline', run_name='__main__')\n"
        "except SystemExit as exc:\n    pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'trl', 'vllm'} & sys.modules.keys()\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert done.returncode == 0, done.stderr


def test_plan_names_a_tracker_that_is_not_installed_and_how_to_install_it(write, capsys, monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "wandb" else real(name, *rest))
    (line,) = told(capsys, "plan", write(trackers=["wandb"]), "trial=false")
    assert (
        "config.yaml: trackers: wandb is not installed; " in line
        and "pip install" in line
        and line.endswith("leave it out")
    )
