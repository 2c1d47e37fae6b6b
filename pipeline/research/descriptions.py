"""descriptions: condition labels that are sentences, requested for combinations of attributes that were never trained.

The stage works as `conditioned` does, on every sample of the pool except those of some combinations of attributes. Then
every combination is requested for the training prompts: what is new is the label, not the question. A request counts as
obtained if the sample has all of its attributes. The control is the same training on shuffled labels.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.config.load import ConfigError
from pipeline.credit.conditioning import Conditions
from pipeline.data import condition_prompts
from pipeline.records import Scored
from pipeline.run import console
from pipeline.stages import conditioned
from pipeline.stages.context import Context
from pipeline.stages.sampling import open_generator
from pipeline.stats import mean

Cell = tuple[int, ...]


def run(ctx: Context) -> dict[str, Any]:
    if len(ctx.block.attributes) < 2:
        raise ConfigError([f"{ctx.cfg.path}: {ctx.name}.attributes: combinations need at least two attributes"])
    start = ctx.policy_path
    pool = conditioned.first_pool(ctx) + conditioned.scored_demonstrations(ctx)
    attributes = conditioned.attributes_of(ctx)
    conditions = conditioned.fit(ctx, attributes, pool)
    texts = [axis.text(i) for axis in conditions.axes for i in range(axis.count)]
    condition_prompts.check_written(texts, ctx.tokenizer, f"{ctx.cfg.path}: {ctx.name}.label")
    cells = conditioned.cells_of(pool, conditions, attributes)
    counts = {cell: n for cell, n in sorted(Counter(cells).items()) if n >= ctx.block.least}
    try:
        unseen = chosen_unseen(sorted(counts), share=ctx.block.unseen, seed=ctx.seed("unseen"))
    except ValueError as exc:
        raise ConfigError([f"{ctx.cfg.path}: {ctx.name}.unseen: {exc}"]) from exc
    seen_pool = [s for s, cell in zip(pool, cells, strict=True) if cell in counts and cell not in unseen]
    console.say(f"{ctx.name}: {len(counts)} combinations in {len(pool)} samples; {len(unseen)} of them left out: "
                f"{'; '.join(sentence(conditions, cell) for cell in sorted(unseen))}")  # fmt: skip

    model_dir = ctx.dir.model_dir
    conditioned.teach(
        ctx, start, conditioned.labelled(ctx, seen_pool, conditions, attributes), model_dir, "labels", anchor=start
    )
    condition_prompts.save(conditions, ctx.tokenizer, model_dir)
    control = ctx.dir.path / "control"
    shuffled = conditioned.labelled(ctx, seen_pool, conditions, attributes, shuffle=True)
    conditioned.teach(ctx, start, shuffled, control, "shuffled", anchor=start)

    requested = list(counts)
    labels = requests(ctx, str(model_dir), conditions, attributes, requested)
    without = requests(ctx, str(control), conditions, attributes, requested, "shuffled")
    table = [
        {"label": sentence(conditions, cell), "trained": cell not in unseen, "samples": counts[cell],
         **labels[cell], **{f"control_{name}": value for name, value in without[cell].items()}}
        for cell in requested
    ]  # fmt: skip
    console.show_table(table, ["label", "trained", "samples", "all", "control_all"])
    generator = open_generator(ctx, str(model_dir), ctx.heldout_prompts, ctx.heldout_prompts, guidance=1.0)
    return {**ctx.evaluate(generator).figures, **shares(table, [axis.name for axis in conditions.axes]),
            "combinations": table, "pool_size": len(pool)}  # fmt: skip


def chosen_unseen(cells: Sequence[Cell], *, share: float, seed: int) -> frozenset[Cell]:
    """A share of the combinations, at least one, drawn so that every bin of every axis stays in a trained one.

    Raises ValueError where so many cannot be left out.
    """
    wanted = max(1, round(share * len(cells)))
    order, out = random.Random(seed).sample(list(cells), len(cells)), set[Cell]()
    for cell in order:
        kept = [other for other in cells if other != cell and other not in out]
        if len(out) < wanted and all(any(other[k] == b for other in kept) for k, b in enumerate(cell)):
            out.add(cell)
    if len(out) < wanted:
        raise ValueError(f"{wanted} of {len(cells)} combinations cannot be left out with every attribute's every bin "
                         "still trained; lower it, or give more samples")  # fmt: skip
    return frozenset(out)


def sentence(conditions: Conditions, cell: Cell) -> str:
    """The label of a combination, as the policy reads it."""
    return conditions.text({axis.name: b for axis, b in zip(conditions.axes, cell, strict=True)}).strip()


def requests(
    ctx: Context, model_dir: str, conditions: Conditions, attributes: Mapping[str, Any], cells: Sequence[Cell],
    *key: str,
) -> dict[Cell, dict[str, float]]:  # fmt: skip
    """Per requested combination: the share of samples with each of its attributes, and with all of them."""
    unlabelled, out = ctx.train_prompts, {}
    names = [axis.name for axis in conditions.axes]
    for cell in cells:
        request = dict(zip(names, cell, strict=True))
        prompts = conditioned.asked_for(ctx, unlabelled, conditions.text(request))
        generator = open_generator(ctx, model_dir, prompts, unlabelled, guidance=ctx.block.guidance)
        piece = "-".join(f"{name}{number}" for name, number in request.items())
        judged = ctx.evaluate(generator, *key, "requested", requests=prompts, piece=piece)
        out[cell] = obtained(usable(judged.scored), conditions, attributes, cell)
    return out


def usable(scored: Sequence[Scored]) -> list[Scored]:
    return [s for s in scored if s.scorable]


def obtained(
    scored: Sequence[Scored], conditions: Conditions, attributes: Mapping[str, Any], cell: Cell
) -> dict[str, float]:
    """Share of samples that fulfil each part of a request, and all of it. A sample that is no answer fulfils none."""
    cells = conditioned.cells_of(scored, conditions, dict(attributes))
    valid = [s.status == "pass" for s in scored]
    out = {
        axis.name: mean([float(ok and got[k] == cell[k]) for ok, got in zip(valid, cells, strict=True)])
        for k, axis in enumerate(conditions.axes)
    }
    out["all"] = mean([float(ok and got == cell) for ok, got in zip(valid, cells, strict=True)])
    return out


def shares(table: Sequence[Mapping[str, Any]], names: Sequence[str]) -> dict[str, float]:
    """Means over the trained and over the unseen combinations, of the labels and of the control."""
    out = {}
    for kind, trained in (("seen", True), ("unseen", False)):
        lines = [line for line in table if line["trained"] == trained]
        for name, of in itertools.product([*names, "all"], ("", "control_")):
            out[f"{of}{kind}_{name}"] = mean([line[f"{of}{name}"] for line in lines])
    return out
