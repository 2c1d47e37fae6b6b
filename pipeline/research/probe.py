"""probe: what a condition label does inside the model. `python -m pipeline probe CONFIG`

Measures, for each layer at the last token of the prompt, where the answer begins:
- the distance between the activations under the best and the worst label;
- the accuracy of a linear probe that reads the label (fitted on training prompts, evaluated on held-out ones);
- the reward of unlabelled prompts when that difference is added, compared with a random direction of the same length.
A label can be readable in a layer where adding it changes nothing: being readable does not mean being used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.config.load import ConfigError
from pipeline.credit.conditioning import Axis
from pipeline.data import condition_prompts
from pipeline.generation.hf_engine import TransformersGenerator
from pipeline.models import models
from pipeline.records import Prompt, groups
from pipeline.run import console
from pipeline.score import score
from pipeline.stages.context import Context
from pipeline.stats import bootstrap_ci95, mean, pass_rate

RIDGE = 1e-2  # in units of the activations' variance


def run(ctx: Context) -> dict[str, Any]:
    block = ctx.block
    conditions = condition_prompts.load(ctx.policy_path)
    if conditions is None:
        raise ConfigError([f"{ctx.cfg.path}: {ctx.name}.policy: {ctx.policy_path} has no {condition_prompts.FILE}; "
                           "probe a model that a conditioned stage has trained"])  # fmt: skip
    axis = conditions.main
    bins = [i for i in range(axis.count) if axis.seen[i]]
    worst, best = worst_solvable(axis, bins), axis.best
    generator = TransformersGenerator(ctx.policy_path, ctx.cfg.model, ctx.cfg.generate)
    layers = decoder_layers(generator.model)
    beyond = [i for i in block.layers or [] if not 0 <= i < len(layers)]
    if beyond:
        raise ConfigError(
            [f"{ctx.cfg.path}: {ctx.name}.layers: no layer {beyond[0]}; the model has 0 to {len(layers) - 1}"]
        )
    fit = activations(ctx, generator.model, layers, axis, bins, ctx.train_prompts[: block.prompts])
    held = activations(ctx, generator.model, layers, axis, bins, ctx.heldout_prompts[: block.prompts])
    direction_LH = fit[bins.index(best)].mean(0) - fit[bins.index(worst)].mean(0)
    rows = [{"layer": i, **read_at(fit[:, :, i], held[:, :, i], direction_LH[i])} for i in range(len(layers))]
    console.show_table(rows, ["layer", "difference", "relative_difference", "probe_accuracy"])
    chosen = range(len(layers)) if block.layers is None else block.layers
    steering = steer(ctx, generator, layers, direction_LH, chosen)
    console.show_table(steering, ["layer", "direction", "scale", "reward"])
    metrics = {"layers": rows, "chance": 1 / len(bins), "bins": bins, "from_bin": worst, "to_bin": best,
               "steering": steering, "unsteered_reward": steering[0]["reward"]}  # fmt: skip
    return metrics


def worst_solvable(axis: Axis, bins: Sequence[int]) -> int:
    """The worst bin that can be requested; the bin of failures is left out if more than two bins were seen."""
    order = list(bins) if axis.prefer == "high" else list(reversed(bins))
    return order[1] if axis.of == "reward" and len(order) > 2 else order[0]


def decoder_layers(model: Any) -> list[nn.Module]:
    """The transformer's blocks, in order. Raises ConfigError for an architecture that stores them elsewhere."""
    inner = models.backbone(model)
    for name in ("layers", "h", "blocks"):
        if isinstance(getattr(inner, name, None), nn.ModuleList):
            return list(getattr(inner, name))
    raise ConfigError([f"probe.policy: {type(model).__name__} does not keep its blocks in layers, h or blocks"])


@torch.no_grad()
def activations(
    ctx: Context, model: Any, layers: Sequence[nn.Module], axis: Axis, bins: Sequence[int], prompts: Sequence[Prompt]
) -> Tensor:
    """(bins, prompts, layers, H): output of each block at the last token of the prompt, under each label."""
    out = []
    for number in bins:
        labelled = [condition_prompts.relabel(p, axis.text(number), ctx.cfg.prompts, ctx.tokenizer) for p in prompts]
        rows: list[Tensor | None] = [None] * len(labelled)
        for batch in models.batches_by_tokens([len(p.ids) for p in labelled], 16_384):
            for index, row in zip(
                batch, last_activations(model, layers, [labelled[i].ids for i in batch]), strict=True
            ):
                rows[index] = row
        out.append(torch.stack([row for row in rows if row is not None]))
    return torch.stack(out)


