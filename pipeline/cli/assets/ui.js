"use strict";
// What the server sends is shown as text only: samples are untrusted, and none of it becomes markup.

const EVERY_MS = 3000;
const SCALE = [1, 2, 3, 4, 5, 6, 7];
const state = { run: null, current: null, shownRuns: "" };
const at = (id) => document.getElementById(id);

function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  if (text !== null && text !== undefined) made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

async function called(path, body) {
  const how = body === undefined ? {} : {
    method: "POST", headers: { "Content-Type": "application/json", "X-Whetstone": "1" }, body: JSON.stringify(body),
  };
  const reply = await fetch(path, how);
  const value = await reply.json();
  if (!reply.ok) throw new Error(value.error);
  at("trouble").textContent = "";
  return value;
}

const reported = (work) => work.catch((error) => { at("trouble").textContent = error.message; });

function figure(stage) {
  if (stage.value === null) return stage.step === null ? "" : `step ${stage.step}`;
  const value = `${stage.figure.replaceAll("_", " ")} ${Number(stage.value).toFixed(3)}`;
  return stage.state === "complete" || stage.step === null ? value : `step ${stage.step}, ${value}`;
}

function runBox(run) {
  const box = element("article", null, { class: "run", "data-run": run.name });
  box.append(element("h2", run.name));
  const table = element("table");
  for (const stage of run.stages) {
    const row = element("tr");
    row.append(element("td", stage.name), element("td", stage.state, { class: "state" }), element("td", figure(stage)));
    table.append(row);
  }
  const buttons = element("div", null, { class: "buttons" });
  buttons.append(element("a", "Report", { href: `/report/${encodeURIComponent(run.name)}/`, class: "report" }));
  if (run.rate.length) {
    const rate = element("button", `Rate samples (${run.ratings} rated, ${run.comparisons} compared)`, { class: "rate" });
    rate.addEventListener("click", () => openDesk(run));
    buttons.append(rate);
  }
  box.append(table, buttons);
  return box;
}

async function listRuns() {
  const runs = await called("/api/runs");
  const seen = JSON.stringify(runs);
  if (seen === state.shownRuns) return;  // an unchanged list keeps its focus
  state.shownRuns = seen;
  const boxes = runs.map(runBox);
  at("runs").replaceChildren(...(boxes.length ? boxes : [element("p", "No runs yet.", { class: "note" })]));
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
}

function openDesk(run) {
  state.run = run.name;
  at("rate").hidden = false;
  at("rate-title").textContent = `Rate samples of ${run.name}`;
  at("stage").replaceChildren(...run.rate.map((name) => element("option", name, { value: name })));
  at("stage").value = run.rate[run.rate.length - 1];
  reported(showNext());
  at("rate").scrollIntoView();
}

function counted(counts) {
  at("counts").textContent = `${counts.ratings} rated, ${counts.comparisons} compared`;
}

async function showNext() {
  const mode = at("mode").value;
  const query = new URLSearchParams({ run: state.run, stage: at("stage").value });
  const reply = await called(`/api/${mode}?${query}`);
  counted(reply);
  state.current = reply.next;
  const desk = at("desk");
  if (!reply.next) {
    desk.replaceChildren(element("p", "Nothing left to rate here.", { class: "note", id: "done" }));
    at("hint").textContent = "";
  } else if (mode === "sample") {
    desk.replaceChildren(...oneAnswer(reply.next));
    at("hint").textContent = "Keys 1 to 7 rate, s skips. Written to ratings.jsonl of the run, for pool: of FeedME and reward_model.";
  } else {
    desk.replaceChildren(...twoAnswers(reply.next));
    at("hint").textContent = "Keys 1 and 2 choose, s skips. Written to comparisons.jsonl of the run, for pool: of reward_model and dpo.";
  }
  desk.dataset.shown = reply.next ? (mode === "sample" ? reply.next.key : reply.next.answers.map((a) => a.key).join("|")) : "";
}

function skipButton(keys) {
  const skip = element("button", "Skip", { id: "skip" });
  skip.addEventListener("click", () => send("skip", { keys }));
  return skip;
}

function oneAnswer(sample) {
  const buttons = element("div", null, { class: "buttons" });
  for (const rating of SCALE) {
    const button = element("button", String(rating), { "data-rating": String(rating) });
    button.addEventListener("click", () => send("rate", { key: sample.key, rating }));
    buttons.append(button);
  }
  buttons.append(skipButton([sample.key]));
  return [element("h3", "Prompt"), element("div", sample.prompt, { class: "text", id: "prompt" }),
    element("h3", "Answer"), element("div", sample.completion, { class: "text", id: "answer" }), buttons];
}

function twoAnswers(pair) {
  const answers = element("div", null, { class: "answers" });
  pair.answers.forEach((answer, i) => {
    const other = pair.answers[1 - i];
    const side = element("div");
    const better = element("button", `Answer ${i + 1} is better`, { "data-better": String(i) });
    better.addEventListener("click", () => send("prefer", { better: answer.key, worse: other.key }));
    side.append(element("div", answer.completion, { class: "text" }), better);
    answers.append(side);
  });
  const buttons = element("div", null, { class: "buttons" });
  buttons.append(skipButton(pair.answers.map((answer) => answer.key)));
  return [element("h3", "Prompt"), element("div", pair.prompt, { class: "text", id: "prompt" }), answers, buttons];
}

function send(what, body) {
  return reported(called(`/api/${what}`, { run: state.run, stage: at("stage").value, ...body }).then(showNext));
}

document.addEventListener("keydown", (event) => {
  if (at("rate").hidden || event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
  const selector = event.key === "s" ? "#skip" : at("mode").value === "sample"
    ? `[data-rating="${CSS.escape(event.key)}"]` : `[data-better="${CSS.escape(String(Number(event.key) - 1))}"]`;
  const button = /^[1-7s]$/.test(event.key) ? at("desk").querySelector(selector) : null;
  if (button) button.click();
});
at("stage").addEventListener("change", () => reported(showNext()));
at("mode").addEventListener("change", () => reported(showNext()));
reported(listRuns());
setInterval(() => reported(listRuns()), EVERY_MS);
