"""What the directory of a saved model must hold, checked without importing torch."""

from __future__ import annotations

import json
import math
from pathlib import Path

from pipeline.config.mistakes import near_path

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
WEIGHTS = ("*.safetensors", "*.bin")
LARGE = 50_000_000  # parameters; on a CPU, smaller models gain nothing from bfloat16 or a second thread


def is_local(path: str) -> bool:
    try:
        return Path(path).exists() or path.startswith((".", "/", "~"))
    except OSError:  # longer than a name may be
        return False


def fault(path: str) -> str | None:
    """Why no run can start from a local path, and how to fix it; None where one can, and for a Hub id."""
    if not is_local(path):
        return None
    directory = Path(path).expanduser()
    if not directory.is_dir():
        return (f"{path} does not exist{near_path(directory)}; name a directory of save_pretrained, or a Hub id "
                "(owner/name)")  # fmt: skip
    if not (directory / "config.json").is_file():
        if (directory / "adapter_config.json").is_file():
            return (f"{path} holds a LoRA adapter, not a model; load its base, add the adapter with PEFT, save what "
                    "merge_and_unload() returns, and name that directory")  # fmt: skip
        return f"{path} has no config.json; it is not a saved model"
    if not any((directory / name).is_file() for name in TOKENIZERS):
        return f"{path} has no tokenizer; save it beside the model with save_pretrained"
    if not any(next(directory.glob(pattern), None) for pattern in WEIGHTS):
        return f"{path} has no weights (*.safetensors); it is not a saved model"
    return None


def is_large(path: str) -> bool:
    """Whether a model has more than LARGE parameters. A Hub id counts as large: nearly all are, and the answer must not
    change once its weights have been fetched."""
    return not is_local(path) or parameters_at(path) > LARGE


def parameters_at(path: str) -> int:
    """Parameters in the safetensors files of a directory, from their headers; 0 where there are none."""
    return sum(_parameters_in(file) for file in Path(path).expanduser().glob("*.safetensors"))


def _parameters_in(file: Path) -> int:
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    return sum(math.prod(tensor["shape"]) for name, tensor in header.items() if name != "__metadata__")


def thread_count(threads: int | str | None, model_path: str | None) -> int | None:
    """The config's `threads`; `auto`: one for a small model, which two threads of one process make slower, and as many
    as torch takes (None) for a large one."""
    if threads != "auto":
        assert not isinstance(threads, str)
        return threads
    return None if model_path and is_large(model_path) else 1


def activation_limit(parameters: int) -> int:
    """Bytes that a micro-batch's activations may take on a CPU: half of float32 weights, from 512 MiB to 2 GiB.

    Each micro-batch reads all weights and adds to all gradients, which has to be amortized; more than that only takes
    memory (benchmarks/NOTES.md).
    """
    return min(max(2 * parameters, 2**29), 2**31)
