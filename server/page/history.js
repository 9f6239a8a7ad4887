/**
 * history.js: everything that was ever spoken, newest first.
 */
import { $, ago, attempt, clock, colour, deleteButton, h, iconButton, relabel, settled } from "./dom.js";
import { download } from "./stage.js";
import { HISTORY_STATES } from "./words.js";

const PER_PAGE = 20;
const AGAIN_MS = 3000; // while something is being spoken

export class History {
  #app;
  #rows = new Map();
  #wanted = PER_PAGE; // how many entries should be shown
  #asked = 0;
  #timer = null;

  /** @param app `{utter, stage, again(fields)}`: `again` fills the form */
  constructor(app) {
    this.#app = app;
    $("history-search").addEventListener("input", settled(250, () => this.refresh()));
    $("more").onclick = () => {
      this.#wanted += PER_PAGE;
      return attempt($("more"), () => this.refresh());
    };
    app.stage.addEventListener("change", ({ detail }) => {
      if (["begun", "end"].includes(detail)) this.refresh();
      this.#mark();
    });
    document.addEventListener("visibilitychange", () => document.hidden || this.refresh());
  }

  entry(id) { return this.#rows.get(id)?.entry ?? null; }

  async refresh() {
    clearTimeout(this.#timer);
    const asked = ++this.#asked;
    const search = $("history-search").value.trim();
    try {
      const pages = Array.from({ length: Math.ceil(this.#wanted / 100) }, (_, i) => i + 1);
      const answers = await Promise.all(pages.map((page) => this.#page(page, search)));
      if (asked !== this.#asked) return; // a later question has been asked
      this.#show(answers.flatMap((answer) => answer.generations), answers[0].pagination.total, search);
    } catch (error) {
      if (asked !== this.#asked) return;
      $("history-note").textContent = error.message;
      this.#app.failed(error);
      if (error.passing) this.#again();
    }
  }

  #page(page, search) {
    const query = new URLSearchParams({ page, per_page: String(Math.min(this.#wanted, 100)), ...(search && { search }) });
    return this.#app.utter.call("GET", `/api/generations?${query}`);
  }

  #again() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => document.hidden || this.refresh(), AGAIN_MS);
  }

  #show(entries, total, search) {
    for (const [id, row] of this.#rows) {
      if (!entries.some((entry) => entry.id === id)) {
        row.element.remove();
        this.#rows.delete(id);
      }
    }
    let place = null;
    for (const entry of entries) {
      const row = this.#rows.get(entry.id) ?? this.#row(entry);
      this.#rows.set(entry.id, row);
      row.show(entry);
      const next = place ? place.nextElementSibling : $("entries").firstElementChild;
      if (next !== row.element) $("entries").insertBefore(row.element, next);
      place = row.element;
    }
    $("more").hidden = entries.length >= total;
    $("history-note").textContent = entries.length ? "" : search ? "Nothing found." : "What you have spoken appears here.";
    this.#mark();
    if (entries.some(({ status }) => status === "pending" || status === "processing")) this.#again();
  }

  #row(first) {
    const { utter, stage } = this.#app;
    const row = { entry: first };
    const play = iconButton("play", "Play", () => this.#play(row.entry));
    play.classList.add("round");
    const text = h("p", { className: "said" });
    const facts = h("p", { className: "facts" });
    const problem = h("p", { className: "problem" });
    const keep = iconButton("down", "Download", () => attempt(keep, () => download(utter, row.entry)));
    const again = iconButton("again", "Use again", () => attempt(again, () => this.#useAgain(row.entry)));
    const remove = deleteButton("Delete", () => attempt(null, async () => {
      await utter.call("DELETE", `/api/generations/${row.entry.id}`);
      if (stage.generationId === row.entry.id) stage.clear();
      await this.refresh();
      if (!document.activeElement || document.activeElement === document.body) $("history-search").focus();
    }));
    row.element = h("li", {}, play, text, facts, h("div", { className: "tools" }, keep, again, remove), problem);
    row.mark = () => {
      const here = stage.generationId === row.entry.id;
      const sounding = here && stage.sounding;
      row.element.classList.toggle("here", here);
      relabel(play, sounding ? "pause" : "play", sounding ? "Pause" : "Play");
      play.disabled = row.entry.status !== "completed" && !here;
    };
    row.show = (entry) => {
      row.entry = entry;
      row.element.dataset.status = entry.status;
      colour(row.element, entry.voice_id ?? "");
      text.textContent = entry.text;
      text.title = entry.text;
      const state = HISTORY_STATES[entry.status];
      facts.replaceChildren(...[
        h("span", {}, entry.voice_name ?? "a deleted voice"),
        Boolean(entry.duration_seconds) && h("span", {}, clock(entry.duration_seconds)),
        h("time", { dateTime: entry.created_at }, ago(entry.created_at)),
        state && h("span", { className: "status" }, state),
      ].filter(Boolean));
      problem.textContent = entry.status === "failed" ? entry.error_message ?? "" : "";
      keep.hidden = entry.status !== "completed";
    };
    return row;
  }

  #play(entry) {
    const { utter, stage } = this.#app;
    if (stage.generationId === entry.id && stage.speech?.error === null) stage.toggle();
    else {
      stage.show(utter.replay(entry.id), {
        text: entry.text, voice: { id: entry.voice_id, name: entry.voice_name }, generation_id: entry.id,
        expected: entry.duration_seconds ?? 0, replay: true,
      });
    }
  }

  async #useAgain(entry) {
    this.#app.again(await this.#app.utter.call("POST", `/api/generations/${entry.id}/regenerate`));
  }

  #mark() {
    for (const row of this.#rows.values()) row.mark();
  }
}
