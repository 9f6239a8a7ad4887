/**
 * design.js: a voice from a description: hear how it would sound, then keep it.
 */
import { $, attempt, h, toast } from "./dom.js";
import { Mini } from "./mini.js";
import { persist, randomKey } from "./requests.js";
import { VOICE_IDEAS, passageFor } from "./words.js";

const POLL_MS = 700;

export class DesignDialog {
  #app;
  #dialog = $("design");
  #mini = new Mini($("design-mini"));
  #preview = null; // {fields, task_id, blob}: what would be saved
  #running = null; // AbortController of a preview that is being made
  #taskId = null;

  /** @param app `{utter, stage, voices, languages()}` */
  constructor(app) {
    this.#app = app;
    $("open-design").onclick = () => this.open();
    $("ideas").append(...Object.entries(VOICE_IDEAS).map(([name, words]) => h("button", {
      type: "button", className: "chip", onclick: () => { $("design-instruct").value = words; },
    }, name)));
    this.#mini.addEventListener("playing", () => this.#app.stage.pause());
    this.#dialog.querySelector("form").onsubmit = (event) => {
      event.preventDefault();
      if (document.activeElement === $("design-name")) this.#trySave();
      else this.#tryPreview();
    };
    $("design-save").onclick = () => this.#trySave();
    $("design-cancel").onclick = () => this.#cancel();
    this.#dialog.addEventListener("close", () => {
      this.#mini.pause();
      this.#cancel();
    });
  }

  open() {
    this.#app.stage.pause();
    $("design-problem").textContent = "";
    if (!$("design-text").value) $("design-text").value = firstSentence(passageFor($("design-language").value));
    this.#dialog.showModal();
  }

  async #tryPreview() {
    this.#running = new AbortController();
    $("design-cancel").hidden = false;
    await attempt($("design-preview"), () => this.#makePreview(this.#running.signal), $("design-problem"));
    $("design-cancel").hidden = true;
    $("design-state").textContent = "";
    this.#running = this.#taskId = null;
  }

  async #makePreview(signal) {
    const { utter } = this.#app;
    const fields = {
      text: $("design-text").value.trim(), instruct: $("design-instruct").value.trim(), language: $("design-language").value,
    };
    if (!fields.instruct) throw new Error("Describe the voice in a few words.");
    if (!fields.text) throw new Error("Give it something to say.");
    this.#show(null);
    $("design-state").textContent = "Imagining the voice…";
    const request = { body: fields, headers: { "Idempotency-Key": randomKey() }, signal };
    const { task_id } = await persist(() => utter.call("POST", "/api/voices/design/preview", request), { signal });
    this.#taskId = task_id;
    const task = await this.#finished(task_id, signal);
    if (task.status !== "completed") throw new Error(task.error ?? "That did not work. Please try again.");
    $("design-state").textContent = "Fetching it…";
    const response = await fetch(task.result.audio_url, { signal }).catch(() => null);
    if (!response?.ok) throw new Error("The preview could not be fetched. Please try again.");
    this.#show({ fields, task_id, blob: await response.blob() });
    $("design-name").focus();
    this.#mini.play();
  }

  async #finished(task_id, signal) {
    const deadline = Date.now() + 180_000;
    for (;;) {
      const task = await this.#app.utter.call("GET", `/api/tasks/${task_id}`, { signal }).catch((error) => {
        if (!error.passing) throw error;
        return { status: "processing" };
      });
      if (!["pending", "processing"].includes(task.status)) return task;
      if (Date.now() > deadline) throw new Error("This takes too long. Please try again later.");
      await new Promise((resolve) => { setTimeout(resolve, POLL_MS); });
      signal.throwIfAborted();
    }
  }

  #cancel() {
    if (!this.#running) return;
    this.#running.abort();
    // Nobody waits for it any more; a preview that comes anyway is simply not used.
    if (this.#taskId) this.#app.utter.call("POST", `/api/tasks/${this.#taskId}/cancel`).catch(() => {});
  }

  #trySave() {
    return attempt($("design-save"), () => this.#save(), $("design-problem"))
      .finally(() => { $("design-state").textContent = ""; });
  }

  async #save() {
    const { utter, voices } = this.#app;
    const { fields, task_id, blob } = this.#preview;
    const name = $("design-name").value.trim();
    if (!name) {
      $("design-name").focus();
      throw new Error("Give the voice a name.");
    }
    $("design-state").textContent = "Saving…";
    const voice = await utter.call("POST", "/api/voices/design", { ...this.#request({ name, ...fields, task_id }, blob), timeout: 60_000 });
    this.#show(null);
    $("design-name").value = $("design-instruct").value = "";
    this.#dialog.close();
    await voices.load(voice.id);
    toast(`${voice.name} is ready to speak.`);
    $("text").focus();
  }

  /** A provider that keeps no designs is given the preview as the voice's recording. */
  #request(fields, blob) {
    if (this.#app.service.provider !== "modal") return { body: fields };
    const form = new FormData();
    for (const [name, value] of Object.entries(fields)) form.append(name, value);
    form.append("audio", blob, "preview.wav");
    return { form };
  }

  #show(preview) {
    this.#preview = preview;
    this.#mini.show(preview?.blob ?? null);
    $("design-keep").hidden = $("design-save").hidden = !preview;
    $("design-preview").className = preview ? "quiet" : "primary";
    $("design-preview").textContent = preview ? "Another one" : "Preview";
  }
}

function firstSentence(text) {
  return /^.*?[.。]/u.exec(text)?.[0] ?? text;
}
