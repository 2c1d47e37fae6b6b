// The sections of a pipeline's or a stage's report.

const CURVES = {
  reward_mean: ["Mean reward", "on training prompts"], heldout_accuracy: ["Held-out accuracy", "sampled while training"],
  validation_accuracy: ["Validation accuracy", "chooses the step that is saved"], validation_reward: ["Validation reward", "on prompts neither trained on nor reported"], validation_kl: ["KL from the start", "nats per completion, validation prompts"],
  passed: ["Share that pass", "on training prompts"], kl_sequence: ["KL to the reference", "nats per completion"],
  heldout_kl: ["KL from the start", "nats per completion, held out"], kl_k3: ["KL to the reference (k3)", "nats per token"], entropy: ["Entropy", "nats per token"], length_mean: ["Mean length", "tokens"],
  loss: ["Loss", ""], mean_token_accuracy: ["Token accuracy", "of what is imitated"], accuracy: ["Pair accuracy", "training pairs"], margin: ["Margin of the chosen", ""],
  groups_with_signal: ["Groups with a signal", "samples differ in reward"], distinct: ["Distinct samples", "share"], malformed: ["Malformed", "share"], truncated: ["Cut at the limit", "share"],
  explained_variance: ["Critic: explained variance", ""], value_loss: ["Critic: loss", ""], grad_norm: ["Gradient norm", "before clipping"],
  monitor_format: ["Keeps the format", "share, by the second score"], monitor_duplicates: ["Duplicates", "share of completions that repeat another of the step"],
  monitor_commonest: ["The commonest answer", "its share of the step"], monitor_length_factor: ["Length against the first steps", "factor"],
  monitor_gap: ["Train score − second score", "on the sample both saw"], monitor_gap_rise: ["Rise of that gap", "window against the first steps"], monitor_fall: ["Second score below its best", "window against the best window"],
  clipped_high: ["Clipped above", "share of tokens"], clipped_low: ["Clipped below", "share of tokens"], mismatch_mean_abs: ["Generator mismatch", "mean gap of log-probs"],
};
const FIRST = ["reward_mean", "heldout_accuracy", "validation_accuracy", "kl_sequence", "heldout_kl", "entropy", "length_mean", "loss", "accuracy", "mean_token_accuracy"];
const SHARES = new Set(["passed", "heldout_accuracy", "validation_accuracy", "accuracy", "mean_token_accuracy", "groups_with_signal", "distinct", "malformed", "truncated", "clipped_high", "clipped_low", "monitor_format", "monitor_duplicates", "monitor_commonest"]);

function header(report) {
  const kind = report.comparison ? "Comparison" : report.stages.length > 1 ? "Run" : "Stage";
  byId("top").append(h("p", { class: "kind" }, `Whetstone · ${kind}`), h("h1", {}, report.name),
    h("dl", { class: "facts" }, report.facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))));
}

// The run is still running: reload the page every few seconds, but not while somebody scrolls or types.
function liveBar(live) {
  const QUIET_S = 20, GONE_S = 900;  // after a key, a click or a scroll; without a new page
  const store = { get: () => { try { return sessionStorage.getItem("paused"); } catch { return null; } },
    set: (value) => { try { sessionStorage.setItem("paused", value); } catch { /* a browser that keeps nothing for files */ } } };
  let paused = store.get() === "yes", touched = 0;
  const words = h("span", {}), button = h("button", { type: "button", onclick: () => { paused = !paused; store.set(paused ? "yes" : "no"); show(); } });
  const show = () => {
    const age = Date.now() / 1000 - live.written;
    words.textContent = age > GONE_S ? `Written ${Math.round(age / 60)} minutes ago and not since: the run may have stopped.`
      : paused ? "The run is still running; reloading is paused." : `The run is still running: this page reloads every ${live.reload_s} s. Of each stage the newest rollouts are shown.`;
    button.textContent = paused ? "Resume" : "Pause";
    button.setAttribute("aria-pressed", String(paused));
    button.hidden = age > GONE_S;
  };
  for (const event of ["pointerdown", "keydown", "wheel", "touchmove"]) addEventListener(event, () => { touched = Date.now(); }, { passive: true });
  byId("top").append(h("p", { class: "live", role: "status" }, words, button));
  show();
  const due = setInterval(() => {
    show();
    if (Date.now() / 1000 - live.written > GONE_S) clearInterval(due);
    else if (!paused && Date.now() - touched > 1000 * QUIET_S) location.reload();
  }, 1000 * live.reload_s);
}

