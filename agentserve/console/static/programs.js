// The view of all programs: the gateway at a glance, what is saved, filters, and a list of any length.

import { laneOf } from "./lane.js";
import { LongList } from "./list.js";
import { byId, doing, facts, json, linkTo, make, pathOf, percent, say, seconds, some, whole } from "./page.js";
import { recall } from "./stories.js";

const ROW_PX = 33; // as the style sheet says
const RECALLED_AT_ONCE = 8;
const RECALLED_MAX = 2000;
const recalled = new Set();

/** What happened to a program before this page was opened, once. */
export async function remember(key) {
  if (recalled.has(key)) return;
  recalled.add(key);
  if (recalled.size > RECALLED_MAX) recalled.delete(recalled.values().next().value);
  const told = await json(`${pathOf(key)}/decisions`).catch(() => ({ story: [] }));
  if (told.story.length) recall(key, told.story);
}

const filters = () => {
  const form = new FormData(document.querySelector(".filters"));
  return ["q", "state", "order"].filter((name) => form.get(name)).map((name) => [name, form.get(name)]);
};

async function load(offset, limit) {
  const found = await json(`/programs?${new URLSearchParams([...filters(), ["limit", limit], ["offset", offset]])}`);
  const older = found.data.filter((p) => !recalled.has(p.key) && p.last_seen_s < 120).slice(0, RECALLED_AT_ONCE);
  await Promise.all(older.map((p) => remember(p.key)));
  return found;
}

export function state(p) {
  return make("span", doing(p), { class: `state ${p.state}` });
}

function draw(p, old) {
  const made = old || newRow(p);
  const [, tenant, now, steps, context, engine, lane] = made.children;
  say(tenant, p.tenant);
  if (now.textContent !== doing(p)) now.replaceChildren(state(p));
  say(steps, whole(p.steps_done));
  say(context, whole(p.context_tokens));
  say(engine, p.engine || "–");
  lane.replaceChildren(laneOf(p.key));
  return made;
}

function newRow(p) {
  const made = make("tr");
  const name = make("th", "", { scope: "row" });
  name.append(make("a", p.id, { href: linkTo(p.key), title: p.id }));
  made.append(name, make("td"), make("td"), make("td", "", { class: "num" }), make("td", "", { class: "num" }), make("td"),
    make("td", "", { class: "wide" }));
  return made;
}

const list = new LongList(byId("programs-scroll"), byId("programs"), { rowPx: ROW_PX, keyOf: (p) => p.key, load, draw });

export async function programs() {
  const [found, glance] = await Promise.all([list.renew(), json("/summary")]);
  showGlance(glance);
  if (!found) return;
  const searched = filters().some(([name]) => name !== "order");
  say(byId("count"), searched ? `${whole(found.matching)} of ${whole(found.total)} live` : `${whole(found.total)} live`);
  byId("nothing").hidden = Boolean(found.matching);
  say(byId("nothing"), found.total ? "No program matches." : "No program is under way: none has called yet, or all are over.");
}

/** After a change of the filters: from the top, and told to who does not see it. */
export async function search() {
  list.top();
  await programs();
  if (list.last) say(byId("found"), `${some(list.last.matching, "program")} found`);
}

function showGlance(glance) {
  const kept = glance.balance || {};
  const direct = glance.direct || {};
  const over = direct.contexts_over_kv;
  facts(byId("glance"), [
    ["steps running", whole(glance.steps_running), `${whole(glance.steps_waiting)} waiting`],
    ["engines up", `${glance.engines_up} of ${glance.engines}`, glance.draining ? "draining: nothing new is taken" : ""],
    ["contexts over the engines' KV", over === undefined ? "–" : over > 0 && over < 0.01 ? "under 0.01 ×" : `${over.toFixed(2)} ×`,
      over === undefined ? "no engine's size is known" : over > 1 ? "direct, engines would thrash" : "everything fits"],
    ["spared against going direct", direct.steps ? `${direct.spared_s > 0 ? "at least " : ""}${seconds(direct.spared_s)}` : "–",
      direct.steps ? cached(direct) : "no step has returned yet"],
    ["pins, net", kept.pins_settled ? seconds(kept.pins_saved_s - kept.pins_cost_s) : "–",
      kept.pins_settled ? `${seconds(kept.pins_saved_s)} spared, ${seconds(kept.pins_cost_s)} its price` : "none was needed yet"],
    ...(glance.scheduler === "ok" ? [] : [["scheduler", "failed", "requests are placed plainly"]]),
  ]);
}

const cached = (d) => `${percent(d.cached_tokens / d.prompt_tokens)} cached, direct at most ${percent(d.direct_cached_tokens / d.prompt_tokens)}`;
