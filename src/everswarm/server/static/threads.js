// The conversations that the server keeps: a list to open, rename, export and delete them from.

import { file, get, patch, remove } from "./api.js";
import { byId, element, notice } from "./elements.js";

const PAGE = 50; // conversations at a time
const UNTITLED = "Without a title";
const drawer = byId("threads");
const when = (timestamp) => new Date(timestamp).toLocaleString([], { dateStyle: "medium", timeStyle: "short" });
const pathOf = (thread) => `/api/threads/${thread.id}`;

let last = null; // the oldest that was asked for
let page; // {current, open, gone}

/** Prepare the list. `current()` is the id of what is shown, `open(id)` shows another, `gone(id)` says it was deleted. */
export function startThreads(callbacks) {
  page = callbacks;
  byId("show-threads").addEventListener("click", showThreads);
  byId("close-threads").addEventListener("click", hideThreads);
  byId("older-threads").addEventListener("click", () => tried(addPage));
  drawer.addEventListener("click", (event) => event.target === drawer && hideThreads()); // beside it
}

/** Offer the list where the server has one. */
export async function lookForThreads() {
  try {
    await get("/api/threads?limit=1");
    byId("show-threads").hidden = false;
  } catch (error) {
    if (error.status !== 404) throw error;
    byId("show-threads").hidden = true;
  }
}

export function hideThreads() {
  drawer.close();
  byId("thread-list").replaceChildren();
}

async function showThreads() {
  last = null;
  byId("thread-list").replaceChildren();
  byId("no-threads").hidden = byId("older-threads").hidden = true;
  drawer.showModal();
  await tried(addPage);
}

async function addPage() {
  const before = last ? `&before=${encodeURIComponent(last.updated_at)}` : "";
  const found = await get(`/api/threads?limit=${PAGE}${before}`);
  byId("thread-list").append(...found.map(itemOf));
  last = found.at(-1);
  byId("older-threads").hidden = found.length < PAGE;
  sayNoneWhereNone();
}

function sayNoneWhereNone() {
  byId("no-threads").hidden = byId("thread-list").childElementCount > 0 || !byId("older-threads").hidden;
}

/** Do what can fail, and say in the list why it did. */
async function tried(work) {
  notice(byId("threads-error"), "");
  try {
    await work();
    return true;
  } catch (error) {
    notice(byId("threads-error"), error.message);
    return false;
  }
}

function itemOf(thread) {
  const item = element("li", {});
  drawItem(item, thread);
  return item;
}

function drawItem(item, thread) {
  const title = thread.title || UNTITLED;
  const said = `${when(thread.updated_at)} · ${thread.turns} ${thread.turns === 1 ? "turn" : "turns"}`;
  const open = element("button", { type: "button", className: "open" }, element("span", { textContent: title }), element("small", { textContent: said }));
  if (thread.id === page.current()) open.setAttribute("aria-current", "true");
  open.addEventListener("click", async () => {
    if (await tried(() => page.open(thread.id))) hideThreads();
  });
  const actions = { Rename: () => askForTitle(item, thread), Export: () => tried(() => save(thread)), Delete: () => askWhetherToDelete(item, thread) };
  const buttons = Object.entries(actions).map(([name, act]) => button(name, act, { "aria-label": `${name} “${title}”` }));
  item.replaceChildren(open, element("div", { className: "row" }, ...buttons));
}

function button(textContent, act, properties = {}) {
  const made = element("button", { type: "button", className: "quiet small", textContent, ...properties });
  made.addEventListener("click", act);
  return made;
}

function askForTitle(item, thread) {
  const title = element("input", { type: "text", value: thread.title || "", maxLength: 200, required: true, "aria-label": "Title" });
  const save = element("button", { type: "submit", className: "small", textContent: "Save" });
  const form = element("form", { className: "renaming" }, title, element("div", { className: "row" }, save, button("Leave it", () => drawAndFocus(item, thread))));
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    await tried(async () => drawAndFocus(item, await patch(pathOf(thread), { title: title.value })));
  });
  item.replaceChildren(form);
  title.select();
}

function askWhetherToDelete(item, thread) {
  const question = `Delete “${thread.title || UNTITLED}”? Answers that nobody has judged are deleted with it.`;
  const keep = button("Keep it", () => drawAndFocus(item, thread));
  const confirm = button("Delete it", () => deleteThread(item, thread), { className: "stop small" });
  item.replaceChildren(element("p", { textContent: question }), element("div", { className: "row" }, confirm, keep));
  keep.focus();
}

async function deleteThread(item, thread) {
  const gone = await tried(() => remove(pathOf(thread)));
  if (!gone) return;
  const next = item.nextElementSibling || item.previousElementSibling;
  item.remove();
  sayNoneWhereNone();
  page.gone(thread.id);
  (next?.querySelector("button") || byId("close-threads")).focus();
}

function drawAndFocus(item, thread) {
  drawItem(item, thread);
  item.querySelector("button").focus();
}

async function save(thread) {
  const { name, content } = await file(`${pathOf(thread)}/export?format=markdown`);
  const address = URL.createObjectURL(content);
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000); // the browser has it by then
}
