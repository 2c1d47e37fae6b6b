"""What a stage depends on is told by name when it changes; a run's tree; what two runs differ in; no secret on disk."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config.errors import LineageError
from pipeline.config.load import ConfigError, load
from pipeline.run import lineage
from pipeline.run.manifest import manifest_sha
from pipeline.run.stage_dir import StageDir

DEMO = Path(__file__).parents[2] / "configs/demo/pipeline.yaml"
MODULE = {"base": "pipeline.stages.base", "sft": "pipeline.stages.sft", "grpo": "pipeline.stages.grpo"}


def config(tmp_path, *words: str):
    return load(DEMO, [f"runs_dir={tmp_path}", "run=r", *words])


def manifest_of(cfg, name: str) -> dict:
    manifest = StageDir(cfg.run_dir, name).manifest()
    assert manifest is not None
    return manifest


def make(cfg, name: str, text: str = "weights", inputs: dict | None = None, metrics: dict | None = None) -> StageDir:
    """A completed stage as run_stage leaves it, its model a line of text."""
    stage = StageDir(cfg.run_dir, name)
    identity = {"config": lineage.stage_config(cfg, name), "code": lineage.code_of(MODULE[name])}
    stage.open(identity)
    stage.model_dir.mkdir(exist_ok=True)
    (stage.model_dir / "model.txt").write_text(text)
    stage.logs.log({"step": 1, "loss": len(text)})
    parents = {}
    if name != "base":
        parent = "base" if name == "sft" else "sft"
        parents = {parent: manifest_sha(manifest_of(cfg, parent))}
    stage.complete(seed=cfg.seed, parents=parents, inputs=inputs or {}, metrics=metrics or {}, **identity)
    return stage


def why(cfg, name: str) -> str | None:
    return lineage.why_stale(cfg, name, MODULE[name])


def test_what_is_complete_and_unchanged_is_not_stale(tmp_path):
    cfg = config(tmp_path)
    assert why(cfg, "base") == "not yet run"
    make(cfg, "base")
    assert why(cfg, "base") is None


def test_a_changed_key_is_reported_with_both_values(tmp_path):
    make(config(tmp_path), "base")
    make(config(tmp_path), "sft")
    changed = config(tmp_path, "sft.trainer.max_steps=9")
    assert why(changed, "sft") == "its config changed: stage.trainer.max_steps 800 → 9"
    assert why(changed, "base") is None  # another stage's block is none of its business


def test_a_parent_made_again_makes_its_children_stale_and_not_one_made_alike(tmp_path):
    cfg = config(tmp_path)
    for name in ("base", "sft", "grpo"):
        make(cfg, name)
    make(cfg, "sft")  # again, with the same result
    assert why(cfg, "grpo") is None
    make(cfg, "sft", text="other weights")
    assert why(cfg, "grpo") == "its parent sft changed"


def test_a_changed_input_file_is_named(tmp_path):
    cfg = config(tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("1")
    from pipeline.run.files import sha256_file

    make(cfg, "base", inputs={str(rows): sha256_file(rows)})
    assert why(cfg, "base") is None
    rows.write_text("2")
    assert why(cfg, "base") == f"its input {rows} changed"


def test_changed_code_is_named_by_file(tmp_path):
    cfg = config(tmp_path)
    stage = make(cfg, "base")
    manifest = manifest_of(cfg, "base")
    manifest["code"]["pipeline/models/models.py"] = "of another day"
    stage.manifest_path.write_text(json.dumps(manifest))
    assert why(cfg, "base") == "the code changed: pipeline/models/models.py"


def test_the_code_of_a_stage_is_what_it_imports_and_what_is_loaded_by_name():
    sft, grpo = lineage.code_of(MODULE["sft"]), lineage.code_of(MODULE["grpo"])
    assert "pipeline/update/losses.py" in grpo and "pipeline/stages/ppo.py" not in grpo
    assert "pipeline/stages/feedme.py" not in sft and "pipeline/stages/sft.py" in sft
    assert {"rewards/compose.py", "verifiers/gridworld.py"} <= sft.keys()
    assert not any(path.startswith(("pipeline/report", "tests")) for path in {*sft, *grpo})


def test_imports_are_found_wherever_they_stand_in_a_source():
    """Against a walk over every node of the tree, in all of our own sources."""
    for path in (lineage.ROOT / "pipeline").rglob("*.py"):
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        ours = {n for n in names if n.split(".")[0] in lineage.OURS} - {"pipeline", "pipeline.stages"}
        assert set(lineage._imports(path)) == ours, path


def test_a_run_that_is_up_to_date_says_so_without_torch_and_leaves_its_report(tmp_path):
    words = ["run", str(DEMO), f"runs_dir={tmp_path}", "run=r", "stages=[base, sft]"]
    cfg = load(DEMO, words[2:])
    make(cfg, "base")
    make(cfg, "sft")
    code = (
        "import sys\nfrom pipeline.__main__ import main\n"
        f"assert main({words!r}) == 0\n"
        "sys.exit(' '.join(sorted({'torch', 'transformers', 'trl', 'pipeline.plan'} & sys.modules.keys())))"
    )
    pages = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 or not done.stderr.strip(), done.stderr
        assert [line.split(";")[0] for line in done.stdout.splitlines()[:2]] == [
            "── base: up to date",
            "── sft: up to date",
        ]
        page = cfg.run_dir / "report.html"
        pages.append(page.stat().st_mtime_ns)
    assert pages[0] == pages[1], "an unchanged report was written again"
    (cfg.run_dir / "sft" / "model" / "model.txt").write_text("other weights")
    altered = subprocess.run([sys.executable, "-c", code.replace("== 0", "== 2")], capture_output=True, text=True)
    assert "changed since the stage wrote it" in altered.stderr


OWN = ["verifier_dirs=[mine]", "rewards={price: {}, brief: {kind: function, path: 'own_brevity:brief'}}",
       "model.chat_template=chat.jinja"]  # fmt: skip


@pytest.fixture
def own_files(tmp_path, monkeypatch):
    """A verifier, a reward function and a template of the user's own, beside the run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("mine").mkdir()
    for name in ("price", "other"):
        Path(f"mine/{name}.py").write_text("Task = dict\nEXAMPLES = ()\n\ndef verify(completion, task):\n    ...\n")
    Path("own_brevity.py").write_text("def brief(prompts, completions, **columns): ...\n")
    Path("chat.jinja").write_text("{{ messages }}")
    return [Path("chat.jinja"), Path("mine/price.py"), tmp_path / "own_brevity.py"]


