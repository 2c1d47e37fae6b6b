"""whetstone new MODEL FILE: look at the rows and write a commented YAML that plans clean.

    whetstone new Qwen/Qwen2.5-0.5B-Instruct rows.jsonl to=mine.yaml

What is missing is asked on a terminal. The YAML is written only if the checks of `plan` find no mistake in it.
"""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cli import other_columns
from pipeline.cli.commands import own_and_rest
from pipeline.cli.pick_verifier import Choice, pick
from pipeline.config.load import ConfigError
from pipeline.config.schema import Prompts
from pipeline.data import data_files, formats, prompts
from pipeline.data.prompt_columns import prompt_value
from pipeline.data.sample_pool import SCORES
from pipeline.models import families, model_dir
from pipeline.plan import sound

LOOKED_AT = 500  # rows that decide
QUESTIONS = ("question", "instruction", "input", "problem", "query", "text")
FINAL_ANSWER = "Reason step by step and put the final answer in \\boxed{}."
LORA_FROM = 1_500_000_000  # parameters from which all of the optimizer's state is too much for one GPU


@dataclass(frozen=True, slots=True)
class Rows:
    """What the rows of a file hold."""

    source: Prompts
    form: str | None
    count: int
    prompts: int
    pairs: bool
    demonstrations: bool
    best_rating: float | None  # of rows that people rated; None: they hold no ratings
    chat: bool
    choice: Choice
    note: str | None = None  # what the user should add by hand


def new(words: Sequence[str]) -> Path:
    """Write the YAML and return its path. Raises ConfigError; nothing is then written."""
    own, rest = own_and_rest("new", words)
    if len(rest) > 2:
        raise ConfigError([f"new: {rest[2]!r} is one word too many; it takes a model, a file and to=mine.yaml"])
    model = rest[0] if rest else asked("Model (directory or Hub id)", "MODEL")
    file = rest[1] if len(rest) > 1 else asked("File with your rows (JSONL, JSON or Parquet)", "FILE")
    target = Path(own.get("to") or f"{slug(Path(file).name.partition('.')[0])}.yaml")
    if target.exists():
        raise ConfigError([f"new: {target} exists; name another file, as to=mine.yaml"])
    if model == "tiny" and not Path(model).exists():
        raise ConfigError(["new: `tiny` is not the name of a model; for one with random weights copy the YAML of "
                           "docs/tasks.md, section `A first run`, and name your file under prompts.path"])  # fmt: skip
    fault = model_dir.fault(model)
    if fault:
        raise ConfigError([f"new: {fault}"])
    try:
        rows = looked_at(file, model)
    except ConfigError as exc:  # of the readers of data, which name a key: here none is set yet
        raise ConfigError([re.sub(r"^new\.\w+:", "new:", line) for line in exc.mistakes]) from None
    text = yaml_text(model, rows, own.get("run") or slug(target.stem), shlex.quote(str(target)))
    return checked(target, text, rows)


def asked(question: str, name: str) -> str:
    """The answer typed at a terminal. Raises ConfigError where there is none to ask at."""
    if not sys.stdin.isatty():
        raise ConfigError([f"new: no {name}; as in: whetstone new Qwen/Qwen2.5-0.5B-Instruct rows.jsonl"])
    answer = input(f"{question}: ").strip()
    if not answer:
        raise ConfigError([f"new: no {name}"])
    return answer


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9.-]+", "-", text.lower()).strip("-.") or "run"


def checked(target: Path, text: str, rows: Rows) -> Path:
    """Write the YAML if the checks of a plan find no mistake. Raises ConfigError with what they find."""
    draft = target.with_name(f".{target.name}.draft")
    draft.write_text(text, encoding="utf-8")
    try:
        sound(str(draft), [])
        draft.replace(target)
    except ConfigError as exc:
        found = [line.replace(str(draft), str(target)) for line in exc.mistakes]
        raise ConfigError([f"new: nothing was written, because the plan would not be clean: {line}" for line in found]
                          ) from None  # fmt: skip
    finally:
        draft.unlink(missing_ok=True)
    what = rows.choice.verifier or "no verifier"
    print(f"{target}: {rows.count} rows, {rows.prompts} prompts; {what}: {rows.choice.why}")
    if rows.note:
        print(f"{target}: {rows.note}", file=sys.stderr)
    return target


# --- the rows ---------------------------------------------------------------------------------------------------------


