"""What dpo and kto share: samples of a round, TRL's trainer fed with token ids, and the rounds.

Departs from TRL in what it is fed. TRL's trainers render and tokenize text: a prompt that merges with the first token
of its completion is cut, a pair whose prompt fills max_length is dropped silently, and KTO reads rows in the order of
the file, all good ones before all bad ones where it splits pairs. Here rows are the ids that were sampled, in an order
drawn from the seed, and what does not fit is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.config.load import ConfigError
from pipeline.config.schema import trains_adapter
from pipeline.models import models
from pipeline.records import Scored
from pipeline.run import console
from pipeline.stages.best_round import keep_best, round_dir, score_name
from pipeline.stages.context import Context
from pipeline.stages.kl_to_start import from_start
from pipeline.stages.sampled_only import FLAGS_OF, SampledOnly, single_rows
from pipeline.stages.sampling import round_samples
from pipeline.stages.trl_trainer import train_with

Rows = Sequence[Mapping[str, Any]]


def run_rounds(
    ctx: Context,
    trainer_class: Any,
    config_class: Any,
    rows_of: Callable[[Context, str, int], tuple[Rows, dict[str, Any]]],
) -> dict[str, Any]:
    """All rounds of a preference stage; the last one's model is left in model/, or the best one's (`keep`).

    rows_of(ctx, policy, number): the training rows of a round, with columns of token ids, and what they change of
    `trainer:`. Returns the stage's metrics.
    """
    block, start, rounds = ctx.block, ctx.policy_path, []
    if block.peft and block.rounds > 1 and block.reference == "start":
        raise ConfigError([f"{ctx.cfg.path}: {ctx.name}.reference: start cannot be kept under peft, where the "
                           "reference is the adapter switched off; write reference: last"])  # fmt: skip
    for number in range(block.rounds):
        rows, derived = rows_of(ctx, start, number)
        anchor = start if block.reference == "last" else ctx.policy_path
        settings = {**derived, **block.trainer}
        there = round_dir(ctx.dir.model_dir, number) if block.keep == "best" else ctx.dir.model_dir
        figures = train(ctx, trainer_class, config_class, rows, settings, start, anchor, number, there)
        start = str(there)
        generator = ctx.generator(start)
        judged = ctx.evaluate(generator, block.kind, number)
        validation = ctx.validate(generator, block.kind, number).figures if block.keep == "best" else {}
        rounds.append({**judged.figures, **validation, **figures, "rows": len(rows),
                       **from_start(ctx, judged, block.reward)})  # fmt: skip
        if block.rounds > 1:
            console.say(f"{ctx.name} round {number + 1}/{block.rounds}: {len(rows)} rows, held-out accuracy "
                        f"{rounds[-1]['heldout_accuracy']:.3f}")  # fmt: skip
    console.show_samples(judged.scored)
    if block.keep == "last":
        return {**rounds[-1], "rounds": rounds}
    best = keep_best(ctx, ctx.dir.model_dir, rounds)
    return {**rounds[best], "rounds": rounds, "best_round": best + 1, "chosen_by": score_name(rounds)}


def train(
    ctx: Context,
    trainer_class: Any,
    config_class: Any,
    rows: Rows,
    settings: dict[str, Any],
    start: str,
    anchor: str,
    number: int,
    directory: Path,
) -> dict[str, Any]:
    """One round from the model at `start`, against the one at `anchor`; the result is in `directory`."""
    from datasets import Dataset

    adapted = trains_adapter(ctx.block)

    class OnIds(trainer_class):  # type: ignore[misc]
        _signature_columns: list[str]

        def _prepare_dataset(self, dataset: Any, *arguments: Any) -> Any:
            return dataset  # already ids

        def _set_signature_columns_if_needed(self) -> None:
            super()._set_signature_columns_if_needed()
            known: list[str] = self._signature_columns
            known += [column for column in FLAGS_OF if column not in known]

        @property
        def data_collator(self) -> Any:
            return self._collator

        @data_collator.setter
        def data_collator(self, collator: Any) -> None:  # set by the trainer, before it computes any log-prob
            self._collator = SampledOnly(collator)

    def reference() -> Any:
        if adapted:
            return None  # the library switches the adapter off
        # in float32, as the weights that learn: else the KL would not be 0 at the first step
        return models.load_policy(anchor, ctx.cfg.model).float().eval().requires_grad_(False)

    return train_with(
        ctx, OnIds, config_class, start,
        lambda: models.load_policy(start, ctx.cfg.model, adapted=adapted),
        {"train_dataset": Dataset.from_list(list(rows)), "ref_model": reference()}, settings,
        target=directory, key=(ctx.block.kind, number),
    )  # fmt: skip


def samples_of(ctx: Context, policy: str, number: int) -> list[Scored]:
    """A round's scored samples, one row each: drawn from the policy, or out of the pool.

    Raises ConfigError where the chat template rewrites the history of every episode.
    """
    scorer = ctx.scorer_of(ctx.block.reward) if ctx.block.reward else ctx.scorer
    scored = round_samples(ctx, policy, number, scorer=scorer, spent=ctx.tokens["completion"])
    alone, several = single_rows(scored)
    if several and not alone:
        raise ConfigError([f"{ctx.cfg.path}: {ctx.name}: the chat template rewrites the history of all {several} "
                           "episodes, so none is one completion; feedme and grpo train each turn"])  # fmt: skip
    if several:
        console.say(f"{ctx.name}: left out {several} of {several + len(alone)} episodes whose history the chat "
                    "template rewrites: they are not one completion")  # fmt: skip
    return alone
