// The sections of a comparison's report.

const isMethod = (row) => row.role === "method";
const twinOf = (list, name) => list.find((t) => t.method === name);

// One colour per method, the same in every chart; beyond eight they repeat, dashed.
function palette(comparison) {
  const names = comparison.table.filter(isMethod).map((r) => r.method);
  return (name) => {
    const i = names.indexOf(name);
    return i < 0 ? { colour: 8, dash: true } : { colour: (i % 8) + 1, dash: i >= 8 };
  };
}

// What policies are compared by: accuracy, or the mean reward where nothing says right or wrong.
function measureOf(c) {
  const by = c.measure || "accuracy", percents = by === "accuracy";
  return { by, percents, of: (r) => r[by], show: (x, digits) => (percents ? percent(x, digits) : figure(x)), gap: (x) => (percents ? signed(x) : `${x < 0 ? "−" : "+"}${figure(Math.abs(x))}`),
    of_what: percents ? "share of held-out samples that pass" : "mean reward of held-out samples; no part of the rewards says right or wrong" };
}

function answerSection(report) {
  const c = report.comparison, m = measureOf(c);
  const start = c.table.find((r) => r.role === "start");
  const ghost = (row) => {
    const control = twinOf(c.controls, row.method);
    const found = control && c.table.find((r) => r.method === control.twin);
    return found ? { value: m.of(found), name: `control ${found.method}` } : null;
  };
  const ranked = c.table.filter((r) => isMethod(r) || r.role === "start" || r.role === "test time").sort((a, b) => m.of(b) - m.of(a));
  return section("answer", "Which method", h("p", { class: "note" }, `All from ${c.start}, ${c.seeds.length} seed${c.seeds.length > 1 ? "s" : ""}, ${tokens(c.budget)} sampled tokens each. Intervals: paired bootstrap over held-out prompts, widened by the spread of the seeds (Student's t); who is above whom is corrected for the number of pairs (Holm).`),
    dotPlot({ title: `Held-out ${m.by}`, wide: true, percent: m.percents, xMin: m.percents ? 0 : undefined, xLabel: m.of_what, line: { x: m.of(start) },
      rows: ranked.map((r) => ({ name: r.method, value: m.of(r), low: r.ci95[0], high: r.ci95[1], colour: isMethod(r) ? 1 : 8, ghost: ghost(r) })) }),
    h("ul", { class: "claims", id: "claims" }, c.sentences.map((text) => h("li", {}, text))),
    comparisonTable(c), pairTable(c));
}

function comparisonTable(c) {
  const m = measureOf(c), best = Math.max(...c.table.filter(isMethod).map(m.of));
  return table([
    { title: "method", key: "method" }, { title: "role", key: "role" },
    { title: m.by, numeric: true, cell: (r) => m.show(m.of(r), 1) }, { title: "95%", numeric: true, cell: (r) => `${m.show(r.ci95[0])}–${m.show(r.ci95[1])}` },
    { title: "by seed", numeric: true, cell: (r) => r.by_seed.map((v) => m.show(v)).join(" ") },
    { title: "gain over start", numeric: true, cell: (r) => (r.role === "start" ? "–" : `${m.gap(r.gain.mean)} (${m.gap(r.gain.low)} to ${m.gap(r.gain.high)})`) },
    ...(m.percents ? [{ title: "reward", key: "heldout_reward", numeric: true }] : []), { title: "KL", key: "kl_from_start", numeric: true, hint: "nats per completion, from the start" },
    { title: "entropy", key: "entropy", numeric: true }, { title: "distinct", numeric: true, cell: (r) => figure(r.distinct_answers, 1), hint: "distinct completions per prompt" },
    { title: "best answer's mass", numeric: true, cell: (r) => percent(r.best_answer_mass), hint: "share of samples that are the most frequent best answer" },
    { title: "length", numeric: true, cell: (r) => figure(r.mean_completion_tokens, 1) },
    { title: "sampled", numeric: true, cell: (r) => tokens(r.sampled_tokens) + (r.over_budget ? " !" : ""), hint: "tokens sampled to train it; ! is more than 5% over the budget" },
    { title: "FLOPs", numeric: true, cell: (r) => (isNumber(r.flops) ? r.flops.toExponential(1) : "–"), hint: "2N per token read, 6N per token learned from" },
    { title: "time", numeric: true, cell: (r) => seconds(r.wall_s) },
  ], c.table, { label: "All policies", mark: (r) => isMethod(r) && m.of(r) === best });
}

