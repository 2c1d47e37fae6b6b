// Charts drawn as SVG to the width they are given, and again when it changes. Each has a crosshair for pointer and
// arrow keys, a summary for screen readers, and its numbers as a table.

const MARGIN = { top: 12, right: 14, bottom: 36, left: 46 };

function ticks(low, high, count) {
  const span = high - low || Math.abs(high) || 1;
  const raw = span / Math.max(count, 1);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((v) => v >= raw * 0.999);
  const out = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-6; v += step) out.push(Math.abs(v) < step * 1e-6 ? 0 : v);
  return out;
}

// all: the axis' other ticks, which must not read alike.
function tick(v, all = []) {
  const size = Math.abs(v), gap = all.length > 1 ? Math.abs(all[1] - all[0]) : size;
  const digits = gap > 0 && gap < size ? Math.min(Math.max(3, Math.ceil(Math.log10(size / gap)) + 1), 9) : 3;
  if (size >= 1e6) return `${+(v / 1e6).toPrecision(digits)}M`;
  if (size >= 1e4) return `${+(v / 1e3).toPrecision(digits)}k`;
  if (v !== 0 && size < 1e-3) return v.toExponential(0);
  return String(+v.toPrecision(digits));
}

// A share as percent, with a decimal where the ticks need one.
const share = (v, all) => percent(v, all.some((t) => Math.abs(100 * t - Math.round(100 * t)) > 1e-6) ? 1 : 0);

function extent(values, options) {
  let low = Infinity, high = -Infinity;
  for (const v of values) if (isNumber(v)) { if (v < low) low = v; if (v > high) high = v; }
  if (low > high) [low, high] = [0, 1];
  if (isNumber(options.min)) low = Math.min(low, options.min);
  if (isNumber(options.max)) high = Math.max(high, options.max);
  if (low === high) [low, high] = [low - (Math.abs(low) * 0.1 || 0.5), high + (Math.abs(high) * 0.1 || 0.5)];
  if (options.percent && low < 0 && !values.some((v) => v < 0)) low = 0;
  const air = (high - low) * 0.04;
  if (options.percent && low === 0) return [0, isNumber(options.max) && high === options.max ? high : high + air];
  return [isNumber(options.min) && low === options.min ? low : low - air, isNumber(options.max) && high === options.max ? high : high + air];
}

function frame(options, draw) {
  const plot = h("div", { class: "plot" });
  const rows = h("div", {});
  const node = h("figure", { class: options.wide ? "chart wide" : "chart" },
    h("figcaption", {}, h("strong", {}, options.title), options.note ? h("span", { class: "note" }, options.note) : null),
    options.legend ? options.legend : null, plot,
    h("details", { class: "numbers", ontoggle: () => rows.firstChild || rows.append(options.table()) }, h("summary", {}, "Numbers"), rows));
  let width = 0;
  const redraw = () => {
    const now = Math.max(Math.floor(plot.clientWidth), 220);
    if (now === width) return;
    width = now;
    plot.replaceChildren(draw(plot, width));
  };
  new ResizeObserver(redraw).observe(plot);
  return node;
}

function legend(series) {
  if (series.length < 2 && !series[0]?.always) return null;
  return h("ul", { class: "legend" }, series.map((line) =>
    h("li", {}, h("i", { class: `key c${line.colour}${line.dash ? " dashed" : ""}${line.points ? " dot" : ""}`, "aria-hidden": "true" }), line.name)));
}

function axes(options, width, height, x, y, xTicks, yTicks) {
  const right = width - MARGIN.right, bottom = height - MARGIN.bottom;
  return [
    yTicks.map((v) => [
      s("line", { class: "grid", x1: MARGIN.left, x2: right, y1: y(v), y2: y(v) }),
      s("text", { class: "tick", x: MARGIN.left - 7, y: y(v) + 3.5, "text-anchor": "end" }, options.percent ? share(v, yTicks) : tick(v, yTicks)),
    ]),
    xTicks.map((v) => s("text", { class: "tick", x: x(v), y: bottom + 15, "text-anchor": "middle" }, options.xText ? options.xText(v) : tick(v))),
    s("line", { class: "axis", x1: MARGIN.left, x2: right, y1: bottom, y2: bottom }),
    s("text", { class: "label", x: right, y: height - 4, "text-anchor": "end" }, options.xLabel || ""),
  ].flat(2);
}

