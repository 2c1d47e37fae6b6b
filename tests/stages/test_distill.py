"""distill: a student approaches its teacher and a control does not; whole-trainer loss as TRL's; resume; mistakes."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from loop_kit import CHARACTERS, TINY, manifest, metrics, run_stage, tiny_model
from torch import Tensor

from pipeline.config.schema import Kl, Loss, Model, Optimizer, Prompts, Teacher
from pipeline.data.teacher_prompts import teacher_prompt_ids
from pipeline.generation import engines
from pipeline.models import models
from pipeline.records import Prompt, Rollout, Scored
from pipeline.update import loop
from pipeline.update.forward import CompletionLogprobs, Row
from pipeline.update.learner import Learner
from pipeline.update.policy_loss import Experience
from pipeline.update.reference import Copy
from pipeline.update.teacher import TeacherModel, reverse_kl_advantages

CPU = torch.device("cpu")


def peaked(place: Path, *, seed: int) -> Path:
    """A teacher four times as large with strong opinions: a random model whose logits are multiplied by 10."""
    from dataclasses import replace

    from transformers import AutoModelForCausalLM

    models.make_tiny(replace(TINY, hidden_size=128), place, seed=seed)
    model = AutoModelForCausalLM.from_pretrained(place)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(10 * model.lm_head.weight.detach().clone())
    models.save(model, models.load_tokenizer(str(place), Model()), place)
    return place


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return peaked(tmp_path_factory.mktemp("teacher"), seed=5)


def distill(root: Path, student: Path, teacher: Path, *overrides: str, steps: int = 2) -> int:
    block = f"{{policy: {student}, steps: {steps}, prompts: 8, samples: 4, optimizer: {{learning_rate: 1.0e-2}}, "
    block += f"teacher: {{model: {teacher}}}}}"
    return run_stage(root, student, "distill", f"distill={block}", "stages=[distill]", *overrides)


def sampled_kl(stage: Path, teacher: Path, step: int) -> float:
    """Mean log p - log q per sampled token of one step, in nats: the reverse KL on the policy's own samples."""
    model = models.load_policy(str(teacher), Model())
    rows = [json.loads(line) for line in (stage / "rollouts.jsonl").read_text().splitlines()]
    gaps: list[float] = []
    for row in (r for r in rows if r["step"] == step):
        ids, start = torch.tensor([[*row["prompt_ids"], *row["ids"]]]), len(row["prompt_ids"])
        logprobs = model(input_ids=ids).logits[0].detach().log_softmax(-1)
        theirs = [float(logprobs[start + i - 1, token]) for i, token in enumerate(row["ids"])]
        gaps += [mine - other for mine, other in zip(row["logprobs"], theirs, strict=True)]
    return sum(gaps) / len(gaps)


@pytest.mark.parametrize("form", ["sampled", "full"])
def test_the_student_approaches_the_teacher_and_rl_without_a_signal_does_not(
    form: str, student: Path, teacher: Path, tmp_path: Path
) -> None:
    """Same number of steps and samples for the control: a GRPO stage whose rewards say nothing about the teacher."""
    assert distill(tmp_path, student, teacher, f"distill.teacher.form={form}", steps=25) == 0
    control = [f"grpo={{policy: {student}, steps: 25, prompts: 8, samples: 4, optimizer: {{learning_rate: 1.0e-2}}}}"]
    coin = ["grpo.reward={random: {}}", "grpo.monitor=null"]
    assert run_stage(tmp_path, student, "grpo", *control, *coin) == 0
    start, taught = (sampled_kl(tmp_path / "t/distill", teacher, step) for step in (0, 24))
    untaught = sampled_kl(tmp_path / "t/grpo", teacher, 24)
    assert taught < 0.5 * start and untaught > 0.8 * start, (start, taught, untaught)
    steps = metrics(tmp_path, "distill")
    if form == "sampled":  # what is logged is the same figure
        assert steps[0]["teacher_kl"] == pytest.approx(start, rel=1e-3)
    else:
        assert steps[-1]["teacher_divergence"] < 0.5 * steps[0]["teacher_divergence"]
    assert steps[0]["teacher_judged"] == 1.0


def test_the_reward_counts_by_its_weight_beside_the_teacher(student: Path, teacher: Path, tmp_path: Path) -> None:
    """`letters` pays for the letter R, and rises where the teacher has weight 0 and the reward 1."""
    given = ["distill.teacher.coef=0", "distill.teacher.reward_coef=1"]
    assert distill(tmp_path, student, teacher, *given, steps=25) == 0
    rewards = [m["reward_mean"] for m in metrics(tmp_path, "distill")]
    assert sum(rewards[-3:]) > 2 * sum(rewards[:3])


