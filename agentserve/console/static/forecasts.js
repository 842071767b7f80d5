// The view of forecasts: how well they held, outcomes against what was forecast, and each tool's survival curve.

import { back, byId, facts, json, make, percent, seconds, some, whole } from "./page.js";
import { against, survival } from "./plot.js";

export async function forecasts() {
  const found = await json("/forecasts");
  showCalibration(found.calibration || {});
  const gaps = found.gaps.filter((g) => g.forecast_p50_s !== null);
  const beyond = found.gaps.length - gaps.length;
  byId("plots").replaceChildren(
    card("Gaps", against(gaps.map((g) => [g.forecast_p50_s, g.actual_s, `${g.tool}: forecast ${seconds(g.forecast_p50_s)}, was ${seconds(g.actual_s)}`]),
      { least: 0.01, unit: "s", label: `${some(gaps.length, "gap")}: actual length against the forecast's median` }),
    found.gaps.length ? `the latest ${some(found.gaps.length, "gap")}${beyond ? `; ${whole(beyond)} whose median is beyond the horizon not drawn` : ""}` : "no gap was foretold yet"),
    card("Steps left", against(found.lengths.map((l) => [l.forecast, l.actual, `after ${some(l.after, "step")}: forecast ${l.forecast}, was ${l.actual}`]),
      { least: 1, unit: "steps", label: `${some(found.lengths.length, "forecast")}: steps left against what was forecast` }),
    found.lengths.length ? `${some(found.lengths.length, "forecast")} for programs that are over` : "no program has said that it is over yet"),
  );
  const tools = [...found.data].sort((a, b) => b.calls - a.calls).map((f) => card(f.tool,
    survival(f.survival, `share of programs still away after a call of ${f.tool}, by time`),
    `${back(f.p50_s, f.p90_s, f.horizon_s)} · ${some(f.calls, "call")} · ${f.tenant}`));
  byId("forecasts").replaceChildren(...(tools.length ? tools : [make("p", "No tool was called yet.", { class: "why" })]));
}

function card(title, drawing, words) {
  const made = make("article");
  made.append(make("h4", title), drawing, make("p", words, { class: "why" }));
  return made;
}

/** Of the outcomes that were forecast, how many lay below the quantile that should hold so many. */
function showCalibration(of) {
  const rows = [];
  for (const [name, words] of [["gaps", "gaps"], ["outputs", "reply lengths"]]) {
    const found = of[name];
    if (!found || !found.outcomes) continue;
    for (const [level, right] of [["p50", "50 %"], ["p90", "90 %"]]) {
      rows.push([`${words} below the forecast's ${level}`, percent(found[`coverage_${level}`]), `${right} is right, over ${some(found.outcomes, "outcome")}`]);
    }
  }
  facts(byId("calibration"), rows);
}
