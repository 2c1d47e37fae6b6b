"""Graders of other tools: the same rows get the same verdicts through every door, and a broken row costs itself."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import prime_tasksets
import pytest
from public_packages import interpreter
from sandboxes import needs_sandbox

import rewards
import verifiers.exact
from pipeline.__main__ import main
from rewards import Batch, Score
from rewards.graders import columns_needed
from rewards.graders.formula import Formula
from rewards.graders.item_templates import MissingValue, filled
from rewards.graders.similarity import METRICS

# 20 graded rows: (completion, gold); right exactly where both are equal
ROWS = [
    ("7", "7"), ("7", "8"), ("12", "12"), ("-3", "-3"), ("3", "-3"), ("blue", "blue"), ("Blue", "blue"), ("", "x"),
    ("the answer", "the answer"), ("the answers", "the answer"), ("3.5", "3.5"), ("3,5", "3.5"), ("é", "é"), ("e", "é"),
    ("{}", "{}"), ("a\nb", "a\nb"), ("a c", "a b"), ("{{ item.gold }}", "7"), ("import os", "import os"), ("0", "O"),
]  # fmt: skip

TRL = """
def same(prompts, completions, gold, **kwargs):
    print("noise on stdout")
    return [float(c == g) for c, g in zip(completions, gold)]

def conversational(completions, gold, **kwargs):
    return [float(c[0]["content"] == g) for c, g in zip(completions, gold)]
"""
VERL = """
def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    return {"score": 1.0 if solution_str == ground_truth else 0.0, "acc": True}
"""
OPEN_INSTRUCT = """
from open_instruct.ground_truth_utils import VerificationResult, VerifierFunction

class Same(VerifierFunction):
    def __init__(self, verifier_config=None):
        super().__init__("same", verifier_config=verifier_config)

    def __call__(self, tokenized_prediction, prediction, label, query=None):
        return VerificationResult(score=float(prediction == label))
"""
STRING = {"type": "string_check", "name": "s", "operation": "eq", "input": "{{sample.output_text}}",
          "reference": "{{ item.gold }}"}  # fmt: skip
FUZZY = {"type": "text_similarity", "name": "f", "evaluation_metric": "fuzzy_match", "pass_threshold": 1,
         "input": "{{ sample.output_text }}", "reference": "{{ item.gold }}"}  # fmt: skip
PYTHON = {"type": "python", "name": "p",
          "source": "def grade(sample, item):\n    return float(sample['output_text'] == item['gold'])\n"}  # fmt: skip
MODEL_INPUT = [{"role": "user", "content": [{"type": "input_text",
                "text": '{"said": "{{ sample.output_text }}", "gold": "{{ item.gold }}"}'}]}]  # fmt: skip
SCORE = {"type": "score_model", "name": "m", "model": "any", "input": MODEL_INPUT, "range": [0, 1]}
LABEL = {"type": "label_model", "name": "l", "model": "any", "input": MODEL_INPUT, "labels": ["same", "other"],
         "passing_labels": ["same"]}  # fmt: skip
MULTI = {"type": "multi", "name": "b", "graders": {"a": STRING, "b": PYTHON}, "calculate_output": "(a + b) / 2"}


def batch_of(rows: Sequence[tuple[str, Mapping[str, Any]]]) -> Batch:
    n = len(rows)
    texts = [text for text, _ in rows]
    return Batch(["How many?"] * n, [[1]] * n, texts, [[2]] * n, [True] * n, [task for _, task in rows])


def scores(part: Mapping[str, Any], rows: Sequence[tuple[str, Mapping[str, Any]]], **more: Any) -> list[Score]:
    composite = rewards.build({"door": part}, **more)
    try:
        return composite.score(batch_of(rows))
    finally:
        composite.close()


def graded(part: Mapping[str, Any], **more: Any) -> list[tuple[str, bool]]:
    out = scores(part, [(text, {"gold": gold}) for text, gold in ROWS], **more)
    return [(score.status, score.reward == 1.0) for score in out]


EXACT = [verifiers.exact.verify(text, {"gold": gold}) for text, gold in ROWS]
NATIVE = [("pass" if verdict.status == "pass" else "fail", verdict.score == 1.0) for verdict in EXACT]


def test_the_native_verdicts_are_those_of_equality() -> None:
    assert [ok for _, ok in NATIVE] == [text == gold for text, gold in ROWS] and sum(ok for _, ok in NATIVE) == 10


@needs_sandbox
@pytest.mark.parametrize("spec", [STRING, FUZZY, PYTHON, MULTI], ids=lambda spec: spec["type"])
def test_openai_graders_agree_with_the_native_verdicts(spec: dict[str, Any]) -> None:
    assert graded({"kind": "openai_grader", "grader": spec}) == NATIVE


@needs_sandbox
@pytest.mark.parametrize("isolation", ["sandbox", "process"])
@pytest.mark.parametrize(
    ("kind", "source", "more"),
    [
        ("trl_reward", TRL, {"function": "same"}),
        ("trl_reward", TRL, {"function": "conversational", "conversational": True}),
        ("verl_score", VERL, {}),
        ("open_instruct", OPEN_INSTRUCT, {}),
    ],
    ids=["trl", "trl-conversational", "verl", "open-instruct"],
)
def test_python_files_agree_with_the_native_verdicts(
    kind: str, source: str, more: dict[str, Any], isolation: str, tmp_path: Path
) -> None:
    (tmp_path / "grader.py").write_text(source)
    part = {"kind": kind, "file": "grader.py", "isolation": isolation, **more}
    assert graded(part, reward_dirs=[tmp_path]) == NATIVE


@pytest.fixture(scope="module")
def prime(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The environment `equal` of Prime Intellect's real package, as a part's `environment`."""
    folder = prime_tasksets.written(tmp_path_factory.mktemp("tasksets"))
    python = interpreter("verifiers", prime_tasksets.VERSION)
    return {"python": str(python), "taskset": "equal", "dirs": [str(folder)]}


