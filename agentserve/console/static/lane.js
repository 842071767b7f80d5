// A program's timeline, drawn from its lane: what it did in the last two minutes, where its KV was pinned, and when a
// gap is forecast to end.

import { make, part, seconds } from "./page.js";
import { lanes } from "./stories.js";

const SPAN_S = 120;
const WORDS = {
  waiting: "waits", prefill: "prefill", decode: "decode", model: "prefill and decode, not told apart", tools: "tools run",
  person: "a person's turn",
};

export function laneOf(program, outlook = {}) {
  const lane = make("div", "", { class: "lane", role: "img" });
  const now = Date.now() / 1000;
  const ahead = outlook.gap_p90_s > outlook.gap_s ? Math.min(outlook.gap_p90_s - outlook.gap_s, SPAN_S / 4) : 0;
  const span = SPAN_S + ahead;
  const at = (time) => Math.max(0, Math.min(1, (time - now + SPAN_S) / span));
  const sums = new Map();
  for (const piece of lanes.get(program) || []) {
    const end = piece.end || now;
    if (end < now - SPAN_S) continue;
    lane.append(part(piece.what, at(piece.start), at(end), `${WORDS[piece.what]} ${seconds(end - piece.start)}`));
    if (piece.pinned) lane.append(part("pinned", at(piece.pinned), at(Math.min(piece.unpinned, end)), "KV pinned"));
    sums.set(piece.what, (sums.get(piece.what) || 0) + end - Math.max(piece.start, now - SPAN_S));
  }
  if (ahead) lane.append(part("ahead", at(now), at(now + ahead), `nine in ten are back within ${seconds(outlook.gap_p90_s)}`));
  const said = [...sums].map(([what, sum]) => `${WORDS[what]} ${seconds(sum)}`).join(", ");
  lane.setAttribute("aria-label", `last two minutes: ${said || "nothing seen yet"}`);
  return lane;
}
