"""Episodes of a user's own program: what its calls read, what is trained on, how each run ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import trl

import rewards
from pipeline.config.load import ConfigError, load
from pipeline.config.schema import Generate, Model, Program, Prompts, Sampling, Tiny
from pipeline.generation.generator import Sample
from pipeline.generation.hf_engine import TransformersGenerator
from pipeline.generation.program_episodes import ProgramPlayer
from pipeline.generation.program_runs import Guard, printed, program_mistakes
from pipeline.models import models
from pipeline.records import Prompt, load_scored, save_scored
from pipeline.score import score
from pipeline.stats import episode_figures

TEMPLATES = Path(trl.__file__).parent / "chat_templates"
SPECIAL = ["<|im_start|>", "<|im_end|>", "<think>", "</think>"]
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 6, "b": 7}}\n</tool_call>'
NUMBERS = {"a": {"type": "integer"}, "b": {"type": "integer"}}
TOOL = {"type": "function", "function": {"name": "add", "description": "Add.", "parameters": {
    "type": "object", "properties": NUMBERS, "required": ["a", "b"]}}}  # fmt: skip
HEAD = """
import json, os, sys, urllib.request
row = json.load(sys.stdin)
def chat(messages, **more):
    body = json.dumps({"model": "policy", "messages": messages, **more}).encode()
    headers = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"], "Content-Type": "application/json"}
    request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body, headers)
    return json.load(urllib.request.urlopen(request))
def say(text, **more):
    return chat([{"role": "user", "content": text}], **more)["choices"][0]["message"]["content"]
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tiny")
    models.make_tiny(Tiny(characters="".join(map(chr, range(32, 127))) + "\n"), out, seed=1)
    return out


@pytest.fixture(scope="module")
def tokenizer(place: Path) -> Any:
    out = models.load_tokenizer(str(place), Model())
    out.add_special_tokens({"additional_special_tokens": SPECIAL})
    out.chat_template = (TEMPLATES / "qwen3_instruct_2507.jinja").read_text()
    out.eos_token = "<|im_end|>"
    return out


class Answers:
    """A generator that answers each request with the text that a function makes of it, and keeps the requests."""

    name = "scripted"

    def __init__(self, tokenizer: Any, answer: Any) -> None:
        self.tokenizer, self.answer, self.batches = tokenizer, answer, list[list[Any]]()

    def sample(self, requests: Any, sampling: Any, ends: Any, on_done: Any = None) -> list[Sample]:
        self.batches.append(list(requests))
        out = []
        for request in requests:
            text = self.answer(self.tokenizer.decode(list(request.ids)))
            ids = tuple(self.tokenizer(text, add_special_tokens=False).input_ids)
            finished = len(ids) < request.max_tokens
            ids = (*ids, self.tokenizer.eos_token_id) if finished else ids[: request.max_tokens]
            out.append(Sample(ids, tuple(-0.5 for _ in ids), finished))
        return out

    def logprobs(self, sequences: Any) -> Any:
        raise AssertionError("playing samples and does nothing else")

    sync = logprobs


def play(
    tokenizer: Any, tmp_path: Path, script: str, answer: Any = lambda read: "fine", *, prompts: int = 1,
    samples: int = 1, turn_tokens: int = 500, context: int = 9999, head: str = HEAD,
    **settings: Any,
) -> tuple[list[Any], Answers]:  # fmt: skip
    program = tmp_path / "agent.py"
    program.write_text(head + script)
    given = Program(command=["python", str(program)], **({"timeout_s": 30.0} | settings))
    player = ProgramPlayer(given, Prompts(), tokenizer, frozenset({tokenizer.eos_token_id}), context=context)
    starts = [Prompt(n, f"question {n}", (n,), {"gold": "13"}, {"prompt": f"question {n}"}) for n in range(prompts)]
    generator = Answers(tokenizer, answer)
    rows = player.play(generator, starts, Sampling(max_tokens=turn_tokens), samples=samples, key=(1, "t"))
    return rows, generator


def sampled_text(tokenizer: Any, row: Any) -> list[str]:
    runs, last = list[list[int]](), False
    for token, on in zip(row.ids, row.mask, strict=True):
        if on:
            runs = [*runs[:-1], [*runs[-1], token]] if last else [*runs, [token]]
        last = on
    return [tokenizer.decode(run) for run in runs]


