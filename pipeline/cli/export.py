"""Export a finished run to a folder that plain transformers can load, with a model card; push, serve, evaluate.

export  runs/NAME/export/: merged safetensors, tokenizer, chat template, generation config, model card, lineage
push    that folder to the Hub
serve   run vLLM's OpenAI-compatible server on it
lm-eval run EleutherAI's evaluation harness on it, for the standard benchmark tasks
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.cli import model_card
from pipeline.cli.commands import options, own_and_rest
from pipeline.config.load import ConfigError, nearest
from pipeline.config.schema import recorded_kind
from pipeline.generation.server_key import SERVER_KEY
from pipeline.run.files import atomic_write, dump_json
from pipeline.run.manifest import manifest_sha, read_manifest, refuse_seeds, verified_manifest

# keys of generation_config.json that do not affect sampling
OF_THE_MODEL = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id", "transformers_version")


def policy_stage(run: Path, named: str | None = None) -> str:
    """The stage to export: the named one, else the best of `evaluate`, else the last policy stage that finished.

    Raises ConfigError if the run has no such stage, LineageError if it is the directory of several seeds.
    """
    return _stage_and_reason(run, named)[0]


def chosen(run: Path, words: Sequence[str]) -> str:
    """The stage that `export` takes, and why, in words."""
    stage, why = _stage_and_reason(run, options("export", words).get("stage"))
    return f"stage {stage}, {why}; stage=NAME takes another"


def _stage_and_reason(run: Path, named: str | None) -> tuple[str, str]:
    if not run.is_dir():
        raise ConfigError([f"{run}: no such run directory"])
    manifests = [m for p in run.glob("*/manifest.json") if (m := read_manifest(p)) is not None]
    policies = {m["stage"]: m for m in manifests if recorded_kind(kind_of(m)).makes_policy}
    refuse_seeds(run)
    if named is not None:
        if named not in policies:
            raise ConfigError([f"{run}: no finished policy stage {named!r}{nearest(named, policies)}"])
        return named, "as you named it"
    if not policies:
        raise ConfigError([f"{run}: no policy stage has finished; run one first, as make grpo CONFIG=..."])
    judged = next((m["metrics"].get("best_policy") for m in manifests if kind_of(m) == "evaluate"), None)
    if judged in policies:
        return str(judged), "the best of `evaluate`"
    last = max(policies, key=lambda name: (run / name / "manifest.json").stat().st_mtime)
    return last, "the last policy that finished"


def kind_of(manifest: Mapping[str, Any]) -> str:
    block = manifest["config"].get("stage")
    return str(block.get("kind", manifest["stage"])) if isinstance(block, Mapping) else str(manifest["stage"])


def export(run: Path, words: Sequence[str]) -> Path:
    """Write run/export from a finished policy stage (`stage=`, `to=`) and return its path; it is complete or absent.

    to=gguf writes run/gguf instead, to=lora run/lora. Raises ConfigError, or LineageError if the stage's files have
    changed since it wrote them.
    """
    settings = options("export", words)
    stage = policy_stage(run, settings.get("stage"))
    verified_manifest(run / stage)
    if settings.get("to") == "gguf":
        return _to_gguf(run, stage, settings)
    for key in ("dtype", "label"):
        if key in settings:
            raise ConfigError([f"export: {key}={settings[key]} is for to=gguf"])
    if settings.get("to") == "lora":
        from pipeline.cli import lora_export

        base, _, rank = lora_export.lora_chain(lineage(run, stage), stage)
        verified_manifest(run / base)
        return lora_export.write_lora(run / base / "model", run / stage / "model", run / "lora", rank)
    return _to_directory(run, stage, Path(settings.get("to") or run / "export").resolve())


def _to_gguf(run: Path, stage: str, settings: Mapping[str, str]) -> Path:
    from pipeline.cli import gguf_export

    gguf_export.dtype_of(settings)  # before anything is copied
    gguf_export.converter_dir()
    merged = _to_directory(run, stage, (run / ".export-for-gguf").resolve())
    try:
        sampling = lineage(run, stage)[-1]["config"]["sampling"]
        return gguf_export.write_gguf(merged, run / "gguf", run.resolve().name, sampling, settings)
    finally:
        shutil.rmtree(merged, ignore_errors=True)


def _to_directory(run: Path, stage: str, target: Path) -> Path:
    if target.exists() and not (target / "lineage.json").is_file() and (target.is_file() or any(target.iterdir())):
        raise ConfigError([f"to: {target} holds something else than an export, and would be replaced; "
                           "name another directory"])  # fmt: skip
    draft = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(draft, ignore_errors=True)
    shutil.copytree(run / stage / "model", draft)
    if (draft / "adapter_config.json").is_file():
        _merge(draft)
    chain = lineage(run, stage)
    _generation_config(draft, chain[-1]["config"]["sampling"])
    published = [model_card.without_local_paths({**m, "manifest_sha256": manifest_sha(m)}) for m in chain]
    atomic_write(draft / "lineage.json", dump_json(published, indent=1) + "\n")
    _without_local_names(draft)
    atomic_write(draft / "README.md", model_card.card(chain))
    shutil.rmtree(target, ignore_errors=True)
    os.replace(draft, target)
    return target


def _merge(target: Path) -> None:
    """Replace an adapter's folder with the merged model."""
    from peft import AutoPeftModelForCausalLM

    model = AutoPeftModelForCausalLM.from_pretrained(target).merge_and_unload()
    for part in target.glob("adapter_*"):
        part.unlink()
    model.save_pretrained(target)


