"""feedme: sample, score, keep the best, imitate, repeat: how text-davinci-002 was made.

Its controls run from the same start: the same number of samples per prompt chosen blindly, the same number of extra
steps on the demonstrations, and best-of-n without training. What FeedME gains over them comes from selection by score.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import rewards
from pipeline.config.load import ConfigError
from pipeline.config.schema import Stop
from pipeline.credit import filter_lint, selection
from pipeline.data.prompts import has_completion
from pipeline.distributed import ranks
from pipeline.records import Scored, episodes, groups, merge_episode, merged_episodes
from pipeline.run import console
from pipeline.score import score
from pipeline.seeds import cycle_indices
from pipeline.stages.best_round import keep_best, round_dir, score_name
from pipeline.stages.context import Context, Judged
from pipeline.stages.imitation import ImitationRow, sampled_rows
from pipeline.stages.kl_to_start import from_start
from pipeline.stages.sampling import best_of, draw, from_pool, reward_when_solved, round_samples
from pipeline.stages.sft import encode, train
from pipeline.stats import counted, mean, pass_rate, tally

Counts = list[Mapping[int, int]]  # per round: prompt -> samples kept
TOP_UPS = 8  # extra sampling passes for prompts with too few usable samples for the blind control


def run(ctx: Context) -> dict[str, Any]:
    block = ctx.block
    demonstrations: Sequence[ImitationRow] = []  # encoded now: an error in them stops the stage before it starts
    if block.more_sft_control and has_demonstrations(ctx):
        demonstrations = encode(ctx.split.train, ctx.cfg.prompts, ctx)
    elif block.more_sft_control:
        console.say(f"{ctx.name}: more_sft_control is not available: the rows hold no completions to imitate")
    rounds, judged, counts = chain(ctx, ctx.dir.model_dir)
    lasting = rounds[: len(counts)]  # the rounds behind the saved model, which may be an earlier one than the last
    metrics: dict[str, Any] = {**judged.figures, "rounds": rounds}
    if block.chooses:
        metrics |= {"best_round": len(counts), "chosen_by": score_name(rounds)}
    metrics |= {key: lasting[-1][key] for key in ("reward_when_solved", "heldout_kl")}
    spent = dict(ctx.tokens)
    start = ctx.evaluate(ctx.generator())
    metrics |= {"start_accuracy": start.figures["heldout_accuracy"]} | without_training(ctx, start)
    if block.random_control:
        blind, last, _ = chain(ctx, ctx.dir.path / "control", matched=counts)
        metrics |= {"random_control_accuracy": last.figures["heldout_accuracy"], "random_control_rounds": blind}
    if demonstrations:
        steps = sum(r["train_steps"] for r in lasting)
        metrics |= {
            "more_sft_accuracy": more_sft(ctx, demonstrations, steps).figures["heldout_accuracy"],
            "more_sft_steps": steps,
        }
    ctx.tokens = spent  # controls do not count towards the budget
    console.show_table([metrics], [k for k in ("start_accuracy", "heldout_accuracy", "random_control_accuracy",
                                               "more_sft_accuracy", "best_of_n_accuracy") if k in metrics])  # fmt: skip
    console.show_samples(judged.scored)
    return metrics


def chain(ctx: Context, target: Path, *, matched: Counts | None = None) -> tuple[list[dict[str, Any]], Judged, Counts]:
    """Run all rounds; the final model is in `target`. matched: for the control, how many samples to keep per prompt.

    Returns the figures of each round, the evaluation of the final model, and the number of samples kept per prompt in
    the rounds up to that model.
    """
    block, start = ctx.block, ctx.policy_path
    role = "feedme" if matched is None else "control"
    rule = block.stop if matched is None else None
    chooses = block.chooses and matched is None
    filters = parse_filters(ctx)
    mix = encode(ctx.split.train, ctx.cfg.prompts, ctx) if block.sft_share else []
    pool: list[ImitationRow] = []
    figures: list[dict[str, Any]] = []
    judgements: list[Judged] = []
    counts: Counts = []
    spent_before = ctx.tokens["completion"]
    for number in range(block.rounds if matched is None else len(matched)):
        if matched is None:
            spent = ctx.tokens["completion"] - spent_before
            played = episodes(round_samples(ctx, start, number, scorer=scorer(ctx), spent=spent))
            candidates = [as_candidate(sample) for sample in played]
            kept = keep(ctx, candidates, filters, number)
        else:
            played = episodes(blind_samples(ctx, start, number, matched[number]))
            candidates = [as_candidate(sample) for sample in played]
            kept = selection.blind(candidates, matched[number], seed=ctx.seed("blind", number))
            report_missing(ctx, number, len(kept), sum(matched[number].values()))
        counts.append(Counter(candidates[i].prompt for i in kept))
        chosen = [row for i in kept for row in sampled_rows(played[i])]
        pool = chosen if block.data == "replace" else [*pool, *chosen]
        examples = with_share(pool, mix, block.sft_share, key=ctx.seed("mix", number))
        origin = start if block.start == "last" else ctx.policy_path
        there = round_dir(target, number) if chooses else target
        trained = train(ctx, origin, examples, there, block.trainer, key=(role, number))
        start = str(there)
        generator = ctx.generator(start)
        judgements.append(ctx.evaluate(generator, role, number))
        validation = ctx.validate(generator, role, number).figures if chooses and ctx.validation_prompts else {}
        described_round = described([merge_episode(sample) for sample in played], kept, judgements[-1])
        figures.append({**judgements[-1].figures, **validation, **described_round, **trained,
                        "sampled_tokens": ctx.tokens["completion"] - spent_before,
                        **(from_start(ctx, judgements[-1], block.reward) if matched is None else
                           {"kept_missing": sum(matched[number].values()) - len(kept)})})  # fmt: skip
        report_round(ctx, role, figures[-1], number)
        why = stop_reason(figures, rule) if rule else None
        if why:
            figures[-1]["stopped"] = why
            break
    if not chooses:
        return figures, judgements[-1], counts
    best = keep_best(ctx, target, figures)
    return figures, judgements[best], counts[: best + 1]


def blind_samples(ctx: Context, policy: str, number: int, counts: Mapping[int, int]) -> list[Scored]:
    """The samples that the control chooses from. Choosing k of n blindly equals drawing k, so few more are drawn.

    A prompt with too few finished and scorable answers is sampled again, at most TOP_UPS times: a control that trains
    on less than its method proves nothing.
    """
    block = ctx.block
    if block.pool:
        return from_pool(ctx, block.pool, f"{ctx.name}.pool")
    requests = [ctx.train_prompts[i] for i in sorted(counts) if counts[i] and i < len(ctx.train_prompts)]
    # at most two more than are kept, to allow for truncated answers
    samples = max(counts.values()) + 2
    generator = ctx.generator(policy)
    scored = draw(ctx, generator, requests, samples, "control", number, scorer=scorer(ctx))
    for attempt in range(1, TOP_UPS + 1):
        usable = Counter(c.prompt for c in map(as_candidate, episodes(scored)) if c.scorable)
        short = [p for p in requests if usable[p.index] < counts[p.index]]
        if not short:
            break
        scored += draw(ctx, generator, short, samples, "control", number, "more", attempt, scorer=scorer(ctx))
    return scored


def report_missing(ctx: Context, number: int, kept: int, wanted: int) -> None:
    if kept < wanted:
        console.say(f"{ctx.name}/control round {number + 1}: kept {kept} samples where the method kept {wanted}: too "
                    "few answers ended or could be scored; the control trains on less than its method")  # fmt: skip


def scorer(ctx: Context) -> rewards.Composite:
    """The scorer used for selection: the stage's own rewards (a learned one, or both) or the run's."""
    return ctx.scorer_of(ctx.block.reward) if ctx.block.reward else ctx.scorer


def keep(
    ctx: Context, candidates: Sequence[selection.Candidate], filters: Sequence[selection.Filter], number: int
) -> selection.Kept:
    """Indices kept. In round 0, reports if the filter is a bucket. Raises ConfigError if no sample is kept."""
    turn = selection.FilterRound(number, ctx.seed("filters"))
    if number == 0:
        finding = filter_lint.lint(filters, candidates, turn)
        if finding.message:
            console.say(f"{ctx.name}.filters: {finding.message}")
    kept = selection.select(candidates, filters, turn)
    if not kept:
        best = max((c.reward for c in candidates if c.scorable), default=float("nan"))
        none = f"round {number + 1} kept 0 of {len(candidates)} samples; the best reward was {best:.3g}"
        raise ConfigError([f"{ctx.cfg.path}: {ctx.name}.filters: {none}; lower the threshold"])
    return kept


def parse_filters(ctx: Context) -> list[selection.Filter]:
    try:
        return selection.parse(ctx.block.filters)
    except ValueError as exc:
        raise ConfigError([f"{ctx.cfg.path}: {ctx.name}.filters: {exc}"]) from exc


def as_candidate(episode: Sequence[Scored]) -> selection.Candidate:
    """A completion, or all rows of an episode, as filters see it: by what the policy sampled."""
    scored = merge_episode(episode)
    rollout, passed = scored.rollout, None if scored.status == "error" else scored.status == "pass"
    # a truncated answer has no end to imitate: filters treat it as not scorable
    reward = scored.reward if rollout.finished else float("nan")
    sampled = tuple(i for i, on in zip(rollout.ids, rollout.mask, strict=True) if on)
    return selection.Candidate(rollout.prompt.index, reward, sampled, passed=passed)


def with_share(
    own: Sequence[ImitationRow], mix: Sequence[ImitationRow], share: float, *, key: int
) -> list[ImitationRow]:
    """`own` plus enough of `mix` to make up `share` of the total."""
    if not share or not mix:
        return list(own)
    count = round(len(own) * share / (1 - share)) if share < 1 else len(mix)
    return [*own, *(mix[i] for i in cycle_indices(len(mix), 0, count, key))]


# --- figures, stopping, controls -----------------------------------------------------------------------------------


def described(scored: Sequence[Scored], kept: Sequence[int], judged: Judged) -> dict[str, Any]:
    """Statistics of the samples a round kept, and the mean reward of successes. scored: one row per sample."""
    indices = {s.rollout.prompt.index for s in scored}
    covered = {scored[i].rollout.prompt.index for i in kept}
    counts = tally(scored)
    return {
        "kept": len(kept),
        "sampled": len(scored),
        "kept_share": len(kept) / len(scored),
        "prompts_covered": len(covered),
        "prompt_coverage": len(covered) / len(indices),
        "sample_reward": counts.reward_mean,
        "kept_reward": mean([scored[i].reward for i in kept]),
        "reward_when_solved": reward_when_solved(judged.scored),
    }


def report_round(ctx: Context, role: str, figures: Mapping[str, Any], number: int) -> None:
    parts = [f"kept {figures['kept']} of {figures['sampled']} on {figures['prompt_coverage']:.0%} of the prompts"]
    shown = {"heldout_accuracy": "held-out accuracy", "distinct_answers": "distinct", "heldout_kl": "kl"}
    parts += [f"{name} {console.number(figures[key])}" for key, name in shown.items() if key in figures]
    console.say(f"{ctx.name}/{role} round {number + 1}/{ctx.block.rounds}: " + ", ".join(parts))


def stop_reason(figures: Sequence[Mapping[str, Any]], rule: Stop) -> str | None:
    """Why to stop after these rounds, in words; None to continue. Decided by validation figures where there are any."""
    chosen_by = score_name(figures)
    scores = [f[chosen_by] for f in figures]
    best = max(range(len(scores)), key=lambda i: (scores[i], -i))
    since = next((i for i in range(len(scores)) if scores[i] > max(scores) - rule.min_gain), best)
    if len(scores) - 1 - since >= rule.patience:
        return f"{chosen_by.replace('_', ' ')} has not risen by more than {rule.min_gain:g} for {rule.patience} rounds"
    prefix = chosen_by.removesuffix("accuracy").removeprefix("heldout_")
    distinct = figures[-1][f"{prefix}distinct_answers"]
    if distinct < rule.min_distinct:
        return f"{distinct:.2f} distinct answers per prompt are fewer than {rule.min_distinct:g}"
    return None


def without_training(ctx: Context, start: Judged) -> dict[str, Any]:
    """The control without training: best of n samples of the start, chosen by the stage's own score and evaluated by
    the run's.

    With a verifier as the score it is an upper bound, because it needs the answer at inference time.
    """
    n = min(ctx.block.samples, ctx.cfg.evaluation.samples)
    ranked = merged_episodes(score(scorer(ctx), [s.rollout for s in start.scored]))
    truth = {id(s): own for s, own in zip(ranked, merged_episodes(start.scored), strict=True)}
    chosen = [truth[id(s)] for s in best_of(ranked, n)]
    by_prompt = [pass_rate(kept) for group in groups(chosen) if (kept := counted(group))]
    return {
        "best_of_n_accuracy": mean(by_prompt),
        "best_of_n": n,
        "best_of_n_reward": mean([s.reward for s in counted(chosen)]),
    }


def has_demonstrations(ctx: Context) -> bool:
    """Whether the run's rows contain completions to imitate; rows of verifiable tasks often contain only prompts."""
    return any(has_completion(row, ctx.cfg.prompts) for row in ctx.split.train)


def more_sft(ctx: Context, examples: Sequence[ImitationRow], steps: int) -> Judged:
    """The same number of extra steps on the demonstrations: the effect of longer training alone."""
    target = ctx.dir.path / "more_sft"
    train(ctx, ctx.policy_path, examples, target, {**ctx.block.trainer, "max_steps": steps}, key=("more sft",))
    judged = ctx.evaluate(ctx.generator(str(target)), "more sft")
    ranks.from_main(lambda: shutil.rmtree(target))
    return judged
