/**
 * dom.js: small things that every part of the page uses.
 */

/** The element with this id. @type {(id: string) => any} */
export const $ = (id) => document.getElementById(id);

/** An element: `h("button", {className: "quiet", onclick}, "text", child)`; names with a dash or `role` become attributes. @returns {any} */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export function icon(name) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#i-${name}`);
  svg.setAttribute("aria-hidden", "true");
  svg.append(use);
  return svg;
}

/** A button that is only a picture; its name is there for those who do not see it, and on hovering. */
export function iconButton(name, label, onclick) {
  return h("button", { type: "button", className: "icon", "aria-label": label, title: label, onclick }, icon(name));
}

/** Change a button's picture and name. */
export function relabel(button, name, label) {
  if (button.dataset.shown === `${name} ${label}`) return;
  button.dataset.shown = `${name} ${label}`;
  button.querySelector("use").setAttribute("href", `#i-${name}`);
  button.setAttribute("aria-label", label);
  if (button.classList.contains("icon")) button.title = label;
}

/** A delete button that asks once more, in its own place, and goes back by itself. `act` may take its time. */
export function deleteButton(label, act) {
  let back = null;
  const calm = () => {
    clearTimeout(back);
    button.classList.remove("sure");
    button.replaceChildren(icon("bin"));
    button.setAttribute("aria-label", label);
  };
  const button = iconButton("bin", label, async () => {
    if (!button.classList.contains("sure")) {
      button.classList.add("sure");
      button.replaceChildren("Delete?");
      button.setAttribute("aria-label", `${label}: press again to delete for good`);
      back = setTimeout(calm, 4000);
      return;
    }
    clearTimeout(back);
    button.disabled = true;
    try {
      await act();
    } finally {
      button.disabled = false;
      calm();
    }
  });
  button.addEventListener("blur", calm);
  return button;
}

/** 83.4 as "1:23". */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(Number.isFinite(seconds) ? seconds + 0.05 : 0));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

const RELATIVE = new Intl.RelativeTimeFormat("en", { numeric: "auto" });

/** "2 minutes ago". */
export function ago(timestamp) {
  const seconds = (Date.parse(timestamp) - Date.now()) / 1000;
  /** @type {[Intl.RelativeTimeFormatUnit, number][]} */
  const units = [["day", 86400], ["hour", 3600], ["minute", 60]];
  for (const [unit, size] of units) {
    if (-seconds >= size) return RELATIVE.format(Math.ceil(seconds / size), unit);
  }
  return "just now";
}

/** Every voice has a colour of its own, by its id. */
export function colour(element, id) {
  let hash = 7;
  for (const character of String(id)) hash = (hash * 31 + character.charCodeAt(0)) >>> 0;
  element.style.setProperty("--hue", String((hash * 137) % 360));
}

/** Say something in passing. Problems stay longer. */
export function toast(sentence, kind = "news") {
  const dismiss = () => message.remove();
  const message = h("p", { className: `toast ${kind}` }, sentence, iconButton("close", "Dismiss", dismiss));
  $("toasts").append(message);
  setTimeout(dismiss, kind === "news" ? 5000 : 12000);
}

/** Run what a button does: the button waits for it, and a failure becomes a sentence in `problem` (or in passing). */
export async function attempt(button, act, problem = null) {
  if (problem) problem.textContent = "";
  if (button) button.disabled = true;
  try {
    return await act();
  } catch (error) {
    if (error.name === "AbortError") return undefined;
    if (problem) problem.textContent = error.message;
    else toast(error.message, "trouble");
    return undefined;
  } finally {
    if (button) button.disabled = false;
  }
}

/** Save bytes as a file. */
export function save(blob, name) {
  const url = URL.createObjectURL(blob);
  const link = h("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** Calls once, when nobody has called again for `milliseconds`. */
export function settled(milliseconds, act) {
  let timer = null;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => act(...values), milliseconds);
  };
}
