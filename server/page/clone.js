/**
 * clone.js: a voice from a recording, made here with the microphone or chosen as a file.
 */
import { $, attempt, clock, relabel, toast } from "./dom.js";
import { Mini } from "./mini.js";
import { RATE, Recorder, loudness, wavFile } from "./recorder.js";
import { CONSENT, passageFor } from "./words.js";

const [SHORTEST, GOOD, ENOUGH, LONGEST] = [3, 10, 20, 60]; // seconds
const LARGEST = 10 * 1024 * 1024;

export class CloneDialog {
  #app;
  #dialog = $("clone");
  #mini = new Mini($("clone-mini"));
  #recorder = null;
  #recording = null; // {blob, type, seconds or null}
  #begun = null; // {voice_id, blob}: uploaded, so that a second attempt finishes the first
  #passage = "";

  /** @param app `{utter, stage, voices, languages()}` */
  constructor(app) {
    this.#app = app;
    $("open-clone").onclick = () => this.open();
    $("consent-line").textContent = CONSENT;
    $("record").onclick = () => attempt($("record"), () => (this.#recorder ? this.#stop() : this.#start()), $("clone-problem"));
    for (const radio of this.#dialog.querySelectorAll("[name=origin]")) radio.onchange = () => this.#origin(radio.value);
    $("file").onchange = () => this.#choose($("file").files[0]);
    $("drop").ondragover = (event) => event.preventDefault();
    $("drop").ondrop = (event) => {
      event.preventDefault();
      this.#choose(event.dataTransfer.files[0]);
    };
    $("clone-language").onchange = () => this.#showPassage();
    this.#mini.addEventListener("playing", () => this.#app.stage.pause());
    this.#dialog.querySelector("form").onsubmit = (event) => {
      event.preventDefault();
      attempt($("clone-save"), () => this.#save(), $("clone-problem")).finally(() => { $("clone-state").textContent = ""; });
    };
    this.#dialog.addEventListener("close", () => this.#tidy());
  }

  open() {
    this.#app.stage.pause();
    $("clone-problem").textContent = "";
    this.#showPassage();
    this.#dialog.showModal();
  }

  #tidy() {
    this.#recorder?.abandon();
    this.#recorder = null;
    this.#mini.pause();
    this.#renderRecorder();
  }

  #origin(where) {
    $("from-microphone").hidden = where !== "microphone";
    $("from-file").hidden = where !== "file";
    this.#recorder?.abandon();
    this.#recorder = this.#recording = null;
    this.#mini.show(null);
    if (where === "file" && $("clone-transcript").value === this.#passage) $("clone-transcript").value = "";
    this.#renderRecorder();
  }

  /** What is to be read aloud is also what the recording will say, unless somebody wrote something else. */
  #showPassage() {
    const transcript = $("clone-transcript");
    const theirs = transcript.value && transcript.value !== this.#passage;
    const said = transcript.value === this.#passage && this.#passage;
    this.#passage = passageFor($("clone-language").value);
    $("passage").textContent = this.#passage;
    if (said && !theirs) transcript.value = this.#passage;
  }

  async #start() {
    const recorder = new Recorder();
    $("record-hint").textContent = "Waiting for the microphone…";
    this.#mini.show(null);
    this.#recording = null;
    try {
      await recorder.start();
    } catch (error) {
      recorder.abandon();
      this.#renderRecorder();
      throw error;
    }
    if (!this.#dialog.open) { recorder.abandon(); return; }
    this.#recorder = recorder;
    if (!$("clone-transcript").value.trim()) $("clone-transcript").value = this.#passage;
    let loud = 0;
    recorder.addEventListener("level", (/** @type {CustomEvent} */ { detail: { peak, rms } }) => {
      if (this.#recorder !== recorder) return;
      loud = Math.max(rms, loud * 0.97);
      this.#renderRecorder(peak, loud);
      if (recorder.seconds >= LONGEST - 0.2) attempt(null, () => this.#stop(), $("clone-problem"));
    });
    recorder.addEventListener("silenced", () => this.#say(recorder, "The microphone is muted: nothing is recorded."));
    recorder.addEventListener("heard", () => this.#say(recorder, ""));
    recorder.addEventListener("lost", async () => {
      if (this.#recorder !== recorder) return;
      await attempt(null, () => this.#stop(), $("clone-problem"));
      $("clone-problem").textContent = "The microphone is gone. What was said until then is kept.";
      $("record").focus();
    });
    this.#renderRecorder();
  }

  #say(recorder, problem) {
    if (this.#recorder === recorder) $("clone-problem").textContent = problem;
  }

  async #stop() {
    const recorder = this.#recorder;
    if (!recorder) return;
    this.#recorder = null;
    this.#renderRecorder();
    const samples = await recorder.stop();
    this.#take(wavFile(samples), "audio/wav", samples, $("record-hint"));
    $("record-time").textContent = clock(this.#recording.seconds);
  }

  #renderRecorder(peak = 0, loud = 0) {
    const { seconds } = this.#recorder ?? { seconds: 0 };
    const on = Boolean(this.#recorder);
    $("record").classList.toggle("on", on);
    relabel($("record"), on ? "stop" : "mic", on ? "Stop recording" : "Record");
    const level = Math.round(100 * Math.min(1, peak ** 0.6));
    $("meter").style.setProperty("--level", String(level / 100));
    $("meter").setAttribute("aria-valuenow", String(level));
    $("meter").dataset.clipping = String(peak > 0.985);
    $("record-time").textContent = clock(on ? seconds : this.#recording?.seconds ?? 0);
    const hint = !on ? "At least 3 seconds; 10 to 20 are best."
      : peak > 0.985 ? "Too loud: move back a little."
      : seconds > 2 && loud < 0.01 ? "Very quiet: come closer."
      : lengthHint(seconds, true);
    if ($("record-hint").textContent !== hint) $("record-hint").textContent = hint;
  }

  async #choose(file) {
    if (!file) return;
    $("clone-problem").textContent = "";
    this.#recording = null;
    this.#mini.show(null);
    const type = typeOf(new Uint8Array(await file.slice(0, 12).arrayBuffer()), file);
    if (!type) { $("clone-problem").textContent = "This is not a WAV, MP3 or M4A file. Please choose another one."; return; }
    if (file.size > LARGEST) { $("clone-problem").textContent = "This file is larger than 10 MB. Please choose a shorter one."; return; }
    // What this browser cannot read, the server may.
    const samples = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await file.arrayBuffer())
      .then((audio) => audio.getChannelData(0), () => null);
    this.#take(file, type, samples, $("file-hint"), `${file.name}: `);
  }

  #take(blob, type, samples, hint, prefix = "") {
    const seconds = samples ? samples.length / RATE : null;
    const quiet = samples && loudness(samples).peak < 0.05;
    this.#recording = { blob, type, seconds };
    this.#mini.show(blob, seconds ?? 0);
    hint.textContent = prefix + (seconds === null ? "ready." : quiet
      ? "There is hardly anything to hear." : `${clock(seconds)}. ${lengthHint(seconds, false)}`);
  }

  async #save() {
    if (this.#recorder) await this.#stop();
    const { utter, voices } = this.#app;
    const recording = this.#recording;
    const name = $("clone-name").value.trim();
    if (!recording) throw new Error("Record something first, or choose a file.");
    if (recording.seconds !== null && recording.seconds < SHORTEST) throw new Error("At least 3 seconds are needed. Please record a little more.");
    if (recording.seconds > LONGEST) throw new Error("This is longer than a minute. Please choose a shorter recording.");
    if (!name) {
      $("clone-name").focus();
      throw new Error("Give the voice a name.");
    }
    if (!$("consent").checked) {
      $("consent").focus();
      throw new Error("Please say that you may use this voice.");
    }
    const fields = { name, language: $("clone-language").value, transcript: $("clone-transcript").value.trim() };
    if (this.#begun?.blob !== recording.blob) {
      $("clone-state").textContent = "Uploading…";
      const { voice_id, upload_url } = await utter.call("POST", "/api/clone/upload-url", { body: { ...fields, size: recording.blob.size } });
      await put(upload_url, recording);
      this.#begun = { voice_id, blob: recording.blob };
    }
    $("clone-state").textContent = "Learning the voice…";
    const { voice_id } = this.#begun;
    const voice = await utter.call("POST", "/api/clone/finalize", { body: { voice_id, ...fields, consent: CONSENT }, timeout: 120_000 });
    this.#begun = null;
    this.#recording = null;
    this.#mini.show(null);
    $("clone-name").value = $("clone-transcript").value = $("file").value = "";
    $("file-hint").textContent = "";
    $("consent").checked = false;
    this.#dialog.close();
    await voices.load(voice.id);
    toast(`${voice.name} is ready to speak.`);
    $("text").focus();
  }
}

/**
 * What a file is, as far as its first bytes or its name tell; "" for what is no recording at all. The server looks at all
 * of it: what is doubtful here is its to judge.
 */
function typeOf(start, { type, name }) {
  const word = (at) => String.fromCharCode(...start.slice(at, at + 4));
  if (["RIFF", "RIFX", "RF64", "BW64"].includes(word(0))) return "audio/wav";
  if (word(4) === "ftyp") return "audio/mp4";
  if (/^(audio|video)[/]/.test(type) || /[.](wav|mp3|m4a|mp4|aac|qta|mov|3gp)$/i.test(name)) return "audio/mpeg";
  return word(0).startsWith("ID3") || (start[0] === 0xff && start[1] >= 0xe0) ? "audio/mpeg" : "";
}

/** PUT to the store: another server, which wants neither our token nor our errors. */
async function put(url, { blob, type }) {
  let response;
  try {
    response = await fetch(url, { method: "PUT", body: blob, headers: { "Content-Type": type }, signal: AbortSignal.timeout(180_000) });
  } catch {
    throw new Error("The recording could not be uploaded. Please check your connection and try again.");
  }
  if (!response.ok) throw new Error(`The recording could not be uploaded (${response.status}). Please try again.`);
}

function lengthHint(seconds, recording) {
  if (seconds < SHORTEST) return recording ? "Go on…" : "At least 3 seconds are needed.";
  if (seconds < GOOD) return recording ? "Enough to begin with; 10 seconds are better." : "Good; 10 to 20 seconds would be better.";
  if (seconds <= ENOUGH) return "That is just right.";
  if (seconds <= LONGEST) return recording ? "More than enough: you can stop." : "That is plenty.";
  return "Longer than a minute: please choose a shorter one.";
}