TOOL_AGENT = f"""
messages = [{{"role": "user", "content": row["prompt"]}}]
while True:
    message = chat(messages, tools=[{TOOL!r}])["choices"][0]["message"]
    messages.append(message)
    if not message.get("tool_calls"):
        break
    for call in message["tool_calls"]:
        total = sum(json.loads(call["function"]["arguments"]).values())
        messages.append({{"role": "tool", "tool_call_id": call["id"], "content": str(total)}})
print(message["content"])
"""


def test_calls_that_go_on_with_one_conversation_are_one_row(tokenizer: Any, tmp_path: Path) -> None:
    (row,), generator = play(tokenizer, tmp_path, TOOL_AGENT, lambda read: "13" if "tool_response" in read else CALL)
    assert sampled_text(tokenizer, row) == [f"{CALL}<|im_end|>", "13<|im_end|>"]
    between = tokenizer.decode([i for i, on in zip(row.ids, row.mask, strict=True) if not on])
    assert between == "\n<|im_start|>user\n<tool_response>\n13\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    messages = [{"role": "user", "content": "question 0"}]
    first = tokenizer.apply_chat_template(messages, tools=[TOOL], add_generation_prompt=True, return_dict=False)
    assert list(row.prompt.ids) == first == list(generator.batches[0][0].ids)
    assert row.prompt.index == 0 and row.answer == "13" and row.finished
    assert [m["role"] for m in row.episode["messages"]] == ["user", "assistant", "tool", "assistant"]
    assert {k: row.episode[k] for k in ("ended_by", "turns", "calls", "malformed_calls")} == {
        "ended_by": "answer", "turns": 2, "calls": 1, "malformed_calls": 0}  # fmt: skip
    (scored,) = score(rewards.build({"exact": {}, "tool_calls": {"weight": -0.1}}), [row])
    assert scored.reward == pytest.approx(0.9)
    assert episode_figures([scored])["ended_by/answer"] == 1.0


def test_the_script_and_the_config_of_the_documentation_work_through_openais_client(
    tokenizer: Any, tmp_path: Path
) -> None:
    pytest.importorskip("openai")
    page = (Path(__file__).parents[2] / "docs" / "agents.md").read_text()
    script, yaml = (re.search(rf"```{kind}\n(.*?)```", page, re.DOTALL)[1] for kind in ("python", "yaml"))  # type: ignore[index]
    call = '<tool_call>\n{"name": "multiply", "arguments": {"a": 6, "b": 7}}\n</tool_call>'
    (row,), _ = play(tokenizer, tmp_path, script, lambda read: "It is 42." if "\n42\n" in read else call, head="")
    assert (row.answer, row.episode["calls"], row.turn) == ("It is 42.", 1, 0)
    (tmp_path / "agent.yaml").write_text(yaml)
    assert load(str(tmp_path / "agent.yaml"), []).program.command == ["python", "agent.py"]  # type: ignore[union-attr]


def test_a_prompt_that_goes_on_with_nothing_begins_a_row_and_each_row_is_saved(tokenizer: Any, tmp_path: Path) -> None:
    script = 'plan = say("plan"); print(say("do " + plan))'
    rows, generator = play(tokenizer, tmp_path, script, lambda read: "B" if "do A" in read else "A")
    assert [r.turn for r in rows] == [0, 1]
    assert [sampled_text(tokenizer, r) for r in rows] == [["A<|im_end|>"], ["B<|im_end|>"]]
    assert [r.prompt.ids for r in rows] == [b[0].ids for b in generator.batches]
    scored = score(rewards.build({"exact": {}}), rows)
    save_scored(tmp_path / "scored.jsonl", scored, [Prompt(0, "question 0", (0,))])
    assert load_scored(tmp_path / "scored.jsonl", [Prompt(0, "question 0", (0,))])[1].rollout.answer == "B"


def test_the_seed_of_a_turn_depends_on_the_episode_alone_and_a_batch_holds_every_program(
    tokenizer: Any, tmp_path: Path
) -> None:
    script = """
import time
time.sleep(0.3 if row["prompt"].endswith("0") else 0)
say("one"); say("two")
"""
    _, both = play(tokenizer, tmp_path, script, prompts=2, samples=2)
    assert [len(batch) for batch in both.batches] == [4, 4], "the fast ones wait for the slow ones"
    assert len({r.seed for batch in both.batches for r in batch}) == 8
    _, few = play(tokenizer, tmp_path, script, prompts=2, samples=2, concurrency=1)
    assert [len(batch) for batch in few.batches] == [1] * 8
    turns = [[few.batches[2 * episode + turn][0] for episode in range(4)] for turn in range(2)]
    assert turns == both.batches


