// Under each answer, on request: who did what for it, why, at what cost, and when.

import { get } from "./api.js";
import { element, seconds } from "./elements.js";

const counted = (number, thing) => `${number.toLocaleString("en")} ${thing}${number === 1 ? "" : "s"}`;
const together = (...parts) => parts.filter(Boolean).join(" · ");
const tokensOf = (record) => (record.prompt_tokens || 0) + (record.completion_tokens || 0);

/** Return a disclosure that asks for the trace when it is opened. */
export function traceOf(interactionId) {
  const content = element("div", { className: "trace-content" });
  const details = element("details", { className: "trace" }, element("summary", { textContent: "How this was answered" }), content);
  let shown = false;
  details.addEventListener("toggle", async () => {
    if (!details.open || shown) return;
    shown = true;
    try {
      content.replaceChildren(...drawn(await get(`/api/interactions/${encodeURIComponent(interactionId)}/trace`)));
    } catch (error) {
      shown = false; // the next opening asks again
      content.replaceChildren(element("p", { className: "notice bad", role: "alert", textContent: error.message }));
    }
    details.scrollIntoView({ block: "nearest" });
  });
  return details;
}

function drawn(trace) {
  const notes = trace.notes.map((note) => element("li", { textContent: note }));
  return [
    element("p", { className: "how", textContent: inOneLine(trace) }),
    notes.length ? element("ul", { className: "notes" }, ...notes) : null,
    element("ol", { className: "steps", "aria-label": "Steps" }, ...trace.steps.map((step) => stepItem(step, trace))),
  ].filter(Boolean);
}

function inOneLine(trace) {
  const tool = trace.steps.findLast((step) => step.tool && step.outcome === "done");
  const who = trace.role || tool?.tool;
  const how = ["single", "calculate"].includes(trace.strategy) ? "" : trace.strategy; // who answered says as much
  const most = trace.model_calls && trace.worst_case_tokens ? ` (at most ${trace.worst_case_tokens.toLocaleString("en")})` : "";
  const calls = trace.model_calls > 1 ? counted(trace.model_calls, "call") : "";
  return together(trace.reason, how, who, calls, counted(tokensOf(trace), "token") + most, seconds(trace.seconds));
}

function stepItem(step, trace) {
  const ended = step.outcome === "done" ? null : element("span", { className: `badge ${step.outcome}`, textContent: step.outcome });
  const tokens = step.cached ? "from the cache" : tokensOf(step) ? counted(tokensOf(step), "token") : "";
  const who = step.tool ? [element("code", { textContent: callOf(step) })] : [together(step.role, step.model, step.endpoint)];
  return element(
    "li",
    {},
    element(
      "div",
      { className: "row" },
      element("strong", { textContent: step.purpose }),
      ended,
      element("span", { className: "spacer" }),
      element("span", { className: "figures", textContent: together(tokens, seconds(step.seconds)) }),
    ),
    who[0] ? element("p", { className: "who" }, ...who) : null,
    step.why && step.why !== trace.reason ? element("p", { className: "hint", textContent: step.why }) : null,
    step.detail ? element("p", { className: "found", textContent: step.detail }) : null,
    trace.steps.length > 1 ? barOf(step, trace) : null,
  );
}

/** Return a tool with its arguments, as in `calculator(expression: 2+2)`. */
function callOf({ tool, arguments: given }) {
  const shown = Object.entries(given || {}).map(([name, value]) => `${name}: ${typeof value === "string" ? value : JSON.stringify(value)}`);
  return `${tool}(${shown.join(", ")})`;
}

/** Return a line that shows when a step ran, so that those at the same time are seen side by side. */
function barOf({ started_seconds: started, seconds: lasted }, trace) {
  const end = Math.max(trace.seconds, ...trace.steps.map((step) => step.started_seconds + step.seconds), 0.001);
  const share = (value) => `${((100 * value) / end).toFixed(2)}%`;
  const said = `Began after ${seconds(started)}, took ${seconds(lasted)}`;
  const bar = element("span");
  bar.style.setProperty("--began", share(started));
  bar.style.setProperty("--lasted", share(lasted));
  return element("div", { className: "when", role: "img", "aria-label": said, title: said }, bar);
}
