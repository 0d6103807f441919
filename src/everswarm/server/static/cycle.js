// The last cycle: its stages, its scores, and the buttons that start, cancel and continue one.

import { get, post } from "./api.js";
import { byId, element, notice, seconds, size, withCode } from "./elements.js";
import { answersOf, scoresOf } from "./scores.js";

const STAGE_WORDS = {
  snapshot: "freeze the feedback",
  curate: "choose and split examples",
  label: "the teachers score them",
  distill: "the student learns",
  export: "pack it for devices",
  evaluate: "measure it",
  release: "decide and release",
};

let cycles = [];
let chosenId = null; // null: always the newest
let drawn = ""; // what is on the screen, so that an unchanged cycle is not drawn again
let onChange = () => {};

export const isRunning = () => cycles.some((cycle) => cycle.state === "running");

export function startCycles(changed) {
  onChange = changed;
  byId("start-cycle").addEventListener("click", () => act("/api/cycles", {}));
  byId("retry-cycle").addEventListener("click", () => act(`/api/cycles/${shown().id}/retry`));
  byId("cancel-cycle").addEventListener("click", () => act(`/api/cycles/${shown().id}/cancel`));
  byId("cycle-picker").addEventListener("change", (event) => {
    chosenId = event.target.selectedIndex === 0 ? null : event.target.value;
    draw();
  });
}

const shown = () => cycles.find((cycle) => cycle.id === chosenId) || cycles[0];

async function act(path, body) {
  for (const id of ["start-cycle", "retry-cycle", "cancel-cycle"]) byId(id).disabled = true;
  try {
    notice(byId("cycle-error"), "");
    await post(path, body);
    chosenId = null;
    onChange();
  } catch (error) {
    notice(byId("cycle-error"), error.message);
  }
  for (const id of ["retry-cycle", "cancel-cycle"]) byId(id).disabled = false;
  byId("start-cycle").disabled = isRunning();
}

export async function showCycles() {
  cycles = await get("/api/cycles");
  draw();
}

function draw() {
  const cycle = shown();
  byId("start-cycle").disabled = isRunning();
  byId("cancel-cycle").hidden = cycle?.state !== "running";
  byId("retry-cycle").hidden = !["failed", "cancelled"].includes(cycle?.state);
  drawPicker(cycle);
  const state = JSON.stringify(cycle ?? null);
  if (state === drawn) return;
  drawn = state;
  if (!cycle) {
    byId("cycle").replaceChildren(element("p", { className: "hint", textContent: "None yet. A cycle learns from corrected and liked answers that may be used for training." }));
    return;
  }
  say(cycle);
  const open = [...byId("cycle").querySelectorAll("details[open]")].map((details) => details.className);
  byId("cycle").replaceChildren(...parts(cycle));
  for (const details of byId("cycle").querySelectorAll("details")) details.open = open.includes(details.className);
}

/** Say aloud where the cycle is, and no more: the table is drawn again every two seconds. */
function say(cycle) {
  const at = cycle.stages.find((status) => ["running", "queued", "failed"].includes(status.state));
  const text = `The cycle is ${cycle.state}${at ? `: ${at.stage} ${at.state}` : ""}.`;
  if (byId("cycle-said").textContent !== text) byId("cycle-said").textContent = text;
}

function drawPicker(cycle) {
  const picker = byId("cycle-picker");
  picker.hidden = cycles.length < 2;
  const options = cycles.map((entry) => `${new Date(entry.created_at).toLocaleString([], { dateStyle: "medium", timeStyle: "short" })}: ${entry.state}`);
  if (picker.dataset.options !== options.join()) {
    picker.dataset.options = options.join();
    picker.replaceChildren(...cycles.map((entry, index) => element("option", { value: entry.id, textContent: options[index] })));
  }
  if (cycle) picker.value = cycle.id;
}

function parts(cycle) {
  const evaluation = cycle.stages.find((status) => status.stage === "evaluate")?.result;
  const decision = cycle.stages.find((status) => status.stage === "release")?.result?.decision;
  const answers = evaluation ? answersOf(evaluation) : null;
  return [summary(cycle), stageTable(cycle), evaluation && scoresOf(evaluation), decision && checks(decision), answers].filter(Boolean);
}

function summary(cycle) {
  const { student, recipe } = cycle.parameters;
  const started = new Date(cycle.created_at).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
  return element(
    "p",
    { className: "summary" },
    element("strong", { className: `badge ${cycle.state}`, textContent: cycle.state }),
    ` ${student}, recipe ${recipe}. Started ${started}. `,
    cycle.reason || "",
  );
}