function pairTable(c) {
  const names = c.table.filter(isMethod).map((r) => r.method), m = measureOf(c);
  if (names.length < 2) return null;
  const find = (a, b) => c.pairs.find((p) => (p.a === a && p.b === b) || (p.a === b && p.b === a));
  const cell = (a, b) => {
    const pair = find(a, b);
    if (!pair) return "·";
    const gap = pair.a === a ? pair.mean : -pair.mean;
    return h("span", { class: pair.significant ? (gap > 0 ? "state good" : "state bad") : "note", title: `p ${figure(pair.p_holm)} after Holm` }, `${m.gap(gap)}${pair.significant ? "" : " ?"}`);
  };
  return h("div", {}, h("h3", {}, "Row against column", h("span", { class: "note" }, `difference in ${m.percents ? "points" : "mean reward"}; ? means not distinguishable`)),
    table([{ title: "", cell: (a) => a }, ...names.map((b) => ({ title: b, numeric: true, cell: (a) => (a === b ? "" : cell(a, b)) }))], names, { label: "Pairs" }));
}

// The k-th evaluation pass of every seed together: means, and the range over the seeds as a band.
function overSeeds(paths, x, y) {
  const used = paths.filter((p) => p.length);
  const passes = Math.min(...used.map((p) => p.length));
  const out = { x: [], y: [], low: [], high: [] };
  for (let i = 0; used.length && i < passes; i++) {
    const ys = used.map((p) => p[i][y]);
    if (!ys.every(isNumber) || !used.every((p) => isNumber(p[i][x]))) continue;
    out.x.push(used.reduce((sum, p) => sum + p[i][x], 0) / used.length);
    out.y.push(ys.reduce((a, b) => a + b, 0) / ys.length);
    out.low.push(Math.min(...ys));
    out.high.push(Math.max(...ys));
  }
  return out;
}

// From the start to the last evaluation pass; a method without passes on the way is a line of two points.
function pathLine(c, row, x, y, from, to) {
  const line = overSeeds(c.paths[row.method] || [], x, y);
  line.x.unshift(from.x); line.y.unshift(from.y); line.low.unshift(from.y); line.high.unshift(from.y);
  if (isNumber(to.x) && to.x > line.x[line.x.length - 1] + 1e-9) { line.x.push(to.x); line.y.push(to.y); line.low.push(to.y); line.high.push(to.y); }
  return line;
}

// Values of a sweep stand at equal distances, as their lists usually grow by a factor.
function sweepSection(report) {
  const sweeps = report.comparison.sweeps || [];
  if (!sweeps.length) return null;
  const start = report.comparison.table.find((r) => r.role === "start"), m = measureOf(report.comparison);
  const line = (l, i, values) => ({ name: l.name, colour: (i % 8) + 1, dash: i >= 8, x: values.map((_, n) => n), y: l.y, low: l.low, high: l.high });
  return section("sweep", "Sweep", h("p", { class: "note" }, "Band: 95% interval of each point by itself. The best of many points looks better than it is: run it again under other seeds."),
    h("div", { class: "charts" }, sweeps.map((one) => lineChart({ title: `${one.method}: held-out ${m.by} by ${one.key}`, percent: m.percents, xLabel: one.key, xTicks: one.values.map((_, n) => n), xText: (n) => one.values[n] ?? "",
      height: 260, few: true, yMin: m.percents ? 0 : undefined, lines: [{ y: m.of(start), text: start.method }], series: one.lines.map((l, i) => line(l, i, one.values)) }))));
}