def looked_at(file: str, model: str) -> Rows:
    """What the file holds. Raises ConfigError where it cannot be read or holds no prompt."""
    raw = data_files.read_rows(file, "train", None, "new")
    if not raw:
        raise ConfigError([f"new: {file} has no rows"])
    form = None if plain_questions(raw) else formats.recognised(raw)
    source = Prompts(path=file, format=form or formats.PLAIN)
    source.prompt = source.prompt if form else prompt_column(raw[0])
    rows = prompts.load_rows(source, seed=1, where="new")
    some = rows[:LOOKED_AT]
    pairs = all("chosen" in row and "rejected" in row for row in some)
    if not pairs:
        other_columns.check_prompts(some, source, QUESTIONS)
    texts = {prompts.prompt_text(row, source, number=n, where="new") for n, row in enumerate(rows, 1)}
    tasks = [prompts.task_of(row, source, number=n) for n, row in enumerate(some, 1)]
    choice = Choice("", "the rows are pairs of a better and a worse answer") if pairs else pick(tasks)
    if not pairs and not choice.verifier and not any(prompts.has_completion(row, source) for row in rows):
        choice = other_columns.learn_from(rows, tasks, source)
    other_columns.check_choices(tasks, choice, source.path)
    source.task = dict(choice.task) if choice.task else None
    demonstrations = any(demonstrates(row, source) for row in some)
    if source.template is None and source.prompt.lower() in QUESTIONS and not demonstrations:
        source.template = template_for(choice, source.prompt, texts)
    texts = {prompts.prompt_text(row, source) for row in rows}
    source.heldout = share_for(texts)
    note = other_columns.choices_missing(
        tasks, choice, [prompts.prompt_text(row, source) for row in some], source.prompt
    )
    return Rows(source, form, len(rows), len(texts), pairs, demonstrations, best_rating(some),
                wants_chat(some, source, model), choice, note)  # fmt: skip


