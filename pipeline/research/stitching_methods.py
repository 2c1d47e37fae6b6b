"""The methods that `stitch` compares: each trains a policy on the same logged walks with the code of its own stage.

A method returns its credit for each logged turn and the policy it trained. Methods of the policy loop treat the logs as
if the current policy had sampled them; only monte_carlo queries the environment.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pipeline.config.schema import Credit, Critic, Loss, Stitch
from pipeline.credit import advantages as credit
from pipeline.credit import selection
from pipeline.credit.conditioning import Axis, balanced
from pipeline.credit.returns import Step, best_in_data, returns_to_go
from pipeline.generation.episodes import Memory, play
from pipeline.generation.hf_engine import TransformersGenerator
from pipeline.models import models
from pipeline.records import Prompt, Rollout, Scored, episodes
from pipeline.research.offline_q import as_logged, regress
from pipeline.research.q_values import QValues, fit, shifted, token_advantages
from pipeline.run.stage_dir import StageDir
from pipeline.stages import policy as policy_stage
from pipeline.stages.context import Context
from pipeline.stages.sft import ImitationRow, train
from pipeline.update import canary, episode_credit
from pipeline.update.experience import make_experience
from pipeline.update.forward import CompletionLogprobs, Row, stack
from pipeline.update.loop import optimise
from pipeline.update.loop_state import Branch, LoopDeps
from pipeline.update.policy_loss import Experience
from verifiers import stitch

SAMPLES = 2  # walks in a group: from place 1 the two logged ones; from place 2 the only one, twice
LABEL, EDGES = "<{bin}>", (0.3, 0.8)  # returns of 0, the medium, 1
CONTINUATIONS = 4


@dataclass(frozen=True, slots=True)
class MethodResult:
    """credit: per logged turn. label: prepended to a prompt to request the best return."""

    model: Any
    credit: list[float]
    label: str = ""


@dataclass
class Bench:
    """One seed and one kind of memory. scored: every logged walk once, one row per turn."""

    ctx: Context
    seed: int
    memory: Memory
    base: str
    tokenizer: Any

    @property
    def block(self) -> Stitch:
        return self.ctx.block

    @cached_property
    def scored(self) -> list[Scored]:
        return logged_walks(self.tokenizer, self.memory, self.block.medium)

    @cached_property
    def rows(self) -> list[Row]:
        return [Row(s.rollout.prompt.ids, s.rollout.ids, s.rollout.mask) for s in self.scored]

    @cached_property
    def layout(self) -> episode_credit.Layout:
        return episode_credit.layout_of(self.scored)

    @cached_property
    def steps(self) -> list[list[Step]]:
        """The logs as a table; a state is the text that the policy reads."""
        return [[Step(s.rollout.prompt.ids, s.rollout.ids, s.reward) for s in e] for e in episodes(self.scored)]

    def context(self, name: str, block: Any, start: str) -> Context:
        """A separate context in which a stage's functions work as they do in that stage."""
        cfg = replace(self.ctx.cfg, seed=self.seed, blocks={name: block})
        separate = Context(cfg, name, StageDir(self.ctx.dir.path / f"seed-{self.seed}-{self.memory}", name))
        separate.policy_path, separate.tokenizer = start, self.tokenizer
        shutil.rmtree(separate.dir.path, ignore_errors=True)  # a method takes seconds: a killed one starts again
        separate.dir.open()
        return separate

    def imitate(self, name: str, start: str, examples: Sequence[ImitationRow]) -> str:
        ctx = self.context(name, self.block, start)
        train(ctx, start, examples, ctx.dir.model_dir, self.block.trainer, key=(name,))
        return str(ctx.dir.model_dir)

    @cached_property
    def sft(self) -> str:
        """SFT on the logs: the start of every method except the conditioned ones."""
        return self.imitate("sft", self.base, [example(s) for s in self.scored])

    @cached_property
    def heads(self) -> QValues:
        heads = QValues(self.load(self.sft))
        fit(heads, as_logged(self.scored), self.block.offline_q, key=(self.seed, self.memory))
        return heads

    def load(self, place: str) -> Any:
        return models.load_policy(place, self.ctx.cfg.model)


def logged_walks(tokenizer: Any, memory: Memory, medium: float) -> list[Scored]:
    out = []
    for walk in stitch.logs(medium):
        history: tuple[int, ...] = ()
        start = 2 * walk[0].gadget + walk[0].place - 1
        for number, turn in enumerate(walk):
            seen = tuple(tokenizer(stitch.prompt(turn.gadget, turn.place)).input_ids)
            seen = (*history, *seen) if memory == "history" else seen
            text = stitch.symbol(turn.gadget, turn.to)
            ids = (*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id)
            prompt = Prompt(start, tokenizer.decode(seen), seen, {"gadget": turn.gadget, "place": turn.place})
            # the logs do not record the probabilities of their steps
            rollout = Rollout(prompt, 0, ids, (0.0,) * len(ids), text, True, turn=number)
            out.append(Scored(rollout, turn.reward, "pass" if turn.reward else "fail"))
            history = (*seen, *ids)
    return out