// Of `run ... seeds=1,2,3`: means over the seeds. The sections after it show the first seed's run.
function seedsSection(report) {
  if (!report.seeds) return null;
  const { seeds, table: rows, runs } = report.seeds;
  return section("seeds", `${seeds.length} seeds`,
    dotPlot({ title: "Held-out accuracy over the seeds", wide: true, note: "mean and 95% interval over seeds (Student t): what training again with another seed may give", percent: true, xMin: 0, xLabel: "share of held-out samples that pass",
      rows: rows.map((r) => ({ name: r.policy, value: r.accuracy, low: r.ci95[0], high: r.ci95[1], colour: 1 })) }),
    table([
      { title: "policy", key: "policy" },
      { title: "accuracy", numeric: true, cell: (r) => percent(r.accuracy, 1), hint: "mean over the seeds" },
      { title: "95%", numeric: true, cell: (r) => (isNumber(r.ci95[0]) ? `${percent(r.ci95[0])}–${percent(r.ci95[1])}` : "–") },
      ...seeds.map((seed, i) => ({ title: `seed ${seed}`, numeric: true, cell: (r) => percent(r.by_seed[i], 1) })),
      { title: "gain", numeric: true, cell: (r) => (r.gain ? `${signed(r.gain.mean)}${isNumber(r.gain.low) ? ` (${signed(r.gain.low)} to ${signed(r.gain.high)})` : ""} over ${r.over}` : "–"), hint: "points over the policy it started from, paired by seed" },
    ], rows, { label: "Means over the seeds" }),
    h("p", { class: "note" }, `The rest of this page is the run of seed ${seeds[0]} (${runs[0]}); every run has a report of its own.`));
}

function resultSection(report) {
  if (!report.policies.length) return null;
  const head = report.headline;
  const lead = head ? h("div", { class: "headline" },
    number(head.before, "before"), h("span", { class: "arrow", "aria-hidden": "true" }, "→"), number(head.after, "after"),
    head.difference ? h("div", { class: "gain" }, h("b", {}, `${signed(head.difference.mean)} points`),
      h("span", {}, `95% interval ${signed(head.difference.ci95[0])} to ${signed(head.difference.ci95[1])}, paired over ${head.difference.prompts} held-out prompts`)) : null) : null;
  const caution = head && head.rivals > 1 ? h("p", { class: "note" }, `Best of ${head.rivals} trained policies, chosen on the prompts shown here: one seed, so slightly optimistic. For a claim about a method, run make compare.`) : null;
  return section("result", "Result", lead, caution, accuracyPlot(report.policies), policyTable(report.policies));
}

function number(row, when) {
  return h("div", { class: "big" }, h("span", { class: "who" }, `${row.policy}`), h("b", {}, percent(row.heldout_accuracy, 1)),
    h("span", { class: "note" }, row.ci95 ? `held-out accuracy, 95% ${percent(row.ci95[0])}–${percent(row.ci95[1])}` : `held-out accuracy ${when}`));
}

function accuracyPlot(rows) {
  return dotPlot({ title: "Held-out accuracy by policy", wide: true, note: "point and 95% bootstrap interval over prompts", percent: true, xMin: 0, xLabel: "share of held-out samples that pass",
    rows: rows.map((r) => ({ name: r.policy, value: isNumber(r.asked_best) ? r.asked_best : r.heldout_accuracy, low: (isNumber(r.asked_best) ? r.asked_best_ci95 : r.ci95)?.[0], high: (isNumber(r.asked_best) ? r.asked_best_ci95 : r.ci95)?.[1], colour: 1,
      ghost: r.control ? { value: r.control_accuracy, name: r.control } : null })) });
}

