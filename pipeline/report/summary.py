"""The content of a report as plain data: facts, headline, one row per policy, lineage, checks, settings. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, fields, is_dataclass
from typing import Any

from pipeline.config.load import merge_defaults
from pipeline.config.schema import KINDS, recorded_kind
from pipeline.report.collect import Stage, curves
from pipeline.stats import counts, is_judged, is_number, mean, paired_difference


def facts(stages: Sequence[Stage]) -> list[list[str]]:
    """The facts at the top of the page: [name, value]."""
    manifests = [s.manifest for s in stages if s.manifest is not None]
    if not manifests:
        return [["stages", f"{len(stages)}, none complete"]]
    seeds = sorted({str(m.get("seed")) for m in manifests})
    revisions = sorted({str(m.get("git") or "unknown")[:10] + ("+" if str(m.get("git")).endswith("+") else "")
                        for m in manifests})  # fmt: skip
    open_stages = [s.name for s in stages if s.manifest is None]
    out = [["seed", ", ".join(seeds)], ["code", ", ".join(revisions)],
           ["stages", ", not complete: ".join([f"{len(manifests)} complete", *filter(None, [", ".join(open_stages)])])],
           ["sampled tokens", f"{sum(s.tokens for s in stages):,}"],
           ["time", clock(sum(float(m.get("wall_s") or 0) for m in manifests))]]  # fmt: skip
    if not all(is_judged(s.figures) for s in stages):
        out.append(["accuracy", "not measured: no part of the rewards says right or wrong; compare mean rewards"])
    generators = sorted({str(s.figures["generator"]) for s in stages if "generator" in s.figures})
    return out + ([["generator", ", ".join(generators)]] if generators else [])


def clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"


def policies(stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """One row per policy: from the last evaluation where there is one (the same prompts and seeds for all), else from
    what each stage reported at its end."""
    judged = [s for s in stages if isinstance(s.figures.get("policies"), list)]
    cost = {s.name: {"sampled_tokens": s.tokens, "wall_s": (s.manifest or {}).get("wall_s")} for s in stages}
    if judged:
        rows = [{**cost.get(row.get("policy"), {}), **row} for row in judged[-1].figures["policies"]]
    else:
        rows = [{"policy": s.name, **cost[s.name], **s.figures} for s in stages]
    shown = [r for r in rows if is_number(r.get("heldout_accuracy")) and is_judged(r)]
    own = {s.name: s.figures for s in stages}
    return [{**figures_of(r), **controls_of(own.get(r["policy"], {}))} for r in shown]


def figures_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a row, without lists of figures."""
    keep = {k: v for k, v in row.items() if is_number(v) or isinstance(v, str)}
    ci = row.get("heldout_accuracy_ci95")
    return {**keep, **({"ci95": ci} if isinstance(ci, list) else {})}


