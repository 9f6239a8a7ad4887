/**
 * voices.js: who can speak. Voices that cannot at the moment are folded away, with the reason, and not selectable.
 */
import { $, attempt, colour, focusFirst, h, icon, iconButton, menuButton, relabel, toast } from "./dom.js";
import { keep, kept } from "./keep.js";
import { rest } from "./requests.js";
import { Leaving, later } from "./undo.js";
import { VoiceDialog } from "./voice.js";
import { kindOf } from "./words.js";

const CHOSEN = "utter.voice";
const SEARCH_FROM = 7; // voices

export class Voices extends EventTarget {
  #app;
  #voices = [];
  #cards = new Map(); // by id
  #leaving = new Leaving("utter.deletedVoices", (id) => this.#remove(id));
  #hidden = this.#leaving.ids; // ids of what is about to be deleted
  #heard = null; // {id, audio}: the preview that is playing
  #dialog;
  #unfolded = false; // whether it was the search that showed those who cannot speak

  /** @param app `{utter, stage}` */
  constructor(app) {
    super();
    this.#app = app;
    this.#dialog = new VoiceDialog(app, () => this.load());
    $("voice-search").addEventListener("input", () => this.#filter());
    $("voice-search").addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault(); // it is not the text that is to be sent
      focusFirst($("cast").querySelector(".voice:not([hidden]) input"));
    });
  }

  /** @returns {any[]} those that are not deleted, as GET /api/voices shows them */
  get all() { return this.#voices.filter(({ id }) => !this.#hidden.has(id)); }
  get chosen() { return this.all.find(({ id }) => id === $("cast").querySelector("input:checked")?.value) ?? null; }

  /** Fetch them all and show them; `choose` is the id of the one to select. */
  async load(choose = null) {
    this.#voices = await this.#fetchAll();
    this.#leaving.finish();
    this.#show(choose);
  }

  /** Select a voice by its id; false where it is not there or cannot speak. */
  choose(id) {
    const input = this.#input(id);
    if (!input || input.disabled) return false;
    input.checked = true;
    this.#cards.get(id).hidden = false;
    this.#cards.get(id).scrollIntoView({ block: "nearest" });
    this.#rove();
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
    return found;
  }

  #show(choose = null) {
    const voices = this.all;
    const wanted = [choose, this.chosen?.id, kept(CHOSEN, "localStorage"), voices.find((voice) => voice.default)?.id];
    this.#cards = new Map(voices.map((voice) => [voice.id, this.#card(voice)]));
    const able = voices.filter((voice) => voice.compatible);
    $("cast").replaceChildren(...able.map(({ id }) => this.#cards.get(id)));
    $("unable").replaceChildren(...this.#folded(voices.filter((voice) => !voice.compatible)));
    const chosen = wanted.map((id) => able.find((voice) => voice.id === id)).find(Boolean) ?? able[0];
    if (chosen) {
      this.#input(chosen.id).checked = true;
      if (choose === chosen.id) this.#cards.get(choose).scrollIntoView({ block: "nearest" });
    }
    $("voice-search-field").hidden = voices.length < SEARCH_FROM;
    if (voices.length < SEARCH_FROM) $("voice-search").value = "";
    $("voices-note").hidden = Boolean(chosen);
    $("voices-note").textContent = voices.length
      ? "None of your voices can speak at the moment. Clone or design another one."
      : "You have no voice yet. Clone your own, or design one from a description.";
    this.#rove();
    this.#filter();
    this.dispatchEvent(new Event("change"));
    this.dispatchEvent(new Event("loaded"));
  }

  /** All of them in one group; each reason is said once, before those whom it concerns. */
  #folded(voices) {
    if (!voices.length) return [];
    const reasons = new Map();
    for (const voice of voices) {
      const reason = voice.incompatible_reason ?? "This voice was made for another speech provider.";
      reasons.set(reason, [...(reasons.get(reason) ?? []), this.#cards.get(voice.id)]);
    }
    const groups = Array.from(reasons, ([reason, cards], i) => {
      const said = h("p", { className: "reason", id: `why-not-${i}` }, reason);
      for (const card of cards) card.querySelector("input").setAttribute("aria-describedby", said.id);
      return h("div", { className: "group" }, said, h("div", { className: "cast" }, ...cards));
    });
    const count = `${voices.length} voice${voices.length === 1 ? "" : "s"} cannot speak at the moment`;
    const summary = h("summary", {}, count);
    const details = h("details", { className: "unable" }, summary, ...groups);
    // Not by "toggle": a search opens it too.
    summary.addEventListener("click", () => requestAnimationFrame(() => details.open && toTop(summary)));
    return [details];
  }

  #input(id) {
    return this.#cards.get(id)?.querySelector("input") ?? null;
  }

  #card(voice) {
    const { utter } = this.#app;
    const input = h("input", { type: "radio", name: "voice", value: voice.id, disabled: !voice.compatible });
    input.addEventListener("change", () => {
      keep(CHOSEN, voice.id, "localStorage");
      this.#rove();
      this.dispatchEvent(new Event("change"));
    });
    const kind = kindOf(voice);
    const hear = () => attempt(listen, () => this.#listen(voice, listen));
    const listen = iconButton("play", `Listen to ${voice.name}`, hear);
    listen.tabIndex = -1; // keys find it in the menu
    const more = menuButton(`More about ${voice.name}`, () => [
      { icon: "play", label: "Listen", act: hear },
      { icon: "edit", label: "Details and name", act: () => this.#dialog.open(voice) },
      voice.default === false && voice.compatible && { icon: "star", label: "Make it the default", act: () => attempt(null, async () => {
        await utter.call("PATCH", `/api/voices/${voice.id}`, { body: { default: true } });
        await this.load();
        toast(`${voice.name} is now the default voice.`);
        focusFirst(this.#cards.get(voice.id)?.querySelector(".tools button:last-child"));
      }) },
      !voice.compatible && { icon: "again", label: "Make it again", act: () => attempt(null, () => this.#renew(voice)) },
      { icon: "bin", label: "Delete", serious: true, act: () => this.#delete(voice) },
    ]);
    const card = h("div", { className: "voice", title: voice.description ?? "" },
      h("label", {}, input, h("span", { className: "orb" }), h("span", { className: "who" },
        h("strong", { dir: "auto" }, voice.name),
        h("small", {}, voice.default && h("span", { className: "default", title: "The default voice" }, icon("star"), h("span", { className: "unseen" }, "Default. ")),
          voice.language === "Auto" ? kind : `${kind} · ${voice.language}`))),
      h("div", { className: "tools" }, listen, more));
    card.dataset.compatible = String(voice.compatible);
    colour(card, voice.id);
    return card;
  }

  /** Have a voice made again whose model is gone, and wait until it can speak. */
  async #renew(voice) {
    const { utter } = this.#app;
    const { task_id } = await utter.call("POST", `/api/voices/${voice.id}/renew`);
    toast(`${voice.name} is being made again.`);
    let task = { status: "processing", error: null };
    while (task.status === "processing") {
      await rest(1000);
      task = await utter.call("GET", `/api/tasks/${task_id}`);
    }
    if (task.status !== "completed") throw new Error(task.error ?? "This voice could not be made again.");
    await this.load(voice.id);
    toast(`${voice.name} can speak again.`);
  }

  /** Tab stops once at the voices and once at the menu of the chosen one, however many there are. */
  #rove() {
    for (const card of $("cast").children) {
      card.querySelector(".tools button:last-child").tabIndex = card.querySelector("input").checked ? 0 : -1;
    }
  }

  #delete(voice) {
    if (this.#heard?.id === voice.id) this.hush();
    this.#hidden.add(voice.id);
    this.#show();
    focusFirst($("cast").querySelector("input:checked"), $("open-clone"));
    later(`${voice.name} was deleted.`, {
      back: () => {
        this.#hidden.delete(voice.id);
        this.#show(voice.compatible ? voice.id : null);
        focusFirst(this.#input(voice.id), $("text"));
      },
      act: async (leaving) => {
        if (leaving) this.#leaving.note([voice.id]);
        await this.#remove(voice.id, leaving);
        this.#voices = this.#voices.filter(({ id }) => id !== voice.id);
        this.#hidden.delete(voice.id);
      },
    });
  }

  #remove(id, leaving = false) {
    return this.#app.utter.call("DELETE", `/api/voices/${id}`, { keepalive: leaving }).catch((error) => {
      if (error.status !== 404) throw error; // gone is what it was to be
    });
  }

  /** Play what a voice was cloned from, or its design's preview. */
  async #listen(voice, button) {
    if (this.#heard?.id === voice.id) {
      this.hush();
      return;
    }
    this.hush();
    const response = await this.#app.utter.linked(`/api/voices/${voice.id}/preview`);
    const url = URL.createObjectURL(await response.blob());
    const audio = new Audio(url);
    audio.volume = this.#app.utter.volume;
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

  /** Show those that have every word that is looked for, in their name, language, kind or description. */
  #filter() {
    const words = $("voice-search").value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    let found = 0;
    for (const voice of this.all) {
      const about = [voice.name, voice.language, kindOf(voice), voice.description ?? ""].join("\n").toLowerCase();
      const hit = words.every((word) => about.includes(word));
      this.#cards.get(voice.id).hidden = !hit;
      found += Number(hit);
    }
    for (const group of $("unable").querySelectorAll(".group")) group.hidden = !group.querySelector(".voice:not([hidden])");
    const [unable] = $("unable").children;
    if (unable) {
      unable.hidden = !unable.querySelector(".group:not([hidden])");
      if (words.length && !unable.open && !unable.hidden) unable.open = this.#unfolded = true;
      else if (!words.length && this.#unfolded) unable.open = this.#unfolded = false;
    }
    $("voices-found").hidden = !words.length || found > 0;
    $("voices-found").textContent = found ? "" : "No voice matches. Try another word, or clear the search.";
  }
}

/** Bring an element to the upper end of the voices, which scroll by themselves: what it opens is to be seen. */
function toTop(element) {
  const place = element.closest(".casting");
  place.scrollTop += element.getBoundingClientRect().top - place.getBoundingClientRect().top;
}
