/**
 * stage.js: the player. One speech is on stage at a time, whether it is being spoken or comes from the history.
 */
import { $, attempt, clock, colour, copy, disclose, focusFirst, relabel, showMenu } from "./dom.js";
import { copyLink, download } from "./files.js";
import { keep, kept } from "./keep.js";
import { Saying } from "./saying.js";
import { takeTheFloor, yieldTheFloor } from "./tabs.js";
import { Waveform } from "./waveform.js";
import { stateOf } from "./words.js";

const SOUND = "utter.sound";

/**
 * What is on stage.
 * @typedef {object} About
 * @property {string} [text] what it says
 * @property {{id: string, name?: string}} [voice] who says it
 * @property {number} [expected] how many seconds it may take
 * @property {string} [generation_id] where it comes from the history
 * @property {boolean} [replay] it was stored before it came here
 * @property {boolean} [late] it was under way before this page was there
 * @property {() => void} [again] tries once more
 */

export class Stage extends EventTarget {
  speech = null;
  /** @type {About} */
  #about = {};
  #wave = new Waveform($("wave"));
  #saying = new Saying(() => [$("stage-title"), document.querySelector("#entries .here .said")]);
  #began = 0;
  #due = 0;
  #seeking = false;
  #begun = false; // whether the server has it
  #blocked = false;
  #utter;

