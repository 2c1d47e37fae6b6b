"""The methods that `revalue` compares: each learns from the same old logs, then from the same new samples.

A method is a function from (bench, change, new samples) to a trained policy. Methods that value steps turn their values
into a policy in one way, by weighted imitation (`extracted`); condition labels are imitated by SFT; grpo samples walks
itself and is the only one that queries the environment.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch

from pipeline.config.schema import Revalue
from pipeline.credit.conditioning import Axis, balanced
from pipeline.credit.returns import Step, best_in_data, returns_to_go
from pipeline.generation.episodes import Memory, play
from pipeline.generation.hf_engine import TransformersGenerator
from pipeline.models import models
from pipeline.records import Prompt, Rollout, Scored, episodes
from pipeline.research import tabular_values as tables
from pipeline.research.offline_q import as_logged, regress
from pipeline.research.q_values import Logged, fit, token_advantages
from pipeline.research.stitching_methods import Bench, example
from pipeline.seeds import derive
from pipeline.stages import policy as policy_stage
from pipeline.stages.context import Context
from pipeline.update import canary
from pipeline.update.forward import CompletionLogprobs, Row, completion_logprobs
from pipeline.update.loop import optimise
from pipeline.update.loop_state import Branch, LoopDeps
from verifiers import revalue

Ids = tuple[int, ...]
Judged = dict[str, float]  # best walk of each world -> its probability
BEST_WALKS = tuple(dict.fromkeys(world.best_walk() for world in revalue.WORLDS.values()))
LABEL, EDGES = "<{bin}>", (0.5, 0.85)  # total returns of a walk: up to 0.4; the old best's 0.7; a new best's 1 to 1.4


@dataclass(frozen=True, slots=True)
class Walk:
    """A sampled walk of one gadget. lead: how it came to its first place, from A; counts only in history prompts."""

    gadget: int
    lead: str
    places: str
    world: str


def old_walks(copies: int) -> list[Walk]:
    """What the logs hold: every walk of the world before a change, `copies` times."""
    walks = revalue.WORLDS["before"].walks()
    return [Walk(g, "A", walk, "before") for _ in range(copies) for g in range(revalue.GADGETS) for walk in walks]


def new_samples(change: str, walks: int, seed: int) -> list[Walk]:
    """Of every gadget one sample of each changed step, on to an end, and then random walks from A."""
    world = revalue.WORLDS[change]
    out = [Walk(g, lead, places, change) for g in range(revalue.GADGETS) for lead, places in
           revalue.first_samples(change)]  # fmt: skip
    for number in range(walks):
        for g in range(revalue.GADGETS):
            rng = random.Random(derive(seed, "walk", change, g, number))
            out.append(Walk(g, "A", revalue.random_walk(world, rng), change))
    return out


class RevalueBench(Bench):
    """One seed and one kind of memory: the old logs, what methods learned from them, and how a policy is judged."""

    def __init__(self, ctx: Context, seed: int, memory: Memory, base: str, tokenizer: Any) -> None:
        super().__init__(ctx, seed, memory, base, tokenizer)
        self.judged: dict[Any, Judged] = {}

    @property
    def settings(self) -> Revalue:
        block: Revalue = self.ctx.block
        return block

    @cached_property
    def scored(self) -> list[Scored]:
        return self.as_scored(old_walks(self.settings.old_walks))

    @cached_property
    def old_transitions(self) -> list[tables.Transition]:
        return self.transitions(old_walks(1))

    @cached_property
    def old_policy(self) -> str:
        """Directory of the policy that is best before a change: where grpo starts."""
        learner = tables.TDLearner()
        learner.settle(self.old_transitions, passes=len(revalue.PLACES))
        directory = self.ctx.dir.path / f"seed-{self.seed}-{self.memory}" / "old_policy"
        models.save(self.extracted(learner.values()), self.tokenizer, directory, dtype=torch.float32)
        return str(directory)

    # --- walks as text ------------------------------------------------------------------------------------------

    def prompt_ids(self, gadget: int, history: str) -> Ids:
        """What the policy reads at the end of `history`, a walk from A: the last place, or all of the walk."""
        shown = history if self.memory == "history" else history[-1]
        out: list[int] = []
        for index, place in enumerate(shown):
            out += self.tokenizer(revalue.prompt(gadget, place), add_special_tokens=index == 0).input_ids
            if index + 1 < len(shown):
                out += self.action_ids(gadget, shown[index + 1])
        return tuple(out)

    def action_ids(self, gadget: int, place: str) -> Ids:
        text = revalue.symbol(gadget, place)
        return (*self.tokenizer(text, add_special_tokens=False).input_ids, self.tokenizer.eos_token_id)

    def steps_of(self, walk: Walk) -> list[tuple[str, str, float]]:
        """(history from A, next place, reward) of each step."""
        world, history, out = revalue.WORLDS[walk.world], walk.lead, []
        for to in walk.places[1:]:
            out.append((history, to, world.paid(to)))
            history += to
        return out

    def as_scored(self, walks: Sequence[Walk]) -> list[Scored]:
        """One row per step; the rows of a walk follow one another."""
        out = []
        for walk in walks:
            for number, (history, to, reward) in enumerate(self.steps_of(walk)):
                ids, seen = self.action_ids(walk.gadget, to), self.prompt_ids(walk.gadget, history)
                prompt = Prompt(walk.gadget, self.tokenizer.decode(seen), seen, {"gadget": walk.gadget})
                text = revalue.symbol(walk.gadget, to)
                rollout = Rollout(prompt, 0, ids, (0.0,) * len(ids), text, True, turn=number)
                out.append(Scored(rollout, reward, "pass" if reward > 0 else "fail"))
        return out

    def transitions(self, walks: Sequence[Walk]) -> list[tables.Transition]:
        out = []
        for walk in walks:
            steps = self.steps_of(walk)
            for number, (history, to, reward) in enumerate(steps):
                state, arrival = (self.prompt_ids(walk.gadget, h) for h in (history, history + to))
                over = number + 1 == len(steps)
                out.append(tables.Transition(state, self.action_ids(walk.gadget, to), reward, arrival, over))
        return out

    # --- values -> policy -> its probability of each walk -------------------------------------------------------

    def extracted(self, values: Mapping[tables.Pair, float]) -> Any:
        """The SFT model trained to imitate every known step with weight exp(beta * (Q - max Q of its state))."""
        best: dict[Any, float] = {}
        for (state, _), value in values.items():
            best[state] = max(value, best.get(state, value))
        rows = [Row(state, action, (True,) * len(action)) for state, action in values]  # type: ignore[arg-type]
        advantages = [torch.full((len(r.ids),), values[p] - best[p[0]]) for p, r in zip(values, rows, strict=True)]
        logged = Logged(rows, [[i] for i in range(len(rows))], advantages, [False] * len(rows))
        settings = replace(self.settings.offline_q, batch=len(rows))
        forward = CompletionLogprobs(self.load(self.sft), temperature=1.0)
        return regress(forward, logged, advantages, settings, key=(self.seed, self.memory), log=lambda *_: None)

    def judge_values(self, values: Mapping[tables.Pair, float]) -> Judged:
        """`judge` of the extracted policy; equal values are extracted once."""
        key = tuple((*pair, round(value, 9)) for pair, value in values.items())
        if key not in self.judged:
            self.judged[key] = self.judge(self.extracted(values))
        return self.judged[key]

    def judge(self, model: Any, label: str = "") -> Judged:
        """Best walk of each world -> its probability from A, exact, mean over gadgets; end tokens included."""
        front, rows = tuple(self.tokenizer(label, add_special_tokens=False).input_ids), []
        for walk in BEST_WALKS:
            for g in range(revalue.GADGETS):
                for index in range(1, len(walk)):
                    ids = self.action_ids(g, walk[index])
                    rows.append(Row((*front, *self.prompt_ids(g, walk[:index])), ids, (True,) * len(ids)))
        forward = CompletionLogprobs(model, temperature=1.0)
        device = next(model.parameters()).device
        steps = iter(completion_logprobs(forward, rows, budget=16_384, device=device))
        return {
            walk: sum(
                float(torch.stack([next(steps).sum() for _ in walk[1:]]).sum().exp()) for _ in range(revalue.GADGETS)
            ) / revalue.GADGETS
            for walk in BEST_WALKS
        }  # fmt: skip


Method = Callable[[RevalueBench, str, Sequence[Walk]], Judged]


# --- tables --------------------------------------------------------------------------------------------------------


def tabular(make: Callable[[RevalueBench], tables.TDLearner]) -> Method:
    """Settled on the old logs; then each new step is used once, in the order in which it was sampled."""

    def method(bench: RevalueBench, change: str, new: Sequence[Walk]) -> Judged:
        learner = make(bench)
        learner.settle(bench.old_transitions, passes=len(revalue.PLACES))
        learner.learn(bench.transitions(new))
        return bench.judge_values(learner.values())

    return method


def dyna(bench: RevalueBench) -> tables.TDLearner:
    return tables.Dyna(planning=bench.settings.planning, rng=random.Random(derive(bench.seed, "dyna")))


# --- IQL -----------------------------------------------------------------------------------------------------------


def iql(bench: RevalueBench, change: str, new: Sequence[Walk], *, newest: bool) -> Judged:
    """Heads fitted to the old logs, fitted further to all logs. newest: old records pay what was last seen."""
    scored = [*bench.scored, *bench.as_scored(new)]
    if newest:
        scored = relabelled(scored)
    heads = copy.deepcopy(bench.heads)
    settings = replace(bench.settings.offline_q, value_steps=bench.settings.new_value_steps)
    if new:
        fit(heads, as_logged(scored), settings, key=(bench.seed, bench.memory, change))
    steps = {(s.rollout.prompt.ids, s.rollout.ids): Row(s.rollout.prompt.ids, s.rollout.ids, s.rollout.mask)
             for s in scored}  # fmt: skip
    advantages = token_advantages(heads, list(steps.values()), budget=settings.tokens_per_microbatch)
    return bench.judge_values({pair: float(a.sum()) for pair, a in zip(steps, advantages, strict=True)})


def relabelled(scored: Sequence[Scored]) -> list[Scored]:
    """Every step with the reward that the newest record of the same step has."""
    newest = {(s.rollout.prompt.ids, s.rollout.ids): s.reward for s in scored}
    return [replace(s, reward=newest[s.rollout.prompt.ids, s.rollout.ids]) for s in scored]


# --- condition labels ----------------------------------------------------------------------------------------------


def conditions(bench: RevalueBench, change: str, new: Sequence[Walk], *, best: bool) -> Judged:
    """Imitate every step under a label of its walk's return, or of the best return in the data; request the best.

    best: rewards are those last seen, and a step's label is what its walk had earned before it plus the best logged
    return from there on.
    """
    scored = [*bench.scored, *bench.as_scored(new)]
    walks = episodes(relabelled(scored) if best else scored)
    steps = [[Step(s.rollout.prompt.ids, s.rollout.ids, s.reward) for s in walk] for walk in walks]
    ahead = (best_in_data if best else returns_to_go)(steps)
    totals = [sum(step.reward for step in walk[:k]) + value for walk, values in zip(steps, ahead, strict=True)
              for k, value in enumerate(values)]  # fmt: skip
    axis = Axis("return", EDGES, LABEL).fitted(totals)
    bins = [axis.bin_of(v) for v in totals]
    ids = [tuple(bench.tokenizer(axis.text(b), add_special_tokens=False).input_ids) for b in range(axis.count)]
    chosen = balanced(bins, per_bin=len(bins), seed=bench.seed)
    name = f"{'conditions_best' if best else 'conditions'}-{change if new else 'before'}"
    if not new and name in bench.judged:
        return bench.judged[name]
    directory = bench.imitate(name, bench.base, [example(scored[i], ids[bins[i]]) for i in chosen])
    bench.judged[name] = bench.judge(bench.load(directory), axis.text(axis.best))
    return bench.judged[name]


# --- grpo, online --------------------------------------------------------------------------------------------------


@dataclass
class PlayedWalks:
    """A rollout source that plays the changed world, and judges the policy after so many walks per gadget."""

    bench: RevalueBench
    ctx: Context
    change: str
    samples: int
    generator: TransformersGenerator
    model: Any
    judged: dict[int, Judged]

    def sample_and_score(self, prompts: Sequence[Prompt], step: int, attempt: int) -> list[Scored]:
        if step * self.samples in self.judged:
            self.judged[step * self.samples] = self.bench.judge(self.model)
        return play(
            self.generator, revalue.Environment, prompts, self.ctx.cfg.sampling, samples=self.samples, max_turns=4,
            memory=self.bench.memory, key=(self.bench.seed, self.change, step), tokenizer=self.bench.tokenizer,
            stop_token_ids=self.ctx.stop_token_ids,
        )  # fmt: skip

    def continue_and_score(self, branches: Sequence[Branch], step: int) -> list[list[Scored]]:
        raise NotImplementedError("group credit samples no continuations")

    def evaluate(self, step: int) -> dict[str, Any]:
        raise NotImplementedError("a policy is judged by its log-probs")


def grpo(bench: RevalueBench, change: str, walks: Sequence[int]) -> dict[int, Judged]:
    """The policy loop in the changed world, from the policy that was best before. Walks per gadget -> how it does."""
    block = replace(bench.settings.loop, prompts=revalue.GADGETS, steps=max(walks) // bench.settings.loop.samples)
    block = replace(block, checkpoint_every=block.steps, alarms=replace(block.alarms, no_signal_steps=10**6))
    start = bench.old_policy
    ctx = bench.context(f"grpo-{change}", block, start)
    policy, precision = policy_stage.make_policy(ctx)
    learner = policy_stage.make_learner(ctx, policy)
    prompts = [
        Prompt(g, revalue.prompt(g, "A"), bench.prompt_ids(g, "A"), {"gadget": g, "world": change})
        for g in range(revalue.GADGETS)
    ]
    generator = TransformersGenerator(start, ctx.cfg.model, ctx.cfg.generate)
    judged: dict[int, Judged] = {count: {} for count in walks}
    source = PlayedWalks(bench, ctx, change, block.samples, generator, learner.model, judged)
    deps = LoopDeps(
        block=block, seed_key=(bench.seed, change), prompts=prompts, source=source, learner=learner, reference=None,
        generator=generator, max_tokens=ctx.cfg.sampling.max_tokens * 8, canary_tolerance=canary.tolerance(precision),
        directory=ctx.dir, record=lambda *_, **__: None,
    )  # fmt: skip
    with (ctx.dir.path / "console.txt").open("w") as log, redirect_stdout(log):
        optimise(deps)
    judged[max(walks)] = bench.judge(learner.model)
    return judged


METHODS: dict[str, Method] = {
    "td": tabular(lambda bench: tables.TDLearner()),
    "successor_features": tabular(lambda bench: tables.SuccessorFeatures()),
    "reward_weighted": tabular(lambda bench: tables.RewardWeightedSuccessors()),
    "dyna": tabular(dyna),
    "search_1": tabular(lambda bench: tables.DepthLimitedSearch(depth=1)),
    "search_2": tabular(lambda bench: tables.DepthLimitedSearch(depth=2)),
    "search_3": tabular(lambda bench: tables.DepthLimitedSearch(depth=3)),
    "iql": partial(iql, newest=False),
    "iql_newest": partial(iql, newest=True),
    "conditions": partial(conditions, best=False),
    "conditions_best": partial(conditions, best=True),
}
ONLINE = "grpo"

__all__ = ["BEST_WALKS", "METHODS", "ONLINE", "RevalueBench", "Walk", "grpo", "new_samples", "old_walks"]
