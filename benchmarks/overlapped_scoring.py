"""What scoring adds to a rollout when both overlap: finished samples go from the generator to the sandbox immediately.

A random model does not sample programs, so each finished sample submits a prepared program instead: right and wrong
answers to a task of five assertions, as in `scoring`. `afterwards` starts scoring when all samples are drawn.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from benchmarks.measure import in_turns
from benchmarks.scoring import ASSERTIONS, answers, expected
from benchmarks.workload import Workload

WORK = Workload(prompts=32)


def run(rounds: int = 5) -> dict[str, Any]:
    import rewards
    from benchmarks.engine import open_engine, prompts_of
    from pipeline.config.schema import Sampling
    from pipeline.generation.generator import rollouts
    from pipeline.models.models import end_ids
    from verifiers import sandbox

    if problem := sandbox.unavailable():
        return {"skipped": problem, "ratios": {}}
    n = WORK.prompts * WORK.samples
    programs = [f"```python\n{answer}```" for answer in answers(n)]
    task = {"prompt": "Write add(a, b).", "entry_point": "add", "tests": ASSERTIONS}
    batch = rewards.Batch([""] * n, [[]] * n, programs, [[]] * n, [True] * n, [task] * n)
    scorer = rewards.build({"python_tests": {}})
    with tempfile.TemporaryDirectory() as folder:
        generator, _, tokenizer = open_engine(Path(folder), WORK)
        prompts = prompts_of(Path(folder), tokenizer, WORK.prompts)
        sampling, ends = Sampling(max_tokens=WORK.max_tokens), end_ids(tokenizer)

        def draw(on_done: Any = None) -> None:
            rollouts(
                generator, prompts, sampling, samples=WORK.samples, key=("bench",), tokenizer=tokenizer,
                stop_token_ids=ends,
                on_done=on_done,
            )  # fmt: skip

        def check(scores: list[rewards.Score]) -> None:
            assert [s.status == "pass" for s in scores] == expected(n), scores

        def overlapped() -> None:
            stream = scorer.stream()
            draw(lambda i, rollout: stream.add(i, programs[i], task))
            check(stream.finish(batch).result())

        def afterwards() -> None:
            draw()
            check(scorer.score(batch))

        spent = in_turns({"rollout": draw, "overlapped": overlapped, "afterwards": afterwards}, rounds=rounds)
    alone = spent["rollout"]["wall"]
    return {
        "ratios": {"score_overlap_overhead": spent["overlapped"]["wall"] / alone - 1},
        "afterwards_overhead": round(spent["afterwards"]["wall"] / alone - 1, 4),
        "samples": n,
        "seconds": spent,
    }
