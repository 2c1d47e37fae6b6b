"""Packed rows against one forward a row: the transformer itself, on one row alone without padding, is the oracle."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
)

from pipeline.models import families
from pipeline.models.models import backbone
from pipeline.update import packing
from pipeline.update.critic import ValueModel, values_of
from pipeline.update.forward import (
    CompletionLogprobs,
    Row,
    add_embedding_gradients_in_place,
    add_gradients_in_place,
    affordable_tokens,
    completion_logprobs,
    micro_batches,
    pad_rows,
    stack,
)
from tests.family_twins import FAMILIES, make_config, make_tokenizer, perturb

HERE = torch.device("cpu")
VOCABULARY = 50
LONG, OTHER, SHORT = tuple(range(3, 43)), tuple(range(45, 10, -1)), (5, 7)
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip


def config(kind: str) -> PreTrainedConfig:
    if kind == "gpt2":
        return GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=128, resid_pdrop=0.0,
                          embd_pdrop=0.0, attn_pdrop=0.0)  # fmt: skip
    if kind == "mistral":
        return MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=8)
    if kind == "gemma3":  # two layers, a window in the first
        return Gemma3TextConfig(**SIZES, num_key_value_heads=1, head_dim=8, sliding_window=8,
                                layer_types=["sliding_attention", "full_attention"])  # fmt: skip
    if kind == "wide window":  # longer than any row
        return Gemma3TextConfig(**SIZES, num_key_value_heads=1, head_dim=8, sliding_window=100)
    return {"qwen2": Qwen2Config, "llama": LlamaConfig}[kind](**SIZES, num_key_value_heads=2 if kind == "llama" else 4)


def make(kind: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config(kind), attn_implementation="sdpa", dtype=torch.float64)


def rows() -> list[Row]:
    """Two prompts of different length that are shared, one that is too short to be, one that stands alone."""
    generator = torch.Generator().manual_seed(1)
    shape = [(LONG, 9), (OTHER, 1), (LONG, 30), (SHORT, 6), (OTHER, 17), (LONG, 2), (SHORT, 11), (LONG[1:], 5)]
    return [
        Row(prompt, tuple(torch.randint(VOCABULARY, (n,), generator=generator).tolist()), (True,) * n)
        for prompt, n in shape
    ]


def alone(model: Any, row: Row, temperature: float) -> Tensor:
    """(its T,) log-probs by the model's own logits of this row only."""
    logits_LV = model(input_ids=torch.tensor([[*row.prompt_ids, *row.ids]])).logits[0, len(row.prompt_ids) - 1 : -1]
    return (logits_LV / temperature).log_softmax(-1).gather(1, torch.tensor(row.ids)[:, None])[:, 0]


@pytest.mark.parametrize("kind", ["qwen2", "llama", "gpt2", "mistral", "gemma3", "wide window"])
@pytest.mark.parametrize("call", [1, 2**10, 2**20], ids=["many_buckets", "some", "one_bucket_a_kind"])
def test_packed_log_probs_and_gradients_are_those_of_each_row_alone(
    kind: str, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(packing.CALL_PAIRS, "cpu", call)
    model, batch = make(kind), rows()
    weights = [torch.linspace(-1, 2, len(r.ids), dtype=torch.float64) for r in batch]
    expected = [alone(model, row, 0.7) for row in batch]
    sum((w * x).sum() for w, x in zip(weights, expected, strict=True)).backward()  # type: ignore[union-attr]
    wanted = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()

    forward = CompletionLogprobs(model, temperature=0.7)
    assert forward.packs
    logprobs_BT, _ = forward(pad_rows(batch, HERE))
    torch.testing.assert_close(
        logprobs_BT, nn.utils.rnn.pad_sequence(expected, batch_first=True), rtol=0, atol=1e-6, check_dtype=False
    )
    (nn.utils.rnn.pad_sequence(weights, batch_first=True) * logprobs_BT).sum().backward()
    for parameter, gradient in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-6)


def test_a_shared_prompt_is_computed_once() -> None:
    batch = rows()
    packed = packing.pack([r.prompt_ids for r in batch], [r.ids for r in batch], HERE)
    completions = sum(len(r.ids) for r in batch)
    assert packed.ids_1N.shape[1] == completions + len(LONG) + len(OTHER) + 2 * len(SHORT) + len(LONG) - 1


def test_log_probs_need_no_pass_over_the_last_token_of_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = rows()
    forward, taken = CompletionLogprobs(make("qwen2"), temperature=1.0), list[int]()
    plain = packing.hidden_states

    def counted(transformer: Any, packed: packing.Packed) -> Any:
        taken.append(packed.ids_1N.shape[1])
        return plain(transformer, packed)

    monkeypatch.setattr(packing, "hidden_states", counted)
    with torch.no_grad():
        forward(pad_rows(batch, HERE))
    all_of_them = packing.pack([r.prompt_ids for r in batch], [r.ids for r in batch], HERE).ids_1N.shape[1]
    assert taken == [all_of_them - len(batch)]


