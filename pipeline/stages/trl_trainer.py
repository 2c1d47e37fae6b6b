"""TRL's trainers as every stage runs them: seeded, quiet, logged to our files, resumable."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from pipeline.config.load import ConfigError
from pipeline.config.schema import trains_adapter
from pipeline.distributed import process, ranks, sharding
from pipeline.models import adapters, models
from pipeline.models.precision import multiplies_bfloat16
from pipeline.run import console, shutdown
from pipeline.run.checkpoints import KEPT_CHECKPOINTS
from pipeline.run.files import copy_tree, dump_json
from pipeline.run.stage_dir import StageDir
from pipeline.stages.context import Context
from pipeline.stats import mean
from pipeline.update.forward import add_embedding_gradients_in_place

CLOCKS = (
    "runtime",
    "per_second",
    "flos",
)  # figures of wall time differ between equal runs and stay out of metrics.jsonl
FIGURES = "figures.json"
SAVE_STEPS = 100  # where the YAML's trainer block names no save_steps


def train_with(
    ctx: Context,
    trainer_class: Any,
    config_class: Any,
    start: str,
    load_model: Callable[[], Any],
    arguments: dict[str, Any],
    settings: dict[str, Any],
    *,
    target: Path,
    key: tuple[int | str, ...],
) -> dict[str, Any]:
    """Train the model that `load_model` loads from `start` and save it with its tokenizer in `target`. settings: the
    YAML's `trainer:` block.

    Returns {"train_loss", "train_steps", "train_tokens"}. Raises ConfigError for a value that TRL refuses.
    Done once: a resumed stage copies the model that its earlier try trained. Of several trainings into one directory,
    such as the rounds of a chain, only the last model is kept.
    """
    name = "-".join(map(str, ("trained", *key)))

    precision = models.precision_of(start, ctx.cfg.model)
    if precision == torch.float16 and not trains_adapter(ctx.block):
        raise ConfigError([f"{ctx.cfg.path}: model.dtype: float16 gradients overflow in {ctx.name}; use bfloat16"])
    settings = {"bf16": multiplies_bfloat16() and precision == torch.bfloat16, **settings}

    def make(beside: Path) -> None:
        figures = _train(ctx, trainer_class, config_class, load_model, arguments, settings, beside / "model", key)
        (beside / FIGURES).write_text(dump_json(figures))

    done = ctx.dir.checkpoints.once(name, make)
    process.free_memory()  # a trainer and its model refer to each other
    if (done / "model").is_dir():  # else a later training has written its model to `target`
        ranks.from_main(lambda: copy_tree(done / "model", target))
    for earlier in ctx.trained.get(target, []):
        ranks.from_main(lambda: ctx.dir.checkpoints.flush(done, target))  # before its sources are deleted
        ctx.dir.checkpoints.forget(earlier, keep=FIGURES)
    ctx.trained[target] = [name]
    return json.loads((done / FIGURES).read_text())


def _train(
    ctx: Context,
    trainer_class: Any,
    config_class: Any,
    load_model: Callable[[], Any],
    arguments: dict[str, Any],
    settings: dict[str, Any],
    target: Path,
    key: tuple[int | str, ...],
) -> dict[str, Any]:
    """Train from the newest complete checkpoint, and save the model in `target`."""
    work = ctx.dir.checkpoints.path / "-".join(map(str, ("training", *key)))
    args = build_arguments(config_class, settings, work, seed=ctx.seed(*key), where=ctx.name)
    if ranks.world() > 1:
        sharding.allow_on_cpu(args.distributed_state)  # accelerate has created its own state again
    torch.manual_seed(ctx.seed(*key))
    model = load_model()
    precision = None
    if not trains_adapter(ctx.block) and not sharding.is_zero():
        # a step of 1e-5 on a bfloat16 weight would be rounded away; DeepSpeed keeps a float32 copy of its own
        precision, model = model.dtype, model.float()
    fit_head_buffer(model.config.get_text_config().vocab_size)
    without_aux_loss(args, model.config.get_text_config(), ctx.name)
    where = f"{ctx.cfg.path}: {ctx.name}"
    peft = _peft(ctx.block, model, where)
    try:
        trainer = trainer_class(
            model=model, args=args, processing_class=ctx.tokenizer, callbacks=[], **arguments, **peft
        )
    except ValueError as exc:
        if not peft:
            raise
        raise ConfigError([f"{where}.peft: {' '.join(str(exc).split())}"]) from exc
    if peft:
        adapters.check_tied(trainer.model, key=where)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad and parameter.dtype == torch.bfloat16 and ctx.cfg.model.quantization is not None:
            parameter.data = (
                parameter.data.float()
            )  # TRL has cast the adapter to bfloat16, where small steps round to nothing
    if ranks.world() == 1:
        add_embedding_gradients_in_place(trainer.model)
    else:
        sharding.check_type(trainer.accelerator.distributed_type.value)
    trainer.remove_callback(_printer())
    trainer.add_callback(Log(ctx.dir, ctx.name, label="/".join(map(str, key))))
    saver = Saver(ctx.dir, trainer, work)
    trainer.add_callback(saver)
    with shutdown.finish_first():
        trainer.train(resume_from_checkpoint=saver.newest())
    shutdown.check()
    models.save(trainer.model, ctx.tokenizer, target, dtype=precision)
    sharding.forget_zero()
    ranks.from_main(lambda: shutil.rmtree(work, ignore_errors=True))
    return {
        # the trainer's own mean forgets the steps before a resume
        "train_loss": mean(ranks.gather([trainer._total_loss_scalar])) / max(trainer.state.global_step, 1),
        "train_steps": int(trainer.state.global_step),
        "train_tokens": int(trainer.state.num_input_tokens_seen or 0),
    }


def fit_head_buffer(vocabulary: int) -> None:
    """TRL's fused head allocates a buffer 32,768 tokens wide whatever the vocabulary, so that the rows of a small one
    are a memory page apart: 7 of 48 ms of a demo step. Results do not change."""
    from trl.trainer import utils

    utils._CHUNKED_LOGPROB_CHUNK_SIZE = min(32_768, vocabulary)


def without_aux_loss(args: Any, config: Any, stage: str) -> None:
    """Switch the load-balancing loss of experts off where TRL cannot compute it: it reads `config.num_experts`, which
    Granite's families call otherwise, and which a dense model of theirs does not have at all."""
    wanted = hasattr(args, "router_aux_loss_coef") and hasattr(config, "output_router_logits")
    if wanted and not getattr(config, "num_experts", 0) and args.router_aux_loss_coef is None:
        args.router_aux_loss_coef = 0.0
        console.say(f"{stage}: no load-balancing loss of experts: TRL has none for {config.model_type}")