def test_a_real_model_gives_the_same_bits_whatever_the_speed_of_the_programs(place: Path, tmp_path: Path) -> None:
    tokenizer = models.load_tokenizer(str(place), Model())  # without tokens that the model does not know
    tokenizer.chat_template = (TEMPLATES / "qwen3_instruct_2507.jinja").read_text()
    (tmp_path / "agent.py").write_text(
        HEAD
        + """
import random, time
time.sleep(random.Random(os.getpid()).random() / 2)
said = say(row["prompt"], n=2, max_tokens=6)
print(say("again " + said, max_tokens=6))
"""
    )
    settings = Program(command=["python", str(tmp_path / "agent.py")], max_turns=2)
    generator = TransformersGenerator(str(place), Model(), Generate(backend="transformers"))
    player = ProgramPlayer(settings, Prompts(), tokenizer, frozenset({tokenizer.eos_token_id}), context=200)
    starts = [Prompt(n, f"question {n}", (n,)) for n in range(2)]
    once, again = (player.play(generator, starts, Sampling(max_tokens=8), samples=2, key=(1, "t")) for _ in range(2))
    assert once == again
    assert len(once) == 12 and len({row.ids for row in once}) > 8, "two calls, the first with two answers"


@pytest.mark.parametrize(
    ("script", "settings", "ended_by", "fault"),
    [
        ("say('x'); raise ValueError('no such thing')", {}, "program_failed", "ValueError: no such thing"),
        ("say('x'); sys.exit(3)", {}, "program_failed", "exit code 3"),
        ("print('13')", {}, "program_failed", "made no call"),
        ("import time; say('x'); time.sleep(600)", {"timeout_s": 4.0}, "program_timeout", "longer than 4 s"),
        ("say('x'); print('{\"reward\": NaN}')", {}, "program_failed", "not a finite number"),
        ("import os, signal; say('x'); os.kill(os.getpid(), signal.SIGSEGV)", {}, "program_failed", "signal 11"),
        ("say('x'); say('x'); say('x')", {"max_turns": 2}, "max_turns", ""),
        ("say('x'); say('x')", {"max_tokens": 7}, "max_tokens", ""),
        ("say('x' * 200)", {"context": 100}, "context", ""),
        ("import itertools\nfor _ in itertools.count():\n  try: say('x')\n  except OSError: pass", {"max_turns": 2},
         "max_turns", ""),
    ],
)  # fmt: skip
def test_what_goes_wrong_costs_its_own_episode_and_is_named(
    tokenizer: Any, tmp_path: Path, script: str, settings: dict[str, Any], ended_by: str, fault: str
) -> None:
    script = f"if row['prompt'].endswith('1'):\n  print(say('hello')); sys.exit()\n{script}"
    rows, _ = play(tokenizer, tmp_path, script, lambda read: "fine!!", prompts=2, turn_tokens=20, **settings)
    last = {r.prompt.index: r for r in rows if r.episode is not None}
    assert last[0].episode["ended_by"] == ended_by
    assert fault in last[0].episode["fault"] and bool(fault) == bool(last[0].episode["fault"])
    assert (last[1].episode["ended_by"], last[1].answer) == ("answer", "fine!!")
    scored = {s.rollout.prompt.index: s for s in score(rewards.build({"exact": {}}), rows)}
    assert scored[0].scorable == (not fault) and scored[1].scorable


def test_a_failure_is_scored_where_the_config_says_so(tokenizer: Any, tmp_path: Path) -> None:
    (row,), _ = play(tokenizer, tmp_path, "say('x'); sys.exit(1)", lambda read: "13", score_failures=True)
    assert (row.episode["ended_by"], row.episode["fault"], row.answer) == ("program_failed", "", "13")


def test_the_program_may_print_its_reward(tokenizer: Any, tmp_path: Path) -> None:
    script = "say('x'); print('working'); print(json.dumps({'answer': '13', 'reward': 0.25}))"
    (row,), _ = play(tokenizer, tmp_path, script)
    (scored,) = score(rewards.build({"environment": {}, "exact": {"weight": 0.5}}), [row])
    assert (row.answer, scored.reward) == ("13", pytest.approx(0.75))


