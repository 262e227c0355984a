// Draws what the server says. A card is made once per route; later its parts are filled anew, so that focus stays.

import { bars, curve, ends, interval, percent } from "./charts.js";

const METRICS = {
  speed: "Speed", cost: "Cost per conversation", ttft_p95: "Time to first token, p95", itl_p95: "Inter-token time, p95",
  structured: "Structured outputs valid", tools: "Tool calls valid", stability: "Conversations stable",
  ties: "Answers without near-tie", mismatches: "Hard mismatches", engine_errors: "Engine errors",
};
const RATES = new Set(["structured", "tools", "stability", "ties"]);
const VERDICTS = { pass: "✓ proven", fail: "✗ harm proven", open: "… open", absent: "nothing seen" };
const WAY = ["draft", "validated", "shadow", "canary", "active"];
const LOG_ROWS = 100;

export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const short = (revision) => revision.slice(0, 12);
const seconds = (value) => (value < 1 ? `${(value * 1000).toPrecision(3)} ms` : `${value.toPrecision(3)} s`);
const count = (value) => value.toLocaleString("en");
const moment = (time) => new Date(time * 1000).toLocaleString([], { dateStyle: "short", timeStyle: "medium" });

function tile(title, ...content) {
  return h("div", { class: "tile" }, h("h3", {}, title), ...content);
}

function speedTile(title, gain, margin) {
  if (!gain) return tile(title, h("p", { class: "quiet" }, "not measured yet"));
  const kind = gain.low !== null && gain.low > 0 ? "good" : gain.high !== null && gain.high < 0 ? "bad" : "";
  return tile(
    title, h("p", { class: `big ${kind}` }, percent(gain.estimate)),
    h("p", { class: "quiet" }, `between ${ends(gain)} (95 %), n = ${count(gain.n)}`), interval(gain, margin),
  );
}

function numbers(pairs) {
  return h("dl", { class: "numbers" }, ...pairs.flatMap(([name, value, kind]) => [h("dt", {}, name), h("dd", { class: kind }, value)]));
}

function timeTile(title, found) {
  if (!found) return tile(title, h("p", { class: "quiet" }, "none yet"));
  return tile(title, numbers([["p50", seconds(found.p50)], ["p95", seconds(found.p95)], ["p99", seconds(found.p99)], ["n", count(found.n)]]));
}

function auditTile(audits) {
  const rows = [["done", count(audits.done)], ["identical", count(audits.identical)], ["explained", count(audits.explained)]];
  rows.push(["hard", count(audits.hard), audits.hard ? "bad" : ""]);
  const left = audits.waiting + audits.dropped + audits.failed;
  const note = `${count(audits.waiting)} waiting, ${count(audits.dropped)} dropped, ${count(audits.failed)} failed`;
  return tile("Audits", numbers(rows), left ? h("p", { class: "quiet" }, note) : null);
}

function chartTile(title, found, draw, none) {
  return tile(title, found.length ? draw(found) : h("p", { class: "quiet" }, none));
}

export class RouteCard {
  constructor(name, act) {
    this.act = act;
    this.badges = h("span", { class: "badges" });
    this.buttons = {};
    this.tiles = h("div", { class: "tiles" });
    this.candidate = h("div", { class: "candidate", hidden: true });
    this.candidateHead = h("div", { class: "head" });
    this.candidateTitle = h("h2", {}, "");
    this.candidateBadges = h("span", { class: "badges" });
    this.candidateBody = h("div", {});
    const own = h("div", { class: "actions" }, this.button("rollback", "Roll back"), this.button("kill", "Switch off"));
    const others = ["promote", "pause", "resume", "reject"].map((name) => this.button(name, name === "reject" ? "Roll back" : name[0].toUpperCase() + name.slice(1)));
    this.candidateHead.append(this.candidateTitle, this.candidateBadges, h("div", { class: "actions" }, ...others));
    this.candidate.append(this.candidateHead, this.candidateBody);
    this.element = h("article", { class: "card", "data-route": name, "aria-label": `Route ${name}` },
      h("div", { class: "head" }, h("h2", {}, name), this.badges, own), this.tiles, this.candidate);
  }

  button(action, label) {
    const made = h("button", { type: "button", "data-action": action, class: ["rollback", "kill", "reject"].includes(action) ? "danger" : "" }, label);
    made.addEventListener("click", () => this.act(action, this.route));
    this.buttons[action] = made;
    return made;
  }

  update(route) {
    const before = this.route;
    this.route = route;
    const off = route.switches.length > 0;
    this.badges.replaceChildren(...badges(route));
    this.buttons.rollback.disabled = !route.revision;
    this.buttons.kill.textContent = off ? "Switch on" : "Switch off";
    this.buttons.kill.dataset.action = off ? "lift" : "kill";
    this.tiles.replaceChildren(
      speedTile("Speed-up now, against the hold-out", route.speedup),
      timeTile("Time to first token", route.ttft), timeTile("Inter-token time", route.inter_token), auditTile(route.audits),
      chartTile("Accepted by position (%)", route.acceptance.filter((depth) => depth.drafted), bars, "nothing drafted yet"),
      chartTile("K over time", route.k, curve, "nothing drafted yet"),
    );
    this.showCandidate(route.candidate);
    if (before && (before.revision !== route.revision || before.candidate?.etag !== route.candidate?.etag)) flash(this.element);
  }

