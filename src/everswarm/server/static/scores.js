// Scores before and after, with their intervals, from an evaluation record. Pure: record in, elements out.

import { element } from "./elements.js";

const METRICS = { bits_per_byte: "bits per byte", perplexity: "perplexity", bleu: "BLEU", rouge_l: "ROUGE-L" };
const WEIGHTS = { hf: "full precision", gguf: "as it ships" };
const SUITES = { test: "held-out questions", general: "general text" };
const SUBJECTS = { base: "Base", incumbent: "In use", candidate: "New" };

const DIGITS = { perplexity: 2, bleu: 1 }; // after the point; 3 for the others

const number = (value, metric) => value.toFixed(DIGITS[metric] ?? 3);
const signed = (value, metric) => (value < 0 ? "−" : "+") + number(Math.abs(value), metric);
const keyOf = ({ suite, weights, metric }) => `${suite} ${weights} ${metric}`;

export function scoresOf(evaluation) {
  const subjects = Object.keys(SUBJECTS).filter((subject) => evaluation.scores.some((score) => score.subject === subject));
  const rows = new Map();
  for (const score of evaluation.scores) {
    if (!rows.has(keyOf(score))) rows.set(keyOf(score), {});
    rows.get(keyOf(score))[score.subject] = score;
  }
  const head = ["Score", ...subjects.map((subject) => SUBJECTS[subject]), "Change"];
  const table = element(
    "table",
    { className: "scores" },
    element("caption", { className: "hidden", textContent: "Scores before and after, with 95 % intervals" }),
    element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { scope: "col", textContent: text })))),
    element("tbody", {}, ...[...rows].map(([key, found]) => scoreRow(found, subjects, changeOf(evaluation, key)))),
  );
  return element("section", {}, element("h3", { textContent: "Before and after" }), element("p", { className: "hint", textContent: "In brackets: 95 % intervals over the questions." }), table);
}

function scoreRow(found, subjects, change) {
  const any = Object.values(found)[0];
  const arrow = any.better === "lower" ? "lower is better" : "higher is better";
  const title = element(
    "th",
    { scope: "row" },
    element("span", { textContent: METRICS[any.metric] || any.metric }),
    element("small", { textContent: `${SUITES[any.suite] || any.suite}, ${WEIGHTS[any.weights] || any.weights}; ${arrow}` }),
  );
  const cells = subjects.map((subject) => {
    const score = found[subject];
    const text = score ? [number(score.value, score.metric), element("small", { textContent: `[${number(score.low, score.metric)}, ${number(score.high, score.metric)}]` })] : ["–"];
    return element("td", { className: "number", "data-label": SUBJECTS[subject] }, ...text);
  });
  return element("tr", {}, title, ...cells, changeCell(change));
}

/** Return the paired comparison with what is in use, else with the base. */
function changeOf(evaluation, key) {
  const found = evaluation.comparisons.filter((comparison) => keyOf(comparison) === key);
  return found.find((comparison) => comparison.baseline === "incumbent") || found[0];
}

function changeCell(change) {
  if (!change) return element("td", { className: "number", "data-label": "Change" }, "–");
  const { difference, low, high, better, metric } = change;
  const clear = low > 0 || high < 0;
  const good = better === "lower" ? high < 0 : low > 0;
  const verdict = clear ? (good ? "better" : "worse") : "no clear difference";
  return element(
    "td",
    { className: `number ${clear ? (good ? "good" : "bad") : ""}`, "data-label": "Change" },
    signed(difference, metric),
    element("small", { textContent: `[${signed(low, metric)}, ${signed(high, metric)}]` }),
    element("small", { className: "verdict", textContent: verdict }),
  );
}

/** Return the held-out questions with the answers before and after; null where there are none. */
export function answersOf(evaluation) {
  if (!evaluation.answers.length) return null;
  const items = evaluation.answers.map(({ question, reference, answers }) => {
    const lines = Object.entries(answers).map(([who, text]) => {
      const [subject, weights] = who.split("/");
      return [`${SUBJECTS[subject] || subject} (${WEIGHTS[weights] || weights})`, text];
    });
    const said = [...lines, ["Wanted", reference]].flatMap(([who, text]) => [element("dt", { textContent: who }), element("dd", { textContent: text })]);
    return element("li", {}, element("p", { className: "asked", textContent: question }), element("dl", {}, ...said));
  });
  return element("details", { className: "answers" }, element("summary", { textContent: `What it said to ${items.length} held-out questions` }), element("ul", {}, ...items));
}
