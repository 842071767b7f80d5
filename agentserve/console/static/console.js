// The console: which view is shown, the stream that is followed, and signing in.

import { ask, byId, json, may, Refused, say, signedIn, signIn } from "./page.js";
import { search } from "./programs.js";
import { note, serial } from "./stories.js";
import { decisionMade, views } from "./views.js";

const EVERY_MS = 1000;
const AGAIN_MS = 2000;
const TYPED_MS = 150;
const pause = (ms) => new Promise((next) => setTimeout(next, ms));
let generation = 0; // a newer sign-in ends the loops of an older one

function where() {
  const at = location.hash.replace(/^#\/?/, ""); // with a slash no element is meant, and the walk by keyboard begins at the top
  const slash = at.indexOf("/");
  const view = slash < 0 ? at : at.slice(0, slash);
  const rest = slash < 0 ? "" : at.slice(slash + 1);
  return views[view] ? [view, rest] : ["programs", ""];
}

async function show(draw) {
  const [view, rest] = where();
  for (const section of document.querySelectorAll("main section")) section.hidden = section.id !== `view-${view}`;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#/${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${view === "program" ? decodeURIComponent(rest) : view} · agentserve`;
  try {
    await (draw || views[view])(view === "program" ? decodeURIComponent(rest) : rest);
  } catch (error) {
    if (error instanceof Refused) askToSignIn(error);
    else status(`not connected: ${error.message}`, false);
  }
}

function status(words, well) {
  say(byId("live"), words);
  byId("live").className = well ? "well" : "ill";
}

async function refresh(mine) {
  while (mine === generation) {
    // a focused graph or list is left alone; only what moves is drawn again
    if (!document.hidden && byId("signin").hidden && !where()[0].startsWith("graphs")) await show();
    await pause(EVERY_MS);
  }
}

async function follow(mine) {
  while (mine === generation) {
    try {
      const reply = await ask(`/events?after=${serial}`);
      status("live", true);
      const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done || mine !== generation) break;
        const parts = (rest + value).split("\n\n");
        rest = parts.pop();
        for (const part of parts) {
          const data = part.split("\n").find((l) => l.startsWith("data: "));
          if (data) note(JSON.parse(data.slice(6)), decisionMade);
        }
      }
    } catch (error) {
      if (error instanceof Refused) return askToSignIn(error);
    }
    if (mine === generation) status("not connected, trying again", false);
    await pause(AGAIN_MS);
  }
}

function askToSignIn(error) {
  generation += 1;
  for (const section of document.querySelectorAll("main section")) section.hidden = section.id !== "signin";
  say(byId("refused"), signedIn() ? error.message : "");
  status("signed out", false);
  byId("signout").hidden = true;
  document.querySelector("#signin input").focus();
}

async function start() {
  generation += 1;
  const mine = generation;
  try {
    may.admin = (await json("/me")).scopes.includes("admin");
  } catch (error) {
    if (error instanceof Refused) return askToSignIn(error);
  }
  if (mine !== generation) return undefined;
  byId("signin").hidden = true;
  byId("signout").hidden = !signedIn();
  show().then(() => refresh(mine));
  return follow(mine);
}

document.querySelector("#signin form").addEventListener("submit", (event) => {
  event.preventDefault();
  signIn(String(new FormData(event.target).get("key")));
  event.target.reset();
  start();
});
byId("signout").addEventListener("click", () => {
  signIn("");
  location.reload(); // what was read with the key goes with it
});
let typed = 0;
document.querySelector(".filters").addEventListener("input", () => {
  clearTimeout(typed);
  typed = setTimeout(() => show(search), TYPED_MS);
});
document.querySelector(".filters").addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", () => {
  if (!byId("signin").hidden) return;
  show();
  byId("main").focus({ preventScroll: true });
  scrollTo(0, 0);
});

start();