def plain_questions(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the rows are questions with one answer each and nothing that a format would add, such as a task."""
    return all(
        isinstance(row.get("question"), str)
        and isinstance(row.get("answer"), str | int | float | Mapping)
        and not {"prompt", "task", "info", "example_id"} & row.keys()
        and "####" not in str(row["answer"])  # GSM8K's: a solution, and behind the mark the answer
        for row in rows
    )


def template_for(choice: Choice, column: str, texts: set[str]) -> str | None:
    """A template that asks for the final answer where the verifier looks for one and the questions say nothing of it.

    Without it a base model is not told how to end, and few of its answers can be read.
    """
    looks = choice.verifier == "math_answer" or (choice.part.get("task") or {}).get("final")
    told = sum("boxed" in text or "final answer" in text.lower() for text in texts)
    return None if not looks or told > len(texts) / 2 else f"{{{column}}}\n{FINAL_ANSWER}"


def demonstrates(row: Mapping[str, Any], source: Prompts) -> bool:
    """Whether the row ends with an answer to imitate: an earlier turn of a conversation that ends in a question is
    none."""
    turns = row.get("messages")
    if isinstance(turns, list) and turns and turns[-1].get("role") != "assistant" and source.completion not in row:
        return False
    return prompts.has_completion(row, source)


def best_rating(rows: Sequence[Mapping[str, Any]]) -> float | None:
    """The highest rating, where the rows are rated answers; null stands for an answer that nobody rated."""
    for name in SCORES:
        values = [row[name] for row in rows if row.get(name) is not None]
        if values and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            return max(map(float, values))
    return None


def prompt_column(row: Mapping[str, Any]) -> str:
    """The column with the prompt: the usual name of one where none has ours."""
    if any(name in row for name in ("prompt", "messages", "segments", "chosen")):
        return "prompt"
    exact = next((name for name in QUESTIONS if isinstance(row.get(name), str)), None)
    return exact or other_columns.column_like(row, ("prompt", *QUESTIONS)) or "prompt"


def share_for(texts: set[str]) -> float:
    """The smallest usual share that holds out at least a few prompts and leaves most to train on."""
    wanted = min(8, max(1, len(texts) // 5))
    for share in (0.1, 0.2, 0.3, 0.4, 0.5):
        out = sum(prompts.part_of(text, Prompts(heldout=share)) == "heldout" for text in texts)
        if out >= wanted and out < len(texts):
            return share
    return 0.5


def wants_chat(rows: Sequence[Any], source: Prompts, model: str) -> bool:
    """Whether plain text must be put into the model's chat template."""
    plain = all(isinstance(prompt_value(row, source, 0, "new"), str) for row in rows[:20])
    return plain and has_template(model)


def has_template(model: str) -> bool:
    directory = Path(model).expanduser()
    if not model_dir.is_local(model):
        return bool(re.search(r"instruct|chat|-it\b", model.lower()))
    if (directory / "chat_template.jinja").is_file():
        return True
    try:
        return bool(json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template"))
    except (OSError, ValueError):
        return False


# --- the YAML ---------------------------------------------------------------------------------------------------------


def yaml_text(model: str, rows: Rows, run: str, file: str) -> str:
    """The whole YAML, with a comment on each choice."""
    config = families.read_config(model) if model_dir.is_local(model) else None
    longest = (config and families.text_fields(config).get("max_position_embeddings")) or 4096
    stages, blocks = stages_of(rows, large=model_dir.is_local(model) and model_dir.parameters_at(model) >= LORA_FROM)
    lines = [
        f"# Written by `whetstone new`, from {rows.count} rows of {rows.source.path}.",
        f"# Next: whetstone plan {file}, then whetstone run {file}. `whetstone config KEY` explains any key.",
        f"run: {quoted(run)}",
        "seed: 1",
        f"model: {{path: {quoted(model)}, dtype: auto}}",
        "prompts:",
        *prompt_lines(rows),
        "rewards:",
        *reward_lines(rows.choice),
        f"sampling: {{temperature: 1.0, max_tokens: {min(512, int(longest) // 4)}}}"
        "   # longer answers are cut and counted as such",
        "evaluation: {samples: 4, k: 4}                   # answers per held-out prompt; pass@4",
        f"stages: [{', '.join(stages)}]",
        "",
        *blocks,
    ]
    return "\n".join(lines).rstrip() + "\n"


def quoted(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def prompt_lines(rows: Rows) -> list[str]:
    source = rows.source
    lines = [f"  path: {quoted(source.path)}"]
    known = (
        f"recognised by its columns: {formats.FORMATS[rows.form].source}" if rows.form else "the columns as they are"
    )
    lines.append(f"  format: {source.format}   # {known}")
    lines += [f"  prompt: {quoted(source.prompt)}   # the column with the prompt"] if source.prompt != "prompt" else []
    if source.completion != "completion":
        lines.append(f"  completion: {quoted(source.completion)}   # the column with the answer to imitate")
    if source.template:
        why = (
            "asks for the final answer, which the verifier reads" if FINAL_ANSWER in source.template else "both columns"
        )
        lines.append(f"  template: {quoted(source.template)}   # {why}")
    lines += [f"  task: {quoted(dict(source.task))}   # field of the verifier: column"] if source.task else []
    lines.append(f"  heldout: {source.heldout}   # share of the {rows.prompts} distinct prompts, never trained on")
    lines += ["  chat: true   # the model has a chat template: the prompt becomes the user's turn"] if rows.chat else []
    return lines


def reward_lines(choice: Choice) -> list[str]:
    if not choice.verifier:
        return [f"  # {choice.why}, so nothing here can say whether an answer is right.",
                "  # This only counts answers that were cut: name a verifier, or a judge (docs/verifiers.md).",
                "  missing_eos: {}"]  # fmt: skip
    return [f"  # {choice.why}", f"  {choice.verifier}: {quoted(dict(choice.part))}"]


def stages_of(rows: Rows, *, large: bool) -> tuple[list[str], list[str]]:
    """(stages, lines of their blocks), by what the rows hold."""
    train = max(1, int(rows.prompts * (1 - rows.source.heldout)) - 1)
    lora = ["  peft: {r: 16, target_modules: all-linear}   # a model of this size: adapters only"] if large else []
    small = next(size for size in (32, 16, 8, 4, 2, 1) if size <= train)
    trainer = f"  trainer: {{num_train_epochs: 1, per_device_train_batch_size: {min(8, small)}, learning_rate: 1.0e-5}}"
    if rows.pairs:
        own = f"path: {quoted(rows.source.path)}, format: {rows.source.format}, heldout: {rows.source.heldout}"
        data = f"  data: {{{own}}}"
        pairs = ["dpo:   # learn from the pairs directly, without a reward model", "  policy: base", data,
                 f"  trainer: {{num_train_epochs: 1, per_device_train_batch_size: {min(8, small)}, learning_rate: "
                 "5.0e-7}", *lora]  # fmt: skip
        return ["base", "dpo", "evaluate"], pairs
    if rows.demonstrations and rows.best_rating is not None:
        return ["base", "feedme", "evaluate"], [
            "feedme:   # imitate the answers with the best rating only", "  policy: base", "  rounds: 1",
            f"  pool: [{quoted(rows.source.path)}]",
            f"  filters: [{{threshold: {rows.best_rating:g}}}, dedup]", trainer, *lora]  # fmt: skip
    stages, lines = ["base"], list[str]()
    if rows.demonstrations or not rows.choice.verifier:
        stages.append("sft")
        lines += ["sft:   # imitate the answers in the rows", "  policy: base", trainer, *lora, ""]
    if rows.choice.verifier:
        start = stages[-1]
        stages.append("grpo")
        lines += ["grpo:   # reinforce what the verifier passes", f"  policy: {start}", "  steps: 100",
                  f"  prompts: {small}   # per step", "  samples: 8   # answers per prompt",
                  "  optimizer: {learning_rate: 1.0e-6}", *lora]  # fmt: skip
    return [*stages, "evaluate"], lines


__all__ = ["new"]