def _without_local_names(directory: Path) -> None:
    """Shorten local paths to the directory's name where the libraries record what they loaded."""
    for name in ("config.json", "tokenizer_config.json"):
        path = directory / name
        noted = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        names = {key: noted[key] for key in ("_name_or_path", "name_or_path") if isinstance(noted.get(key), str)}
        if any(model_card.public_name(name) != name for name in names.values()):
            noted |= {key: model_card.public_name(name) for key, name in names.items()}
            atomic_write(path, dump_json(noted, indent=2) + "\n")


def _generation_config(target: Path, sampling: Mapping[str, Any]) -> None:
    """Write the sampling settings of the evaluation, so that a plain `generate` matches the model card. Sampling
    settings of the base model are removed, as they would change it: Qwen2.5 ships a repetition penalty."""
    path = target / "generation_config.json"
    base = json.loads(path.read_text()) if path.is_file() else {}
    config = {key: base[key] for key in OF_THE_MODEL if key in base} | {
        "do_sample": True,
        "temperature": sampling["temperature"],
        "top_p": sampling["top_p"],
        "top_k": sampling["top_k"],
        "min_p": sampling["min_p"],
        "repetition_penalty": sampling["repetition_penalty"],
        "max_new_tokens": sampling["max_tokens"],
    }
    atomic_write(path, dump_json(config, indent=2) + "\n")


def lineage(run: Path, stage: str) -> list[dict[str, Any]]:
    """Manifests from the first ancestor to the stage, each once. Raises ConfigError if one has changed."""
    order: list[dict[str, Any]] = []
    seen: set[str] = set()

    def visit(name: str, sha: str | None) -> None:
        manifest = read_manifest(run / name / "manifest.json")
        if manifest is None or (sha is not None and manifest_sha(manifest) != sha):
            raise ConfigError([f"{run / name}: remade or removed since {stage!r} was built on it; run make pipeline"])
        if name in seen:
            return
        seen.add(name)
        for parent, parent_sha in manifest["parents"].items():
            visit(parent, parent_sha)
        order.append(manifest)

    visit(stage, None)
    return order


def exported(run: Path) -> Path | None:
    """The run's export, if there is one. Raises ConfigError if its stage was trained again after the export."""
    directory = run / "export"
    if not (directory / "config.json").is_file():
        return None
    if (directory / "lineage.json").is_file():
        exported_manifest = json.loads((directory / "lineage.json").read_text())[-1]
        present = read_manifest(run / exported_manifest["stage"] / "manifest.json")
        if present is not None and manifest_sha(present) != (
            exported_manifest.get("manifest_sha256") or manifest_sha(exported_manifest)
        ):
            raise ConfigError(
                [f"{directory}: of a {exported_manifest['stage']!r} trained again since; make export RUN={run}"]
            )
    return directory


def push(run: Path, words: Sequence[str]) -> str:
    """Upload run/export (`repo=me/model`, `private=false`) and return its URL. Raises ConfigError."""
    settings = options("push", words)
    if "/" not in settings.get("repo", ""):
        raise ConfigError(["push: name the repository, as repo=me/my-model"])
    directory = exported(run)
    if directory is None:
        raise ConfigError([f"{run / 'export'}: not exported yet; make export RUN={run}"])
    for name in ("README.md", "lineage.json"):
        local = (
            model_card.local_paths((directory / name).read_text(encoding="utf-8"))
            if (directory / name).is_file()
            else []
        )
        if local:
            raise ConfigError([f"push: {directory / name} holds the local path {local[0]}; remove it, or export again"])
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled

    hub = HfApi()
    try:
        hub.create_repo(settings["repo"], private=settings.get("private", "true") != "false", exist_ok=True)
        return str(hub.upload_folder(folder_path=str(directory), repo_id=settings["repo"]))
    except HFValidationError as exc:
        raise ConfigError([f"push: repo={settings['repo']}: {' '.join(str(exc).split())[:200]}"]) from exc
    except (LocalTokenNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, OSError) as exc:
        reason = " ".join(str(exc).split())[:200]
        raise ConfigError([f"push: the Hub refused or is away: {reason}; log in with `hf auth login`"]) from exc