function stageTable(cycle) {
  const head = element("tr", {}, ...["Stage", "State", "What came of it", "Time"].map((text) => element("th", { scope: "col", textContent: text })));
  const rows = cycle.stages.map((status) =>
    element(
      "tr",
      { className: status.state },
      element("th", { scope: "row" }, element("span", { textContent: status.stage }), element("small", { textContent: STAGE_WORDS[status.stage] || "" })),
      element("td", {}, element("span", { className: `badge ${status.state}`, textContent: status.state })),
      element("td", { className: "outcome" }, ...outcome(status)),
      element("td", { className: "number", textContent: status.spent ? seconds(status.spent.wall_seconds) : "" }),
    ),
  );
  return element("table", { className: "stages" }, element("caption", { className: "hidden", textContent: "Stages of the cycle" }), element("thead", {}, head), element("tbody", {}, ...rows));
}

function outcome(status) {
  if (status.error && status.state !== "done") return [element("span", { className: "bad", textContent: status.error })];
  if (status.result) return [outcomeText(status)].flat().map((line) => element("div", { textContent: line }));
  if (!["running", "queued"].includes(status.state)) return [];
  const { done = 0, total = 0, note = "" } = status.progress || {};
  const bar = element("progress", { "aria-label": `Progress of ${status.stage}`, max: total || 1 });
  if (total) bar.value = done; // without a value the bar says 'at work, length unknown'
  if (status.state === "queued") return withCode("waits for a worker; `everswarm worker` starts one");
  const text = [total ? `${done} of ${total}` : "", note].filter(Boolean).join(", ");
  return [bar, element("small", { textContent: text || "at work" })];
}

function outcomeText({ stage, result }) {
  try {
    return OUTCOMES[stage](result);
  } catch {
    return ""; // a record of another version: its state still says enough
  }
}

function taught({ teacher, texts, tokens, top_k, top_k_mass, shards }) {
  const { source, hindsight } = teacher.asked;
  const who = `${source === "student" ? "the student" : teacher.model.split(/[/\\]/).at(-1)}${hindsight ? " in hindsight" : ""}`;
  const count = Object.values(texts).reduce((sum, number) => sum + number, 0);
  const bytes = shards.reduce((sum, shard) => sum + shard.size_bytes, 0);
  const said = tokens ? `${tokens} tokens; the top ${top_k} hold ${percent(top_k_mass)} of its mass` : "text only";
  return `${who}: ${count ? `${count} texts, ` : ""}${said} (${size(bytes)})`;
}

/** The record of a cycle from when there was one teacher, the student. */
const onlyTeacher = (result) => ({ ...result, texts: {}, teacher: { ...result.teacher, asked: { source: "student", hindsight: result.teacher.hindsight } } });

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const OUTCOMES = {
  snapshot: (result) => `${result.interactions} judged interactions`,
  curate: ({ card, data }) => {
    const dropped = card.dropped.reduce((sum, entry) => sum + entry.count, 0);
    const { train, validation, test } = card.examples;
    return `${train} to learn from, ${validation} to watch, ${test} held out; ${dropped} dropped (${size(data.size_bytes)})`;
  },
  label: (result) => (result.caches ?? [onlyTeacher(result)]).map(taught),
  distill: ({ steps, trained_tokens, curve, weights }) => {
    const nats = (point) => point.cross_entropy.toFixed(2); // not the loss: it changes with what the teachers are heard on
    const losses = curve.length ? `, ${nats(curve[0])} → ${nats(curve.at(-1))} nats a token` : "";
    return `${steps} steps, ${trained_tokens} tokens${losses} (${size(weights.size_bytes)})`;
  },
  export: ({ adapter_gguf, base_gguf, quantization }) =>
    `adapter of ${size(adapter_gguf.size_bytes)}, ${percent(adapter_gguf.size_bytes / base_gguf.size_bytes)} of its base (${quantization})`,
  evaluate: ({ scores }) => {
    const texts = (suite) => Math.max(0, ...scores.filter((score) => score.suite === suite).map((score) => score.examples));
    return `${texts("test")} held-out questions, ${texts("general")} general texts`;
  },
  release: ({ release }) => (release ? `release ${release.version}` : "not released"),
};

function checks(decision) {
  const lines = decision.checks.map((check) =>
    element("li", { className: check.passed ? "passed" : "missed" }, element("strong", { textContent: check.passed ? "passed: " : "missed: " }), `${check.name}: ${check.found} (limit: ${check.limit})`),
  );
  return element("section", {}, element("h3", { textContent: "The gate" }), element("ul", { className: "checks" }, ...lines));
}