// options: title, note, xLabel, percent, yMin, yMax, height, lines: [{y, text}], series: [{name, colour, dash, points, x, y, low, high}]
// points: no line between them. Two points are no curve: where no line has more, the numbers are shown instead, unless
// options.few says that two points belong on a chart.
function lineChart(options) {
  const series = options.series.filter((line) => line.y.some(isNumber));
  if (!series.length) return null;
  if (!options.few && series.every((line) => line.y.filter(isNumber).length <= 2)) return fewPoints(options, series);
  const all = series.flatMap((line) => [...line.y, ...(line.low || []), ...(line.high || [])]).concat((options.lines || []).map((l) => l.y));
  const [yLow, yHigh] = extent(all, { min: options.yMin, max: options.yMax, percent: options.percent });
  const [xLow, xHigh] = extent(series.flatMap((line) => line.x), { min: options.xMin });
  const draw = (plot, width) => {
    const height = options.height || 210;
    const x = (v) => MARGIN.left + ((v - xLow) / (xHigh - xLow)) * (width - MARGIN.left - MARGIN.right);
    const y = (v) => height - MARGIN.bottom - ((v - yLow) / (yHigh - yLow)) * (height - MARGIN.top - MARGIN.bottom);
    const node = s("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", tabindex: "0", "aria-label": spoken(options, series) },
      axes(options, width, height, x, y, options.xTicks || ticks(xLow, xHigh, Math.min(width / 70, 8)), ticks(yLow, yHigh, 4)),
      (options.lines || []).map((l) => [
        s("line", { class: "reference", x1: MARGIN.left, x2: width - MARGIN.right, y1: y(l.y), y2: y(l.y) }),
        s("text", { class: "tick", x: width - MARGIN.right, y: y(l.y) - 4, "text-anchor": "end" }, l.text)]).flat(),
      series.map((line) => drawLine(line, x, y)).flat());
    follow(plot, node, series, x, y, options);
    return node;
  };
  return frame({ ...options, legend: legend(series), table: () => numbers(options, series) }, draw);
}

// First and last value of each line, as text.
function fewPoints(options, series) {
  const show = (v) => (options.percent ? percent(v, 1) : figure(v));
  const at = (v) => `${options.xLabel || "x"} ${options.xText ? options.xText(v) : tick(v)}`;
  const items = series.map((line) => {
    const known = line.x.map((v, i) => i).filter((i) => isNumber(line.y[i]));
    return h("li", {}, series.length > 1 || line.name !== options.title ? h("span", { class: "note" }, line.name) : null,
      h("b", {}, known.map((i) => show(line.y[i])).join(" → ")), h("span", { class: "note" }, known.map((i) => at(line.x[i])).join(" → ")));
  });
  return h("figure", { class: "chart few" }, h("figcaption", {}, h("strong", {}, options.title), options.note ? h("span", { class: "note" }, options.note) : null),
    h("ul", {}, items));
}

function drawLine(line, x, y) {
  const out = [];
  const stroke = `c${line.colour}${line.dash ? " dashed" : ""}`;
  if (line.low && !line.points) {
    const shown = line.x.map((v, i) => i).filter((i) => isNumber(line.low[i]) && isNumber(line.high[i]));
    const path = shown.map((i, n) => `${n ? "L" : "M"}${x(line.x[i]).toFixed(1)},${y(line.high[i]).toFixed(1)}`).join("") +
      shown.reverse().map((i) => `L${x(line.x[i]).toFixed(1)},${y(line.low[i]).toFixed(1)}`).join("");
    if (path) out.push(s("path", { class: `band c${line.colour}`, d: `${path}Z` }));
  }
  if (line.low && line.points)
    line.x.forEach((v, i) => isNumber(line.low[i]) && out.push(s("line", { class: `whisker ${stroke}`, x1: x(v), x2: x(v), y1: y(line.low[i]), y2: y(line.high[i]) })));
  let path = "", pen = "M";
  line.x.forEach((v, i) => {
    if (!isNumber(line.y[i])) { pen = "M"; return; }
    path += `${pen}${x(v).toFixed(1)},${y(line.y[i]).toFixed(1)}`;
    pen = "L";
  });
  if (!line.points) out.push(s("path", { class: `line ${stroke}`, d: path }));
  if (line.points || line.x.length <= 12)
    line.x.forEach((v, i) => isNumber(line.y[i]) && out.push(s("circle", { class: `point ${stroke}`, cx: x(v), cy: y(line.y[i]), r: line.points ? 4.5 : 3 })));
  return out;
}