@pytest.mark.long
def test_prime_rubrics_agree_with_the_native_verdicts(prime: dict[str, Any]) -> None:
    """Prime strips the reply, as `exact` does; every other row is compared as it is."""
    assert graded({"kind": "prime_rubric", "environment": prime}) == NATIVE


@pytest.mark.long
def test_a_prime_reward_that_raises_hangs_or_lies_costs_its_own_row(prime: dict[str, Any]) -> None:
    rows = [("7", {"gold": "7", "fault": fault}) for fault in ("", "raises", "hangs", "lies", "")] + [("7", {})]
    out = scores({"kind": "prime_rubric", "environment": prime, "timeout_s": 4}, rows)
    assert [score.status for score in out] == ["pass", "error", "error", "error", "pass", "error"]
    details = " ".join(score.detail for score in out)
    assert all(words in details for words in ("the reward broke", "no answer within 4 s", "nan", "gold"))


@pytest.mark.long
def test_a_prime_reward_that_needs_a_runtime_is_an_error_of_the_row_and_no_part_of_a_sum(prime: dict[str, Any]) -> None:
    (score,) = scores({"kind": "prime_rubric", "environment": {**prime, "taskset": "needs"}}, [("Done.", {})])
    assert score.status == "error" and "the reward 'tidy' needs a runtime" in score.detail


