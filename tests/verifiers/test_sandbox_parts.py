"""The sandbox's pure parts: extraction, the plan's comparison, values on the wire, system call filters.

Oracles from outside: Python's own ==, pickle's idea of a value, the kernel headers, and an interpreter of BPF.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import pickle
import re
import socket
import struct
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from verifiers.sandbox.extract import blocks, python_blocks, shell_script
from verifiers.sandbox.guest import seccomp, syscalls, wire
from verifiers.sandbox.plan import Expectation, Undecided, holds, plan, same

# ----------------------------------------------------------------------------------------------------- extraction

CODE = "def f():\n    return 1"


@pytest.mark.parametrize(
    "completion",
    [
        f"```python\n{CODE}\n```",
        f"```py\n{CODE}\n```\nDone.",
        f"```Python\n{CODE}\n```",
        f"```python3 title=x\n{CODE}\n```",
        f"```\n{CODE}\n```",
        f"~~~python\n{CODE}\n~~~",
        f"````python\n{CODE}\n````",
        f"```python\n{CODE}",
        f"Here: ```python\n{CODE}\n```",
        f"```python\r\n{CODE}\r\n```".replace("\r\n", "\n"),
        f"```bash\nls\n```\n```python\n{CODE}\n```\n```json\n{{}}\n```",
        f"<think>```python\nno\n```</think>```python\n{CODE}\n```",
        f"reasoning, its tag opened before</think>\n```python\n{CODE}\n```",
        f"<think>a</think><think>b</think>{CODE}",
        f"<think>x</think><answer>{CODE}</answer> and more",
        CODE,
    ],
)
def test_the_code_of_a_completion_is_found(completion):
    assert python_blocks(completion)[-1].strip() == CODE


def test_indentation_of_the_fence_is_taken_off():
    indented = "1. So:\n\n   ```python\n   def f():\n       return 1\n   ```\n"
    assert python_blocks(indented) == ["def f():\n    return 1"]


def test_a_fence_inside_a_docstring_does_not_end_the_code():
    code = 'def f():\n    """\n    ```\n    f()\n    ```\n    """\n    return 1'
    assert python_blocks(f"```python\n{code}\n```") == [code]


def test_only_newline_ends_a_line():
    code = "x = '\x0b\x0c\u2028\x85'"
    assert python_blocks(f"```python\n{code}\n```") == [code]


@pytest.mark.parametrize("completion", ["<think>```python\nx = 1\n```", "", "<think></think>"])
def test_reasoning_is_no_answer(completion):
    assert not any(block.strip() for block in python_blocks(completion))


@pytest.mark.parametrize(
    ("completion", "script"),
    [
        ("```bash\nls\n```", "ls"),
        ("```sh\nls\n```\n```console\npwd\n```", "pwd"),
        ("```\nls\n```", "ls"),
        ("```python\nx\n```\n```bash\nls\n```\n```\noutput\n```", "ls"),
        ("ls -l", "ls -l"),
        ("```python\nx\n```", None),
        ("", None),
        ("```bash\n\n```", None),
    ],
)
def test_the_script_of_a_completion_is_found(completion, script):
    assert shell_script(completion) == script


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="`~ \n<>/thinkaswerpy\u2028\x00\ud800", max_size=200))
def test_extraction_never_raises(text):
    python_blocks(text)
    shell_script(text)


@pytest.mark.parametrize("piece", ["```", "<think>", "</think>", "`", "```python\n", "~~~ ", "<answer>", " ", "```a"])
def test_extraction_takes_linear_time(piece):
    done = threading.Event()

    def work() -> None:
        blocks(piece * 200_000)
        python_blocks(piece * 100_000)
        done.set()

    threading.Thread(target=work, daemon=True).start()
    assert done.wait(20), "extraction is not linear"


# ----------------------------------------------------------------------------------------------------- comparison

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.binary(max_size=4)
)
keys = st.recursive(st.integers(-3, 3) | st.text("ab", max_size=2) | st.booleans() | st.none(), st.tuples, max_leaves=3)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(keys, inner, max_size=3)
        | st.sets(keys, max_size=3)
    ),
    max_leaves=8,
)


def opaque(value: Any) -> dict[str, Any]:
    return {"h": type(value).__name__}


def crossed(value: Any) -> Any:
    """As the trusted process sees it: JSON, not decoded."""
    return json.loads(wire.dumps(wire.encode(value, opaque)))


@settings(max_examples=500, deadline=None)
@given(values, values)
def test_same_is_equality_as_python_has_it(got, expected):
    assert same(crossed(got), expected) == (got == expected)


@settings(max_examples=500, deadline=None)
@given(values)
def test_a_value_is_the_same_as_its_copy(value):
    assert same(crossed(value), pickle.loads(pickle.dumps(value)))


@settings(max_examples=500, deadline=None)
@given(st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.text("tsfdbihmk", max_size=1),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("tsfdbBichmkx"), inner, max_size=2),
    max_leaves=12,
), values)  # fmt: skip
def test_hostile_json_never_breaks_the_comparison(hostile, expected):
    with contextlib.suppress(Undecided):
        assert same(hostile, expected) in (True, False)


@pytest.mark.parametrize("check", ["==", "!=", "is", "truth", "falsehood"])
def test_what_is_no_data_satisfies_nothing_by_itself(check):
    value = True if check == "is" else 3
    strange: list[Any] = [
        {"h": "Y"},
        {"k": ["decimal.Decimal", "3"]},
        {"m": [4, {"h": "Y"}]},
        {"x": []},
        {},
        {"a": 1, "b": 2},
    ]
    for got in strange:
        try:
            assert not holds(Expectation(check, value, ""), got) or check == "!="
        except Undecided:
            assert check != "is"


def test_a_set_with_repeated_members_is_not_a_larger_set():
    assert not same({"s": [1, 1]}, {1, 2})
    assert not same({"d": [[1, 1], [1, 1]]}, {1: 1, 2: 1})
    assert not same({"i": "zz"}, None) and not same({"s": [{"i": "zz"}]}, {None})


def test_the_comparison_stops_at_the_first_difference():
    """Colliding keys by the thousand cost nothing: they are looked up in ours, never stored."""
    prime = (1 << 61) - 1  # every multiple of it has the hash 0
    hostile = {"s": [{"i": hex(i * prime)} for i in range(1, 20_000)]}
    assert not same(hostile, {1, 2})
    assert not same({"d": [[m, 1] for m in hostile["s"]]}, {i: 1 for i in range(19_999)})


@pytest.mark.parametrize(
    ("entry", "tests", "words"),
    [
        ("f", (), "no tests"),
        ("f", ("assert f() == 1", " \n# nothing"), r"tests\[1\] is empty"),
        ("f", ("assert f( == 1",), r"tests\[0\] is not Python"),
        ("f", ("assert f() == 1\0",), r"tests\[0\] is not Python"),
        ("f()", ("assert f() == 1",), "no Python name"),
        ("", ("assert f() == 1",), "no Python name"),
    ],
)
def test_a_task_that_cannot_be_run_is_refused(entry, tests, words):
    with pytest.raises(ValueError, match=words):
        plan(entry, tests, "")


# ----------------------------------------------------------------------------------------------------------- wire


@settings(max_examples=300, deadline=None)
@given(values)
def test_plain_data_crosses_unchanged(value):
    back = wire.decoder(lambda tag, payload: pytest.fail(tag))(wire.dumps(wire.encode(value, opaque)))
    assert back == value and type(back) is type(value)


def test_library_values_cross_as_what_they_are():
    import collections
    import datetime
    import decimal
    import fractions

    decode = wire.decoder(lambda tag, payload: None)
    values: list[Any] = [
        decimal.Decimal("1.10"), fractions.Fraction(-1, 3), datetime.datetime(2024, 1, 2, 3, 4, 5, 6),
        datetime.date(2024, 1, 2), datetime.time(1, 2), datetime.timedelta(1.5), range(1, 9, 2), slice(1, None, 2),
        collections.Counter("aab"), collections.OrderedDict([(2, 1), (1, 2)]), collections.deque([1], 5), ...,
        NotImplemented, int, ValueError, len, 2 + 3j, bytearray(b"a"), -(10**5000), float("inf"), -0.0, "\ud800\0",
    ]  # fmt: skip
    for value in values:
        back = decode(wire.dumps(wire.encode(value, opaque)))
        assert back == value and type(back) is type(value)
        assert not isinstance(value, float) or math.copysign(1, back) == math.copysign(1, value)


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=60) | st.text('[]{}",:0123456789tsfdbBcikmhx-.eE', max_size=60).map(str.encode))
def test_hostile_bytes_raise_nothing_unexpected(data):
    with contextlib.suppress(*wire.BAD_BYTES):
        wire.decoder(lambda tag, payload: (tag, payload))(data)


def test_nesting_has_an_end_on_both_sides():
    deep: list[Any] = []
    for _ in range(wire.MAX_DEPTH + 2):
        deep = [deep]
    with pytest.raises(ValueError, match="nested"):
        wire.encode(deep, opaque)
    with pytest.raises(RecursionError):
        wire.decoder(lambda tag, payload: None)(b"[" * 100_000 + b"]" * 100_000)


def test_a_channel_carries_whole_messages_and_bounds_them():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender, receiver = wire.SocketChannel(ours), wire.Channel(theirs.fileno())
        large = bytes(range(256)) * 4000

        def send() -> None:
            for message in (b"", b"one", large):
                sender.send(message)

        thread = threading.Thread(target=send)
        thread.start()
        assert [receiver.receive(1 << 21) for _ in range(3)] == [b"", b"one", large]
        thread.join()
        sender.send(b"four")
        with pytest.raises(wire.TooLong):
            receiver.receive(3)
        assert receiver.receive(4) == b"four"
        ours.sendall(b"\x09\0\0\0half")
        ours.close()
        with pytest.raises(wire.Closed):
            receiver.receive(100)


def test_a_message_that_comes_in_two_parts_with_a_timeout_between_them_is_read_whole():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        receiver = wire.SocketChannel(theirs)
        theirs.settimeout(0.05)
        theirs_message = b"\x06\0\0\0answer"
        for part in (theirs_message[:4], theirs_message[4:7]):
            ours.sendall(part)
            with pytest.raises(TimeoutError):
                receiver.receive(100)
        ours.sendall(theirs_message[7:])
        assert receiver.receive(100) == b"answer"


# --------------------------------------------------------------------------------------------------- system calls


def interpret(program: bytes, arch: int, number: int, args: tuple[int, ...] = ()) -> int:
    """What a seccomp filter answers: an interpreter of the classic BPF that the kernel documents for it."""
    data = struct.pack("<IIQ6Q", number, arch, 0, *args, *([0] * (6 - len(args))))
    instructions = [struct.unpack_from("<HBBI", program, i) for i in range(0, len(program), 8)]
    accumulator = at = 0
    while True:
        code, jump_true, jump_false, k = instructions[at]
        at += 1
        if code == 0x06:
            return k
        if code == 0x20:
            (accumulator,) = struct.unpack_from("<I", data, k)
        else:
            taken = {0x15: accumulator == k, 0x35: accumulator >= k, 0x45: bool(accumulator & k)}[code]
            at += jump_true if taken else jump_false


ALLOW, REFUSE, KILL = 0x7FFF0000, 0x00050000, 0x80000000
ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
PID = 4711


@pytest.mark.parametrize("machine", syscalls.MACHINES)
@pytest.mark.parametrize("shell", [False, True], ids=["python", "shell"])
class TestFilter:
    def answer(self, machine: str, shell: bool, name: str, *args: int) -> int:
        """Both filters together: the stricter answer counts, as in the kernel."""
        number = syscalls.numbers(machine)[name]
        zygote = interpret(seccomp.zygote_filter(shell=shell, machine=machine), ARCH[machine], number, args)
        sample = interpret(seccomp.sample_filter(shell=shell, pid=PID, machine=machine), ARCH[machine], number, args)
        return sample if zygote == ALLOW else zygote

    def test_ordinary_calls_pass(self, machine, shell):
        for name in ("read", "write", "openat", "mmap", "futex", "exit_group", "getrandom", "epoll_pwait", "pipe2"):
            assert self.answer(machine, shell, name) == ALLOW, name

    def test_what_only_the_zygote_may_is_refused_to_samples(self, machine, shell):
        numbers = syscalls.numbers(machine)
        for name in syscalls.ZYGOTE & numbers.keys() - (syscalls.SHELL if shell else frozenset()):
            assert self.answer(machine, shell, name) == REFUSE | errno.EPERM, name

    def test_whatever_is_not_listed_is_refused(self, machine, shell):
        known = set(syscalls.numbers(machine).values())
        program = seccomp.zygote_filter(shell=shell, machine=machine)
        for number in set(range(600)) - known:
            assert interpret(program, ARCH[machine], number) == REFUSE | errno.EPERM, number

    def test_other_machines_and_abis_are_killed(self, machine, shell):
        other = ARCH["aarch64" if machine == "x86_64" else "x86_64"]
        for make in (seccomp.zygote_filter(shell=shell, machine=machine),
                     seccomp.sample_filter(shell=shell, pid=PID, machine=machine)):  # fmt: skip
            assert interpret(make, other, 0) == KILL
            assert interpret(make, 0x40000003, 0) == KILL  # i386
            if machine == "x86_64":
                assert interpret(make, ARCH[machine], 0x40000000) == KILL

    def test_clone_makes_threads_or_plain_processes_only(self, machine, shell):
        thread, process = 0x3D0F00, 0x01200011
        assert self.answer(machine, shell, "clone", thread) == ALLOW
        assert (self.answer(machine, shell, "clone", process) == ALLOW) == shell
        for namespace in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
            assert self.answer(machine, shell, "clone", 0x11 | namespace) == REFUSE | errno.EPERM
        assert self.answer(machine, shell, "clone3") == REFUSE | errno.ENOSYS

    def test_signals_of_a_python_sample_reach_itself_and_can_be_caught(self, machine, shell):
        for name, place in (("kill", 1), ("tgkill", 2)):
            for target in (PID, 1, PID + 1, 0xFFFFFFFF, PID | 1 << 32):
                for number in (2, 9, 19):
                    args = (target, PID, number) if place == 2 else (target, number)
                    allowed = shell or (target & 0xFFFFFFFF == PID and number == 2)
                    assert (self.answer(machine, shell, name, *args) == ALLOW) == allowed, (name, args)

    def test_arguments_are_narrowed(self, machine, shell):
        for name, args, allowed in (
            ("ioctl", (0, 0x5421), True),
            ("ioctl", (0, 0x5412), False),
            ("ioctl", (0, 0x5412 | 1 << 32), False),
            ("fcntl", (0, 4), True),
            ("fcntl", (0, 8), False),
            ("prctl", (15,), True),
            ("prctl", (22,), False),
            ("prlimit64", (0,), True),
            ("prlimit64", (1,), False),
            ("socketpair", (1,), True),
            ("socketpair", (2,), False),
        ):
            assert (self.answer(machine, shell, name, *args) == ALLOW) == allowed, (name, args)


@pytest.mark.parametrize(
    ("machine", "header"),
    [
        ("x86_64", "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
        ("aarch64", "/usr/include/asm-generic/unistd.h"),
    ],
)
def test_numbers_are_those_of_the_kernel_headers(machine, header):
    if not Path(header).exists():
        pytest.skip(f"no {header} here")
    text = Path(header).read_text()
    official = {m[1]: int(m[2]) for m in re.finditer(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", text)}
    assert len(official) > 200
    ours = syscalls.numbers(machine)
    assert {n: official[n] for n in ours if n in official} == {n: v for n, v in ours.items() if n in official}
    missing = set(ours) - set(official)
    assert missing <= {"fchmodat2"}, missing  # newer than some headers


def test_another_machine_is_refused():
    with pytest.raises(ValueError, match="riscv64"):
        syscalls.numbers("riscv64")
