// Small charts in SVG. Each says in words what it shows; colours are the style sheet's.

const NS = "http://www.w3.org/2000/svg";

function make(tag, attributes, ...children) {
  const element = document.createElementNS(NS, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const text = (x, y, words, anchor = "middle", kind = "") => make("text", { x, y, "text-anchor": anchor, class: kind }, words);
const line = (x1, y1, x2, y2, kind) => make("line", { x1, y1, x2, y2, class: kind });

function chart(width, height, label, ...children) {
  return make("svg", { viewBox: `0 0 ${width} ${height}`, class: "chart", role: "img", "aria-label": label }, ...children);
}

export const percent = (value, digits = 1, sign = true) =>
  `${sign && value > 0 ? "+" : ""}${(value * 100).toFixed(digits).replace("-", "−")} %`;

// A gain with its interval on a scale that holds nought and, where there is one, the margin to be exceeded.
export function interval(gain, margin) {
  const known = [0, gain.estimate, gain.low, gain.high, margin].filter((end) => end !== null && end !== undefined);
  const span = Math.max(...known) - Math.min(...known) || 0.01;
  const least = Math.min(...known) - span * 0.08;
  const most = Math.max(...known) + span * 0.08;
  const x = (value) => 10 + ((value - least) / (most - least)) * 300;
  const low = gain.low ?? least;
  const high = gain.high ?? most;
  const parts = [line(10, 20, 310, 20, "axis"), line(x(0), 6, x(0), 34, "zero"), text(x(0), 46, "0 %")];
  if (margin) parts.push(line(x(margin), 6, x(margin), 34, "margin"));
  parts.push(line(x(low), 20, x(high), 20, "span"), make("circle", { cx: x(gain.estimate), cy: 20, r: 5, class: "dot" }));
  const label = `${percent(gain.estimate)}, between ${ends(gain)} at 95 percent confidence`;
  return chart(320, 50, label, ...parts);
}

export const ends = (gain) =>
  `${gain.low === null ? "−∞" : percent(gain.low)} and ${gain.high === null ? "∞" : percent(gain.high)}`;

// Share of drafted tokens that were accepted, by their place in the draft.
export function bars(depths) {
  const shares = depths.map((depth) => (depth.drafted ? depth.accepted / depth.drafted : 0));
  const pitch = 300 / Math.max(shares.length, 4);
  const parts = [line(10, 100, 310, 100, "axis")];
  shares.forEach((share, index) => {
    const [x, height] = [10 + index * pitch, share * 80];
    parts.push(make("rect", { x: x + 2, y: 100 - height, width: pitch - 4, height, rx: 2, class: "bar" }));
    if (shares.length <= 10) parts.push(text(x + pitch / 2, 95 - height, `${Math.round(share * 100)}`, "middle", "strong"));
    if (shares.length <= 16 || index % 4 === 0) parts.push(text(x + pitch / 2, 114, `${depths[index].position + 1}`));
  });
  const words = shares.map((share, index) => `position ${depths[index].position + 1}: ${Math.round(share * 100)} percent`);
  return chart(320, 118, `Accepted, ${words.join(", ")}`, ...parts);
}

const clock = (time) => new Date(time * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });

// K over time.
export function curve(points) {
  const [first, last] = [points[0], points[points.length - 1]];
  const most = Math.max(1, Math.ceil(Math.max(...points.map((point) => point.k))));
  const length = last.time - first.time || 1;
  const x = (point) => 26 + ((point.time - first.time) / length) * 256;
  const y = (value) => 98 - (value / most) * 84;
  const path = points.map((point, index) => `${index ? "L" : "M"}${x(point).toFixed(1)} ${y(point.k).toFixed(1)}`).join("");
  return chart(
    320, 118, `K over time: from ${first.k.toFixed(1)} to ${last.k.toFixed(1)}, ${most} at most`,
    line(26, 98, 282, 98, "axis"), line(26, 14, 282, 14, "axis"),
    text(20, 102, "0", "end"), text(20, 18, `${most}`, "end"),
    text(26, 114, clock(first.time), "start"), text(282, 114, clock(last.time), "end"),
    make("path", { d: path, class: "curve" }), make("circle", { cx: x(last), cy: y(last.k), r: 4, class: "dot" }),
    text(290, y(last.k) + 4, last.k.toFixed(1), "start", "strong"),
  );
}
