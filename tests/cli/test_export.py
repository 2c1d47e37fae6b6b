import json
from pathlib import Path

import pytest

from pipeline.cli import export
from pipeline.cli.model_card import card, local_paths, public_name, without_local_paths
from pipeline.config.errors import LineageError
from pipeline.config.load import ConfigError, load
from pipeline.models.models import make_tiny
from pipeline.run.manifest import manifest_sha
from pipeline.run.stage_dir import StageDir

CONFIG = Path(__file__).parents[2] / "configs" / "demo" / "pipeline.yaml"


@pytest.fixture
def run(tmp_path) -> Path:
    """Two finished stages, sft on base, with real weights and made-up figures."""
    cfg = load(CONFIG, [f"runs_dir={tmp_path}", "run=mine"])
    parents: dict[str, str] = {}
    for seed, (name, accuracy) in enumerate({"base": 0.0, "sft": 0.5}.items()):
        stage = StageDir(cfg.run_dir, name)
        stage.open()
        stage.logs.tokens["completion"] = 1000
        assert cfg.model.tiny is not None
        make_tiny(cfg.model.tiny, stage.model_dir, seed=seed)
        shared = {key: getattr(cfg, key) for key in ("model", "prompts", "rewards", "sampling")}
        made = stage.complete(
            config={"stage": cfg.blocks.get(name) or {"kind": name}, **shared},
            seed=1,
            parents=dict(parents),
            inputs={},
            metrics={
                "heldout_accuracy": accuracy,
                "heldout_accuracy_ci95": [accuracy - 0.1, accuracy + 0.1],
                "distinct_answers": 4.0 - seed,
            },
            code={},
        )
        parents = {name: manifest_sha(made)}
    return cfg.run_dir


def test_an_export_loads_in_plain_transformers_and_its_card_says_what_happened(run):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = export.export(run, [])
    model, tokenizer = AutoModelForCausalLM.from_pretrained(place), AutoTokenizer.from_pretrained(place)
    assert model.generation_config.max_new_tokens == 16 and tokenizer.decode(tokenizer("a1>b2:").input_ids) == "a1>b2:"
    text = (place / "README.md").read_text()
    assert "base → sft" in text and "0.500 (0.400 to 0.600)" in text and "2,000" in text and "4.00 to 3.00" in text
    assert [m["stage"] for m in json.loads((place / "lineage.json").read_text())] == ["base", "sft"]


@pytest.mark.parametrize(
    ("start", "end", "verdict"),
    [
        ((0.0, 0.1), (0.4, 0.6), "Better than `base` on this task, by this scorer."),
        ((0.4, 0.6), (0.0, 0.1), "Worse than `base` on this task, by this scorer."),
        ((0.4, 0.6), (0.5, 0.7), "Not shown to be better than `base` on this task: the intervals of `base` and `grpo`"),
        (None, (0.5, 0.7), "The model before training was not evaluated"),
    ],
)
def test_a_card_claims_what_its_intervals_support(start, end, verdict):
    prompts = {"procedural": "gridworld", "heldout": 0.25}
    shared = {"model": {"path": "org/base"}, "prompts": prompts, "rewards": {"gridworld": {}}}
    chain: list[dict] = []
    for name, ci in (("base", start), ("grpo", end)):
        figures: dict = {"heldout_prompts": 40, "steps": 60, "best_step": 10}
        figures |= {"heldout_accuracy": sum(ci) / 2, "heldout_accuracy_ci95": list(ci)} if ci else {}
        chain.append({"stage": name, "config": {**shared, "stage": {"kind": name}}, "tokens": {"completion": 1},
                      "wall_s": 1.0, "seed": 1, "metrics": figures})  # fmt: skip
    text = card(chain)
    assert f"- {verdict}" in text
    assert "by a hash of their text (40 prompts)" in text and "steps 10 of 60, chosen by the validation prompts" in text
    chain[-1]["metrics"]["heldout_judged"] = False
    assert "No part of the rewards says right or wrong" in card(chain)


def test_the_exported_stage_is_named_with_the_reason(run):
    assert export.chosen(run, []) == "stage sft, the last policy that finished; stage=NAME takes another"
    assert export.chosen(run, ["stage=base"]).startswith("stage base, as you named it")


