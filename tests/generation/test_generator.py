"""Generators against the trainer's own log-probs; what is sampled against exact distributions."""

import importlib.util
import json
import math

import pytest
import torch
from loop_kit import tiny_model

from pipeline.config.load import ConfigError
from pipeline.config.schema import Generate, Model, Sampling
from pipeline.generation import engines, vllm_engine
from pipeline.generation.generator import (
    Generator,
    Request,
    Sample,
    continuations,
    largest_gap,
    rollouts,
)
from pipeline.generation.guidance import Guided
from pipeline.generation.hf_engine import TransformersGenerator, sequence_logprobs
from pipeline.generation.seeded_sampler import filtered_logits
from pipeline.generation.vllm_engine import (
    VllmGenerator,
    cache_bytes,
    detach_expert_kernels,
    once_where_tied,
    refresh_convolutions,
    restore_expert_kernels,
)
from pipeline.models import adapters, models
from pipeline.models.models import named_weights
from pipeline.records import Prompt, Rollout
from pipeline.update.forward import CompletionLogprobs, Row, completion_logprobs
from tests.family_twins import FAMILIES, perturb, save

ENDS = frozenset({2})
PROMPTS = [(3, 8, 13, 9), (4, 9, 13, 5, 6, 7, 10), (5,), (11, 12, 3, 4, 5, 6)]
needs_vllm = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")


@pytest.fixture(scope="module", params=["tied", "untied"])
def place(request, tmp_path_factory):
    return str(tiny_model(tmp_path_factory.mktemp(request.param), tied=request.param == "tied"))


@pytest.fixture(scope="module")
def sampler(tmp_path_factory):
    return TransformersGenerator(str(tiny_model(tmp_path_factory.mktemp("model"))), Model(), Generate(batch=64))


def requests(count: int = 3, *, seed: int = 0, max_tokens: int = 6) -> list[Request]:
    return [Request(p, seed + 10 * i + j, max_tokens) for i, p in enumerate(PROMPTS) for j in range(count)]


def trained(place: str, *, lora: bool = False):
    """The model after it has moved a good way from what is on disk."""
    model = models.load_policy(place, Model())
    if lora:
        settings = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj"], "lora_alpha": 16}
        model = adapters.add_lora(model, settings, key="test")
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def largest_gap_between(engine, model, sequences) -> float:
    return largest_gap(sequence_logprobs(model, sequences), engine.logprobs(sequences))


def gap_to_trainer(model, drawn, asked) -> float:
    """Largest |Δ log-prob| on sampled tokens between what a generator said and what the trainer's forward says."""
    rows = [Row(r.ids, d.ids, (True,) * len(d.ids)) for r, d in zip(asked, drawn, strict=True)]
    forward = CompletionLogprobs(model, temperature=1.0)
    ours = completion_logprobs(forward, rows, budget=64, device=torch.device("cpu"))
    return max(
        abs(a - b) for x, d in zip(ours, drawn, strict=True) for a, b in zip(x.tolist(), d.logprobs, strict=True)
    )


@pytest.mark.stages
@pytest.mark.parametrize("lora", [False, True], ids=["full", "LoRA"])
def test_detail_7_after_a_sync_transformers_samples_with_the_trainers_log_probs(place, lora):
    model, engine = trained(place, lora=lora), TransformersGenerator(place, Model(), Generate(batch=5))
    sequences = [list(p) * 2 for p in PROMPTS[:2]]
    engine.sync(named_weights(models.load_policy(place, Model())))
    before = largest_gap_between(engine, model, sequences)
    engine.sync(named_weights(model))
    after = largest_gap_between(engine, model, sequences)
    asked = requests()
    assert before > 0.05 and after < 1e-4
    assert gap_to_trainer(model, engine.sample(asked, Sampling(), ENDS), asked) < 1e-4