def test_files_of_the_users_own_are_those_that_the_stage_is_scored_by(tmp_path, own_files):
    cfg = config(tmp_path, *OWN)
    assert set(lineage.own_files(cfg, "grpo")) == set(own_files)
    second = config(tmp_path, "verifier_dirs=[mine]", "grpo.monitor={strict: {other: {}}}")
    assert lineage.own_files(second, "grpo") == [Path("mine/other.py")] and lineage.own_files(second, "sft") == []
    by_task = config(tmp_path, "verifier_dirs=[mine]", "rewards={any: {kind: verifier, verifier: by_task}}")
    assert lineage.own_files(by_task, "sft") == [Path("mine/other.py"), Path("mine/price.py")]
    slow = "{slow: {kind: surrogate, of: price}, slower: {kind: surrogate, of: b, settings: %s}}"
    behind = "{kind: function, path: own_brevity:brief}"
    surrogate = config(tmp_path, "verifier_dirs=[mine]", f"rewards={slow % behind}")
    assert set(lineage.own_files(surrogate, "sft")) == set(own_files[1:]), "what a surrogate stands in for"
    made = config(tmp_path, "verifier_dirs=[mine]", "prompts.procedural=other")
    assert lineage.own_files(made, "base") == [Path("mine/other.py")]


def test_the_demo_depends_on_no_file_beside_its_code(tmp_path):
    cfg = config(tmp_path)
    assert not any(lineage.own_files(cfg, name) for name in cfg.stages)
    long = config(tmp_path, f"model.chat_template='{{% set x = 1 %}}{'a' * 300}'")  # no file has such a name
    assert lineage.own_files(long, "base") == []


@pytest.mark.parametrize("place", range(3))
def test_a_changed_file_of_the_users_own_makes_a_stage_stale_whole_or_interrupted(
    tmp_path, own_files, monkeypatch, place
):
    from pipeline import stages
    from pipeline.stages import base

    def interrupted(ctx):
        raise KeyboardInterrupt

    monkeypatch.setattr(base, "run", interrupted)
    cfg = config(tmp_path, *OWN, "trackers=[]")
    with pytest.raises(KeyboardInterrupt):
        stages.run_stage(cfg, "base")
    assert why(cfg, "base") == "interrupted"
    with own_files[place].open("a") as file:
        file.write("\n# edited")
    assert why(cfg, "base") == f"interrupted, and its input {own_files[place]} changed since: starts over"
    monkeypatch.setattr(base, "run", lambda ctx: {})
    stages.bring_up_to_date(cfg, "base")
    assert why(cfg, "base") is None and manifest_of(cfg, "base")["inputs"].keys() == set(map(str, own_files))
    with own_files[place].open("a") as file:
        file.write("\n# and again")
    assert why(cfg, "base") == f"its input {own_files[place]} changed"


