"""Files as other tools write them are recognised by their columns, planned and trained, each on a few rows of its own.

What a row must say is worked out here by hand from how the row was written: a shelf with i + 3 and 2 i + 1 books.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline import plan
from pipeline.__main__ import main
from pipeline.config.schema import Model, Prompts, Tiny
from pipeline.data import encoding, formats, prompts
from pipeline.models import models
from pipeline.plan import one_run

FILES = Path(__file__).parents[1] / "corpora" / "formats"
CHARACTERS = "".join(map(chr, range(32, 127))) + "\n"
TEMPLATE = (
    "{% if tools %}[{{ tools | tojson }}]{% endif %}{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}{% endfor %}"
    "{% if m.role == 'assistant' %}<eos>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
QUESTION = "A shelf holds 4 books and 3 more are added. How many books are on it?"  # of row 2, i = 1: 7 books
USER = f"user: {QUESTION}"
CALL = '<call>{"name": "add", "arguments": {"a": 4, "b": 3}}'

# file -> (format, prompt of row 2, the text trained on or None, gold or None)
ROWS: dict[str, tuple[str | None, str, str | None, str | None]] = {
    "alpaca.jsonl": ("alpaca", f"Count the books.\n{QUESTION}", "7 books.<eos>", None),
    "alpaca.json": ("alpaca", f"Count the books.\n{QUESTION}", "7 books.<eos>", None),
    "alpaca_system_history.jsonl": (
        "alpaca", f"system: Count with care.\nuser: Can you count?\nassistant: Yes.\n{USER}", "7 books.<eos>", None,
    ),
    "axolotl_segments.jsonl": ("axolotl_segments", f"{QUESTION}\n", "7 books.<eos>", None),
    "axolotl_train_flags.jsonl": (None, f"{USER}\nassistant: Let me see.\nuser: And?", "7 books.<eos>", None),
    "nemo_messages.jsonl": (None, f"system: Count with care.\n{USER}", "7 books.<eos>", None),
    "nemo_response.jsonl": ("nemo_response", QUESTION, "7<eos>", "7"),
    "nemo_preference.jsonl": ("nemo_preference", USER, None, None),
    "open_instruct_rlvr.jsonl": ("tulu_rlvr", USER, None, "7"),
    "open_instruct_list_gold.jsonl": ("tulu_rlvr", USER, None, "7"),
    "open_instruct_ifeval.jsonl": (
        "tulu_rlvr", f"{USER} Write in small letters and without commas.", None, None,
    ),
    "openai_chat.jsonl": (None, f"user: Can you count?\nassistant: Yes.\n{USER}", "7 books.<eos>", None),
    "openai_preference.jsonl": ("openai_preference", USER, None, None),
    "openai_rft.jsonl": (
        "openai_rft", f"developer: Answer with a number.\nuser: Can you count?\nassistant: Yes.\n{USER}", None, "7",
    ),
    "openrlhf_label.jsonl": ("openrlhf", QUESTION, None, "7"),
    "openrlhf_context.jsonl": ("openrlhf", USER, None, "7"),
    "openrlhf_sft.jsonl": ("openrlhf", USER, "7 books.<eos>", None),
    "prime_question.jsonl": ("prime", QUESTION, None, "7"),
    "prime_prompt.jsonl": ("prime", f"system: Put the number in a box.\n{USER}", None, "7"),
    "sharegpt.jsonl": ("sharegpt", f"system: Count.\n{USER}", "7 books.<eos>", None),
    "sharegpt_tools.jsonl": (
        "sharegpt", f'{USER}\nassistant:  {{"arguments": {{"a": 4, "b": 3}}, "name": "add"}}\ntool: 7',
        f"{CALL}<eos>7 books.<eos>", None,
    ),
    "skyrl.jsonl": ("skyrl", USER, None, "7"),
    "slime.jsonl": ("slime", USER, None, "7"),
    "trl_explicit_preference.jsonl": (None, USER, None, None),
    "trl_implicit_preference.jsonl": ("trl_implicit_preference", USER, None, None),
    "trl_implicit_text.jsonl": ("trl_implicit_preference", f"{QUESTION} ", None, None),
    "trl_kto.jsonl": ("trl_kto", USER, "7 books.<eos>", None),
    "trl_prompt_completion.jsonl": (None, USER, "7 books.<eos>", None),
    "trl_prompt_only.jsonl": (None, USER, None, "7"),
    "trl_stepwise.jsonl": ("trl_stepwise", QUESTION, "4 plus 3.\n7 books.<eos>", None),
    "trl_text.jsonl": ("trl_text", f"{QUESTION} 7 books.", f"{QUESTION} 7 books.<eos>"[1:], None),
    "trl_tools.jsonl": (
        None, f'{USER}\nassistant:  {{"arguments": {{"a": 4, "b": 3}}, "name": "add"}}\ntool: 7',
        f"{CALL}<eos>7 books.<eos>", None,
    ),
    "verl.parquet": ("verl", USER, None, "7"),
}  # fmt: skip
PAIRS = [name for name in ROWS if "preference" in name or name == "trl_implicit_text.jsonl"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    place = tmp_path_factory.mktemp("tiny")
    models.make_tiny(Tiny(characters=CHARACTERS), place, seed=1)
    out = models.load_tokenizer(str(place), Model())
    out.chat_template = TEMPLATE
    return out


def trained_text(row, source, tokenizer):
    found = encoding.Demonstrations([row], source, tokenizer, stop_token_ids=frozenset({tokenizer.eos_token_id}))
    ids = [i for one in found for i, flag in zip(one.completion_ids, one.trained, strict=True) if flag]
    return tokenizer.decode(ids)


def test_every_file_of_the_folder_is_tried():
    assert {path.name for path in FILES.iterdir()} == set(ROWS)


@pytest.mark.parametrize("name", ROWS)
def test_a_file_is_recognised_by_its_columns_and_says_what_it_said(name, tokenizer):
    form, prompt, trained, gold = ROWS[name]
    source = Prompts(path=str(FILES / name))
    raw = prompts.load_rows(Prompts(path=str(FILES / name), format="plain"), seed=1)
    assert formats.recognised(raw) == form
    row = prompts.load_rows(source, seed=1)[1]
    assert prompts.prompt_text(row, source) == prompt
    if gold is not None:
        assert prompts.task_of(row, source)["gold"] == gold
    if trained is not None:
        assert trained_text(row, source, tokenizer) == trained
    if name in PAIRS:
        stop_token_ids = frozenset({tokenizer.eos_token_id})
        ids = encoding.pair_of(row, source, tokenizer, stop_token_ids=stop_token_ids, number=2, where="prompts")
        assert [tokenizer.decode(side).strip() for side in ids[1:]] == ["7 books.<eos>", "A lot.<eos>"]
        assert tokenizer.decode(ids[0]).count(QUESTION) == 1


@pytest.mark.parametrize("name", ROWS)
def test_a_format_named_in_the_yaml_gives_the_rows_that_its_guess_gives(name):
    form = ROWS[name][0]
    guessed = prompts.load_rows(Prompts(path=str(FILES / name)), seed=1)
    assert prompts.load_rows(Prompts(path=str(FILES / name), format=form or "plain"), seed=1) == guessed


def test_columns_that_the_yaml_names_itself_are_left_alone(tmp_path):
    source = Prompts(path=str(FILES / "verl.parquet"), prompt="extra_info.question", format="plain",
                     task={"gold": "reward_model.ground_truth"})  # fmt: skip
    row = prompts.load_rows(source, seed=1)[1]
    assert prompts.prompt_text(row, source) == QUESTION and prompts.task_of(row, source) == {"gold": "7"}
    assert formats.recognised([{"prompt": "a", "completion": "b", "gold": "1"}]) is None
    template = Prompts(path=str(FILES / "prime_question.jsonl"), template="Q: {question}")
    assert "prompt" not in prompts.load_rows(template, seed=1)[0]


def test_rows_that_are_labelled_as_bad_are_never_imitated_and_counted(tokenizer):
    for name, good in (("trl_kto.jsonl", 6), ("trl_stepwise.jsonl", 8)):
        source = Prompts(path=str(FILES / name))
        rows = prompts.load_rows(source, seed=1)
        found = encoding.Demonstrations(rows, source, tokenizer, stop_token_ids=frozenset({tokenizer.eos_token_id}))
        assert len(found) == good and f"{12 - good} rows labelled as bad" in str(found.report)
        assert all("A lot." not in tokenizer.decode(one.completion_ids) for one in found)


def config(tmp_path, name, **more):
    pair, (_, _, trained, gold) = name in PAIRS, ROWS[name]
    kinds = ["reward_model"] if pair else (["sft"] if trained else []) + (["grpo"] if gold or not trained else [])
    own = {"data": {"path": str(FILES / name), "heldout": 0.2}} if pair or name == "trl_text.jsonl" else {}
    trainer = {"max_steps": 2, "per_device_train_batch_size": 4, "max_length": 512}
    raw: dict[str, Any] = {
        "run": "x", "runs_dir": str(tmp_path), "stages": ["base", *kinds],
        "model": {"tiny": {"characters": CHARACTERS, "max_position_embeddings": 640}, "chat_template": TEMPLATE},
        "prompts": {"procedural": "gridworld", "rows": 40} if own else {"path": str(FILES / name), "heldout": 0.3},
        "rewards": {"gridworld": {}} if own else {"chance": {"kind": "random", "weight": 1.0, "pass_rate": 0.5}},
        "generate": {"backend": "transformers"}, "sampling": {"max_tokens": 8},
        "evaluation": {"samples": 1, "prompts": 2, "k": 1},
    }  # fmt: skip
    if gold:
        raw["rewards"]["math_answer"] = {"weight": 1.0}
    if "open_instruct" in name:
        raw["rewards"]["ruled"] = {"kind": "verifier", "verifier": "by_task", "weight": 1.0}
    if "sft" in kinds:
        raw["sft"] = {"policy": "base", "trainer": trainer, **own}
    if pair:
        raw["reward_model"] = {"policy": "base", "trainer": trainer, **own}
    if "grpo" in kinds:
        raw["grpo"] = {"policy": "base", "steps": 2, "prompts": 2, "samples": 4, "monitor": None,
                       "alarms": {"no_signal_steps": 50}}  # fmt: skip
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw | more))
    return path


@pytest.mark.parametrize("name", ROWS)
def test_a_file_plans_clean_with_an_example_of_what_is_trained_on(name, tmp_path):
    made = one_run.make(plan.sound(str(config(tmp_path, name)), []), None)
    trained = "".join(text for tokens in made.examples.values() for text, flag in tokens if flag)
    expected = ROWS[name][2]
    assert made.data.train_prompts > 0 and ("books." in trained) == (name in PAIRS or "books." in str(expected))


@pytest.mark.stages
@pytest.mark.parametrize("name", ROWS)
def test_a_file_trains_two_steps(name, tmp_path, no_engine_left_behind):
    path = config(tmp_path, name)
    assert main(["run", str(path)]) == 0
    done = [json.loads(p.read_text()) for p in tmp_path.glob("x/*/manifest.json")]
    assert {m["status"] for m in done} == {"complete"} and len(done) > 1
