// The page: signs in, says what runs and what to do next, and looks again while something moves.

import { AWAY, forgetKey, get, hasKey, keepKey, keyIn } from "./api.js";
import { clearChat, currentThread, openThread, showModels, startChat } from "./chat.js";
import { isRunning, showCycles, startCycles } from "./cycle.js";
import { byId, element, notice, withCode } from "./elements.js";
import { hideThreads, lookForThreads, startThreads } from "./threads.js";

const CYCLE_MS = 2000; // while one runs
const HEALTH_MS = 15000;
const STARTING_MS = 3000; // while a part is starting, or the server is away
const GONE = "The server does not answer. Is it still running? This page looks again every 3 seconds and goes on by itself.";

let healthTimer = null;
let cycleTimer = null;
let cyclesRan = false;
let settled = false; // the models and cycles were shown at least once
let away = false; // nobody answered the last call

// --- signing in

function takeKeyFromAddress() {
  if (!location.hash.includes("key=")) return false;
  keepKey(keyIn(location.hash), { remember: true });
  history.replaceState(null, "", location.pathname + location.search); // out of the address bar and of bookmarks
  return true;
}

function showSignIn(problem) {
  clearTimeout(cycleTimer);
  byId("page").hidden = true;
  byId("sign-out").hidden = true;
  byId("sign-in").hidden = false;
  notice(byId("sign-in-error"), problem);
  byId("key").focus();
}

function signOut(problem = "") {
  forgetKey();
  hideThreads();
  clearChat();
  byId("question").value = "";
  showSignIn(problem);
}

function enter() {
  byId("sign-in").hidden = true;
  byId("page").hidden = false;
  byId("sign-out").hidden = false;
  settled = false;
  refresh();
  openFromAddress();
}

async function trySignIn() {
  keepKey(keyIn(byId("key").value), { remember: byId("remember").checked });
  try {
    await get("/v1/models");
  } catch (error) {
    forgetKey();
    showSignIn(error.message);
    return;
  }
  byId("key").value = "";
  enter();
}

byId("sign-in-form").addEventListener("submit", (event) => {
  event.preventDefault();
  trySignIn();
});
byId("sign-out").addEventListener("click", () => signOut());
window.addEventListener("hashchange", () => {
  if (!takeKeyFromAddress()) return openFromAddress();
  clearChat(); // it may be another person's key
  enter();
});

// --- the conversation in the address: #thread=…

async function openFromAddress() {
  const id = /^#thread=([0-9a-f-]{36})$/.exec(location.hash)?.[1];
  if (!id || id === currentThread() || !hasKey()) return;
  try {
    await openThread(id);
  } catch (error) {
    if (error.status === 401) signOut(error.message);
    else notice(byId("chat-error"), error.message);
  }
}

function showInAddress(id) {
  const hash = id ? `#thread=${id}` : "";
  if (location.hash !== hash) history.replaceState(null, "", location.pathname + location.search + hash);
}

// --- what runs

function setStatus(kind, text) {
  byId("status").className = `pill ${kind}`;
  if (byId("status-text").textContent !== text) byId("status-text").textContent = text;
}

function setAway(nowAway) {
  if (nowAway !== away) notice(byId("page-error"), nowAway ? GONE : "");
  if (away && !nowAway) notice(byId("cycle-error"), ""); // what could not be asked can be asked again
  away = nowAway;
  if (!away) return;
  settled = false;
  setStatus("bad", "Server away");
  byId("parts").classList.add("stale");
}

async function showHealth() {
  let pause = HEALTH_MS;
  try {
    const health = await get("/api/health");
    setAway(false);
    const starting = health.models === "starting" || health.cycles === "starting";
    setStatus(health.status === "healthy" ? "good" : "waiting", health.status === "healthy" ? "Healthy" : starting ? "Starting" : "Degraded");
    drawParts(health);
    if (starting) pause = STARTING_MS;
    if (!settled && hasKey()) refresh();
  } catch (error) {
    if (error.status === 0) setAway(true);
    else setStatus("bad", "Problem");
    settled = false;
    pause = STARTING_MS;
  }
  lookAgain(pause);
}

function lookAgain(pause) {
  clearTimeout(healthTimer);
  if (!document.hidden) healthTimer = setTimeout(showHealth, pause);
}

window.addEventListener(AWAY, () => {
  if (away) return;
  setAway(true);
  lookAgain(STARTING_MS);
});

function drawParts(health) {
  const kinds = { operational: "good", ready: "good", starting: "waiting" };
  const part = (name, state) =>
    element("li", {}, element("span", { className: `dot ${kinds[state] || "bad"}`, "aria-hidden": "true" }), element("span", { className: "name", textContent: name }), element("span", { className: "state", textContent: state }));
  const endpoints = Object.entries(health.endpoints).map(([name, state]) => part(name, state));
  byId("parts").classList.remove("stale");
  byId("parts").replaceChildren(part("models", health.models), part("cycles", health.cycles), ...endpoints);
  const known = [["cycles", health.cycles], ...Object.entries(health.endpoints)].flatMap(([name, state]) => [`${name}: ${state}`, `endpoint ${name}: ${state}`]);
  const more = health.problems.filter((text) => !known.includes(text)); // the others are in the list above already
  byId("problems").replaceChildren(...more.map((text) => element("li", { textContent: text })));
  byId("version").textContent = `everswarm ${health.version}.`;
}

// --- what to do next

async function showOverview() {
  const overview = await get("/api/overview");
  byId("next-text").replaceChildren(...withCode(overview.next_step));
  const numbers = {
    answers: overview.interactions,
    judged: overview.judged,
    "to learn from": `${overview.usable} of ${overview.needed} needed`,
    devices: overview.devices,
    "in use": overview.version_in_use ?? "base",
  };
  if (overview.usable >= overview.needed) numbers["to learn from"] = overview.usable;
  byId("numbers").replaceChildren(
    ...Object.entries(numbers).map(([name, value]) => element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: String(value) }))),
  );
}

// --- looking again

async function refresh() {
  try {
    await Promise.all([showModels(), showOverview(), watchCycles(), lookForThreads()]);
    settled = true;
    notice(byId("page-error"), "");
  } catch (error) {
    if (error.status === 401) signOut(error.message);
    else if (error.status) notice(byId("page-error"), error.message);
  }
}

/** Show the cycles; look again soon while one runs and somebody can see it. */
async function watchCycles() {
  clearTimeout(cycleTimer);
  await showCycles();
  if (cyclesRan && !isRunning()) showOverview().catch(() => {}); // it has just ended
  cyclesRan = isRunning();
  if (cyclesRan && !document.hidden) cycleTimer = setTimeout(() => watchCycles().catch(() => (settled = false)), CYCLE_MS);
}

document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    clearTimeout(healthTimer);
    clearTimeout(cycleTimer);
    return;
  }
  showHealth();
  if (hasKey()) refresh();
});

startChat({
  onAnswer: (failure) => {
    if (failure?.status === 401) signOut(failure.message);
    else showOverview().catch(() => {});
  },
  onThread: showInAddress,
});
startThreads({
  current: currentThread,
  open: openThread,
  gone: (id) => id === currentThread() && clearChat(),
});
startCycles(() => refresh());
takeKeyFromAddress();
showHealth();
if (hasKey()) enter();
else showSignIn("");
