// Talks to the server: the key, errors in words, streams. Knows no element of the page.
// Fires AWAY on the window when nobody answers, so that the page can look why.

export const AWAY = "everswarm-server-away";

const STORED_KEY = "everswarm.key";
const BROKEN_OFF = "The line to the server broke while it answered. Ask again.";
const NOBODY = "The server does not answer. Is it still running?";
let key = localStorage.getItem(STORED_KEY) || sessionStorage.getItem(STORED_KEY);

export const hasKey = () => Boolean(key);

export function keepKey(value, { remember }) {
  forgetKey();
  key = value;
  (remember ? localStorage : sessionStorage).setItem(STORED_KEY, value);
}

export function forgetKey() {
  key = null;
  localStorage.removeItem(STORED_KEY);
  sessionStorage.removeItem(STORED_KEY);
}

/** Return the key in a sign-in link such as http://127.0.0.1:8000/#key=esw_…, in its fragment, or the bare key. */
export function keyIn(text) {
  const found = /#?\bkey=([^&\s]+)/.exec(text);
  return found ? decodeURIComponent(found[1]) : text.trim();
}

/** An error whose message may be shown as it is. */
export class ServerError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status; // 0: nobody answered
  }
}

function nobodyThere(message) {
  window.dispatchEvent(new Event(AWAY));
  return new ServerError(message, 0);
}

async function send(method, path, body, { signal, headers = {} } = {}) {
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, { method, headers, signal, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw nobodyThere(NOBODY);
  }
  if (!response.ok) throw await inWords(response);
  return response;
}

/** Read a problem document (RFC 9457) or an OpenAI error. */
async function inWords(response) {
  const text = await response.text();
  let detail = text.slice(0, 500);
  try {
    const body = JSON.parse(text);
    detail = body.detail || body.error?.message || body.title || detail;
    if (typeof detail !== "string") detail = JSON.stringify(detail);
  } catch {
    // not JSON: show what came
  }
  const wait = response.headers.get("Retry-After");
  const says = !wait || ![429, 503].includes(response.status) || /try again/i.test(detail);
  const again = says ? "" : ` Try again in ${wait} s.`;
  return new ServerError((detail || `The server answered with status ${response.status}.`) + again, response.status);
}

export async function get(path) {
  return (await send("GET", path)).json();
}

export async function post(path, body) {
  const response = await send("POST", path, body);
  return response.status === 204 ? null : response.json();
}

export async function patch(path, body) {
  return (await send("PATCH", path, body)).json();
}

export async function remove(path) {
  await send("DELETE", path);
}

/** Return a file, which a plain link could not ask for without the key: {name, content}. */
export async function file(path) {
  const response = await send("GET", path);
  const named = /filename="([^"]+)"/.exec(response.headers.get("Content-Disposition") || "");
  return { name: named ? named[1] : "everswarm", content: await response.blob() };
}

/**
 * Ask, and yield what comes: {thread} once, the id of the conversation that the server keeps, null where it keeps none;
 * {status}, what it does meanwhile; {chunk}, a piece of the chat completion. `thread` is an id, or "new".
 */
export async function* chatStream(body, { signal, thread }) {
  const headers = { "X-Everswarm-Thread": thread };
  const response = await send("POST", "/v1/chat/completions", { ...body, stream: true }, { signal, headers });
  yield { thread: response.headers.get("X-Everswarm-Thread") };
  let complete = false;
  for await (const { comment, data } of serverSentEvents(response, signal)) {
    if (comment !== undefined) {
      const status = statusIn(comment);
      if (status) yield { status };
      continue;
    }
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(chunk.error.message || String(chunk.error), chunk.error.code || 500);
    if (chunk.detail && !chunk.choices) throw new ServerError(chunk.detail, chunk.status || 500);
    complete ||= Boolean(chunk.choices?.[0]?.finish_reason);
    yield { chunk };
  }
  if (!complete) throw nobodyThere(BROKEN_OFF);
}

/** Return what a comment such as `everswarm {"status":"…"}` or `waiting for …` tells; other comments tell nothing. */
function statusIn(comment) {
  if (comment.startsWith("waiting ")) return comment;
  if (!comment.startsWith("everswarm ")) return "";
  try {
    return JSON.parse(comment.slice("everswarm ".length)).status;
  } catch {
    return "";
  }
}

async function* serverSentEvents(response, signal) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let waiting = "";
  while (true) {
    let read;
    try {
      read = await reader.read();
    } catch (error) {
      if (signal?.aborted) throw new DOMException("stopped", "AbortError");
      throw nobodyThere(BROKEN_OFF);
    }
    if (read.done) return;
    waiting += read.value;
    const lines = waiting.split(/\r?\n/);
    waiting = lines.pop();
    for (const line of lines) {
      if (line.startsWith("data:")) yield { data: line.slice(5).trim() };
      else if (line.startsWith(":")) yield { comment: line.slice(1).trim() };
    }
  }
}
