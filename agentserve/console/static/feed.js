// The decision feed: the newest first, bounded; drawn as messages come, whichever view is open.

import { byId, clock, linkTo, make } from "./page.js";
import { reason } from "./stories.js";

const FEED_MAX = 300;

/** One line of a list of what happened. */
export function line(at, what, why, owner = "") {
  const item = make("li");
  item.append(make("time", clock(at)), make("b", what));
  const more = make("span", "", { class: "why" });
  if (owner) more.append(make("a", owner, { href: linkTo(owner) }), " ");
  more.append(why);
  item.append(more);
  return item;
}

export function decisionMade(at, decision, owner) {
  const list = byId("feed");
  if (!list.querySelector("time")) list.replaceChildren();
  list.prepend(line(at, `${decision.type}${decision.engine ? ` on ${decision.engine}` : ""}`, reason(decision), owner));
  while (list.children.length > FEED_MAX) list.lastChild.remove();
}