// The point under the pointer, or the one the arrow keys have reached, with all series' values there.
function follow(plot, node, series, x, y, options) {
  const places = [...new Set(series.flatMap((line) => line.x.filter((v, i) => isNumber(line.y[i]))))].sort((a, b) => a - b);
  const cross = s("line", { class: "cross", y1: MARGIN.top, y2: node.viewBox.baseVal.height - MARGIN.bottom, visibility: "hidden" });
  const tip = h("div", { class: "tip", role: "status", hidden: true });
  let at = -1;
  node.append(cross);
  queueMicrotask(() => plot.append(tip));
  const show = (index) => {
    at = Math.max(0, Math.min(index, places.length - 1));
    const place = places[at];
    cross.setAttribute("x1", x(place));
    cross.setAttribute("x2", x(place));
    cross.setAttribute("visibility", "visible");
    const near = series.flatMap((line) => {
      const i = nearest(line.x, place);
      const tolerance = line.points ? 1e-9 : (places[places.length - 1] - places[0]) / Math.max(line.x.length - 1, 1) / 2;
      return i >= 0 && isNumber(line.y[i]) && Math.abs(line.x[i] - place) <= tolerance + 1e-9 ? [[line, line.y[i]]] : [];
    });
    tip.replaceChildren(h("b", {}, `${options.xLabel || "x"} ${options.xText ? options.xText(place) : tick(place)}`),
      ...near.map(([line, v]) => h("span", {}, h("i", { class: `key c${line.colour}` }), `${line.name}  ${options.percent ? percent(v, 1) : figure(v)}`)));
    tip.hidden = false;
    tip.style.left = `${Math.min(Math.max(x(place) + 10, 0), Math.max(plot.clientWidth - tip.offsetWidth - 4, 0))}px`;
  };
  const hide = () => { tip.hidden = true; cross.setAttribute("visibility", "hidden"); };
  node.addEventListener("pointermove", (event) => {
    const box = node.getBoundingClientRect();
    const px = ((event.clientX - box.left) / box.width) * node.viewBox.baseVal.width;
    show(nearest(places.map(x), px));
  });
  node.addEventListener("pointerleave", hide);
  node.addEventListener("blur", hide);
  node.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (move === undefined) return;
    event.preventDefault();
    show(move === -Infinity ? 0 : move === Infinity ? places.length - 1 : at + move);
  });
}

function nearest(values, wanted) {
  let best = -1;
  values.forEach((v, i) => { if (isNumber(v) && (best < 0 || Math.abs(v - wanted) < Math.abs(values[best] - wanted))) best = i; });
  return best;
}

function spoken(options, series) {
  const show = (v) => (options.percent ? percent(v, 1) : figure(v));
  return `${options.title}. ` + series.map((line) => {
    const known = line.y.filter(isNumber);
    return known.length > 1 && !line.points ? `${line.name}: from ${show(known[0])} to ${show(known[known.length - 1])}` : `${line.name}: ${known.map(show).join(", ")}`;
  }).join("; ");
}

function numbers(options, series) {
  const rows = series.flatMap((line) => line.x.map((v, i) => ({ name: line.name, x: v, y: line.y[i], low: line.low?.[i], high: line.high?.[i] }))).filter((r) => isNumber(r.y));
  const ranged = rows.some((r) => isNumber(r.low));
  return table([{ title: "series", key: "name" }, { title: options.xLabel || "x", key: "x", numeric: true }, { title: "value", key: "y", numeric: true },
    ...(ranged ? [{ title: "95% low", key: "low", numeric: true }, { title: "high", key: "high", numeric: true }] : [])], rows.slice(0, 400), { label: options.title });
}

