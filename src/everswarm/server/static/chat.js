// The conversation: asks, shows the answer while it comes, stops it.

import { chatStream, get } from "./api.js";
import { byId, element, withCode } from "./elements.js";
import { feedbackForm } from "./feedback.js";

const IDEAS = ["How many metres are 3.5 km?", "Explain a rainbow in one short sentence.", "Write a haiku about bees."];
const MEANINGS = { everswarm: "everswarm (the swarm decides)" };
const WEB_MODELS = ["everswarm", "primary", "coordinator", "specialist"];

let turns = []; // what the model is sent: {role, content}
let stopping = null; // AbortController of the answer that is coming

export function startChat({ onAnswer }) {
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    ask(byId("question").value, onAnswer);
  });
  byId("question").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    byId("composer").requestSubmit();
  });
  byId("stop").addEventListener("click", () => stopping?.abort());
  byId("new-chat").addEventListener("click", clearChat);
  for (const idea of IDEAS) {
    const button = element("button", { type: "button", className: "idea", textContent: idea });
    button.addEventListener("click", () => ask(idea, onAnswer));
    byId("ideas").append(element("li", {}, button));
  }
}

export function clearChat() {
  stopping?.abort();
  turns = [];
  byId("log").replaceChildren(emptied);
  byId("question").focus();
}

const emptied = byId("empty");

export async function showModels() {
  const { data } = await get("/v1/models");
  const names = data.map((model) => model.id);
  const ordered = [...WEB_MODELS.filter((name) => names.includes(name)), ...names.filter((name) => !WEB_MODELS.includes(name))];
  const picker = byId("model");
  const chosen = picker.value;
  picker.replaceChildren(...ordered.map((name) => element("option", { value: name, textContent: MEANINGS[name] || name })));
  if (ordered.includes(chosen)) picker.value = chosen;
}

async function ask(question, onAnswer) {
  if (stopping || !question.trim()) return;
  emptied.remove();
  byId("question").value = "";
  const asked = turns;
  const content = question.trim();
  asked.push({ role: "user", content });
  show("you", "You", content);
  const answer = show("model", byId("model").value, "");
  await stream(answer, asked, onAnswer);
}

async function stream(answer, asked, onAnswer) {
  stopping = new AbortController();
  setBusy(true, answer);
  const received = { id: null, text: "", stopped: false };
  let failure = null;
  try {
    for await (const chunk of chatStream({ model: byId("model").value, messages: asked }, stopping.signal)) {
      received.id = received.id || chunk.id;
      sayWho(answer, chunk.model);
      received.text += chunk.choices?.[0]?.delta?.content || "";
      answer.text.textContent = received.text;
      keepInView();
    }
  } catch (error) {
    received.stopped = error.name === "AbortError";
    if (!received.stopped) failure = error;
  }
  stopping = null;
  setBusy(false, answer);
  finish(answer, asked, received, failure, onAnswer);
}

/** Name the model that answers beside what was asked for: the swarm and the roles are several models' names. */
function sayWho(answer, model) {
  const short = model?.split("/").at(-1);
  if (short && !answer.who.textContent.includes(short)) answer.who.textContent += ` · ${short}`;
}

function finish(answer, asked, received, failure, onAnswer) {
  if (received.text) asked.push({ role: "assistant", content: received.text });
  else giveBack(asked, asked.pop().content); // a question without an answer would confuse the next one
  if (received.stopped) answer.box.append(element("p", { className: "hint", textContent: "Stopped." }));
  if (failure) answer.box.append(element("p", { className: "notice bad", role: "alert" }, ...withCode(failure.message)));
  else if (!received.text && !received.stopped) answer.box.append(element("p", { className: "hint", textContent: "The model gave an empty answer." }));
  if (received.id && received.text && !failure && !received.stopped) answer.box.append(feedbackForm(received.id, received.text, onAnswer));
  keepInView();
  onAnswer(failure);
}

/** Put a question that was not answered back where it was written, unless the next one is there already. */
function giveBack(asked, question) {
  if (asked === turns && !byId("question").value) byId("question").value = question;
}

function show(kind, name, content) {
  const text = element("p", { className: "text", textContent: content });
  const who = element("h3", { textContent: name });
  const box = element("article", { className: `turn ${kind}` }, who, text);
  byId("log").append(box);
  keepInView(true);
  return { box, who, text };
}

function setBusy(busy, answer) {
  byId("log").setAttribute("aria-busy", String(busy)); // read aloud when it is whole, not word by word
  answer.box.classList.toggle("coming", busy);
  const hadFocus = [byId("send"), byId("stop")].includes(document.activeElement);
  byId("send").hidden = busy;
  byId("stop").hidden = !busy;
  if (hadFocus) (busy ? byId("stop") : byId("question")).focus();
}

/** Follow the text, unless the reader has scrolled up. */
function keepInView(always = false) {
  const log = byId("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 120;
  if (always || atEnd) log.scrollTop = log.scrollHeight;
}
