"""Checks across the keys of one policy stage: settings that contradict each other, or that would do nothing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from pipeline.config.schema import BY_GROUP, Policy, Segments

if TYPE_CHECKING:
    from pipeline.config.load import Config

NEEDS_VALIDATION = (
    "best chooses by prompts that are neither trained on nor held out, else the held-out figure would be that of the "
    "best of several tries; give prompts.validation, as prompts: {validation: 0.1}"
)

Checks = dict[str, bool]  # what follows the stage's name in the message -> whether it applies


def policy_mistakes(name: str, block: Policy, config: Config) -> list[str]:
    """The mistakes of a policy stage, one line each."""
    checks = {
        **_batch_checks(block, config),
        **_credit_checks(block, config),
        **_critic_checks(block),
        **_loss_checks(block, config),
        **_kl_checks(block),
        **_teacher_checks(block, config),
        **_choice_checks(block, config),
    }
    return [name + message for message, wrong in checks.items() if wrong]


def _batch_checks(block: Policy, config: Config) -> Checks:
    """Counts, sampling and groups."""
    total, sampling = block.prompts * block.samples, config.sampling
    reshaped = {"top_p": sampling.top_p < 1, "top_k": sampling.top_k > 0, "min_p": sampling.min_p > 0,
           "repetition_penalty": sampling.repetition_penalty != 1}  # fmt: skip
    return {
        f": {block.prompts} prompts x {block.samples} samples = {total} is not divisible by "
        f"minibatches {block.minibatches}": total % block.minibatches != 0,
        f".overlap: samples are {_updates(block.max_lag)} old, and nothing corrects for it; give loss.importance: "
        "truncate, or loss.old_policy: generator": (
            block.max_lag > 0 and block.loss.importance == "none" and block.loss.old_policy == "trainer"
        ),
        ".overlap: one batch per step is sampled ahead; groups.dynamic, episodes and monte_carlo need more": (
            block.max_lag > 0
            and (block.groups.dynamic or block.episodes is not None or block.credit.kind == "monte_carlo")
        ),
        f".groups.overlong_buffer: {block.groups.overlong_buffer} exceeds sampling.max_tokens {sampling.max_tokens}": (
            block.groups.overlong_buffer > sampling.max_tokens
        ),
        ".sampler: column and ratios go together, as {column: source, ratios: {gsm8k: 3, countdown: 1}}": (
            (block.sampler.column is None) != (not block.sampler.ratios)
        ),
        **{
            f": sampling.{key} would change what is sampled and not what is trained on; leave it at its default": on
            for key, on in reshaped.items()
        },
    }


def _updates(count: int) -> str:
    return "one update" if count == 1 else f"{count} updates"


def _credit_checks(block: Policy, config: Config) -> Checks:
    credit, kl = block.credit, block.kl
    penalty = bool(block.groups.overlong_buffer or block.groups.missing_eos_penalty)
    kl_in_reward = kl.where == "reward" and kl.coef > 0
    return {
        f".samples: {credit.kind} credit compares the samples of a prompt; give at least 2": (
            credit.kind in BY_GROUP and block.samples < 2 and not (block.teacher and not block.teacher.reward_coef)
        ),
        f".credit.k: the best of {credit.k} samples needs as many samples of a prompt; samples is {block.samples}": (
            credit.kind == "pass_at_k" and credit.k > block.samples
        ),
        f".credit.gamma: {credit.kind} credit does not discount; leave it at 1, or choose gae or monte_carlo": (
            credit.gamma != 1 and credit.kind not in ("gae", "monte_carlo")
        ),
        f".credit.level: {credit.kind} credit has no turns; give token, or another credit.kind": (
            credit.kind in ("maxrl", "gdpo", "pass_at_k", "optimal_baseline") and credit.level == "turn"
        ),
        f".credit.level: {credit.kind} credit has no segments; give token, or another credit.kind": (
            credit.kind in ("maxrl", "gdpo", "pass_at_k", "optimal_baseline") and credit.level == "segment"
        ),
        ".credit.segments: only level segment has segments; give credit.level: segment": (
            credit.segments != Segments() and credit.level != "segment"
        ),
        ".credit.segments.marker: what ends a step; give one, as {by: marker, marker: '</step>'}": (
            credit.segments.by == "marker" and not credit.segments.marker
        ),
        ".credit.segments.marker: goes with by: marker": (
            credit.segments.marker is not None and credit.segments.by != "marker"
        ),
        f".credit.kind: {credit.kind} credit is made for one completion per prompt; leave episodes out": (
            credit.kind in ("gdpo", "optimal_baseline") and block.episodes is not None
        ),
        f".kl.where: {credit.kind} credit reads the reward alone; give loss": (
            credit.kind in ("maxrl", "gdpo") and kl_in_reward
        ),
        ".credit.kind: gdpo normalises every part of the reward, and with prompts.sources a row has only its own; "
        "choose another credit.kind": credit.kind == "gdpo" and bool(config.prompts.sources),
        ".kl.where: monte_carlo credit weighs scores of continuations, which carry no KL; give loss": (
            credit.kind == "monte_carlo" and kl_in_reward
        ),
        ".credit.kind: maxrl divides by the mean reward, from which no penalty may be subtracted; leave "
        "groups.overlong_buffer and groups.missing_eos_penalty at 0": credit.kind == "maxrl" and penalty,
    }


def _critic_checks(block: Policy) -> Checks:
    kind = block.credit.kind
    return {
        ".critic: gae credit needs a critic; add `critic: {}`, or choose another credit.kind": (
            kind == "gae" and block.critic is None
        ),
        f".critic: {kind} credit has no critic; give critic: null, or credit.kind gae": (
            kind != "gae" and block.critic is not None
        ),
        ".critic.segment_tokens: first is for segments; give credit.level: segment": (
            block.critic is not None and block.critic.segment_tokens == "first" and block.credit.level != "segment"
        ),
        ".ptx_data: without loss.ptx_coef nothing is imitated; give one, or leave the data out": (
            block.ptx_data is not None and block.loss.ptx_coef == 0
        ),
    }


def _observes(block: Policy, config: Config) -> bool:
    """Whether rows may hold what a tool or an environment answered."""
    history = block.episodes is not None and block.episodes.memory == "history"
    return history or config.tools is not None or config.program is not None


def _loss_checks(block: Policy, config: Config) -> Checks:
    loss = block.loss
    return {
        ".loss.importance: with old_policy generator the ratio includes the mismatch already; give none": (
            loss.old_policy == "generator" and loss.importance != "none"
        ),
        f".loss.old_policy: {loss.kind} has no ratio; leave it out": (
            loss.old_policy == "generator" and loss.kind == "reinforce"
        ),
        ".loss.aggregate: sequence_sum weighs a row by its length, which is meant for a ratio per sequence; give "
        "loss.kind gspo, or another mean": loss.aggregate == "sequence_sum" and loss.kind not in ("gspo", "vespo"),
        ".loss.observation_coef: there are no observations to predict; give tools, a program, or episodes with memory "
        "history": loss.observation_coef > 0 and not _observes(block, config),
        ".loss.cov_low: must lie below cov_high": loss.kind == "clip_cov" and loss.cov_low >= loss.cov_high,
        ".loss.top_entropy: a shared critic gives no entropies before the update; give critic.shared: false": (
            loss.top_entropy < 1 and block.critic is not None and block.critic.shared
        ),
    }


def _kl_checks(block: Policy) -> Checks:
    kl = block.kl
    return {
        f".kl.kind: a reward penalty is k1 (its mean is the KL); found {kl.kind!r}": (
            kl.where == "reward" and kl.kind != "k1" and kl.coef > 0
        ),
        ".kl.kind: k1 in the loss has no gradient in expectation; give k2, k3 or unbiased": (
            kl.where == "loss" and kl.kind == "k1" and kl.coef > 0
        ),
        ".kl.target: steers kl.coef by factors, and 0 stays 0; give a coef to begin with": (
            kl.target is not None and kl.coef == 0
        ),
        f".kl.reference: {kl.reference} needs a KL to be of use; give kl.coef, or leave it out": (
            kl.reference != "frozen" and kl.coef == 0
        ),
        f".kl.reference: under peft the reference is the base with the adapter off; {kl.reference} would need a copy": (
            kl.reference != "frozen" and block.peft is not None
        ),
    }


def _choice_checks(block: Policy, config: Config) -> Checks:
    """Mistakes in how a stage chooses the step that it saves."""
    best = block.keep == "best"
    return {
        ".keep: best chooses among evaluation passes; give evaluate_every, as evaluate_every: 10": (
            best and block.evaluate_every is None
        ),
        f".keep: {NEEDS_VALIDATION}": best and not config.prompts.validation,
        ".patience: stops by the passes that keep: best compares; add keep: best": (
            block.patience is not None and not best
        ),
        ".keep_by: chooses for keep: best; add keep: best": block.keep_by != "accuracy" and not best,
    }


def _teacher_checks(block: Policy, config: Config) -> Checks:
    teacher = block.teacher
    if teacher is None:
        return {".teacher: distill needs one; name a model, or give shows": block.kind == "distill"}
    marks = set(re.findall(r"\{(\w*)\}", teacher.shows or ""))
    unknown = sorted(marks - {"demonstration", "answer", "detail", "peer"})
    full = teacher.form == "full"
    return {
        ".teacher: the policy itself with the same prompt agrees with the policy; name a model, or give shows": (
            teacher.model is None and teacher.server is None and teacher.shows is None
        ),
        ".teacher: model and server are two teachers; leave one out": (
            teacher.model is not None and teacher.server is not None
        ),
        ".teacher.server: must begin with http:// or https://": (
            teacher.server is not None and not teacher.server.startswith(("http://", "https://"))
        ),
        ".teacher.form: a server gives log-probs of its most likely tokens, not of the whole vocabulary; give top_k "
        "(at most the server's --max-logprobs, which is 20 unless set), or form: sampled": (
            teacher.server is not None and full and teacher.top_k is None
        ),
        f".teacher.server: vLLM gives log-probs of a prompt at temperature 1, and sampling.temperature is "
        f"{config.sampling.temperature:g}; give 1, or load the teacher here with model": (
            teacher.server is not None and config.sampling.temperature != 1
        ),
        f".teacher.shows: no mark {unknown}; have demonstration, answer, detail and peer, in braces": bool(unknown),
        ".teacher.shows: has no mark to fill, as {demonstration}; without one every prompt shows the same": (
            teacher.shows is not None and not marks
        ),
        f".teacher.follow: {teacher.follow} is for a teacher that is the policy itself; leave it out, or the model": (
            teacher.follow != "frozen" and (teacher.model is not None or teacher.server is not None)
        ),
        ".teacher.follow: under peft the teacher is a frozen copy of the start; leave it out": (
            teacher.follow != "frozen" and block.peft is not None
        ),
        ".teacher: one that judges single answers; leave episodes out": block.episodes is not None,
        ".teacher: gae credit and a shared critic leave no room for it; choose another credit.kind": (
            block.critic is not None
        ),
        ".teacher.beta: form sampled is the reverse KL; leave beta, top_k and normalise out, or give form: full": (
            not full and (teacher.beta != 1 or teacher.top_k is not None or not teacher.normalise)
        ),
        ".teacher.reward_coef: with optimal_baseline credit the reward is weighted per token; choose another credit": (
            block.credit.kind == "optimal_baseline"
        ),
    }
