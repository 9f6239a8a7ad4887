/**
 * queue.js: several texts in a row. When one has been heard to its end, or came to none, the next is spoken.
 */
import { $, colour, focusFirst, h, iconButton } from "./dom.js";
import { keep, kept } from "./keep.js";

const QUEUE = "utter.queue";

export class Queue {
  #app;
  /** @type {import("./compose.js").Order[]} */
  #orders = kept(QUEUE) ?? [];

  /** @param app `{stage, compose}` */
  constructor(app) {
    this.#app = app;
    app.stage.addEventListener("change", ({ detail }) => {
      const { speech } = app.stage;
      // What a later text would meet as well (no network, too much to do) is not tried with each of them.
      const inVain = speech?.state === "failed" && (speech.error?.passing || speech.error?.category === "unauthorized");
      const silent = speech?.state === "cancelled" || (speech?.state === "failed" && !speech.seconds);
      // After everybody else has heard of it: they still speak of the one that is over.
      if (detail === "ended" || (detail === "end" && silent && !inVain)) queueMicrotask(() => this.#next());
      this.#offer();
    });
    this.#render();
  }

  /** Whether something is on stage after which another text can be spoken. */
  get #occupied() {
    const { speech } = this.#app.stage;
    return Boolean(speech && (!speech.over || !speech.paused));
  }

  /** Speak it when those before it were heard; false where nothing is before it. */
  push(order) {
    if (!this.#occupied && !this.#orders.length) return false;
    this.#orders.push(order);
    this.#changed();
    return true;
  }

  #next() {
    const order = this.#orders.shift();
    if (!order) return;
    this.#changed();
    this.#app.compose.speak(order);
  }

  #changed() {
    keep(QUEUE, this.#orders.length ? this.#orders : undefined);
    this.#render();
  }

  #offer() {
    $("enqueue").hidden = !this.#occupied && !this.#orders.length;
  }

  #render() {
    this.#offer();
    $("queue").hidden = !this.#orders.length;
    $("queued").replaceChildren(...this.#orders.map((order, i) => {
      const orb = h("span", { className: "orb" });
      colour(orb, order.voice.id);
      return h("li", {}, orb, h("span", { className: "said", dir: "auto" }, order.request.text),
        iconButton("play", "Speak it now", () => this.#now(i)), iconButton("close", "Take it out", () => this.#remove(i)));
    }));
  }

  #now(i) {
    const [order] = this.#orders.splice(i, 1);
    this.#changed();
    this.#app.compose.speak(order);
    focusFirst($("play"));
  }

  #remove(i) {
    this.#orders.splice(i, 1);
    this.#changed();
    focusFirst($("queued").children[Math.min(i, this.#orders.length - 1)]?.querySelector("button:last-child"), $("text"));
  }
}
