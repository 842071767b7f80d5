// What the event stream tells: each program's lane (what it did when) and its story (what was decided, and why).
// Rule: bounded, the least recently heard of goes first; it draws nothing.

const KEPT_MAX = 2000;
const PARTS_MAX = 200;
const STORY_MAX = 300;

export const lanes = new Map();
export const stories = new Map();
const owners = new Map(); // of steps

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
  if (what) lane.push({ what, start: at, end: 0, pinned: 0 });
  if (lane.length > PARTS_MAX) lane.shift();
  keep(lanes, program, lane);
}

function happened(event, program, at, dispatched) {
  if (event.type === "StepArrived") enter(program, dispatched ? "prefill" : "waiting", at);
  else if (event.type === "StepStarted") enter(program, "decode", at);
  else if (event.type === "StepFinished") enter(program, event.final ? "" : event.turn_done ? "person" : "tools", at);
  else if (event.type === "StepFailed" || event.type === "ClientGone") enter(program, "tools", at);
  else if (event.type === "ProgramEnded") enter(program, "", at);
}

function decided(decision, program, at) {
  const lane = lanes.get(program) || [];
  const last = lane[lane.length - 1];
  if (decision.type === "Dispatch" && last && last.what === "waiting") enter(program, "prefill", at);
  if (decision.type === "Pin" && last && !last.end) last.pinned = at;
  if (decision.type === "Unpin" && last && last.pinned) last.unpinned = at;
}

export function detail(event) {
  const n = (value) => (value === undefined ? "?" : value.toLocaleString("en"));
  if (event.type === "StepArrived") return `${n(event.prompt_tokens)} prompt tokens, ${event.relation || "continues"}`;
  if (event.type === "StepFinished") {
    const tools = (event.tools || []).map((t) => t.name).join(", ");
    const cached = event.cached_tokens === undefined ? "" : `, ${n(event.cached_tokens)} cached`;
    return `${n(event.prompt_tokens)} in${cached}, ${n(event.output_tokens)} out${tools ? `; calls ${tools}` : ""}`;
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

/** One message of the stream, or one entry of a program's story as the gateway remembers it. */
export function note({ at, event, decisions, program: owner }, each = () => {}) {
  const program = owner || event.program || owners.get(event.step);
  if (event.type === "StepArrived") keep(owners, event.step, program);
  if (program) {
    happened(event, program, at, decisions.some((d) => d.type === "Dispatch" && d.step === event.step));
    tell(program, { at, event, decisions: [] });
  }
  for (const decision of decisions) {
    const whose = decision.program || owners.get(decision.step) || program || "";
    if (whose) {
      decided(decision, whose, at);
      tell(whose, { at, decision });
    }
    each(at, decision, whose);
  }
}

/** What the gateway remembers of a program from before this page was opened. */
export function recall(program, told) {
  lanes.delete(program);
  stories.delete(program);
  for (const entry of told) note({ ...entry, program });
}

/** The steps of a story, the newest first: when each arrived, left the queue, began, ended, and what it held. */
export function stepsOf(story) {
  const steps = new Map();
  for (const { at, event, decision } of story) {
    const id = (event || decision).step;
    if (!id) continue;
    const step = steps.get(id) || { id };
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
