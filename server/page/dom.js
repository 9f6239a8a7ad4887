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

/** Put an element that floats (`position: fixed`) next to a button: below it where there is room, else above. */
export function place(element, button) {
  const { left, right, top, bottom } = button.getBoundingClientRect();
  const { offsetWidth: width, offsetHeight: height } = element;
  const rightToLeft = getComputedStyle(button).direction === "rtl";
  const x = rightToLeft ? left : right - width;
  const y = bottom + 6 + height <= innerHeight ? bottom + 6 : top - 6 - height;
  element.style.left = `${Math.max(8, Math.min(x, innerWidth - width - 8))}px`;
  element.style.top = `${Math.max(8, y)}px`;
}

/**
 * A panel that a button shows and hides: closed by Escape, and by whatever happens outside of it.
 * @returns what closes it; `true` gives the focus back to the button
 */
export function disclose(button, panel, opened = () => {}) {
  button.setAttribute("aria-expanded", "false");
  const close = (back = false) => {
    if (panel.hidden) return;
    panel.hidden = true;
    button.setAttribute("aria-expanded", "false");
    if (back) button.focus();
  };
  button.addEventListener("click", () => {
    if (!panel.hidden) { close(true); return; }
    panel.hidden = false;
    button.setAttribute("aria-expanded", "true");
    opened();
    place(panel, button);
    panel.querySelector("input, select, button")?.focus();
  });
  panel.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    event.stopPropagation();
    event.preventDefault();
    close(true);
  });
  const outside = ({ target }) => {
    if (!panel.contains(target) && !button.contains(target)) close();
  };
  document.addEventListener("pointerdown", outside);
  document.addEventListener("focusin", outside);
  return close;
}

/**
 * A button with a menu.
 * @param items gives what stands in it now: `{icon, label, act}`, and false for what does not
 */
export function menuButton(label, items) {
  const button = iconButton("more", label, () => showMenu(button, items().filter(Boolean)));
  button.setAttribute("aria-haspopup", "menu");
  button.setAttribute("aria-expanded", "false");
  return button;
}

/** What moves the page away from under a menu, when somebody does it. */
const MOVES = ["wheel", "touchmove"];

/** Show a menu at a button until something is chosen, or the reader turns to something else. */
export function showMenu(button, items) {
  const close = (back) => {
    document.removeEventListener("pointerdown", outside);
    for (const name of MOVES) document.removeEventListener(name, away);
    menu.remove();
    button.setAttribute("aria-expanded", "false");
    if (back) button.focus();
  };
  const away = () => close(false);
  const outside = ({ target }) => menu.contains(target) || away();
  const menu = h("div", { className: "menu", role: "menu", "aria-label": button.getAttribute("aria-label") },
    ...items.map((item) => h("button", {
      type: "button", role: "menuitem", tabIndex: -1, className: item.serious ? "serious" : "",
      onclick: () => {
        close(true); // what it does may then move the focus on
        item.act(button);
      },
    }, icon(item.icon), item.label)));
  menu.addEventListener("keydown", (event) => {
    const choices = Array.from(menu.children);
    const at = choices.indexOf(document.activeElement);
    const next = { ArrowDown: at + 1, ArrowUp: at - 1 + choices.length, Home: 0, End: choices.length - 1 }[event.key];
    if (next !== undefined) choices[next % choices.length].focus();
    else if (event.key === "Escape" || event.key === "Tab") close(true);
    else return;
    if (event.key !== "Tab") event.preventDefault();
    event.stopPropagation();
  });
  (button.closest("dialog, main") ?? document.body).append(menu);
  button.setAttribute("aria-expanded", "true");
  place(menu, button);
  menu.firstElementChild.focus({ preventScroll: true });
  document.addEventListener("pointerdown", outside);
  for (const name of MOVES) document.addEventListener(name, away, { passive: true });
}

