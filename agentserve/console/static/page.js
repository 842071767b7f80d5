// What every view needs: asking the admin API, and making elements.
// Rule: whatever came from a client is set as text, never as markup; nothing is fetched from elsewhere.

const ROOT = "/admin/v1";
let key = sessionStorage.getItem("key") || "";

export class Refused extends Error {}

export const signedIn = () => Boolean(key);

export function signIn(given) {
  key = given;
  if (given) sessionStorage.setItem("key", given);
  else sessionStorage.removeItem("key");
}

export async function ask(path, options = {}) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const reply = await fetch(ROOT + path, { ...options, headers });
  if (reply.status === 401 || reply.status === 403) throw new Refused("the key is not accepted");
  if (!reply.ok) throw new Error(`${reply.status} from ${path}`);
  return reply;
}

export const json = async (path) => (await ask(path)).json();

/** What the key may do: filled at each sign-in. */
export const may = { admin: false };

export const byId = (id) => document.getElementById(id);
export const linkTo = (program) => `#/program/${encodeURIComponent(program)}`;
export const pathOf = (program) => `/programs/${program.split("/").map(encodeURIComponent).join("/")}`;

const count = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
export const whole = (value) => (value === null || value === undefined ? "–" : count.format(value));
export const some = (value, one, many = `${one}s`) => `${whole(value)} ${value === 1 ? one : many}`;
export const percent = (share) => `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;
export const clock = (at) => new Date(at * 1000).toLocaleTimeString();
const WORDS = { idle: "tools run", turn_done: "a person's turn", waiting: "waiting", running: "running" };
// what a program does now; one that was declared alone has begun nothing
export const doing = (p) => (p.state === "idle" && !p.steps_done && !p.tools.length ? "no step yet" : WORDS[p.state]);

export function seconds(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value < 0) return `−${seconds(-value)}`;
  if (value < 0.9995) return `${Math.round(value * 1000)} ms`;
  if (value < 100) return `${value.toFixed(1)} s`;
  return value < 6000 ? `${whole(value / 60)} min` : `${(value / 3600).toFixed(1)} h`;
}

/** A forecast's quantile: null is not within the horizon, and nobody knows when. */
export const by = (value, horizon) => (value === null && horizon ? `not within ${seconds(horizon)}` : seconds(value));

/** When those away are forecast to be back. */
export function back(p50, p90, horizon) {
  if (p50 === null) return `fewer than half are back within ${seconds(horizon)}; by when is not known`;
  const half = `half are back by ${seconds(p50)}`;
  return p90 === null ? `${half}, fewer than nine in ten within ${seconds(horizon)}` : `${half}, nine in ten by ${seconds(p90)}`;
}

/** Text is set only where it changed, so that nothing is announced twice and no selection is lost. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function make(tag, text = "", attributes = {}) {
  const node = document.createElement(tag);
  node.textContent = text;
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

export function row(...cells) {
  const made = make("tr");
  for (const cell of cells) {
    if (cell instanceof Node) made.append(cell);
    else made.append(make("td", cell));
  }
  return made;
}

/** The rows of a table; each cell knows its column's heading, beside which it stands where the table is folded. */
export function fill(body, rows) {
  const names = [...body.closest("table").tHead.rows[0].cells].map((cell) => cell.textContent);
  for (const made of rows) {
    for (const [i, cell] of [...made.cells].entries()) if (cell.colSpan === 1) cell.dataset.label = names[i];
  }
  body.replaceChildren(...rows);
}

export const right = (text) => make("td", text, { class: "num" });
export const number = (value) => right(whole(value));

/** Pairs of a term and what it is, as a description list's children; a third text explains the second. */
export function facts(list, pairs) {
  list.replaceChildren(...pairs.map(([term, said, more]) => {
    const pair = make("div");
    pair.append(make("dt", term), make("dd", said));
    if (more) pair.append(make("dd", more, { class: "why" }));
    return pair;
  }));
}

/** A part of a bar or a lane, from one share of its width to another. */
export function part(kind, from, to, title) {
  const made = make("i", "", { class: kind, title });
  made.style.left = `${100 * from}%`;
  made.style.width = `${Math.max(100 * (to - from), 0.3)}%`;
  return made;
}

/** The children of `holder` are those of `items`, in their order: elements are kept by key, so that focus is too. */
export function keyed(holder, items, keyOf, draw) {
  const known = new Map([...holder.children].map((node) => [node.dataset.key, node]));
  const focused = document.activeElement;
  let at = holder.firstElementChild;
  for (const item of items) {
    const name = keyOf(item);
    const old = known.get(name);
    known.delete(name);
    const node = draw(item, old);
    node.dataset.key = name;
    if (node === at) at = at.nextElementSibling;
    else holder.insertBefore(node, at);
  }
  for (const node of known.values()) node.remove();
  if (focused !== document.activeElement && focused.isConnected) focused.focus({ preventScroll: true });
}

/** Asks before something that cannot be undone; true when the answer was yes. */
export function sure(question, yes) {
  const dialog = byId("sure");
  byId("sure-question").textContent = question;
  byId("sure-yes").textContent = yes;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((done) => dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true }));
}