@pytest.mark.stages
@needs_vllm
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_detail_7_after_a_sync_vllm_samples_with_the_trainers_log_probs(tmp_path_factory, tied):
    place = str(tiny_model(tmp_path_factory.mktemp("vllm"), tied=tied))
    generate = Generate(vllm={"kv_cache_memory_bytes": 100 << 20})
    engine = VllmGenerator(place, Model(), generate, max_model_len=64)
    assert engine.llm.llm_engine.vllm_config.cache_config.kv_cache_memory_bytes == cache_bytes(generate) == 100 << 20
    sequences, asked = [list(p) * 2 for p in PROMPTS[:2]], requests()
    for lora in (False, True):
        model = trained(place, lora=lora)
        engine.sync(named_weights(models.load_policy(place, Model())))
        assert largest_gap_between(engine, model, sequences) > 0.05
        engine.sync(named_weights(model))
        assert largest_gap_between(engine, model, sequences) < 1e-4
        drawn = engine.sample(asked, Sampling(), ENDS)
        assert gap_to_trainer(model, drawn, asked) < 1e-4
        assert engine.sample(asked, Sampling(), ENDS) == drawn, "the same seeds draw the same"
    if tied:  # the trap: a tied head that is not named stays what it was, and only the canary tells
        nameless = [(n, t) for n, t in named_weights(trained(place)) if n != "lm_head.weight"]
        engine.sync(named_weights(models.load_policy(place, Model())))
        engine.sync(nameless)
        assert largest_gap_between(engine, trained(place), sequences) > 0.05


@pytest.mark.stages
@needs_vllm
def test_after_a_sync_vllm_computes_with_the_trainers_experts(tmp_path):
    """Twice, for a second reload starts from what the first has packed."""
    save(FAMILIES["qwen3-moe"], tmp_path)
    engine, model = (
        VllmGenerator(str(tmp_path), Model(), Generate(), max_model_len=64),
        models.load_policy(str(tmp_path), Model()),
    )
    sequences = [list(p) * 2 for p in PROMPTS]
    for seed in range(2):
        perturb(model, seed=seed)
        assert largest_gap_between(engine, model, sequences) > 0.05
        engine.sync(named_weights(model))
        assert largest_gap_between(engine, model, sequences) < 1e-4


@needs_vllm
def test_a_kernel_stays_where_a_reload_does_not_reach_the_experts():
    class Method:
        def __init__(self, kernel):
            self.moe_kernel = kernel

    class Layer(torch.nn.Module):
        def __init__(self, method):
            super().__init__()
            self.quant_method = method

    reached, missed, empty = Method("old"), Method("old"), Method(None)
    model = torch.nn.Sequential(Layer(reached), Layer(missed), Layer(empty), torch.nn.Linear(1, 1))
    kernels = detach_expert_kernels(model)
    assert [m for m, _ in kernels] == [reached, missed] and reached.moe_kernel is None
    reached.moe_kernel = "new"  # as a reload does
    restore_expert_kernels(kernels)
    assert (reached.moe_kernel, missed.moe_kernel, empty.moe_kernel) == ("new", "old", None)


@needs_vllm
def test_after_a_reload_mamba_layers_read_the_convolution_that_was_packed_from_it():
    class Mixer(torch.nn.Module):
        def __init__(self, unpacked):
            super().__init__()
            self.conv1d = torch.nn.Linear(2, 3)
            if unpacked is not None:
                self.conv1d._cpu_unpacked_conv_weight = unpacked
            self.register_buffer("conv_weights", torch.zeros(3, 4))

    packed, other_shape, never_packed = Mixer(torch.ones(3, 4)), Mixer(torch.ones(4, 3)), Mixer(None)
    refresh_convolutions(torch.nn.Sequential(packed, other_shape, never_packed, torch.nn.Linear(1, 1)))
    assert [float(m.get_buffer("conv_weights").sum()) for m in (packed, other_shape, never_packed)] == [12.0, 0.0, 0.0]


def test_the_adapter_is_pushed_merged_and_the_base_is_never_written_to(place):
    model = trained(place, lora=True)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    pushed = dict(named_weights(model))
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    merged = model.merge_and_unload()  # peft's own arithmetic is the oracle
    oracle = dict(merged.named_parameters(remove_duplicate=False))
    assert pushed.keys() == oracle.keys()
    assert max(float((pushed[n] - oracle[n]).abs().max().detach()) for n in oracle) < 1e-6


def test_lora_on_a_tied_tensor_is_refused(tmp_path):
    model = models.load_policy(str(tiny_model(tmp_path / "m")), Model())
    with pytest.raises(ValueError, match=r"grpo\.peft: embed_tokens is tied"):
        adapters.add_lora(model, {"r": 2, "target_modules": ["embed_tokens", "q_proj"]}, key="grpo")