def test_an_export_samples_as_the_run_did_and_as_nothing_of_the_base_says(run, tmp_path):
    from transformers import GenerationConfig

    place = tmp_path / "model"
    place.mkdir()
    base = {"eos_token_id": [5, 2], "repetition_penalty": 1.1, "no_repeat_ngram_size": 3, "typical_p": 0.9, "top_k": 20}
    (place / "generation_config.json").write_text(json.dumps(base))
    export._generation_config(place, export.lineage(run, "sft")[-1]["config"]["sampling"])
    config = GenerationConfig.from_pretrained(place)
    assert config.eos_token_id == [5, 2] and (config.repetition_penalty, config.min_p, config.top_k) == (1.0, 0.0, 0)
    assert not config.no_repeat_ngram_size and config.typical_p in (None, 1.0)


def test_the_card_says_what_the_chat_template_was_given(run):
    chain = export.lineage(run, "sft")
    assert "chat template" not in card(chain)
    chain[-1]["config"]["prompts"]["chat_kwargs"] = {"enable_thinking": False}
    assert '- The chat template was given `{"enable_thinking": false}`' in card(chain)


def test_a_stage_that_was_altered_or_whose_parent_was_remade_is_not_exported(run):
    manifest = run / "base" / "manifest.json"
    whole = manifest.read_text()
    manifest.write_text(whole.replace('"outputs": {', '"outputs": {"x": "0",', 1))
    with pytest.raises(ConfigError, match="base: remade or removed since 'sft' was built on it"):
        export.export(run, ["stage=sft"])
    manifest.write_text(whole)
    (run / "sft" / "model" / "config.json").write_text("{}")
    with pytest.raises(LineageError, match=r"config\.json: changed since the stage wrote it"):
        export.export(run, ["stage=sft"])
    assert not (run / "export").exists()


def test_an_export_replaces_an_earlier_one_and_nothing_else(run, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    export.export(run, [f"to={own}"])
    export.export(run, [f"to={own}"])
    kept = tmp_path / "models" / "precious.txt"
    kept.parent.mkdir()
    kept.write_text("years of work")
    for place in (kept.parent, kept):
        with pytest.raises(ConfigError, match="holds something else than an export"):
            export.export(run, [f"to={place}"])
    assert kept.read_text() == "years of work"


@pytest.mark.parametrize(
    ("words", "told"),
    [(["stage=sftt"], "did you mean 'sft'"), (["stag=sft"], "did you mean 'stage'"), (["sft"], "expected key=value")],
)
def test_a_mistyped_option_is_reported(run, words, told):
    with pytest.raises(ConfigError, match=told):
        export.export(run, words)


def test_pushing_needs_an_export_and_a_repository(run):
    with pytest.raises(ConfigError, match="repo=me/my-model"):
        export.push(run, [])
    with pytest.raises(ConfigError, match="not exported yet"):
        export.push(run, ["repo=me/x"])


@pytest.mark.parametrize("repo", ["me/a b", "a/b/c"])
def test_a_name_that_the_hub_would_not_take_is_reported_in_one_line(run, repo):
    export.export(run, [])
    with pytest.raises(ConfigError, match=f"^push: repo={repo}: .*Repo id") as error:
        export.push(run, [f"repo={repo}"])
    assert "\n" not in str(error.value)


def test_the_server_gets_the_export_where_there_is_one(run):
    before = export.serve_command(run, ["port=8001", "max_model_len=64"])
    assert str(run / "sft" / "model") in before and before[-4:] == ["--port", "8001", "--max-model-len", "64"]
    export.export(run, [])
    assert str(run / "export") in export.serve_command(run, [])


def test_an_export_of_what_was_trained_again_since_is_not_handed_out(run):
    export.export(run, [])
    path = run / "sft" / "manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "wall_s": 7.0}))
    assert export.newest(run) == run / "export", "made slower, but the same"
    path.write_text(json.dumps({**manifest, "outputs": {**manifest["outputs"], "model/model.safetensors": "0"}}))
    for hand_out in (
        lambda: export.serve_command(run, []),
        lambda: export.harness_command(run, ["tasks=gsm8k"]),
        lambda: export.push(run, ["repo=me/x"]),
    ):
        with pytest.raises(ConfigError, match=f"of a 'sft' trained again since; make export RUN={run}"):
            hand_out()
    assert export.serve_command(run, ["stage=sft"]), "a stage that is named needs no export"


def test_the_harness_is_asked_for_the_tasks_on_what_the_run_hands_out(run):
    command = export.harness_command(run, ["tasks=gsm8k", "num_fewshot=5", "apply_chat_template="])
    assert command[command.index("--model_args") + 1] == f"pretrained={run / 'sft' / 'model'}"
    assert command[-5:] == ["--tasks", "gsm8k", "--num_fewshot", "5", "--apply_chat_template"]
    with pytest.raises(ConfigError, match="name the tasks"):
        export.harness_command(run, [])


def test_nothing_that_is_published_names_a_local_path(run, tmp_path):
    for name in ("base", "sft"):
        path = run / name / "manifest.json"
        record = json.loads(path.read_text())
        record["config"]["model"] |= {"path": f"{tmp_path}/models/mine", "tiny": None}
        record["config"]["prompts"]["path"] = f"{tmp_path}/rows.jsonl"
        record["inputs"] = {f"{tmp_path}/rows.jsonl": "0"}
        base = json.loads((run / "base/manifest.json").read_text())
        record["parents"] = {} if name == "base" else {"base": manifest_sha(base)}
        path.write_text(json.dumps(record))
    place = export.export(run, ["stage=sft"])
    for name in ("README.md", "lineage.json", "config.json", "tokenizer_config.json"):
        assert str(tmp_path) not in (place / name).read_text(), name
    text = (place / "README.md").read_text()
    assert "# sft of mine" in text and "base_model" not in text and "Data: rows.jsonl" in text
    assert export.exported(run) is not None, "the export still knows the stage it is of"
    (place / "README.md").write_text(text + f"\nTrained on {tmp_path}/rows.jsonl\n")
    with pytest.raises(ConfigError, match=r"README\.md holds the local path .*rows\.jsonl; remove it, or export again"):
        export.push(run, ["repo=me/x"])


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/home/me/models/qwen", "qwen"),
        ("/c/hub/models--Qwen--Qwen2.5-0.5B/snapshots/0a1b", "Qwen/Qwen2.5-0.5B"),
        ("./models/mine", "mine"),
        ("~/mine", "mine"),
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"),
    ],
)
def test_a_model_is_named_as_others_know_it(path, name):
    assert public_name(path) == name


