/**
 * history.js: everything that was ever spoken, newest first, by days. Only what is new is fetched again.
 */
import { $, ago, attempt, clock, colour, copy, dayOf, focusFirst, h, iconButton, menuButton, relabel, save, settled } from "./dom.js";
import { copyLink, download } from "./files.js";
import { Leaving, later } from "./undo.js";
import { HISTORY_STATES, STATUS_FILTERS } from "./words.js";

const PER_PAGE = 30;
const AGAIN_MS = 3000; // while something is being spoken
const STALE_MS = 60_000; // out of sight for longer than this, and other tabs may have deleted something
const MOST_AT_ONCE = 50; // in one ZIP

/** An entry as GET /api/generations shows it. @typedef {{id: string, created_at: string, status: string, text: string}} Entry */

/** Where an entry stands among the others. @param {Entry} entry */
const cursor = ({ created_at, id }) => `${created_at},${id}`;
const fileOf = ({ id, text, output_format }) => ({ id, text, wav: output_format === "wav" });
const isActive = ({ status }) => status === "pending" || status === "processing";

export class History extends EventTarget {
  #app;
  #rows = new Map(); // by id
  #days = new Map(); // by name: {section, list}
  #leaving = new Leaving("utter.deleted", (id) => this.#remove(id));
  #hidden = this.#leaving.ids; // ids of what is about to be deleted
  #selecting = false;
  #more = false;
  #known = false; // whether anything was fetched yet
  #asked = 0;
  #timer = null;
  #awayAt = Infinity;

  /** @param app `{utter, stage, voices, compose, again(fields), failed(error)}`: `again` fills the form */
  constructor(app) {
    super();
    this.#app = app;
    $("history-search").addEventListener("input", settled(250, () => this.refresh()));
    for (const id of ["history-voice", "history-status"]) $(id).onchange = () => this.refresh();
    $("history-status").replaceChildren(...STATUS_FILTERS.map(([value, name]) => h("option", { value }, name)));
    $("more").onclick = async () => {
      const last = Array.from(this.#rows.values()).pop()?.element;
      await this.#older();
      focusFirst(last?.nextElementSibling?.querySelector("button"), $("more"));
    };
    new IntersectionObserver(([{ isIntersecting }]) => isIntersecting && this.#older(), { rootMargin: "600px" }).observe($("more"));
    app.stage.addEventListener("change", ({ detail }) => {
      if (["begun", "end"].includes(detail)) this.#fresh();
      this.#mark();
    });
    app.voices.addEventListener("loaded", () => this.#offerVoices());
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) this.#awayAt = Date.now();
      else if (Date.now() - this.#awayAt > STALE_MS) this.refresh();
      else this.#fresh();
    });
    $("select").onclick = () => this.#select(!this.#selecting);
    $("selected-zip").onclick = () => attempt($("selected-zip"), () => this.#zip());
    $("selected-delete").onclick = () => this.#delete(this.#chosen);
    $("selected-done").onclick = () => this.#select(false);
  }

  entry(id) { return this.#rows.get(id)?.entry ?? null; }
  /** Nothing was ever spoken, as far as anybody knows. */
  get isEmpty() { return this.#known && !this.#rows.size && !Object.keys(this.#filter).length; }

  get #filter() {
    return Object.fromEntries([
      ["q", $("history-search").value.trim()], ["voice_id", $("history-voice").value], ["status", $("history-status").value],
    ].filter(([, value]) => value));
  }

  /** Everything from the beginning, as it is filtered now. */
  refresh() {
    return this.#ask(async () => {
      const { generations, pagination } = await this.#page({ per_page: PER_PAGE, ...this.#filter });
      return () => {
        for (const id of [...this.#rows.keys()]) if (!generations.some((entry) => entry.id === id)) this.#drop(id);
        this.#take(generations);
        this.#more = pagination.pages > 1;
      };
    });
  }

  /** What is newer than what is here, and how those stand that were being spoken. */
  #fresh() {
    const entries = this.#sorted;
    if (!entries.length) return this.refresh();
    const active = entries.filter(isActive).map(({ id }) => id);
    return this.#ask(async () => {
      const [newer, again] = await Promise.all([
        this.#page({ per_page: 100, since: cursor(entries[0]), ...this.#filter }),
        active.length ? this.#page({ ids: active.slice(0, 100).join(",") }) : { generations: [] },
      ]);
      return () => {
        for (const id of active) if (!again.generations.some((entry) => entry.id === id)) this.#drop(id);
        this.#take([...newer.generations, ...again.generations]);
        if (newer.more) this.refresh();
      };
    });
  }

