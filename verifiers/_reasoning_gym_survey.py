"""python -m verifiers._reasoning_gym_survey: holds every dataset of reasoning-gym against the kit, writes the list.

A dataset is allowed when its own answers pass, also after a trip through JSON; when nothing else does (other entries'
answers, cut answers, the question, the kit's hostile texts); when nothing makes its scorer raise; and when the source
of its scorer does not evaluate or parse text as code.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import sys
from decimal import Decimal, localcontext
from pathlib import Path
from types import ModuleType
from typing import Any

from verifiers import Example, Verifier
from verifiers import reasoning_gym as ours
from verifiers._killable import Killed
from verifiers.kit import ConformanceReport, check

ENTRIES = 6
AS_CODE = frozenset("eval exec compile sympify parse_expr parse_latex".split())
ROUNDED = frozenset(("power_function",))  # the question asks for three significant figures
TARGET = Path(__file__).with_name("_reasoning_gym_allowed.py")


def calls_code(dataset_class: type) -> str:
    """The first function by which a dataset's module reads text as code, or ""."""
    tree = ast.parse(Path(inspect.getfile(dataset_class)).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            if name in AS_CODE and ast.unparse(node.func) != "re.compile":
                return name
    return ""


def near_numbers(dataset: str, gold: str) -> list[str]:
    """Numbers so near the gold that only a tolerance accepts them; none if the gold is no number or may be rounded."""
    if dataset in ROUNDED or not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", gold.strip()):
        return []
    with localcontext(prec=60):  # decimal_arithmetic sets the precision of the process to 12 digits
        value, places = Decimal(gold), len(gold.partition(".")[2])
        steps = {Decimal(1).scaleb(-places), Decimal("0.001"), Decimal("0.0001"), abs(value) / 1000}
        return [f"{value + sign * step:f}" for step in sorted(steps - {Decimal(0)}) for sign in (1, -1)]


def as_verifier(dataset: str) -> Verifier:
    """One dataset as a verifier module with examples of its own."""
    found = list(ours.rows(dataset, ENTRIES, seed=7))
    rights = [Example("right", row["completion"], row["task"]) for row in found]
    wrongs = []
    for i, row in enumerate(found):
        other = found[(i + 1) % len(found)]["completion"]
        own = row["completion"]
        wrongs += [Example("wrong", other, row["task"])] if other != own else []
        wrongs.append(Example("wrong", f"<answer>{row['task']['entry']['question']}</answer>", row["task"]))
        wrongs.append(Example("wrong", own.replace("</answer>", " and nothing else</answer>"), row["task"]))
        wrongs.append(Example("wrong", f"<answer>{own[8:-9]} {own[8:-9]}</answer>", row["task"]))
        near = near_numbers(dataset, own[8:-9])
        wrongs += [Example("wrong", f"<answer>{number}</answer>", row["task"]) for number in near]
    task = rights[0].task
    texts = ("I think 42.", "None", "[]", "{}", "0", "nan", "True", "()", "1/0", "-", "a" * 5000, "[" * 500, "\x00")
    gold = rights[0].completion[8:-9].strip().lower()
    hostile = [Example("hostile", f"<answer>{text}</answer>", task) for text in texts if text.lower() != gold]
    module = ModuleType(f"reasoning_gym.{dataset}")
    vars(module).update(
        Task=ours.Task,
        verify=ours.verify_any,
        EXAMPLES=(*rights, *wrongs, Example("malformed", "", task), *hostile),
        mutate=lambda example, rng: iter(()),
        DEADLINE_S=ours.DEADLINE_S,
    )
    return Verifier(dataset, module)


class InProcess:
    """The scorers without their process: 40,000 calls, and whoever surveys can press ctrl-C."""

    def ask(self, request: dict[str, Any]) -> Any:
        score = importlib.import_module("verifiers._reasoning_gym_worker").score
        try:
            return score(json.loads(json.dumps(request)))
        except (MemoryError, RecursionError):
            raise Killed("over its limit") from None


def survey() -> tuple[list[str], dict[str, str]]:
    """The allowed datasets, and why each other one is not."""
    ours.WORKER = InProcess()  # type: ignore[assignment]
    datasets: dict[str, Any] = importlib.import_module("reasoning_gym.factory").DATASETS
    allowed, refused = [], {}
    for name, (dataset_class, _) in sorted(datasets.items()):
        if code := calls_code(dataset_class):
            refused[name] = f"reads text as code: {code}"
            print(name, refused[name], file=sys.stderr, flush=True)
            continue
        try:
            report: ConformanceReport = check(as_verifier(name))
        except Exception as exc:  # a dataset that cannot be made, or has no gold answer, is not allowed either
            refused[name] = f"cannot be made: {type(exc).__name__}: {exc}"[:100]
            continue
        if report.conforms:
            allowed.append(name)
        else:
            refused[name] = report.faults[0][:160]
        print(name, refused.get(name, "ok"), file=sys.stderr, flush=True)
    return allowed, refused


def main() -> None:
    allowed, refused = survey()
    version = importlib.import_module("importlib.metadata").version("reasoning_gym")
    lines = [
        f'"""Written by `python -m verifiers._reasoning_gym_survey` with reasoning-gym {version}; not by hand."""',
        "",
        f"# {len(refused)} datasets are left out: they accept what is wrong, refuse what is right, raise, or read code",
        "ALLOWED = (",
        *(f'    "{name}",' for name in allowed),
        ")",
    ]
    TARGET.write_text("\n".join(lines) + "\n")
    for name, why in refused.items():
        print(f"{name}: {why}")


if __name__ == "__main__":
    main()
