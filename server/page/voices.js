/**
 * voices.js: who can speak. Voices that the present provider cannot use are shown with the reason, and not selectable.
 */
import { $, attempt, colour, deleteButton, h, iconButton, relabel, toast } from "./dom.js";
import { keep, kept } from "./keep.js";

const CHOSEN = "utter.voice";
const SEARCH_FROM = 7; // voices

export class Voices extends EventTarget {
  #app;
  #voices = [];
  #heard = null; // {id, audio}: the preview that is playing

  constructor(app) {
    super();
    this.#app = app;
    $("voice-search").addEventListener("input", () => this.#filter());
  }

  get all() { return this.#voices; }
  get chosen() { return this.#voices.find(({ id }) => id === $("cast").querySelector("input:checked")?.value) ?? null; }

  /** Fetch them all and show them; `choose` is the id of the one to select. */
  async load(choose = null) {
    this.#voices = await this.#fetchAll();
    const wanted = [choose, this.chosen?.id, kept(CHOSEN, "localStorage")];
    $("cast").replaceChildren(...this.#voices.map((voice) => this.#card(voice)));
    const chosen = wanted.map((id) => this.#voices.find((voice) => voice.id === id && voice.compatible)).find(Boolean)
      ?? this.#voices.find((voice) => voice.compatible);
    if (chosen) this.#input(chosen.id).checked = true;
    if (choose && chosen?.id === choose) this.#input(choose).closest(".voice").scrollIntoView({ block: "nearest" });
    $("voice-search-field").hidden = this.#voices.length < SEARCH_FROM;
    $("voices-note").hidden = Boolean(chosen);
    $("voices-note").textContent = this.#voices.length
      ? "None of your voices can speak at the moment. Clone or design another one."
      : "You have no voice yet. Clone your own, or design one from a description.";
    this.#filter();
    this.dispatchEvent(new Event("change"));
  }

  /** Select a voice by its id; false where it is not there or cannot speak. */
  choose(id) {
    const input = this.#input(id);
    if (!input || input.disabled) return false;
    input.checked = true;
    input.closest(".voice").scrollIntoView({ block: "nearest" });
    this.dispatchEvent(new Event("change"));
    return true;
  }

  hush() {
    this.#heard?.audio.pause();
  }

  async #fetchAll() {
    const found = [];
    for (let page = 1, pages = 1; page <= pages; page += 1) {
      const { voices, pagination } = await this.#app.utter.call("GET", `/api/voices?page=${page}&per_page=100`);
      found.push(...voices);
      pages = pagination.pages;
    }
    return found.sort((a, b) => b.compatible - a.compatible); // otherwise as they come, newest first
  }

  #input(id) {
    return Array.from($("cast").querySelectorAll("input")).find((input) => input.value === id) ?? null;
  }

  #card(voice) {
    const { utter } = this.#app;
    const input = h("input", { type: "radio", name: "voice", value: voice.id, disabled: !voice.compatible });
    input.addEventListener("change", () => {
      keep(CHOSEN, voice.id, "localStorage");
      this.dispatchEvent(new Event("change"));
    });
    const kind = voice.source === "designed" ? "Designed" : "Cloned";
    const reason = !voice.compatible && h("p", { className: "reason", id: `why-${voice.id}` },
      voice.incompatible_reason ?? "This voice was made for another speech provider.");
    if (reason) input.setAttribute("aria-describedby", reason.id);
    const listen = iconButton("play", `Listen to ${voice.name}`, () => attempt(listen, () => this.#listen(voice, listen)));
    const remove = deleteButton(`Delete ${voice.name}`, () => attempt(null, async () => {
      await utter.call("DELETE", `/api/voices/${voice.id}`);
      await this.load();
      toast(`${voice.name} was deleted.`);
      $("text").focus();
    }));
    const card = h("div", { className: "voice", title: voice.description ?? "" },
      h("label", {}, input, h("span", { className: "orb" }), h("span", { className: "who" },
        h("strong", {}, voice.name),
        h("small", {}, voice.language === "Auto" ? kind : `${kind} · ${voice.language}`))),
      h("div", { className: "tools" }, listen, remove), reason);
    card.dataset.compatible = String(voice.compatible);
    colour(card, voice.id);
    return card;
  }

  /** Play what a voice was cloned from, or its design's preview. */
  async #listen(voice, button) {
    if (this.#heard?.id === voice.id) {
      this.hush();
      return;
    }
    this.hush();
    const response = await this.#app.utter.fetch("GET", `/api/voices/${voice.id}/preview`, { timeout: 60_000 });
    const url = URL.createObjectURL(await response.blob());
    const audio = new Audio(url);
    this.#heard = { id: voice.id, audio };
    relabel(button, "pause", `Stop ${voice.name}`);
    audio.addEventListener("pause", () => {
      URL.revokeObjectURL(url);
      if (this.#heard?.audio === audio) this.#heard = null;
      relabel(button, "play", `Listen to ${voice.name}`);
    });
    this.#app.stage.pause();
    await audio.play().catch(() => { throw new Error("This browser cannot play that recording."); });
  }

  #filter() {
    const words = $("voice-search").value.trim().toLowerCase();
    for (const [i, card] of Array.from($("cast").children).entries()) {
      card.hidden = Boolean(words) && !this.#voices[i].name.toLowerCase().includes(words);
    }
  }
}