// options: title, note, xLabel, rows: [{name, value, low, high, colour, ghost: {value, name}}], percent, line: {x, text}
function dotPlot(options) {
  const rows = options.rows.filter((r) => isNumber(r.value));
  if (!rows.length) return null;
  const [low, high] = extent(rows.flatMap((r) => [r.value, r.low, r.high, r.ghost?.value]).concat(options.line ? [options.line.x] : []), { min: options.xMin, max: options.xMax });
  const show = (v) => (options.percent ? percent(v, 1) : figure(v));
  const draw = (plot, width) => {
    const gap = 30, left = Math.min(16 + 8.4 * Math.max(...rows.map((r) => r.name.length)), width * 0.38), fits = Math.floor((left - 16) / 7.6), right = width < 480 ? 58 : 176;
    const height = rows.length * gap + 46;
    const x = (v) => left + ((v - low) / (high - low)) * (width - left - right);
    return s("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `${options.title}. ` + rows.map((r) => `${r.name} ${show(r.value)}`).join("; ") },
      ticks(low, high, Math.max((width - left - right) / 90, 2)).map((v) => [
        s("line", { class: "grid", x1: x(v), x2: x(v), y1: 4, y2: height - 36 }),
        s("text", { class: "tick", x: x(v), y: height - 20, "text-anchor": "middle" }, options.percent ? percent(v) : tick(v))]).flat(),
      options.line ? s("line", { class: "reference", x1: x(options.line.x), x2: x(options.line.x), y1: 0, y2: height - 36 }) : null,
      rows.map((r, i) => {
        const y = 18 + i * gap;
        const range = isNumber(r.low) ? width < 480 ? show(r.value) : `${show(r.value)}   ${show(r.low)} to ${show(r.high)}` : show(r.value);
        return [
          s("text", { class: "name", x: left - 10, y: y + 4, "text-anchor": "end" }, shorten(r.name, fits), s("title", {}, r.name)),
          isNumber(r.low) ? s("line", { class: `whisker c${r.colour || 1}`, x1: x(r.low), x2: x(r.high), y1: y, y2: y }) : null,
          r.ghost && isNumber(r.ghost.value) ? s("path", { class: "ghost", d: `M${x(r.ghost.value)},${y - 5}l5,5l-5,5l-5,-5Z` }, s("title", {}, `${r.ghost.name}: ${show(r.ghost.value)}`)) : null,
          s("circle", { class: `point c${r.colour || 1}`, cx: x(r.value), cy: y, r: 5 }),
          s("text", { class: "value", x: width - right + 12, y: y + 4 }, range)];
      }).flat(),
      s("text", { class: "label", x: left, y: height - 4 }, options.xLabel || ""));
  };
  const body = () => table([{ title: "", key: "name" }, { title: options.xLabel || "value", key: "value", numeric: true }, { title: "95% low", key: "low", numeric: true },
    { title: "high", key: "high", numeric: true }, { title: "control", cell: (r) => r.ghost?.value, numeric: true }], rows, { label: options.title });
  return frame({ ...options, table: body, legend: rows.some((r) => isNumber(r.ghost?.value)) ? h("ul", { class: "legend" }, h("li", {}, h("i", { class: "key dot c1" }), "policy, 95% interval"), h("li", {}, h("i", { class: "key ghostkey" }), "its control")) : null }, draw);
}

const shorten = (text, limit) => (text.length <= limit ? text : `${text.slice(0, Math.max(limit - 1, 1))}…`);

// nodes with a depth, edges between them; parents left of children. An edge that passes columns in between has a slot of
// its own in each of them, shared by all edges to one child, so that no edge runs behind a box.
function layers(data) {
  const depth = new Map(data.nodes.map((node) => [node.name, node.depth]));
  const columns = [];
  const place = (at, item) => { if (!(columns[at] ||= []).some((other) => other.key === item.key)) columns[at].push(item); };
  for (const node of data.nodes) place(node.depth, { key: node.name, node });
  const paths = data.edges.map(([parent, child]) => {
    const keys = [parent];
    for (let at = depth.get(parent) + 1; at < depth.get(child); at++) { keys.push(`${at}>${child}`); place(at, { key: `${at}>${child}` }); }
    return [...keys, child];
  });
  const before = new Map();
  for (const keys of paths) for (let i = 1; i < keys.length; i++) before.set(keys[i], [...(before.get(keys[i]) || []), keys[i - 1]]);
  for (let at = 1; at < columns.length; at++) { // boxes in the order of their parents: fewer edges cross
    const rank = new Map(columns[at - 1].map((item, i) => [item.key, (i + 0.5) / columns[at - 1].length]));
    const score = (item) => { const own = (before.get(item.key) || []).map((key) => rank.get(key)).filter(isNumber); return own.length ? own.reduce((a, b) => a + b, 0) / own.length : 0.5; };
    columns[at] = columns[at].map((item) => [score(item), item]).sort((a, b) => a[0] - b[0]).map(([, item]) => item);
  }
  return { columns, paths };
}

