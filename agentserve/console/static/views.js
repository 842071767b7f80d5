// The views: each asks for what it shows and draws it. `program` is the argument of the address, after the slash.

import { ask, byId, facts, linkTo, clock, make, number, part, row, seconds, whole } from "./page.js";
import { laneOf } from "./lane.js";
import { detail, reason, recall, stepsOf, stories } from "./stories.js";

const ROWS_MAX = 200;
const FEED_MAX = 300;
const RECALLED_AT_ONCE = 8;
const json = async (path) => (await ask(path)).json();

async function programs() {
  const form = new FormData(document.querySelector(".filters"));
  const asked = new URLSearchParams({ limit: ROWS_MAX });
  for (const name of ["q", "state"]) if (form.get(name)) asked.set(name, form.get(name));
  const [found, glance] = await Promise.all([json(`/programs?${asked}`), json("/summary")]);
  const shown = found.data.length < found.matching ? `the latest ${whole(found.data.length)} of ` : "";
  byId("count").textContent = `${shown}${whole(found.matching)} of ${whole(found.total)} live`;
  const older = found.data.filter((p) => !recalled.has(p.key) && p.last_seen_s < 120).slice(0, RECALLED_AT_ONCE);
  await Promise.all(older.map((p) => remember(p.key)));
  const kept = glance.balance || {};
  facts(byId("glance"), [
    ["waiting", `${whole(glance.steps_waiting)} steps`],
    ["running", `${whole(glance.steps_running)} steps`],
    ["engines up", `${glance.engines_up} of ${glance.engines}`],
    ...(kept.pins_settled
      ? [["prefill that pins spared", seconds(kept.pins_saved_s)], ["price of their memory", seconds(kept.pins_cost_s)]]
      : []),
    ...(glance.scheduler === "ok" ? [] : [["scheduler", "failed: requests are placed plainly"]]),
  ]);
  byId("programs").replaceChildren(...found.data.map((p) => {
    const name = make("th", "", { scope: "row" });
    name.append(make("a", p.id, { href: linkTo(p.key) }));
    const lane = make("td", "", { class: "wide" });
    lane.append(laneOf(p.key));
    const state = p.state === "idle" ? "tools run" : p.state === "turn_done" ? "a person's turn" : p.state;
    return row(name, p.tenant, state, number(p.steps_done), number(p.context_tokens), p.engine || "–", lane);
  }));
}

const recalled = new Set();
const pathOf = (key) => `/programs/${key.split("/").map(encodeURIComponent).join("/")}`;

/** What happened to a program before this page was opened, once. */
async function remember(key) {
  if (recalled.has(key)) return;
  recalled.add(key);
  const told = await json(`${pathOf(key)}/decisions`).catch(() => ({ story: [] }));
  if (told.story.length) recall(key, told.story);
}

async function program(key) {
  byId("program-name").textContent = key;
  const path = pathOf(key);
  await remember(key);
  const p = await json(path).catch(() => null);
  const outlook = (p && p.outlook) || {};
  facts(byId("program-facts"), p ? [
    ["state", p.state === "idle" ? "tools run" : p.state],
    ["tenant", p.tenant],
    ["workflow", p.workflow || "not named"],
    ["engine", p.engine || "none"],
    ["steps", `${whole(p.steps_done)}, about ${whole(outlook.steps_left)} to come`],
    ["context", `${whole(p.context_tokens)} tokens`],
    ...(p.tools.length ? [["out", p.tools.map((t) => t.name).join(", ")]] : []),
    ...(outlook.gap_s === undefined ? [] : [["away for", `${seconds(outlook.gap_s)}; half are back by ${seconds(outlook.gap_p50_s)}, nine in ten by ${seconds(outlook.gap_p90_s)}`]]),
    ...(outlook.pinned_for_s === undefined ? [] : [["KV pinned for", seconds(outlook.pinned_for_s)]]),
  ] : [["state", "not live any more"]]);
  byId("program-lane").replaceChildren(laneOf(key, outlook));
  const story = stories.get(key) || [];
  byId("steps").replaceChildren(...stepsOf(story).map((s) => row(
    s.arrived ? clock(s.arrived) : "–", s.engine || "–", seconds(s.dispatched - s.arrived), seconds(s.started - s.dispatched),
    seconds(s.ended - s.dispatched), number(s.prompt), number(s.cached), number(s.output), s.tools || "",
  )));
  byId("story").replaceChildren(...[...story].reverse().map(({ at, event, decision }) => (
    event ? line(at, event.type, detail(event))
      : line(at, `${decision.type}${decision.engine ? ` on ${decision.engine}` : ""}`, reason(decision)))));
}

function line(at, what, why, owner = "") {
  const item = make("li");
  item.append(make("time", clock(at)), " ", make("b", what), " ");
  if (owner) item.append(make("a", owner, { href: linkTo(owner) }), " ");
  item.append(make("span", why, { class: "why" }));
  return item;
}

/** A decision for the feed; the newest stands first. */
export function decisionMade(at, decision, owner) {
  const list = byId("feed");
  list.prepend(line(at, `${decision.type}${decision.engine ? ` → ${decision.engine}` : ""}`, reason(decision), owner));
  while (list.children.length > FEED_MAX) list.lastChild.remove();
}

async function engines() {
  const [found, live, pinned] = await Promise.all([json("/engines"), json("/programs?limit=1000"), json("/pins?limit=1000")]);
  byId("engines").replaceChildren(...found.data.map((e) => engine(e, live.data, pinned.data)));
}

