// Asks the admin API. The key stands in a header, also for the event stream, which is read with fetch for that reason.

const ROOT = "/admin/v1";
const STORED = "specproxy-admin-key";
const LONGEST_WAIT_MS = 10000;

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export const key = {
  get: () => sessionStorage.getItem(STORED) ?? "",
  set: (value) => sessionStorage.setItem(STORED, value),
  forget: () => sessionStorage.removeItem(STORED),
};

async function send(method, path, { body, etag, signal } = {}) {
  const headers = {};
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  if (etag !== undefined) headers["if-match"] = etag;
  const sent = body === undefined ? undefined : JSON.stringify(body);
  const response = await fetch(ROOT + path, { method, headers, body: sent, signal, cache: "no-store" });
  if (response.ok) return response;
  let message = `refused with status ${response.status}`;
  try {
    message = (await response.json()).error.message;
  } catch {
    // Not our form: something between us and the server answered.
  }
  throw new Refused(response.status, message);
}

export const ask = async (method, path, options) => (await send(method, path, options)).json();

export async function download(path, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(await (await send("GET", path)).blob());
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// Calls `on[kind](data)` for every event, and comes back after each end, until `signal` aborts or the key is refused.
export async function follow(after, on, signal) {
  let wait = 500;
  while (!signal.aborted) {
    try {
      const response = await send("GET", `/events?after=${after()}`, { signal });
      wait = 500;
      for await (const [kind, data] of events(response.body)) on[kind]?.(data);
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Refused && error.status === 401) throw error;
    }
    on.lost();
    await new Promise((resolve) => setTimeout(resolve, wait));
    wait = Math.min(wait * 2, LONGEST_WAIT_MS);
  }
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const blocks = (rest + value).split("\n\n");
    rest = blocks.pop();
    for (const block of blocks) {
      const fields = Object.fromEntries(block.split("\n").map((line) => [line.split(":", 1)[0], line.replace(/^\w+: ?/, "")]));
      if (fields.event) yield [fields.event, JSON.parse(fields.data)];
    }
  }
}
