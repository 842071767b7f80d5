// The views: each asks for what it shows and draws it. A view's argument is what stands after the slash in the address.

import { decisionMade } from "./feed.js";
import { engines } from "./engines.js";
import { forecasts } from "./forecasts.js";
import { ask, byId, fill, json, make, number, percent, right, row, say, some } from "./page.js";
import { program } from "./program.js";
import { programs } from "./programs.js";

async function tenants() {
  const found = await json("/shares");
  say(byId("gap"), found.gap_max_token_s === null ? ""
    : `Largest gap in weighted service so far between tenants that waited at the same time: ${some(found.gap_max_token_s, "token-second")}.`);
  const none = row(make("td", "No tenant has had a program yet.", { colspan: 6, class: "why" }));
  fill(byId("tenants"), found.data.length ? found.data.map((t) => row(
    make("th", t.tenant, { scope: "row" }), right(String(t.weight)), right(percent(t.service_share)),
    number(t.programs), number(t.steps_open), number(t.context_tokens))) : [none]);
}

let shownGraph = "";

async function graphs(chosen) {
  const found = await json("/graphs");
  byId("graphs").replaceChildren(...found.data.map((g) => {
    const item = make("li");
    const at = `${encodeURIComponent(g.tenant)}/${encodeURIComponent(g.name)}`;
    const link = make("a", g.name, { href: `#/graphs/${at}` });
    if (at === chosen) link.setAttribute("aria-current", "true");
    item.append(link, make("span", ` ${g.kind}, ${some(g.nodes, "node")}, ${g.tenant}`, { class: "why" }));
    return item;
  }));
  if (!found.data.length) byId("graphs").append(make("li", "No workflow is known yet."));
  if (!chosen) {
    byId("graph").hidden = true;
    return;
  }
  const image = byId("graph-image");
  const drawn = await (await ask(`/graphs/${chosen}`)).blob();
  URL.revokeObjectURL(shownGraph);
  shownGraph = URL.createObjectURL(drawn);
  image.src = shownGraph;
  const name = decodeURIComponent(chosen);
  image.alt = `step graph of ${name}`;
  say(byId("graph-name"), name);
  await image.decode().catch(() => {});  // the next drawing may have replaced it
  byId("graph").hidden = false;
}

async function decisions() {
  if (!byId("feed").childElementCount) byId("feed").append(make("li", "Nothing was decided yet.", { class: "why" }));
}

export { decisionMade };
export const views = { programs, program, engines, tenants, forecasts, graphs, decisions };