function frontierSection(report) {
  const c = report.comparison, colour = palette(c), m = measureOf(c);
  const start = c.table.find((r) => r.role === "start"), methods = c.table.filter(isMethod);
  const against = (x, column, from) => methods.filter((r) => isNumber(r[column])).map((r) => ({ name: r.method, ...colour(r.method), ...pathLine(c, r, x, m.by, { x: from, y: m.of(start) }, { x: r[column], y: m.of(r) }) }));
  const drawn = m.percents ? c.best_of.filter((b) => b.n > 1) : [];
  const bestOf = { name: "best of n", colour: 8, dash: true, x: [0, ...drawn.map((b) => b.kl)], y: [m.of(start), ...drawn.map((b) => b.accuracy_by_prompt.reduce((p, q) => p + q, 0) / b.accuracy_by_prompt.length)] };
  const k = [1, 2, 4, 8, 16, 32, 64];
  const curve = (r, style) => ({ name: r.method, ...style, x: k.slice(0, r.pass_at.length).map(Math.log2), y: r.pass_at });
  const withoutBand = (line) => ({ ...line, low: undefined, high: undefined }); // along the KL a path may turn back
  return section("frontier", "What it cost", h("div", { class: "charts" },
    lineChart({ title: `Held-out ${m.by} against sampled tokens`, note: "evaluation passes on the held-out prompts; band: range of the seeds", percent: m.percents, xLabel: "sampled tokens", height: 300, few: true, yMin: m.percents ? 0 : undefined, series: against("tokens", "sampled_tokens", 0) }),
    lineChart({ title: `Held-out ${m.by} against distance from the start`, note: `KL in nats per completion${m.percents ? "; best of n by the scorer, at test time" : ""}`, percent: m.percents, xLabel: "KL", height: 300, few: true, yMin: m.percents ? 0 : undefined, series: [...against("kl", "kl_from_start", 0).map(withoutBand), ...(drawn.length ? [bestOf] : [])] }),
    ...(!m.percents ? [] : [lineChart({ title: "pass@k", note: "chance of a right answer in k samples: lost variety shows at large k", percent: true, xLabel: "k", xTicks: k.slice(0, start.pass_at.length).map(Math.log2), xText: (v) => String(Math.round(2 ** v)), height: 300, few: true, yMin: 0, series: [curve(start, { colour: 8, dash: true }), ...methods.map((r) => curve(r, colour(r.method)))] })]),
    lineChart({ title: "Mass on the best answer", note: "how concentrated the policy becomes as training goes on", percent: true, xLabel: "sampled tokens", height: 300, few: true, yMin: 0,
      series: methods.map((r) => ({ name: r.method, ...colour(r.method), ...pathLine(c, r, "tokens", "best_answer_mass", { x: 0, y: start.best_answer_mass }, { x: r.sampled_tokens, y: r.best_answer_mass }) })) })));
}

function traitSection(report) {
  const c = report.comparison, start = c.table.find((r) => r.role === "start"), m = measureOf(c);
  const rows = c.table.filter(isMethod).map((r) => ({ ...r, online: twinOf(c.online, r.method), stitch: c.stitching?.methods?.[r.method] }));
  return section("traits", ["Is it reinforcement learning? Three traits as numbers", "Traits"],
    table([{ title: "method", key: "method" },
      { title: "online: gain of fresh samples", numeric: true, hint: `${m.by} minus that of the same budget drawn once, up front`, cell: (r) => (r.online ? `${m.gap(r.online.mean)} (${m.gap(r.online.low)} to ${m.gap(r.online.high)})` : "not run") },
      { title: "state-wise credit: stitching", numeric: true, hint: "probability of the one best walk, of which the logs hold only halves", cell: (r) => (isNumber(r.stitch) ? figure(r.stitch, 2) : "not run") },
      { title: "sharp optimum: mass on the best answer", numeric: true, cell: (r) => `${percent(start.best_answer_mass)} → ${percent(r.best_answer_mass)}` },
      { title: "entropy", numeric: true, cell: (r) => `${figure(start.entropy, 2)} → ${figure(r.entropy, 2)}` }], rows, { label: "Traits" }),
    c.stitching ? h("p", { class: "note" }, c.stitching.words) : null);
}

function proxySection(report) {
  const proxy = report.comparison.proxy;
  if (!proxy) return null;
  const names = Object.keys(proxy.paths);
  const series = (y) => names.map((name, i) => ({ name, colour: i + 1, x: proxy.paths[name].map((p) => p.kl), y: proxy.paths[name].map((p) => (isNumber(p[y]) ? p[y] : null)) }));
  return section("proxy", ["A learned reward against the true one", "Proxy"],
    h("p", { class: "note" }, `${proxy.model}: ${figure(proxy.pairs)} pairs, ${percent(proxy.pair_accuracy)} of held-out pairs ranked correctly; seed ${proxy.seed}. The learned reward is in standard deviations of the start's samples.`),
    h("div", { class: "charts" },
      lineChart({ title: "True reward (the verifier)", xLabel: "KL from the start, nats per completion", height: 260, few: true, yMin: 0, series: series("reward") }),
      lineChart({ title: "Learned reward (what was optimised)", xLabel: "KL from the start, nats per completion", height: 260, few: true, series: series("proxy") })),
    h("ul", { class: "claims" }, proxy.findings.map((f) => h("li", {}, f.words))));
}