def test_stacked_rows_are_those_of_torchs_own_padding() -> None:
    tensors = [torch.randn(n, dtype=torch.float64) for n in (3, 0, 5, 1)]
    expected = nn.utils.rnn.pad_sequence([t.float() for t in tensors], batch_first=True)
    assert torch.equal(stack(tensors), expected)
    assert torch.equal(stack([t.tolist() for t in tensors]), expected)
    assert torch.equal(stack([(True, False), ()]), torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    assert torch.equal(stack([tensors[0], [1.0, 2.0]])[1], torch.tensor([1.0, 2.0, 0.0])), "of both kinds"


def test_no_token_sees_a_neighbour_of_its_group() -> None:
    """Change one completion: no other row of the group moves by a bit."""
    forward = CompletionLogprobs(make("qwen2"), temperature=1.0)
    batch = rows()
    changed = [Row(r.prompt_ids, tuple(i ^ 1 for i in r.ids), r.mask) if place == 2 else r
               for place, r in enumerate(batch)]  # fmt: skip
    with torch.no_grad():
        before_BT, after_BT = forward(pad_rows(batch, HERE))[0], forward(pad_rows(changed, HERE))[0]
    same = [place for place in range(len(batch)) if torch.equal(before_BT[place], after_BT[place])]
    assert same == [0, 1, 3, 4, 5, 6, 7]


def test_a_critic_reads_the_same_values_packed_as_each_row_alone() -> None:
    model, batch = make("llama"), rows()
    critic = ValueModel(backbone(model), 32).double()
    assert critic.packs
    nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(2))
    for row, values in zip(batch, values_of(critic, batch, budget=100, device=HERE), strict=True):
        hidden_LH = backbone(model)(input_ids=torch.tensor([[*row.prompt_ids, *row.ids]])).last_hidden_state[0]
        expected = critic.head(hidden_LH)[len(row.prompt_ids) - 1 :, 0].detach()
        torch.testing.assert_close(values, expected, rtol=0, atol=1e-6, check_dtype=False)


def test_the_cut_into_micro_batches_changes_no_log_prob() -> None:
    forward, batch = CompletionLogprobs(make("qwen2"), temperature=1.0), rows()
    whole = completion_logprobs(forward, batch, budget=10_000, device=HERE)
    for budget in (1, 60, 150):
        for a, b in zip(whole, completion_logprobs(forward, batch, budget=budget, device=HERE), strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_micro_batches_hold_every_row_once_and_keep_to_the_budget() -> None:
    batch = rows()
    cut = micro_batches(batch, 70, packs=True)
    assert sorted(i for places in cut for i in places) == list(range(len(batch)))
    for places in cut:
        tokens = sum(len(batch[i].ids) for i in places) + sum(map(len, {batch[i].prompt_ids for i in places}))
        assert tokens <= 70 or len(places) == 1
    assert len(cut) < len(batch)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.15)])
def test_a_sliding_window_in_lower_precision_gives_the_padded_log_probs(dtype: torch.dtype, tolerance: float) -> None:
    model = make("gemma3").to(dtype)
    packed, padded = (CompletionLogprobs(model, temperature=1.0) for _ in range(2))
    padded.packs = False
    a, b = (completion_logprobs(forward, rows(), budget=200, device=HERE) for forward in (packed, padded))
    assert packed.packs
    assert max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True)) < tolerance


@pytest.mark.parametrize(
    ("name", "window"),
    [("gemma3", 16), ("mistral", 16), ("phi3", 16), ("phi3", 262_144), ("gpt-oss", 16), ("starcoder2", 16),
     ("exaone4", 16), ("olmo3", 16)],
)  # fmt: skip
def test_a_family_with_a_window_packs_its_rows_to_the_log_probs_of_its_own_attention(name: str, window: int) -> None:
    """Rows of 40 to 70 tokens under a window of 16, or one that no row reaches; gpt-oss has attention sinks too."""
    family = FAMILIES[name]
    of_twin = make_config(family, make_tokenizer(family))
    of_twin.sliding_window = window
    attention = families.attention(of_twin.to_dict(), "sdpa")
    model: Any = AutoModelForCausalLM.from_config(of_twin, attn_implementation=attention)
    perturb(model, seed=1)
    batch = rows()
    expected = [alone(model, row, 1.0).detach() for row in batch]
    wanted = gradients_of(model, lambda: sum(alone(model, row, 1.0).sum() for row in batch))

    forward = CompletionLogprobs(model, temperature=1.0)
    assert forward.packs and packing.windows_of(model.config) == {window}
    packed_BT, _ = forward(pad_rows(batch, HERE))
    seen = gradients_of(model, lambda: forward(pad_rows(batch, HERE))[0].sum())
    forward.packs = False
    padded_BT, _ = forward(pad_rows(batch, HERE))
    for row_T, packed_T, padded_T in zip(expected, packed_BT, padded_BT, strict=True):
        torch.testing.assert_close(packed_T[: len(row_T)], row_T, rtol=0, atol=1e-4)
        torch.testing.assert_close(padded_T[: len(row_T)], row_T, rtol=0, atol=1e-4)
    for parameter in wanted:
        torch.testing.assert_close(seen[parameter], wanted[parameter], rtol=1e-2, atol=1e-2, msg=parameter)