def test_a_comparison_is_stale_when_a_block_of_its_methods_changes(tmp_path):
    path = str(DEMO.with_name("compare.yaml"))
    one, two = (lineage.stage_config(load(path, [f"grpo.steps={n}"]), "compare") for n in (3, 4))
    assert lineage.differences(one, two) == ["blocks.grpo.steps 3 → 4"]
    other = lineage.stage_config(load(path, ["grpo.steps=3", "mine={kind: grpo, policy: sft}"]), "compare")
    assert lineage.differences(one, other) == [], "a block that is no part of it"


def test_time_to_target_is_stale_when_a_block_of_its_methods_changes():
    path = str(DEMO.parents[1] / "research" / "surrogate.yaml")
    one, two = (lineage.stage_config(load(path, [f"quarter.steps={n}"]), "time_to_target") for n in (3, 4))
    assert lineage.differences(one, two) == ["blocks.quarter.steps 3 → 4"]


def test_an_unfinished_stage_goes_on_unless_it_was_edited(tmp_path):
    cfg = config(tmp_path)
    stage = StageDir(cfg.run_dir, "base")
    stage.open({"config": lineage.stage_config(cfg, "base"), "code": lineage.code_of(MODULE["base"])})
    assert why(cfg, "base") == "interrupted" and lineage.may_go_on("interrupted")
    found = why(config(tmp_path, "sampling.max_tokens=9"), "base")
    assert found == "interrupted, and its config changed: sampling.max_tokens 16 → 9 since: starts over"
    assert not lineage.may_go_on(found)


def test_an_unfinished_stage_whose_parent_changed_meanwhile_begins_again(tmp_path):
    cfg = config(tmp_path)
    for name in ("base", "sft"):
        make(cfg, name)
    stage = StageDir(cfg.run_dir, "grpo")
    stage.open({"config": lineage.stage_config(cfg, "grpo"), "code": lineage.code_of(MODULE["grpo"])})
    stage.begun.depends("parents", {"sft": manifest_sha(manifest_of(cfg, "sft"))})
    assert why(cfg, "grpo") == "interrupted"
    # killed while it starts, before it asks for its parents again
    stage.open({"config": lineage.stage_config(cfg, "grpo"), "code": lineage.code_of(MODULE["grpo"])})
    make(cfg, "sft", text="other weights")
    assert "its parent sft changed" in (why(cfg, "grpo") or "")


def test_evaluate_is_stale_when_another_policy_comes_before_it(tmp_path):
    one = lineage.stage_config(config(tmp_path, "stages=[base,sft,evaluate]"), "evaluate")
    two = lineage.stage_config(config(tmp_path, "stages=[base,sft,grpo,evaluate]"), "evaluate")
    assert one["stage"]["policies"] == ["base", "sft"] and two["stage"]["policies"] == ["base", "sft", "grpo"]


# --- the tree ---------------------------------------------------------------------------------------------------------


def test_the_tree_goes_from_base_to_final_and_names_what_is_off(tmp_path):
    cfg = config(tmp_path)
    for name in ("base", "sft", "grpo"):
        make(cfg, name, metrics={"heldout_accuracy": 0.25})
    drawn, sound = lineage.lineage(cfg.run_dir)
    assert sound
    assert [line.split()[1] for line in drawn.splitlines()[1:]] == ["base", "sft", "grpo"]
    assert "held-out accuracy 0.250" in drawn
    indents = [len(line) - len(line.lstrip(" └├─│")) for line in drawn.splitlines()[1:]]
    assert indents == sorted(indents) and len(set(indents)) == 3  # each below its parent
    (cfg.run_dir / "sft/model/model.txt").write_text("tampered")
    drawn, sound = lineage.lineage(cfg.run_dir)
    assert not sound and f"{cfg.run_dir}/sft/model/model.txt: changed since the stage wrote it" in drawn
    make(cfg, "sft", text="other weights")
    drawn, sound = lineage.lineage(cfg.run_dir)
    assert not sound and "its parent sft was rerun since" in drawn


