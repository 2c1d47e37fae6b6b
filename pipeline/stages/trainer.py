"""TRL's trainers, run the way every stage needs them: seeded, quiet, logged to our files, resumable."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from pipeline import console, models
from pipeline.config import ConfigError
from pipeline.runs import StageDir
from pipeline.stages.context import Context

CLOCKS = ("runtime", "per_second", "flos")  # figures that no two runs share stay out of metrics.jsonl


def train_with(
    ctx: Context,
    trainer_class: Any,
    config_class: Any,
    model: Any,
    arguments: dict[str, Any],
    settings: dict[str, Any],
    *,
    place: Path,
    key: tuple[int | str, ...],
    resumable: bool = False,
) -> dict[str, Any]:
    """Train `model` and save it with its tokenizer in `place`. settings: the YAML's `trainer:` block.

    Returns {"train_loss", "train_steps", "train_tokens"}. Raises ConfigError for a value the library refuses.
    """
    work = ctx.dir.checkpoints / "-".join(map(str, key))
    args = build_arguments(config_class, settings, work, seed=ctx.seed(*key), resumable=resumable, where=ctx.name)
    torch.manual_seed(ctx.seed(*key))
    trainer = trainer_class(
        model=model, args=args, processing_class=ctx.tokenizer, callbacks=[], **arguments, **_peft(ctx.block)
    )
    trainer.remove_callback(_printer())
    log = Log(ctx.dir, ctx.name, label="/".join(map(str, key)))
    trainer.add_callback(log)
    result = trainer.train(resume_from_checkpoint=_newest(work) if resumable else None)
    models.save(trainer.model, ctx.tokenizer, place)
    shutil.rmtree(work, ignore_errors=True)
    return {
        "train_loss": float(result.training_loss),
        "train_steps": int(result.global_step),
        "train_tokens": int(trainer.state.num_input_tokens_seen or 0),
    }


def build_arguments(
    config_class: Any, settings: dict[str, Any], work: Path, *, seed: int, resumable: bool, where: str
) -> Any:
    """The library's own config from the YAML's block, with what this machine and our files decide."""
    from pydantic import TypeAdapter, ValidationError

    on_gpu = torch.cuda.is_available()
    ours = {
        "output_dir": str(work),
        "seed": seed,
        "data_seed": seed,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not on_gpu,
        "bf16": on_gpu and settings.get("bf16", False),
        "save_strategy": "steps" if resumable else "no",
        "save_total_limit": 2,
        "logging_steps": 10,
        "gradient_checkpointing": on_gpu,
        "dataloader_pin_memory": on_gpu,
        "include_num_input_tokens_seen": "all",
    }
    try:
        checked = TypeAdapter(config_class).validate_python({**ours, **settings, "output_dir": str(work)})
    except ValidationError as exc:
        lines = [
            f"{where}.trainer.{'.'.join(map(str, e['loc']))}: {e['msg']}, found {e['input']!r}" for e in exc.errors()
        ]
        raise ConfigError(lines) from exc
    except (ValueError, TypeError) as exc:
        raise ConfigError([f"{where}.trainer: {' '.join(str(exc).split())}"]) from exc
    return checked


def _peft(block: Any) -> dict[str, Any]:
    if not getattr(block, "peft", None):
        return {}
    from peft import LoraConfig

    return {"peft_config": LoraConfig(**{"task_type": "CAUSAL_LM", **block.peft})}


def _printer() -> Any:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


def _newest(work: Path) -> str | None:
    from transformers.trainer_utils import get_last_checkpoint

    return get_last_checkpoint(str(work)) if work.is_dir() else None


class Log(TrainerCallback):
    """The trainer's figures into metrics.jsonl, and one line to the terminal."""

    def __init__(self, directory: StageDir, name: str, *, label: str) -> None:
        self.directory, self.name, self.label = directory, name, label
        self.progress: console.Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.progress = console.Progress(self.name, state.max_steps, done=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        figures = {k: v for k, v in (logs or {}).items() if not any(clock in k for clock in CLOCKS)}
        self.directory.log({"part": self.label, "step": state.global_step, **figures})
        if self.progress is not None and "loss" in figures:
            self.progress.step(state.global_step, loss=float(figures["loss"]))