def gradients_of(model: Any, loss: Callable[[], Any]) -> dict[str, Tensor]:
    """By parameter; the model's gradients are cleared before and afterwards."""
    model.zero_grad()
    loss().backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return gradients


def test_layers_that_do_not_ask_for_the_window_of_their_config_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of the trial may be shorter than the window: what they give then proves nothing."""
    honest = packing.packed_attention
    monkeypatch.setattr(
        packing, "packed_attention", lambda *args, sliding_window=None, **options: honest(*args, **options)
    )
    model = make("wide window")
    assert not packing.enable(backbone(model)) and model.config._attn_implementation == "sdpa"
    assert packing.windows_of(model.config) == {100}


def test_an_attention_that_drops_the_packing_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that loses the layout on its way to attention would let every row see every other."""
    honest = packing.packed_attention
    monkeypatch.setattr(packing, "packed_attention", lambda *args, packed=None, **options: honest(*args, **options))
    model = make("qwen2")
    assert not packing.enable(backbone(model))
    assert model.config._attn_implementation == "sdpa"


def test_gradient_checkpointing_gives_the_packed_gradients() -> None:
    gradients = []
    for checkpointing in (False, True):
        model = make("qwen2")
        forward = CompletionLogprobs(model, temperature=1.0).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        forward(pad_rows(rows(), HERE))[0].sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


