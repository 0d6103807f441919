// Scores before and after, with their intervals, from an evaluation record. Pure: record in, elements out.

import { element } from "./elements.js";

const METRICS = { bits_per_byte: "bits per byte", perplexity: "perplexity", bleu: "BLEU", rouge_l: "ROUGE-L" };
const WEIGHTS = { gguf: "as it ships", hf: "in full precision" }; // the first that was scored is shown, the other on request
const SUITES = { test: "Held-out questions", general: "General text" };
const SUBJECTS = { base: "Base", incumbent: "In use", candidate: "New" };
const DIGITS = { perplexity: 2, bleu: 1 }; // after the point; 3 for the others

const number = (value, metric) => value.toFixed(DIGITS[metric] ?? 3);
const signed = (value, metric) => (value < 0 ? "−" : "+") + number(Math.abs(value), metric);
const isAbout = (wanted) => (found) => ["suite", "weights", "metric"].every((name) => found[name] === wanted[name]);

export function scoresOf(evaluation) {
  const [shown, ...others] = Object.keys(WEIGHTS).filter((weights) => evaluation.scores.some((score) => score.weights === weights));
  if (!shown) return null;
  const baseline = evaluation.incumbent_gguf ? "what is in use" : "the base model";
  return element(
    "section",
    {},
    element("h3", { textContent: `Before and after, ${WEIGHTS[shown]}` }),
    element("p", { className: "hint", textContent: `In brackets: 95 % intervals. Change: new against ${baseline}, on the same texts.` }),
    scoreTable(evaluation, shown),
    ...others.map((weights) =>
      element("details", { className: `scores-${weights}` }, element("summary", { textContent: `The same ${WEIGHTS[weights]}` }), scoreTable(evaluation, weights)),
    ),
  );
}

function scoreTable(evaluation, weights) {
  const scores = evaluation.scores.filter((score) => score.weights === weights);
  const subjects = Object.keys(SUBJECTS).filter((subject) => scores.some((score) => score.subject === subject));
  const head = ["Score", ...subjects.map((subject) => SUBJECTS[subject]), "Change"];
  const groups = [...new Set(scores.map((score) => score.suite))].map((suite) => suiteRows(evaluation, scores.filter((score) => score.suite === suite), subjects));
  return element(
    "table",
    { className: "scores" },
    element("caption", { className: "hidden", textContent: `Scores before and after ${WEIGHTS[weights]}, with 95 % intervals` }),
    element("thead", {}, element("tr", {}, ...head.map((text) => element("th", { scope: "col", textContent: text })))),
    ...groups,
  );
}

function suiteRows(evaluation, scores, subjects) {
  const { suite, examples } = scores[0];
  const title = element("th", { scope: "rowgroup", colSpan: subjects.length + 2 }, SUITES[suite] || suite, element("small", { textContent: ` ${examples} texts` }));
  const metrics = [...new Set(scores.map((score) => score.metric))];
  const rows = metrics.map((metric) => {
    const found = scores.filter((score) => score.metric === metric);
    return scoreRow(found, subjects, changeOf(evaluation, found[0]));
  });
  return element("tbody", {}, element("tr", { className: "suite" }, title), ...rows);
}

function scoreRow(found, subjects, change) {
  const { metric, better } = found[0];
  const title = element("th", { scope: "row" }, element("span", { textContent: METRICS[metric] || metric }), element("small", { textContent: `${better} is better` }));
  const cells = subjects.map((subject) => {
    const score = found.find((entry) => entry.subject === subject);
    const text = score ? [number(score.value, metric), element("small", { textContent: `[${number(score.low, metric)}, ${number(score.high, metric)}]` })] : ["–"];
    return element("td", { className: "number", "data-label": SUBJECTS[subject] }, ...text);
  });
  return element("tr", {}, title, ...cells, changeCell(change));
}

/** Return the paired comparison with what is in use, else with the base. */
function changeOf(evaluation, score) {
  const found = evaluation.comparisons.filter(isAbout(score));
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
    const said = [...saidBy(answers), ["Wanted", reference]].flatMap(([who, text]) => [element("dt", { textContent: who }), element("dd", { textContent: text })]);
    return element("li", {}, element("p", { className: "asked", textContent: question }), element("dl", {}, ...said));
  });
  return element("details", { className: "answers" }, element("summary", { textContent: `What it said to ${items.length} held-out questions` }), element("ul", {}, ...items));
}

/** Return [who, text] for the answers of the weights that ship, else of the others; keys are such as "base/gguf". */
function saidBy(answers) {
  const weights = Object.keys(WEIGHTS).find((name) => Object.keys(answers).some((key) => key.endsWith(`/${name}`)));
  return Object.keys(SUBJECTS)
    .filter((subject) => `${subject}/${weights}` in answers)
    .map((subject) => [SUBJECTS[subject], answers[`${subject}/${weights}`]]);
}
