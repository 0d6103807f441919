// Under each answer: rate it, correct it, say whether it may be used for training.

import { post } from "./api.js";
import { element } from "./elements.js";

const WORDS = ["bad", "poor", "fair", "good", "excellent"];
let consentLastTime = false; // the choice is kept for the next answer, in sight, until the page is left
let forms = 0;

export function feedbackForm(interactionId, answer, onSent) {
  const name = `rating-${(forms += 1)}`;
  const correction = element("textarea", { id: `${name}-correction`, value: answer, rows: 4, maxLength: 100000 });
  const correctionBox = element(
    "div",
    { className: "correction", hidden: true },
    element("label", { htmlFor: correction.id, textContent: "What it should have said" }),
    correction,
  );
  const consent = element("input", { type: "checkbox", checked: consentLastTime });
  const send = element("button", { type: "submit", className: "small", textContent: "Send feedback" });
  const said = element("p", { className: "hint", role: "status" });
  const form = element(
    "form",
    { className: "feedback", "aria-label": "Judge this answer" },
    element("div", { className: "row" }, stars(name), corrector(correctionBox, correction)),
    correctionBox,
    element(
      "div",
      { className: "row" },
      element("label", { className: "check" }, consent, " May be used for training"),
      element("span", { className: "spacer" }),
      send,
    ),
    said,
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    consentLastTime = consent.checked;
    send.disabled = true;
    await sendJudgement(judgement(form, { interactionId, answer, correction, consent }), said, onSent);
    send.disabled = false;
    said.scrollIntoView({ block: "nearest" });
  });
  return form;
}

function judgement(form, { interactionId, answer, correction, consent }) {
  const chosen = form.querySelector("input[type=radio]:checked");
  const text = correction.value.trim();
  const body = { interaction_id: interactionId, consent: consent.checked };
  if (chosen) body.rating = Number(chosen.value);
  if (text && text !== answer.trim()) body.correction = text;
  return body;
}

async function sendJudgement(body, said, onSent) {
  said.classList.remove("bad");
  if (!body.rating && !body.correction) {
    said.textContent = "Choose a rating, or write a better answer first.";
    return;
  }
  try {
    await post("/api/feedback", body);
    said.textContent = thanks(body);
    onSent();
  } catch (error) {
    said.textContent = error.message;
    said.classList.add("bad");
  }
}

/** Say what will come of it; the server counts corrections, and ratings of 4 and 5, as something to learn from. */
function thanks({ consent, rating, correction }) {
  if (!consent) return "Thank you. It is kept, and not used for training.";
  if (correction || rating >= 4) return "Thank you. The next cycle can learn from it.";
  return "Thank you. Write a better answer too, and the next cycle can learn from it.";
}

/** Five stars that are radio buttons, so that arrow keys and screen readers work. */
function stars(name) {
  const group = element("fieldset", { className: "stars" }, element("legend", { className: "hidden", textContent: "Rating" }));
  for (const [index, word] of WORDS.entries()) {
    const input = element("input", { type: "radio", name, value: String(index + 1), id: `${name}-${index + 1}` });
    const star = element("span", { "aria-hidden": "true", textContent: "★" });
    const label = element("span", { className: "hidden", textContent: `${index + 1} of 5, ${word}` });
    group.append(element("label", { title: word }, input, star, label));
  }
  return group;
}

function corrector(box, correction) {
  const button = element("button", { type: "button", className: "small", textContent: "Correct it", "aria-expanded": "false" });
  button.addEventListener("click", () => {
    box.hidden = !box.hidden;
    button.setAttribute("aria-expanded", String(!box.hidden));
    if (box.hidden) return;
    box.parentElement.scrollIntoView({ block: "nearest" });
    correction.focus({ preventScroll: true });
  });
  return button;
}
