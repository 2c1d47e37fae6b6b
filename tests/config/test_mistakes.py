"""Names from other libraries, keys in the wrong block and single values: what a user meant is found or named."""

from pathlib import Path

import pytest
import yaml

from pipeline.config import yaml_reader
from pipeline.config.load import ConfigError, load
from pipeline.config.mistakes import SYNONYMS, near_path, nearest, without_followups
from pipeline.config.yaml_reader import read_yaml

DEMO = str(Path(__file__).parents[2] / "configs/demo/pipeline.yaml")


def reported(*words: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(DEMO, list(words))
    return [line.removeprefix(f"{DEMO}: ") for line in caught.value.mistakes]


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("grpo.lr=1", "grpo: unknown key 'lr'; it is grpo.optimizer.learning_rate here"),
        ("grpo.learning_rate=1", "grpo: unknown key 'learning_rate'; it is grpo.optimizer.learning_rate here"),
        ("sft.lr=1", "sft: unknown key 'lr'; it is sft.trainer.learning_rate here"),
        ("ppo.critic.lr=1", "ppo.critic: unknown key 'lr'; it is ppo.critic.learning_rate here"),
        ("sft.trainer.lr=1", "sft.trainer: unknown key 'lr'; it is learning_rate here"),
        ("grpo.num_generations=4", "grpo: unknown key 'num_generations'; it is grpo.samples here"),
        ("grpo.group_size=4", "grpo: unknown key 'group_size'; it is grpo.samples here"),
        ("grpo.beta=0.1", "grpo: unknown key 'beta'; it is grpo.kl.coef here"),
        ("grpo.kl.beta=0.1", "grpo.kl: unknown key 'beta'; it is grpo.kl.coef here"),
        ("grpo.kl_coef=0.1", "grpo: unknown key 'kl_coef'; it is grpo.kl.coef here"),
        ("grpo.batch_size=4", "grpo: unknown key 'batch_size'; it is grpo.prompts here"),
        ("sft.batch_size=4", "sft: unknown key 'batch_size'; it is sft.trainer.per_device_train_batch_size here"),
        ("grpo.max_new_tokens=9", "grpo: unknown key 'max_new_tokens'; it is sampling.max_tokens here"),
        ("sampling.max_new_tokens=9", "sampling: unknown key 'max_new_tokens'; it is sampling.max_tokens here"),
        ("max_completion_length=9", "unknown key 'max_completion_length'; it is sampling.max_tokens here"),
        ("grpo.epsilon_low=0.1", "grpo: unknown key 'epsilon_low'; it is grpo.loss.clip_low here"),
        ("grpo.epsilon=0.1", "grpo: unknown key 'epsilon'; it is grpo.loss.clip_low here, and grpo.loss.clip_high for "
         "the upper side: a symmetric range needs both"),
        ("grpo.per_device_train_batch_size=8", "grpo: unknown key 'per_device_train_batch_size'; it is grpo.prompts "
         "here, which counts prompts per step over all devices, each with grpo.samples completions; TRL's "
         "per_device_train_batch_size counts completions on one device"),
        ("reward_funcs=x", "unknown key 'reward_funcs'; it is rewards here"),
        ("grpo.reward_funcs=x", "grpo: unknown key 'reward_funcs'; it is grpo.reward here"),
        ("grpo.trainer={learning_rate: 1}", "grpo: unknown key 'trainer'; this stage is not TRL's trainer: its keys "
         "are grpo.optimizer.learning_rate, grpo.steps and so on, as listed by: whetstone config grpo"),
        ("trackers=none", "trackers: no tracker is [], as in trackers: [] or trackers=[] on the command line"),
        ("trackers=off", "trackers: no tracker is [], as in trackers: [] or trackers=[] on the command line"),
        ("grpo.loss.epsilon_high=0.1", "grpo.loss: unknown key 'epsilon_high'; it is grpo.loss.clip_high here"),
        ("grpo.lora={r: 4}", "grpo: unknown key 'lora'; it is grpo.peft here"),
        ("grpo.rank=4", "grpo: unknown key 'rank'; it is grpo.peft here"),
        ("sft.peft={rank: 4}", "sft.peft: unknown key 'rank'; it is r here"),
        ("lr=1", "unknown key 'lr'; it belongs in a stage: ppo.optimizer.learning_rate"),
        ("model.name=x", "model: unknown key 'name'; it is model.path here"),
        ("name=x", "unknown key 'name'; it is run here"),
        ("grpo.name=x", "grpo: unknown key 'name'; the keys are listed by: whetstone config grpo"),
        ("actor_rollout_ref.rollout.n=8", "unknown key 'actor_rollout_ref'; the keys are listed by: whetstone config"),
        ("model.model_name_or_path=x", "model: unknown key 'model_name_or_path'; it is model.path here"),
        ("output_dir=x", "unknown key 'output_dir'; it is runs_dir here"),
    ],
)  # fmt: skip
def test_a_name_of_another_library_points_to_our_key(word, line):
    assert reported(word) == [line]


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("a.yaml", "", "a.yaml: the file is empty; a YAML begins with keys, such as run: NAME"),
        ("a.yaml", "- x\n", "a.yaml: expected keys at the top, such as run: NAME, found a list"),
        ("a.yaml", "words", "a.yaml: expected keys at the top, such as run: NAME, found 'words'"),
        ("a.yaml", "run: a\n---\nrun: b\n", "a.yaml:2: a second document begins here; a YAML of ours is one, so remove "
         "the line ---"),
        ("a.yaml", "model: {tiny: {}\nrun: a", "a.yaml:2: in the block of 'model': expected ',' or '}', but got text"),
        ("a.yaml", '{"a": 1}\n{"a": 2}\n', "a.yaml:2: text follows the end of the YAML; keys, such as run: NAME, begin "
         "their lines"),
        ("q.jsonl", "{}", "q.jsonl is a file of rows, no YAML; give a YAML that has it as prompts: {path: q.jsonl}"),
        ("runs/r/base/manifest.json", "{}", "runs/r is the directory of a run; give the YAML, as "
         "configs/demo/pipeline.yaml"),
    ],
)  # fmt: skip
def test_what_is_no_yaml_is_said_without_words_of_the_parser(name, text, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_yaml("runs/r" if name.startswith("runs") else name)
    assert caught.value.mistakes == [line]


def test_a_key_whose_value_was_refused_is_not_called_empty_as_well():
    first = [
        "rewards.exact: expected a block of keys, found 1.0",
        "stages: no block for stage 'x'",
        "prompts.rows: bad",
    ]
    later = ["rewards: name at least one part; verifiers: exact", "stages: name at least one stage to run",
             "prompts: give path (JSONL) or procedural", "rewards.exact: other"]  # fmt: skip
    assert without_followups(later, first) == later[2:]


@pytest.mark.parametrize(
    ("word", "line"),
    [
        ("groups={dynamic: true}", "unknown key 'groups'; groups belongs in a stage: ppo.groups"),
        ("grpo.clip_high=0.3", "grpo: unknown key 'clip_high'; clip_high belongs in grpo.loss: grpo.loss.clip_high"),
        (
            "grpo.temperature=1",
            "grpo: unknown key 'temperature'; temperature belongs in sampling: sampling.temperature",
        ),
        ("sampling.seed=1", "sampling: unknown key 'seed'; seed belongs in the top level: seed"),
    ],
)
def test_a_key_in_the_wrong_block_is_reported_its_block(word, line):
    assert reported(word) == [line]


@pytest.mark.parametrize(
    ("wanted", "there", "offered"),
    [
        ("ad.jsonl", "add.jsonl", True),
        ("ad.jsonl", "other.jsonl", False),
        ("nothere.yaml", "mist_noverif.yaml", False),  # alike only in .yaml and some letters
        ("pipelin.yaml", "pipeline.yaml", True),
        ("Model", "model", True),
        ("rows.json", "rows.jsonl", True),
        ("a.jsonl", "b.jsonl", False),
    ],
)
def test_only_a_file_of_a_near_name_is_offered(tmp_path, wanted, there, offered):
    (tmp_path / there).touch()
    assert near_path(tmp_path / wanted) == (f"; did you mean '{tmp_path / there}'?" if offered else "")


def test_no_file_is_offered_of_a_directory_that_does_not_exist(tmp_path):
    assert near_path(tmp_path / "absent" / "x.jsonl") == ""


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("run: a\nprompts:\n  path: x: y\n", "3: in the block of 'prompts': mapping values are not allowed here"),
        (
            "run: a\nmodel:\n\tpath: x\n",
            "3: in the block of 'model': found character '\\t' that cannot start any token",
        ),
        ("run: a\nmodel: {path: x\nseed: 1\n", "3: in the block of 'model': expected ',' or '}', but got ':'"),
        ("run: a\nrun: b\n", "2: key 'run' is given twice"),
        ("run: a\nsft:\n  policy: base\n  policy: sft\n", "4: in the block of 'sft': key 'policy' is given twice"),
    ],
)
def test_broken_yaml_names_the_block_that_it_is_in(tmp_path, text, line):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert caught.value.mistakes == [f"{path}:{line}"]