def test_a_directory_that_is_no_run_is_reported(tmp_path):
    with pytest.raises(LineageError, match="no completed stage here"):
        lineage.lineage(tmp_path)


def test_a_directory_of_several_seeds_names_one_of_them(tmp_path):
    for seed in (1, 2):
        make(config(tmp_path, f"run=r/seed-{seed}"), "base")
    with pytest.raises(LineageError, match=f"{tmp_path}/r holds one run per seed; .* as {tmp_path}/r/seed-1$"):
        lineage.lineage(tmp_path / "r")


# --- two runs ---------------------------------------------------------------------------------------------------------


def test_diff_shows_config_metrics_outputs_and_where_the_logs_part(tmp_path):
    one, two = config(tmp_path), config(tmp_path, "run=r2", "seed=2", "sft.trainer.max_steps=9")
    for cfg, text in ((one, "weights"), (two, "weights!")):
        make(cfg, "base", text="same")
        make(cfg, "sft", text=text, metrics={"heldout_accuracy": len(text) / 10})
    told, _ = lineage.diff(one.run_dir, [str(two.run_dir)])
    for line in (
        "config: seed 1 → 2",
        "config: stage.trainer.max_steps 800 → 9",
        "metrics: heldout_accuracy 0.7 → 0.8",
        "outputs: metrics.jsonl, model/model.txt",
        "metrics.jsonl: from row 1: loss 7 → 8",
    ):
        assert f"  {line}" in told.splitlines(), told
    assert "base:" in told and "outputs" not in told.split("sft:")[0]


def test_diff_opens_lists_of_policies_and_leaves_times_out(tmp_path):
    one, two = config(tmp_path), config(tmp_path, "run=r2")
    for cfg, right, seconds in ((one, 0.1, 20.0), (two, 0.3, 30.0)):
        policies = [{"policy": name, "wall_s": seconds, "right": right * (name == "sft")} for name in ("base", "sft")]
        make(cfg, "base", metrics={"policies": policies, "wall_s": seconds})
    told, _ = lineage.diff(one.run_dir, [str(two.run_dir)])
    assert told.splitlines()[2:] == ["base:", "  metrics: policies.sft.right 0.1 → 0.3"]


def test_inputs_that_only_one_run_has_are_named():
    assert lineage.differences({}, {"q.jsonl": "44a4"}) == ["q.jsonl (absent) → 44a4"]


def test_a_manifest_that_names_no_files_of_code_is_compared_too(tmp_path):
    cfg = config(tmp_path)
    place = make(cfg, "base").path / "manifest.json"
    record = json.loads(place.read_text())
    place.write_text(json.dumps({**record, "code": "3f2a"}))
    assert lineage.diff(cfg.run_dir, [str(cfg.run_dir)])[0].endswith("base: the same")


def test_a_run_is_the_same_as_itself_and_diff_wants_two(tmp_path):
    cfg = config(tmp_path)
    make(cfg, "base")
    assert "base: the same" in lineage.diff(cfg.run_dir, [str(cfg.run_dir)])[0]
    with pytest.raises(ConfigError, match="name two runs"):
        lineage.diff(cfg.run_dir, [])


# --- secrets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "key", ["api_key", "OPENAI_API_KEY", "password", "hub_token", "HF_TOKEN", "token", "client_secret", "Authorization"]
)
def test_a_value_under_a_key_that_names_a_secret_is_never_written(tmp_path, key):
    cfg = config(tmp_path, f"rewards.gridworld.task.{key}=swordfish")
    make(cfg, "base")
    written = "".join(p.read_text() for p in cfg.run_dir.rglob("*.json"))
    assert "swordfish" not in written and "(redacted)" in written


@pytest.mark.parametrize("key", ["eos_token", "max_tokens", "tokens_per_microbatch", "keyboard"])
def test_what_only_sounds_like_a_secret_is_kept(key):
    assert lineage.redacted({key: "<eos>"}) == {key: "<eos>"}


def test_logins_in_addresses_and_keys_known_by_their_looks_are_hidden():
    value = {"url": "https://me:swordfish@host/x", "note": "use hf_" + "a1B2" * 8, "list": ["sk-" + "x" * 40]}
    text = json.dumps(lineage.redacted(value))
    assert "swordfish" not in text and "a1B2a1B2" not in text and "xxxx" not in text and "host/x" in text