def build_arguments(config_class: Any, settings: dict[str, Any], work: Path, *, seed: int, where: str) -> Any:
    """TRL's config from the YAML's block, with the fields that this machine and our files decide."""
    from pydantic import TypeAdapter, ValidationError

    on_gpu = torch.cuda.is_available()
    ours = {
        "output_dir": str(work),
        "seed": seed,
        "data_seed": seed,
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not on_gpu,
        "bf16": multiplies_bfloat16() and settings.get("bf16", False),
        "save_strategy": "steps",
        "save_steps": SAVE_STEPS,
        "logging_steps": 10,
        "gradient_checkpointing": on_gpu,
        "dataloader_pin_memory": on_gpu,
        "include_num_input_tokens_seen": "all",
        "ddp_find_unused_parameters": False,
    }
    # we remove older checkpoints, by step: the trainer goes by modification time, and clocks jump
    fixed = {"output_dir": str(work), "save_total_limit": None, "load_best_model_at_end": False}
    try:
        checked = TypeAdapter(config_class).validate_python({**ours, **settings, **fixed})
    except ValidationError as exc:
        lines = [
            f"{where}.trainer.{'.'.join(map(str, e['loc']))}: {e['msg']}, found {e['input']!r}" for e in exc.errors()
        ]
        raise ConfigError(lines) from exc
    except (ValueError, TypeError) as exc:
        raise ConfigError([f"{where}.trainer: {' '.join(str(exc).split())}"]) from exc
    if on_gpu and checked.n_gpu > 1:
        checked._n_gpu = 1  # one GPU per process; without a launcher the trainer would take all that are visible
    return checked


