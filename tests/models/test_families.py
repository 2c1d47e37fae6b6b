"""Real architectures and the shapes of their chat templates go through rendering, SFT, RL and vLLM."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.config.schema import Model, Prompts
from pipeline.data import encoding
from pipeline.models import models
from tests.families import FAMILIES, save

ROOT = Path(__file__).parents[2]
ROW = {"prompt": "a1>b1:", "completion": "R", "task": {"start": "a1", "goal": "b1"}}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request, tmp_path_factory):
    place = tmp_path_factory.mktemp(request.param)
    save(FAMILIES[request.param], place)
    return FAMILIES[request.param], place


def rendered(place, source):
    tokenizer = models.load_tokenizer(str(place), Model())
    ends = models.end_ids(tokenizer, models.load_policy(str(place), Model()))
    ids = encoding.render_ids(ROW, source, tokenizer)
    return tokenizer, ids, encoding.completion_ids(ROW, source, tokenizer, ids, ends=ends), ends


def test_a_turn_is_trained_to_end_with_the_templates_own_end_and_begins_with_one_bos(family):
    kind, place = family
    tokenizer, ids, completion, ends = rendered(place, Prompts(chat=True))
    assert tokenizer.convert_ids_to_tokens(completion[-1]) == kind.end and completion[-1] in ends
    assert sum(token in ends for token in completion) == 1
    bos = tokenizer.convert_tokens_to_ids(kind.bos) if kind.bos else None
    assert (ids + completion).count(bos) == (1 if kind.bos else 0)
    assert tokenizer.decode(ids + completion).count("a1>b1:") == 1


def test_thinking_tags_are_in_the_answer_or_in_the_prompt(tmp_path):
    save(FAMILIES["qwen3"], tmp_path)
    tokenizer, ids, completion, _ = rendered(tmp_path, Prompts(chat=True))
    assert "<think>" not in tokenizer.decode(ids) and tokenizer.decode(completion).startswith("<think>\n\n</think>")
    tokenizer, ids, completion, _ = rendered(tmp_path, Prompts(chat=True, chat_kwargs={"enable_thinking": False}))
    assert tokenizer.decode(ids).endswith("</think>\n\n") and tokenizer.decode(completion) == "R<|im_end|>"


@pytest.mark.stages
@pytest.mark.slow
def test_a_family_runs_every_stage_with_weights_in_step(family, tmp_path):
    _, place = family
    trainer = "{max_steps: 4, per_device_train_batch_size: 8, learning_rate: 1.0e-3, max_length: 128}"
    config = tmp_path / "run.yaml"
    config.write_text(
        f"run: family\nruns_dir: {tmp_path}\nmodel: {{path: {place}}}\nrewards: {{gridworld: {{}}}}\n"
        "prompts: {procedural: gridworld, rows: 400, heldout: 0.2, chat: true}\n"
        "sampling: {max_tokens: 12}\nevaluation: {samples: 4, prompts: 8}\n"
        "stages: [base, sft, feedme, reward_model, ppo, grpo, conditioned, evaluate]\n"
        f"sft: {{policy: base, trainer: {trainer}}}\n"
        # nothing is solved by a random model: keep whatever ended
        f"feedme: {{rounds: 1, prompts: 8, filters: [{{threshold: 0.0}}], random_control: false, trainer: {trainer}}}\n"
        f"reward_model: {{prompts: 16, data: {{path: {tmp_path}/pairs.jsonl, heldout: 0.2}}, trainer: {trainer}}}\n"
        "ppo: {reward: {reward_model: {}}, steps: 2, prompts: 8, samples: 2, critic: {warmup_steps: 0}}\n"
        "grpo: {steps: 2, prompts: 8, samples: 4}\n"
        f"conditioned: {{prompts: 8, demonstrations: 100, per_bin: 8, shuffled_control: false, trainer: {trainer}}}\n"
    )
    pairs = [{"prompt": f"a{i}>b{i}:", "chosen": "R", "rejected": "LLUD"} for i in range(1, 6)] * 4
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(p) + "\n" for p in pairs))
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "run", str(config)], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-1500:] + done.stderr[-3000:]
    for stage in ("ppo", "grpo"):
        metrics = json.loads((tmp_path / "family" / stage / "manifest.json").read_text())["metrics"]
        assert metrics["canary_max_abs"] < 1e-3 and metrics["mismatch_mean_abs"] < 1e-3