@pytest.mark.parametrize(
    "shows", ["{demonstration}>", "{answer}{detail}", "{peer}>"], ids=["demonstration", "detail", "peer"]
)
def test_the_policy_itself_is_the_teacher_once_it_is_shown_more(shows: str, student: Path, tmp_path: Path) -> None:
    given = [
        f'distill={{policy: {student}, steps: 2, prompts: 4, samples: 4, teacher: {{shows: "{shows}", follow: ema}}}}'
    ]
    rewards = ["rewards={gridworld: {weight: 1.0}}"]
    assert run_stage(tmp_path, student, "distill", "stages=[distill]", *given, *rewards) == 0
    shares = [m["teacher_judged"] for m in metrics(tmp_path, "distill")]
    assert all(0 <= share <= 1 for share in shares)
    assert shares[0] == 1.0 if "demonstration" in shows else True


def test_a_run_killed_in_a_step_and_resumed_ends_in_the_same_bytes(
    student: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A teacher that follows the policy is part of the state."""
    teacher = '{shows: "{demonstration}>", follow: ema, form: full, beta: 0.5, top_k: 5}'
    block = f"{{policy: {student}, steps: 4, prompts: 4, samples: 2, checkpoint_every: 2, teacher: {teacher}}}"
    given = [f"distill={block}", "stages=[distill]"]
    assert run_stage(tmp_path / "full", student, "distill", *given) == 0
    update = loop.update_policy

    def killed(deps: Any, state: Any, batch: Any) -> Any:
        if state.step == 3:
            raise KeyboardInterrupt
        return update(deps, state, batch)

    monkeypatch.setattr(loop, "update_policy", killed)
    assert run_stage(tmp_path / "killed", student, "distill", *given) == 130
    monkeypatch.setattr(loop, "update_policy", update)
    engines.close_generators()
    assert run_stage(tmp_path / "killed", student, "distill", *given) == 0
    for file in ("metrics.jsonl", "rollouts.jsonl", "model/model.safetensors"):
        once, again = ((tmp_path / root / "t/distill" / file).read_bytes() for root in ("full", "killed"))
        assert once == again, file


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("teacher", "reported"),
    [
        ("{}", "the policy itself with the same prompt agrees with the policy"),
        ("null", "distill needs one"),
        ('{shows: "see {solution}"}', "no mark ['solution']"),
        ('{shows: "think"}', "has no mark to fill"),
        ("{model: MODEL, follow: ema}", "is for a teacher that is the policy itself"),
        ("{model: MODEL, beta: 0.5}", "form sampled is the reverse KL"),
        ("{model: nowhere}", "neither a stage of this YAML nor a model"),
    ],
)
def test_a_teacher_that_cannot_teach_is_refused_in_one_line(
    teacher: str, reported: str, student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = f"distill={{policy: {student}, steps: 1, teacher: {teacher.replace('MODEL', str(student))}}}"
    assert run_stage(tmp_path, student, "distill", given, "stages=[distill]") == 2
    assert reported in capsys.readouterr().err


def test_a_teacher_with_another_tokenizer_is_refused(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    other = tmp_path / "other"
    models.make_tiny(replace(TINY, characters=CHARACTERS[::-1]), other, seed=1)
    assert distill(tmp_path, student, other) == 2
    assert "the teacher has another tokenizer" in capsys.readouterr().err


def test_a_teacher_that_is_a_stage_is_a_parent(student: Path, tmp_path: Path) -> None:
    block = f"distill={{policy: {student}, steps: 1, prompts: 2, samples: 2, teacher: {{model: grpo}}}}"
    assert run_stage(tmp_path, student, "grpo", "grpo.steps=1") == 0
    assert run_stage(tmp_path, student, "distill", "grpo.steps=1", block, "stages=[grpo, distill]") == 0
    assert "grpo" in manifest(tmp_path, "distill")["parents"]


# --- parts ------------------------------------------------------------------------------------------------------------


class Letters:
    """A tokenizer of characters."""

    eos_token_id = -1
    chat_template = None

    def __call__(self, text: str, **more: Any) -> Any:
        return type("Ids", (), {"input_ids": [ord(c) for c in text]})


def scored(index: int, sample: int, text: str, status: Any, detail: str = "") -> Scored:
    row = {"prompt": f"p{index}", "completion": f"gold{index}"}
    prompt = Prompt(index, row["prompt"], tuple(map(ord, row["prompt"])), {}, row)
    rollout = Rollout(prompt, sample, tuple(map(ord, text)), (0.0,) * len(text), text, True)
    return Scored(rollout, float(status == "pass"), status, {}, detail)


SAMPLES = [
    scored(0, 0, "ab", "pass"), scored(0, 1, "cd", "fail", "too {low}"), scored(1, 0, "e", "fail", ""),
    scored(1, 1, "f", "pass"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("shows", "expected"),
    [
        (None, ["p0", "p0", "p1", "p1"]),
        ("[{demonstration}]", ["[gold0]p0", "[gold0]p0", "[gold1]p1", "[gold1]p1"]),
        ("{answer}: {detail};", [None, "cd: too {low};p0", None, None]),
        ("{peer}|", [None, "ab|p0", "f|p1", None]),
    ],
)
def test_what_a_teacher_is_shown(shows: str | None, expected: list[str | None]) -> None:
    ids = teacher_prompt_ids(SAMPLES, shows, Prompts(), Letters())
    assert [None if x is None else "".join(map(chr, x)) for x in ids] == expected


def test_the_control_asks_about_the_next_prompt_and_a_row_without_a_hint_is_masked() -> None:
    rows = [Row(s.rollout.prompt.ids, s.rollout.ids, s.rollout.mask) for s in SAMPLES]

    def judged(shuffle: bool, shows: str | None) -> list[Row]:
        def prompt_ids(some: Any) -> Any:
            return teacher_prompt_ids(some, shows, Prompts(), Letters())

        return TeacherModel(None, Teacher(shuffle=shuffle), prompt_ids, samples=2).rows(SAMPLES, rows)  # type: ignore[arg-type]

    shuffled = judged(True, None)
    assert ["".join(map(chr, r.prompt_ids)) for r in shuffled] == ["p1", "p1", "p0", "p0"]
    assert [r.ids for r in shuffled] == [r.ids for r in rows]
    assert [any(r.mask) for r in judged(False, "{peer}|")] == [False, True, True, False]


def test_the_advantage_is_minus_the_reverse_kl_of_the_sampled_token_beside_that_of_the_reward() -> None:
    rows = [Row((1,), (5, 6, 7), (True, True, True)), Row((1,), (5,), (False,))]
    policy, teacher = [torch.tensor([-1.0, -2.0, -0.5]), torch.tensor([-1.0])], [torch.tensor([-0.5, -3.0, -0.5])] * 1
    advantages = reverse_kl_advantages(
        [torch.ones(3), torch.ones(1)], policy, [*teacher, torch.tensor([-9.0])], rows, coef=2.0, reward_coef=0.1
    )
    torch.testing.assert_close(advantages[0], torch.tensor([0.1 + 1.0, 0.1 - 2.0, 0.1]))
    torch.testing.assert_close(advantages[1], torch.tensor([0.1]))


# --- against TRL's trainer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [1.0, 0.5, 0.0])
def test_loss_and_gradient_of_a_batch_equal_those_of_trls_distillation_trainer(
    beta: float, student: Path, teacher: Path, tmp_path: Path
) -> None:
    from datasets import Dataset
    from trl import DistillationConfig, DistillationTrainer

    prompts, lengths = [[5, 6, 7], [8, 9, 10]], [4, 2]
    completions = torch.randint(3, 20, (2, 4), generator=torch.Generator().manual_seed(2))
    completion_mask = (torch.arange(4) < torch.tensor(lengths)[:, None]).long()
    tokenizer = models.load_tokenizer(str(student), Model())
    load = models.load_policy
    arguments = DistillationConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none", temperature=0.8, beta=beta,
        max_completion_length=4, per_device_train_batch_size=2, gradient_checkpointing=False,
    )  # fmt: skip
    make: Any = DistillationTrainer
    trainer = make(
        model=copy.deepcopy(load(str(student), Model())), teacher_model=load(str(teacher), Model()), args=arguments,
        train_dataset=Dataset.from_dict({"prompt": ["ab", "cd"]}), processing_class=tokenizer,
    )  # fmt: skip
    trainer.model.train()
    inputs = {
        "prompt_ids": torch.tensor(prompts), "prompt_mask": torch.ones(2, 3, dtype=torch.long),
        "completion_ids": completions * completion_mask, "completion_mask": completion_mask,
        "num_items_in_batch": completion_mask.sum(),
    }  # fmt: skip
    theirs = trainer.compute_loss(trainer.model, inputs)
    theirs.backward()
    expected = {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}

    rows = [
        Row(tuple(p), tuple(c[:n]), (True,) * n) for p, c, n in zip(prompts, completions.tolist(), lengths, strict=True)
    ]
    learner = make_learner(student)
    copied = Copy(CompletionLogprobs(load(str(teacher), Model()), temperature=0.8), learner, Kl())
    taught = TeacherModel(copied, Teacher(form="full", beta=beta, normalise=False), lambda s: [None], samples=1)
    zeros = [torch.zeros(n) for n in lengths]
    batch = Experience(rows, zeros, zeros, lesson=taught.lesson(rows))
    found: dict[str, Tensor] = {}

    def keep() -> Tensor:
        named = learner.policy_backend.unwrapped.model.named_parameters()
        found.update({name: p.grad.clone() for name, p in named if p.grad is not None})
        learner.policy_backend.optimizer.zero_grad()
        return torch.zeros(())

    learner.policy_backend.step = keep  # type: ignore[method-assign]
    ours = learner.update(batch, [0, 1], kl_coef=0.0, kl_kind="k3")
    assert ours["teacher_divergence"] == pytest.approx(float(theirs.detach()), rel=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert float((found[name] - gradient).norm() / gradient.norm()) < 1e-4, name


def make_learner(place: Path) -> Learner:
    return Learner(
        Accelerator(cpu=True), CompletionLogprobs(models.load_policy(str(place), Model()).train(), temperature=0.8),
        None, loss=Loss(), optimizer=Optimizer(), critic_settings=None, updates=2, max_tokens=4, budget=10_000,
    )  # fmt: skip
