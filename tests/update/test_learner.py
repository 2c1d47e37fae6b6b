"""One optimiser step: gradients against autograd on the whole batch, values and log-probs against the bare model."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from loop_kit import tiny_model

from pipeline.config.schema import Critic, Kl, Loss, Model, Optimizer
from pipeline.models import adapters, models
from pipeline.update import learner as learning
from pipeline.update.critic import SharedCritic, ValueModel, from_model, values_of
from pipeline.update.forward import CompletionLogprobs, Row, completion_logprobs, pad_rows
from pipeline.update.learner import Learner
from pipeline.update.policy_loss import Experience
from pipeline.update.reference import AdapterOff, Copy

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return str(tiny_model(tmp_path_factory.mktemp("model")))


def make_rows(count: int = 10, *, seed: int = 0, holes: bool = True) -> list[Row]:
    generator = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (1,), generator=generator))

    rows = []
    for i in range(count):
        ids = tuple(draw(3, 20) for _ in range(draw(1, 12)))
        mask = tuple(not holes or (i != 3 and (j % 5 != 2 or len(ids) < 4)) for j in range(len(ids)))
        rows.append(Row(tuple(draw(3, 20) for _ in range(draw(1, 9))), ids, mask))
    return rows


def make_batch(
    rows: list[Row], *, off_policy: bool = False, critic: bool = False, reference: bool = False
) -> Experience:
    generator = torch.Generator().manual_seed(9)

    def noise(scale: float = 1.0, shift: float = 0.0) -> list[torch.Tensor]:
        return [shift + scale * torch.randn(len(r.ids), generator=generator) for r in rows]

    return Experience(
        rows, noise(), noise(0.3, -3.0), noise(0.3, -3.0) if off_policy else None,
        noise(0.3, -3.0) if reference else None, noise() if critic else None, noise() if critic else None,
    )  # fmt: skip


def make_learner(place: str, *, loss: Loss | None = None, budget: int = 10_000, critic: Critic | None = None,
                 optimizer: Optimizer | None = None, lora: bool = False) -> Learner:  # fmt: skip
    model = models.load_policy(place, Model()).train()
    if lora:
        torch.manual_seed(4)
        model = adapters.add_lora(model, {"r": 2, "target_modules": ["q_proj", "v_proj"]}, key="test")
    kind = SharedCritic if critic is not None and critic.shared else CompletionLogprobs
    own = from_model(models.load_policy(place, Model())) if critic is not None and not critic.shared else None
    return Learner(
        Accelerator(cpu=True), kind(model, temperature=1.3), own, loss=loss or Loss(),
        optimizer=optimizer or Optimizer(learning_rate=1e-3), critic_settings=critic, updates=10, max_tokens=12,
        budget=budget,
    )  # fmt: skip


def gradients(learner: Learner, batch: Experience, **how) -> dict[str, torch.Tensor]:
    """Of policy and critic, as they stand when the optimiser would step; nothing is clipped or moved."""
    found: dict[str, torch.Tensor] = {}

    def keep(side):
        found.update({n: p.grad.clone() for n, p in side.forward.named_parameters() if p.grad is not None})
        side.optimizer.zero_grad()
        return torch.zeros(())

    for side in filter(None, (learner.policy_backend, learner.critic_backend)):
        side.step = partial(keep, side)  # type: ignore[method-assign]
    learner.schedule = SimpleNamespace(step=lambda: None)
    given = {"kl_coef": 0.0, "kl_kind": "k3", **how}
    learner.update(batch, range(len(batch.rows)), **given)
    return found


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], *, atol: float = 1e-6) -> None:
    assert a.keys() == b.keys() and a
    for name in a:
        assert torch.allclose(a[name], b[name], atol=atol, rtol=1e-4), (
            f"{name}: {float((a[name] - b[name]).abs().max())}"
        )


# --- log-probs and values ---------------------------------------------------------------------------------------------


def bare_logprobs(model, row: Row, temperature: float) -> torch.Tensor:
    """The row alone, unpadded, through the library's own forward and a log_softmax."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*row.prompt_ids, *row.ids]])).logits[0, len(row.prompt_ids) - 1 : -1]
    return (logits / temperature).log_softmax(-1).gather(1, torch.tensor(row.ids)[:, None])[:, 0]