def controls_of(figures: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's control and its accuracy, as columns of the table."""
    if is_number(figures.get("random_control_accuracy")):
        return {"control": "random filter", "control_accuracy": figures["random_control_accuracy"]}
    if is_number(figures.get("top_bin_accuracy")):
        reached: dict[str, Any] = {"asked_best": figures["top_bin_accuracy"]}
        if isinstance(figures.get("top_bin_accuracy_ci95"), list):
            reached["asked_best_ci95"] = figures["top_bin_accuracy_ci95"]
        shuffled = figures.get("shuffled_curve")
        if not shuffled:
            return reached
        accuracy = shuffled[figures.get("best_bin", -1)].get("accuracy")
        return {**reached, "control": "shuffled labels", "control_accuracy": accuracy}
    return {}


def headline(rows: Sequence[Mapping[str, Any]], judged: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Where the run started and the best it reached, with the paired interval of the difference where rows of judged
    samples (stage evaluate's rollouts) allow one."""
    if len(rows) < 2:
        return None
    start = next((r for r in rows if recorded_kind(r["policy"]).may_be_start), rows[0])
    best = max(reversed(rows), key=lambda r: r["heldout_accuracy"])  # of equals the last
    if best is start:
        start = rows[0]
    if best is start:
        return None
    out: dict[str, Any] = {"before": dict(start), "after": dict(best), "rivals": len(rows) - 1}
    by_policy = accuracy_by_prompt(judged)
    a, b = by_policy.get(start["policy"], {}), by_policy.get(best["policy"], {})
    shared = sorted(a.keys() & b.keys())
    if len(shared) > 1:
        found = paired_difference([b[p] for p in shared], [a[p] for p in shared])
        out["difference"] = {"mean": found.mean, "ci95": [found.low, found.high], "prompts": len(shared)}
    return out


def opens_on(stages: Sequence[Stage], rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The rollouts to show first: of the last stage that wrote any, its best policy."""
    last = next((s for s in reversed(stages) if (s.path / "rollouts.jsonl").is_file()), None)
    if last is None:
        return {}
    judged = last.figures.get("policies")
    known = judged if isinstance(judged, list) else []
    best = max((r for r in known if is_number(r.get("heldout_accuracy"))), key=lambda r: r["heldout_accuracy"],
               default=None)  # fmt: skip
    return {"stage": last.name, **({"source": str(best["policy"])} if best is not None else {})}


def accuracy_by_prompt(judged: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, float]]:
    """policy -> prompt -> share of its samples that passed; samples on which a checker broke count nowhere."""
    seen: dict[str, dict[str, list[float]]] = {}
    for row in judged:
        if "policy" in row and counts(row.get("reward"), str(row.get("status"))):
            of_policy = seen.setdefault(str(row["policy"]), {})
            of_policy.setdefault(str(row.get("prompt")), []).append(float(row.get("status") == "pass"))
    return {policy: {prompt: mean(v) for prompt, v in by.items()} for policy, by in seen.items()}


def lineage(stages: Sequence[Stage]) -> dict[str, Any]:
    """The tree from base to last: nodes with their depth, edges from parent to child.

    The accuracy is that of stage evaluate where it judged the policy: one number per model throughout the report.
    """
    judged = {r["policy"]: r["heldout_accuracy"] for r in policies(stages)}
    stages = [s for s in stages if s.kind != "judge"]  # it reads all of them: its edges would hide the tree
    names = {s.name for s in stages}
    depth: dict[str, int] = {}
    for stage in stages:  # parents first
        depth[stage.name] = 1 + max((depth.get(p, 0) for p in stage.parents if p in names), default=-1)
    nodes = [{"name": s.name, "kind": s.kind, "depth": depth[s.name], "complete": s.manifest is not None,
              "accuracy": judged.get(s.name, s.figures.get("heldout_accuracy")),
              "pairs": s.figures.get("heldout_pair_accuracy"),
              "hash": next(iter(sorted((s.manifest or {}).get("outputs", {}).values())), "")[:8]}
             for s in stages]  # fmt: skip
    return {"nodes": nodes, "edges": [[p, s.name] for s in stages for p in s.parents if p in names]}


def describe_stage(stage: Stage, by_name: Mapping[str, Stage]) -> dict[str, Any]:
    """All that the report shows of one stage."""
    figures = {k: v for k, v in stage.figures.items() if is_number(v) or isinstance(v, str)}
    return {
        "name": stage.name,
        "kind": stage.kind,
        "complete": stage.manifest is not None,
        "alarm": stage.alarm,
        "parents": stage.parents,
        "figures": figures,
        "ci95": stage.figures.get("heldout_accuracy_ci95"),
        "tokens": stage.tokens,
        "wall_s": (stage.manifest or {}).get("wall_s"),
        "curves": curves(stage),
        "rounds": round_figures(stage.figures.get("rounds")),
        "control_rounds": round_figures(stage.figures.get("random_control_rounds")),
        "control_curve": stage.figures.get("control_curve"),
        "failing_bin": stage.figures.get("failing_bin"),  # None: every bin of the curve is ranked
        "shuffled_curve": stage.figures.get("shuffled_curve"),
        "extrapolation": stage.figures.get("extrapolation"),
        "probe": probe_figures(stage.figures),
        "charts": chart_figures(stage.figures.get("charts")),
        "checks": checks(stage),
        "settings": own_settings(stage),
        "changed": changed_settings(stage, by_name),
    }


def probe_figures(figures: Mapping[str, Any]) -> dict[str, Any] | None:
    """Where a condition label can be read in the model, and what adding its direction does; None for other stages."""
    layers, steering = figures.get("layers"), figures.get("steering")
    if not isinstance(layers, list) or not isinstance(steering, list):
        return None
    return {"layers": layers, "steering": steering, "chance": figures.get("chance"),
            "unsteered_reward": figures.get("unsteered_reward")}  # fmt: skip


def chart_figures(charts: Any) -> list[dict[str, Any]]:
    """Line charts that a stage describes itself in its metrics: title, series of name, x and y, and what else
    `ownCharts` in sections.js reads. What has no series of numbers is left out."""
    named = [c for c in charts if isinstance(c, Mapping)] if isinstance(charts, list) else []
    out = []
    for chart in named:
        given = chart.get("series")
        series = [dict(s) for s in given if isinstance(s, Mapping)] if isinstance(given, list) else []
        series = [s for s in series if isinstance(s.get("x"), list) and isinstance(s.get("y"), list)]
        if series:
            out.append({**chart, "series": series})
    return out


def round_figures(rounds: Any) -> list[dict[str, Any]]:
    return [figures_of(r) for r in rounds if isinstance(r, Mapping)] if isinstance(rounds, list) else []


def checks(stage: Stage) -> list[dict[str, Any]]:
    """The monitor's readings: the worst value, its limit, and whether the two are close.

    state: good, near (past half of the limit) or bad. limit None: no alarm depends on it, and it is never bad.
    """
    alarms, monitor = stage.block.get("alarms") or {}, stage.block.get("monitor") or {}
    stops = monitor.get("alarm") is not False and any("monitor_strict" in row for row in stage.metrics)
    limits = {name: monitor.get(name) if stops or monitor.get("alarm") else None for name in monitor}
    tolerance = stage.figures.get("canary_tolerance")
    readings = [
        ("canary_max_abs", "generator holds the trainer's weights: largest gap after a sync", tolerance, None),
        (
            "mismatch_mean_abs",
            "sampled log-probs against the trainer's, mean gap",
            alarms.get("mismatch_mean_abs"),
            None,
        ),
        ("checker_broken", "samples that no checker could score", alarms.get("checker_broken_share"), None),
        ("monitor_gap_rise", "rise of the train score over the second score", limits.get("gap"), 0.15),
        ("monitor_fall", "fall of the second score from its best", limits.get("fall"), 0.15),
        ("monitor_commonest", "share of the commonest answer", None, 0.5),
        ("malformed", "malformed answers", None, 0.5),
        ("truncated", "answers truncated at the length limit", None, 0.2),
        ("grad_norm", "gradient norm before clipping", None, None),
        ("ratio_max", "largest probability ratio in the loss", None, None),
    ]
    out = []
    for name, words, limit, concern in readings:
        seen = [(row[name], row.get("step")) for row in stage.metrics if is_number(row.get(name))]
        if not seen or (stage.kind not in ("ppo", "grpo") and name == "grad_norm"):
            continue
        # a monitor figure below 0 means that the second score is the better one
        worst, step = max(seen, key=lambda pair: pair[0] if name.startswith("monitor_") else abs(pair[0]))
        bound = limit if limit is not None else concern
        state = "good" if bound is None or abs(worst) <= bound / 2 else "near" if abs(worst) <= bound else "bad"
        out.append({"name": name, "words": words, "worst": worst, "step": step, "last": seen[-1][0], "limit": limit,
                    "state": "near" if limit is None and state == "bad" else state})  # fmt: skip
    silent = [r["groups_with_signal"] for r in stage.metrics if is_number(r.get("groups_with_signal"))]
    if silent:
        out.append({"name": "groups_with_signal", "words": "groups whose samples differ in reward: mean share",
                    "worst": min(silent), "step": None, "last": mean(silent), "limit": None,
                    "state": "near" if mean(silent) < 0.2 else "good"})  # fmt: skip
    return out


def own_settings(stage: Stage) -> list[list[str]]:
    """[key, value, default]: settings that differ from the code's defaults."""
    kind = KINDS.get(stage.kind)
    if kind is None:
        return [[k, show(v), ""] for k, v in flat(stage.block)]
    defaults = {f.name: plain_default(f) for f in fields(kind.schema)}
    if "critic" in kind.defaults:
        defaults["critic"] = plain_default_of("Critic")
    defaults = merge_defaults(defaults, kind.defaults)
    known = dict(flat(defaults))
    return [[k, show(v), show(known[k]) if k in known else ""] for k, v in flat(stage.block)
            if k != "kind" and show(v) != show(known.get(k))]  # fmt: skip


def plain_default(field: Any) -> Any:
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value


def plain_default_of(name: str) -> dict[str, Any]:
    from pipeline.config import schema

    return asdict(getattr(schema, name)())


def changed_settings(stage: Stage, by_name: Mapping[str, Stage]) -> list[list[str]]:
    """[key, parent's, own]: what of the shared settings (model, prompts, rewards, sampling) differs from a parent's.

    A stage of the parent's own kind is compared in its own settings too.
    """
    out = []
    for parent in (by_name[p] for p in stage.parents if p in by_name):
        skip = () if parent.kind == stage.kind else ("stage",)
        before, now = (dict(flat({k: v for k, v in (s.manifest or {}).get("config", {}).items() if k not in skip}))
                       for s in (parent, stage))  # fmt: skip
        versions = [(f"version of {k}", parent_v, (stage.manifest or {}).get("versions", {}).get(k))
                    for k, parent_v in (parent.manifest or {}).get("versions", {}).items()]  # fmt: skip
        pairs = [(k, before.get(k), now.get(k)) for k in [*before, *(now.keys() - before.keys())]]
        out += [[f"{k} (parent {parent.name})", show(a), show(b)] for k, a, b in [*pairs, *versions] if a != b]
    return out


def flat(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested mappings as dotted keys; an empty mapping is a value."""
    out: list[tuple[str, Any]] = []
    for key, inner in value.items():
        name = f"{prefix}{key}"
        out += flat(inner, f"{name}.") if isinstance(inner, Mapping) and inner else [(name, inner)]
    return out


def show(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(show(v) for v in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {show(v)}" for k, v in value.items()) + "}"
    return str(value)
