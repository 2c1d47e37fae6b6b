"""The canary: rounding does not trip it, and one stale tensor of any kind does, in both precisions and both engines."""

import gc
import importlib.util
import math
from typing import Any

import pytest
import torch
from loop_kit import tiny_model

from pipeline.config.schema import Generate, Model
from pipeline.generation.hf_engine import TransformersGenerator
from pipeline.generation.vllm_engine import VllmGenerator
from pipeline.models import models
from pipeline.models.models import named_weights
from pipeline.records import Prompt
from pipeline.update import canary
from pipeline.update.forward import CompletionLogprobs, Row, completion_logprobs

needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")
PROMPTS = [Prompt(i, "p", tuple(3 + (7 * i + k) % 15 for k in range(5 + i % 3))) for i in range(40)]
KINDS = (
    "embed_tokens.weight",
    "lm_head.weight",
    "model.norm.weight",
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    "q_proj.weight",
    "q_proj.bias",
    "k_proj.weight",
    "v_proj.weight",
    "v_proj.bias",
    "o_proj.weight",
    "gate_proj.weight",
    "up_proj.weight",
    "down_proj.weight",
)  # fmt: skip; a bias of k adds the same to all scores of a query up to its rotation: it barely counts


class Trainer:
    """What the canary asks of a learner: float32 weights, products in the precision of the run."""

    def __init__(self, model, precision: torch.dtype) -> None:
        autocast = None if precision == torch.float32 else precision
        self.forward = CompletionLogprobs(model, temperature=0.7, autocast=autocast)

    def logprobs(self, rows, *, temperature=None):
        return completion_logprobs(self.forward, rows, budget=256, device=torch.device("cpu"), temperature=temperature)


def moved(place: str):
    """The model after training has changed every tensor by as much as it holds."""
    model = models.load_policy(place, Model())
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            size = 0.3 if "norm" in name else 0.15
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(
    scope="module",
    params=[(e, d) for e in ("transformers", "vllm") for d in ("float32", "bfloat16")],
    ids=lambda p: "-".join(p),
)
def both_sides(request, tmp_path_factory):
    """(generator, trainer, trained model, precision): the trainer holds other weights than the files."""
    engine, dtype = request.param
    if engine == "vllm" and importlib.util.find_spec("vllm") is None:
        pytest.skip("vLLM is not installed")
    place = str(tiny_model(tmp_path_factory.mktemp("canary"), tied=False))
    if engine == "vllm":
        generator: Any = VllmGenerator(place, Model(dtype=dtype), Generate(), max_model_len=64)
    else:
        generator = TransformersGenerator(place, Model(dtype=dtype), Generate())
    model = moved(place)
    precision = getattr(torch, dtype)
    yield generator, Trainer(model, precision), model, models.load_policy(place, Model()), precision
    del generator
    gc.collect()


def gap(generator, trainer, rows) -> float:
    return canary.measure(trainer, generator, rows)


@pytest.mark.stages
def test_one_stale_tensor_of_any_kind_is_beyond_the_limit_and_rounding_is_not(both_sides):
    generator, trainer, model, before, precision = both_sides
    old = dict(named_weights(before))
    generator.sync(named_weights(model))
    tolerance = canary.tolerance(precision)
    rows = canary.rows_at_start(generator, PROMPTS)
    limit = tolerance.limit(gap(generator, trainer, rows))
    other_rows = canary.rows_at_start(generator, PROMPTS[3:])
    assert gap(generator, trainer, other_rows) < limit, "equal weights, other tokens"
    missed = {}
    for kind in KINDS:
        name = next(n for n in old if n.endswith(kind))
        generator.sync([(n, old[n] if n == name else w) for n, w in named_weights(model)])
        found = gap(generator, trainer, rows)
        if found <= limit:
            missed[kind] = (found, limit)
    generator.sync(named_weights(model))
    assert not missed and gap(generator, trainer, rows) <= limit


def test_the_limit_follows_the_floor_between_what_is_always_allowed_and_what_no_rounding_explains():
    tolerance = canary.Tolerance(0.02, 0.25)
    assert tolerance.limit(math.nan) == 0.25, "before it was measured"
    assert tolerance.limit(0.001) == 0.02
    assert tolerance.limit(0.03) == pytest.approx(0.09)
    assert tolerance.limit(0.2) == 0.25
    assert canary.tolerance(torch.bfloat16, 0.7).limit(0.001) == 0.7, "the user's own limit does not follow it"


def test_a_token_counts_as_much_as_the_trainer_expects_it():
    """By hand: (0.8 * 0.1 + 0.2 * 0.5) / (0.8 + 0.2) = 0.18; a gap of 2 nats at e^-20 is as good as absent."""
    pairs = [(math.log(0.8), math.log(0.8) - 0.1), (math.log(0.2), math.log(0.2) + 0.5)]
    assert canary.weighted_gap(pairs) == pytest.approx(0.18)
    assert canary.weighted_gap([*pairs, (-20.0, -22.0)]) == pytest.approx(0.18, abs=1e-6)
    assert math.isnan(canary.weighted_gap([]))


def test_rows_of_a_step_are_spread_over_it_cut_short_and_bounded_in_all():
    rows = [Row((1, 2), tuple(range(50)), (True,) * 50) for _ in range(64)]
    rows[0] = Row((1, 2), (5,), (False,))
    chosen = canary.rows_of_step(rows)
    assert len(chosen) == canary.ROWS and all(len(r.ids) == canary.TOKENS_PER_ROW and any(r.mask) for r in chosen)
    long = [Row((1,) * 900, (3,), (True,)), Row((1,) * 5000, (3,), (True,))]
    assert canary.rows_of_step(long) == long[:1]
    assert canary.rows_of_step(long[1:]) == long[1:], "at least one"


@pytest.mark.stages
def test_rows_at_the_start_are_what_the_model_itself_goes_on_with(tmp_path):
    place = str(tiny_model(tmp_path / "m"))
    generator = TransformersGenerator(place, Model(), Generate())
    for row in canary.rows_at_start(generator, PROMPTS):
        with torch.no_grad():
            logits = generator.model(torch.tensor([[*row.prompt_ids, *row.ids]])).logits[0]
        likeliest = logits[len(row.prompt_ids) - 1 : -1].argmax(-1).tolist()
        assert list(row.ids) == likeliest
