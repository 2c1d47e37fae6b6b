"""feedme: sample, score, keep the best, imitate, repeat: how text-davinci-002 was made.

Beside it runs its control: the same chain keeping as many samples of each prompt, chosen blindly. What FeedME gains
over that it gained by looking at the score.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import console
from pipeline.config import ConfigError
from pipeline.credit import selection
from pipeline.records import Scored
from pipeline.score import score, tally
from pipeline.seeds import cycle_indices
from pipeline.stages.budget import sample_within
from pipeline.stages.context import Context, Judged
from pipeline.stages.distance import from_start
from pipeline.stages.sft import Example, encode, train


def run(ctx: Context) -> dict[str, Any]:
    block = ctx.block
    try:
        filters = selection.parse(block.filters)
    except ValueError as exc:
        raise ConfigError([f"{ctx.cfg.path}: {ctx.name}.filters: {exc}"]) from exc
    rounds, judged = chain(ctx, filters, place=ctx.dir.model_dir, control=False)
    metrics = {**judged.figures, "rounds": rounds}
    if block.random_control:
        spent = dict(ctx.tokens)
        control, blind = chain(ctx, filters, place=ctx.dir.place / "control", control=True)
        ctx.tokens = spent  # the control is evidence, not budget
        metrics |= {"random_control_accuracy": blind.figures["heldout_accuracy"], "random_control_rounds": control}
    console.show_samples(judged.scored)
    return metrics


def chain(ctx: Context, filters: list[selection.Filter], *, place: Path, control: bool) -> tuple[list[dict], Judged]:
    """All rounds. Returns the figures of each and the last judgement; the model is left in `place`."""
    block, start = ctx.block, ctx.policy_path
    mix = sft_examples(ctx) if block.sft_share else []
    pool: list[Example] = []
    figures: list[dict[str, Any]] = []
    judged: Judged | None = None
    role = "control" if control else "feedme"
    spent_before = ctx.tokens["completion"]
    for number in range(block.rounds):
        spent = ctx.tokens["completion"] - spent_before
        within = block.token_budget and max(block.token_budget * (number + 1) // block.rounds - spent, 1)
        scored = sample_round(ctx, start, number, role, within)
        candidates = [as_candidate(s) for s in scored]
        kept = selection.select(candidates, filters)
        if not kept:
            best = max((s.reward for s in scored if s.scorable), default=float("nan"))
            raise ConfigError([f"{ctx.cfg.path}: {ctx.name}.filters: round {number + 1} kept 0 of {len(scored)} samples; "
                               f"the best reward was {best:.3g}; lower the threshold"])  # fmt: skip
        if control:
            kept = selection.matched_random(candidates, kept, seed=ctx.seed("blind", number))
        else:
            ctx.record(scored, round=number)
        chosen = [Example(scored[i].rollout.prompt.ids, scored[i].rollout.ids) for i in kept]
        pool = chosen if block.pool == "replace" else [*pool, *chosen]
        examples = with_share(pool, mix, block.sft_share, key=ctx.seed("mix", number))
        origin = start if block.start == "last" else ctx.policy_path
        trained = train(ctx, origin, examples, place, block.trainer, key=(role, number))
        start = str(place)
        judged = ctx.evaluate(ctx.generator(start), role, number)
        seen = tally(scored)
        figures.append({**judged.figures, "kept": len(kept), "sampled": len(scored), "kept_share": len(kept) / len(scored),
                        "prompts_covered": len({candidates[i].prompt for i in kept}), "sample_reward": seen.reward_mean,
                        "train_loss": trained["train_loss"], "sampled_tokens": ctx.tokens["completion"] - spent_before,
                        **from_start(ctx, judged, block.reward)})  # fmt: skip
        console.say(f"{role} round {number + 1}/{block.rounds}: kept {len(kept)} of {len(scored)}, held-out accuracy "
                    f"{console.number(figures[-1]['heldout_accuracy'])}")  # fmt: skip
    assert judged is not None
    return figures, judged


def sample_round(ctx: Context, policy: str, number: int, role: str, within: int | None) -> list[Scored]:
    block = ctx.block
    scorer = ctx.scorer_of(block.reward) if block.reward else ctx.scorer
    places = cycle_indices(
        len(ctx.train_prompts), number * block.prompts, block.prompts, ctx.cfg.seed, ctx.name, "order"
    )
    asked = [ctx.train_prompts[i] for i in places]
    drawn = sample_within(ctx, ctx.generator(policy), asked, block.samples, role, number, budget=within)
    return score(scorer, drawn)


def as_candidate(scored: Scored) -> selection.Candidate:
    # what was cut off has no end to imitate: to a filter it is not scorable
    reward = scored.reward if scored.rollout.finished else float("nan")
    return selection.Candidate(scored.rollout.prompt.index, reward, scored.rollout.ids)


def sft_examples(ctx: Context) -> list[Example]:
    return encode(ctx.split.train, ctx.cfg.prompts, ctx)


def with_share(own: Sequence[Example], mix: Sequence[Example], share: float, *, key: int) -> list[Example]:
    """`own` plus so many of `mix` that they are `share` of the whole."""
    if not share or not mix:
        return list(own)
    count = round(len(own) * share / (1 - share)) if share < 1 else len(mix)
    return [*own, *(mix[i] for i in cycle_indices(len(mix), 0, count, key))]
