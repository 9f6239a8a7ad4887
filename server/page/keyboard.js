/**
 * keyboard.js: the keys of the page, and the place that names them.
 */
import { $, h } from "./dom.js";
import { keep, kept } from "./keep.js";

const SINGLE = "utter.singleKeys";

export const APPLE = /mac|iphone|ipad/i.test(navigator.platform ?? "");
export const commandKey = APPLE ? "⌘" : "Ctrl";

/** Whether this is where people write, and undo what they wrote. */
function isWritten(target) {
  return Boolean(target.closest("input:not([type=radio], [type=checkbox], [type=range]), textarea, [contenteditable]"));
}

/** Whether a key that is pressed here writes something, or already means something. */
function isTaken(target) {
  return Boolean(target.closest("input:not([type=radio]), textarea, select, button, a, summary, [role=menu], [contenteditable]"));
}

export class Keyboard {
  #single = kept(SINGLE, "localStorage") ?? true;

  /** @param acts `{playOrPause, skip(seconds), cancel, undo, search}` */
  constructor(acts) {
    const single = [
      { keys: ["Space", "K"], says: "Play or pause", act: acts.playOrPause, codes: [" ", "k"] },
      { keys: ["J"], says: "Five seconds back", act: () => acts.skip(-5), codes: ["j"] },
      { keys: ["L"], says: "Five seconds on", act: () => acts.skip(5), codes: ["l"] },
      { keys: ["/"], says: "Search the history", act: acts.search, codes: ["/"] },
      { keys: ["?"], says: "Show these keys", act: () => this.show(), codes: ["?"] },
    ];
    const combined = [
      { keys: [commandKey, "↵"], says: "Generate" },
      { keys: [commandKey, "Shift", "↵"], says: "Speak it after the others" },
      { keys: [commandKey, "."], says: "Cancel what is being spoken", act: acts.cancel, code: "." },
      { keys: [commandKey, "Z"], says: "Undo a deletion, where nothing is being written", act: acts.undo, code: "z" },
    ];
    $("key-list").replaceChildren(...[...combined, ...single].flatMap(({ keys, says }) => [
      h("dt", {}, ...keys.flatMap((key, i) => [i ? " " : "", h("kbd", {}, key)])), h("dd", {}, says),
    ]));
    $("single-keys").checked = this.#single;
    $("single-keys").onchange = () => {
      this.#single = $("single-keys").checked;
      keep(SINGLE, this.#single, "localStorage");
    };
    $("open-keys").onclick = () => this.show();
    document.addEventListener("keydown", (event) => {
      if (event.defaultPrevented || event.isComposing || event.altKey || document.querySelector("dialog[open]")) return;
      const key = event.key.toLowerCase();
      if (event.ctrlKey || event.metaKey) {
        const hit = combined.find(({ code }) => code === key);
        if (!hit || event.shiftKey || (key === "z" && isWritten(event.target))) return;
        if (hit.act() !== false) event.preventDefault();
      } else if (this.#single && !isTaken(event.target)) {
        const hit = single.find(({ codes }) => codes.includes(key));
        if (!hit) return;
        event.preventDefault();
        hit.act();
      }
    });
  }

  show() { $("keys").showModal(); }
}
