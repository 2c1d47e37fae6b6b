// The rollout browser: filters, a virtual list, one sample token by token, and two policies on the same prompt.

const ROW = 46;
const FAILURES = ["fail", "malformed", "error", "pass"];
const SIGNS = { pass: "✓", fail: "✕", malformed: "!", error: "?" }; // colour alone tells some people nothing

function rolloutSection(data, opensOn) {
  const store = rowStore(data);
  const at = (column, i) => (TEXTS.includes(column) ? store.text(column, i) : data.tables[column][data.coded[column][i]]);
  const parts = Object.keys(data.parts);
  const sources = sourceGroups(data);
  const state = { shown: [], selected: -1, view: "sample", left: null, right: null, colour: null };

  const option = (value, text) => h("option", { value }, text ?? value);
  const control = (id, label, node) => { node.id = id; node.addEventListener("input", refresh); return h("label", { for: id }, label, node); };
  const stage = h("select", {}, option("", "all"), data.tables.stage.map((v) => option(v)));
  const source = h("select", {}, option("", "all"), data.tables.source.map((v) => option(v)));
  const part = h("select", {}, option("", "any"), parts.map((v) => option(v)));
  const sort = h("select", {}, option("order", "as sampled"), option("failures", "failures first"), option("-reward", "reward, best first"), option("+reward", "reward, worst first"),
    parts.flatMap((p) => [option(`-part:${p}`, `${p}, best first`), option(`+part:${p}`, `${p}, worst first`)]), option("-length", "longest first"), option("+logprob", "least likely first"), option("-logprob", "most likely first"));
  const bound = (placeholder) => h("input", { type: "number", step: "any", placeholder });
  const stepLow = bound("from"), stepHigh = bound("to"), rewardLow = bound("from"), rewardHigh = bound("to");
  const search = h("input", { type: "search", placeholder: "prompt or answer" });
  const order = Object.keys(SIGNS);
  const statuses = data.tables.status.slice().sort((a, b) => order.indexOf(a) - order.indexOf(b));
  const boxes = statuses.map((v) => h("input", { type: "checkbox", value: v, checked: true, oninput: refresh }));
  const count = h("p", { class: "note", role: "status", id: "rollout-count" });
  const spacer = h("div", { style: { position: "relative" } });
  const list = h("div", { class: "list", id: "rollout-list", role: "listbox", tabindex: "0", "aria-label": "Rollouts" }, spacer);
  const detail = h("div", { class: "detail", id: "rollout-detail" });

  const meanLogprob = data.mean_logprob || meanLogprobs(data);

  function refresh() {
    const code = (column, value) => (value === "" ? -1 : data.tables[column].indexOf(value));
    const wantStage = code("stage", stage.value), wantSource = code("source", source.value);
    const wanted = new Set(boxes.filter((b) => b.checked).map((b) => data.tables.status.indexOf(b.value)));
    const text = search.value.toLowerCase();
    const holds = text && store.searcher(text);
    const searching = text && store.needAll();
    if (searching) searching.then(() => { if (search.value.toLowerCase() === text) refresh(); });
    const within = (v, low, high) => (low.value === "" && high.value === "") || (isNumber(v) && (low.value === "" || v >= +low.value) && (high.value === "" || v <= +high.value));
    const shown = [];
    for (let i = 0; i < data.count; i++) {
      if (wantStage >= 0 && data.coded.stage[i] !== wantStage) continue;
      if (wantSource >= 0 && data.coded.source[i] !== wantSource) continue;
      if (!wanted.has(data.coded.status[i])) continue;
      if (part.value && data.parts[part.value][i] === null) continue;
      if (!within(data.step[i], stepLow, stepHigh) || !within(data.reward[i], rewardLow, rewardHigh)) continue;
      if (text && !holds(i)) continue;
      shown.push(i);
    }
    const way = sort.value[0] === "-" ? -1 : 1, key = sort.value.slice(1);
    if (sort.value === "failures") {
      const rank = data.tables.status.map((v) => FAILURES.indexOf(v)), low = (v) => (v === null ? Infinity : v);
      shown.sort((a, b) => rank[data.coded.status[a]] - rank[data.coded.status[b]] || low(data.reward[a]) - low(data.reward[b]) || a - b);
    } else if (sort.value !== "order") {
      const value = key === "reward" ? data.reward : key === "length" ? data.length : key === "logprob" ? meanLogprob : data.parts[key.slice(5)];
      const known = (v) => v !== null && !Number.isNaN(v);
      shown.sort((a, b) => (known(value[b]) - known(value[a])) || way * (value[a] - value[b]) || a - b);
    }
    state.shown = shown;
    count.textContent = `${shown.length.toLocaleString("en")} of ${data.count.toLocaleString("en")} rollouts` + (data.total > data.count ? `; this page carries ${data.count.toLocaleString("en")} of the run's ${data.total.toLocaleString("en")}, whole prompts chosen by a hash` : "") + (searching ? "; loading the others to search them" : "");
    list.scrollTop = 0;
    select(shown.length ? 0 : -1, false);
  }

  function paint() {
    const first = Math.max(Math.floor(list.scrollTop / ROW) - 6, 0);
    const last = Math.min(Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 6, state.shown.length);
    spacer.style.height = `${state.shown.length * ROW}px`;
    const rows = [];
    const loading = store.need(state.shown.slice(first, last));
    if (loading) loading.then(paint);
    for (let place = first; place < last; place++) {
      const i = state.shown[place], status = at("status", i);
      rows.push(h("div", { class: "row", role: "option", id: `row-${place}`, "aria-selected": place === state.selected ? "true" : "false", "aria-setsize": state.shown.length, "aria-posinset": place + 1,
        style: { top: `${place * ROW}px` }, onclick: () => select(place, false) },
        h("span", { class: `reward status-${status}`, title: status }, `${SIGNS[status] || ""} ${figure(data.reward[i], 2)}`),
        h("span", { class: "what" }, `${visible(at("prompt", i) ?? "…").slice(0, 120)} ${visible(at("completion", i) ?? "").slice(0, 160)}`),
        h("span", { class: "where" }, at("source", i), data.step[i] === null ? "" : ` · ${data.step[i]}`)));
    }
    spacer.replaceChildren(...rows);
    list.setAttribute("aria-activedescendant", state.selected >= 0 ? `row-${state.selected}` : "");
  }

  function select(place, scroll) {
    state.selected = place;
    if (scroll) {
      const top = place * ROW;
      if (top < list.scrollTop) list.scrollTop = top;
      if (top + ROW > list.scrollTop + list.clientHeight) list.scrollTop = top + ROW - list.clientHeight;
    }
    paint();
    show();
  }

  list.addEventListener("scroll", paint, { passive: true });
  list.addEventListener("keydown", (event) => {
    const page = Math.floor(list.clientHeight / ROW);
    const move = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity }[event.key];
    if (move === undefined || !state.shown.length) return;
    event.preventDefault();
    select(Math.max(0, Math.min(state.selected + move, state.shown.length - 1)), true);
  });

  function show() {
    const i = state.shown[state.selected];
    if (i === undefined) { detail.replaceChildren(h("p", { class: "note" }, "No rollout passes these filters.")); return; }
    const tab = (name, text) => h("button", { role: "tab", id: `tab-${name}`, "aria-selected": state.view === name ? "true" : "false", onclick: () => { state.view = name; show(); byId(`tab-${name}`).focus(); } }, text);
    const tabs = h("div", { class: "tabs", role: "tablist", "aria-label": "View" }, tab("sample", "This sample"), sources.length > 1 ? tab("pair", "Side by side") : null);
    const loading = store.need([i]);
    if (loading) loading.then(() => { if (state.shown[state.selected] === i) show(); });
    if (loading || store.failed(i)) { detail.replaceChildren(tabs, h("p", { class: "note", id: "rollout-absent" }, loading ? "Loading…" : `${data.folder}/ is not next to this page, or a file of it is missing; it holds the rollouts' texts.`)); return; }
    detail.replaceChildren(tabs, ...(state.view === "pair" && sources.length > 1 ? pair(i) : sample(i)));
  }

  function sample(i) {
    const status = at("status", i);
    const rewards = parts.filter((p) => isNumber(data.parts[p][i])).map((p) => `${p} ${figure(data.parts[p][i])}`).join(" · ");
    return [
      h("p", {}, h("b", { class: `status-${status}` }, status), ` · reward ${figure(data.reward[i])}`, rewards ? ` (${rewards})` : "", at("detail", i) ? ` · ${at("detail", i)}` : ""),
      h("p", { class: "note" }, [`${at("stage", i)}${at("source", i) !== at("stage", i) ? ` / ${at("source", i)}` : ""}`, data.step[i] === null ? null : `step ${data.step[i]}`, `sample ${data.sample[i]}`,
        at("label", i) ? `label ${at("label", i)}` : null, `${data.length[i]} tokens`, data.finished[i] ? null : "cut at the length limit"].filter(Boolean).join(" · ")),
      h("h4", {}, "Prompt"), h("pre", { id: "shown-prompt" }, at("prompt", i)), ...expected(i), ...answer(i), ...tokenView(i)];
  }

  function answer(i) {
    const said = at("conversation", i);
    return said ? conversation(JSON.parse(said)) : [h("h4", {}, "Answer"), h("pre", { id: "shown-answer" }, at("completion", i))];
  }

  // An episode turn by turn: who speaks, what is called with what, and what came back.
  function conversation(episode) {
    const who = { assistant: "policy", tool: "observation" };
    const turn = ([role, text, thinking, calls]) => h("li", { class: `turn turn-${["assistant", "tool", "user", "system"].includes(role) ? role : "user"}` },
      h("b", {}, who[role] || role),
      thinking ? h("pre", { class: "thinking" }, thinking) : null,
      text || !calls.length ? h("pre", {}, text || "(empty)") : null,
      calls.map(([name, given]) => h("div", { class: "call" }, h("span", {}, `calls ${name}`), h("pre", {}, given))));
    const facts = [`ended by ${episode.ended_by}`, `${episode.turns} turns`, `${episode.calls} calls`, isNumber(episode.reward) ? `own reward ${figure(episode.reward)}` : null];
    return [h("h4", {}, "Conversation"), h("p", { class: "note", id: "shown-ending" }, facts.filter(Boolean).join(" · ")),
      h("ol", { class: "conversation", id: "shown-conversation" }, episode.messages.map(turn)),
      h("h4", {}, "Answer that was scored"), h("pre", { id: "shown-answer" }, episode.answer || "(empty)")];
  }

  const expected = (i) => (at("expected", i) ? [h("h4", {}, "Expected"), h("pre", { id: "shown-expected" }, at("expected", i))] : []);

  function tokenView(i) {
    const { rows, begin, end } = store.rowsOf(i);
    const names = Object.keys(rows.per_token).filter((n) => { for (let t = begin; t < end; t++) if (rows.per_token[n][t] !== rows.absent) return true; return false; });
    if (!names.length) return [h("p", { class: "note" }, data.length[i] ? "Token figures of this sample are not carried by the page." : "")];
    const by = names.includes(state.colour) ? state.colour : names[0];
    const words = { logprobs: "log-prob", advantages: "advantage", kl: "KL to the reference" };
    const value = (t) => rows.per_token[by][t] / 1000;
    let top = 1e-9;
    for (let t = begin; t < end; t++) if (rows.per_token[by][t] !== rows.absent) top = Math.max(top, Math.abs(value(t)));
    const scale = by === "logprobs" ? Math.max(top, 3) : top;
    const cells = [];
    for (let t = begin; t < end; t++) {
      const known = rows.per_token[by][t] !== rows.absent, v = value(t);
      const hue = by === "logprobs" ? "var(--c2)" : v >= 0 ? "var(--c3)" : "var(--c6)";
      const text = rows.words[rows.ids[t]];
      cells.push(h("span", { class: "token", title: names.map((n) => `${words[n]} ${rows.per_token[n][t] === rows.absent ? "–" : figure(rows.per_token[n][t] / 1000)}`).join("\n"),
        style: known ? { background: `color-mix(in srgb, ${hue} ${Math.round((60 * Math.abs(v)) / scale)}%, transparent)` } : {} }, visible(text === " " ? "␣" : text), h("small", {}, known ? figure(v, 2) : "–")));
    }
    return [h("h4", {}, "Token by token"), h("div", { class: "tabs" }, names.map((n) => h("button", { "aria-pressed": n === by ? "true" : "false", id: `colour-${n}`, onclick: () => { state.colour = n; show(); byId(`colour-${n}`).focus(); } }, words[n]))),
      h("div", { class: "tokens", id: "token-view" }, cells)];
  }

  function pair(i) {
    const names = sources.map((g) => g.name);
    if (!names.includes(state.left)) [state.left, state.right] = bestPair(sources, data);
    const choose = (side, label) => h("label", {}, label, h("select", { id: `pair-${side}`, oninput: (e) => { state[side] = e.target.value; show(); byId(`pair-${side}`).focus(); } }, names.map((n) => h("option", { value: n, selected: n === state[side] }, n))));
    const group = (side) => sources.find((g) => g.name === state[side]).byPrompt.get(data.coded.prompt[i]) || [];
    const loading = store.need([...group("left"), ...group("right")]);
    if (loading) loading.then(() => { if (state.shown[state.selected] === i) show(); });
    const column = (side) => {
      const rows = group(side).slice().sort((a, b) => (data.reward[b] ?? -Infinity) - (data.reward[a] ?? -Infinity));
      const usable = rows.filter((r) => data.reward[r] !== null && at("status", r) !== "error"); // as pipeline.stats.counts
      const passed = usable.filter((r) => at("status", r) === "pass").length;
      return h("div", { id: `answers-${side}` }, h("b", {}, state[side]), h("p", { class: "note" }, usable.length ? `${passed} of ${usable.length} pass · mean reward ${figure(usable.reduce((sum, r) => sum + data.reward[r], 0) / usable.length)}` : "no sample of this prompt"),
        h("ul", {}, rows.slice(0, 64).map((r) => h("li", {}, h("span", { class: `status-${at("status", r)}`, title: `${at("status", r)} ${at("detail", r) ?? ""}` }, `${SIGNS[at("status", r)] || ""} ${figure(data.reward[r], 2)}`), visible(at("completion", r) ?? "…") || "(empty)"))));
    };
    return [h("h4", {}, "Prompt"), h("pre", { id: "pair-prompt" }, at("prompt", i)), ...expected(i), h("div", { class: "filters" }, choose("left", "left"), choose("right", "right")), h("div", { class: "answers" }, column("left"), column("right"))];
  }

  const clear = h("button", { id: "clear-filters", onclick: () => { for (const n of [stage, source, part, stepLow, stepHigh, rewardLow, rewardHigh, search]) n.value = ""; for (const b of boxes) b.checked = true; sort.value = "order"; refresh(); } }, "Clear");
  const filters = h("div", { class: "filters", role: "search" },
    data.tables.stage.length > 1 ? control("f-stage", "stage", stage) : null, data.tables.source.length > 1 ? control("f-source", "policy", source) : null,
    parts.length > 1 ? control("f-part", "scored by", part) : null,
    h("fieldset", {}, h("span", {}, "status"), h("div", {}, boxes.map((b) => { b.id = `f-status-${b.value}`; return h("label", { class: `status-${b.value}` }, b, b.value); }))),
    data.step.some(isNumber) ? h("fieldset", {}, h("span", {}, "step"), h("div", {}, control("f-step-low", "", stepLow), control("f-step-high", "", stepHigh))) : null,
    h("fieldset", {}, h("span", {}, "reward"), h("div", {}, control("f-reward-low", "", rewardLow), control("f-reward-high", "", rewardHigh))),
    control("f-search", "search", search), control("f-sort", "sort by", sort), clear);
  for (const [node, text] of [[stepLow, "step from"], [stepHigh, "step to"], [rewardLow, "reward from"], [rewardHigh, "reward to"]]) node.setAttribute("aria-label", text);
  const node = section("rollouts", "Rollouts", filters, count, h("div", { class: "browser" }, list, detail));
  new ResizeObserver(paint).observe(list);
  const openOn = (select, value) => { if (value && [...select.options].some((o) => o.value === value)) select.value = value; };
  openOn(stage, opensOn.stage);
  openOn(source, opensOn.source);
  sort.value = "failures";
  refresh();
  node.whenLoaded = store.idle;
  return node;
}

