"""The model card of an export: lineage, data, rewards, method, budget, results, controls, limits. No local paths."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.models.model_dir import is_local
from pipeline.run.files import dump_json
from pipeline.stats import headline_names, is_judged

CONTROLS = {
    "random_control_accuracy": "the same rounds with as many samples per prompt chosen at random",
    "shuffled_spearman": "rank correlation of the control trained on shuffled labels",
    "unconditioned_accuracy": "the same model without a label",
}

HUB_CACHE = re.compile(r"(?:models|datasets)--([^/]+)--([^/]+)/snapshots/")
# an absolute path: not the rest of an address, of a Hub id or of a relative path
LOCAL_PATH = re.compile(r"(?<![\w.:/~-])(?:~|/[\w.@+-]+)(?:/[\w.@+-]+)+|\b[A-Za-z]:\\\S+")


def local_paths(text: str) -> list[str]:
    """Absolute paths of this machine in a text that is about to be published."""
    return LOCAL_PATH.findall(text)


def public_name(path: str) -> str:
    """A Hub id as it is, also out of the Hub's cache; of a local file or directory its name alone."""
    cached = HUB_CACHE.search(f"{path}/")
    if cached:
        return f"{cached[1]}/{cached[2]}"
    local = os.path.isabs(path) or path.startswith(("~", ".")) or is_local(path) or Path(path).exists()
    return Path(path).name if local else path


