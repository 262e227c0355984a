// Signs in, follows the events, and gives the orders that a person confirms with a reason.

import { Refused, ask, download, follow, key } from "./api.js";
import { RouteCard, short, showLog, warnings } from "./view.js";

const at = (id) => document.getElementById(id);
const cards = new Map();
let following = null;
let lastEntry = 0;
let status = null;
let pending = null;

const ORDERS = {
  promote: { title: "Promote", text: "It becomes active: from the next request on it serves the whole route.", label: "Promote" },
  pause: { title: "Pause", text: "The candidate serves nobody and waits for a person.", label: "Pause" },
  resume: { title: "Resume", text: "The candidate goes on, at its first canary step.", label: "Resume" },
  rollback: { title: "Roll back", text: "What served before serves again from the next request on.", label: "Roll back" },
  reject: { title: "Roll back", text: "The candidate is stopped for good, unless it is handed in again.", label: "Roll back" },
  kill: { title: "Switch speculation off", text: "From the next step on every token is decoded plainly. Answers stay the same, only slower.", label: "Switch off" },
  lift: { title: "Switch speculation on", text: "The active revisions speculate again.", label: "Switch on" },
};

function say(words) {
  at("said").textContent = words;
}

function open(action, route) {
  const order = ORDERS[action];
  const candidate = !["rollback", "kill", "lift"].includes(action);
  const target = candidate ? route.candidate : route;
  const switching = action === "kill" || action === "lift";
  pending = { action, route: route?.route ?? null, revision: target?.revision, etag: target?.etag, label: order.label };
  at("confirm-title").textContent = switching
    ? `${order.title} ${route ? `on route ${route.route}` : "everywhere"}?`
    : `${order.title} ${short(target.revision)} on route ${route.route}?`;
  at("confirm-text").textContent = order.text;
  const lacking = action === "promote" ? target.lacking : [];
  at("confirm-lacking").replaceChildren(...lacking.map((words) => Object.assign(document.createElement("li"), { textContent: `not proven: ${words}` })));
  at("confirm-force").hidden = lacking.length === 0;
  at("force").checked = false;
  at("reason").value = "";
  at("confirm-error").textContent = "";
  at("do").textContent = order.label;
  at("do").disabled = false;
  at("confirm").showModal();
  at("reason").focus();
}

async function carryOut() {
  const { action, route, revision, etag, label } = pending;
  const reason = at("reason").value.trim();
  if (!reason) {
    at("confirm-error").textContent = "A reason is needed.";
    return;
  }
  at("do").disabled = true;
  at("confirm-error").textContent = "";
  try {
    if (action === "kill" || action === "lift") {
      await ask(action === "kill" ? "POST" : "DELETE", "/kill", { body: { route, reason } });
    } else {
      const order = action === "reject" ? "rollback" : action;
      const body = { revision, reason, ...(at("force").checked ? { force: true } : {}) };
      await ask("POST", `/routes/${encodeURIComponent(route)}/${order}`, { body, etag });
    }
    at("confirm").close();
    say(`${label}: done${route ? ` on route ${route}` : ""}.`);
  } catch (error) {
    at("confirm-error").textContent = error.status === 412
      ? "Somebody else moved it since this page showed it. Nothing was changed; close this and look again."
      : error.message;
    at("do").disabled = false;
  }
}

function show(next) {
  status = next;
  at("server").textContent = `${next.version} · engine ${next.engine}${next.exactness ? ` · ${next.exactness}` : ""} · policies ${short(next.policies)}`;
  at("live").dataset.state = "on";
  at("live").textContent = `live, ${new Date(next.time * 1000).toLocaleTimeString()}`;
  at("kill-all").textContent = next.killed ? "Switch speculation on" : "Switch all speculation off";
  at("kill-all").dataset.action = next.killed ? "lift-all" : "kill-all";
  const shown = JSON.stringify([next.killed, next.warnings, next.mismatches]);
  if (at("warnings").dataset.shown !== shown) {
    at("warnings").dataset.shown = shown;
    at("warnings").replaceChildren(...warnings(next, save));
  }
  const names = new Set(next.routes.map((route) => route.route));
  for (const [name, card] of cards) {
    if (!names.has(name)) {
      card.element.remove();
      cards.delete(name);
    }
  }
  for (const route of next.routes) {
    if (!cards.has(route.route)) {
      const card = new RouteCard(route.route, open);
      cards.set(route.route, card);
      at("routes").append(card.element);
    }
    cards.get(route.route).update(route);
  }
}

async function save(id) {
  try {
    await download(`/bundles/${encodeURIComponent(id)}`, `bundle-${id}.json`);
  } catch (error) {
    say(error.message);
  }
}

function addLog(log) {
  const fresh = log.entries.filter((entry) => entry.seq > lastEntry);
  showLog(at("log").tBodies[0], fresh);
  if (fresh.length) lastEntry = fresh[fresh.length - 1].seq;
}

function signedOut(words) {
  following?.abort();
  following = null;
  key.forget();
  for (const id of ["dashboard", "kill-all", "sign-out"]) at(id).hidden = true;
  at("live").dataset.state = "off";
  at("live").textContent = "not connected";
  at("sign-in").hidden = false;
  at("sign-in-error").textContent = words;
  at("key").focus();
}

async function enter() {
  let first;
  try {
    first = await ask("GET", "/status");
  } catch (error) {
    const asked = error instanceof Refused && error.status === 401;
    signedOut(asked && !key.get() ? "" : error.message);
    return;
  }
  for (const id of ["dashboard", "kill-all"]) at(id).hidden = false;
  at("sign-out").hidden = !key.get();
  at("sign-in").hidden = true;
  cards.clear();
  at("routes").replaceChildren();
  at("log").tBodies[0].replaceChildren();
  lastEntry = Math.max(0, first.log - 100);
  show(first);
  following = new AbortController();
  const on = { status: show, log: addLog, lost: () => {
    at("live").dataset.state = "off";
    at("live").textContent = "connection lost, trying again";
  } };
  follow(() => lastEntry, on, following.signal).catch((error) => signedOut(error.message));
}

at("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  key.set(at("key").value.trim());
  at("key").value = "";
  enter();
});
at("sign-out").addEventListener("click", () => signedOut(""));
at("kill-all").addEventListener("click", () => open(status.killed ? "lift" : "kill", null));
at("cancel").addEventListener("click", () => at("confirm").close());
at("confirm").querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  carryOut();
});
enter();
