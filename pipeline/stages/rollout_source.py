"""The policy loop's rollouts: sampled by the generator, scored by the stage's reward, cached on disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.config.load import ConfigError
from pipeline.config.schema import Episodes, Policy
from pipeline.distributed import ranks
from pipeline.generation.episodes import load_environment, play
from pipeline.generation.generator import Generator, continuations, rollouts
from pipeline.records import Prompt, Scored, load_scored
from pipeline.run import shutdown
from pipeline.score import score
from pipeline.stages.context import Context, of_validation
from pipeline.stages.heldout_episodes import judge_episodes
from pipeline.stages.kl_to_start import from_start
from pipeline.update.loop_state import Branch
from rewards import Composite


class SampledRollouts:
    """Single answers to prompts. scorer: the stage's reward, with the monitor's second score if there is one."""

    def __init__(self, ctx: Context, generator: Generator, scorer: Composite) -> None:
        self.ctx, self.generator, self.scorer = ctx, generator, scorer
        self.block: Policy = ctx.block

    def sample_and_score(self, prompts: Sequence[Prompt], step: int, attempt: int) -> list[Scored]:
        """block.samples scored rows of each prompt, prompt-major; read from disk if a killed run had finished them."""
        with shutdown.at_once():
            return self.ctx.scored(
                self.generator, prompts, self.block.samples, "step", step, attempt, scorer=self.scorer, check_all=False
            )

    def evaluate(self, step: int) -> dict[str, Any]:
        """Figures on the validation prompts during training, else on the held-out ones, with the KL from the start."""
        if self.ctx.cfg.prompts.validation:
            judged = self.ctx.validate(self.generator, "step", step)
            distance = from_start(self.ctx, judged, self.block.reward)
            return {**judged.figures, "sampled_tokens": distance.pop("sampled_tokens"), **of_validation(distance)}
        judged = self.ctx.evaluate(self.generator, "step", step)
        return {**judged.figures, **from_start(self.ctx, judged, self.block.reward)}

    # --- monte_carlo credit -------------------------------------------------------------------------------------

    def continue_and_score(self, branches: Sequence[Branch], step: int) -> list[list[Scored]]:
        """Completions sampled on from where each branch leaves them, scored like any other (without the monitor)."""
        ctx, count = self.ctx, self.block.credit.continuations
        sampled = continuations(
            self.generator, [(b.scored.rollout, b.at, b.index) for b in branches], ctx.cfg.sampling, samples=count,
            key=(ctx.cfg.seed, ctx.name, "continue", step), tokenizer=ctx.tokenizer, stop_token_ids=ctx.stop_token_ids,
        )  # fmt: skip
        scored = score(ctx.scorer_of(self.block.reward) if self.block.reward else ctx.scorer, sampled,
                       key=(ctx.cfg.seed, ctx.name, "check", "continue", step))  # fmt: skip
        return [scored[i : i + count] for i in range(0, len(scored), count)]

    # --- overlap: the halves of sample_and_score ----------------------------------------------------------------

    def draw(self, prompts: Sequence[Prompt], step: int) -> list[Scored]:
        """Sample and score in the prefetching thread: writes no file and counts no token."""
        ctx = self.ctx
        drawn = rollouts(
            self.generator, prompts, ctx.cfg.sampling, samples=self.block.samples, tokenizer=ctx.tokenizer,
            stop_token_ids=ctx.stop_token_ids, key=(ctx.cfg.seed, ctx.name, "step", step, 0),
        )  # fmt: skip
        return score(self.scorer, drawn, key=(ctx.cfg.seed, ctx.name, "check", "step", step, 0))

    def keep(self, prompts: Sequence[Prompt], scored: list[Scored], step: int) -> list[Scored]:
        """Write what `draw` returned to disk, and count its tokens with it."""

        def counted() -> list[Scored]:
            count_tokens(self.ctx.tokens, scored)
            return scored

        return self.ctx.kept(prompts, counted, "step", step, 0)

    def read(self, prompts: Sequence[Prompt], step: int) -> list[Scored]:
        """What `keep` wrote in an earlier attempt. Raises ConfigError where it is missing or damaged."""
        checkpoints = self.ctx.dir.checkpoints
        directory = checkpoints.path / f"done-step-{step}-0"
        if ranks.from_main(lambda: checkpoints.index_of(directory)) is None:
            raise ConfigError([f"{directory}: damaged, and the weights that sampled it are gone; delete "
                               f"{self.ctx.dir.path} to train again from the start"])  # fmt: skip
        return load_scored(directory / "scored.jsonl", prompts)


class PlayedEpisodes(SampledRollouts):
    """Episodes of several turns; the environment gives their rewards."""

    def __init__(self, ctx: Context, generator: Generator, scorer: Composite, settings: Episodes) -> None:
        super().__init__(ctx, generator, scorer)
        self.settings = settings
        location = f"{ctx.cfg.path}: {ctx.name}.episodes.environment"
        self.environment = load_environment(settings.environment, ctx.cfg.verifier_dirs, where=location)

    def sample_and_score(self, prompts: Sequence[Prompt], step: int, attempt: int) -> list[Scored]:
        ctx = self.ctx
        with shutdown.at_once():
            played = play(
                self.generator, self.environment, prompts, ctx.cfg.sampling, samples=self.block.samples,
                tokenizer=ctx.tokenizer, stop_token_ids=ctx.stop_token_ids, max_turns=self.settings.max_turns,
                memory=self.settings.memory,
                key=(ctx.cfg.seed, ctx.name, "step", step, attempt), context=ctx.context_tokens(),
            )  # fmt: skip
        count_tokens(ctx.dir.logs.tokens, played)
        return played

    def evaluate(self, step: int) -> dict[str, Any]:
        """Also figures of whole episodes, by which keep: best chooses."""
        validating = bool(self.ctx.cfg.prompts.validation)
        starts = self.ctx.validation_prompts if validating else None
        figures = judge_episodes(self.ctx, self.generator, self.settings, "step", step, starts=starts)
        return {**super().evaluate(step), **(of_validation(figures) if validating else figures)}


def make_source(ctx: Context, generator: Generator, scorer: Composite) -> SampledRollouts:
    """The source that the stage's config describes."""
    if ctx.block.episodes is not None:
        return PlayedEpisodes(ctx, generator, scorer, ctx.block.episodes)
    if ctx.block.max_lag:
        ranks.open_aside()
    return SampledRollouts(ctx, generator, scorer)


def count_tokens(tokens: dict[str, int], scored: Sequence[Scored]) -> None:
    """Add what was sampled, over all ranks: the budget at which methods are compared."""
    tokens["prompt"] += sum(len(s.rollout.prompt.ids) for s in scored)
    tokens["completion"] += sum(sum(s.rollout.mask) for s in scored)


__all__ = ["PlayedEpisodes", "SampledRollouts", "make_source"]