def newest(run: Path) -> Path:
    """The model to serve: the run's export if there is one, else the stage that `policy_stage` chooses."""
    return exported(run) or run / policy_stage(run) / "model"


# log-probs of the sampling distribution, and none of the model's own sampling settings: see generation/generator.py
ROLLOUT_FLAGS = ("--logprobs-mode", "processed_logprobs", "--generation-config", "vllm", "--no-enable-chunked-prefill")
LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve_command(run: Path, words: Sequence[str]) -> list[str]:
    """The server's command line; each word `key=value` becomes `--key value`, except `stage`, `host` and `rollouts`.

    rollouts=true: configured as the generator of a training run, which sends it weights. Raises ConfigError if such a
    server would listen beyond loopback without a key: it would accept weights from anyone who can reach it; or for a
    port that is no number.
    """
    own, rest = own_and_rest("serve", words)
    model = run / policy_stage(run, own["stage"]) / "model" if "stage" in own else newest(run)
    host, rollouts = own.get("host", LOOPBACK[0]), own.get("rollouts") == "true"
    flags = ["--host", host, *(ROLLOUT_FLAGS if rollouts else ())]
    if rollouts and os.environ.get(SERVER_KEY):
        flags += ["--middleware", "pipeline.generation.server_key.RequireKey"]
    elif rollouts and host not in LOOPBACK:
        raise ConfigError([f"serve: host={host}: this server takes new weights from anybody who reaches it; set "
                           f"{SERVER_KEY} to a secret, here and where the training run is"])  # fmt: skip
    for word in rest:
        key, equals, value = word.partition("=")
        if key == "port" and not (value.isdecimal() and 0 < int(value) < 65536):
            raise ConfigError([f"serve: port={value}: expected a whole number from 1 to 65535, as port=8000"])
        flags += [f"--{key.replace('_', '-')}", *([value] if equals else [])]
    # `python -m`, because the CPU build has no `vllm` program
    server = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    return [*server, "--served-model-name", run.name, *flags]


def serve(run: Path, words: Sequence[str]) -> None:
    """Replace this process with vLLM's OpenAI-compatible server. Raises ConfigError if vLLM is not installed."""
    import importlib.util

    command = serve_command(run, words)
    if importlib.util.find_spec("vllm") is None:
        raise ConfigError(["serve: vLLM is not installed; `make doctor` says why"])
    if not any(word.startswith("kv_cache_memory_bytes=") for word in words):
        os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # it would override the word
    if "rollouts=true" in words:
        os.environ["VLLM_SERVER_DEV_MODE"] = "1"  # opens /collective_rpc
    host = own_and_rest("serve", words)[0].get("host", LOOPBACK[0])
    only = ": only this machine can reach it; host=0.0.0.0 opens it to the network" if host in LOOPBACK else ""
    print(f"serving on {host}{only}", flush=True)
    _become(command)


def harness_command(run: Path, words: Sequence[str]) -> list[str]:
    """lm-eval's command line: `tasks=gsm8k,ifeval`, and each other word `key=value` as `--key value`.

    lm-eval scores greedy answers to its own prompts, so its figures complement ours and do not replace them. Raises
    ConfigError if no task is named or the run's model is an adapter that was not merged.
    """
    settings = dict(word.partition("=")[::2] for word in words)
    if not settings.get("tasks"):
        raise ConfigError(["lm-eval: name the tasks, as tasks=gsm8k,ifeval"])
    directory = newest(run)
    if not (directory / "config.json").is_file():
        raise ConfigError([f"{directory}: an adapter alone; make export RUN={run} merges it"])
    settings = {"output_path": str(run / "lm-eval"), **settings}
    flags = [part for key, value in settings.items() for part in (f"--{key}", *([value] if value else []))]
    return [sys.executable, "-m", "lm_eval", "--model", "hf", "--model_args", f"pretrained={directory}", *flags]


def harness(run: Path, words: Sequence[str]) -> None:
    """Replace this process with lm-eval. Raises ConfigError if it is not installed."""
    import importlib.util

    command = harness_command(run, words)
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError(["lm-eval: not installed; .venv/bin/pip install 'lm-eval>=0.4.9'"])
    _become(command)


def _become(command: Sequence[str]) -> None:
    print(" ".join(command), flush=True)
    os.execv(command[0], list(command))