def example(scored: Scored, label: Sequence[int] = ()) -> ImitationRow:
    return ImitationRow((*label, *scored.rollout.prompt.ids), scored.rollout.ids)


def per_turn(values: Sequence[Tensor]) -> list[float]:
    """Credit per turn: the sum over its tokens."""
    return [float(v.sum()) for v in values]


# --- imitation -----------------------------------------------------------------------------------------------------


def sft(bench: Bench) -> MethodResult:
    return MethodResult(bench.load(bench.sft), [1.0] * len(bench.scored))


def feedme(bench: Bench) -> MethodResult:
    """Imitate the best walk from each start."""
    candidates = [
        selection.Candidate(
            e[0].rollout.prompt.index, sum(s.reward for s in e), tuple(i for s in e for i in s.rollout.ids)
        )
        for e in episodes(bench.scored)
    ]
    kept = set(selection.select(candidates, selection.parse([{"top_k": 1}])))
    weight = [float(number in kept) for number, e in enumerate(bench.layout) for _ in e]
    examples = [example(s) for s, w in zip(bench.scored, weight, strict=True) if w]
    return MethodResult(bench.load(bench.imitate("feedme", bench.sft, examples)), weight)


def conditions(bench: Bench, *, best: bool) -> MethodResult:
    """Imitate every turn under a label of its return, or of the best logged return from there; request return 1."""
    values = [v for e in (best_in_data if best else returns_to_go)(bench.steps) for v in e]
    axis = Axis("reward", EDGES, LABEL).fitted(values)
    bins = [axis.bin_of(v) for v in values]
    ids = [tuple(bench.tokenizer(axis.text(b), add_special_tokens=False).input_ids) for b in range(axis.count)]
    chosen = balanced(bins, per_bin=4 * len(bins), seed=bench.seed)
    examples = [example(bench.scored[i], ids[bins[i]]) for i in chosen]
    name = "conditions_best" if best else "conditions"
    return MethodResult(
        bench.load(bench.imitate(name, bench.base, examples)), [float(b) for b in bins], axis.text(axis.best)
    )


# --- the policy loop -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Replay:
    """A rollout source that returns logged walks: pairs[i] are the episodes of prompt i."""

    pairs: Sequence[Sequence[Sequence[Scored]]]

    def sample_and_score(self, prompts: Sequence[Prompt], step: int, attempt: int) -> list[Scored]:
        return [s for prompt in prompts for episode in self.pairs[prompt.index] for s in episode]

    def continue_and_score(self, branches: Sequence[Branch], step: int) -> list[list[Scored]]:
        raise NotImplementedError("logged walks cannot be sampled on")

    def evaluate(self, step: int) -> dict[str, Any]:
        raise NotImplementedError("methods are judged after their training")


def replayed(bench: Bench, name: str, given: Credit, loss: Loss, critic: Critic | None = None) -> MethodResult:
    """`pipeline.update.loop` on the logs: every step uses all of them, grouped by the start of the walk."""
    groups = [[e for e in episodes(bench.scored) if e[0].rollout.prompt.index == i] for i in range(2 * stitch.GADGETS)]
    # every walk occurs equally often: a pair from place 2 is one walk twice, so a pair from place 1 is repeated
    pairs = [pair for group in groups for pair in ([group] * SAMPLES if len(group) == SAMPLES else [group * SAMPLES])]
    prompts = [replace(pair[0][0].rollout.prompt, index=number) for number, pair in enumerate(pairs)]
    alarms = replace(bench.block.loop.alarms, mismatch_mean_abs=1e9)
    steps = bench.block.loop.steps + (critic.warmup_steps if critic is not None else 0)
    block = replace(bench.block.loop, steps=steps, prompts=len(pairs), samples=SAMPLES, credit=given, loss=loss,
                    critic=critic, alarms=alarms, checkpoint_every=steps)  # fmt: skip
    ctx = bench.context(name, block, bench.sft)

    policy, precision = policy_stage.make_policy(ctx)
    source = Replay(pairs)
    deps = LoopDeps(
        block=block, seed_key=(bench.seed, name), prompts=prompts, source=source,
        learner=policy_stage.make_learner(ctx, policy), reference=None,
        generator=TransformersGenerator(bench.sft, ctx.cfg.model, ctx.cfg.generate), max_tokens=8,
        canary_tolerance=canary.tolerance(precision), directory=ctx.dir, record=lambda *_, **__: None,
    )  # fmt: skip
    with (ctx.dir.path / "console.txt").open("w") as log, redirect_stdout(log):
        state = optimise(deps)
    batch, _ = make_experience(deps, state, source.sample_and_score(prompts, 0, 0))
    got = {row.prompt_ids + row.ids: value for row, value in zip(batch.rows, per_turn(batch.advantages), strict=True)}
    return MethodResult(deps.learner.model, [got[row.prompt_ids + row.ids] for row in bench.rows])


