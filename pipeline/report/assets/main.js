// Put the page together. Rollouts are read last: the page stands before they are parsed.

const report = JSON.parse(byId("report-data").textContent);
header(report);
if (report.live) liveBar(report.live);
const sections = (report.comparison
  ? [answerSection, sweepSection, frontierSection, traitSection, proxySection, lineageSection]
  : [seedsSection, resultSection, lineageSection, stageSections, monitorSection, settingsSection]).map((make) => make(report)).filter(Boolean);
byId("main").append(...sections);
byId("foot").append(h("p", {}, `Written by Whetstone. ${Object.entries(report.versions).map(([name, v]) => `${name} ${v}`).join(" · ")}`));

function navigation() {
  byId("nav").replaceChildren(...[...document.querySelectorAll("main > section")].map((node) => h("a", { href: `#${node.id}` }, node.dataset.short)));
}
navigation();
// On a narrow screen: fade the end of the links while more of them follow.
const continues = () => { const nav = byId("nav"); nav.classList.toggle("continues", nav.scrollWidth - nav.clientWidth - nav.scrollLeft > 2); };
byId("nav").addEventListener("scroll", continues, { passive: true });
new ResizeObserver(continues).observe(byId("nav"));

requestAnimationFrame(() => setTimeout(async () => {
  const data = JSON.parse(byId("rollout-data").textContent);
  if (data.count) {
    const rollouts = rolloutSection(data, report.opens_on || {});
    byId("main").append(rollouts);
    await rollouts.whenLoaded();
  }
  navigation();
  continues();
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
}));