function policyTable(rows) {
  const k = Object.keys(rows[0]).find((name) => name.startsWith("pass_at_"));
  const best = Math.max(...rows.map((r) => r.heldout_accuracy));
  return table([
    { title: "policy", key: "policy" },
    { title: "accuracy", numeric: true, cell: (r) => percent(r.heldout_accuracy, 1), hint: "share of held-out samples that pass" },
    { title: "95%", numeric: true, cell: (r) => (r.ci95 ? `${percent(r.ci95[0])}–${percent(r.ci95[1])}` : "–") },
    ...(k ? [{ title: k.replace("pass_at_", "pass@"), numeric: true, cell: (r) => percent(r[k], 1) }] : []),
    { title: "by the stage itself", numeric: true, cell: (r) => percent(r.stage_accuracy, 1), hint: "what the stage reported at its end: the same model and prompts, sampled with the stage's own seeds" },
    { title: "under the best label", numeric: true, cell: (r) => (isNumber(r.asked_best) ? `${percent(r.asked_best, 1)}${r.asked_best_ci95 ? ` (${percent(r.asked_best_ci95[0])}–${percent(r.asked_best_ci95[1])})` : ""}` : "–"), hint: "condition tokens: accuracy under the best label, with its 95% interval" },
    { title: "control", numeric: true, cell: (r) => (r.control ? `${percent(r.control_accuracy, 1)} ${r.control}` : "–") },
    { title: "reward", key: "heldout_reward", numeric: true },
    { title: "entropy", key: "entropy", numeric: true, hint: "nats per token" },
    { title: "distinct", numeric: true, cell: (r) => figure(r.distinct_answers, 1), hint: "distinct completions per prompt" },
    { title: "tokens", numeric: true, cell: (r) => figure(r.mean_completion_tokens, 1), hint: "mean length of a completion" },
    { title: "malformed", numeric: true, cell: (r) => percent(r.malformed_share, 1) },
    { title: "sampled", numeric: true, cell: (r) => tokens(r.sampled_tokens), hint: "tokens sampled to train it" },
    { title: "time", numeric: true, cell: (r) => seconds(r.wall_s) },
  ], rows, { label: "Policies", mark: (r) => r.heldout_accuracy === best });
}

function lineageSection(report) {
  return report.lineage.nodes.length > 1 ? section("lineage", "Lineage", tree(report.lineage)) : null;
}

function feedmeChart(stage) {
  if (!stage.rounds.length) return null;
  const line = (rows, name, colour, dash) => ({ name, colour, dash, x: rows.map((_, i) => i + 1), y: rows.map((r) => r.heldout_accuracy), low: rows.map((r) => r.ci95?.[0]), high: rows.map((r) => r.ci95?.[1]) });
  return lineChart({ title: `${stage.name}: round by round`, note: "held-out accuracy; the control keeps as many samples of each prompt, chosen blindly", percent: true, xLabel: "round", yMin: 0, xTicks: stage.rounds.map((_, i) => i + 1),
    series: [line(stage.rounds, "kept by score", 1), ...(stage.control_rounds.length ? [line(stage.control_rounds, "kept blindly", 2, true)] : [])] });
}

function conditionChart(stage) {
  if (!Array.isArray(stage.control_curve)) return null;
  const line = (rows, name, colour, dash) => ({ name, colour, dash, x: rows.map((r) => r.asked), y: rows.map((r) => r.obtained), low: rows.map((r) => r.ci95?.[0]), high: rows.map((r) => r.ci95?.[1]) });
  const failing = stage.failing_bin, ranked = (rows) => (failing ? rows.filter((r) => r.asked !== failing.asked) : rows);
  const solved = ranked(stage.control_curve), shuffled = ranked(stage.shuffled_curve || []);
  const points = (name, colour, x, y) => ({ name, colour, points: true, x, y });
  const promised = solved.filter((r) => isNumber(r.promised)), beyond = stage.extrapolation, unlabelled = stage.figures.unconditioned_reward;
  return lineChart({ title: `${stage.name}: requested and obtained`, note: `held-out mean for each requested label${failing ? `; label ${failing.label.trim()} (failing) earned ${figure(failing.obtained)} and is not ranked` : ""}`, xLabel: "label requested", few: true,
    lines: isNumber(unlabelled) ? [{ y: unlabelled, text: "no label" }] : [],
    series: [line(solved, "trained on true labels", 1), ...(shuffled.length ? [line(shuffled, "on shuffled labels", 2, true)] : []),
      ...(promised.length ? [points("mean of the label's training samples", 8, promised.map((r) => r.asked), promised.map((r) => r.promised))] : []),
      ...(beyond && isNumber(beyond.obtained) ? [points("beyond the trained labels", 6, [beyond.asked], [beyond.obtained])] : [])] });
}

