// Two small drawings: a survival curve over logarithmic time, and outcomes against what was forecast.

const SVG = "http://www.w3.org/2000/svg";

function canvas(width, height, label) {
  const drawn = document.createElementNS(SVG, "svg");
  drawn.setAttribute("viewBox", `0 0 ${width} ${height}`);
  drawn.setAttribute("role", "img");
  drawn.setAttribute("aria-label", label);
  const add = (tag, attributes, text = "") => {
    const node = document.createElementNS(SVG, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.textContent = text;
    drawn.append(node);
    return node;
  };
  return [drawn, add];
}

/** The share that is still away, by time. */
export function survival(points, label) {
  const [width, height, left] = [260, 84, 30];
  const [drawn, add] = canvas(width + left + 8, height + 26, label);
  const x = (t) => left + (width * Math.log(t / points[0][0])) / Math.log(points[points.length - 1][0] / points[0][0]);
  const y = (share) => 6 + height * (1 - share);
  for (const share of [0, 0.5, 1]) {
    add("line", { x1: left, x2: left + width, y1: y(share), y2: y(share), class: "grid" });
    add("text", { x: left - 5, y: y(share) + 4, "text-anchor": "end" }, share === 1 ? "all" : share ? "½" : "0");
  }
  for (const t of [0.1, 1, 10, 100]) add("text", { x: x(t), y: height + 22, "text-anchor": "middle" }, t < 1 ? "0.1 s" : `${t} s`);
  const path = points.map(([t, alive], i) => `${i ? "L" : "M"}${x(t).toFixed(1)},${y(alive).toFixed(1)}`).join("");
  add("path", { d: path, class: "curve" });
  return drawn;
}

/** Outcomes (upwards) against forecasts (to the right), both logarithmic. `dots` are `[forecast, actual, title]`. */
export function against(dots, { least, unit, label }) {
  const [size, left] = [200, 38];
  const [drawn, add] = canvas(size + left + 10, size + 40, label);
  const most = Math.max(least * 10, ...dots.flatMap(([a, b]) => [a, b]));
  const scale = (value) => Math.log(Math.max(value, least) / least) / Math.log(most / least);
  const x = (value) => left + size * scale(value);
  const y = (value) => 6 + size * (1 - scale(value));
  for (let tick = least; tick <= most * 1.0001; tick *= 10) {
    const text = tick >= 1 ? `${Math.round(tick)}` : `${tick}`;
    add("line", { x1: left, x2: left + size, y1: y(tick), y2: y(tick), class: "grid" });
    add("line", { x1: x(tick), x2: x(tick), y1: 6, y2: 6 + size, class: "grid" });
    add("text", { x: left - 5, y: y(tick) + 4, "text-anchor": "end" }, text);
    add("text", { x: x(tick), y: size + 21, "text-anchor": "middle" }, text);
  }
  add("line", { x1: x(least), y1: y(least), x2: x(most), y2: y(most), class: "exact" });
  for (const [forecast, actual, title] of dots) {
    const dot = add("circle", { cx: x(forecast).toFixed(1), cy: y(actual).toFixed(1), r: 2.5, class: "dot" });
    const said = document.createElementNS(SVG, "title");
    said.textContent = title;
    dot.append(said);
  }
  add("text", { x: left + size / 2, y: size + 37, "text-anchor": "middle" }, `forecast, ${unit}`);
  add("text", { x: 10, y: 6 + size / 2, "text-anchor": "middle", transform: `rotate(-90 10 ${6 + size / 2})` }, `actual, ${unit}`);
  return drawn;
}
