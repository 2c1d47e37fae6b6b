"""What a saved model's directory must hold, told without importing torch."""

from __future__ import annotations

from pathlib import Path

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
WEIGHTS = ("*.safetensors", "*.bin")


def is_local(path: str) -> bool:
    try:
        return Path(path).exists() or path.startswith((".", "/", "~"))
    except OSError:  # longer than a name may be
        return False


def fault(path: str) -> str | None:
    """Why a local path is no model that can be started from, with the mend; None of one that is, and of a Hub id."""
    if not is_local(path):
        return None
    place = Path(path).expanduser()
    if not place.is_dir():
        return f"{path} does not exist"
    if not (place / "config.json").is_file() and not (place / "adapter_config.json").is_file():
        return f"{path} has no config.json; it is not a saved model"
    if not any((place / name).is_file() for name in TOKENIZERS):
        return f"{path} has no tokenizer; save it beside the model with save_pretrained"
    if not any(next(place.glob(pattern), None) for pattern in WEIGHTS):
        return f"{path} has no weights (*.safetensors); it is not a saved model"
    return None


def template_file(chat_template: str | None) -> Path | None:
    """The file that `model.chat_template` names; None where it is the template itself, or none is given."""
    try:
        return Path(chat_template) if chat_template and Path(chat_template).is_file() else None
    except OSError:  # a template in one line is longer than a file's name may be
        return None
