/**
 * playback.js: audio that is heard while it arrives.
 *
 * Three players with one interface. An `audio` is `{format: "mp3" | "wav", mime, sample_rate}` as a task describes it.
 *
 *   MediaSourcePlayer   MP3 bytes into an <audio> element through MediaSource   (Chromium, Safari on desktops)
 *   WebAudioPlayer      samples, each group scheduled after the last one        (Firefox, phones; and all of WAV)
 *   ElementPlayer       an <audio> element on an address: stored audio, or the stream's raw form where nothing else can
 *
 *   play() pause() seek(seconds) close()   paused  ended  currentTime  (seconds)
 *   volume (0..1)  rate (1 is as it was spoken)  varies: whether it can play at another rate
 *   append({bytes}) or append({samples})   what has arrived, in order; finish() when that was all
 *   events: playing  waiting  paused (whoever did it)  ended  blocked (the browser wants a click first)  broken
 *
 * `Decoder` turns the bytes of a stream, cut anywhere, into samples: for WebAudioPlayer, and for whoever draws them.
 */

const GROUP_FRAMES = 4; // decoded at a time: about a tenth of a second, so the first sound does not wait
const WARM_UP_BYTES = 1024; // a frame may refer to 511 bytes before it, and overlaps with the frame before it
const LEAD_SECONDS = 0.06; // between arrival and sound, so that scheduling never comes too late

/** Which player hears `audio` live here: "mediasource", "webaudio" or "element". `wanted` forces one, for tests. */
export function livePlayer(audio, wanted = "auto") {
  if (wanted !== "auto") return wanted;
  const mp3 = !audio || audio.format === "mp3";
  if (mp3 && globalThis.MediaSource?.isTypeSupported("audio/mpeg")) return "mediasource";
  return globalThis.AudioContext && globalThis.OfflineAudioContext ? "webaudio" : "element";
}

/** Open the live player of that name; an ElementPlayer needs an address and is opened by whoever has one. */
export function openLivePlayer(name, audio) {
  return name === "mediasource" ? new MediaSourcePlayer(audio.mime) : new WebAudioPlayer(audio.sample_rate);
}

export class ElementPlayer extends EventTarget {
  constructor(url) {
    super();
    this.element = new Audio();
    this.element.preload = "auto";
    for (const [theirs, ours] of Object.entries({
      playing: "playing", waiting: "waiting", pause: "paused", ended: "ended", error: "broken", canplay: "ready",
    })) {
      this.element.addEventListener(theirs, () => this.#closed || this.dispatchEvent(new Event(ours)));
    }
    if (url) this.element.src = url;
  }

  #closed = false;

  get paused() { return this.element.paused; }
  get ended() { return this.element.ended; }
  get currentTime() { return this.element.currentTime; }
  get varies() { return true; }
  set volume(volume) { this.element.volume = volume; }
  /** Loading something else would take the element back to its default rate. */
  set rate(rate) { this.element.defaultPlaybackRate = this.element.playbackRate = rate; }
  /** In seconds; NaN or Infinity while nobody knows. */
  get duration() { return this.element.duration; }

  async play() {
    try {
      await this.element.play();
    } catch (error) {
      // AbortError only says that a pause or another source came in between.
      if (error.name === "NotAllowedError") this.dispatchEvent(new Event("blocked"));
    }
  }

  pause() { this.element.pause(); }
  seek(seconds) { this.element.currentTime = seconds; }
  append() {}
  finish() {}

  close() {
    this.#closed = true;
    this.element.pause();
    this.element.removeAttribute("src");
    this.element.load(); // lets go of the connection and of what is buffered
  }
}

export class MediaSourcePlayer extends ElementPlayer {
  #source = new MediaSource();
  #buffer = null;
  #waiting = [];
  #finished = false;

  constructor(mime) {
    super();
    const address = URL.createObjectURL(this.#source);
    this.#source.addEventListener("sourceopen", () => {
      URL.revokeObjectURL(address);
      this.#buffer = this.#source.addSourceBuffer(mime);
      this.#buffer.addEventListener("updateend", () => this.#pump());
      this.#pump();
    }, { once: true });
    this.element.src = address;
  }

  append({ bytes }) {
    if (!bytes) return;
    this.#waiting.push(bytes);
    this.#pump();
  }

  finish() {
    this.#finished = true;
    this.#pump();
  }

