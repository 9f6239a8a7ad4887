/**
 * undo.js: what is deleted goes out of sight at once, and for good only a few seconds later. Until then it can be had back.
 */
import { toast } from "./dom.js";
import { keep, kept } from "./keep.js";

const WAIT_MS = 8000;
const waiting = new Set(); // what will be done, oldest first

/**
 * @param sentence what is said meanwhile
 * @param act does it; `act(true)` when the page is being left, so that the request must outlive it
 * @param back puts back what was taken out of sight
 */
export function later(sentence, { act, back }) {
  const settle = () => {
    clearTimeout(timer);
    waiting.delete(entry);
    dismiss();
  };
  const entry = {
    now: (leaving) => {
      settle();
      Promise.resolve(act(leaving)).catch((error) => {
        back();
        toast(error.message, "trouble");
      });
    },
    undo: () => {
      settle();
      back();
    },
  };
  const timer = setTimeout(() => entry.now(false), WAIT_MS);
  const dismiss = toast(sentence, "news", { milliseconds: WAIT_MS, action: { label: "Undo", act: () => entry.undo() } });
  waiting.add(entry);
}

/** Take back what was done last; false where nothing can be. */
export function undo() {
  const last = Array.from(waiting).pop();
  last?.undo();
  return Boolean(last);
}

/**
 * What was being deleted when the page was left: a page that is loaded again hides it, and asks once more for what the
 * request on the way out may not have reached.
 */
export class Leaving {
  #name;
  #remove;
  #left;

  /** @param name under which it is kept; @param remove deletes one, by its id */
  constructor(name, remove) {
    this.#name = name;
    this.#remove = remove;
    this.#left = kept(name) ?? [];
    this.ids = new Set(this.#left);
  }

  note(ids) {
    keep(this.#name, [...(kept(this.#name) ?? []), ...ids]);
  }

  async finish() {
    const left = this.#left.splice(0);
    if (!left.length) return;
    keep(this.#name, undefined);
    await Promise.allSettled(left.map((id) => this.#remove(id)));
  }
}

/** Do everything that still waits. */
export function settleAll(leaving = false) {
  for (const entry of Array.from(waiting)) entry.now(leaving);
}

globalThis.addEventListener("pagehide", () => settleAll(true));
