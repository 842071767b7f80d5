// The console: which view is shown, the stream that is followed, and signing in.

import { ask, byId, Refused, signedIn, signIn } from "./page.js";
import { note } from "./stories.js";
import { decisionMade, views } from "./views.js";

const EVERY_MS = 1000;
const AGAIN_MS = 2000;
const pause = (ms) => new Promise((next) => setTimeout(next, ms));
let generation = 0; // a newer sign-in ends the loops of an older one

function where() {
  const at = location.hash.slice(1);
  const slash = at.indexOf("/");
  const view = slash < 0 ? at : at.slice(0, slash);
  const rest = slash < 0 ? "" : at.slice(slash + 1);
  return views[view] ? [view, rest] : ["programs", ""];
}

async function show() {
  const [view, rest] = where();
  for (const section of document.querySelectorAll("main section")) section.hidden = section.id !== `view-${view}`;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${view}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  try {
    await views[view](view === "program" ? decodeURIComponent(rest) : rest);
  } catch (error) {
    if (error instanceof Refused) askToSignIn(error);
    else byId("live").textContent = `not connected: ${error.message}`;
  }
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
      const reply = await ask("/events");
      byId("live").textContent = "live";
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
    if (mine === generation) byId("live").textContent = "not connected, trying again";
    await pause(AGAIN_MS);
  }
}

function askToSignIn(error) {
  generation += 1;
  for (const section of document.querySelectorAll("main section")) section.hidden = section.id !== "signin";
  byId("refused").textContent = signedIn() ? error.message : "";
  byId("live").textContent = "signed out";
  document.querySelector("#signin input").focus();
}

function start() {
  generation += 1;
  byId("signin").hidden = true;
  show();
  refresh(generation);
  follow(generation);
}

document.querySelector("#signin form").addEventListener("submit", (event) => {
  event.preventDefault();
  signIn(String(new FormData(event.target).get("key")));
  start();
});
document.querySelector(".filters").addEventListener("input", show);
document.querySelector(".filters").addEventListener("submit", (event) => event.preventDefault());
addEventListener("hashchange", () => {
  show();
  byId("main").focus({ preventScroll: true });
});

start();