  constructor(utter) {
    super();
    this.#utter = utter;
    const { rate = 1, volume = 1 } = kept(SOUND, "localStorage") ?? {};
    Object.assign(utter, { rate, volume });
    $("play").onclick = () => this.toggle();
    $("cancel").onclick = () => this.cancel();
    $("download").onclick = () => attempt($("download"), () => this.#download());
    $("retry").onclick = () => this.#about.again?.();
    $("copy-reference").onclick = () => copy(this.reference, "Reference copied.");
    $("stage-more").onclick = () => showMenu($("stage-more"), this.#choices());
    $("fold").onclick = () => this.#fold(!$("stage").hasAttribute("data-folded"));
    $("close-stage").onclick = () => {
      this.clear();
      focusFirst($("text"));
    };
    disclose($("sound"), $("sound-panel"));
    $("rate").onchange = () => this.#sound({ rate: Number($("rate").value) });
    $("volume").oninput = () => this.#sound({ volume: Number($("volume").value) / 100 });
    this.#sound({ rate, volume });
    $("seek").oninput = () => {
      this.#seeking = true;
      this.#wave.heard = Number($("seek").value);
      this.#wave.draw();
    };
    $("seek").onkeydown = (event) => {
      const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -5, PageUp: 5 }[event.key];
      if (!step) return;
      event.preventDefault();
      this.skip(step);
    };
    $("seek").onchange = () => {
      this.#seeking = false;
      this.speech?.seek(Number($("seek").value));
      this.render();
    };
    setInterval(() => this.speech && !this.speech.over && this.render(), 500);
    yieldTheFloor(() => this.pause());
    this.#obeyTheKeyboard();
    this.render();
  }

  get waveform() { return this.#wave; }
  get about() { return this.#about; }
  get generationId() { return this.speech?.generationId ?? this.#about.generation_id ?? null; }
  get sounding() { return Boolean(this.speech && !this.speech.paused && !this.#blocked && !this.#empty); }
  /** Nothing to be heard, and nothing that will be. */
  get #empty() {
    const { speech } = this;
    return !speech || (speech.over && !speech.seconds && (speech.state !== "completed" || Boolean(speech.error)));
  }

  /** Under which the server knows what is on stage, or what went wrong with it. */
  get reference() { return this.speech?.error?.reference ?? this.generationId ?? this.speech?.id ?? null; }

  /**
   * Put a speech on stage; the one before it leaves (at the server it goes on).
   * @param {About} about
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
    on(["playing"], () => {
      this.#blocked = false;
      takeTheFloor();
      this.#follow();
    });
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
    if (navigator.mediaSession && globalThis.MediaMetadata) {
      navigator.mediaSession.metadata = about.text
        ? new MediaMetadata({ title: about.text.slice(0, 100), artist: about.voice?.name ?? "" }) : null;
    }
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
    if (this.#empty) return;
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

  /** Go back or forth by this many seconds. */
  skip(seconds) {
    this.speech?.seek(this.speech.currentTime + seconds);
    this.render();
  }

  /** Stop what is being spoken, for good. */
  async cancel() {
    if (!this.speech || this.speech.over) return;
    const here = $("cancel") === document.activeElement;
    await attempt($("cancel"), () => this.speech.cancel(), $("stage-problem"));
    if (here || document.activeElement === document.body) focusFirst($("text"));
  }

  render() {
    const { speech } = this;
    const active = Boolean(speech && !speech.over);
    const failed = Boolean(speech?.error) && speech.over;
    const seconds = speech?.seconds ?? 0;
    const heard = this.#seeking ? Number($("seek").value) : speech?.currentTime ?? 0;
    $("stage").dataset.state = !speech ? "empty" : speech.state;
    $("stage").dataset.player = speech?.player ?? "";
    $("stage").dataset.link = speech?.link ?? "";
    $("stage").toggleAttribute("data-silent", Boolean(speech) && this.#empty);

    const pressed = this.sounding;
    relabel($("play"), pressed ? "pause" : "play", pressed ? "Pause" : "Play");
    $("play").disabled = this.#empty;
    $("play").classList.toggle("ask", this.#blocked);
    $("cancel").hidden = !active;
    $("download").hidden = !speech?.stored;
    $("stage-more").hidden = !speech || !this.#choices().length;
    $("kept").hidden = !speech?.stored || Boolean(this.#about.replay);

    $("seek").disabled = this.#empty || !seconds;
    $("seek").max = String(seconds || 1);
    if (!this.#seeking) $("seek").value = String(heard);
    $("seek").setAttribute("aria-valuetext", `${clock(heard)} of ${clock(seconds)}`);
    $("time").textContent = this.#time(heard, seconds, active);
    const state = !speech ? "" : this.#blocked ? "Press play to listen." : stateOf(speech, { sounding: pressed, replay: this.#about.replay });
    if ($("state").textContent !== state) $("state").textContent = state;
    $("retry").hidden = !failed || !this.#about.again;
    $("copy-reference").hidden = !failed || !this.reference;

    this.#saying.at(heard, speech?.words ?? []);
    Object.assign(this.#wave, { seconds, heard, growing: active });
    this.#wave.draw();
    this.#renderProgress(active, seconds);
  }

  #time(heard, seconds, active) {
    if (!this.speech) return "0:00";
    if (this.#empty) return "";
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
        this.#saying.at(this.speech.currentTime, this.speech.words);
      }
      this.#due = requestAnimationFrame(frame);
    };
    frame();
  }

  /** What else can be done with what is on stage. */
  #choices() {
    const { stored } = this.speech ?? {};
    return [
      stored && { icon: "down", label: "Download as MP3", act: () => attempt(null, () => this.#download("mp3")) },
      stored && { icon: "down", label: "Download as WAV", act: () => attempt(null, () => this.#download("wav")) },
      stored && { icon: "link", label: "Copy a link", act: () => copyLink(this.#utter, this.generationId) },
      this.reference && { icon: "tag", label: "Copy the reference", act: () => copy(this.reference, "Reference copied.") },
    ].filter(Boolean);
  }

  /** @param {"mp3" | "wav" | null} form */
  #download(form = null) {
    const { stored } = this.speech;
    const about = { id: this.generationId, text: this.#about.text ?? "", wav: stored.type.includes("wav") };
    return download(this.#utter, about, form, stored);
  }

  #sound({ rate = this.#utter.rate, volume = this.#utter.volume }) {
    Object.assign(this.#utter, { rate, volume });
    if (this.speech) Object.assign(this.speech, { rate, volume });
    keep(SOUND, { rate, volume }, "localStorage");
    $("rate").value = String(rate);
    $("volume").value = String(Math.round(volume * 100));
    $("sound-now").textContent = `${rate}×`;
    relabel($("sound"), volume ? "loud" : "mute", `Speed ${rate}, volume ${Math.round(volume * 100)} percent`);
  }

  /** On a small screen: one line, or all of it. */
  #fold(folded) {
    $("stage").toggleAttribute("data-folded", folded);
    relabel($("fold"), folded ? "up" : "fold", folded ? "Show all of the player" : "Make the player small");
  }

  /** The keys for play and pause that keyboards and headphones have. */
  #obeyTheKeyboard() {
    const keys = {
      play: () => this.sounding || this.toggle(), pause: () => this.pause(), stop: () => this.pause(),
      seekbackward: () => this.skip(-5), seekforward: () => this.skip(5),
    };
    for (const [name, act] of Object.entries(keys)) {
      try {
        navigator.mediaSession?.setActionHandler(/** @type {MediaSessionAction} */ (name), act);
      } catch { /* not every browser knows every key */ }
    }
  }
}
