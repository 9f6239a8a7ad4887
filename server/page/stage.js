/**
 * stage.js: the player. One speech is on stage at a time, whether it is being spoken or comes from the history.
 */
import { $, attempt, clock, colour, relabel, save, toast } from "./dom.js";
import { Waveform } from "./waveform.js";
import { fileName, stateOf } from "./words.js";

export class Stage extends EventTarget {
  speech = null;
  #about = {};
  #wave = new Waveform($("wave"));
  #began = 0;
  #due = 0;
  #seeking = false;
  #begun = false; // whether the server has it

  constructor() {
    super();
    $("play").onclick = () => this.toggle();
    $("cancel").onclick = () => attempt($("cancel"), () => this.speech.cancel(), $("stage-problem"));
    $("download").onclick = () => save(this.speech.stored, fileName(this.#about.text ?? "", this.speech.stored));
    $("seek").oninput = () => {
      this.#seeking = true;
      this.#wave.heard = Number($("seek").value);
      this.#wave.draw();
    };
    $("seek").onkeydown = (event) => {
      const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -5, PageUp: 5 }[event.key];
      if (!step) return;
      event.preventDefault();
      this.speech?.seek(this.speech.currentTime + step);
      this.render();
    };
    $("seek").onchange = () => {
      this.#seeking = false;
      this.speech?.seek(Number($("seek").value));
      this.render();
    };
    setInterval(() => this.speech && !this.speech.over && this.render(), 500);
    this.render();
  }

  get waveform() { return this.#wave; }
  get generationId() { return this.speech?.generationId ?? this.#about.generation_id ?? null; }
  get sounding() { return Boolean(this.speech && !this.speech.paused && !this.#blocked); }
  #blocked = false;

  /**
   * Put a speech on stage; the one before it leaves (at the server it goes on).
   * @param about `{text, voice: {id, name}, expected}`: what it says, who says it, and how many seconds it may take
   */
  show(speech, about) {
    this.speech?.close();
    this.speech = speech;
    this.#began = performance.now();
    this.#blocked = this.#begun = false;
    this.#wave.reset(about.expected ?? 0);
    $("stage-problem").textContent = "";
    $("first").hidden = true;
    this.describe(about);
    const on = (names, react) => {
      for (const name of names) speech.addEventListener(name, (event) => this.speech === speech && react(event));
    };
    on(["samples"], ({ detail }) => this.#wave.add(detail));
    on(["firstaudio"], ({ detail }) => this.#showFirst(detail.milliseconds));
    on(["blocked"], () => { this.#blocked = true; });
    on(["playing"], () => { this.#blocked = false; this.#follow(); });
    on(["state"], () => {
      $("stage-problem").textContent = speech.error?.message ?? "";
      if (speech.generationId && !this.#begun) {
        this.#begun = true;
        this.dispatchEvent(new CustomEvent("change", { detail: "begun" }));
      }
    });
    on(["state", "progress", "time", "playing", "paused", "ended", "blocked", "stored", "end"], (event) => {
      this.render();
      if (!["progress", "time"].includes(event.type)) this.dispatchEvent(new CustomEvent("change", { detail: event.type }));
    });
    this.render();
    this.dispatchEvent(new CustomEvent("change", { detail: "show" }));
  }

  /** Say what is on stage, where that becomes known later. */
  describe(about) {
    this.#about = about;
    $("stage-title").textContent = about.text ?? "";
    colour($("stage-orb"), about.voice?.id ?? "");
    if (about.expected && !this.#wave.expected) this.#wave.expected = about.expected;
  }

  clear() {
    this.speech?.close();
    this.speech = null;
    this.describe({});
    this.#wave.reset();
    $("stage-problem").textContent = "";
    this.render();
    this.dispatchEvent(new CustomEvent("change", { detail: "clear" }));
  }

  toggle() {
    if (this.sounding) this.speech.pause();
    else {
      this.#blocked = false;
      this.speech.play();
    }
    this.render();
    this.dispatchEvent(new CustomEvent("change", { detail: "toggle" }));
  }

  pause() {
    if (this.sounding) this.toggle();
  }

  render() {
    const { speech } = this;
    const active = Boolean(speech && !speech.over);
    const seconds = speech?.seconds ?? 0;
    const heard = this.#seeking ? Number($("seek").value) : speech?.currentTime ?? 0;
    const empty = !speech || (speech.over && !seconds && speech.state !== "completed");
    $("stage").dataset.state = !speech ? "empty" : speech.state;
    $("stage").dataset.player = speech?.player ?? "";
    $("stage").dataset.link = speech?.link ?? "";

    const pressed = this.sounding;
    relabel($("play"), pressed ? "pause" : "play", pressed ? "Pause" : "Play");
    $("play").disabled = empty;
    $("play").classList.toggle("ask", this.#blocked);
    $("cancel").hidden = !active;
    $("download").hidden = !speech?.stored;

    $("seek").disabled = empty || !seconds;
    $("seek").max = String(seconds || 1);
    if (!this.#seeking) $("seek").value = String(heard);
    $("seek").setAttribute("aria-valuetext", `${clock(heard)} of ${clock(seconds)}`);
    $("time").textContent = this.#time(heard, seconds, active);
    const state = speech ? (this.#blocked ? "Press play to listen." : stateOf(speech, this.#about.replay ? this.#about.voice?.name : "")) : "";
    if ($("state").textContent !== state) $("state").textContent = state;

    Object.assign(this.#wave, { seconds, heard, growing: active });
    this.#wave.draw();
    this.#renderProgress(active, seconds);
  }

  #time(heard, seconds, active) {
    if (!this.speech) return "0:00";
    if (active) return `${clock(heard)} of about ${clock(Math.max(seconds, this.#wave.expected))}`;
    return `${clock(heard)} of ${clock(seconds)}`;
  }

  /** Against the server's estimate of the time, or our guess of the length: whichever is further. */
  #renderProgress(active, seconds) {
    $("progress").hidden = !active;
    if (!active) return;
    const estimate = (this.speech.answer?.estimated_duration_minutes ?? 0) * 60;
    const waited = (performance.now() - this.#began) / 1000;
    const { expected } = this.#wave;
    const done = Math.min(0.97, Math.max(estimate && waited / estimate, expected && seconds / expected, 0.02));
    $("progress").style.setProperty("--done", String(done));
    $("progress").setAttribute("aria-valuenow", String(Math.round(done * 100)));
    $("progress").setAttribute("aria-valuetext", estimate
      ? `${Math.round(done * 100)} percent; usually done within ${Math.ceil(estimate)} seconds`
      : `${clock(seconds)} of audio so far`);
  }

  #showFirst(milliseconds) {
    if (!this.speech.task || this.#about.late) return; // after a reload the clock began at another moment
    $("first").hidden = false;
    $("first").textContent = `first sound after ${(milliseconds / 1000).toFixed(2)} s`;
  }

  #follow() {
    cancelAnimationFrame(this.#due);
    const frame = () => {
      if (!this.sounding) return;
      if (!this.#seeking) {
        this.#wave.heard = this.speech.currentTime;
        this.#wave.draw();
      }
      this.#due = requestAnimationFrame(frame);
    };
    frame();
  }
}

/** Fetch a generation's audio and save it. */
export async function download(utter, entry) {
  const response = await utter.fetch("GET", `/api/generations/${entry.id}/audio`, { timeout: 60_000 });
  const blob = await response.blob();
  save(blob, fileName(entry.text, blob));
  toast("Downloaded.");
}