def test_printed_text_is_the_answer_unless_its_last_line_is_the_record() -> None:
    assert printed("") == (None, None)
    assert printed("a\nb\n") == ("a\nb", None)
    assert printed('log\n{"answer": 7, "reward": 1}\n') == ("7", 1)
    assert printed('{"reward": -1.5}') == (None, -1.5)
    assert printed('{"answer": "x", "other": 1}') == ('{"answer": "x", "other": 1}', None)
    with pytest.raises(ValueError, match="not a finite number"):
        printed('{"reward": "high"}')


def test_several_choices_are_rows_of_their_own_and_the_one_that_is_gone_on_with_continues(
    tokenizer: Any, tmp_path: Path
) -> None:
    script = """
user = {"role": "user", "content": "x"}
choices = chat([user], n=2)["choices"]
print(chat([user, choices[1]["message"], user])["choices"][0]["message"]["content"])
"""
    answers = iter(["A", "B", "C"])
    rows, generator = play(tokenizer, tmp_path, script, lambda read: next(answers))
    assert [sampled_text(tokenizer, r) for r in rows] == [["A<|im_end|>"], ["B<|im_end|>", "C<|im_end|>"]]
    assert len({r.seed for batch in generator.batches for r in batch}) == 3


def test_a_stop_string_ends_the_row_and_is_not_shown(tokenizer: Any, tmp_path: Path) -> None:
    (row,), _ = play(tokenizer, tmp_path, "print(say('x', stop=['STOP']))", lambda read: "yes STOP never")
    assert row.answer == "yes"
    assert (row.text.split("assistant: ")[1], tokenizer.decode(row.ids)) == ("yes ", "yes STOP")


def test_a_call_that_cannot_be_read_stays_in_the_text_and_is_counted(tokenizer: Any, tmp_path: Path) -> None:
    (row,), _ = play(tokenizer, tmp_path, TOOL_AGENT, lambda read: "<tool_call>\nadd(1, 2)\n</tool_call>")
    assert row.answer == "<tool_call>\nadd(1, 2)\n</tool_call>"
    assert (row.episode["malformed_calls"], row.episode["calls"]) == (1, 0)


def test_what_the_program_leaves_running_is_killed_with_it(tokenizer: Any, tmp_path: Path) -> None:
    script = f"""
import subprocess
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({str(tmp_path / "pid")!r}, "w").write(str(child.pid))
say("x")
"""
    play(tokenizer, tmp_path, script)
    assert not _alive(int((tmp_path / "pid").read_text()))


def test_programs_end_with_the_process_that_trains(tmp_path: Path) -> None:
    script = f"""
import os, subprocess, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from pipeline.generation.program_runs import Guard, ProgramRun
run = ProgramRun(["sleep", "600"], os.environ, {{}}, Guard(), print)
print(run._process.pid, flush=True)
os.kill(os.getpid(), 9)
"""
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False).stdout
    assert not _alive(int(said))


def _alive(pid: int) -> bool:
    """Whether the process still runs after two seconds of grace; a zombie does not."""
    for _ in range(40):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        if state in "ZX":
            return False
        time.sleep(0.05)
    return True


def test_a_closed_guard_kills_nothing_that_was_taken_back(tmp_path: Path) -> None:
    sleeping = subprocess.Popen(["sleep", "60"], start_new_session=True)
    guard = Guard()
    guard.add(sleeping.pid)
    guard.remove(sleeping.pid)
    guard.close()
    assert sleeping.poll() is None
    sleeping.kill()
    sleeping.wait()


def test_a_command_that_cannot_start_is_a_mistake_of_the_config(tmp_path: Path) -> None:
    assert program_mistakes(["python", str(tmp_path / "none.py")])[0].startswith("program.command: ")
    assert "no program 'no-such-agent'" in program_mistakes(["no-such-agent"])[0]
    script = tmp_path / "agent.py"
    script.write_text("")
    assert program_mistakes(["python", str(script)]) == []


def test_a_model_without_a_chat_template_is_refused(tokenizer: Any) -> None:
    class Bare:
        chat_template = None

    with pytest.raises(ConfigError, match=r"set model\.chat_template"):
        ProgramPlayer(Program(command=["true"]), Prompts(), Bare(), frozenset({1}), context=100)


def test_the_program_has_the_task_and_no_way_around_the_endpoint(tokenizer: Any, tmp_path: Path) -> None:
    script = 'say("x"); print(json.dumps([row["task"], os.environ["NO_PROXY"].split(",")[0]]))'
    (row,), _ = play(tokenizer, tmp_path, script)
    assert json.loads(row.answer) == [{"gold": "13"}, "127.0.0.1"]
    assert "OPENAI_BASE_URL" not in os.environ
