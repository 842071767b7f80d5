// What every view needs: asking the admin API, and making elements.
// Rule: whatever came from a client is set as text, never as markup; nothing is fetched from elsewhere.

const ROOT = "/admin/v1";
let key = sessionStorage.getItem("key") || "";

export class Refused extends Error {}

export const signedIn = () => Boolean(key);

export function signIn(given) {
  key = given;
  sessionStorage.setItem("key", given);
}

export async function ask(path, options = {}) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const reply = await fetch(ROOT + path, { ...options, headers });
  if (reply.status === 401 || reply.status === 403) throw new Refused("the key is not accepted");
  if (!reply.ok) throw new Error(`${reply.status} from ${path}`);
  return reply;
}

export const byId = (id) => document.getElementById(id);
export const linkTo = (program) => `#program/${encodeURIComponent(program)}`;

const count = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
export const whole = (value) => (value === null || value === undefined ? "–" : count.format(value));
export const clock = (at) => new Date(at * 1000).toLocaleTimeString();

export function seconds(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  return value < 100 ? `${value.toFixed(1)} s` : `${whole(value / 60)} min`;
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

export const number = (value) => make("td", whole(value), { class: "num" });

/** Pairs of a term and what it is, as a description list's children. */
export function facts(list, pairs) {
  list.replaceChildren(...pairs.map(([term, said]) => {
    const pair = make("div");
    pair.append(make("dt", term), make("dd", said));
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
