"""The comparison: what it runs and after what, and one real tiny one."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import math
import os
import subprocess
import sys
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.cli.recipes import RECIPES, recipe_path
from pipeline.config import stage_graph
from pipeline.config.load import ConfigError, load
from pipeline.config.schema import Generate
from pipeline.run.stage_dir import StageDir
from pipeline.stages.comparison import compare, stage_pool
from pipeline.stages.comparison.method_judge import learned_tokens, parse
from pipeline.stages.comparison.stage_pool import Ended, PooledStage, ended, report, seconds_left

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "configs" / "demo"


@pytest.fixture
def cfg() -> Any:
    return load(DEMO / "compare.yaml")


PARENT = """
import os
from pipeline.stages.comparison.stage_pool import processes
if __name__ == "__main__":
    pool = processes(1)
    print(pool.submit(os.getpid).result(), flush=True)
    os.kill(os.getpid(), 9)
"""


def test_a_worker_ends_with_its_parent_however_that_ends(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "parent.py")]
    # a worker that lived on would hold the pipe open, and be waited for
    parent = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=60)
    assert parent.returncode == -9
    worker = Path(f"/proc/{int(parent.stdout)}")
    deadline = time.monotonic() + 30
    while worker.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not worker.exists()


LEAVING = """
import atexit
from pathlib import Path
from pipeline.stages.comparison.stage_pool import processes

class Module:
    def __del__(self):
        Path("taken apart").touch()

def work():
    global module
    module = Module()
    atexit.register(Path("closed").touch)
    print("printed", end="")

if __name__ == "__main__":
    with processes(1) as pool:
        pool.submit(work).result()
