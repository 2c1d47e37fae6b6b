"""The lean decoding loop against transformers' own `generate`, with the same seeded sampler on both sides."""

import pytest
import torch
from loop_kit import tiny_model

from pipeline.config.schema import Generate, Model, Sampling
from pipeline.generation.generator import Request
from pipeline.generation.hf_engine import ROOM, LeanDecoder, TransformersGenerator, supports
from pipeline.models import models
from tests.family_twins import FAMILIES, perturb, save

STOPS = frozenset({2})
PROMPTS = [(3, 8, 13, 9), (4, 9, 13, 5, 6, 7, 10), (5,), (11, 12, 3, 4, 5, 6), tuple(range(3, 30))]


def requests(vocabulary: int, *, max_tokens: int = 24) -> list[Request]:
    """Four samples of each prompt; the limits differ by row, so that rows end at different tokens."""
    prompts = [tuple(token % vocabulary for token in prompt) for prompt in PROMPTS]
    return [Request(p, 10 * i + j, max_tokens - 5 * j) for i, p in enumerate(prompts) for j in range(4)]


def both(generator: TransformersGenerator, sampling: Sampling, asked: list[Request]):
    """Samples of the lean decoder and of `generate`."""
    lean = generator.sample(asked, sampling, STOPS)
    assert generator.decoder is not None
    generator.decoder = None
    return lean, generator.sample(asked, sampling, STOPS)


def assert_equal_samples(lean, expected) -> None:
    assert [s.ids for s in lean] == [s.ids for s in expected]
    assert [s.finished for s in lean] == [s.finished for s in expected]
    gaps = [abs(a - b) for x, y in zip(lean, expected, strict=True)
            for a, b in zip(x.logprobs, y.logprobs, strict=True)]  # fmt: skip
    assert max(gaps) < 1e-4


@pytest.mark.stages
@pytest.mark.parametrize("name", ["gemma3", "llama", "mistral", "qwen2", "qwen3"])
def test_every_supported_family_draws_what_generate_draws(tmp_path, name):
    """Completions of up to 24 tokens after prompts of up to 27: beyond the twins' windows of 16 tokens."""
    save(FAMILIES[name], tmp_path)
    generator = TransformersGenerator(str(tmp_path), Model(), Generate())
    perturb(generator.model, seed=1)
    assert_equal_samples(*both(generator, Sampling(), requests(generator.model.config.vocab_size)))


@pytest.mark.stages
@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=1.5), Sampling(top_k=5, top_p=0.9), Sampling(repetition_penalty=3.0)]
)
def test_filters_and_penalties_are_those_of_generate_after_rows_have_left_the_batch(tmp_path, sampling):
    generator = TransformersGenerator(str(tiny_model(tmp_path / "m")), Model(), Generate())
    asked = requests(20, max_tokens=2 * ROOM + 5)  # the cache grows twice
    lean, expected = both(generator, sampling, asked)
    assert_equal_samples(lean, expected)
    assert len({len(s.ids) for s in lean}) > 4, "rows end at different tokens"


@pytest.mark.stages
def test_each_distinct_prompt_is_computed_once_and_ended_rows_leave_the_batch(tmp_path, monkeypatch):
    generator = TransformersGenerator(str(tiny_model(tmp_path / "m")), Model(), Generate())
    generator.sample([Request((3,), 0, 1)], Sampling(), STOPS)  # the first call compares the decoder with the model
    rows: list[int] = []
    plain, step = generator.model.forward, LeanDecoder.step

    def forward(*args, input_ids, **kwargs):
        rows.append(len(input_ids))
        return plain(*args, input_ids=input_ids, **kwargs)

    def counted(self, ids_B):
        rows.append(len(ids_B))
        return step(self, ids_B)

    monkeypatch.setattr(generator.model, "forward", forward)
    monkeypatch.setattr(LeanDecoder, "step", counted)
    asked = [Request((3, 4, 5 + i % 2), i, 1 if i < 30 else 9) for i in range(40)]
    samples = generator.sample(asked, Sampling(), frozenset({0}))
    going_on = sum(len(s.ids) > 1 for s in samples)
    assert going_on <= 10, "30 of 40 rows may have one token"
    assert rows[:2] == [2, going_on], "two prompts"


@pytest.mark.parametrize("name", ["gemma2", "granite", "smollm3", "qwen2-moe"])
def test_other_families_are_left_to_generate(tmp_path, name):
    save(FAMILIES[name], tmp_path)
    assert not supports(models.load_policy(str(tmp_path), Model()))


def test_a_rotation_that_depends_on_the_length_is_not_supported(tmp_path):
    model = models.load_policy(str(tiny_model(tmp_path / "m")), Model())
    assert supports(model)
    model.config.rope_parameters = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    assert not supports(model)


def test_a_model_whose_own_forward_computes_something_else_is_left_to_generate(tmp_path):
    model = models.load_policy(str(tiny_model(tmp_path / "m")), Model()).eval()
    assert LeanDecoder.of(model) is not None
    layer = model.model.layers[0]
    plain = layer.forward
    layer.forward = lambda states, *args, **kwargs: 1.05 * plain(states, *args, **kwargs)
    assert LeanDecoder.of(model) is None


def test_the_cache_of_a_window_holds_the_last_tokens_at_the_end_of_the_prompt(tmp_path):
    """By hand: of a prompt of 27 tokens a layer with a window of 16 keeps 15, in the slots before the first new one."""
    save(FAMILIES["gemma3"], tmp_path)
    decoder = LeanDecoder.of(models.load_policy(str(tmp_path), Model()).eval())
    assert decoder is not None
    with torch.no_grad():
        decoder.begin([tuple(range(3, 30))], 4)
    filled = [keys[0, 0].abs().sum(-1).gt(0).nonzero()[:, 0].tolist() for keys, _ in decoder.cache.layers]
    windows = [decoder.windows[0], decoder.windows[1]]
    assert windows == [16, None]
    assert filled == [list(range(12, 27)), list(range(27))]
