// Builds elements from text, never from HTML: what a model wrote must not become part of the page.

/** Return a new element; `properties` are DOM properties, or attributes where the name has a dash or is `role`. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

export const byId = (id) => document.getElementById(id);

/** Show `text` in a notice, or hide the notice when there is none. */
export function notice(target, text) {
  target.replaceChildren(...withCode(text || ""));
  target.hidden = !text;
}

/** Return text with `commands in backticks` as <code>. */
export function withCode(text) {
  return text.split("`").map((part, index) => (index % 2 ? element("code", { textContent: part }) : part));
}

export function seconds(value) {
  if (value < 60) return `${value.toFixed(1)} s`;
  const rounded = Math.round(value);
  return `${Math.floor(rounded / 60)} min ${String(rounded % 60).padStart(2, "0")} s`;
}

export function size(bytes) {
  for (const [unit, factor] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (bytes >= factor) return `${(bytes / factor).toFixed(2)} ${unit}`;
  }
  return `${bytes} B`;
}