function engine(e, live, pinned) {
  const box = make("article", "", { class: "engine" });
  const title = make("h3", `${e.id} `);
  title.append(make("span", e.state, { class: e.state === "up" ? "up" : "down" }));
  const here = live.filter((p) => p.engine === e.id);
  const kept = new Set(pinned.filter((p) => p.engine === e.id).map((p) => `${p.tenant}/${p.program}`));
  const sum = (rows) => rows.reduce((total, p) => total + (p.kv_tokens || p.context_tokens || 0), 0);
  const kinds = [
    ["decode", "running", sum(here.filter((p) => p.steps_open))],
    ["pinned", "pinned", sum(here.filter((p) => !p.steps_open && kept.has(p.key)))],
    ["tools", "kept, may be reused", sum(here.filter((p) => !p.steps_open && !kept.has(p.key)))],
  ];
  const capacity = e.kv_tokens || Math.max(1, ...kinds.map(([, , tokens]) => tokens));
  const bar = make("div", "", { class: "bar", role: "img" });
  let from = 0;
  for (const [kind, words, tokens] of kinds) {
    const to = Math.min(1, from + tokens / capacity);
    if (tokens) bar.append(part(kind, from, to, `${words}: ${whole(tokens)} tokens`));
    from = to;
  }
  const said = kinds.map(([, words, tokens]) => `${whole(tokens)} ${words}`).join(", ");
  bar.setAttribute("aria-label", `KV tokens: ${said}`);
  box.append(title, bar, make("p", `KV of ${e.kv_tokens ? whole(e.kv_tokens) : "unknown size"}: ${said}`), make("p",
    `${e.kind} ${e.version || ""} · ${e.models.join(", ")} · ${e.steps_open} steps open, ${e.waiting ?? "?"} in its own queue · `
    + `${whole(e.steps)} steps so far, ${e.failures} failures`, { class: "why" }));
  if (e.trouble) box.append(make("p", e.trouble, { class: "down" }));
  return box;
}

async function tenants() {
  const found = await json("/shares");
  byId("gap").textContent = found.gap_max_token_s === null ? ""
    : `Largest gap in service so far between tenants that waited: ${whole(found.gap_max_token_s)} token-seconds.`;
  byId("tenants").replaceChildren(...found.data.map((t) => row(
    make("th", t.tenant, { scope: "row" }), String(t.weight), `${(100 * t.service_share).toFixed(1)} %`,
    number(t.programs), number(t.steps_open), number(t.context_tokens))));
}

const SVG = "http://www.w3.org/2000/svg";

function curve(points, tool) {
  const [width, height] = [240, 80];
  const x = (t) => (width * Math.log(t / points[0][0])) / Math.log(points[points.length - 1][0] / points[0][0]);
  const path = points.map(([t, alive], i) => `${i ? "L" : "M"}${x(t).toFixed(1)},${(height * (1 - alive)).toFixed(1)}`).join("");
  const drawn = document.createElementNS(SVG, "svg");
  drawn.setAttribute("viewBox", `-2 -4 ${width + 4} ${height + 22}`);
  drawn.setAttribute("role", "img");
  drawn.setAttribute("aria-label", `share of ${tool} calls still out, by time`);
  const add = (tag, attributes, text = "") => {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.textContent = text;
    drawn.append(node);
  };
  for (const t of [0.1, 1, 10, 100]) {
    add("line", { x1: x(t), x2: x(t), y1: 0, y2: height, class: "grid" });
    add("text", { x: x(t), y: height + 14, "text-anchor": "middle" }, t < 1 ? "0.1 s" : `${t} s`);
  }
  add("path", { d: path, class: "curve" });
  return drawn;
}

async function forecasts() {
  const found = await json("/forecasts");
  const cards = [...found.data].sort((a, b) => b.calls - a.calls).map((f) => {
    const card = make("article");
    card.append(make("h3", f.tool), curve(f.survival, f.tool), make("p",
      `half back in ${seconds(f.p50_s)}, nine in ten in ${seconds(f.p90_s)} · ${whole(f.calls)} calls · ${f.tenant}`, { class: "why" }));
    return card;
  });
  byId("forecasts").replaceChildren(...(cards.length ? cards : [make("p", "No tool was called yet.")]));
}

let shownGraph = "";

async function graphs(chosen) {
  const found = await json("/graphs");
  byId("graphs").replaceChildren(...found.data.map((g) => {
    const item = make("li");
    const at = `${encodeURIComponent(g.tenant)}/${encodeURIComponent(g.name)}`;
    item.append(make("a", g.name, { href: `#graphs/${at}` }), make("span", ` ${g.kind}, ${g.nodes} nodes, ${g.tenant}`, { class: "why" }));
    return item;
  }));
  if (!found.data.length) byId("graphs").append(make("li", "No workflow is known yet."));
  byId("graph").hidden = !chosen;
  if (!chosen) return;
  const image = byId("graph-image");
  const drawn = await (await ask(`/graphs/${chosen}`)).blob();
  URL.revokeObjectURL(shownGraph);
  shownGraph = URL.createObjectURL(drawn);
  image.src = shownGraph;
  const name = decodeURIComponent(chosen);
  image.alt = `step graph of ${name}`;
  byId("graph-name").textContent = name;
}

async function decisions() {}

export const views = { programs, program, engines, tenants, forecasts, graphs, decisions };
