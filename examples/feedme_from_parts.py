"""FeedME on the demo task in one straight line: sample, keep the right answers, imitate them, repeat.

    python examples/feedme_from_parts.py

The parts are those of grpo_from_parts.py; only the credit differs: samples are selected instead of weighted by an
advantage, so that no wrong answer pushes the policy away. Takes about a minute on one CPU core.
Source: imitation of the best samples, RAFT, arXiv:2304.06767; OpenAI's model index describes text-davinci-001 so.
"""

from __future__ import annotations

from grpo_from_parts import SAMPLES, imitate, setup

from pipeline.credit.selection import Candidate, FilterRound, parse, select
from pipeline.seeds import cycle_indices
from pipeline.stats import pass_rate
from pipeline.update.forward import Row

ROUNDS, PROMPTS = 3, 128
FILTERS = parse([{"threshold": 1.0}, "dedup", {"cap": 4}])


def main(seed: int = 1, rounds: int = ROUNDS) -> tuple[float, float]:
    """Held-out accuracy before and after."""
    policy, sample, train_prompts, heldout_prompts = setup(seed)
    before = pass_rate(sample(heldout_prompts, 4, "before"))
    for number in range(rounds):
        # prompts -> rollouts -> scores
        indices = cycle_indices(len(train_prompts), number * PROMPTS, PROMPTS, seed, "order")
        scored = sample([train_prompts[i] for i in indices], SAMPLES, "round", number)
        # scores -> credit: which samples to imitate
        candidates = [Candidate(s.rollout.prompt.index, s.reward, s.rollout.ids, s.status == "pass") for s in scored]
        kept = select(candidates, FILTERS, FilterRound(number, seed))
        # credit -> update
        rows = [Row(scored[i].rollout.prompt.ids, scored[i].rollout.ids, scored[i].rollout.mask) for i in kept]
        imitate(policy, rows, steps=20, lr=1e-3, seed=seed)
        rewards = [s.reward for s in scored]
        print(f"round {number + 1}  reward {sum(rewards) / len(rewards):.3f}  kept {len(kept)} of {len(scored)}")
    after = pass_rate(sample(heldout_prompts, 4, "after"))
    print(f"held-out accuracy: {before:.3f} before, {after:.3f} after {rounds} rounds of FeedME")
    return before, after


if __name__ == "__main__":
    main()