def test_addresses_and_hub_ids_are_no_local_paths():
    assert local_paths("see https://host/a/b and Qwen/Qwen2 and runs/demo/sft, 1/2, </think> and a/b/c") == []
    assert local_paths("from /home/me/x.jsonl") == ["/home/me/x.jsonl"]
    assert without_local_paths({"/a/b/c.txt": ["a/b", "/with space/in it.txt", 3]}) == {
        "c.txt": ["a/b", "in it.txt", 3]
    }


def test_the_card_says_how_it_was_trained(run):
    chain = export.lineage(run, "sft")
    chain[-1]["config"]["stage"] = {
        "kind": "grpo", "method": "dapo", "credit": {"kind": "group"}, "loss": {"kind": "clip"}, "steps": 9,
        "kl": {"coef": 0.1, "where": "loss"}, "optimizer": {"learning_rate": 1e-6},
        "peft": {"r": 16, "target_modules": "all-linear"},
    }  # fmt: skip
    for words in ("method dapo", "KL 0.1 in the loss", "steps 9", "learning rate 1e-06", "LoRA r=16 on all-linear"):
        assert words in card(chain), words


# --- who can reach a server -------------------------------------------------------------------------------------------


def test_a_server_listens_on_this_machine_alone_unless_set_otherwise(run):
    command = export.serve_command(run, [])
    assert command[command.index("--host") + 1] == "127.0.0.1"
    command = export.serve_command(run, ["host=0.0.0.0"])
    assert command[command.index("--host") + 1] == "0.0.0.0" and command.count("--host") == 1


@pytest.mark.parametrize("port", ["abc", "0", "70000", ""])
def test_a_port_that_is_none_is_refused_before_the_server_starts(run, port):
    with pytest.raises(ConfigError, match=f"serve: port={port}: expected a whole number from 1 to 65535"):
        export.serve_command(run, [f"port={port}"])


def test_of_a_directory_of_several_seeds_one_is_to_be_named(tmp_path):
    (tmp_path / "seed-1" / "base").mkdir(parents=True)
    (tmp_path / "seed-1" / "base" / "manifest.json").write_text("{}")
    with pytest.raises(LineageError, match=r"holds one run per seed; .*seed-1$"):
        export.policy_stage(tmp_path, "grpo")


def test_a_rollout_server_on_another_interface_needs_a_key(run, monkeypatch):
    monkeypatch.delenv("WHETSTONE_SERVER_KEY", raising=False)
    assert "--middleware" not in export.serve_command(run, ["rollouts=true"])
    with pytest.raises(ConfigError, match="takes new weights from anybody who reaches it; set WHETSTONE_SERVER_KEY"):
        export.serve_command(run, ["rollouts=true", "host=0.0.0.0"])
    monkeypatch.setenv("WHETSTONE_SERVER_KEY", "sesame")
    command = export.serve_command(run, ["rollouts=true", "host=0.0.0.0"])
    assert command[command.index("--middleware") + 1] == "pipeline.generation.server_key.RequireKey"
    assert "sesame" not in command
