"""GSM8K: a question, and an answer that ends in `#### 42`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pipeline.data.formats.spec import Format, Row


def convert(row: Mapping[str, Any]) -> Row:
    """`answer` is reasoning, then `#### 42`; calculator marks <<3*4=12>> are taken out of the demonstration."""
    reasoning, marks, gold = row["answer"].rpartition("####")
    if not marks or not gold.strip():
        raise ValueError("its answer has no '#### ' with a final number after it")
    clean = re.sub(r"<<[^<>]*>>", "", reasoning).strip()
    number = gold.strip().replace(",", "")
    return {
        "prompt": row["question"],
        "completion": f"{clean}\nThe answer is $\\boxed{{{number}}}$.",
        "task": {"gold": number},
    }


def matches(row: Mapping[str, Any]) -> bool:
    answer = row.get("answer")
    return "prompt" not in row and "question" in row and isinstance(answer, str) and "\n#### " in answer


FORMAT = Format(convert, ("question", "answer"), "openai/gsm8k", "MIT", matches=matches)