def absolute_positions():
    """GPT-2 learns a vector a position: counted from the wrong end it would be another one."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=24, n_positions=64, n_embd=32, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2)
    return models.without_dropout(GPT2LMHeadModel(config))


@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_detail_2_and_detail_3_log_probs_are_moved_by_no_padding_and_by_no_company(place, family):
    model = models.load_policy(place, Model()) if family == "qwen2" else absolute_positions()
    rows = make_rows()
    forward = CompletionLogprobs(model, temperature=1.3)
    for budget in (10_000, 30):
        got = completion_logprobs(forward, rows, budget=budget, device=CPU)
        for row, values in zip(rows, got, strict=True):
            torch.testing.assert_close(values, bare_logprobs(model, row, 1.3), atol=2e-5, rtol=0)


def test_detail_5_dropout_is_off_in_training_mode(tmp_path):
    from transformers import AutoConfig

    place = tiny_model(tmp_path / "m")
    config = AutoConfig.from_pretrained(place)
    config.attention_dropout = 0.5
    config.save_pretrained(place)
    model = models.load_policy(str(place), Model()).train()
    forward, rows = CompletionLogprobs(model, temperature=1.0), make_rows()
    once, again = (completion_logprobs(forward, rows, budget=10_000, device=CPU) for _ in range(2))
    assert model.training and all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("shared", [False, True], ids=["own backbone", "shared"])
def test_detail_23_a_value_is_read_at_the_position_before_its_token_and_once_after_the_last(place, shared):
    model = models.load_policy(place, Model())
    rows = make_rows()
    critic = SharedCritic(model, temperature=1.0) if shared else from_model(model)
    head = critic.value_head if isinstance(critic, SharedCritic) else critic.head
    torch.manual_seed(2)
    torch.nn.init.normal_(head.weight)
    read = (lambda batch: critic(batch)[2]) if shared else critic
    got = values_of(read, rows, budget=40, device=CPU)  # type: ignore[arg-type]
    for row, values in zip(rows, got, strict=True):
        with torch.no_grad():
            hidden = model.model(input_ids=torch.tensor([[*row.prompt_ids, *row.ids]])).last_hidden_state[0]
            expected = (hidden @ head.weight[0] + head.bias)[len(row.prompt_ids) - 1 :]
        assert len(values) == len(row.ids) + 1
        torch.testing.assert_close(values, expected, atol=2e-5, rtol=0)


def test_detail_29_the_value_head_starts_at_zero_and_gets_gradient(place):
    for shared in (False, True):
        learner = make_learner(place, critic=Critic(shared=shared, clip=0.0))
        batch = make_batch(make_rows(), critic=True)
        model = learner.policy if shared else learner.critic
        head = model.value_head if shared else model.head
        assert not head.weight.any() and not head.bias.any()
        found = gradients(learner, batch)
        assert float(found["value_head.weight" if shared else "head.weight"].abs().max()) > 0


def test_detail_30_adams_eps_is_the_recipes(place):
    assert Optimizer().eps == 1e-5
    learner = make_learner(place, critic=Critic(), optimizer=Optimizer(eps=3e-5))
    assert learner.critic_backend is not None
    for optimizer in (learner.policy_backend.optimizer, learner.critic_backend.optimizer):
        assert {group["eps"] for group in optimizer.param_groups} == {3e-5}


def test_a_critic_learns_at_its_own_rate(place):
    own = make_learner(place, critic=Critic(learning_rate=7e-4))
    assert own.critic_backend is not None
    assert {g["lr"] for g in own.critic_backend.optimizer.param_groups} == {7e-4}
    shared = make_learner(place, critic=Critic(shared=True, learning_rate=7e-4))
    assert [g["lr"] for g in shared.policy_backend.optimizer.param_groups] == [1e-3, 7e-4]
    assert len(shared.policy_backend.optimizer.param_groups[1]["params"]) == 2


# --- the gradient -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("aggregate", ["token_mean", "sequence_mean", "constant_length"])
@pytest.mark.parametrize("kind", ["clip", "gspo", "cispo", "reinforce"])
def test_detail_34_the_gradient_is_unmoved_by_how_rows_are_cut_into_micro_batches(place, kind, aggregate):
    loss = Loss(kind=kind, aggregate=aggregate, entropy_coef=0.01, importance="truncate")
    batch = make_batch(make_rows(), off_policy=True, reference=True)
    whole = gradients(make_learner(place, loss=loss), batch, kl_coef=0.1)
    cut = make_learner(place, loss=loss, budget=25)
    assert len(cut._minibatch(batch.rows, range(len(batch.rows))).micro_batches) > 3
    assert_same(gradients(cut, batch, kl_coef=0.1), whole)


def test_detail_34_the_critics_gradient_is_unmoved_too(place):
    batch = make_batch(make_rows(), critic=True)
    for shared in (False, True):
        found = [gradients(make_learner(place, budget=b, critic=Critic(shared=shared)), batch) for b in (10_000, 25)]
        assert_same(*found)


def test_the_gradient_is_that_of_the_loss_written_out(place):
    """REINFORCE, token mean, with k3 and entropy: a plain autograd sum over rows run one by one."""
    rows = make_rows()
    batch = make_batch(rows, reference=True)
    loss = Loss(kind="reinforce", entropy_coef=0.02)
    found = gradients(make_learner(place, loss=loss), batch, kl_coef=0.3)
    model = models.load_policy(place, Model())
    total = sum(sum(r.mask) for r in rows)
    for i, row in enumerate(rows):
        logits = model(input_ids=torch.tensor([[*row.prompt_ids, *row.ids]])).logits[0, len(row.prompt_ids) - 1 : -1]
        every = (logits / 1.3).log_softmax(-1)
        chosen = every.gather(1, torch.tensor(row.ids)[:, None])[:, 0]
        lead = batch.reference_logprobs[i] - chosen  # type: ignore[index]
        per_token = -batch.advantages[i] * chosen + 0.3 * (lead.exp() - 1 - lead) + 0.02 * (every.exp() * every).sum(-1)
        (per_token[torch.tensor(row.mask)].sum() / total).backward()
    expected = {f"model.{n}": p.grad for n, p in model.named_parameters()}
    assert_same(found, expected)  # type: ignore[arg-type]


def test_detail_14_tokens_the_policy_did_not_sample_reach_neither_gradient_nor_figures(place):
    rows = make_rows()
    batch, other = make_batch(rows, off_policy=True, critic=True, reference=True), None
    other = make_batch(rows, off_policy=True, critic=True, reference=True)
    for name in ("advantages", "generator_logprobs", "old_logprobs", "reference_logprobs", "values", "returns"):
        column = getattr(other, name)
        setattr(other, name, [x + 1e3 * ~torch.tensor(r.mask) for x, r in zip(column, rows, strict=True)])
    assert any(not all(r.mask) and any(r.mask) for r in rows)
    loss = Loss(importance="truncate", importance_level="sequence")
    figures = []
    for one in (batch, other):
        learner = make_learner(place, loss=loss, critic=Critic())
        figures.append((learner.update(one, range(len(rows)), kl_coef=0.2, kl_kind="k3"), learner))
    assert figures[0][0] == figures[1][0]
    for a, b in zip(figures[0][1].model.parameters(), figures[1][1].model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_ptx_adds_the_gradient_of_the_demonstrations_likelihood_at_temperature_1(place):
    batch, shown = make_batch(make_rows()), make_rows(5, seed=8, holes=False)
    for budget in (10_000, 20):
        loss = Loss(ptx_coef=0.7)
        with_ptx = gradients(make_learner(place, loss=loss, budget=budget), batch, demonstrations=shown)
        without = gradients(make_learner(place, loss=loss, budget=budget), batch)
        model = models.load_policy(place, Model())
        total = sum(len(r.ids) for r in shown)
        for row in shown:
            ids = torch.tensor([[*row.prompt_ids, *row.ids]])
            labels = ids.clone()
            labels[0, : len(row.prompt_ids)] = -100
            (0.7 * model(input_ids=ids, labels=labels).loss * len(row.ids) / total).backward()  # the library's own loss
        expected = {f"model.{n}": p.grad + without[f"model.{n}"] for n, p in model.named_parameters()}
        assert_same(with_ptx, expected, atol=3e-6)


def test_detail_37_the_gradients_norm_is_clipped_for_policy_and_critic(place):
    batch = make_batch(make_rows(), critic=True)
    learner = make_learner(place, critic=Critic(), optimizer=Optimizer(learning_rate=1e-3, max_grad_norm=0.01))
    assert learner.critic_backend is not None
    norms = []
    for model, optimizer in (
        (learner.policy, learner.policy_backend.optimizer),
        (learner.critic, learner.critic_backend.optimizer),
    ):
        plain = optimizer.step

        def step(model=model, plain=plain):
            norms.append(float(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()))
            plain()

        optimizer.step = step
    figures = learner.update(batch, range(len(batch.rows)), kl_coef=0.0, kl_kind="k3")
    assert figures["grad_norm"] > 0.01 and figures["critic_grad_norm"] > 0.01, "logged as it was before clipping"
    assert norms == pytest.approx([0.01, 0.01], rel=1e-3)


def test_detail_38_old_log_probs_stay_those_from_before_the_first_update(place):
    learner, rows = make_learner(place, optimizer=Optimizer(learning_rate=1e-2)), make_rows(holes=False)
    batch = make_batch(rows)
    batch.old_logprobs = learner.inference.logprobs(rows)
    before = [x.clone() for x in batch.old_logprobs]
    first, second = (learner.update(batch, range(len(rows)), kl_coef=0.0, kl_kind="k3") for _ in range(2))
    assert first["ratio_max"] == pytest.approx(1.0, abs=1e-5) and second["ratio_max"] > 1.01
    assert all(torch.equal(a, b) for a, b in zip(batch.old_logprobs, before, strict=True))
    # what the second ratio was taken over is the first policy, not the one just left
    now = learner.inference.logprobs(rows)
    third = learner.update(batch, range(len(rows)), kl_coef=0.0, kl_kind="k3")
    expected = max(float((a - b).exp().max()) for a, b in zip(now, before, strict=True))
    assert third["ratio_max"] == pytest.approx(expected, rel=1e-4)


def test_while_only_the_critic_learns_the_policy_does_not_move(place):
    for shared in (False, True):
        settings = Optimizer(learning_rate=1e-2, weight_decay=0.1)
        learner = make_learner(place, critic=Critic(shared=shared, clip=0.0), optimizer=settings)
        before = {n: p.detach().clone() for n, p in learner.model.named_parameters()}
        batch = make_batch(make_rows(), critic=True)
        learner.update(batch, range(len(batch.rows)), kl_coef=0.0, kl_kind="k3", train_policy=False)
        assert all(torch.equal(p, before[n]) for n, p in learner.model.named_parameters())
        head = learner.policy.value_head if shared else learner.critic.head
        assert head.weight.any()
        learner.update(batch, range(len(batch.rows)), kl_coef=0.0, kl_kind="k3")
        assert any(not torch.equal(p, before[n]) for n, p in learner.model.named_parameters())


def test_a_shared_critic_adds_its_share_of_the_value_gradient_to_the_policys(place):
    batch = make_batch(make_rows(), critic=True)
    half, none = (
        gradients(make_learner(place, critic=Critic(shared=True, clip=0.0, coef=c)), batch) for c in (0.5, 0.0)
    )
    whole = gradients(make_learner(place, critic=Critic(shared=True, clip=0.0, coef=1.0)), batch)
    assert_same({n: none[n] + 2 * (half[n] - none[n]) for n in half}, whole, atol=3e-6)


# --- precision, memory, adapters, references --------------------------------------------------------------------------


def test_gradient_checkpointing_runs_layers_again_and_changes_no_gradient(place):
    batch = make_batch(make_rows())
    found, passes = [], []
    for on in (False, True):
        learner = make_learner(place)
        if on:
            learner.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        count: list[int] = []
        learner.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_, count=count: count.append(1))
        found.append(gradients(learner, batch))
        passes.append(len(count))
    assert_same(*found)
    assert passes == [1, 2]


def test_bfloat16_products_give_float32_log_probs_and_keep_the_smallest_step(place):
    model = models.load_policy(place, Model(dtype="bfloat16")).float().train()
    policy = CompletionLogprobs(model, temperature=1.0, autocast=torch.bfloat16)
    rows = make_rows(holes=False)
    batch = make_batch(rows)
    learner = Learner(
        Accelerator(cpu=True), policy, None, loss=Loss(), optimizer=Optimizer(learning_rate=1e-6), critic_settings=None,
        updates=5, max_tokens=12, budget=10_000,
    )  # fmt: skip
    logprobs = policy(pad_rows(rows, CPU))[0]
    assert logprobs.dtype == torch.float32
    exact = [bare_logprobs(model, r, 1.0) for r in rows]
    gaps = [float((a[: len(b)] - b).abs().max()) for a, b in zip(logprobs.detach(), exact, strict=True)]
    assert 1e-5 < max(gaps) < 0.05, "the products are bfloat16, and no coarser than that"
    before = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    learner.update(batch, range(len(rows)), kl_coef=0.0, kl_kind="k3")
    moved = (model.model.layers[0].mlp.up_proj.weight - before).abs()
    assert 0 < float(moved.detach().max()) < 1e-4
    lost = (before.bfloat16() + 1e-6) == before.bfloat16()
    assert lost.float().mean() > 0.9, "the same step on bfloat16 weights would have been rounded away"


def test_a_lora_checkpoint_holds_the_adapter_only_and_brings_it_back(place):
    batch = make_batch(make_rows())
    learner = make_learner(place, lora=True, optimizer=Optimizer(learning_rate=1e-2))
    for _ in range(2):
        learner.update(batch, range(len(batch.rows)), kl_coef=0.0, kl_kind="k3")
    state = learner.state()
    held = state["policy"]["weights"]
    assert held and all("lora_" in name for name in held)
    fresh = make_learner(place, lora=True)
    fresh.load_state(state)
    rows = batch.rows
    assert all(
        torch.equal(a, b) for a, b in zip(fresh.inference.logprobs(rows), learner.inference.logprobs(rows), strict=True)
    )
    with pytest.raises(ValueError, match="the checkpoint is of another model"):
        make_learner(place).load_state(state)


def test_under_lora_the_reference_is_the_base_and_no_second_model(place):
    rows = make_rows()
    learner = make_learner(place, lora=True, optimizer=Optimizer(learning_rate=1e-2))
    start = completion_logprobs(
        CompletionLogprobs(models.load_policy(place, Model()), temperature=1.3), rows, budget=10_000, device=CPU
    )
    reference = AdapterOff(learner)
    learner.update(make_batch(rows), range(len(rows)), kl_coef=0.0, kl_kind="k3")
    moved = learner.inference.logprobs(rows)
    assert all(torch.equal(a, b) for a, b in zip(reference.logprobs(rows), start, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(moved, start, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(learner.inference.logprobs(rows), moved, strict=True)), (
        "it is on again"
    )
    assert [n for n, v in vars(reference).items() if isinstance(v, torch.nn.Module)] == []


@pytest.mark.parametrize("kind", ["frozen", "ema", "periodic"])
def test_a_reference_stays_follows_or_is_reset(place, kind):
    learner = make_learner(place, optimizer=Optimizer(learning_rate=1e-2))
    copy = CompletionLogprobs(models.load_policy(place, Model()), temperature=1.3)
    reference = Copy(copy, learner, Kl(reference=kind, ema=0.75, every=2))
    start = {n: p.detach().clone() for n, p in copy.model.named_parameters()}
    batch = make_batch(make_rows())
    held = start
    for step in (1, 2, 3):
        learner.update(batch, range(len(batch.rows)), kl_coef=0.0, kl_kind="k3")
        now = {n: p.detach().clone() for n, p in learner.model.named_parameters()}
        reference.after_step(step)
        if kind == "ema":
            held = {n: 0.75 * held[n] + 0.25 * now[n] for n in held}
        elif kind == "periodic" and step == 2:
            held = now
        for n, p in copy.model.named_parameters():
            torch.testing.assert_close(p.detach(), held[n], atol=1e-7 if kind == "ema" else 0, rtol=0)
    saved = reference.state()
    assert bool(saved) == (kind != "frozen")
    again = Copy(
        CompletionLogprobs(models.load_policy(place, Model()), temperature=1.3), learner, replace(Kl(), reference=kind)
    )
    again.load_state(saved)
    for n, p in again.forward.model.named_parameters():
        assert torch.equal(p, dict(copy.model.named_parameters())[n])


def test_the_policy_that_is_saved_is_the_causal_model_alone(place):
    assert isinstance(make_learner(place, critic=Critic()).critic, ValueModel)
    names = {n for n, _ in models.load_policy(place, Model()).named_parameters()}
    for critic in (Critic(), Critic(shared=True)):
        assert {n for n, _ in make_learner(place, critic=critic).model.named_parameters()} == names


def test_figures_say_nan_where_nothing_was_valid():
    figures = learning.Averages()
    figures.add("mean", torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.bool))
    figures.largest("top", torch.ones(1, 2), torch.zeros(1, 2, dtype=torch.bool))
    figures.once("norm", 3.0)
    read = figures.read()
    assert read["mean"] != read["mean"] and read["top"] != read["top"] and read["norm"] == 3.0


def test_a_value_head_on_the_policys_backbone_learns_while_the_policys_rate_warms_up():
    weight, head = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([{"params": [weight], "lr": 0.1}, {"params": [head], "lr": 0.2}])
    schedule = learning.make_schedule(optimizer, Optimizer(warmup_steps=2, schedule="linear"), updates=4)
    rates = [schedule.get_last_lr()]
    for _ in range(4):
        optimizer.step()
        schedule.step()
        rates.append(schedule.get_last_lr())
    assert rates == [pytest.approx(pair) for pair in ([0.0, 0.2], [0.05, 0.2], [0.1, 0.2], [0.05, 0.2], [0.0, 0.2])]