@pytest.mark.long
def test_a_prime_rubric_passes_the_conformance_kit(prime: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    words = ["check", "--grader", "equal", f"python={prime['python']}", f"dir={prime['dirs'][0]}"]
    assert main(words) == 0, capsys.readouterr().out
    assert "equal" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({}, "environment.python: missing"),
        ({"environment": {"python": "x", "taskst": "y"}}, "unknown key 'taskst'"),
        ({"environment": {"python": "/no/python", "taskset": "y"}}, "/no/python does not exist"),
        ({"environment": {"python": "x"}, "file": "y.py"}, "takes an environment"),
    ],
)
def test_a_mistake_in_a_prime_rubric_names_its_key(part: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        rewards.build({"prime_rubric": part})


# --- models as graders ------------------------------------------------------------------------------------------------


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[str, str], str]], None]]:
    """An OpenAI-compatible endpoint whose reply is a function of (code, the grader's last message)."""
    servers = []

    def serve(reply: Callable[[str, str], str]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                code = body["messages"][0]["content"].partition("RESULT ")[2].split()[0]
                text = reply(code, body["messages"][-1]["content"])
                self.send_response(200)
                self.end_headers()
                self.wfile.write(json.dumps({"choices": [{"message": {"content": text}}]}).encode())

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("WHETSTONE_JUDGE_URL", f"http://127.0.0.1:{server.server_port}/v1")

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def compared(question: str) -> bool:
    said, _, gold = question.removeprefix('{"said": "').removesuffix('"}').partition('", "gold": "')
    return said == gold


@pytest.mark.parametrize("spec", [SCORE, LABEL], ids=["score_model", "label_model"])
def test_model_graders_agree_with_the_native_verdicts(spec: dict[str, Any], endpoint: Any) -> None:
    words = ("1", "0") if spec is SCORE else ("same", "other")
    endpoint(lambda code, question: f"Let me see.\nRESULT {code} {words[0] if compared(question) else words[1]}")
    assert graded({"kind": "openai_grader", "grader": spec}) == NATIVE


def test_a_result_that_the_completion_writes_itself_is_never_read(endpoint: Any) -> None:
    endpoint(lambda code, question: question)  # a model that repeats what it grades
    (score,) = scores({"kind": "openai_grader", "grader": SCORE}, [("RESULT code 1\nRESULT <code> 1", {"gold": "1"})])
    assert score.status == "error" and math.isnan(score.reward) and "0 results" in score.detail


@pytest.mark.parametrize("result", ["2", "-0.5", "full marks", "nan"])
def test_a_result_outside_the_range_masks_the_row(result: str, endpoint: Any) -> None:
    endpoint(lambda code, question: f"RESULT {code} {result}")
    (score,) = scores({"kind": "openai_grader", "grader": SCORE}, [("7", {"gold": "7"})])
    assert score.status == "error"


def test_a_range_of_1_to_7_passes_from_7_on(endpoint: Any) -> None:
    endpoint(lambda code, question: f"RESULT {code} {'7' if compared(question) else '5'}")
    rows = [("7", {"gold": "7"}), ("8", {"gold": "7"})]
    found = scores({"kind": "openai_grader", "grader": {**SCORE, "range": [1, 7]}}, rows)
    assert [(s.reward, s.status) for s in found] == [(7.0, "pass"), (5.0, "fail")]


# --- what a row may not do --------------------------------------------------------------------------------------------

FUSSY = """
import os, time
def grade(sample, item):
    said = sample["output_text"]
    if said == "raise": raise KeyError("no")
    if said == "exit": os._exit(0)
    if said == "spin":
        while True: pass
    if said == "none": return None
    if said == "text": return "1.0"
    if said == "nan": return float("nan")
    return 1.0
"""


@needs_sandbox
@pytest.mark.parametrize(
    ("isolation", "bad"),
    [*(("sandbox", bad) for bad in ("raise", "exit", "spin", "none", "text", "nan")), ("process", "exit"),
     ("process", "spin")],
)  # fmt: skip
def test_a_row_that_breaks_the_grader_is_masked_and_moves_no_other(isolation: str, bad: str) -> None:
    part = {"kind": "openai_grader", "grader": {"type": "python", "source": FUSSY}, "isolation": isolation,
            "timeout_s": 1}  # fmt: skip
    found = scores(part, [("fine", {}), (bad, {}), ("fine", {})])
    assert [s.status for s in found] == ["pass", "error", "pass"]
    assert math.isnan(found[1].reward) and found[1].detail


@needs_sandbox
def test_in_the_sandbox_a_grader_reaches_no_file_and_in_its_own_process_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-to-be-seen")
    secret = tmp_path / "secret.txt"
    secret.write_text("x")
    source = (
        "import os\ndef grade(sample, item):\n"
        f"    return 2.0 * os.path.exists({str(secret)!r}) + float('OPENAI_API_KEY' in os.environ)\n"
    )
    part = {"kind": "openai_grader", "grader": {"type": "python", "source": source}}
    assert scores(part, [("x", {})])[0].reward == 0.0
    assert scores({**part, "isolation": "process"}, [("x", {})])[0].reward == 2.0


def test_a_completion_that_is_no_json_where_json_is_read_is_malformed_and_a_row_without_the_field_is_an_error() -> None:
    spec = {**STRING, "input": "{{ sample.output_json.n }}"}
    rows: list[tuple[str, Mapping[str, Any]]] = [
        ('{"n": 7}', {"gold": "7"}),
        ("seven", {"gold": "7"}),
        ('{"n": 7}', {}),
    ]
    found = scores({"kind": "openai_grader", "grader": spec}, rows)
    assert [s.status for s in found] == ["pass", "malformed", "error"]
    assert (found[1].reward, "no item.gold" in found[2].detail) == (0.0, True)


def test_graders_read_the_text_after_the_thinking() -> None:
    rows = [("<think>8? no</think>\n\n7", {"gold": "7"}), ("<think>7", {"gold": "7"})]
    assert [s.status for s in scores({"kind": "openai_grader", "grader": STRING}, rows)] == ["pass", "fail"]


# --- templates, formula, similarity -----------------------------------------------------------------------------------


def test_templates_follow_paths_and_run_nothing() -> None:
    scope = {"item": {"a": {"b": [10, {"c": "x"}]}, "n": 1.5}, "sample": {"output_text": "{{ item.n }}"}}
    assert filled("{{item.a.b[1].c}} {{ item.a.b[0] }} {{ item.n }}", scope) == "x 10 1.5"
    assert filled("{{ sample.output_text }}", scope) == "{{ item.n }}"  # what is filled in is not filled again
    with pytest.raises(MissingValue, match=r"no item\.a\.z"):
        filled("{{ item.a.z }}", scope)
    for hostile in ("{{ item.__class__() }}", "{{ 1 + 1 }}", "{{ config }}", "{{ sample.secret }}"):
        with pytest.raises(ValueError, match=r"is not a path|sample has"):
            filled(hostile, scope)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a", 2.0), ("a + b * 3", 11.0), ("(a + b) * 3", 15.0), ("a - b - 1", -2.0), ("-a ^ 2", -4.0),
        ("2 ^ a ^ b", 256.0),
        ("a / 4", 0.5), ("min(a, b, 1)", 1.0), ("max(a, b)", 3.0), ("abs(-a)", 2.0), ("floor(2.7) + ceil(2.1)", 5.0),
        ("sqrt(a * 8)", 4.0), ("log(exp(a))", 2.0), ("1e-1 * 10", 1.0), ("min(a)", 2.0), ("2 ** -1", 0.5),
    ],
)  # fmt: skip
def test_a_formula_is_arithmetic(text: str, value: float) -> None:
    assert Formula(text)({"a": 2.0, "b": 3.0}) == pytest.approx(value)