  showCandidate(found) {
    this.candidate.hidden = !found;
    if (!found) return;
    this.candidateTitle.replaceChildren("Candidate ", h("code", {}, short(found.revision)));
    this.candidateBadges.replaceChildren(h("span", { class: found.phase === "paused" ? "badge warn" : "badge" }, found.phase));
    this.buttons.promote.disabled = !["shadow", "canary", "paused"].includes(found.phase);
    this.buttons.pause.hidden = found.phase === "paused";
    this.buttons.resume.hidden = found.phase !== "paused";
    this.buttons.reject.disabled = !["shadow", "canary", "paused"].includes(found.phase);
    this.candidateBody.replaceChildren(
      way(found), found.reason ? h("p", { class: "quiet" }, found.reason) : "",
      h("div", { class: "tiles" },
        speedTile("Speed against what serves", found.speed, found.figures.find((figure) => figure.finding.metric === "speed")?.margin),
        tile("Samples", samples(found.samples)), lacking(found.lacking)),
      figures(found.figures),
    );
  }
}

function flash(element) {
  element.classList.remove("changed");
  void element.offsetWidth; // Starts the animation again.
  element.classList.add("changed");
}

function badges(route) {
  const found = [];
  if (route.revision) found.push(h("span", { class: "badge good", title: route.revision }, `active ${short(route.revision)}`));
  else found.push(h("span", { class: "badge warn" }, "nothing active"));
  for (const item of route.switches) {
    found.push(h("span", { class: "badge bad" }, `${item.drafter ?? "speculation"} off: ${item.reason} (${item.actor})`));
  }
  found.push(h("span", { class: "quiet" }, `${count(route.requests)} requests · ${route.drafters.join(", ") || "no drafter"} · hold-out ${percent(route.hold_out, 0, false)}`));
  return found.flatMap((badge) => [badge, " "]);
}

function way(found) {
  const at = WAY.indexOf(found.phase === "paused" ? found.paused_from : found.phase);
  const items = WAY.map((phase, index) => {
    const words = phase === "canary" && found.phase === "canary" ? `canary ${percent(found.share, 0, false)} of ${found.shares.map((share) => Math.round(share * 100)).join("/")}` : phase;
    return h("li", { class: index < at ? "done" : "", "aria-current": index === at ? "step" : null }, words);
  });
  return h("ol", { class: "steps", "aria-label": "Way to promotion" }, ...items);
}

function samples(found) {
  return h("div", { class: "samples" }, ...found.map((item) => h("div", {},
    h("span", {}, `${item.what}: ${count(item.have)} of ${count(item.need)}`),
    h("progress", { max: item.need, value: Math.min(item.have, item.need), "aria-label": item.what }))));
}

function lacking(found) {
  if (!found.length) return tile("Still to be proven", h("p", { class: "badge good" }, "everything is proven"));
  return tile("Still to be proven", h("ul", { class: "lacking" }, ...found.map((item) => h("li", {}, item))));
}

function figures(found) {
  const seen = found.filter((figure) => figure.finding.verdict !== "absent");
  if (!seen.length) return "";
  const rows = seen.map(({ finding, margin }) => {
    const unit = (value) => (RATES.has(finding.metric) ? percent(value).replace("%", "points") : percent(value));
    const range = finding.low === undefined || finding.high === undefined ? "" : ` (${percent(finding.low)} to ${percent(finding.high)})`;
    const suspect = finding.suspect && finding.verdict !== "fail" ? ", harm likely" : "";
    return h("tr", {}, h("th", { scope: "row" }, METRICS[finding.metric] ?? finding.metric), h("td", {}, finding.place),
      h("td", {}, finding.estimate === undefined ? "" : unit(finding.estimate) + range), h("td", {}, margin === null ? "" : percent(margin, 1, false)),
      h("td", {}, count(finding.candidate ?? 0)), h("td", { class: finding.verdict }, VERDICTS[finding.verdict] + suspect));
  });
  const head = ["Figure", "Where", "Candidate against control", "Margin", "n", "Verdict"].map((title) => h("th", { scope: "col" }, title));
  return h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Figures" },
    h("table", {}, h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...rows)));
}

export function showLog(body, entries) {
  for (const entry of entries) {
    const move = entry.before === entry.after ? entry.after ?? "" : `${entry.before ?? "new"} → ${entry.after}`;
    const revision = entry.revision ? h("code", { title: entry.revision }, short(entry.revision)) : "";
    body.prepend(h("tr", { class: "changed", "data-seq": entry.seq },
      h("td", {}, h("time", { datetime: new Date(entry.time * 1000).toISOString() }, moment(entry.time))), h("td", {}, entry.actor),
      h("td", {}, entry.route ?? "all", " ", revision), h("td", {}, move), h("td", {}, entry.reason)));
  }
  while (body.rows.length > LOG_ROWS) body.lastChild.remove();
}

export function warnings(status, save) {
  const found = status.warnings.map((text) => h("p", { class: "banner warn" }, text));
  if (status.killed) found.unshift(h("p", { class: "banner bad" }, `All speculation is off: ${status.killed.reason} (${status.killed.actor}, ${moment(status.killed.time)})`));
  for (const item of status.mismatches) {
    const button = h("button", { type: "button" }, "Bundle");
    button.addEventListener("click", () => save(item.id));
    const where = `Hard mismatch on ${item.route} ${short(item.revision)} at position ${item.position} with ${item.drafters.join(", ") || "no drafter"}`;
    found.push(h("p", { class: "banner bad" }, `${where}, ${moment(item.time)} ${item.note}`, button));
  }
  return found;
}