// Where a condition label can be read, layer by layer, and what adding its direction does to the reward.
function probeCharts(stage) {
  if (!stage.probe) return [];
  const { layers, steering, chance, unsteered_reward: unsteered } = stage.probe;
  const read = (key, name, colour, dash) => ({ name, colour, dash, x: layers.map((r) => r.layer), y: layers.map((r) => r[key]) });
  const added = [...new Set(steering.map((r) => r.layer).filter((layer) => layer >= 0))];
  const rows = (layer, direction) => steering.filter((r) => r.layer === layer && r.direction === direction);
  const along = (layer, i) => {
    const all = [{ scale: 0, reward: unsteered }, ...rows(layer, "label")].sort((a, b) => a.scale - b.scale);
    return { name: `layer ${layer}`, colour: (i % 8) + 1, x: all.map((r) => r.scale), y: all.map((r) => r.reward) };
  };
  const random = added.flatMap((layer) => rows(layer, "random"));
  return [
    lineChart({ title: `${stage.name}: where the label can be read`, note: "at the last token of the prompt", xLabel: "layer", yMin: 0, few: true, xTicks: layers.map((r) => r.layer),
      lines: isNumber(chance) ? [{ y: chance, text: "chance" }] : [],
      series: [read("probe_accuracy", "linear probe, held-out accuracy", 1), read("relative_difference", "length of the difference, relative", 2, true)] }),
    lineChart({ title: `${stage.name}: what adding the difference does`, note: "reward of prompts without a label", xLabel: "times the difference added", few: true,
      lines: isNumber(unsteered) ? [{ y: unsteered, text: "nothing added" }] : [],
      series: [...added.map(along), ...(random.length ? [{ name: "random direction", colour: 8, points: true, x: random.map((r) => r.scale), y: random.map((r) => r.reward) }] : [])] }),
  ];
}

// Charts that a stage of a research question describes itself. logX: the x axis is logarithmic, and points at 0 are left out.
function ownCharts(stage) {
  return (stage.charts || []).map((chart) => {
    const place = (v) => (chart.logX ? (v > 0 ? Math.log10(v) : null) : v);
    const series = chart.series.map((line, i) => {
      const kept = line.x.map((v, at) => at).filter((at) => isNumber(place(line.x[at])));
      const of = (values) => values && kept.map((at) => values[at]);
      return { name: String(line.name), colour: (i % 8) + 1, dash: i > 7, x: kept.map((at) => place(line.x[at])), y: of(line.y), low: of(line.low), high: of(line.high) };
    });
    const marks = [...new Set(series.flatMap((line) => line.x))].sort((a, b) => a - b);
    return lineChart({ title: `${stage.name}: ${chart.title}`, note: chart.note, xLabel: chart.xLabel, few: true, wide: series.length > 4, height: 300, yMin: chart.yMin, lines: chart.lines || [], series,
      ...(chart.logX ? { xTicks: marks, xText: (v) => tick(10 ** v) } : {}) });
  }).filter(Boolean);
}

// What the policy is trained on beside the monitor's second score; where they diverge, it games its reward.
function secondScoreChart(stage) {
  const curve = stage.curves.find((c) => c.series.monitor_strict);
  if (!curve) return null;
  const line = (name, key, colour, dash) => ({ name, colour, dash, x: curve.x, y: curve.series[key] });
  return lineChart({ title: `${stage.name}: better, or better at its reward?`, note: "mean score of the rollouts that were scored twice", xLabel: "step",
    series: [line("what is trained on", "monitor_train", 1), line("second score", "monitor_strict", 2, true)] });
}

// Parts of one role (feedme/0, feedme/1 ...) as one curve: the steps of a later part follow those of the one before.
function joined(parts) {
  const roles = new Map();
  for (const part of parts) {
    const role = part.label.split("/")[0];
    const line = roles.get(role) || { name: role, offset: 0, x: [], series: {} };
    for (const name of Object.keys(part.series)) line.series[name] ||= new Array(line.x.length).fill(null);
    part.x.forEach((step, i) => {
      line.x.push(line.offset + step);
      for (const name of Object.keys(line.series)) line.series[name].push(part.series[name]?.[i] ?? null);
    });
    line.offset += part.x.length ? part.x[part.x.length - 1] : 0;
    roles.set(role, line);
  }
  return [...roles.values()];
}