def without_local_paths(value: Any) -> Any:
    """The value with absolute paths, in keys too, replaced by the names they end in."""
    if isinstance(value, Mapping):
        return {without_local_paths(k): without_local_paths(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_local_paths(v) for v in value]
    if isinstance(value, str) and os.path.isabs(value):
        return public_name(value)
    return LOCAL_PATH.sub(lambda found: public_name(found[0]), value) if isinstance(value, str) else value


def card(chain: Sequence[Mapping[str, Any]]) -> str:
    """A model card in Markdown: lineage, data, rewards, budget, before and after with controls, limits."""
    last, config = chain[-1], chain[-1]["config"]
    model, prompts = config["model"], config["prompts"]
    base = public_name(model["path"]) if model.get("path") else "a tiny random model, made by the run"
    data = (
        public_name(prompts["path"])
        if prompts.get("path")
        else f"tasks of the Prime environment `{prompts['prime']['taskset']}`"
        if prompts.get("prime")
        else f"made by the verifier `{prompts.get('procedural')}`"
    )
    front = ["---", "library_name: transformers", "tags: [whetstone, rl]"]
    front += [f"base_model: {base}"] if model.get("path") and "/" in base else []
    lines = [
        *front,
        "---",
        "",
        f"# {last['stage']} of {base}",
        "",
        f"Made with Whetstone: {' → '.join(m['stage'] for m in chain)}. `lineage.json` holds every stage's config and "
        "hashes.",
        "",
        "## What it was trained on",
        "",
        f"- Data: {data}; held out: {_heldout(chain)}. Its licence is its publishers'.",
        f"- Judged by: {', '.join(f'`{name}`' for name in config['rewards'])} on prompts that no stage trained on.",
        *_template_arguments(prompts),
        f"- Sampled tokens spent on training: {sum(m['tokens']['completion'] for m in chain):,}.",
        f"- Wall time: {sum(m['wall_s'] for m in chain):,.0f} s. Seed: {last['seed']} (one run: no spread over seeds).",
        "",
        "## How it was trained",
        "",
        *_training(chain),
        "",
        "## Before and after",
        "",
        *_table(chain),
        "",
        *_controls(last),
        "## Limits",
        "",
        f"- {_verdict(chain)} Nothing else was measured; other abilities may have been lost.",
        "- The interval covers the choice of held-out prompts, not the choice of seed.",
        f"- Diversity went from {_first(chain, 'distinct_answers')} to {_last(chain, 'distinct_answers')} distinct "
        "answers per prompt.",
        "",
    ]
    return "\n".join(lines)


def _verdict(chain: Sequence[Mapping[str, Any]]) -> str:
    """What the figures support about the last stage against the first one that was evaluated alike."""
    shown = [m for m in chain if is_judged(m["metrics"]) and m["metrics"].get("heldout_accuracy_ci95")]
    if not is_judged(chain[-1]["metrics"]):
        return "No part of the rewards says right or wrong; only the mean reward was measured."
    if len(shown) < 2 or shown[-1] is not chain[-1]:
        return "The model before training was not evaluated, so nothing is said about an improvement."
    (start, (low, high)), (name, (least, most)) = (
        (m["stage"], m["metrics"]["heldout_accuracy_ci95"]) for m in (shown[0], shown[-1])
    )
    if least > high:
        return f"Better than `{start}` on this task, by this scorer."
    if most < low:
        return f"Worse than `{start}` on this task, by this scorer."
    return f"Not shown to be better than `{start}` on this task: the intervals of `{start}` and `{name}` overlap."


def _heldout(chain: Sequence[Mapping[str, Any]]) -> str:
    prompts, count = chain[-1]["config"]["prompts"], chain[-1]["metrics"].get("heldout_prompts")
    named = prompts.get("heldout_path") or prompts.get("heldout_split")
    named = public_name(named) if named else None
    which = f"`{named}`" if named else f"{prompts['heldout']:.0%} of the distinct prompts, by a hash of their text"
    return which if count is None else f"{which} ({count} prompts)"


def _template_arguments(prompts: Mapping[str, Any]) -> list[str]:
    given = prompts.get("chat_kwargs")
    return [f"- The chat template was given `{dump_json(given)}`; ask the model likewise."] if given else []


def _table(chain: Sequence[Mapping[str, Any]]) -> list[str]:
    shown = [m for m in chain if "heldout_accuracy" in m["metrics"]]
    columns = headline_names([m["metrics"] for m in shown])
    lines = ["| stage | " + " | ".join(columns) + " |", "| --- " * (len(columns) + 1) + "|"]
    for manifest in shown:
        cells = [_cell(manifest["metrics"], column) for column in columns]
        lines.append(f"| {manifest['stage']} | " + " | ".join(cells) + " |")
    return lines


def _cell(metrics: Mapping[str, Any], column: str) -> str:
    value = metrics.get(column)
    if value is None:
        return "-"
    interval = metrics.get(f"{column}_ci95")
    return f"{value:.3f}" + (f" ({interval[0]:.3f} to {interval[1]:.3f})" if interval else "")


def _controls(manifest: Mapping[str, Any]) -> list[str]:
    found = [(name, text) for name, text in CONTROLS.items() if manifest["metrics"].get(name) is not None]
    if not found:
        return []
    lines = [f"- {text}: {manifest['metrics'][name]:.3f}" for name, text in found]
    return ["## Controls", "", *lines, ""]


def _first(chain: Sequence[Mapping[str, Any]], name: str) -> str:
    return next((f"{m['metrics'][name]:.2f}" for m in chain if m["metrics"].get(name) is not None), "an unknown number")


def _last(chain: Sequence[Mapping[str, Any]], name: str) -> str:
    return _first(list(reversed(chain)), name)


def _training(chain: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line per stage: method, steps, LoRA, KL, learning rate, as far as the stage has them."""
    lines = []
    for manifest in chain:
        block = manifest["config"].get("stage")
        block = block if isinstance(block, Mapping) else {}
        trainer, kl, peft = block.get("trainer") or {}, block.get("kl") or {}, block.get("peft") or {}
        steps = manifest["metrics"].get("steps") or block.get("steps") or trainer.get("max_steps")
        rate = (block.get("optimizer") or {}).get("learning_rate") or trainer.get("learning_rate")
        best = manifest["metrics"].get("best_step")
        if best and best != steps:
            steps = f"{best} of {steps}, chosen by the validation prompts"
        facts = {
            "method": block.get("method"),
            "credit": (block.get("credit") or {}).get("kind"),
            "loss": (block.get("loss") or {}).get("kind"),
            "KL": f"{kl['coef']:g} in the {kl['where']}" if kl.get("coef") else None,
            "steps": steps,
            "learning rate": f"{rate:g}" if isinstance(rate, (int, float)) else rate,
            "LoRA": f"r={peft.get('r', 8)} on {peft.get('target_modules', 'the default modules')}" if peft else None,
        }
        settings = ", ".join(f"{name} {value}" for name, value in facts.items() if value is not None)
        lines.append(
            f"- {manifest['stage']} ({block.get('kind', manifest['stage'])})" + (f": {settings}" if settings else "")
        )
    return lines


__all__ = ["card", "local_paths", "public_name", "without_local_paths"]
