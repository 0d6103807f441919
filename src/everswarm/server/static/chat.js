// The conversation: asks, shows what goes on and the answer while it comes, stops it; shows one that the server kept.

import { chatStream, get } from "./api.js";
import { byId, element, notice, withCode } from "./elements.js";
import { feedbackForm } from "./feedback.js";
import { traceOf } from "./trace.js";

const IDEAS = ["How many metres are 3.5 km?", "Explain a rainbow in one short sentence.", "Write a haiku about bees."];
const MEANINGS = { everswarm: "everswarm (the swarm decides)" };
const WEB_MODELS = ["everswarm", "primary", "coordinator", "specialist"];

const begun = (id = null, messages = []) => ({ id, messages, kept: messages.length });
const emptied = byId("empty");

let talk = begun(); // what is shown: its id where the server keeps it, and how many of its messages it has kept
let stopping = null; // AbortController of the answer that is coming
let opening = null; // id of the conversation that is on its way
let tell; // {onAnswer, onThread}

/** Prepare the chat. `onAnswer(failure)` after each answer and judgement, `onThread(id)` when another one is shown. */
export function startChat(callbacks) {
  tell = callbacks;
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    ask(byId("question").value);
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
    button.addEventListener("click", () => ask(idea));
    byId("ideas").append(element("li", {}, button));
  }
}

export const currentThread = () => talk.id;

export function clearChat() {
  change(begun(), [emptied]);
  byId("question").focus();
}

/** Show a conversation that the server kept; throws a ServerError where there is none. */
export async function openThread(id) {
  opening = id;
  const thread = await get(`/api/threads/${encodeURIComponent(id)}`);
  if (opening !== id) return; // something else was asked for meanwhile
  change(begun(thread.id, thread.messages.map(({ role, content }) => ({ role, content }))), []);
  for (const turn of thread.messages) {
    if (turn.role === "user") show("you", "You", turn.content);
    else judgeable(show("model", "everswarm", turn.content).box, turn.interaction_id, turn.content);
  }
  keepInView(true);
}

function change(next, shown) {
  stopping?.abort();
  opening = null;
  talk = next;
  notice(byId("chat-error"), "");
  byId("log").replaceChildren(...shown);
  tell.onThread(next.id);
}

export async function showModels() {
  const { data } = await get("/v1/models");
  const names = data.map((model) => model.id);
  const ordered = [...WEB_MODELS.filter((name) => names.includes(name)), ...names.filter((name) => !WEB_MODELS.includes(name))];
  const picker = byId("model");
  const chosen = picker.value;
  picker.replaceChildren(...ordered.map((name) => element("option", { value: name, textContent: MEANINGS[name] || name })));
  if (ordered.includes(chosen)) picker.value = chosen;
}

async function ask(question) {
  if (stopping || !question.trim()) return;
  emptied.remove();
  byId("question").value = "";
  const content = question.trim();
  talk.messages.push({ role: "user", content });
  show("you", "You", content);
  const answer = show("model", byId("model").value, "");
  keepInView(true);
  await stream(answer, talk);
}

async function stream(answer, asked) {
  stopping = new AbortController();
  setBusy(true, answer);
  const received = { id: null, text: "", stopped: false };
  let failure = null;
  try {
    const body = { model: byId("model").value, messages: asked.messages.slice(asked.kept) };
    for await (const told of chatStream(body, { signal: stopping.signal, thread: asked.id || "new" })) {
      if (told.thread) asked.id = told.thread;
      if (told.status) sayStatus(answer, told.status);
      if (told.chunk) addPiece(answer, received, told.chunk);
    }
  } catch (error) {
    received.stopped = error.name === "AbortError";
    if (!received.stopped) failure = error;
  }
  stopping = null;
  setBusy(false, answer);
  finish(answer, asked, received, failure);
}

function addPiece(answer, received, chunk) {
  received.id = received.id || chunk.id;
  sayWho(answer, chunk.model);
  const text = chunk.choices?.[0]?.delta?.content;
  if (!text) return;
  received.text += text;
  sayStatus(answer, "");
  answer.text.textContent = received.text;
  keepInView();
}

/** Say what goes on before there is text; aloud outside the log, which is busy and therefore silent. */
function sayStatus(answer, status) {
  const text = status && `${status} …`;
  if (answer.status.textContent === text) return;
  answer.status.textContent = byId("chat-said").textContent = text;
  keepInView();
}

/** Name the model that answers beside what was asked for: the swarm and the roles are several models' names. */
function sayWho(answer, model) {
  const short = model?.split("/").at(-1);
  if (short && !answer.who.textContent.includes(short)) answer.who.textContent += ` · ${short}`;
}

function finish(answer, asked, received, failure) {
  sayStatus(answer, "");
  if (received.text) asked.messages.push({ role: "assistant", content: received.text });
  else giveBack(asked, asked.messages.pop().content); // a question without an answer would confuse the next one
  if (received.stopped) answer.box.append(element("p", { className: "hint", textContent: asked.id ? "Stopped. What is stopped is not kept." : "Stopped." }));
  if (failure) answer.box.append(element("p", { className: "notice bad", role: "alert" }, ...withCode(failure.message)));
  else if (!received.text && !received.stopped) answer.box.append(element("p", { className: "hint", textContent: "The model gave an empty answer." }));
  if (received.id && received.text && !failure && !received.stopped) {
    judgeable(answer.box, received.id, received.text);
    if (asked.id) asked.kept = asked.messages.length; // the server puts it in front of the next question
    if (asked === talk) tell.onThread(asked.id);
  }
  if (failure?.status === 404) Object.assign(asked, { id: null, kept: 0 }); // deleted elsewhere: begin a new one with all of it
  keepInView();
  tell.onAnswer(failure);
}

function judgeable(box, interactionId, text) {
  if (interactionId && text) box.append(traceOf(interactionId), feedbackForm(interactionId, text, tell.onAnswer));
}

/** Put a question that was not answered back where it was written, unless the next one is there already. */
function giveBack(asked, question) {
  if (asked === talk && !byId("question").value) byId("question").value = question;
}

function show(kind, name, content) {
  const text = element("p", { className: "text", textContent: content });
  const who = element("h3", { textContent: name });
  const status = element("p", { className: "hint doing" });
  const box = element("article", { className: `turn ${kind}` }, who, status, text);
  byId("log").append(box);
  return { box, who, status, text };
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
