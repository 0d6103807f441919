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

async function send(method, path, body, signal) {
  const headers = key ? { Authorization: `Bearer ${key}` } : {};
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

/** Yield the chunks of a streamed chat completion. */
export async function* chatStream(body, signal) {
  const response = await send("POST", "/v1/chat/completions", { ...body, stream: true }, signal);
  let complete = false;
  for await (const data of serverSentEvents(response, signal)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ServerError(chunk.error.message || String(chunk.error), chunk.error.code || 500);
    if (chunk.detail && !chunk.choices) throw new ServerError(chunk.detail, chunk.status || 500);
    complete ||= Boolean(chunk.choices?.[0]?.finish_reason);
    yield chunk;
  }
  if (!complete) throw nobodyThere(BROKEN_OFF);
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
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
  }
}