@pytest.mark.stages
def test_a_sample_does_not_depend_on_what_shares_its_batch(sampler):
    asked = requests(4)
    together = sampler.sample(asked, Sampling(), ENDS)
    alone = [sampler.sample([r], Sampling(), ENDS)[0] for r in asked[::5]]
    assert [t.ids for t in together[::5]] == [a.ids for a in alone]
    assert len({t.ids for t in together}) > len(asked) // 2, "seeds differ, so do samples"


@pytest.mark.stages
@pytest.mark.parametrize("guided", [False, True])
def test_a_repetition_penalty_falls_on_a_rows_own_tokens_and_not_on_what_pads_it(tmp_path, guided):
    place = str(tiny_model(tmp_path / "m"))
    plain = TransformersGenerator(place, Model(), Generate())
    asked, longer = requests(40, max_tokens=12), Request((3,) * 40, 99, 12)
    engine = plain
    if guided:
        bare = {r.ids: (4, 5) for r in [*asked, longer]}
        engine = Guided(place, Model(), Generate(), unlabelled=bare, scale=1.5)
    strong = Sampling(repetition_penalty=5.0)
    together, alone = engine.sample([*asked, longer], strong, ENDS)[:-1], engine.sample(asked, strong, ENDS)
    assert [t.ids for t in together] == [a.ids for a in alone]
    free = plain.sample(asked, Sampling(), ENDS)
    assert sum(len({*d.ids}) for d in alone) > sum(len({*d.ids}) for d in free)
    if guided:
        return
    request, drawn = asked[0], alone[0]
    logits = plain.model(torch.tensor([[*request.ids]])).logits[0, -1]
    known = torch.zeros_like(logits, dtype=torch.bool)
    known[list(request.ids)] = True
    by_hand = torch.where(known, torch.where(logits < 0, logits * 5, logits / 5), logits).log_softmax(-1).detach()
    assert drawn.logprobs[0] == pytest.approx(float(by_hand[drawn.ids[0]]), abs=1e-4)


@pytest.mark.stages
def test_detail_9_a_completion_holds_its_first_end_token_and_nothing_after(sampler):
    drawn = sampler.sample(requests(40, max_tokens=12), Sampling(temperature=1.5), ENDS)
    ended = [d for d in drawn if d.finished]
    assert len(ended) > 5
    assert all(d.ids[-1] == 2 and 2 not in d.ids[:-1] for d in ended)


@pytest.mark.stages
def test_detail_10_a_completion_without_an_end_holds_all_that_was_generated_and_no_padding(sampler):
    drawn = sampler.sample(requests(40, max_tokens=12), Sampling(temperature=1.5), ENDS)
    cut = [d for d in drawn if not d.finished]
    assert cut and all(len(d.ids) == 12 and 2 not in d.ids for d in cut)


@pytest.mark.stages
def test_detail_12_every_end_id_ends_a_completion(sampler):
    ends = frozenset({2, 7, 9})
    drawn = sampler.sample(requests(40, max_tokens=12), Sampling(temperature=1.5), ends)
    seen = {d.ids[-1] for d in drawn if d.finished}
    assert seen == ends
    assert all(not ends & set(d.ids[:-1]) for d in drawn)


@pytest.mark.stages
def test_samples_come_as_often_as_their_probability_says(sampler):
    """A χ² bound on 2,000 first tokens; the oracle is the model's own softmax at the sampling temperature."""
    sampling, count = Sampling(temperature=0.7, max_tokens=1), 2000
    drawn = sampler.sample([Request(PROMPTS[0], seed, 1) for seed in range(count)], sampling, ENDS)
    with torch.no_grad():
        logits = sampler.model(torch.tensor([PROMPTS[0]])).logits[0, -1]
    p = (logits / 0.7).softmax(-1)
    seen = torch.bincount(torch.tensor([d.ids[0] for d in drawn]), minlength=len(p))
    chi2 = float(((seen - count * p) ** 2 / (count * p)).sum())
    freedom = len(p) - 1
    assert chi2 < freedom + 4 * math.sqrt(2 * freedom)
    first = drawn[0]
    assert first.logprobs[0] == pytest.approx(float(p[first.ids[0]].log()), abs=1e-5)


LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0]])


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(top_k=2), [0, 1]),
        (Sampling(top_p=0.6), [0]),
        (Sampling(top_p=0.65), [0, 1]),
        (Sampling(min_p=0.3), [0, 1]),
        (Sampling(temperature=2.0), [0, 1, 2, 3]),
    ],
)
def test_filters_keep_the_likeliest_tokens_and_renormalise(sampling, kept):
    got = filtered_logits(LOGITS, sampling)[0].log_softmax(-1)
    weights = (LOGITS[0].double() / sampling.temperature).exp()
    expected = torch.full((4,), -math.inf, dtype=torch.float64)
    expected[kept] = (weights[kept] / weights[kept].sum()).log()
    torch.testing.assert_close(got.double(), expected, atol=1e-6, rtol=0)


def test_min_p_is_taken_before_top_p_as_vllm_does():
    """By hand: of .5 .2 .1 and twenty of .01, min-p keeps three (of .8 in all), and .5 + .2 is .875 of these."""
    logits = torch.tensor([[0.5, 0.2, 0.1, *[0.01] * 20]]).log()
    kept = filtered_logits(logits, Sampling(top_p=0.85, min_p=0.1))[0].softmax(-1)
    torch.testing.assert_close(kept[:3], torch.tensor([5 / 7, 2 / 7, 0.0]))


class Scripted:
    """A generator that answers each request with the number of tokens it may still say."""

    name = "scripted"

    def __init__(self) -> None:
        self.asked: list[Request] = []

    def sample(self, requests, sampling, ends):
        self.asked += requests
        return [Sample((r.max_tokens,), (-0.5,), True) for r in requests]


class Spelling:
    def batch_decode(self, ids, skip_special_tokens):
        return [" ".join(map(str, row)) for row in ids]


def test_a_continuation_keeps_the_first_tokens_and_is_sampled_on_up_to_the_same_limit():
    rollout = Rollout(Prompt(7, "p", (1, 2)), 0, (5, 6, 7), (-0.1, -0.2, -0.3), "5 6 7", True)
    engine = Scripted()
    made = continuations(
        engine, [(rollout, 2, 0), (rollout, 1, 1)], Sampling(max_tokens=8), samples=2, key=("k",),  # type: ignore[arg-type]
        tokenizer=Spelling(), stop_token_ids=ENDS,
    )  # fmt: skip
    assert [r.ids for r in engine.asked] == [(1, 2, 5, 6)] * 2 + [(1, 2, 5)] * 2
    assert [m.ids for m in made] == [(5, 6, 6)] * 2 + [(5, 7)] * 2
    assert made[0].logprobs == (-0.1, -0.2, -0.5) and made[0].text == "5 6 6" and made[0].prompt.index == 7
    assert len({r.seed for r in engine.asked}) == 4


def test_seeds_go_by_the_place_in_the_whole_step_whoever_samples_it():
    prompts = [Prompt(i, "p", (i + 3,)) for i in range(4)]
    how = {"samples": 2, "key": ("k",), "tokenizer": Spelling(), "stop_token_ids": ENDS}
    alone, first, second = Scripted(), Scripted(), Scripted()
    rollouts(alone, prompts, Sampling(), **how)  # type: ignore[arg-type]
    rollouts(first, prompts[:2], Sampling(), first=0, **how)  # type: ignore[arg-type]
    rollouts(second, prompts[2:], Sampling(), first=2, **how)  # type: ignore[arg-type]
    assert alone.asked == first.asked + second.asked


@pytest.mark.stages
@pytest.mark.parametrize("kind", ["transformers", pytest.param("vllm", marks=needs_vllm)])
def test_who_asks_hears_of_each_sample_as_it_ends_and_gets_the_same_samples(tmp_path, kind):
    place = str(tiny_model(tmp_path / "model"))
    asked = requests(4, max_tokens=9)
    generator: Generator
    if kind == "vllm":
        generator = VllmGenerator(place, Model(), Generate(), max_model_len=64)
    else:
        generator = TransformersGenerator(place, Model(), Generate(batch=5))
    plain = generator.sample(asked, Sampling(), ENDS)
    told: list[tuple[int, Sample]] = []
    again = generator.sample(asked, Sampling(), ENDS, lambda i, sample: told.append((i, sample)))
    assert again == plain, "to the bit"
    assert sorted(told, key=lambda pair: pair[0]) == list(enumerate(plain)), "each once"
    lengths = [len(sample.ids) for _, sample in told]
    assert kind == "transformers" or lengths == sorted(lengths), "the short ones are told first"