  #pump() {
    if (!this.#buffer || this.#buffer.updating || this.#source.readyState !== "open") return;
    try {
      if (this.#waiting.length) this.#buffer.appendBuffer(join(this.#waiting.splice(0)));
      else if (this.#finished) this.#source.endOfStream();
    } catch {
      this.dispatchEvent(new Event("broken")); // more than the browser will hold, or nothing that it can read
    }
  }
}

export class WebAudioPlayer extends EventTarget {
  #context;
  #output;
  #groups = []; // {buffer, at}: everything so far, so that one can seek
  #sounding = new Set();
  #seconds = 0; // how much there is
  #origin = 0; // the context's time at which second 0 is, or would have been, heard
  #begun = false;
  #wanted = false;
  #ran = false; // whether the context has run since somebody asked for sound
  #finished = false;
  #ended = false;

  constructor(rate) {
    super();
    this.#context = new AudioContext({ sampleRate: rate });
    this.#output = new GainNode(this.#context);
    this.#output.connect(this.#context.destination);
    this.#context.addEventListener("statechange", () => this.#changed());
  }

  get paused() { return !this.#wanted; }
  get ended() { return this.#ended; }
  /** Samples played faster would be higher, too: only stored audio is played at another rate. */
  get varies() { return false; }
  set volume(volume) { this.#output.gain.value = volume; }
  set rate(_rate) {}
  get duration() { return this.#finished ? this.#seconds : Infinity; }
  get currentTime() {
    if (!this.#begun) return 0;
    return Math.max(0, Math.min(this.#context.currentTime - this.#origin, this.#seconds));
  }

  async play() {
    this.#wanted = true;
    this.#ran = this.#context.state === "running";
    if (this.#ended) this.seek(0);
    // Where a click is wanted first, this promise waits for the click: ask for the state instead.
    this.#context.resume().catch(() => {});
    if (navigator.userActivation?.hasBeenActive === false) this.dispatchEvent(new Event("blocked"));
    this.#begin();
  }

  pause() {
    this.#wanted = false;
    this.#context.suspend().catch(() => {});
    this.dispatchEvent(new Event("paused"));
  }

  seek(seconds) {
    this.#silence();
    this.#ended = false;
    this.#begun = true;
    this.#origin = this.#context.currentTime + LEAD_SECONDS - Math.min(seconds, this.#seconds);
    for (const group of this.#groups) this.#schedule(group);
  }

  append({ samples }) {
    if (!samples?.length || this.#context.state === "closed") return;
    const buffer = this.#context.createBuffer(1, samples.length, this.#context.sampleRate);
    buffer.copyToChannel(samples, 0);
    const group = { buffer, at: this.#seconds };
    this.#groups.push(group);
    this.#seconds += buffer.duration;
    if (!this.#begun) { this.#begin(); return; }
    const late = this.#context.currentTime + LEAD_SECONDS / 2 - (this.#origin + group.at);
    if (late > 0) { // the network was slower than the voice: go on from here
      this.#origin += late + LEAD_SECONDS;
      this.#announce();
    }
    this.#schedule(group);
  }

  finish() {
    this.#finished = true;
    if (this.#begun && !this.#sounding.size) this.#end();
  }

  close() {
    this.#wanted = false;
    this.#silence();
    this.#context.close().catch(() => {});
  }

  #begin() {
    if (!this.#begun && this.#wanted && this.#groups.length) this.seek(0);
    this.#announce();
  }

  /** The system takes the sound away (a call, a device that is unplugged), and a page's own code may, too. */
  #changed() {
    if (this.#context.state === "running") {
      this.#ran = true;
      this.#announce();
    } else if (this.#wanted && this.#ran) {
      this.#wanted = false;
      this.dispatchEvent(new Event("paused"));
    }
  }

  #announce() {
    if (this.#wanted && this.#begun && this.#context.state === "running") this.dispatchEvent(new Event("playing"));
  }

  #schedule({ buffer, at }) {
    const start = this.#origin + at;
    const skipped = Math.max(0, this.#context.currentTime - start);
    if (skipped >= buffer.duration) return;
    const source = new AudioBufferSourceNode(this.#context, { buffer });
    source.connect(this.#output);
    source.onended = () => {
      this.#sounding.delete(source);
      if (this.#sounding.size) return;
      if (this.#finished) this.#end();
      else this.dispatchEvent(new Event("waiting"));
    };
    source.start(start + skipped, skipped);
    this.#sounding.add(source);
  }

  #silence() {
    for (const source of this.#sounding) {
      source.onended = null;
      source.stop();
    }
    this.#sounding.clear();
  }

  #end() {
    if (this.#ended) return;
    this.#ended = true;
    this.#wanted = false;
    this.dispatchEvent(new Event("ended"));
  }
}

/** Turns the bytes of a stream into samples, and tells how many seconds they are before anything is decoded. */
export class Decoder {
  #format;
  #onSamples;
  #frames; // MP3: cuts bytes into frames
  #rest = new Uint8Array(); // WAV: the first half of a sample that was cut in two
  #pending = []; // whole frames that wait for their group
  #warmUp = []; // the frames before them, decoded once more and thrown away
  #work = Promise.resolve();
  #handed = 0; // seconds

  /** @param onSamples called in order with `(samples: Float32Array, rate, at seconds)`; never, where the browser cannot decode. */
  constructor(audio, onSamples) {
    this.#format = audio.format;
    this.#onSamples = onSamples;
    this.rate = audio.sample_rate;
    this.seconds = 0;
    this.#frames = new Mp3Frames();
  }

  push(bytes) {
    if (this.#format === "wav") this.#pushRaw(bytes);
    else this.#pushFrames(this.#frames.push(bytes));
  }

  /** Resolves when everything that was pushed has been handed out. */
  flush() {
    this.#decodePending();
    return this.#work;
  }

  #pushRaw(bytes) {
    const all = this.#rest.length ? join([this.#rest, bytes]) : bytes;
    const whole = all.length - (all.length % 2);
    this.#rest = all.slice(whole);
    const view = new DataView(all.buffer, all.byteOffset, whole);
    const samples = new Float32Array(whole / 2);
    for (let i = 0; i < samples.length; i += 1) samples[i] = view.getInt16(2 * i, true) / 32768;
    this.seconds += samples.length / this.rate;
    this.#hand(samples, this.rate);
  }

  #pushFrames(frames) {
    for (const frame of frames) {
      this.rate = frame.rate;
      this.seconds += frame.samples / frame.rate;
      this.#pending.push(frame);
    }
    if (this.#pending.length >= GROUP_FRAMES) this.#decodePending();
  }

  #decodePending() {
    if (!this.#pending.length || !globalThis.OfflineAudioContext) return;
    const warmUp = this.#warmUp;
    const group = this.#pending;
    this.#pending = [];
    this.#warmUp = lastFrames([...warmUp, ...group]);
    this.#work = this.#work.then(async () => {
      const { rate } = group[0];
      const wanted = group.reduce((sum, frame) => sum + frame.samples, 0);
      const samples = new Float32Array(wanted); // what cannot be decoded stays silent, and the time stays right
      try {
        const { buffer } = join([...warmUp, ...group].map((frame) => frame.bytes));
        const decoded = (await new OfflineAudioContext(1, 1, rate).decodeAudioData(buffer)).getChannelData(0);
        // Browsers differ in what they leave out at the beginning, never at the end.
        const tail = decoded.subarray(Math.max(0, decoded.length - wanted));
        samples.set(tail, wanted - tail.length);
      } catch { /* damaged frames */ }
      this.#hand(samples, rate);
    });
  }

  #hand(samples, rate) {
    if (samples.length) this.#onSamples(samples, rate, this.#handed);
    this.#handed += samples.length / rate;
  }
}

function lastFrames(frames) {
  let bytes = 0;
  let first = frames.length;
  while (first > 0 && (bytes < WARM_UP_BYTES || frames.length - first < 2)) bytes += frames[--first].bytes.length;
  return frames.slice(first);
}

const KBPS_1 = [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320];
const KBPS_2 = [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160];
const RATES = [44100, 48000, 32000];

/** Cuts MP3 bytes at the headers of their frames (MPEG-1, -2 and -2.5, layer III); passes over everything else. */
export class Mp3Frames {
  #rest = new Uint8Array();

  /** The frames that are whole now: `{bytes, samples, rate}`. */
  push(bytes) {
    const data = this.#rest.length ? join([this.#rest, bytes]) : bytes;
    const frames = [];
    let at = 0;
    while (at + 4 <= data.length) {
      const frame = header(data, at);
      if (!frame) { at += 1; continue; }
      if (at + frame.length > data.length) break;
      frames.push({ bytes: data.slice(at, at + frame.length), samples: frame.samples, rate: frame.rate });
      at += frame.length;
    }
    this.#rest = data.slice(at);
    return frames;
  }
}

function header(data, at) {
  if (data[at] !== 0xff || (data[at + 1] & 0xe6) !== 0xe2) return null; // eleven bits of sync, and layer III
  const version = (data[at + 1] >> 3) & 3; // 3: MPEG-1, 2: MPEG-2, 0: MPEG-2.5
  const kbps = (version === 3 ? KBPS_1 : KBPS_2)[data[at + 2] >> 4];
  const rate = RATES[(data[at + 2] >> 2) & 3] / { 3: 1, 2: 2, 0: 4 }[version];
  if (version === 1 || !kbps || !rate) return null;
  const samples = version === 3 ? 1152 : 576;
  return { samples, rate, length: Math.floor((samples * kbps * 125) / rate) + ((data[at + 2] >> 1) & 1) };
}

function join(parts) {
  const whole = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