def test_at_most_five_names_are_offered_and_the_likeliest_among_them():
    many = [f"key_{n}" for n in range(40)] + ["qxx", "qyy"]
    line = nearest("q", many)
    assert line == "; nearest of 42: qxx, qyy"  # names that are not alike are left out
    assert nearest("ke", many).count(",") == 4 and nearest("zzz", many) == ""
    assert nearest("q", ["b", "a"]) == "; have: a, b"
    assert nearest("dpo", ["dpo"]) == ""


@pytest.mark.parametrize("words", [["stages=[base, dop]"], ["stages=[base, dop]", "dop={policy: base}"]])
def test_an_unknown_kind_in_stages_is_never_offered_itself(words):
    (line,) = reported(*words)
    assert line.startswith("stages:") and "'dop'" in line and "did you mean 'dop'" not in line


def test_an_unknown_stage_with_a_block_is_reported_how_to_say_its_kind():
    (line,) = reported("stages=[base, mine]", "mine={policy: base}")
    assert "'mine' is no kind of stage" in line and "mine: {kind: sft}" in line


def test_a_single_value_stands_for_a_list_of_one():
    cfg = load(DEMO, ["stages=base", "trackers=trackio", "verifier_dirs=mine", "feedme.pool=sft",
                      "feedme.filters=dedup", "conditioned.edges=0.5", "conditioned.attributes={a: {edges: 0.25}}",
                      "evaluate.policies=sft"])  # fmt: skip
    assert (cfg.stages, cfg.trackers, cfg.verifier_dirs) == (["base"], ["trackio"], ["mine"])
    assert cfg.block("feedme").pool == ["sft"] and cfg.block("feedme").filters == ["dedup"]
    assert cfg.block("conditioned").edges == [0.5] and cfg.block("conditioned").attributes["a"].edges == [0.25]
    assert cfg.block("evaluate").policies == ["sft"]
    assert load(DEMO, ["feedme.filters={threshold: 0.5}"]).block("feedme").filters == [{"threshold": 0.5}]