def grpo(bench: Bench) -> MethodResult:
    return replayed(bench, "grpo", Credit(kind="group"), Loss())


def reinforce(bench: Bench) -> MethodResult:
    return replayed(bench, "reinforce", Credit(kind="global_baseline"), Loss(kind="reinforce"))


def ppo(bench: Bench, *, lam: float) -> MethodResult:
    critic = bench.block.loop.critic or Critic(init="policy")
    return replayed(bench, f"ppo_lambda_{lam:g}", Credit(kind="gae", lam=lam), Loss(), critic)


def monte_carlo(bench: Bench) -> MethodResult:
    """Credit each logged turn with the change in mean score of walks that the current policy continues from there."""
    block = replace(bench.block.loop, critic=None, loss=Loss(kind="reinforce"))
    ctx = bench.context("monte_carlo", block, bench.sft)
    policy, _ = policy_stage.make_policy(ctx)
    learner = policy_stage.make_learner(ctx, policy)
    generator = TransformersGenerator(bench.sft, ctx.cfg.model, ctx.cfg.generate)
    advantages: list[Tensor] = []
    for step in range(block.steps):
        generator.sync(models.named_weights(learner.model))
        advantages = stepwise_advantages(bench, sampled_values(bench, ctx, generator, step))
        batch = Experience(bench.rows, advantages, [torch.zeros(len(r.ids)) for r in bench.rows])
        learner.update(batch, range(len(bench.rows)), kl_coef=0.0, kl_kind="k3")
    return MethodResult(learner.model, per_turn(advantages))


def sampled_values(bench: Bench, ctx: Context, generator: Any, step: int) -> dict[tuple[int, ...], float]:
    """Prompt ids at a turn -> mean score of the walks that the policy continues from there."""
    prompts = list({s.rollout.prompt.ids: s.rollout.prompt for s in bench.scored}.values())
    played = play(
        generator, lambda: stitch.Environment(bench.block.medium), prompts, ctx.cfg.sampling, samples=CONTINUATIONS,
        max_turns=2, memory=bench.memory, key=(bench.seed, "continue", step), tokenizer=bench.tokenizer,
        stop_token_ids=ctx.stop_token_ids,
    )  # fmt: skip
    totals = [sum(s.reward + sum(r for _, r in s.step_rewards) for s in e) for e in episodes(played)]
    scores_BKM = torch.tensor(totals).view(len(prompts), 1, CONTINUATIONS)
    values = credit.monte_carlo_values(scores_BKM)[:, 0].tolist()
    return dict(zip((p.ids for p in prompts), values, strict=True))


def stepwise_advantages(bench: Bench, values: dict[tuple[int, ...], float]) -> list[Tensor]:
    step_values_EK = torch.full((len(bench.layout), max(map(len, bench.layout))), torch.nan)
    for number, places in enumerate(bench.layout):
        for k, i in enumerate(places):
            step_values_EK[number, k] = values[bench.rows[i].prompt_ids]
    scores_E = episode_credit.episode_returns(torch.tensor([s.reward for s in bench.scored]), bench.layout)
    mask_ET = stack(
        [m.float() for m in episode_credit.join([torch.tensor(r.mask) for r in bench.rows], bench.layout)]
    ).bool()
    steps_ET = stack(episode_credit.turn_numbers(bench.rows, bench.layout)).long()
    advantages_ET = credit.step_values_to_advantages(step_values_EK, scores_E, steps_ET, mask_ET)
    return episode_credit.split(list(advantages_ET), bench.layout, bench.rows)


# --- values from the logs ------------------------------------------------------------------------------------------


def offline_q(bench: Bench, *, extract: str) -> MethodResult:
    settings, logged = bench.block.offline_q, as_logged(bench.scored)
    advantages = token_advantages(bench.heads, bench.rows, budget=settings.tokens_per_microbatch)
    if extract == "shift":
        model = shifted(bench.heads, beta=settings.beta)
    else:
        key = (bench.seed, bench.memory)
        forward = CompletionLogprobs(bench.load(bench.sft), temperature=1.0)
        model = regress(forward, logged, advantages, settings, key=key, log=lambda *_: None)
    return MethodResult(model, per_turn(advantages))


METHODS: dict[str, Callable[[Bench], MethodResult]] = {
    "sft": sft,
    "feedme": feedme,
    "reinforce": reinforce,
    "grpo": grpo,
    "ppo_lambda_1": lambda bench: ppo(bench, lam=1.0),
    "ppo_lambda_0": lambda bench: ppo(bench, lam=0.0),
    "monte_carlo": monte_carlo,
    "conditions": lambda bench: conditions(bench, best=False),
    "conditions_best": lambda bench: conditions(bench, best=True),
    "offline_q_awr": lambda bench: offline_q(bench, extract="awr"),
    "offline_q_shift": lambda bench: offline_q(bench, extract="shift"),
}
QUERIES_ENVIRONMENT = frozenset({"monte_carlo"})

__all__ = ["METHODS", "QUERIES_ENVIRONMENT", "Bench", "MethodResult", "logged_walks"]