function tree(data) {
  const { columns, paths } = layers(data);
  const SLOT = 0.45; // of a box, for an edge that passes
  const weight = (item) => (item.node ? 1 : SLOT);
  const heaviest = Math.max(...columns.map((column) => column.reduce((sum, item) => sum + weight(item), 0)));
  const draw = (plot, width) => {
    const upright = width < 130 * columns.length;
    const gap = 34, tall = 52;
    const w = upright ? Math.min(150, (width - 8) / heaviest - 8) : Math.min(150, (width - 4) / columns.length - gap);
    const height = upright ? columns.length * (tall + gap) - gap + 8 : heaviest * (tall + 14) + 8;
    const across = upright ? width : height;
    const at = new Map(); // key -> the middle of its box or slot
    columns.forEach((column, depth) => {
      const unit = across / column.reduce((sum, item) => sum + weight(item), 0);
      const along = upright ? depth * (tall + gap) + 4 + tall / 2 : 2 + w / 2 + depth * ((width - w - 4) / Math.max(columns.length - 1, 1));
      let used = 0;
      for (const item of column) {
        const middle = (used + weight(item) / 2) * unit;
        used += weight(item);
        at.set(item.key, upright ? [middle, along] : [along, middle]);
      }
    });
    const half = upright ? tall / 2 : w / 2;
    const edges = paths.map((keys) => {
      let d = "";
      for (let i = 1; i < keys.length; i++) {
        const [ax, ay] = at.get(keys[i - 1]), [bx, by] = at.get(keys[i]);
        const last = i === keys.length - 1 ? 7 : 0; // room for the head
        const [x1, y1, x2, y2] = upright ? [ax, ay + half, bx, by - half - last] : [ax + half, ay, bx - half - last, by];
        const bend = upright ? `C${x1},${(y1 + y2) / 2} ${x2},${(y1 + y2) / 2}` : `C${(x1 + x2) / 2},${y1} ${(x1 + x2) / 2},${y2}`;
        d += `${i === 1 ? "M" : "L"}${x1},${y1}${bend} ${x2},${y2}`;
      }
      return s("path", { class: "edge", d, "marker-end": "url(#arrow-head)" });
    });
    const boxes = data.nodes.map((node) => {
      const [mx, my] = at.get(node.name), x = mx - w / 2, y = my - tall / 2;
      const below = isNumber(node.accuracy) ? `${percent(node.accuracy, 1)} held out` : isNumber(node.pairs) ? `${percent(node.pairs, 1)} of pairs` : node.kind;
      return s("a", { href: `#stage-${node.name}`, "aria-label": `${node.name}, ${below}` }, s("g", { class: node.complete ? "node" : "node open" },
        s("rect", { x, y, width: w, height: tall, rx: 7 }),
        s("text", { class: "name", x: x + 10, y: y + 21 }, shorten(node.name, Math.floor((w - 14) / 7.4))),
        s("text", { class: "tick", x: x + 10, y: y + 39 }, w < 110 ? below.split(" ")[0] : node.complete ? below : "not complete")));
    });
    const head = s("defs", {}, s("marker", { id: "arrow-head", viewBox: "0 0 8 8", refX: 1, refY: 4, markerWidth: 7, markerHeight: 7, orient: "auto" }, s("path", { class: "head", d: "M0,0L8,4L0,8Z" })));
    return s("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "group", "aria-label": `Lineage: ${data.edges.map(([a, b]) => `${b} from ${a}`).join(", ")}` }, head, edges, boxes);
  };
  return frame({ title: "Which model came from which", wide: true, note: "an arrow runs from a parent to what was trained or evaluated from it; each box links to its stage",
    table: () => table([{ title: "stage", key: "name" }, { title: "kind", key: "kind" }, { title: "made from", cell: (n) => data.edges.filter((e) => e[1] === n.name).map((e) => e[0]).join(", ") || "–" },
      { title: "first output's hash", key: "hash" }], data.nodes) }, draw);
}
