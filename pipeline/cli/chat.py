"""Sample from the model of a finished run: `generate` for a file or one prompt, `chat` for a conversation.

label=best, label=3 or label="correct=1 length=0" sets the label for a condition-trained model; without it, the prompt
has no label.

    python -m pipeline generate RUN_DIR prompt="a1>d4:" label=best samples=4
    python -m pipeline generate RUN_DIR prompts=tasks.jsonl to=answers.jsonl temperature=0
    python -m pipeline chat RUN_DIR label=best guidance=1.25
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from pipeline.cli.commands import options
from pipeline.cli.export import policy_stage
from pipeline.config.load import ConfigError
from pipeline.config.schema import Generate, Model, Prompts, Sampling
from pipeline.data import condition_prompts, encoding, prompt_columns, prompts
from pipeline.data.completion_text import completion_text
from pipeline.generation.generator import Request, Sample
from pipeline.generation.guidance import Guided
from pipeline.generation.hf_engine import TransformersGenerator
from pipeline.models import models
from pipeline.run.files import atomic_write
from pipeline.run.manifest import read_manifest
from pipeline.seeds import derive

GREEDY = 1e-4  # at a temperature this low, only the most likely token is ever sampled


@dataclass(frozen=True, slots=True)
class Voice:
    """A run's model, with its prompt format and sampling settings."""

    place: Path
    source: Prompts
    sampling: Sampling
    tokenizer: Any
    label: str
    generator: TransformersGenerator
    seed: int

    def ids(self, value: str | list[dict[str, str]], label: str) -> tuple[int, ...]:
        """Raises ConfigError for a prompt of which the tokenizer has no token."""
        return tuple(encoding.render_ids({"prompt": value}, self.source, self.tokenizer, label=label))

    def warn_of_dropped(self, values: Iterable[str | list[dict[str, str]]]) -> None:
        """Print a warning that names the characters of prompts, given as text, that the tokenizer has no token for."""
        found = dict.fromkeys("".join(value for value in values if isinstance(value, str)))
        dropped = "".join(c for c in found if not self.tokenizer(c, add_special_tokens=False).input_ids)
        if dropped:
            print(f"warning: the model does not see {dropped!r}: its tokenizer has no token for them",
                  file=sys.stderr, flush=True)  # fmt: skip

    def answer(self, values: Sequence[str | list[dict[str, str]]], samples: int) -> list[list[str]]:
        """`samples` answers to each prompt (text, or the turns so far)."""
        prompts = [self.ids(value, self.label) for value in values]
        if isinstance(self.generator, Guided):
            self.generator.unlabelled = {ids: self.ids(value, "") for ids, value in zip(prompts, values, strict=True)}
        stop_token_ids = models.end_ids(self.tokenizer, self.generator.model)
        requests = [Request(ids, derive(self.seed, "talk", index, sample), self.sampling.max_tokens)
                    for index, ids in enumerate(prompts) for sample in range(samples)]  # fmt: skip
        texts = [
            self.text(drawn, stop_token_ids) for drawn in self.generator.sample(requests, self.sampling, stop_token_ids)
        ]
        return [texts[start : start + samples] for start in range(0, len(texts), samples)]

    def text(self, drawn: Sample, stop_token_ids: frozenset[int]) -> str:
        ids = [i for i in drawn.ids if i not in stop_token_ids]
        return completion_text(self.tokenizer, ids, ())


def open_voice(run: Path, arguments: Mapping[str, str]) -> Voice:
    """Open the run's best policy, or the named stage, with the sampling settings of its evaluation.

    Warns if the label was never trained.
    """
    stage = policy_stage(run, arguments.get("stage"))
    manifest = read_manifest(run / stage / "manifest.json")
    assert manifest is not None, "policy_stage found it"
    config, model_dir = manifest["config"], run / stage / "model"
    label, warnings = condition_prompts.label_of(model_dir, arguments.get("label", "none"))
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr, flush=True)
    sampling = TypeAdapter(Sampling).validate_python(config["sampling"])
    temperature = max(number(arguments, "temperature", sampling.temperature, low=0.0), GREEDY)
    sampling = replace(sampling, temperature=temperature,
                       max_tokens=int(number(arguments, "max_tokens", sampling.max_tokens, low=1)))  # fmt: skip
    model, settings = TypeAdapter(Model).validate_python(config["model"]), Generate(backend="transformers")
    tokenizer = models.load_tokenizer(str(model_dir), model)
    source = TypeAdapter(Prompts).validate_python(config["prompts"])
    chat = in_chat(source, tokenizer, config.get("verifier_dirs", ()))
    source = replace(source, template=None, prompt="prompt", chat=chat)
    guidance, seed = number(arguments, "guidance", 1.0, low=0.0), int(number(arguments, "seed", 0, low=0))
    if guidance == 1.0 or not label:
        generator = TransformersGenerator(str(model_dir), model, settings)
    else:
        generator = Guided(str(model_dir), model, settings, unlabelled={}, scale=guidance)
    return Voice(model_dir, source, sampling, tokenizer, label, generator, seed)


