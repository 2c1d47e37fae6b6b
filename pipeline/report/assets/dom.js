// Small helpers. Text goes in as text nodes only: nothing of a run is ever parsed as markup.

const SVG = "http://www.w3.org/2000/svg";

function build(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") for (const [k, v] of Object.entries(value)) node.style.setProperty(k, v);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat()) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}

const h = (tag, attributes, ...children) => build(document.createElement(tag), attributes, children);
const s = (tag, attributes, ...children) => build(document.createElementNS(SVG, tag), attributes, children);
const byId = (id) => document.getElementById(id);
const isNumber = (x) => typeof x === "number" && Number.isFinite(x);

function figure(x, digits = 3) {
  if (!isNumber(x)) return "–";
  if (Number.isInteger(x)) return x.toLocaleString("en");
  const size = Math.abs(x);
  if (size >= 1000) return Math.round(x).toLocaleString("en");
  if (size < 1e-3 || size >= 1e6) return x.toExponential(1).replace("e-", "e−").replace(/^-/, "−");
  return x.toFixed(size >= 100 ? 1 : digits).replace("-", "−");
}

const percent = (x, digits = 0) => (isNumber(x) ? `${(100 * x).toFixed(digits).replace("-", "−")}%` : "–");
const signed = (x) => (isNumber(x) ? `${x >= 0 ? "+" : "−"}${Math.abs(100 * x).toFixed(1)}` : "–");

function tokens(n) {
  if (!isNumber(n)) return "–";
  if (n >= 1e6) return `${(n / 1e6).toFixed(1)} M`;
  return n >= 1000 ? `${Math.round(n / 1000)} k` : String(n);
}

function seconds(x) {
  if (!isNumber(x)) return "–";
  return x >= 90 ? `${Math.floor(x / 60)} min ${Math.round(x % 60)} s` : `${Math.round(x)} s`;
}

// What cannot be seen is shown by its symbol: a space at an end, a line break, a control character.
const visible = (text) =>
  text.replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/[\u0000-\u001f\u007f]/g, (c) => String.fromCharCode(0x2400 + (c.charCodeAt(0) & 31)));

// head: [{title, key | cell(row), numeric, hint}]; a cell is text or a node. Columns without any value are left out.
function table(head, rows, options = {}) {
  const shown = rows.map((row) => head.map((column) => {
    const value = column.cell ? column.cell(row) : row[column.key];
    return (isNumber(value) ? figure(value) : value) ?? "–";
  }));
  const kept = head.map((_, i) => i).filter((i) => i === 0 || !rows.length || shown.some((cells) => cells[i] !== "–"));
  const cell = (value, i) => h(i === 0 ? "th" : "td", { scope: i === 0 ? "row" : null, class: head[i].numeric ? "num" : null }, value);
  const box = h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": options.label || "Table" },
    h("table", {},
      h("thead", {}, h("tr", {}, kept.map((i) => h("th", { scope: "col", class: head[i].numeric ? "num" : null, title: head[i].hint }, head[i].title)))),
      h("tbody", {}, rows.map((row, n) => h("tr", { class: options.mark && options.mark(row) ? "marked" : null }, kept.map((i) => cell(shown[n][i], i)))))));
  return h("div", { class: "table" }, box, moreColumns(box));
}

// A line under a table that is wider than its place, gone once its last column is in sight.
function moreColumns(box) {
  const hint = h("p", { class: "more-columns note", hidden: true, "aria-hidden": "true" }, "more columns: scroll the table sideways →");
  const update = () => { hint.hidden = box.scrollWidth - box.clientWidth - box.scrollLeft < 2; };
  box.addEventListener("scroll", update, { passive: true });
  new ResizeObserver(update).observe(box);
  return hint;
}

// title: [heading, its name in the navigation], or one text for both.
function section(id, title, ...children) {
  const [heading, short] = Array.isArray(title) ? title : [title, title];
  return h("section", { id, "data-short": short, "aria-labelledby": `${id}-title` }, h("h2", { id: `${id}-title` }, heading), ...children);
}