@pytest.mark.parametrize(
    ("word", "line"),
    [
        (
            "stages=base, grpo",
            "stages: expected a list of stage names, as stages: [base, sft, grpo], found 'base, grpo'",
        ),
        ("stages=[base,base]", "stages: 'base' is listed twice; give the second a block and name of its own"),
        (
            "rewards=gridworld",
            "rewards: expected a block of keys, found 'gridworld'; write rewards: {gridworld: {weight: 1.0}}",
        ),
        (
            "rewards=[exact, length]",
            "rewards: expected a block of keys, found ['exact', 'length']; write rewards: "
            "{exact: {weight: 1.0}, length: {weight: 1.0}}",
        ),
        (
            "rewards.gridworld=0.5",
            "rewards.gridworld: expected a block of keys, found 0.5; write rewards: {gridworld: {weight: 0.5}}",
        ),
        (
            "rewards.gridworld=",
            "rewards.gridworld: expected a block of keys, found nothing; write rewards: {gridworld: {weight: 1.0}}",
        ),
        ("model=Qwen/Qwen3", "model: expected a block of keys, found 'Qwen/Qwen3'; write model: {path: Qwen/Qwen3}"),
        ("model.tiny=x", "model.tiny: expected a block of keys, found 'x'"),
        ("run=2024-01-01", "run: expected text, found the date 2024-01-01; put it in quotes"),
        ("run=007", "run: expected text, found the number 7; put it in quotes"),
        ("run=true", "run: expected text, found true; put it in quotes"),
        ("run=", "run: expected text, found nothing"),
        ("sft.trainer.learning_rate=", "sft.trainer.learning_rate: expected a finite number, found nothing"),
        ("sft.trainer.zzz=1", "sft.trainer: unknown key 'zzz'; its keys are the fields of SFTConfig"),
        ("seed=", "seed: input should be a valid integer, found nothing"),
        ("grpo.credit=gae", "grpo.credit: expected a block of keys, found 'gae'"),
        ("grpo.credit.kind=gea", "grpo.credit.kind: no choice 'gea'; did you mean 'gae'?"),
        ("grpo.method=dapoo", "grpo.method: no choice 'dapoo'; did you mean 'dapo'?"),
        ("conditioned.edges={a: 1}", "conditioned.edges: expected a list, found {'a': 1}"),
        ("judge={kind: compare}", "judge.methods: missing"),
        ("grpo.optimizer=5", "grpo.optimizer: expected a block of keys, found 5"),
    ],
)
def test_no_line_speaks_of_classes_or_of_the_validation_library(word, line):
    assert reported(word) == [line]


