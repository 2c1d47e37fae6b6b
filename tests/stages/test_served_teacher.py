"""A teacher behind a server teaches what the same teacher teaches that is loaded here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from loop_kit import CHARACTERS, TINY, metrics, run_stage, tiny_model, weights
from teacher_server import serving

from pipeline.config.schema import Model
from pipeline.models import models
from pipeline.update.divergence import TeacherTopK, chunked_divergence, jensen_shannon
from pipeline.update.forward import Row
from pipeline.update.served_teacher import ServedTeacher, top_k_of


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("student"))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("teacher"), seed=5)


@pytest.fixture(scope="module")
def server(teacher: Path) -> Iterator[str]:
    with serving(teacher) as url:
        yield url


def distill(root: Path, student: Path, teacher: str, *overrides: str) -> int:
    block = f"{{policy: {student}, steps: 3, prompts: 4, samples: 4, optimizer: {{learning_rate: 1.0e-2}}, "
    block += f"teacher: {{{teacher}}}}}"
    return run_stage(root, student, "distill", f"distill={block}", "stages=[distill]", *overrides)


@pytest.mark.stages
@pytest.mark.parametrize(
    ("form", "named"),
    [("form: sampled", "form: sampled"), ("form: full, beta: 0.5, top_k: 40", "form: full, beta: 0.5")],
    ids=["sampled", "top_k"],
)
def test_a_served_teacher_teaches_what_the_same_model_loaded_here_teaches(
    form: str, named: str, student: Path, teacher: Path, server: str, tmp_path: Path
) -> None:
    """The vocabulary has fewer than 40 tokens, so that a server's top 40 are all of it."""
    assert distill(tmp_path / "served", student, f"server: '{server}', {form}") == 0
    assert distill(tmp_path / "loaded", student, f"model: {teacher}, {named}") == 0
    figure = "teacher_kl" if "sampled" in form else "teacher_divergence"
    served, loaded = ([m[figure] for m in metrics(tmp_path / root, "distill")] for root in ("served", "loaded"))
    assert served == pytest.approx(loaded, rel=1e-4, abs=1e-6) and max(served) > 0.001
    one, other = weights(tmp_path / "served", "distill"), weights(tmp_path / "loaded", "distill")
    assert max(float((one[n] - other[n]).abs().max()) for n in other) < 1e-4


def test_log_probs_are_those_of_the_completions_tokens_after_the_prompt(teacher: Path, server: str) -> None:
    model = models.load_policy(str(teacher), Model()).requires_grad_(False)
    rows = [Row((3, 4, 5), (6, 7), (True, True)), Row((8,), (9, 3, 4), (True, False, True))]
    served = ServedTeacher(server, "distill.teacher.server")
    for row, logprobs_T in zip(rows, served.logprobs(rows), strict=True):
        ids = [*row.prompt_ids, *row.ids]
        expected_TV = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = [float(expected_TV[i - 1, ids[i]]) for i in range(len(row.prompt_ids), len(ids))]
        assert logprobs_T.tolist() == pytest.approx(expected, abs=1e-5)
    ids_TK, logprobs_TK = served.top_k(rows, 4)[0]
    expected_TK = model(input_ids=torch.tensor([[3, 4, 5, 6, 7]])).logits[0, 2:4].log_softmax(-1).topk(4)
    assert ids_TK.tolist() == expected_TK.indices.tolist()
    torch.testing.assert_close(logprobs_TK, expected_TK.values, rtol=0, atol=1e-5)


def test_the_prompts_own_token_is_no_part_of_the_top_k() -> None:
    entries = [
        {"7": {"logprob": -5.0, "rank": 9}, "2": {"logprob": -0.5, "rank": 1}, "3": {"logprob": -1.0, "rank": 2}}
    ]
    ids_TK, logprobs_TK = top_k_of(entries, 2)  # type: ignore[arg-type]
    assert ids_TK.tolist() == [[2, 3]] and logprobs_TK.tolist() == [[-0.5, -1.0]]


def test_divergence_of_a_top_k_is_that_of_the_tokens_and_the_rest_by_hand() -> None:
    """One token, vocabulary 4, the teacher's top 2: three outcomes; reverse KL and the direction of its gradient."""
    student_V, teacher_V = torch.tensor([0.1, 0.2, 0.3, 0.4]), torch.tensor([0.5, 0.3, 0.15, 0.05])
    given = TeacherTopK(
        torch.tensor([[[0, 1]]]), teacher_V[:2].log()[None, None], torch.ones(1, 1).bool(), 1.0, 1.0, True
    )
    hidden_BTH = torch.eye(1)[None].requires_grad_()
    weight_VH = student_V.log()[:, None].requires_grad_()
    value = chunked_divergence(hidden_BTH, weight_VH, given, torch.ones(1, 1).bool(), temperature=1.0)
    parts = [(0.1, 0.5), (0.2, 0.3), (0.7, 0.2)]
    expected = sum(p * (torch.tensor(p / q).log()) for p, q in parts)
    assert float(value.detach()) == pytest.approx(float(expected), rel=1e-5)
    (gradient_VH,) = torch.autograd.grad(value.sum(), weight_VH)
    assert gradient_VH[0] < 0 < gradient_VH[3], "descent moves mass from the rest to the teacher's first token"
    full = jensen_shannon(student_V.log()[None], teacher_V.log()[None], beta=1.0)
    assert float(value.detach()) < float(full), "a lower bound of the divergence over the whole vocabulary"


@pytest.mark.parametrize(
    ("teacher_block", "overrides", "reported"),
    [
        ("server: 'URL', form: full", [], "a server gives log-probs of its most likely tokens"),
        ("server: 'URL', form: full, top_k: 50", [], "Requested 50 prompt logprobs, more than 40"),
        ("server: 'URL', model: nowhere", [], "model and server are two teachers"),
        ("server: 'URL', follow: ema", [], "is for a teacher that is the policy itself"),
        ("server: 'URL'", ["sampling.temperature=0.7"], "log-probs of a prompt at temperature 1"),
        ("server: 'localhost:1'", [], "must begin with http"),
        ("server: 'http://127.0.0.1:9'", [], "distill.teacher.server: no server answers at http://127.0.0.1:9"),
    ],
)
def test_what_a_server_cannot_give_is_refused_in_one_line(
    teacher_block: str, overrides: list[str], reported: str, student: Path, server: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert distill(tmp_path, student, teacher_block.replace("URL", server), *overrides) == 2
    err = capsys.readouterr().err
    assert reported in err and len(err.strip().splitlines()) == 1, err


def test_a_server_with_another_tokenizer_is_refused(
    student: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models.make_tiny(replace(TINY, characters=CHARACTERS[::-1]), tmp_path / "other", seed=1)
    with serving(tmp_path / "other") as url:
        assert distill(tmp_path, student, f"server: '{url}'") == 2
    assert "the teacher has another tokenizer" in capsys.readouterr().err