def in_chat(source: Prompts, tokenizer: Any, dirs: Sequence[str]) -> bool:
    """Whether the run's prompts used the chat template: its config says so, or its rows are messages.

    Warns if the rows can no longer be read.
    """
    if source.chat or source.system is not None:
        return True
    if tokenizer.chat_template is None:
        return False
    few = replace(source, rows=min(source.rows or 100, 100), split=f"{source.split.partition('[')[0]}[:100]")
    try:
        return prompt_columns.in_chat(prompts.load_rows(few, seed=0, dirs=dirs)[0], source, 1)
    except ConfigError as exc:
        print(f"warning: {exc}; sent as plain text, not through the chat template", file=sys.stderr, flush=True)
        return False


def number(arguments: Mapping[str, str], key: str, default: float, *, low: float) -> float:
    """The value of `key` as a number. Raises ConfigError if it is not one."""
    try:
        value = float(arguments.get(key, default))
    except ValueError:
        value = float("nan")
    if not value >= low:
        raise ConfigError([f"{key}={arguments[key]}: expected a number of at least {low:g}"])
    return value


def generate(run: Path, words: Sequence[str]) -> None:
    """Write answers as JSON lines to the terminal, or to the file `to`."""
    arguments = options("generate", words)
    if ("prompt" in arguments) == ("prompts" in arguments):
        raise ConfigError(["generate: give prompt=TEXT, or prompts=FILE.jsonl with a column prompt"])
    values = [arguments["prompt"]] if "prompt" in arguments else list(prompt_column(Path(arguments["prompts"])))
    if not values:
        raise ConfigError([f"prompts={arguments['prompts']}: the file has no rows; it needs one object per line, as "
                           '{"prompt": "..."}'])  # fmt: skip
    samples = int(number(arguments, "samples", 1, low=1))
    voice = open_voice(run, arguments)
    voice.warn_of_dropped(values)
    answers = voice.answer(values, samples)
    lines = [json.dumps({"prompt": value, "completion": text, "label": voice.label}, ensure_ascii=False)
             for value, texts in zip(values, answers, strict=True) for text in texts]  # fmt: skip
    if "to" in arguments:
        atomic_write(Path(arguments["to"]), "\n".join(lines) + "\n")
        print(f"{len(lines)} answers: {arguments['to']}")
    else:
        print("\n".join(lines))


def prompt_column(path: Path) -> Iterator[str | list[dict[str, str]]]:
    if not path.is_file():
        raise ConfigError([f"prompts={path}: no such file"])
    for number, row in prompts.numbered_rows(path):
        if "prompt" not in row:
            raise ConfigError([f"{path}:{number}: expected an object with a column prompt"])
        yield row["prompt"]


def chat(run: Path, words: Sequence[str]) -> None:
    """Answer line by line until the input ends.

    A model that uses the chat template sees all turns; any other model sees only the last line.
    """
    voice = open_voice(run, options("chat", words))
    turns: list[dict[str, str]] = []
    remembers = voice.source.chat
    shown = f", requesting {voice.label.strip()!r}" if voice.label else ""
    print(f"{voice.place}{shown}; an empty line or Ctrl-D ends", flush=True)
    while True:
        try:
            line = input("> ")
        except EOFError:
            return
        if not line.strip():
            return
        asked = {"role": "user", "content": line}
        voice.warn_of_dropped([line])
        try:
            [[text]] = voice.answer([[*turns, asked] if remembers else line], 1)
        except ConfigError as exc:  # of this line alone: the conversation goes on
            print(exc, file=sys.stderr, flush=True)
            continue
        turns.append(asked)
        turns.append({"role": "assistant", "content": text})
        voice = replace(voice, seed=voice.seed + 1)  # the same question may get a different answer next time
        print(text, flush=True)
