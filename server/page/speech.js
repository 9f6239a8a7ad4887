/**
 * speech.js: one text, from the request to the ear, through whatever the network does on the way.
 */
import { keep } from "./keep.js";
import { Decoder, ElementPlayer, livePlayer, openLivePlayer } from "./playback.js";
import { UtterError, persist, read, rest } from "./requests.js";

const STRIKES = 3; // streams in a row that brought nothing, after which only polling is left
const POLL_MS = 1000;
const SILENCE_MS = 5000; // without an event: ask whether the task went on without us
export const REMEMBERED = "utter.speech";

/** One text on its way from the voice to the ear. Made by an Utter; utter.js says what it offers. */
export class Speech extends EventTarget {
  static #onAir = null; // the one whose stream is open

  state = "starting";
  link = "none";
  task = null;
  answer = null;
  error = null;
  stored = null;
  seconds = 0;
  words = [];

  #utter; #tellsWords; #live; #wanted; #from; #remembers; #begun; #asked = performance.now();
  #player = null; #next = null; #decoder = null; #whole = false; #raw = false; #heard = false;
  #rate; #volume;
  #offset = 0; #strikes = 0; #hangUp = (_why) => {}; #stop = new AbortController();

  /**
   * `live: false` polls; `words: true` asks when words are heard; `autoplay: false` waits for play(); `remember: false`: not for restore().
   * @param {import("./requests.js").Client & {player: string, rate: number, volume: number}} utter
   * @param {{begin?: () => Promise<any>, generation_id?: string, live?: boolean, autoplay?: boolean, from?: number,
   *          remember?: boolean, words?: boolean, rate?: number, volume?: number}} options
   */
  constructor(utter, {
    begin, generation_id, live = true, autoplay = true, from = 0, remember = true, words = false, rate = utter.rate,
    volume = utter.volume,
  }) {
    super();
    this.#utter = utter;
    this.#tellsWords = words;
    this.#rate = rate;
    this.#volume = volume;
    this.#live = live && "EventSource" in globalThis;
    this.#wanted = autoplay;
    this.#from = from;
    this.#remembers = remember && Boolean(begin);
    this.#begun = begin ? begin() : Promise.resolve({ generation_id });
    const ticking = setInterval(() => this.#tick(), 250);
    this.#stop.signal.addEventListener("abort", () => clearInterval(ticking));
    globalThis.addEventListener("pagehide", () => this.#tick(), { signal: this.#stop.signal });
    this.#run(!begin);
  }

  get id() { return this.answer?.task_id ?? null; }
  get generationId() { return this.answer?.generation_id ?? this.task?.generation_id ?? null; }
  get over() { return ["completed", "failed", "cancelled"].includes(this.state); }
  get paused() { return !this.#wanted; }
  get currentTime() { return this.#from || this.#player?.currentTime || 0; }
  /** What is heard now: "MediaSourcePlayer", "WebAudioPlayer", "ElementPlayer" or null. */
  get player() { return this.#player?.constructor.name ?? null; }

  /** How fast it is heard, 1 as it was spoken. What cannot be varied while it is live is varied once it is stored. */
  get rate() { return this.#rate; }
  set rate(rate) {
    this.#rate = rate;
    if (this.#player) this.#player.rate = rate;
    this.#swap();
  }

  /** How loud it is heard, 0..1. */
  get volume() { return this.#volume; }
  set volume(volume) {
    this.#volume = volume;
    if (this.#player) this.#player.volume = volume;
  }

  play() {
    this.#wanted = true;
    if (!this.#from) this.#player?.play();
  }

  pause() {
    this.#wanted = false;
    this.#player?.pause();
    this.#swap();
  }

  seek(seconds) {
    this.#from = 0;
    this.#player?.seek(Math.max(0, Math.min(seconds, this.seconds)));
    this.#emit("time");
  }

  /** Stop the speech for good; false where it was over before. @throws UtterError if the server could not be told. */
  async cancel() {
    this.pause();
    await this.#begun.catch(() => {});
    if (!this.id || this.over) return false;
    const { cancelled } = await persist(() => this.#utter.call("POST", `/api/tasks/${this.id}/cancel`));
    if (cancelled && !this.#stop.signal.aborted) {
      this.state = "cancelled";
      this.close();
      this.#emit("state");
      this.#emit("end");
    }
    return cancelled;
  }

  /** Let go of everything here. At the server the speech goes on. */
  close() {
    this.#stop.abort();
    this.#hangUp("closed");
    this.#player?.close();
    this.#next?.close();
    this.#forget();
  }

  async #run(stored) {
    const { signal } = this.#stop;
    try {
      this.answer = await this.#begun;
      if (stored) this.state = "completed";
      else await this.#follow();
      signal.throwIfAborted();
      if (this.#raw && this.#player && this.state === "completed") this.#whole = true; // it ends by itself, or breaks
      if (this.#whole || this.state === "failed") this.#decoder?.flush().then(() => this.#player?.finish());
      if (this.state === "failed") this.#forget();
      this.#set({ link: "none" });
      this.#emit("end");
      if (this.state === "completed") await this.#fetchStored();
    } catch (error) {
      const over = this.over;
      if (signal.aborted || (over && this.#whole)) return; // gone, or everything is here anyway
      this.#forget();
      this.#set({ link: "none", error, state: over ? this.state : "failed" });
      if (!over) this.#emit("end");
    }
  }

  /** Until the task is over, and everything that can be streamed was streamed. */
  async #follow() {
    let url = this.answer.stream_url;
    const ask = async () => {
      this.#take(await this.#persistently(() => this.#task()));
      url = this.task.stream_url;
    };
    if (!url) await ask();
    while (!["failed", "cancelled"].includes(this.state)) {
      let outcome = "not offered";
      if (url && this.#live && this.#kind() === "element") this.#openRaw(url);
      else if (this.#canStream(url)) outcome = await this.#stream(url);
      this.#stop.signal.throwIfAborted();
      if (outcome === "end") return;
      if (outcome === "not offered") {
        if (this.over) return;
        this.#set({ link: this.#player ? "live" : "polling" });
        await rest(POLL_MS, this.#stop.signal);
      } else {
        this.#set({ link: "reconnecting" });
        await rest(300 * 2 ** this.#strikes * (0.5 + Math.random()), this.#stop.signal);
      }
      await ask();
    }
  }

  #kind() { return livePlayer(this.task?.audio, this.#utter.player); }

  #canStream(url) {
    // Of a speech that was over when we came, the stored audio is all one needs.
    return url && this.#live && this.#strikes < STRIKES && !(this.state === "completed" && this.#offset === 0);
  }

  /** Listen to the stream from our offset on; why it ended: "end", "lost", "closed", or "taken" by another speech. */
  #stream(url) {
    if (Speech.#onAir) Speech.#onAir.#hangUp("taken");
    Speech.#onAir = this;
    return new Promise((resolve) => {
      const words = this.#tellsWords ? "&words=1" : "";
      const source = new EventSource(this.#utter.address(`${url}&as=events&offset=${this.#offset}${words}`));
      let lastEvent = performance.now();
      this.#strikes += 1; // taken back by the first event
      const alive = () => {
        lastEvent = performance.now();
        this.#strikes = 0;
        this.#set({ link: "live" });
      };
      const watching = setInterval(async () => {
        if (performance.now() - lastEvent < SILENCE_MS) return;
        lastEvent = performance.now();
        const { status, audio } = await this.#task().catch(() => ({}));
        if (["completed", "failed", "cancelled"].includes(status) || audio?.bytes > this.#offset) this.#hangUp("lost");
      }, POLL_MS);
      this.#hangUp = (outcome) => {
        clearInterval(watching);
        source.close();
        this.#hangUp = (_why) => {};
        if (Speech.#onAir === this) Speech.#onAir = null;
        if (outcome === "taken") this.#live = false;
        resolve(outcome);
      };
      source.addEventListener("error", () => {
        // Closed: an answer other than 200, after which the browser gives up. Else it comes back by itself.
        if (source.readyState === EventSource.CLOSED) this.#hangUp("lost");
        else this.#set({ link: "reconnecting" });
      });
      source.addEventListener("task", ({ data, lastEventId }) => {
        alive();
        this.#take(JSON.parse(data));
        if (lastEventId === "end") {
          this.#whole = this.state === "completed";
          this.#hangUp("end");
        } else if (this.#kind() === "element") this.#hangUp("lost"); // only now do we know the format
      });
      let first = true; // whoever comes back hears of all words again
      source.addEventListener("open", () => { first = true; });
      source.addEventListener("words", ({ data }) => {
        alive();
        this.words = [...(first ? [] : this.words), ...JSON.parse(data).words];
        first = false;
        this.#emit("words");
      });
      source.addEventListener("response.audio.delta", ({ data, lastEventId }) => {
        alive();
        const bytes = Uint8Array.from(atob(JSON.parse(data).delta), (character) => character.charCodeAt(0));
        const known = this.#offset - (Number(lastEventId) - bytes.length);
        if (known < 0) this.#hangUp("lost");
        else if (known < bytes.length) this.#receive(bytes.subarray(known));
      });
    });
  }

  #receive(bytes) {
    const audio = this.task?.audio ?? { format: "mp3", mime: "audio/mpeg", sample_rate: 24000 };
    this.#offset += bytes.length;
    this.#decoder ??= new Decoder(audio, (samples, rate, at) => {
      if (this.#stop.signal.aborted) return;
      this.#player?.append({ samples });
      this.#emit("samples", { samples, rate, at });
    });
    if (!this.#player && this.#live) this.#use(openLivePlayer(this.#kind(), audio));
    this.#player?.append({ bytes });
    this.#decoder.push(bytes);
    this.seconds = this.#decoder.seconds;
    if (this.#from && this.seconds > this.#from + 0.5) {
      this.seek(this.#from);
      if (this.#wanted) this.#player?.play();
    }
    this.#emit("progress");
  }

  /** The third way: the browser streams by itself, which takes the page's one stream; the task is polled beside it. */
  #openRaw(url) {
    if (this.#player) return;
    if (Speech.#onAir) Speech.#onAir.#hangUp("taken");
    this.#from = 0;
    this.#raw = true;
    this.#use(new ElementPlayer(this.#utter.address(`${url}&as=audio`)));
  }

  #use(player) {
    this.#player = player;
    Object.assign(player, { rate: this.#rate, volume: this.#volume });
    const on = (name, react) => player.addEventListener(name, () => this.#player === player && react());
    on("waiting", () => this.#emit("waiting"));
    on("paused", () => {
      // Whoever paused it (a key of the keyboard, a call that came in): it is paused, and Play goes on from here.
      const byOthers = this.#wanted && player.paused && !player.ended;
      if (byOthers) this.#wanted = false;
      this.#emit("paused");
      if (byOthers) this.#swap();
    });
    on("playing", () => {
      if (!this.#heard) this.#emit("firstaudio", { milliseconds: performance.now() - this.#asked });
      this.#heard = true;
      this.#emit("playing");
    });
    on("blocked", () => {
      this.#wanted = false;
      player.pause();
      this.#emit("blocked");
    });
    on("ended", () => {
      this.#wanted = false;
      this.#forget();
      this.#swap();
      this.#emit("ended");
    });
    on("broken", () => { // what is stored takes over where this one stopped
      this.#from = this.currentTime;
      this.#live = this.#whole = false;
      this.#player = null;
      player.close();
      this.#hangUp("lost");
      this.#swap();
    });
    if (this.#wanted && !this.#from) player.play();
  }

  async #fetchStored() {
    const { signal } = this.#stop;
    const path = `/api/generations/${this.generationId}/audio`;
    this.stored = await this.#persistently(async () => {
      const response = await this.#utter.linked(path, { signal });
      return read(() => response.blob(), signal);
    }, 5);
    const address = URL.createObjectURL(this.stored);
    const player = new ElementPlayer(address);
    const ready = await new Promise((resolve) => {
      player.addEventListener("ready", () => resolve(true), { once: true });
      player.addEventListener("broken", () => resolve(false), { once: true });
      signal.addEventListener("abort", () => {
        player.close();
        URL.revokeObjectURL(address);
        resolve(false);
      });
    });
    signal.throwIfAborted();
    if (!ready && !this.#whole) throw new UtterError("The stored audio cannot be played by this browser.");
    if (ready) this.#next = player;
    if (!this.#whole) await this.#drawStored(player.duration);
    signal.throwIfAborted();
    this.#swap();
    this.#emit("stored");
    if (this.#tellsWords && (this.#raw || !this.#whole)) await this.#learnWords();
  }

  /** Of what was not streamed to its end: when its words are heard, where anybody knows. */
  async #learnWords() {
    const path = `/api/generations/${this.generationId}/words`;
    const { words } = await this.#utter.call("GET", path, { signal: this.#stop.signal }).catch(() => ({ words: [] }));
    if (this.#stop.signal.aborted || !words.length) return;
    this.words = words;
    this.#emit("words");
  }

  async #drawStored(seconds) {
    if (Number.isFinite(seconds)) this.seconds = seconds;
    this.#emit("progress");
    if (!globalThis.OfflineAudioContext) return;
    const context = new OfflineAudioContext(1, 1, 24000);
    const audio = await context.decodeAudioData(await this.stored.arrayBuffer()).catch(() => null);
    if (audio) this.#emit("samples", { samples: audio.getChannelData(0), rate: audio.sampleRate, at: 0 });
  }

  /** Put the stored audio in the place of what was streamed, as soon as nothing is heard; at once where there is a gap. */
  #swap() {
    const [old, next] = [this.#player, this.#next];
    if (!next || (old && this.#whole && this.#wanted && (old.varies || this.#rate === 1))) return;
    const at = this.currentTime;
    this.#next = null;
    this.#from = 0;
    old?.close();
    if (at && at < this.seconds - 0.1) next.seek(at);
    this.#use(next);
  }

  #task() {
    return this.#utter.call("GET", `/api/tasks/${this.id}`, { signal: this.#stop.signal });
  }

  #take(task) {
    this.task = task;
    if (task.error) this.error = new UtterError(task.error, { category: task.error_category });
    if (!this.#decoder && task.audio?.seconds) this.seconds = task.audio.seconds;
    this.#set({ state: task.status }, true);
  }

  #persistently(attempt, tries = Infinity) {
    return persist(attempt, { tries, signal: this.#stop.signal, failed: () => this.#set({ link: "reconnecting" }) });
  }

  #tick() {
    if (this.#remembers && this.id) {
      keep(REMEMBERED, { task_id: this.id, heard: this.currentTime, paused: this.paused });
    }
    if (this.#wanted && this.#player) this.#emit("time");
  }

  #forget() {
    if (this.#remembers) keep(REMEMBERED, undefined);
    this.#remembers = false;
  }

  #set(changes, always = false) {
    const changed = Object.entries(changes).some(([name, value]) => this[name] !== value);
    Object.assign(this, changes);
    if (changed || always) this.#emit("state");
  }

  #emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }
}
