/**
 * options.js: how a text is to be spoken, as far as the chosen voice can vary it, and as which file it is kept.
 */
import { $, disclose } from "./dom.js";
import { keep, kept } from "./keep.js";

const OPTIONS = "utter.options";
const USUAL = { speed: 1, pitch: 1, volume: 50 };

export class Options {
  /** @type {() => string[]} */
  #varies;

  /** @param varies gives what the chosen voice can vary */
  constructor(varies) {
    this.#varies = varies;
    disclose($("options"), $("options-panel"), () => this.show());
    $("options-panel").addEventListener("input", () => this.#changed());
    $("options-reset").onclick = () => this.set({});
    this.set(kept(OPTIONS) ?? {});
  }

  /** What differs from the usual, as POST /api/generate takes it. */
  get chosen() {
    const chosen = $("option-format").value ? { format: $("option-format").value } : {};
    for (const name of this.#varies()) {
      const value = Number($(`option-${name}`).value);
      if (value !== USUAL[name]) chosen[name] = value;
    }
    return chosen;
  }

  set({ format = "", ...numbers }) {
    $("option-format").value = format;
    for (const name of Object.keys(USUAL)) $(`option-${name}`).value = String(numbers[name] ?? USUAL[name]);
    this.#changed();
  }

  /** Offer what the chosen voice can vary. */
  show() {
    const varies = this.#varies();
    for (const label of /** @type {NodeListOf<HTMLElement>} */ ($("options-panel").querySelectorAll("[data-varies]"))) {
      label.hidden = !varies.includes(label.dataset.varies);
    }
    $("options-hint").hidden = varies.length > 0;
    for (const name of ["speed", "pitch"]) $(`${name}-now`).textContent = `${Number($(`option-${name}`).value)}×`;
    $("volume-now").textContent = `${$("option-volume").value} of 100`;
    $("options").setAttribute("aria-pressed", String(Object.keys(this.chosen).length > 0));
  }

  #changed() {
    const numbers = Object.fromEntries(Object.keys(USUAL).map((name) => [name, Number($(`option-${name}`).value)]));
    keep(OPTIONS, { format: $("option-format").value, ...numbers });
    this.show();
  }
}
