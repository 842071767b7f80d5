// The view of the engines: each one's KV as a bar by what it is for, its queue, and what an admin may do with it.

import { ask, byId, json, keyed, make, may, part, percent, say, some, sure, whole } from "./page.js";

const KINDS = [["shared", "shared"], ["decode", "running"], ["pinned", "pinned"], ["tools", "resting"]];

export async function engines() {
  const found = await json("/engines");
  keyed(byId("engines"), found.data, (e) => e.id, (e, old) => renew(old || box(e), e));
}

function box(e) {
  const made = make("article", "", { class: "engine" });
  const title = make("div", "", { class: "title" });
  const actions = make("div");
  if (may.admin) {
    const drain = make("button", "", { type: "button", class: "drain" });
    drain.addEventListener("click", async () => {
      const on = drain.dataset.on === "yes";
      if (on || await sure(`Drain ${e.id}? It gets nothing new; what runs there finishes.`, "Drain it")) {
        await ask(`/engines/${encodeURIComponent(e.id)}/${on ? "resume" : "drain"}`, { method: "POST" });
        await engines();
      }
    });
    actions.append(drain);
  }
  const name = make("h3", e.id);
  name.append(" ", make("span"));
  title.append(name, actions);
  made.append(title, make("div", "", { class: "bar", role: "img" }), make("dl", "", { class: "parts" }),
    make("p", "", { class: "why" }), make("p", "", { class: "down" }));
  return made;
}

const models = (e) => (e.models.length ? `${e.models.length === 1 ? "model" : "models"} ${e.models.join(", ")}` : "any model");

function renew(made, e) {
  const [title, bar, parts, more, trouble] = made.children;
  const badge = title.querySelector("span");
  say(badge, e.state);
  badge.className = e.state === "up" ? "up" : "down";
  const drain = title.querySelector("button");
  if (drain) {
    drain.dataset.on = e.state === "draining" ? "yes" : "";
    say(drain, e.state === "draining" ? "Resume" : "Drain");
    drain.setAttribute("aria-label", `${drain.textContent} ${e.id}`);
  }
  const sum = KINDS.reduce((total, [, kind]) => total + e.kv[kind], 0);
  const capacity = e.kv_tokens || Math.max(1, sum);
  const pieces = [];
  let from = 0;
  for (const [look, kind] of KINDS) {
    const to = Math.min(1, from + e.kv[kind] / capacity);
    if (to > from) pieces.push(part(look, from, to, `${kind}: ${some(e.kv[kind], "token")}`));
    from = to;
  }
  bar.replaceChildren(...pieces);
  const said = [...KINDS.map(([, kind]) => [kind, whole(e.kv[kind])]),
    ["free", e.kv_tokens ? whole(Math.max(e.kv_tokens - sum, 0)) : "–"],
    ["of", e.kv_tokens ? some(e.kv_tokens, "token") : "unknown"]];
  bar.setAttribute("aria-label", `KV tokens: ${said.map(([kind, tokens]) => `${tokens} ${kind}`).join(", ")}`);
  parts.replaceChildren(...said.map(([kind, tokens]) => {
    const pair = make("div");
    pair.append(make("dt", kind), make("dd", tokens));
    return pair;
  }));
  const used = e.kv_used_share === null ? "" : ` · it says that ${percent(e.kv_used_share)} of its KV is in use`;
  say(more, `${e.kind} ${e.version || ""} · ${models(e)} · ${some(e.steps_open, "step")} open, `
    + `${e.waiting ?? "?"} in its own queue · ${some(e.steps, "step")} so far, ${some(e.failures, "failure")}${used}`);
  say(trouble, e.trouble || "");
  trouble.hidden = !e.trouble;
  return made;
}
