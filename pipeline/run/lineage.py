"""Lineage of a result: what a stage depends on, why it is stale, a run's tree, the differences between two runs.

A stage is a function of its config, its inputs, its parents and the code its module imports. All four are in its
manifest by value or hash, so that a change is reported by name.
"""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import verifiers
from pipeline.config import stage_graph
from pipeline.config.errors import LineageError
from pipeline.config.load import Config, ConfigError
from pipeline.config.registry import policies_before
from pipeline.config.schema import Prompts
from pipeline.run.files import dump_json, read_jsonl, sha256_file
from pipeline.run.manifest import manifest_sha, read_manifest, refuse_seeds, verified_manifest
from pipeline.run.stage_dir import StageDir
from rewards import module_file, real_parts
from rewards.graders import files_of
from verifiers import tools
from verifiers._secrets import REDACTED, SECRET_NAME, hidden, secret_values
from verifiers.tools._prime import environment_files

ROOT = Path(__file__).resolve().parents[2]
OURS = ("pipeline", "rewards", "verifiers")
SHARED = ("model", "prompts", "rewards", "generate", "sampling", "evaluation", "verifier_dirs", "threads")


# --- what a stage depends on ---------------------------------------------------------------------------------------


def redacted(value: Any, key: str = "", secrets: Sequence[str] | None = None) -> Any:
    """The value as it may be stored: text under a key that names a secret is hidden, and so are keys in other text.

    secrets: values of secret environment variables; None reads them.
    """
    if secrets is None:
        secrets = secret_values()
    if isinstance(value, Mapping):
        return {k: redacted(v, str(k), secrets) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [redacted(v, key, secrets) for v in value]
    if isinstance(value, str):
        return REDACTED if SECRET_NAME.search(key) else hidden(value, secrets)
    return value


def stage_config(cfg: Config, name: str) -> dict[str, Any]:
    """The part of the config that this stage's result depends on, as plain values without secrets."""
    block = cfg.block(name)
    own = {"seed": cfg.seed, "stage": block, **{key: getattr(cfg, key) for key in SHARED}}
    if cfg.tools is not None:
        own["tools"] = cfg.tools
    if cfg.program is not None:
        own["program"] = {**asdict(cfg.program), "concurrency": None}  # how many run at once changes no sample
    if block.kind in stage_graph.RUNS_OTHERS:
        own["blocks"] = {each: cfg.blocks[each] for each in stage_graph.stages_of(cfg, name)}
    plain = json.loads(dump_json(own))
    if block.kind == "evaluate" and block.policies is None:
        plain["stage"]["policies"] = policies_before(cfg, name)
    return redacted(plain)


@cache
def code_of(module: str) -> dict[str, str]:
    """{path: sha256} of every source of ours that `module` imports, directly or not, and of all rewards and verifiers,
    which are loaded by name."""
    sources_by_module: dict[str, Path] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _source(name)
        if name in sources_by_module or path is None:
            continue
        sources_by_module[name] = path
        waiting += _imports(path)
    paths = {
        *sources_by_module.values(),
        *(p for package in ("rewards", "verifiers") for p in (ROOT / package).rglob("*.py")),
    }
    return {str(p.relative_to(ROOT)): _source_sha(p) for p in sorted(paths) if p.name != "__main__.py"}


# of a source of ours: the process runs what it has imported, whatever is written later
_source_sha = cache(sha256_file)


def own_files(cfg: Config, name: str) -> list[Path]:
    """The user's own files that a stage's result depends on and that our code does not import: verifiers, modules of
    reward functions, a chat template."""
    block = cfg.block(name)
    scored_by: list[Mapping[str, Any]] = [cfg.rewards] if stage_graph.scores_by_the_run(block) else []
    scored_by += [getattr(block, "reward", None) or {}, stage_graph.strict_of(block)]
    sources = [cfg.prompts, getattr(block, "data", None), getattr(block, "ptx_data", None)]
    known = verifiers.available(cfg.verifier_dirs)
    names = {str(source.procedural) for source in sources if isinstance(source, Prompts)}
    names |= {str(source.procedural) for source in cfg.prompts.sources.values()}
    names.add(str(getattr(getattr(block, "episodes", None), "environment", "")))
    paths = [cfg.model.template_file]
    for part, fields in (pair for parts in scored_by for pair in real_parts(parts).items()):
        names |= set(known) if fields.get("verifier") == "by_task" else {str(fields.get("verifier") or part)}
        if fields.get("kind", part) in ("function", "potential"):
            module = str(fields.get("path", "")).partition(":")[0]
            paths.append(module_file(module, stage_graph.reward_dirs(cfg)) or _module_file(module))
        paths += files_of(part, fields, stage_graph.reward_dirs(cfg))
    paths += [known[verifier] for verifier in names if verifier in known]
    if cfg.tools is not None:
        tool_files = tools.available(cfg.tools.dirs)
        paths += [tool_files[tool] for tool in cfg.tools.use if tool in tool_files]
        module = (cfg.tools.environment or "").rpartition(":")[0]
        paths.append(Path(module) if module.endswith(".py") else _module_file(module) if module else None)
    for environment in (cfg.prompts.prime, cfg.tools.prime if cfg.tools is not None else None):
        paths += environment_files(asdict(environment)) if environment is not None else []
    if cfg.program is not None:
        paths += [path for word in cfg.program.command if (path := Path(word)).is_file()]
    return sorted({path for path in paths if path is not None and not _is_ours(path)})


def _module_file(name: str) -> Path | None:
    with contextlib.suppress(ImportError, ValueError):  # that it cannot be imported is reported where it is used
        spec = importlib.util.find_spec(name)
        return Path(spec.origin) if spec is not None and spec.origin and Path(spec.origin).is_file() else None
    return None


def _is_ours(path: Path) -> bool:
    """Whether `code_of` holds it."""
    return any(path.resolve().is_relative_to(ROOT / package) for package in OURS)


@cache
def _source(name: str) -> Path | None:
    base = ROOT.joinpath(*name.split("."))
    return next((p for p in (base.with_suffix(".py"), base / "__init__.py") if p.is_file()), None)


@cache
def _imports(path: Path) -> list[str]:
    """Modules of ours that a source imports, anywhere in it. Cached: most stages share most of their modules."""
    out: list[str] = []
    for node in _statements(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        # `from pipeline import x` needs x; the packages' own docstrings decide nothing
        out += [n for n in names if n.split(".")[0] in OURS and n not in ("pipeline", "pipeline.stages")]
    return out


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Every statement of a module, nested ones too. Imports are statements; ast.walk would visit each expression too,
    which takes four times as long."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        for name in ("body", "orelse", "finalbody", "handlers", "cases"):
            inner = getattr(node, name, None)
            if isinstance(inner, list):
                waiting += inner
        yield node


# --- stale, and why ------------------------------------------------------------------------------------------------


def why_stale(cfg: Config, name: str, module: str) -> str | None:
    """Why a stage must run, in words; None where what is on disk is up to date with the config."""
    stage = StageDir(cfg.run_dir, name)
    manifest = stage.manifest()
    if manifest is not None:
        return changed_since(manifest, cfg, name, module)
    begun = read_manifest(stage.path / "begun.json")
    if begun is None:
        return "not yet run"
    why = changed_since(begun, cfg, name, module)
    return f"interrupted, and {why} since: starts over" if why else "interrupted"


def may_go_on(why: str) -> bool:
    """Whether what an earlier try left can be used."""
    return why in ("interrupted", "not yet run")


def changed_since(record: Mapping[str, Any], cfg: Config, name: str, module: str) -> str | None:
    """The first of config, code, parents and inputs that is no longer what the record says."""
    changes = differences(record["config"], stage_config(cfg, name))
    if changes:
        more = f" (and {len(changes) - 1} more)" if len(changes) > 1 else ""
        return f"its config changed: {changes[0]}{more}"
    now = code_of(module)
    files = changed_files(sources(record), now)
    if files:
        more = f" and {len(files) - 1} more" if len(files) > 1 else ""
        return f"the code changed: {files[0]}{more}"
    for parent, sha in record["parents"].items():
        manifest = StageDir(cfg.run_dir, parent).manifest()
        if manifest is None or manifest_sha(manifest) != sha:
            return f"its parent {parent} changed"
    for path, sha in record["inputs"].items():
        if not Path(path).is_file() or sha256_file(Path(path)) != sha:
            return f"its input {path} changed"
    return None


def sources(record: Mapping[str, Any]) -> Mapping[str, str]:
    """{path: sha256} of the code in a manifest; {} of an early one, which names no files."""
    code = record.get("code")
    return code if isinstance(code, Mapping) else {}


def changed_files(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    return sorted(path for path in {*before, *after} if before.get(path) != after.get(path))


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Dotted key -> leaf. A list of blocks is opened too, by its policies' names or by number."""
    value = _by_name(value) if isinstance(value, list) else value
    if isinstance(value, Mapping) and (value or not prefix):
        return {
            k: v for key, inner in value.items() for k, v in flat(inner, f"{prefix}.{key}" if prefix else key).items()
        }
    return {prefix: value}


def _by_name(items: list[Any]) -> Any:
    if not items or not all(isinstance(item, Mapping) for item in items):
        return items
    names = [item.get("policy") for item in items]
    named = all(isinstance(name, str) for name in names) and len(set(names)) == len(names)
    return dict(zip(names if named else map(str, range(len(items))), items, strict=True))


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """`key: old → new` for every leaf that differs."""
    old, new = flat(before), flat(after)
    return [f"{key} {_shown(old, key)} → {_shown(new, key)}"
            for key in sorted({*old, *new}) if old.get(key, _ABSENT) != new.get(key, _ABSENT)]  # fmt: skip


_ABSENT = object()


def _shown(values: Mapping[str, Any], key: str) -> str:
    if key not in values:
        return "(absent)"
    text = str(values[key])
    return text if len(text) <= 60 else text[:57] + "..."


# --- the tree of a run ---------------------------------------------------------------------------------------------


def manifests(run: Path) -> dict[str, dict[str, Any]]:
    """Stage -> manifest, in the order they were completed. Raises LineageError where there is no stage."""
    finished = [(p.stat().st_mtime_ns, p.parent.name, read_manifest(p)) for p in run.glob("*/manifest.json")]
    if not finished:
        refuse_seeds(run)
        raise LineageError(f"{run}: no completed stage here; give a run's directory, as runs/demo")
    return _parents_first({name: manifest for _, name, manifest in sorted(finished, key=lambda f: f[:2]) if manifest})


def _parents_first(manifests_by_stage: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    out: dict[str, dict[str, Any]] = {}

    def add(name: str) -> None:
        if name in out or name not in manifests_by_stage:
            return
        for parent in manifests_by_stage[name]["parents"]:
            add(parent)
        out[name] = manifests_by_stage[name]

    for name in manifests_by_stage:
        add(name)
    return out


def lineage(run: Path) -> tuple[str, bool]:
    """A run's tree from base model to final, and whether every stage is what its manifest and its children say."""
    stages = manifests(run)
    faults = {name: fault for name in stages if (fault := _fault(run, name, stages))}
    lines = [f"{run}"]
    roots = [name for name, manifest in stages.items() if not any(p in stages for p in manifest["parents"])]

    def draw(name: str, indent: str, last: bool) -> None:
        manifest = stages[name]
        others = [p for p in manifest["parents"] if p != _main_parent(manifest, stages)]
        lines.append(f"{indent}{'└─ ' if last else '├─ '}{_stage_line(name, manifest, others)}")
        below = indent + ("   " if last else "│  ")
        if name in faults:
            lines.append(f"{below}! {faults[name]}")
        children = [child for child, m in stages.items() if _main_parent(m, stages) == name]
        for number, child in enumerate(children):
            draw(child, below, number == len(children) - 1)

    for number, root in enumerate(roots):
        draw(root, "", number == len(roots) - 1)
    lines += [
        f"{name}: unfinished" for name in sorted(p.parent.name for p in run.glob("*/begun.json")) if name not in stages
    ]
    return "\n".join(lines), not faults


def _main_parent(manifest: Mapping[str, Any], stages: Mapping[str, Any]) -> str | None:
    """The parent that the policy came from: the tree is drawn along it, other parents are named."""
    policy = (manifest["config"].get("stage") or {}).get("policy")
    if policy in manifest["parents"] and policy in stages:
        return policy
    return next((p for p in manifest["parents"] if p in stages), None)


def _stage_line(name: str, manifest: Mapping[str, Any], others: Sequence[str]) -> str:
    figures = [f"outputs {manifest_sha(manifest)[:8]}", f"seed {manifest['seed']}"]
    accuracy = manifest["metrics"].get("heldout_accuracy")
    if accuracy is not None:
        figures.append(f"held-out accuracy {accuracy:.3f}")
    if manifest["tokens"]["completion"]:
        figures.append(f"sampled {manifest['tokens']['completion']:,} tokens")
    if others:
        figures.append("with " + ", ".join(others))
    return f"{name}  " + ", ".join(figures)


def _fault(run: Path, name: str, stages: Mapping[str, dict[str, Any]]) -> str | None:
    try:
        verified_manifest(run / name)
    except LineageError as exc:
        return str(exc)
    for parent, sha in stages[name]["parents"].items():
        if parent not in stages:
            return f"its parent {parent} is gone"
        if manifest_sha(stages[parent]) != sha:
            return f"its parent {parent} was rerun since: {manifest_sha(stages[parent])[:8]}"
    return None


# --- two runs ------------------------------------------------------------------------------------------------------


def diff(first: Path, words: Sequence[str]) -> tuple[str, bool]:
    """What differs between two runs, stage by stage: config, code, versions, inputs, metrics and outputs."""
    if len(words) != 1:
        raise ConfigError(["diff: name two runs, as in: python -m pipeline diff runs/demo runs/demo2"])
    second = Path(words[0])
    one, two = manifests(first), manifests(second)
    lines = [f"- {first}", f"+ {second}"]
    for name in [*one, *(n for n in two if n not in one)]:
        if name not in one or name not in two:
            lines.append(f"{name}: only in {first if name in one else second}")
            continue
        changes = _stage_diff(one[name], two[name], first / name, second / name)
        lines.append(f"{name}: " + ("the same" if not changes else ""))
        lines += [f"  {line}" for line in changes]
    return "\n".join(line.rstrip() for line in lines), True


def _stage_diff(a: Mapping[str, Any], b: Mapping[str, Any], stage_a: Path, stage_b: Path) -> list[str]:
    out = []
    for part in ("config", "inputs", "parents", "versions", "tokens", "metrics"):
        changes = differences(_without_times(a.get(part) or {}), _without_times(b.get(part) or {}))
        shown = changes if part != "parents" else [change.split(" ")[0] + " differs" for change in changes]
        out += [f"{part}: {change}" for change in shown[:12]]
        out += [f"{part}: and {len(changes) - 12} more"] if len(changes) > 12 else []
    code = changed_files(sources(a), sources(b))
    if code:
        out.append(f"code: {', '.join(code[:5])}" + (f" and {len(code) - 5} more" if len(code) > 5 else ""))
    files = [f for f in sorted({*a["outputs"], *b["outputs"]}) if a["outputs"].get(f) != b["outputs"].get(f)]
    if files:
        out.append(f"outputs: {', '.join(files)}")
    where = first_difference(stage_a / "metrics.jsonl", stage_b / "metrics.jsonl")
    return out + ([f"metrics.jsonl: {where}"] if where else [])


def _without_times(part: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds differ between any two runs and say nothing about their results."""
    return {key: value for key, value in flat(part).items() if not key.endswith(("wall_s", "/check_s", "/saved_s"))}


def first_difference(a: Path, b: Path) -> str | None:
    """The first row in which two logs differ, and its figures that differ."""
    if not a.is_file() or not b.is_file():
        return None
    rows_a, rows_b = list(read_jsonl(a)), list(read_jsonl(b))
    for number, (x, y) in enumerate(zip(rows_a, rows_b, strict=False), 1):
        if x != y:
            return f"from row {number}: " + "; ".join(differences(x, y)[:4])
    if len(rows_a) != len(rows_b):
        return f"{len(rows_a)} rows against {len(rows_b)}"
    return None