"""


def test_a_worker_calls_its_exit_handlers_and_does_not_take_its_modules_apart(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(LEAVING)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    out = subprocess.check_output([sys.executable, "parent.py"], cwd=tmp_path, env=environment, text=True, timeout=60)
    assert out == "printed" and (tmp_path / "closed").exists() and not (tmp_path / "taken apart").exists()


# --- what runs ----------------------------------------------------------------------------------------------------


def test_a_stage_comes_after_all_it_learns_from(cfg: Any) -> None:
    assert stage_graph.ancestors(cfg, "ppo_weak") == ["base", "sft", "weak_reward_model"]
    assert stage_graph.ancestors(cfg, "base") == []


def test_a_pool_and_what_a_monitor_scores_by_come_before_what_reads_them(cfg: Any) -> None:
    cfg.blocks["conditioned"].pool = ["feedme", "rated.jsonl"]
    cfg.blocks["rloo"].monitor.strict = {"weak_reward_model": {"kind": "learned"}}
    assert stage_graph.ancestors(cfg, "conditioned") == ["base", "sft", "feedme"]
    assert stage_graph.ancestors(cfg, "rloo") == ["base", "sft", "weak_reward_model"]
    cfg.block("compare").methods = ["conditioned"]  # and not feedme itself
    cfg.block("compare").controls, cfg.block("compare").drawn_once = {}, {}
    seed = stage_graph.seed_config(cfg, "compare", 1)
    assert seed.stages == ["feedme", "conditioned", "judge"] and "feedme" in seed.blocks


def test_rewards_of_the_whole_run_are_needed_by_what_scores_with_them(cfg: Any) -> None:
    cfg.rewards = {"rm": {"kind": "learned", "model": "weak_reward_model"}}
    assert "weak_reward_model" in stage_graph.ancestors(cfg, "grpo")
    assert stage_graph.learned_parts("rewards", {"reward_model": None, "length": {}}) == [
        ("rewards.reward_model", "reward_model")
    ]


def test_stages_that_wait_for_each_other_end_the_search(cfg: Any) -> None:
    cfg.blocks["feedme"].pool, cfg.blocks["conditioned"].pool = ["conditioned"], ["feedme"]
    assert set(stage_graph.ancestors(cfg, "feedme")) == {"base", "sft", "conditioned"}


@pytest.mark.parametrize(("backend", "fields"), [("vllm_server", {"url": "http://sampler:8000"}), ("ray", {})])
def test_where_weights_pass_through_one_place_one_part_runs_at_a_time(
    cfg: Any, backend: str, fields: dict[str, str]
) -> None:
    cfg.block("compare").workers = 3
    assert stage_graph.at_once(cfg, "compare") == 3
    cfg.generate = Generate(backend=backend, **fields)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=rf"compare\.workers: 3 .*{backend}; leave workers out"):
        stage_graph.check(cfg, "compare")
    cfg.block("compare").workers = None
    stage_graph.check(cfg, "compare")
    assert stage_graph.at_once(cfg, "compare") == 1


def test_another_start_than_before_sets_stages_aside_and_drops_links(
    cfg: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg.runs_dir, cfg.run = str(tmp_path), "c"
    compare.parts_of(stage_graph.start_config(cfg, "compare"), [stage_graph.seed_config(cfg, "compare", 0)])
    seed = tmp_path / "c" / "seed-1"
    (seed / "feedme").mkdir()
    (seed / "feedme" / "manifest.json").write_text("{}")
    cfg.block("compare").start = "feedme"
    cfg.block("compare").methods = ["grpo"]
    for _ in range(2):  # the second finds all in place
        compare.parts_of(stage_graph.start_config(cfg, "compare"), [stage_graph.seed_config(cfg, "compare", 0)])
    assert (seed / "feedme").readlink() == Path("../start/feedme")
    assert (seed / ".replaced" / "feedme" / "manifest.json").read_text() == "{}"
    assert capsys.readouterr().out.count("seed-1/feedme: previous output moved to ") == 1
    cfg.block("compare").start, cfg.block("compare").methods = "sft", ["feedme"]
    compare.parts_of(stage_graph.start_config(cfg, "compare"), [stage_graph.seed_config(cfg, "compare", 0)])
    assert not (seed / "feedme").is_symlink() and (seed / "sft").is_symlink(), "feedme is this run's own again"


def test_a_comparison_depends_on_all_files_that_its_parts_read(cfg: Any, tmp_path: Path) -> None:
    cfg.runs_dir = str(tmp_path)
    runs = [replace(cfg, run=f"c/{name}", stages=["grpo"]) for name in ("start", "seed-1")]
    for number, run in enumerate(runs):
        place = StageDir(run.run_dir, "grpo")
        place.open()
        place.complete(config={}, seed=1, parents={}, inputs={f"{number}.py": "sha"}, metrics={}, code={})
    assert compare.inputs_of(runs) == {"0.py": "sha", "1.py": "sha"}


def test_seeds_share_the_start_and_only_the_first_follows_the_weak_reward(cfg: Any) -> None:
    first, second = (stage_graph.seed_config(cfg, "compare", i) for i in (0, 1))
    assert (first.run, first.seed, second.run, second.seed) == ("compare/seed-1", 1, "compare/seed-2", 2)
    assert not {"base", "sft"} & {*first.stages, *second.stages}
    assert set(first.stages) - set(second.stages) == {"weak_reward_model", "feedme_weak", "ppo_weak"}
    assert first.stages[-1] == second.stages[-1] == "judge"


def test_every_method_gets_the_budget_but_one_that_has_its_own(cfg: Any) -> None:
    cfg.blocks["rloo"].token_budget = 777
    blocks = stage_graph.seed_config(cfg, "compare", 0).blocks
    budgets = {n: getattr(b, "token_budget", None) for n, b in blocks.items()}
    assert budgets["grpo"] == budgets["feedme"] == budgets["conditioned"] == cfg.block("compare").budget
    assert budgets["rloo"] == 777
    assert cfg.block("grpo").token_budget is None, "the YAML's own blocks stay as they were read"


def test_every_part_waits_for_its_parents_and_the_judge_for_all(cfg: Any, tmp_path: Path) -> None:
    cfg.runs_dir = str(tmp_path)
    start = replace(cfg, run="compare/start", stages=["base", "sft"])
    parts = compare.parts_of(start, [stage_graph.seed_config(cfg, "compare", i) for i in range(3)])
    done: set[tuple[str, str]] = set()
    for part in parts:  # in this order one worker could run them all
        assert set(part.after) <= done, part.label
        done.add(part.key)
    assert len(done) == len(parts), "nothing is run twice"
    judge = next(p for p in parts if p.name == "judge")
    assert {name for run, name in judge.after if run.endswith("seed-1")} == set(judge.cfg.stages) - {"judge"}
    assert (tmp_path / "compare" / "seed-2" / "sft").readlink() == Path("../start/sft")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"methods": ["feedmee"]}, "no block for 'feedmee'; did you mean 'feedme'"),
        ({"controls": {"sft": "sft_more"}}, "controls: 'sft' is not among the methods"),
        ({"drawn_once": {"grpo": "grpo_twice"}}, "no block for 'grpo_twice'"),
        ({"proxy": None}, "name the reward model that feedme_weak learns from"),
        ({"seeds": [1, 1]}, "names a seed twice"),
        ({"seeds": []}, "compare.seeds: name at least one"),
        ({"start": "feedme/control"}, "'feedme/control' lies inside a stage"),
    ],
)
def test_a_mistake_in_the_block_is_reported_before_anything_runs(cfg: Any, change: dict[str, Any], said: str) -> None:
    for name, value in change.items():
        setattr(cfg.block("compare"), name, value)
    with pytest.raises(ConfigError, match=said):
        stage_graph.check(cfg, "compare")


def test_a_control_inside_a_stage_is_named_by_its_directory() -> None:
    assert (parse("feedme/control").stage, parse("feedme/control").inside) == ("feedme", "control")
    assert parse("feedme").inside == "model"


def test_a_worker_frees_the_models_of_a_stage_before_it_begins_the_next(
    cfg: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    freed: list[bool] = []
    monkeypatch.setattr("pipeline.stages.bring_up_to_date", lambda cfg, name: True)
    monkeypatch.setattr(stage_pool.shutdown, "install", lambda run: None)
    monkeypatch.setattr(stage_pool.signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(stage_pool.process, "free_memory", lambda: freed.append(True))
    assert stage_pool.bring_up(PooledStage(cfg, "grpo"), str(tmp_path / "log")).ran and freed == [True]


class Pool(contextlib.nullcontext["Pool"]):
    """Takes what is submitted as done."""

    def __init__(self) -> None:
        super().__init__(self)
        self.submitted: list[str] = []

    def submit(self, function: Any, *given: Any) -> Future[Ended]:
        self.submitted.append(given[0].name if function is stage_pool.bring_up else function.__name__)
        future: Future[Ended] = Future()
        future.set_result(Ended(1.0))
        return future


@pytest.mark.parametrize(
    ("workers", "complete", "warmed"),
    [(2, [], 1), (4, [], 1), (1, [], 0), (2, ["base", "sft"], 0)],
    ids=["one waits", "no more than have stages", "no other worker", "one stage is left"],
)
def test_a_worker_without_a_stage_imports_what_its_stages_need(
    cfg: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, complete: list[str], warmed: int
) -> None:
    cfg.runs_dir = str(tmp_path)
    for name in complete:
        (cfg.run_dir / name).mkdir(parents=True)
        (cfg.run_dir / name / "manifest.json").write_text("{}")
    chain = ["base", "sft", "grpo"]
    parts = [PooledStage(cfg, n, after=[(cfg.run, p) for p in chain[:i]]) for i, n in enumerate(chain)]
    pool = Pool()
    monkeypatch.setattr(stage_pool, "processes", lambda count: pool)
    stage_pool.run_parts(parts, workers=workers, logs=tmp_path / "logs")
    assert pool.submitted == ["base", *["warm_up"] * warmed, "sft", "grpo"]


WARMED = """
import sys
from pipeline.config.load import load
from pipeline.stages.comparison.stage_pool import PooledStage, libraries_of, warm_up
cfg = load(sys.argv[1])
warm_up(cfg, libraries_of([PooledStage(cfg, "sft"), PooledStage(cfg, "grpo")]))
before = set(sys.modules)
from trl import SFTTrainer
import pipeline.stages.grpo, pipeline.stages.sft
print(sorted(set(sys.modules) - before))
print("vllm.v1.core.sched.scheduler" in before)
"""


@pytest.mark.stages
def test_a_warm_worker_has_imported_the_trainers_and_the_engine(tmp_path: Path) -> None:
    command = [sys.executable, "-c", WARMED, str(DEMO / "pipeline.yaml")]
    new, engine = subprocess.check_output(command, cwd=ROOT, text=True, timeout=300).splitlines()
    assert new == "[]" and engine == str(importlib.util.find_spec("vllm") is not None)


def test_a_part_that_failed_is_raised_with_its_name_and_its_log(cfg: Any, tmp_path: Path) -> None:
    part = PooledStage(cfg, "grpo")
    with pytest.raises(ConfigError, match=r"compare/grpo: no such key .*compare-grpo\.log"):
        report(part, Ended(1.0, "ConfigError", "no such key"), "1/2", "", tmp_path)
    with pytest.raises(RuntimeError, match="loss is nan"):
        report(part, Ended(1.0, "Alarm", "loss is nan"), "1/2", "", tmp_path)


def test_the_time_left_is_that_of_stages_of_the_same_name_or_of_all() -> None:
    """By hand: grpo takes 20 s on average, judge 10; another stage is taken to need 15, and two run at once."""
    took = {"grpo": [10.0, 30.0], "judge": [10.0]}
    assert seconds_left(["grpo", "judge", "ppo"], took, 2) == pytest.approx((20 + 10 + 15) / 2)
    assert seconds_left([], {}, 1) == 0 and math.isnan(seconds_left(["grpo"], {}, 1))


@pytest.mark.parametrize(("workers", "advice"), [(2, r"with compare\.workers=1"), (1, "with more memory free")])
def test_a_killed_process_is_reported_with_what_to_do(cfg: Any, workers: int, advice: str) -> None:
    future: Future[Ended] = Future()
    future.set_exception(BrokenProcessPool("terminated abruptly"))
    with pytest.raises(ConfigError, match=f"killed while compare/grpo .*to resume, {advice}"):
        ended(future, PooledStage(cfg, "grpo"), "compare.workers", workers)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_config_that_reads(name: str) -> None:
    found = load(recipe_path(name))
    assert found.run == name and found.stages[-1] == "evaluate"


def test_both_lineages_may_sample_the_same_in_all() -> None:
    def budget(name: str) -> int:
        blocks = load(recipe_path(name)).blocks.values()
        return sum(getattr(b, "token_budget", None) or 0 for b in blocks)

    assert budget("davinci-002") == budget("davinci-003") == load(DEMO / "davinci.yaml").block("compare").budget


def test_an_unknown_recipe_is_reported_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match="did you mean 'davinci-002'"):
        recipe_path("davinci-02")


@pytest.mark.parametrize(
    ("stage", "tokens"),
    [
        ({"metrics": {"train_tokens": 70}}, 70),
        ({"metrics": {"rounds": [{"train_tokens": 30}, {"train_tokens": 50}]}}, 80),
        ({"metrics": {}, "tokens": {"prompt": 10, "completion": 20}, "config": {"stage": {"epochs": 2}}}, 60),
    ],
)
def test_learned_tokens_count_each_token_as_often_as_it_was_learned_from(
    cfg: Any, tmp_path: Path, stage: dict[str, Any], tokens: int
) -> None:
    cfg.runs_dir = str(tmp_path)
    assert learned_tokens(cfg, "x", stage) == tokens


def test_a_control_inside_a_stage_is_not_part_of_what_its_method_learned_from(cfg: Any, tmp_path: Path) -> None:
    cfg.runs_dir = str(tmp_path)
    place = cfg.run_dir / "conditioned"
    place.mkdir(parents=True)
    rows = [("labels", 40), ("labels", 90), ("shuffled", 90), ("online/0", 25)]
    lines = [json.dumps({"part": part, "step": 1, "num_input_tokens_seen": seen}) for part, seen in rows]
    (place / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert learned_tokens(cfg, "conditioned", {"metrics": {}}) == 90 + 25


# --- and for real -------------------------------------------------------------------------------------------------

TINY = [
    "run=tiny",
    "compare.seeds=[1,2]",
    "compare.methods=[sft_gold,grpo]",
    "compare.controls={grpo: grpo_random}",
    "compare.drawn_once={}",
    "compare.proxy=null",
    "compare.proxy_methods=[]",
    "compare.best_of=[2]",
    "compare.budget=3000",
    "compare.workers=2",
    "generate.backend=transformers",
    "prompts.rows=2000",
    "evaluation={samples: 2, k: 2, prompts: 20}",
    "sft.trainer.max_steps=60",
    "sft_gold.trainer.max_steps=10",
    "grpo.evaluate_every=1",
]


def comparison(place: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline", "compare", str(DEMO / "compare.yaml"), *TINY, f"runs_dir={place}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


@pytest.mark.stages
def test_a_real_comparison_runs_resumes_and_reports(tmp_path: Path) -> None:
    first = comparison(tmp_path)
    assert first.returncode == 0, first.stderr[-3000:]
    made = json.loads((tmp_path / "tiny" / "compare" / "manifest.json").read_text())["metrics"]
    assert [r["method"] for r in made["table"]] == ["sft", "sft_gold", "grpo", "grpo_random", "best of 2"]
    spent = next(r for r in made["table"] if r["method"] == "grpo")["sampled_tokens"]
    assert 3000 <= spent < 3000 + 32 * 8 * 17, "the step that reaches the budget is the last"
    assert len(made["sentences"]) == 2 and made["paths"]["grpo"][0][0]["tokens"] > 0
    assert (tmp_path / "tiny" / "report.html").is_file()
    trained = [(p, p.stat().st_mtime_ns) for p in sorted(tmp_path.rglob("model.safetensors"))]
    (tmp_path / "tiny" / "compare" / "manifest.json").unlink()  # killed at its very end
    second = comparison(tmp_path)
    assert second.returncode == 0, second.stderr[-3000:]
    assert [(p, p.stat().st_mtime_ns) for p in sorted(tmp_path.rglob("model.safetensors"))] == trained, (
        "nothing ran twice"
    )
    again = json.loads((tmp_path / "tiny" / "compare" / "manifest.json").read_text())["metrics"]
    assert again == made