function curveCharts(stage) {
  const roles = joined(stage.curves);
  const names = [...new Set(roles.flatMap((r) => Object.keys(r.series)))].filter((n) => roles.some((r) => (r.series[n] || []).filter(isNumber).length > 1));
  const chart = (name) => lineChart({ title: CURVES[name]?.[0] || name.replaceAll("_", " "), note: CURVES[name]?.[1], xLabel: "step", percent: SHARES.has(name), height: 168,
    series: roles.filter((r) => r.series[name]).map((r, i) => ({ name: r.name || stage.name, colour: i + 1, dash: /control|shuffled/.test(r.name), x: r.x, y: r.series[name] })) });
  const first = FIRST.filter((n) => names.includes(n)).slice(0, 6);
  const rest = names.filter((n) => !first.includes(n) && !/learning_rate|num_tokens|num_input|^kl_coef$|canary|^monitor_(train|strict)$/.test(n));
  const more = h("div", { class: "charts small" });
  return [h("div", { class: "charts small" }, first.map(chart)),
    rest.length ? h("details", { class: "more", ontoggle: (e) => e.target.open && !more.firstChild && more.append(...rest.map(chart).filter(Boolean)) }, h("summary", {}, `${rest.length} more curves`), more) : null];
}

function stageSections(report) {
  return section("stages", report.stages.length > 1 ? "Stage by stage" : "The stage", report.stages.map((stage) => {
    const facts = [stage.kind !== stage.name ? stage.kind : null, stage.parents.length ? `from ${stage.parents.join(", ")}` : null,
      stage.tokens ? `${tokens(stage.tokens)} tokens sampled` : null, isNumber(stage.wall_s) ? seconds(stage.wall_s) : null,
      isNumber(stage.figures.heldout_accuracy) ? `${percent(stage.figures.heldout_accuracy, 1)} held out, by its own samples` : null, stage.complete ? null : "not complete"].filter(Boolean);
    const special = [feedmeChart(stage), conditionChart(stage), ...probeCharts(stage), secondScoreChart(stage), ...ownCharts(stage)].filter(Boolean);
    const drawn = stage.curves.length ? curveCharts(stage) : [];
    return h("article", { id: `stage-${stage.name}` }, h("h3", {}, stage.name, h("span", { class: "note" }, facts.join(" · "))),
      stage.alarm ? h("p", {}, h("span", { class: "state bad" }, "✕ stopped by an alarm: "), stage.alarm) : null,
      special.length ? h("div", { class: "charts" }, special) : null, drawn, figuresOf(stage));
  }));
}

function figuresOf(stage) {
  const rows = Object.entries(stage.figures).map(([name, value]) => ({ name, value }));
  return rows.length ? h("details", { class: "more" }, h("summary", {}, `${rows.length} figures of its manifest`), table([{ title: "figure", key: "name" }, { title: "value", key: "value", numeric: true }], rows)) : null;
}

function monitorSection(report) {
  const rows = report.stages.flatMap((stage) => stage.checks.map((check) => ({ ...check, stage: stage.name })));
  if (!rows.length) return null;
  const worst = rows.filter((r) => r.state !== "good");
  const words = { good: "✓ in order", near: "! check", bad: "✕ past its limit" };
  return section("monitor", "Monitor", h("p", {}, worst.length ? `${worst.length} of ${rows.length} readings need attention: ${worst.map((r) => `${r.stage} ${r.name}`).join(", ")}.` : `All ${rows.length} readings are in order.`),
    table([{ title: "stage", key: "stage" }, { title: "what is watched", key: "words" }, { title: "worst", numeric: true, cell: (r) => figure(r.worst) }, { title: "at step", numeric: true, cell: (r) => (r.step === null ? "–" : figure(r.step)) },
      { title: "last", numeric: true, cell: (r) => figure(r.last) }, { title: "alarm at", numeric: true, cell: (r) => (isNumber(r.limit) ? figure(r.limit) : "none") },
      { title: "state", cell: (r) => h("span", { class: `state ${r.state}` }, words[r.state]) }], rows, { label: "Monitor" }));
}

function settingsSection(report) {
  const stages = report.stages.filter((stage) => stage.settings.length || stage.changed.length);
  if (!stages.length) return null;
  return section("settings", "Settings", h("p", { class: "note" }, "Settings that differ from the code's defaults, and from the parent stage."), stages.map((stage) =>
    h("details", { class: "more" }, h("summary", {}, `${stage.name}: ${stage.settings.length} set, ${stage.changed.length} different from the parent`),
      stage.settings.length ? table([{ title: "key", key: "0" }, { title: "value", key: "1" }, { title: "default", cell: (r) => r[2] || "–" }], stage.settings, { label: `Settings of ${stage.name}` }) : null,
      stage.changed.length ? table([{ title: "different from its parent", key: "0" }, { title: "parent's", key: "1" }, { title: "own", key: "2" }], stage.changed) : h("p", { class: "note" }, "Nothing differs from the parent's model, data, rewards, sampling and library versions."))));
}