  async #older() {
    if (!this.#more) return;
    this.#more = false; // asked for only once
    const entries = this.#sorted;
    await this.#ask(async () => {
      const { generations, more } = await this.#page({ per_page: PER_PAGE, before: cursor(entries.at(-1)), ...this.#filter });
      return () => {
        this.#take(generations);
        this.#more = more;
      };
    });
  }

  #page(query) {
    return this.#app.utter.call("GET", `/api/generations?${new URLSearchParams(query)}`);
  }

  /** Ask, and show what came, unless a later question has been asked meanwhile. */
  async #ask(question) {
    clearTimeout(this.#timer);
    const asked = ++this.#asked;
    try {
      const show = await question();
      if (asked !== this.#asked) return;
      if (!this.#known) this.#leaving.finish();
      this.#known = true;
      show();
      this.#render();
    } catch (error) {
      if (asked !== this.#asked) return;
      $("history-note").textContent = error.message;
      this.#app.failed(error);
      if (error.passing) this.#again(() => this.refresh());
    }
  }

  #again(act) {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => document.hidden || act(), AGAIN_MS);
  }

  /** @returns {Entry[]} newest first */
  get #sorted() {
    return Array.from(this.#rows.values(), ({ entry }) => entry)
      .sort((a, b) => (a.created_at < b.created_at || (a.created_at === b.created_at && a.id < b.id) ? 1 : -1));
  }

  #take(entries) {
    for (const entry of entries) {
      const row = this.#rows.get(entry.id) ?? this.#row(entry);
      this.#rows.set(entry.id, row);
      row.show(entry);
    }
  }

  #drop(id) {
    this.#rows.get(id)?.element.remove();
    this.#rows.delete(id);
  }

  #render() {
    const entries = this.#sorted.filter(({ id }) => !this.#hidden.has(id));
    const places = new Map();
    for (const entry of entries) {
      const day = dayOf(entry.created_at);
      if (!places.has(day)) places.set(day, []);
      places.get(day).push(this.#rows.get(entry.id).element);
    }
    for (const [day, { section }] of this.#days) {
      if (places.has(day)) continue;
      section.remove();
      this.#days.delete(day);
    }
    inOrder($("entries"), Array.from(places.keys(), (day) => this.#day(day).section));
    for (const [day, elements] of places) inOrder(this.#day(day).list, elements);
    $("more").hidden = !this.#more;
    $("select").hidden = !entries.length && !this.#selecting;
    $("history-note").textContent = entries.length ? "" : Object.keys(this.#filter).length
      ? "Nothing found." : "What you have spoken appears here.";
    this.#mark();
    this.#count();
    if (entries.some(isActive)) this.#again(() => this.#fresh());
    this.dispatchEvent(new Event("change"));
  }

  #day(name) {
    if (!this.#days.has(name)) {
      const list = h("ol");
      this.#days.set(name, { list, section: h("section", { "aria-label": name }, h("h3", {}, name), list) });
    }
    return this.#days.get(name);
  }

  #offerVoices() {
    const chosen = $("history-voice").value;
    $("history-voice").replaceChildren(h("option", { value: "" }, "All voices"),
      ...this.#app.voices.all.map(({ id, name }) => h("option", { value: id }, name)));
    $("history-voice").value = this.#app.voices.all.some(({ id }) => id === chosen) ? chosen : "";
  }

  // --- one entry -----------------------------------------------------------------------------------------------------

  #row(first) {
    const { utter, stage } = this.#app;
    const row = { entry: first };
    const check = h("input", { type: "checkbox", className: "check", hidden: !this.#selecting });
    check.onchange = () => this.#count();
    const play = iconButton("play", "Play", () => this.#play(row.entry));
    play.classList.add("round");
    const text = h("p", { className: "said", dir: "auto" });
    const facts = h("p", { className: "facts" });
    const problem = h("p", { className: "problem" });
    const keep = iconButton("down", "Download", () => attempt(keep, () => download(utter, fileOf(row.entry))));
    const again = iconButton("edit", "Use again", () => attempt(again, () => this.#useAgain(row.entry)));
    const retry = h("button", { type: "button", className: "chip", onclick: () => attempt(retry, () => this.#retry(row.entry)) }, "Try again");
    const more = menuButton("More", () => this.#choices(row));
    row.check = check;
    row.element = h("li", {}, check, play, text, facts, h("div", { className: "tools" }, keep, again, more),
      h("div", { className: "failure" }, problem, retry));
    row.mark = () => {
      const here = stage.generationId === row.entry.id;
      const sounding = here && stage.sounding;
      row.element.classList.toggle("here", here);
      relabel(play, sounding ? "pause" : "play", sounding ? "Pause" : "Play");
      play.disabled = row.entry.status !== "completed" && !(here && isActive(row.entry));
      check.hidden = !this.#selecting;
    };
    row.show = (entry) => {
      row.entry = entry;
      row.element.dataset.status = entry.status;
      const name = entry.text.length > 60 ? `${entry.text.slice(0, 60)}…` : entry.text;
      row.element.setAttribute("aria-label", name);
      check.setAttribute("aria-label", `Select ${name}`);
      colour(row.element, entry.voice_id ?? "");
      text.textContent = entry.text;
      const state = HISTORY_STATES[entry.status];
      facts.replaceChildren(...[
        h("bdi", {}, entry.voice_name ?? "a deleted voice"),
        Boolean(entry.duration_seconds) && h("span", {}, clock(entry.duration_seconds)),
        h("time", { dateTime: entry.created_at, title: new Date(entry.created_at).toLocaleString("en") }, ago(entry.created_at)),
        Boolean(entry.client) && h("bdi", {}, `by ${entry.client}`),
        state && h("span", { className: "status" }, state),
      ].filter(Boolean));
      problem.textContent = entry.status === "failed" ? entry.error_message ?? "" : "";
      keep.hidden = entry.status !== "completed";
      retry.hidden = entry.status !== "failed";
    };
    return row;
  }

  #choices(row) {
    const { utter } = this.#app;
    const { entry } = row;
    const done = entry.status === "completed";
    return [
      done && { icon: "down", label: "Download as MP3", act: () => attempt(null, () => download(utter, fileOf(entry), "mp3")) },
      done && { icon: "down", label: "Download as WAV", act: () => attempt(null, () => download(utter, fileOf(entry), "wav")) },
      done && { icon: "link", label: "Copy a link", act: () => copyLink(utter, entry.id) },
      { icon: "copy", label: "Copy the text", act: () => copy(entry.text, "Text copied.") },
      { icon: "tag", label: "Copy the reference", act: () => copy(entry.id, "Reference copied.") },
      { icon: "check", label: "Select several", act: () => {
        this.#select(true);
        row.check.checked = true;
        this.#count();
        row.check.focus();
      } },
      { icon: "bin", label: "Delete", serious: true, act: () => this.#delete([row]) },
    ];
  }

  #play(entry) {
    const { utter, stage } = this.#app;
    if (stage.generationId === entry.id && !stage.speech?.error) stage.toggle();
    else {
      stage.show(utter.replay(entry.id, { words: true }), {
        text: entry.text, voice: { id: entry.voice_id, name: entry.voice_name }, generation_id: entry.id,
        expected: entry.duration_seconds ?? 0, replay: true, again: () => this.#play(entry),
      });
    }
  }

  #regenerate(entry) {
    return this.#app.utter.call("POST", `/api/generations/${entry.id}/regenerate`);
  }

  async #useAgain(entry) {
    this.#app.again(await this.#regenerate(entry));
  }

  /** Have it spoken once more, as it was. */
  async #retry(entry) {
    const { redirect_url: _, ...request } = await this.#regenerate(entry);
    this.#app.compose.speak({ voice: { id: entry.voice_id, name: entry.voice_name }, request });
    focusFirst($("cancel"), $("play"), $("text"));
  }

  // --- several -------------------------------------------------------------------------------------------------------

  get #chosen() { return this.#sorted.map(({ id }) => this.#rows.get(id)).filter(({ entry, check }) => check.checked && !this.#hidden.has(entry.id)); }

  #select(selecting) {
    this.#selecting = selecting;
    $("select").setAttribute("aria-pressed", String(selecting));
    $("selected").hidden = !selecting;
    for (const row of this.#rows.values()) {
      if (!selecting) row.check.checked = false;
      row.mark();
    }
    this.#count();
    focusFirst(selecting ? $("entries").querySelector(".check") : $("select"));
  }

  #count() {
    if (!this.#selecting) return;
    const chosen = this.#chosen;
    const sounding = chosen.filter(({ entry }) => entry.status === "completed");
    $("selected-count").textContent = `${chosen.length} selected`;
    $("selected-zip").disabled = !sounding.length || sounding.length > MOST_AT_ONCE;
    $("selected-delete").disabled = !chosen.length;
  }

  async #zip() {
    const ids = this.#chosen.filter(({ entry }) => entry.status === "completed").map(({ entry }) => entry.id);
    const response = await this.#app.utter.fetch("POST", "/api/generations/zip", { body: { ids }, timeout: 600_000 });
    save(await response.blob(), "utter.zip");
  }

  /** Out of sight now, and for good a little later. */
  #delete(rows) {
    if (!rows.length) return;
    const { stage } = this.#app;
    const ids = rows.map(({ entry }) => entry.id);
    const all = Array.from($("entries").querySelectorAll("li"));
    const at = all.indexOf(rows[0].element);
    const neighbour = all.slice(at + 1).find((element) => !rows.some((row) => row.element === element)) ?? all[at - 1];
    for (const row of rows) {
      this.#hidden.add(row.entry.id);
      row.check.checked = false;
      if (stage.generationId === row.entry.id) stage.clear();
    }
    this.#render();
    focusFirst(neighbour?.querySelector(".tools button:last-child"), $("history-search"));
    const back = () => {
      for (const id of ids) this.#hidden.delete(id);
      this.#render();
      focusFirst(rows[0].element.querySelector(".tools button:last-child"));
    };
    later(ids.length === 1 ? "Deleted." : `${ids.length} deleted.`, {
      back,
      act: async (leaving) => {
        if (leaving) this.#leaving.note(ids);
        for (const id of ids) {
          await this.#remove(id, leaving);
          this.#drop(id);
          this.#hidden.delete(id);
        }
        this.#render();
      },
    });
  }

  #remove(id, leaving = false) {
    return this.#app.utter.call("DELETE", `/api/generations/${id}`, { keepalive: leaving }).catch((error) => {
      if (error.status !== 404) throw error; // gone is what it was to be
    });
  }

  #mark() {
    for (const row of this.#rows.values()) row.mark();
  }
}

/** Make these the children of `parent`, in this order, and move none that is in its place (it would lose the focus). */
function inOrder(parent, elements) {
  for (const child of Array.from(parent.children)) if (!elements.includes(child)) child.remove();
  for (const [i, element] of elements.entries()) {
    if (parent.children[i] !== element) parent.insertBefore(element, parent.children[i] ?? null);
  }
}