// Mean log-prob of each row's tokens, in thousandths; NaN where none were recorded.
function meanLogprobs(data) {
  const means = new Float64Array(data.count);
  for (let i = 0, begin = 0; i < data.count; begin += data.tokens[i], i++) {
    let sum = 0, n = 0;
    for (let t = begin; t < begin + data.tokens[i]; t++) { const v = data.per_token.logprobs?.[t]; if (v !== undefined && v !== data.absent) { sum += v; n++; } }
    means[i] = n ? sum / n : NaN;
  }
  return means;
}

// What can be held against what: every judged policy, and of a stage that sampled over many steps its first and last third.
function sourceGroups(data) {
  const groups = new Map();
  const last = new Map();
  for (let i = 0; i < data.count; i++) if (data.step[i] !== null) last.set(data.coded.stage[i], Math.max(last.get(data.coded.stage[i]) ?? 0, data.step[i]));
  const name = (i) => {
    const stage = data.tables.stage[data.coded.stage[i]], source = data.tables.source[data.coded.source[i]], top = last.get(data.coded.stage[i]);
    if (source !== stage || !top) return source === stage ? stage : `${stage}: ${source}`;
    if (top < 3) return `${stage}, round ${data.step[i] + 1}`;
    return data.step[i] <= top / 3 ? `${stage}, first third` : data.step[i] >= (2 * top) / 3 ? `${stage}, last third` : null;
  };
  for (let i = 0; i < data.count; i++) {
    const key = name(i);
    if (key === null) continue;
    if (!groups.has(key)) groups.set(key, { name: key, judged: key.includes(": "), byPrompt: new Map() });
    const byPrompt = groups.get(key).byPrompt, prompt = data.coded.prompt[i];
    if (!byPrompt.has(prompt)) byPrompt.set(prompt, []);
    byPrompt.get(prompt).push(i);
  }
  return [...groups.values()].sort((a, b) => b.judged - a.judged);
}

// Before and after: the start and the policy with the most passes, where policies were judged.
function bestPair(sources, data) {
  const judged = sources.filter((g) => g.judged);
  if (judged.length < 2) {
    const late = sources.findIndex((g) => g.name.endsWith("last third"));
    return late > 0 ? [sources[late].name.replace("last third", "first third"), sources[late].name] : [sources[0].name, sources[1].name];
  }
  const passes = (g) => { let n = 0, all = 0; for (const rows of g.byPrompt.values()) for (const r of rows) { all++; n += data.tables.status[data.coded.status[r]] === "pass"; } return n / all; };
  const start = judged.find((g) => g.name.endsWith(": sft")) || judged[0];
  const best = judged.filter((g) => g !== start).sort((a, b) => passes(b) - passes(a))[0];
  return [start.name, best.name];
}