class TensorsOfShape(TorchDispatchMode):
    """Counts the dense tensors of a shape that operations return without writing into an input."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.count = shape, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        new = isinstance(out, Tensor) and not any(r.alias_info for r in func._schema.returns)
        if new and out.layout == torch.strided and tuple(out.shape) == self.shape:
            self.count += 1
        return out


@pytest.mark.parametrize("kind, tied", [("gemma3", True), ("qwen2", False)])
def test_gradients_added_in_place_equal_autograds_and_make_one_tensor_of_the_heads_size(kind: str, tied: bool) -> None:
    gradients, counts = [], []
    for in_place in (False, True):
        model = make(kind).float()
        if tied:
            model.config.tie_word_embeddings = True
            model.tie_weights()
        head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings().weight
        assert (head is embedding) == tied
        forward = CompletionLogprobs(model, temperature=1.0)
        if in_place:
            add_gradients_in_place(model)
        with TensorsOfShape(tuple(head.shape)) as seen:
            for some in (rows()[:4], rows()[4:]):
                forward(pad_rows(some, HERE))[0].sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
        counts.append(seen.count)
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, msg=name)
    # an embedding of its own makes one per micro-batch
    assert counts[1] == 1 + 2 * (not tied) < counts[0]


@pytest.mark.parametrize("large", [True, False])
def test_an_embedding_of_its_own_gets_autograds_gradient_in_one_tensor_for_all_steps(large, monkeypatch) -> None:
    monkeypatch.setattr("pipeline.update.forward.LARGE_EMBEDDING", 1 if large else 1 << 22)
    found, counts, places = [], [], []
    for in_place in (False, True):
        critic = ValueModel(backbone(make("gemma3").float()), 32)
        weight = critic.transformer.get_input_embeddings().weight
        torch.nn.init.constant_(critic.head.weight, 0.1)
        if in_place:
            add_embedding_gradients_in_place(critic)
        with TensorsOfShape(tuple(weight.shape)) as seen:
            for _ in range(2):
                critic.zero_grad()
                for some in (rows()[:4], rows()[4:]):
                    critic(pad_rows(some, HERE)).square().sum().backward()
                places.append(weight.grad.data_ptr())
        found.append({name: p.grad for name, p in critic.named_parameters()})
        counts.append(seen.count)
    for name, expected in found[0].items():
        in_one = found[1][name]
        assert in_one is not None and in_one.layout == torch.strided
        torch.testing.assert_close(in_one, expected, msg=name)
    assert counts == ([4, 1] if large else [4, 4])
    assert not large or places[2] == places[3]


def test_an_embedding_that_is_also_the_head_is_left_to_autograd(monkeypatch) -> None:
    monkeypatch.setattr("pipeline.update.forward.LARGE_EMBEDDING", 1)
    model = make("gemma3").float()
    model.config.tie_word_embeddings = True
    model.tie_weights()
    add_embedding_gradients_in_place(model)
    assert not model.get_input_embeddings().sparse


def test_the_next_steps_gradient_takes_the_memory_of_the_last_one_and_holds_nothing_of_it() -> None:
    model = make("gemma3").float()
    head, forward = model.get_output_embeddings().weight, CompletionLogprobs(model, temperature=1.0)

    def gradient(some: list[Row]) -> Tensor:
        model.zero_grad()
        forward(pad_rows(some, HERE))[0].sum().backward()
        return head.grad

    expected = gradient(rows()[4:]).clone()
    add_gradients_in_place(model)
    place = gradient(rows()[:4]).data_ptr()
    again = gradient(rows()[4:])
    torch.testing.assert_close(again, expected)
    assert again.data_ptr() == place


def test_a_micro_batch_affords_fewer_tokens_the_wider_the_model_and_the_vocabulary_of_a_head_that_is_not_plain() -> (
    None
):
    """By hand, for 2 layers of 32 with an MLP of 48 and 4 + 2 * 4 heads of 8: 2 * (320 + 240 + 192) numbers a token."""
    model = make("qwen2")
    assert affordable_tokens(model, 4 * 1504 * 10) == 10
    model.config.final_logit_softcapping = 30.0
    assert affordable_tokens(model, 4 * (1504 + 3 * VOCABULARY) * 10) == 10
    assert affordable_tokens(model, 1) == 1


def test_a_model_whose_layers_differ_in_size_is_counted_by_the_largest() -> None:
    """Gemma 3n has a list of sizes. By hand: 2 layers of 64, MLPs of 128 and 96, 2 + 2 heads of 32, a capped head."""
    family = FAMILIES["gemma3n"]
    config = make_config(family, make_tokenizer(family))
    config.intermediate_size = [128, 96]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert affordable_tokens(model, 4 * (2 * (640 + 640 + 256) + 3 * config.vocab_size) * 10) == 10


def test_under_autocast_the_head_multiplies_in_bfloat16_unless_set_otherwise() -> None:
    """Softmax stays in float32: log-probs of one row sum to 1 far better than bfloat16 could."""
    model, batch = make("qwen2").float(), rows()
    lower, wide = (
        CompletionLogprobs(model, temperature=1.0, autocast=torch.bfloat16, float32_head=head) for head in (False, True)
    )
    hidden = torch.randn(1, 4, 32)
    padded = pad_rows([Row((1,), (2, 3, 4), (True,) * 3)], HERE)
    weight = model.get_output_embeddings().weight

    def expected(states: Tensor, head: Tensor) -> Tensor:
        logits = (states @ head.T).float()[0, :3]
        return logits.log_softmax(-1).gather(1, padded.targets_BT.T)[:, 0]

    torch.testing.assert_close(wide.from_hidden(hidden, padded, 1.0)[0][0], expected(hidden, weight))
    rounded = expected(hidden.bfloat16(), weight.bfloat16())
    torch.testing.assert_close(lower.from_hidden(hidden, padded, 1.0)[0][0], rounded)
    assert lower.from_hidden(hidden, padded, 1.0)[0].dtype == torch.float32

    gradients = []
    for forward in (lower, wide):
        model.zero_grad()
        forward(pad_rows(batch, HERE))[0].sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
        assert gradients[-1].dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(gradients[0], gradients[1], dim=0) > 0.999


def test_rows_are_grouped_while_padding_costs_less_than_one_more_call() -> None:
    """The rule as it is stated, over the whole group for each row that may join it."""
    draw = random.Random(1)

    def pairs(group: list[packing._Run]) -> int:
        longest = max(r.tokens for r in group)
        return len(group) * longest * (longest + max(r.prompt_tokens for r in group))

    for call in (0, 64, 2**10):
        runs = [packing._Run(i, draw.randint(0, 40), 0, draw.choice([0, 0, 3, 17])) for i in range(200)]
        buckets = list(packing._alike(runs, call))
        assert sorted(r.start for bucket in buckets for r in bucket) == list(range(200))
        assert len(buckets) > 2
        for bucket, after in itertools.pairwise(buckets):
            for end in range(1, len(bucket)):
                assert pairs(bucket[: end + 1]) <= pairs(bucket[:end]) + pairs(bucket[end : end + 1]) + call
            same_kind = (bucket[0].prompt_tokens > 0) == (after[0].prompt_tokens > 0)
            assert not same_kind or pairs([*bucket, after[0]]) > pairs(bucket) + pairs(after[:1]) + call
