// What the event stream tells: each program's lane (what it did when) and its story (what was decided, and why).
// Rule: bounded, the least recently heard of goes first; it draws nothing. A pin stands from its decision until an
// Unpin, the program's return or end, its own end, or its engine's loss: as the gateway counts it for the engines' bars.

const KEPT_MAX = 2000;
const PARTS_MAX = 200;
const STORY_MAX = 300;

export const lanes = new Map();
export const stories = new Map();
const owners = new Map(); // of steps
const whole = new Set(); // steps whose reply comes in one piece
export let serial = 0; // of the latest message

function keep(map, key, value) {
  map.delete(key);
  map.set(key, value);
  if (map.size > KEPT_MAX) map.delete(map.keys().next().value);
}

/** From now on the program does something else. */
function enter(program, what, at) {
  const lane = lanes.get(program) || [];
  const last = lane[lane.length - 1];
  if (last && !last.end) {
    if (last.what === what) return;
    last.end = at;
  }
  if (what) lane.push({ what, start: at, end: 0, pinned: 0, unpinned: 0, engine: "" });
  if (lane.length > PARTS_MAX) lane.shift();
  keep(lanes, program, lane);
}

function happened(event, program, at, dispatched) {
  const sent = whole.has(event.step) ? "model" : "prefill";
  if (event.type === "StepArrived") enter(program, dispatched ? sent : "waiting", at);
  else if (event.type === "StepStarted" && sent === "prefill") enter(program, "decode", at);
  else if (event.type === "StepFinished") enter(program, event.final ? "" : event.turn_done ? "person" : "tools", at);
  else if (event.type === "StepFailed" || event.type === "ClientGone") enter(program, "tools", at);
  else if (event.type === "ProgramEnded") enter(program, "", at);
}

function decided(decision, program, at, now) {
  const lane = lanes.get(program) || [];
  const last = lane[lane.length - 1];
  if (!last) return;
  if (decision.type === "Dispatch" && last.what === "waiting") enter(program, whole.has(decision.step) ? "model" : "prefill", at);
  if (decision.type === "Pin" && !last.end) Object.assign(last, { pinned: at, unpinned: at + decision.until - now, engine: decision.engine });
  if (decision.type === "Unpin" && last.pinned) last.unpinned = Math.min(last.unpinned, at);
}

function engineLost(engine, at) {
  for (const lane of lanes.values()) {
    const last = lane[lane.length - 1];
    if (last && last.engine === engine) last.unpinned = Math.min(last.unpinned, at);
  }
}

const count = (value) => (value === undefined ? "?" : value.toLocaleString("en"));

export function detail(event) {
  if (event.type === "StepArrived") return `${count(event.prompt_tokens)} prompt tokens, ${event.relation || "continues"}`;
  if (event.type === "StepFinished") {
    const tools = (event.tools || []).map((t) => t.name).join(", ");
    const cached = event.cached_tokens === undefined ? "" : `, ${count(event.cached_tokens)} cached`;
    return `${count(event.prompt_tokens)} in${cached}, ${count(event.output_tokens)} out${tools ? `; calls ${tools}` : ""}`;
  }
  return event.reason || "";
}

export const reason = (decision) => `${decision.reason}${decision.detail ? `: ${decision.detail}` : ""}`;

function tell(program, entry) {
  const story = stories.get(program) || [];
  story.push(entry);
  if (story.length > STORY_MAX) story.shift();
  keep(stories, program, story);
}

/** Is this told already? The stream begins with what came a while before, which a story that was recalled holds too. */
function known({ at, event }, program) {
  const story = stories.get(program) || [];
  for (let i = story.length - 1; i >= 0 && story[i].at >= at; i -= 1) {
    const old = story[i].event;
    if (old && story[i].at === at && old.type === event.type && old.step === event.step) return true;
  }
  return false;
}

/** One message of the stream, or one entry of a program's story as the gateway remembers it. */
export function note(message, each = () => {}) {
  const { at, now, event, decisions } = message;
  if (message.serial) serial = message.serial;
  const program = message.program || event.program || owners.get(event.step);
  if (program && message.serial && known(message, program)) return;
  if (event.type === "EngineLost") engineLost(event.engine, at);
  if (event.type === "StepArrived") {
    keep(owners, event.step, program);
    if (event.streamed === false) whole.add(event.step);
    if (whole.size > KEPT_MAX) whole.delete(whole.values().next().value);
  }
  if (program) {
    happened(event, program, at, decisions.some((d) => d.type === "Dispatch" && d.step === event.step));
    tell(program, { at, now, event });
  }
  for (const decision of decisions) {
    const whose = decision.program || owners.get(decision.step) || program || "";
    if (whose) {
      decided(decision, whose, at, now);
      tell(whose, { at, now, decision });
    }
    each(at, decision, whose);
  }
}

/** What the gateway remembers of a program from before what is known here, put before it. */
export function recall(program, told) {
  const known = stories.get(program) || [];
  const first = known.length ? known[0].at : Infinity;
  lanes.delete(program);
  stories.delete(program);
  for (const entry of told) if (entry.at < first) note(entry);
  for (const { at, now, event, decision } of known) {
    if (event) {
      // whether it went straight on is told by the decision that follows at the same moment
      happened(event, program, at, false);
      tell(program, { at, now, event });
    } else {
      decided(decision, program, at, now);
      tell(program, { at, now, decision });
    }
  }
}

/** The steps of a story, the newest first: when each arrived, left the queue, began, ended, and what it held. */
export function stepsOf(story) {
  const steps = new Map();
  for (const { at, event, decision } of story) {
    const id = (event || decision).step;
    if (!id) continue;
    const step = steps.get(id) || { id, whole: whole.has(id) };
    steps.set(id, step);
    if (decision && decision.type === "Dispatch") Object.assign(step, { dispatched: at, engine: decision.engine });
    else if (event && event.type === "StepArrived") Object.assign(step, { arrived: at, prompt: event.prompt_tokens });
    else if (event && event.type === "StepStarted") step.started = at;
    else if (event && event.type === "StepFinished") {
      const tools = (event.tools || []).map((t) => t.name).join(", ");
      Object.assign(step, { ended: at, prompt: event.prompt_tokens, cached: event.cached_tokens, output: event.output_tokens, tools });
    } else if (event) Object.assign(step, { ended: at, tools: event.type === "ClientGone" ? "client gone" : "failed" });
  }
  return [...steps.values()].filter((s) => s.arrived || s.ended).reverse();
}