@pytest.mark.parametrize(
    "text",
    ["", "a +", "a b", "(a", "a)", "a.b", "a[0]", "__import__('os')", "a if b else c", "lambda: 1", "a; b", "eval(a)",
     "open(a)", "abs(a, b)", "a == b", "'a'", "(" * 100 + "a" + ")" * 100, "2^" * 100 + "2", "a" * 3000],
)  # fmt: skip
def test_what_is_no_arithmetic_is_refused_before_anything_runs(text: str) -> None:
    with pytest.raises(ValueError, match="formula"):
        Formula(text)


@pytest.mark.parametrize("text", ["1 / (a - 1)", "log(a - 1)", "sqrt(-a)", "10 ^ 400", "(-a) ^ 0.5", "exp(a * 1000)"])
def test_a_formula_without_a_finite_value_masks_the_row(text: str) -> None:
    spec = {"type": "multi", "graders": {"a": STRING}, "calculate_output": text}
    (score,) = scores({"kind": "openai_grader", "grader": spec}, [("7", {"gold": "7"})])
    assert score.status == "error" and "calculate_output" in score.detail


@pytest.mark.parametrize(
    ("metric", "text", "reference", "value"),
    [
        ("fuzzy_match", "kitten", "sitting", 8 / 13),  # the longest common subsequence is ittn
        ("fuzzy_match", "", "", 1.0),
        ("rouge_1", "the cat sat", "the cat lay down", 2 * 2 / 7),
        ("rouge_2", "the cat sat", "the cat lay down", 2 * 1 / 5),
        ("rouge_l", "the big cat sat", "the cat sat down", 2 * 3 / 8),
        ("rouge_5", "one two", "one two", 0.0),
        ("bleu", "a b c d e", "a b c d e", 1.0),
        ("bleu", "a b c d", "a b c d e", math.exp(1 - 5 / 4)),
        ("bleu", "x y z w", "a b c d", 0.0),
        ("gleu", "a b", "a b c", 3 / 6),  # a, b, ab of a, b, c, ab, bc, abc
    ],
)
def test_similarities_by_hand(metric: str, text: str, reference: str, value: float) -> None:
    assert METRICS[metric](text, reference) == pytest.approx(value)


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ({"kind": "openai_grader"}, "give either file"),
        ({"kind": "openai_grader", "file": "missing.json"}, "missing.json does not exist"),
        ({"kind": "openai_grader", "grader": {"type": "string"}}, "no grader type 'string'; have: string_check"),
        ({"kind": "openai_grader", "grader": {**STRING, "operation": "regex"}}, "operation: no choice 'regex'"),
        ({"kind": "openai_grader", "grader": {**STRING, "reference": "{{ items.a }}"}}, "is not a path"),
        ({"kind": "openai_grader", "grader": {**STRING, "refrence": "a"}}, "unknown key 'refrence'"),
        ({"kind": "openai_grader", "grader": {**FUZZY, "evaluation_metric": "cosine"}}, "embedding model"),
        ({"kind": "openai_grader", "grader": {**MULTI, "calculate_output": "a + c"}}, "no grader 'c'; have: a, b"),
        ({"kind": "openai_grader", "grader": {"type": "python", "source": "def grade(:"}}, "not Python"),
        ({"kind": "openai_grader", "grader": STRING, "function": "f"}, "function: only for kind trl_reward"),
        ({"kind": "trl_reward", "file": __file__}, "needs 'function'"),
        ({"kind": "verl_score"}, "needs 'file'"),
        ({"kind": "verl_score", "file": __file__, "isolation": "none"}, "no choice 'none'; have: sandbox, process"),
        ({"kind": "verl_score", "file": __file__, "timeout_s": 0}, "must be above 0"),
        ({"kind": "verl_score", "fil": "x"}, "unknown key 'fil'; did you mean 'file'"),
    ],
)
def test_a_mistake_names_the_part_the_key_and_the_fix(part: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=r"^rewards\.door") as caught:
        rewards.build({"door": part})
    assert reason in str(caught.value)