def test_every_synonym_leads_to_a_key_that_some_block_has():
    from pipeline.config.load import _paths
    from pipeline.config.registry import KINDS

    everywhere = {path for kind in KINDS for path in _paths(kind)}
    for name, candidates in SYNONYMS.items():
        for ours in candidates:
            assert ours[1:] in _paths("") if ours[0] == "/" else ours in everywhere, (name, ours)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["grpo.keep=best"], "grpo.keep: best chooses among evaluation passes; give evaluate_every"),
        (["grpo.keep=best", "grpo.evaluate_every=2"], "grpo.keep: best chooses by prompts that are neither trained on"),
        (["feedme.keep=best"], "feedme.keep: best chooses by prompts that are neither trained on nor held out"),
        (["grpo.patience=2"], "grpo.patience: stops by the passes that keep: best compares; add keep: best"),
        (["grpo.keep_by=reward"], "grpo.keep_by: chooses for keep: best; add keep: best"),
        (["prompts.heldout=0.5", "prompts.validation=0.5"], "prompts.validation: heldout 0.5 and validation 0.5 leave"),
    ],
)
def test_a_choice_among_steps_that_cannot_be_made_is_named(words, line):
    assert any(found.startswith(line) for found in reported(*words))


def test_keep_best_with_its_split_is_accepted():
    given = ["grpo.keep=best", "grpo.evaluate_every=2", "grpo.patience=3", "prompts.validation=0.1", "feedme.keep=best"]
    assert load(DEMO, given).block("grpo").patience == 3


def test_either_parser_reads_every_config_alike():
    paths = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))
    assert len(paths) > 20
    for path in paths:
        text = path.read_text()
        assert yaml.load(text, yaml_reader.Loader) == yaml_reader.load_yaml(text), path


def test_a_tab_is_reported_wherever_it_stands(tmp_path):
    """libyaml takes this one for the space before a comment."""
    path = tmp_path / "c.yaml"
    path.write_text("run: a\nseed: 1\t# the first\n")
    assert yaml.load(path.read_text(), yaml_reader.QuickLoader) == {"run": "a", "seed": 1}
    with pytest.raises(ConfigError) as caught:
        read_yaml(path)
    assert caught.value.mistakes == [f"{path}:2: found character '\\t' that cannot start any token"]
