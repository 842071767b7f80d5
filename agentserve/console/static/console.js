// The console: reads the admin API, follows its event stream, and draws.
// Rule: everything that came from a client is set as text, never as markup; nothing is fetched from elsewhere.

const ROOT = "/admin/v1";
const SPAN_S = 120;
const ROWS_MAX = 200;
const FEED_MAX = 300;
const KEPT_MAX = 2000;
const byId = (id) => document.getElementById(id);
const state = { key: sessionStorage.getItem("key") || "", programs: [], engines: [], tenants: [], lanes: new Map(), stories: new Map() };

class Refused extends Error {}

async function ask(path, options = {}) {
  const headers = state.key ? { authorization: `Bearer ${state.key}` } : {};
  const reply = await fetch(ROOT + path, { ...options, headers });
  if (reply.status === 401 || reply.status === 403) throw new Refused("the key is not accepted");
  if (!reply.ok) throw new Error(`${reply.status} from ${path}`);
  return reply;
}

function make(tag, text = "", attributes = {}) {
  const node = document.createElement(tag);
  node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const clock = (at) => new Date(at * 1000).toLocaleTimeString();

// -- what the stream tells

function note(message) {
  const { at, event, decisions } = message;
  const program = message.program || event.program;
  if (program) {
    const lane = state.lanes.get(program) || [];
    const last = lane[lane.length - 1];
    const enter = (what) => {
      if (last && !last.end) last.end = at;
      lane.push({ what, start: at, end: 0 });
      if (lane.length > 200) lane.shift();
    };
    if (event.type === "StepArrived") enter(decisions.some((d) => d.type === "Dispatch") ? "running" : "waiting");
    else if (event.type === "StepFinished" || event.type === "StepFailed" || event.type === "ClientGone") enter("gap");
    else if (event.type === "ProgramEnded" && last) last.end = at;
    keep(state.lanes, program, lane);
    tell(program, at, event.type, detail(event));
  }
  for (const decision of decisions) {
    const owner = decision.program || program || ownerOf(decision.step);
    if (decision.type === "Dispatch" && owner && owner !== program) {
      const lane = state.lanes.get(owner) || [];
      const last = lane[lane.length - 1];
      if (last && last.what === "waiting" && !last.end) {
        last.end = at;
        lane.push({ what: "running", start: at, end: 0 });
      }
    }
    const why = `${decision.reason}${decision.detail ? `: ${decision.detail}` : ""}`;
    if (owner) tell(owner, at, `${decision.type}${decision.engine ? ` on ${decision.engine}` : ""}`, why);
    feed(at, decision, owner || "", why);
  }
  if (event.type === "StepArrived") keep(steps, event.step, program);
}

const steps = new Map();
const ownerOf = (step) => (step ? steps.get(step) : undefined);

function keep(map, key, value) {
  map.delete(key);
  map.set(key, value);
  if (map.size > KEPT_MAX) map.delete(map.keys().next().value);
}

function detail(event) {
  if (event.type === "StepArrived") return `${whole.format(event.prompt_tokens)} prompt tokens, ${event.relation || "continues"}`;
  if (event.type === "StepFinished") {
    const tools = (event.tools || []).map((t) => t.name).join(", ");
    const cached = event.cached_tokens === undefined ? "" : `, ${whole.format(event.cached_tokens)} cached`;
    return `${whole.format(event.prompt_tokens)} in${cached}, ${whole.format(event.output_tokens)} out${tools ? `; calls ${tools}` : ""}`;
  }
  return event.reason || "";
}

function tell(program, at, what, why) {
  const story = state.stories.get(program) || [];
  story.push({ at, what, why });
  if (story.length > 300) story.shift();
  keep(state.stories, program, story);
  if (location.hash === `#program/${encodeURIComponent(program)}`) byId("story").prepend(line(at, what, why));
}

function line(at, what, why, owner = "") {
  const item = make("li");
  item.append(make("time", clock(at)), " ", make("b", what), " ");
  if (owner) item.append(make("a", owner, { href: `#program/${encodeURIComponent(owner)}` }), " ");
  item.append(make("span", why, { class: "why" }));
  return item;
}

function feed(at, decision, owner, why) {
  const list = byId("feed");
  list.prepend(line(at, `${decision.type}${decision.engine ? ` → ${decision.engine}` : ""}`, why, owner));
  while (list.children.length > FEED_MAX) list.lastChild.remove();
}

async function follow() {
  for (;;) {
    try {
      const reply = await ask("/events");
      byId("live").textContent = "live";
      const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        rest += value;
        const parts = rest.split("\n\n");
        rest = parts.pop();
        for (const part of parts) {
          const data = part.split("\n").find((l) => l.startsWith("data: "));
          if (data) note(JSON.parse(data.slice(6)));
        }
      }
    } catch (error) {
      if (error instanceof Refused) return signIn(error);
    }
    byId("live").textContent = "not connected, trying again";
    await new Promise((next) => setTimeout(next, 2000));
  }
}

// -- drawing

function drawPrograms() {
  const filters = new FormData(document.querySelector(".filters"));
  const text = String(filters.get("text")).toLowerCase();
  const wanted = filters.get("state");
  const shown = state.programs.filter((p) => (!wanted || p.state === wanted)
    && (!text || [p.key, p.tenant, p.workflow, p.engine].some((v) => String(v || "").toLowerCase().includes(text))));
  byId("count").textContent = `${whole.format(shown.length)} of ${whole.format(state.programs.length)}`;
  const rows = shown.slice(0, ROWS_MAX).map((p) => {
    const row = make("tr");
    const name = make("td");
    name.append(make("a", p.id, { href: `#program/${encodeURIComponent(p.key)}` }));
    const lane = make("td", "", { class: "wide" });
    lane.append(drawLane(p.key));
    row.append(name, make("td", p.tenant), make("td", p.state), make("td", whole.format(p.steps_done), { class: "num" }),
      make("td", whole.format(p.context_tokens), { class: "num" }), make("td", p.engine || "–"), lane);
    return row;
  });
  byId("programs").replaceChildren(...rows);
}