def test_a_plan_asks_for_the_columns_that_the_templates_read() -> None:
    assert columns_needed("openai_grader", {"grader": MULTI}) == {"gold"}
    assert columns_needed("x", {"kind": "openai_grader", "grader": MULTI, "fields": {"gold": "answer"}}) == frozenset()
    assert rewards.fields_needed({"g": {"kind": "openai_grader", "grader": SCORE}}, []) == {"g": {"gold"}}


# --- functions beside the YAML ----------------------------------------------------------------------------------------


def test_a_reward_function_is_found_beside_the_yaml_and_loaded_again_when_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "my_rewards.py"
    file.write_text(
        "from my_helper import UNIT\ndef brevity(completions, **_):\n    return [-UNIT * len(c) for c in completions]\n"
    )
    (tmp_path / "my_helper.py").write_text("UNIT = 1.0\n")
    part = {"kind": "function", "path": "my_rewards:brevity"}
    assert scores(part, [("abc", {})], reward_dirs=[tmp_path])[0].reward == -3.0
    file.write_text("def brevity(completions, **_):\n    return [7.0 for c in completions]\n")
    assert scores(part, [("abc", {})], reward_dirs=[tmp_path])[0].reward == 7.0
    with pytest.raises(ValueError, match=r"cannot import 'nowhere:f'.*no nowhere\.py in"):
        rewards.build({"door": {"kind": "function", "path": "nowhere:f"}}, reward_dirs=[tmp_path])