def test_a_config_class_that_an_engine_registers_is_not_what_transformers_loads_afterwards():
    """vLLM registers its own class for Qwen3.5, of which transformers does not find the text part."""
    from transformers import AutoConfig, PreTrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    own = CONFIG_MAPPING["qwen3_5"]
    with vllm_engine._configs_kept():
        AutoConfig.register(
            "qwen3_5", type("OfTheEngine", (PreTrainedConfig,), {"model_type": "qwen3_5"}), exist_ok=True
        )
        assert CONFIG_MAPPING["qwen3_5"] is not own
    assert CONFIG_MAPPING["qwen3_5"] is own


def test_the_second_name_of_a_tied_tensor_is_sent_only_to_an_engine_that_has_such_a_module():
    tied, other = torch.ones(2), torch.zeros(2)
    weights = [("embed.weight", tied), ("lm_head.weight", tied), ("q_proj.weight", other)]  # its names in a row
    assert [n for n, _ in once_where_tied(weights, {"lm_head", "qkv_proj"})] == [n for n, _ in weights]
    assert [n for n, _ in once_where_tied(weights, {"qkv_proj"})] == ["embed.weight", "q_proj.weight"]
    of_a_text_part = {"language_model.lm_head", "language_model.model.layers.0.self_attn.qkv_proj"}
    assert [n for n, _ in once_where_tied(weights, of_a_text_part)] == [n for n, _ in weights]
    assert [n for n, _ in once_where_tied(weights, {"other_lm_head"})] == ["embed.weight", "q_proj.weight"]


@needs_vllm
@pytest.mark.stages
def test_an_engine_that_sleeps_between_samplings_wakes_for_whatever_is_asked_of_it(place, monkeypatch):
    """The CPU's engine keeps its memory, but stops taking requests until it is woken, as a GPU's does."""
    engine = VllmGenerator(place, Model(), Generate(), max_model_len=64)
    expected = [s.ids for s in engine.sample(requests(), Sampling(), ENDS)]
    told: list[str] = []

    def noted(name: str):
        plain = getattr(engine.llm, name)

        def call(**arguments):
            told.append(name)
            return plain(**arguments)

        return call

    for name in ("sleep", "wake_up"):
        monkeypatch.setattr(engine.llm, name, noted(name))
    engine.sleeps = True
    assert [s.ids for s in engine.sample(requests(), Sampling(), ENDS)] == expected and told == ["sleep"]
    engine.sync(named_weights(trained(place)))
    assert engine.logprobs([[3, 8, 13]]) and told == ["sleep", "wake_up"]
    engine.sample(requests(), Sampling(), ENDS)
    assert [s.ids for s in engine.sample(requests(), Sampling(), ENDS)] != expected
    assert told == ["sleep", "wake_up", "sleep", "wake_up", "sleep"]


@pytest.mark.parametrize(
    ("said", "needed", "expected"),
    [
        ({"max_position_embeddings": 512}, 30, 512),
        ({"max_position_embeddings": 32768}, 300, 512),
        ({"model_type": "gemma3", "text_config": {"max_position_embeddings": 1024}}, 30, 1024),
        ({}, 300, 512),
    ],
)
def test_the_context_of_an_engine_is_the_models_or_what_is_needed(tmp_path, said, needed, expected):
    (tmp_path / "config.json").write_text(json.dumps(said))
    assert engines.model_len(str(tmp_path), needed) == expected


def test_a_completion_beyond_the_models_context_is_reported(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"text_config": {"max_position_embeddings": 64}}))
    with pytest.raises(ConfigError, match="need 65 tokens; the model has 64"):
        engines.model_len(str(tmp_path), 65)


@needs_vllm
@pytest.mark.parametrize("name", vllm_engine.PRELOADED)
def test_what_is_imported_before_a_server_forks_is_part_of_this_vllm(name):
    assert importlib.util.find_spec(name) is not None
