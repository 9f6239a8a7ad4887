/**
 * recorder.js: a microphone as a WAV file, 24 kHz mono 16-bit, which is what cloning works with.
 */

export const RATE = 24000;

const WHY_NOT = {
  NotFoundError: "No microphone was found. You can choose a file instead.",
  NotReadableError: "Another program is using the microphone. Close it and try again, or choose a file instead.",
  NotAllowedError: "The microphone was not allowed. Allow it in your browser's address bar, or choose a file instead.",
};

export class Recorder extends EventTarget {
  #context = null;
  #stream = null;
  #parts = [];
  #count = 0;
  #begun = false;

  /** Seconds so far. */
  get seconds() { return this.#context ? this.#count / this.#context.sampleRate : 0; }

  /**
   * Begin. Events: `level` with detail {peak, rms} of the last moment; `silenced` and `heard` when the system mutes the
   * microphone, or takes it away for a while, and gives it back; `lost` when it is gone (pulled out, or no longer allowed).
   * @throws Error with a sentence
   */
  async start() {
    if (!navigator.mediaDevices?.getUserMedia || !globalThis.AudioWorkletNode) {
      throw new Error("Browsers give the microphone to pages on https or localhost alone. You can choose a file instead.");
    }
    try {
      this.#stream = await navigator.mediaDevices.getUserMedia({
        // What telephones do to a voice would be cloned with it.
        audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: true },
      });
    } catch (error) {
      throw new Error(WHY_NOT[error.name] ?? WHY_NOT.NotAllowedError);
    }
    try {
      await this.#listen();
    } catch {
      this.abandon();
      throw new Error("This browser cannot record from that microphone. You can choose a file instead.");
    }
    this.#watch();
  }

  /** Let the samples in. Some browsers want the context to have the microphone's own rate. */
  async #listen() {
    const [track] = this.#stream.getAudioTracks();
    try {
      await this.#connect();
    } catch (error) {
      const { sampleRate } = track.getSettings?.() ?? {};
      if (error.name !== "NotSupportedError" || !sampleRate) throw error;
      await this.#context.close();
      await this.#connect({ sampleRate });
    }
    await this.#context.resume();
  }

  async #connect(options = {}) {
    this.#context = new AudioContext(options);
    const source = this.#context.createMediaStreamSource(this.#stream);
    await this.#context.audioWorklet.addModule(new URL("recorder-worklet.js", import.meta.url));
    const tap = new AudioWorkletNode(this.#context, "tap", { numberOfOutputs: 0 });
    tap.port.onmessage = ({ data }) => {
      this.#parts.push(data);
      this.#count += data.length;
      this.dispatchEvent(new CustomEvent("level", { detail: loudness(data) }));
    };
    source.connect(tap);
  }

  #watch() {
    const [track] = this.#stream.getAudioTracks();
    const context = this.#context;
    const tell = (name) => this.#begun && this.dispatchEvent(new Event(name));
    this.#begun = true;
    track.addEventListener("ended", () => tell("lost"));
    track.addEventListener("mute", () => tell("silenced"));
    track.addEventListener("unmute", () => tell("heard"));
    context.addEventListener("statechange", () => {
      if (context.state === "running") tell("heard");
      else if (this.#begun && context.state !== "closed") {
        tell("silenced");
        context.resume().catch(() => {}); // where it was taken away for a moment only
      }
    });
  }

  /** End; the recording as samples at RATE. */
  async stop() {
    const rate = this.#context.sampleRate;
    this.abandon();
    const samples = new Float32Array(this.#count);
    let at = 0;
    for (const part of this.#parts) {
      samples.set(part, at);
      at += part.length;
    }
    return resample(samples, rate);
  }

  /** Let the microphone go. */
  abandon() {
    this.#begun = false;
    for (const track of this.#stream?.getTracks() ?? []) track.stop();
    if (this.#context && this.#context.state !== "closed") this.#context.close();
  }
}

/** The highest sample and the effective value, 0..1. */
export function loudness(samples) {
  let peak = 0;
  let power = 0;
  for (const sample of samples) {
    peak = Math.max(peak, Math.abs(sample));
    power += sample * sample;
  }
  return { peak, rms: Math.sqrt(power / (samples.length || 1)) };
}

async function resample(samples, rate) {
  if (!samples.length) return samples;
  const context = new OfflineAudioContext(1, Math.max(1, Math.round((samples.length * RATE) / rate)), RATE);
  const buffer = context.createBuffer(1, samples.length, rate);
  buffer.copyToChannel(samples, 0);
  const source = new AudioBufferSourceNode(context, { buffer });
  source.connect(context.destination);
  source.start();
  return (await context.startRendering()).getChannelData(0);
}

/** Samples at RATE as a WAV file. */
export function wavFile(samples) {
  const bytes = new DataView(new ArrayBuffer(44 + 2 * samples.length));
  const word = (at, text) => { for (let i = 0; i < 4; i += 1) bytes.setUint8(at + i, text.charCodeAt(i)); };
  word(0, "RIFF");
  bytes.setUint32(4, 36 + 2 * samples.length, true);
  word(8, "WAVE");
  word(12, "fmt ");
  bytes.setUint32(16, 16, true);
  bytes.setUint16(20, 1, true); // PCM
  bytes.setUint16(22, 1, true); // channels
  bytes.setUint32(24, RATE, true);
  bytes.setUint32(28, 2 * RATE, true);
  bytes.setUint16(32, 2, true);
  bytes.setUint16(34, 16, true);
  word(36, "data");
  bytes.setUint32(40, 2 * samples.length, true);
  for (let i = 0; i < samples.length; i += 1) {
    bytes.setInt16(44 + 2 * i, Math.max(-1, Math.min(1, samples[i])) * 32767, true);
  }
  return new Blob([bytes], { type: "audio/wav" });
}

/** Any recording that the browser can read as samples at RATE, one channel. @throws where it cannot. */
export async function samplesOf(blob) {
  const audio = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(await blob.arrayBuffer());
  return audio.getChannelData(0);
}