def last_activations(model: Any, layers: Sequence[nn.Module], rows: Sequence[Sequence[int]]) -> Tensor:
    """(B, layers, H) at each row's own last token."""
    where = model.device
    ids = models.pad_right(rows, 0, dtype=torch.long, device=where)
    mask = models.pad_right([[1] * len(r) for r in rows], 0, dtype=torch.long, device=where)
    last = torch.tensor([len(r) - 1 for r in rows], device=where)
    found: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        found.append(hidden_of(output)[torch.arange(len(rows), device=where), last].float().cpu())

    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(found, dim=1)


def hidden_of(output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def read_at(fit_NPH: Tensor, held_NPH: Tensor, direction_H: Tensor) -> dict[str, float]:
    """Length of the difference, absolute and relative to a typical activation; held-out accuracy of a linear probe."""
    size = float(fit_NPH.norm(dim=-1).mean())
    return {"difference": float(direction_H.norm()), "relative_difference": float(direction_H.norm()) / size,
            "probe_accuracy": probe_accuracy(fit_NPH, held_NPH)}  # fmt: skip


def probe_accuracy(fit_NPH: Tensor, held_NPH: Tensor) -> float:
    """Share of held-out activations whose label a linear probe predicts: ridge regression onto one-hot labels.

    fit_NPH, held_NPH: labels x prompts x width. Centred and scaled with the statistics of fit_NPH.
    """
    labels = fit_NPH.shape[0]
    x, y = flat(fit_NPH)
    centre, spread = x.mean(0), x.std(0).clamp(min=1e-6)
    x = (x - centre) / spread
    weight = torch.linalg.solve(x.T @ x + RIDGE * len(x) * torch.eye(x.shape[1]), x.T @ (y - 1 / labels))
    held, truth = flat(held_NPH)
    guess = ((held - centre) / spread @ weight).argmax(-1)
    return float((guess == truth.argmax(-1)).float().mean())


def flat(x_NPH: Tensor) -> tuple[Tensor, Tensor]:
    """(N*P, H) activations and (N*P, N) one-hot labels."""
    labels, prompts, width = x_NPH.shape
    return x_NPH.reshape(-1, width), torch.eye(labels).repeat_interleave(prompts, dim=0)


# --- steering ------------------------------------------------------------------------------------------------------


def steer(
    ctx: Context,
    generator: TransformersGenerator,
    layers: Sequence[nn.Module],
    direction_LH: Tensor,
    chosen: Sequence[int],
) -> list[dict[str, Any]]:
    """Reward of unlabelled held-out prompts after adding each layer's difference or a random vector of equal length."""
    rows = [{"layer": -1, "direction": "none", "scale": 0.0, **obtained(ctx, generator)}]
    for layer in chosen:
        noise = torch.Generator().manual_seed(ctx.seed("direction", layer))
        random_H = torch.randn(direction_LH.shape[1], generator=noise)
        random_H *= direction_LH[layer].norm() / random_H.norm()
        for name, vector_H in (("label", direction_LH[layer]), ("random", random_H)):
            for scale in ctx.block.scales if name == "label" else [1.0]:
                with adding(layers[layer], scale * vector_H):
                    rows.append({"layer": layer, "direction": name, "scale": scale, **obtained(ctx, generator)})
    return rows


@contextmanager
def adding(layer: nn.Module, vector_H: Tensor) -> Iterator[None]:
    """Add a vector to the layer's output, from the last token of the prompt onwards."""

    def add(module: nn.Module, inputs: Any, output: Any) -> Any:
        hidden = hidden_of(output).clone()
        # prompts are left-padded: the last index is the prompt's last token, and later the newest sampled token
        hidden[:, -1] += vector_H.to(hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    hook = layer.register_forward_hook(add)
    try:
        yield
    finally:
        hook.remove()


def obtained(ctx: Context, generator: TransformersGenerator) -> dict[str, Any]:
    prompts = ctx.heldout_prompts[: ctx.block.prompts]
    spent = dict(ctx.tokens)
    scored = score(ctx.scorer, ctx.sample(generator, prompts, ctx.block.samples, "steer"))
    ctx.tokens = spent  # probing does not count towards a method's budget
    rewards = [mean([s.reward for s in g if s.scorable]) for g in groups(scored)]
    return {"reward": mean(rewards), "ci95": list(bootstrap_ci95(rewards)), "accuracy": pass_rate(scored)}