def _peft(block: Any, model: Any, key: str) -> dict[str, Any]:
    if not trains_adapter(block):
        return {}
    task = "SEQ_CLS" if hasattr(model, "score") else "CAUSAL_LM"  # the first trains a new head beside the adapter
    return {"peft_config": adapters.lora_config(model, block.peft, task=task, key=key)}


def _printer() -> Any:
    from transformers.trainer_callback import PrinterCallback

    return PrinterCallback


class Saver(TrainerCallback):
    """Makes the trainer's checkpoints exact to resume from, and saves one when the process receives a stop signal.

    The trainer writes a checkpoint file by file and keeps in memory what it has not logged yet. Here a checkpoint is
    valid once the hash of every file is recorded, together with those sums and the length of the log.
    """

    def __init__(self, directory: StageDir, trainer: Any, work: Path) -> None:
        self.directory, self.trainer, self.work = directory, trainer, work
        self.sums: dict[str, Any] | None = None  # of the checkpoint that is resumed from
        self.clock = shutdown.CheckpointClock(shutdown.trained_bytes(trainer.model))

    def newest(self) -> str | None:
        """The newest complete checkpoint; others are removed, and the log is cut to its length at that checkpoint."""
        chosen, self.sums = ranks.from_main(self._newest)
        return chosen

    def _newest(self) -> tuple[str | None, dict[str, Any] | None]:
        chosen, sums = None, None
        for checkpoint in reversed(self._saved()):
            index = self.directory.checkpoints.index_of(checkpoint) if chosen is None else None
            if index is None:
                shutil.rmtree(checkpoint)
                continue
            chosen, sums = str(checkpoint), index["sums"]
            self.directory.logs.go_to(index["mark"])
        return chosen, sums

    def _saved(self) -> list[Path]:
        # by step, not by modification time: clocks jump
        return sorted(self.work.glob("checkpoint-*"), key=lambda checkpoint: int(checkpoint.name.rpartition("-")[2]))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.sums is not None:
            trainer = self.trainer
            trainer._tr_loss = torch.tensor(self.sums["pending_loss"][ranks.rank()], device=args.device)
            trainer._total_loss_scalar = self.sums["total_loss"]
            trainer._globalstep_last_logged = self.sums["last_logged"]
            trainer._total_train_tokens = self.sums["tokens"]
            trainer._metrics["train"].update(self.sums["figures"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= state.max_steps:
            # the model itself is saved next; a resume from such a checkpoint would train on
            control.should_save = False
        elif not control.should_training_stop:
            stop, due = ranks.from_main(lambda: (shutdown.requested(), self.clock.due()))
            control.should_training_stop = stop
            control.should_save = control.should_save or stop or due

    on_epoch_end = on_step_end

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.clock.saved()
        trainer = self.trainer
        sums = {
            "pending_loss": ranks.gather(
                [trainer._tr_loss.item()]
            ),  # of each rank; also waits until all have written their files
            "total_loss": trainer._total_loss_scalar,
            "last_logged": trainer._globalstep_last_logged,
            "tokens": trainer._total_train_tokens,
            "figures": {name: list(values) for name, values in trainer._metrics["train"].items()},
        }
        ranks.from_main(lambda: self._seal(sums))

    def _seal(self, sums: dict[str, Any]) -> None:
        *old, newest = self._saved()
        self.directory.checkpoints.seal(newest, sums=sums)
        self.directory.checkpoints.flush(newest)
        for checkpoint in old[: 1 - KEPT_CHECKPOINTS]:
            shutil.rmtree(checkpoint, ignore_errors=True)


class Log(TrainerCallback):
    """The trainer's figures into metrics.jsonl, and one line to the terminal."""

    def __init__(self, directory: StageDir, name: str, *, label: str) -> None:
        self.directory, self.name, self.label = directory, name, label
        self.progress: console.Progress | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step:
            console.say(f"{self.name}: resuming at step {state.global_step} of {state.max_steps}")
        self.progress = console.Progress(self.name, state.max_steps, done=state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if "train_loss" in (logs or {}):
            return  # the trainer's summary, which forgets the steps before a resume
        figures = {k: v for k, v in (logs or {}).items() if not any(clock in k for clock in CLOCKS)}
        self.directory.logs.log({"part": self.label, "step": state.global_step, **figures})
        if ranks.is_main() and self.progress is not None and "loss" in figures:
            self.progress.step(state.global_step, loss=float(figures["loss"]))
