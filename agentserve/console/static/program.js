// The view of one program: what it does, its steps, its gaps as forecast and as they were, and why.

import { line } from "./feed.js";
import { laneOf } from "./lane.js";
import { ask, back, by, byId, clock, doing, facts, fill, json, make, may, number, pathOf, right, row, say, seconds, some, sure, whole } from "./page.js";
import { remember } from "./programs.js";
import { detail, reason, stepsOf, stories } from "./stories.js";

const KV = {
  running: "in use by its step", pinned: "pinned", resting: "resting: there until the memory is needed", none: "none",
};

export async function program(key) {
  say(byId("program-name"), key);
  await remember(key);
  const p = await json(pathOf(key)).catch(() => null);
  const outlook = (p && p.outlook) || {};
  facts(byId("program-facts"), p ? told(p, outlook) : [["state", "not live any more"]]);
  showActions(key, Boolean(p));
  byId("program-lane").replaceChildren(laneOf(key, outlook));
  const story = stories.get(key) || [];
  fill(byId("steps"), stepsOf(story).map((s) => row(
    s.arrived ? clock(s.arrived) : "–", s.engine || "–", right(seconds(s.dispatched - s.arrived)), firstByte(s),
    right(seconds(s.ended - s.dispatched)), number(s.prompt), number(s.cached), number(s.output), s.tools || "",
  )));
  const gaps = (p && p.foretold) || [];
  const none = row(make("td", "None of its gaps was foretold yet: those are that others wait for, and one in a few besides.", { colspan: 5, class: "why" }));
  fill(byId("gaps"), gaps.length ? [...gaps].reverse().map((g) => row(
    g.tool, right(by(g.forecast_p50_s, g.horizon_s)), right(by(g.forecast_p90_s, g.horizon_s)), right(seconds(g.actual_s)), verdict(g))) : [none]);
  byId("story").replaceChildren(...[...story].reverse().map(({ at, event, decision }) => (
    event ? line(at, event.type, detail(event))
      : line(at, `${decision.type}${decision.engine ? ` on ${decision.engine}` : ""}`, reason(decision)))));
}

function told(p, outlook) {
  const left = outlook.steps_left === undefined ? "" : `about ${whole(Math.round(outlook.steps_left))} to come`;
  return [
    ["state", doing(p), p.tools.length ? `out: ${p.tools.map((t) => t.name).join(", ")}` : ""],
    ["tenant", p.tenant],
    ["workflow", p.workflow || "not named"],
    ["steps", whole(p.steps_done), left],
    ["context", some(p.context_tokens, "token")],
    ["KV", p.kv_tokens ? `${some(p.kv_tokens, "token")} on ${p.engine}` : "none", outlook.pinned_for_s === undefined ? (p.kv_tokens ? KV[p.kv] : "")
      : `pinned for ${seconds(outlook.pinned_for_s)} more`],
    ...(outlook.gap_s === undefined ? [] : [["away for", seconds(outlook.gap_s), back(outlook.gap_p50_s, outlook.gap_p90_s, outlook.gap_horizon_s)]]),
  ];
}

function firstByte(step) {
  if (!step.whole) return right(seconds(step.started - step.dispatched));
  return make("td", "whole", { class: "num why", title: "The client asked for no stream: nobody outside the engine sees where prefill ended" });
}

function verdict(gap) {
  if (gap.actual_s <= (gap.forecast_p50_s ?? gap.horizon_s)) return "in the sooner half";
  if (gap.actual_s <= (gap.forecast_p90_s ?? gap.horizon_s)) return "within nine in ten";
  return gap.forecast_p90_s === null ? "later than is told apart" : "later than nine in ten";
}

/** What an admin may do here; it is not there for others. */
function showActions(key, live) {
  const holder = byId("program-actions");
  if (!may.admin || !live) return holder.replaceChildren();
  if (holder.dataset.of === key && holder.childElementCount) return undefined;
  holder.dataset.of = key;
  const end = make("button", "End program", { type: "button" });
  end.addEventListener("click", async () => {
    if (await sure(`End ${key}? What is kept for it is let go; its running steps finish.`, "End it")) {
      await ask(pathOf(key), { method: "DELETE" });
    }
  });
  return holder.replaceChildren(end);
}
