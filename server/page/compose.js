/**
 * compose.js: the form: a text, a voice, a language, and how it is to be spoken.
 */
import { $, h, keepFocus } from "./dom.js";
import { keep, kept } from "./keep.js";
import { APPLE, commandKey } from "./keyboard.js";
import { Options } from "./options.js";
import { expectedSeconds, partsOf } from "./words.js";

const DRAFT = "utter.draft";

/**
 * What POST /api/generate is asked for, and whose voice it is.
 * @typedef {{voice: {id: string, name: string}, request: {voice_id: string, text: string, language: string}}} Order
 */

export class Compose {
  #app;
  #limit = 2000;
  #busy = false;
  #options;

  /** @param app `{utter, stage, service, voices, queue, failed}` */
  constructor(app) {
    this.#app = app;
    $("text").value = kept(DRAFT) ?? "";
    $("generate-key").textContent = `${commandKey}${APPLE ? "" : " "}↵`;
    $("compose").onsubmit = (event) => {
      event.preventDefault();
      this.submit();
    };
    $("enqueue").onclick = () => this.submit({ after: true });
    $("text").addEventListener("input", () => this.count());
    $("compose").addEventListener("keydown", (event) => { // wherever one is in it, on the button too
      if (event.defaultPrevented || event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
      event.preventDefault();
      this.submit({ after: event.shiftKey });
    });
    this.#options = new Options(() => app.voices.chosen?.varies ?? []);
    app.voices.addEventListener("change", () => {
      this.count();
      this.#options.show();
    });
    this.count();
  }

  /** What the server is and can. */
  set service({ languages, default: usual, capabilities }) {
    this.#limit = capabilities.max_text_chars;
    $("language").replaceChildren(...languages.map((name) => h("option", { value: name }, name === "Auto" ? "Detect language" : name)));
    $("language").value = usual;
    $("modes").hidden = !capabilities.allow_generate_mode_toggle || !capabilities.supports_generate_stream;
    for (const radio of $("modes").querySelectorAll("input")) radio.checked = radio.value === capabilities.default_generate_mode;
    this.count();
  }

  count() {
    const text = $("text").value.trim(); // its length is in UTF-16 code units, as the server counts
    const extra = text.length - this.#limit;
    $("counter").textContent = `${text.length.toLocaleString("en")} / ${this.#limit.toLocaleString("en")}`;
    $("counter").classList.toggle("over", extra > 0);
    $("generate").disabled = $("enqueue").disabled = this.#busy || extra > 0 || !this.#app.voices.chosen;
    $("text").setAttribute("aria-invalid", String(extra > 0));
    keep(DRAFT, $("text").value || undefined);
    if (extra <= 0) {
      $("compose-problem").replaceChildren();
      return;
    }
    const parts = partsOf(text, this.#limit);
    $("compose-problem").replaceChildren(
      `This is ${extra.toLocaleString("en")} character${extra === 1 ? "" : "s"} too long.`,
      ...(this.#app.voices.chosen && parts.length > 1 ? [" ", h("button", {
        type: "button", className: "chip", onclick: () => this.#speakParts(parts),
      }, `Speak it in ${parts.length} parts`)] : []),
    );
  }

  /** Have the text spoken: now, or after those that were asked for before. */
  submit({ after = false } = {}) {
    if ($("generate").disabled) return;
    const text = $("text").value.trim();
    if (!text) {
      $("compose-problem").textContent = "Write something first.";
      $("text").focus();
      return;
    }
    const order = this.#order(text);
    if (after && this.#app.queue.push(order)) {
      $("text").value = "";
      this.count();
      $("text").focus();
    } else this.speak(order);
  }

  #order(text) {
    const { id, name } = this.#app.voices.chosen;
    return { voice: { id, name }, request: { voice_id: id, text, language: $("language").value, ...this.#options.chosen } };
  }

  #speakParts(parts) {
    const [first, ...rest] = parts.map((part) => this.#order(part));
    this.speak(first);
    for (const order of rest) this.#app.queue.push(order);
    $("text").value = "";
    this.count();
    $("text").focus();
  }

  /** @param {Order} order */
  speak(order) {
    const { utter, stage, service, voices, failed } = this.#app;
    voices.hush();
    const back = keepFocus();
    this.#busy = true;
    this.count();
    const mode = $("modes").hidden ? service.capabilities.default_generate_mode
      : $("modes").querySelector("input:checked").value;
    const speech = utter.speak(order.request, { live: mode === "stream", words: true });
    speech.addEventListener("state", () => {
      if (speech.error) failed(speech.error);
      if (this.#busy && speech.state !== "starting") {
        this.#busy = false;
        this.count();
        back();
      }
    });
    const { text } = order.request;
    stage.show(speech, { text, voice: order.voice, expected: expectedSeconds(text), again: () => this.speak(order) });
  }

  /** Fill the form with what was spoken before; false where its voice cannot speak. */
  fill({ voice_id, text, language, redirect_url: _, ...options }) {
    $("text").value = text;
    this.#options.set(options);
    if (Array.from($("language").options).some((option) => option.value === language)) $("language").value = language;
    const here = this.#app.voices.choose(voice_id);
    this.count();
    $("compose").scrollIntoView({ block: "nearest" });
    $("text").focus();
    return here;
  }

  forget() {
    keep(DRAFT, undefined);
  }
}