/** Put the focus on the first of these that is there and can take it. */
export function focusFirst(...elements) {
  elements.find((element) => element && !element.disabled && element.getClientRects().length)?.focus();
}

/** Put words on the clipboard, and say so. */
export async function copy(words, sentence = "Copied.") {
  try {
    await navigator.clipboard.writeText(await words);
    toast(sentence);
  } catch (error) {
    // Pages on plain http have no clipboard: the words are shown, to be copied by hand.
    if (error.name === "UtterError") toast(error.message, "trouble");
    else toast(`Please copy it from here: ${await words}`, "trouble");
  }
}

/** 83.4 as "1:23". */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(Number.isFinite(seconds) ? seconds + 0.05 : 0));
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

const RELATIVE = new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "short" });
const CLOCK = new Intl.DateTimeFormat("en", { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
const DAY = new Intl.DateTimeFormat("en", { weekday: "long", day: "numeric", month: "long" });
const YEAR = new Intl.DateTimeFormat("en", { day: "numeric", month: "long", year: "numeric" });

/** "2 min. ago"; "14:05" for what is older than an hour. */
export function ago(timestamp) {
  const seconds = (Date.now() - Date.parse(timestamp)) / 1000;
  if (seconds >= 3600) return CLOCK.format(new Date(timestamp));
  return seconds >= 60 ? RELATIVE.format(-Math.floor(seconds / 60), "minute") : "just now";
}

/** "Today", "Yesterday", "Monday, March 2", "March 2, 2025": a day as this browser counts days. */
export function dayOf(timestamp, now = new Date()) {
  const then = new Date(timestamp);
  const midnight = (date) => new Date(date.getFullYear(), date.getMonth(), date.getDate()).getTime();
  const days = Math.round((midnight(now) - midnight(then)) / 86_400_000);
  if (days <= 0) return "Today";
  if (days === 1) return "Yesterday";
  return (days < 300 ? DAY : YEAR).format(then);
}

/** Every voice has a colour of its own, by its id. */
export function colour(element, id) {
  let hash = 7;
  for (const character of String(id)) hash = (hash * 31 + character.charCodeAt(0)) >>> 0;
  element.style.setProperty("--hue", String((hash * 137) % 360));
}

/**
 * Say something in passing. Problems stay longer; and nothing goes while somebody points at it, or is about to press it.
 * @param action `{label, act}`: a button in it
 * @returns what takes it away
 */
export function toast(sentence, kind = "news", { action = null, milliseconds = kind === "news" ? 5000 : 12000 } = {}) {
  let timer = null;
  const dismiss = () => {
    clearTimeout(timer);
    message.remove();
  };
  const wait = () => {
    clearTimeout(timer);
    timer = setTimeout(dismiss, milliseconds);
  };
  const message = h("p", { className: `toast ${kind}` }, h("span", { dir: "auto" }, sentence),
    action && h("button", { type: "button", className: "act", onclick: () => { dismiss(); action.act(); } }, action.label),
    iconButton("close", "Dismiss", dismiss));
  for (const name of ["pointerenter", "focusin"]) message.addEventListener(name, () => clearTimeout(timer));
  for (const name of ["pointerleave", "focusout"]) message.addEventListener(name, wait);
  // What is said while a dialog is open must be said in it: everything else is out of reach then.
  (document.querySelector("dialog[open] .toasts") ?? $("toasts")).append(message);
  wait();
  return dismiss;
}

/** Run what a button does: the button waits for it, and a failure becomes a sentence in `problem` (or in passing). */
export async function attempt(button, act, problem = null) {
  if (problem) problem.textContent = "";
  const back = keepFocus(button);
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
    back();
  }
}

/** A button that is disabled for a while loses the focus: this gives it back, unless it has gone elsewhere since. */
export function keepFocus(button = document.activeElement) {
  const had = button && button === document.activeElement;
  return () => {
    if (had && document.activeElement === document.body) focusFirst(button);
  };
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