function drawLane(program) {
  const lane = make("div", "", { class: "lane", role: "img", "aria-label": "timeline of the last two minutes" });
  const now = Date.now() / 1000;
  for (const part of state.lanes.get(program) || []) {
    const start = Math.max(part.start, now - SPAN_S);
    const end = part.end || now;
    if (end <= start) continue;
    const mark = make("i", "", { class: part.what, title: `${part.what} ${(end - part.start).toFixed(1)} s` });
    mark.style.left = `${(100 * (start - now + SPAN_S)) / SPAN_S}%`;
    mark.style.width = `${Math.max((100 * (end - start)) / SPAN_S, 0.4)}%`;
    lane.append(mark);
  }
  return lane;
}

function drawEngines() {
  byId("engines").replaceChildren(...state.engines.map((e) => {
    const box = make("div", "", { class: "engine" });
    const title = make("h3", `${e.id} `);
    title.append(make("span", e.state, { class: e.state === "up" ? "up" : "down" }));
    const held = state.programs.filter((p) => p.engine === e.id);
    const capacity = e.kv_tokens || Math.max(1, ...held.map((p) => p.kv_tokens || 0));
    const sum = (rows) => rows.reduce((total, p) => total + (p.kv_tokens || p.context_tokens || 0), 0);
    const bar = make("div", "", { class: "bar", role: "img", "aria-label": "KV memory" });
    for (const [kind, rows] of [["running", held.filter((p) => p.state === "running")], ["gap", held.filter((p) => p.state !== "running")]]) {
      const part = make("i", "", { class: kind, title: `${kind === "gap" ? "kept for programs in gaps" : "running"}: ${whole.format(sum(rows))} tokens` });
      part.style.width = `${Math.min((100 * sum(rows)) / capacity, 100)}%`;
      bar.append(part);
    }
    const facts = `${e.kind} ${e.version || ""} · ${e.models.join(", ")} · KV ${e.kv_tokens ? whole.format(e.kv_tokens) : "unknown"} tokens · `
      + `${e.steps_open} steps open, ${e.waiting ?? "?"} waiting in the engine · ${whole.format(e.steps)} steps so far, ${e.failures} failures`;
    box.append(title, bar, make("p", facts), make("p", e.trouble || "", { class: "down" }));
    return box;
  }));
}

function drawTenants() {
  const sums = new Map();
  for (const p of state.programs) {
    const sum = sums.get(p.tenant) || { programs: 0, open: 0, context: 0 };
    sum.programs += 1;
    sum.open += p.steps_open;
    sum.context += p.context_tokens;
    sums.set(p.tenant, sum);
  }
  byId("tenants").replaceChildren(...[...sums].sort().map(([tenant, s]) => {
    const row = make("tr");
    row.append(make("td", tenant), make("td", whole.format(s.programs)), make("td", whole.format(s.open)), make("td", whole.format(s.context)));
    return row;
  }));
}

function drawProgram(key) {
  byId("program-name").textContent = key;
  const p = state.programs.find((row) => row.key === key);
  byId("program-facts").textContent = p
    ? `${p.state}, ${p.steps_done} steps, ${whole.format(p.context_tokens)} tokens of context, on ${p.engine || "no engine"}${p.tools.length ? `; out: ${p.tools.map((t) => t.name || t).join(", ")}` : ""}`
    : "not live any more";
  const story = [...(state.stories.get(key) || [])].reverse();
  byId("story").replaceChildren(...story.map((s) => line(s.at, s.what, s.why)));
}

function show() {
  const [view, rest] = (location.hash.slice(1) || "programs").split("/");
  for (const section of document.querySelectorAll("main section")) section.hidden = section.id !== `view-${view}`;
  for (const link of document.querySelectorAll("nav a")) {
    link.toggleAttribute("aria-current", link.hash === `#${view}`);
  }
  if (view === "programs") drawPrograms();
  else if (view === "engines") drawEngines();
  else if (view === "tenants") drawTenants();
  else if (view === "program") drawProgram(decodeURIComponent(rest || ""));
}

async function refresh() {
  for (;;) {
    try {
      if (!document.hidden) {
        const [programs, engines] = await Promise.all([ask("/programs?limit=1000"), ask("/engines")]);
        state.programs = (await programs.json()).data;
        state.engines = (await engines.json()).data;
        if (!location.hash.startsWith("#program/") && byId("signin").hidden) show();
      }
    } catch (error) {
      if (error instanceof Refused) return signIn(error);
    }
    await new Promise((next) => setTimeout(next, 1000));
  }
}

function signIn(error) {
  for (const section of document.querySelectorAll("main section")) section.hidden = section.id !== "signin";
  byId("refused").textContent = state.key ? error.message : "";
  byId("live").textContent = "signed out";
}

document.querySelector("#signin form").addEventListener("submit", (event) => {
  event.preventDefault();
  state.key = String(new FormData(event.target).get("key"));
  sessionStorage.setItem("key", state.key);
  byId("signin").hidden = true;
  show();
  start();
});
document.querySelector(".filters").addEventListener("input", drawPrograms);
document.querySelector(".filters").addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", show);

function start() {
  refresh();
  follow();
}

show();
start();
