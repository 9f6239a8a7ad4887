/**
 * waveform.js: the picture of a speech. It grows with the audio, and the part that was heard is coloured.
 */

const PEAKS_PER_SECOND = 50;
const STEP = 5; // CSS pixels from bar to bar
const BAR = 3;

export class Waveform {
  #canvas;
  #context;
  #peaks = [];
  #heights = [];
  #span = 1; // seconds from edge to edge, on its way to what it should be
  #due = 0;
  #colours = {};
  #size = { width: 0, height: 0 };

  /** Seconds: expected at first, here so far, heard so far. */
  expected = 0;
  seconds = 0;
  heard = 0;
  /** True while more is to come. */
  growing = false;

  constructor(canvas) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d");
    new ResizeObserver(() => this.resize()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.recolour());
    this.recolour();
  }

  /** The highest sample in each fiftieth of a second, 0..1: what is drawn. */
  get peaks() { return this.#peaks; }

  reset(expected = 0) {
    Object.assign(this, { expected, seconds: 0, heard: 0, growing: expected > 0 });
    this.#peaks = [];
    this.#heights = [];
    this.#span = Math.max(1, expected);
    this.draw();
  }

  add({ samples, rate, at }) {
    if (at === 0) this.#peaks = [];
    const first = at * PEAKS_PER_SECOND;
    for (let i = 0; i < samples.length; i += 1) {
      const slot = Math.floor(first + (i * PEAKS_PER_SECOND) / rate);
      const height = Math.abs(samples[i]);
      if (!(this.#peaks[slot] >= height)) this.#peaks[slot] = height;
    }
    this.draw();
  }

  recolour() {
    const style = getComputedStyle(this.#canvas);
    this.#colours = Object.fromEntries(
      ["heard", "here", "rest"].map((name) => [name, style.getPropertyValue(`--wave-${name}`).trim()]),
    );
    this.draw();
  }

  resize() {
    const { width, height } = this.#canvas.getBoundingClientRect();
    this.#size = { width, height };
    this.#canvas.width = Math.round(width * devicePixelRatio);
    this.#canvas.height = Math.round(height * devicePixelRatio);
    this.draw();
  }

  draw() {
    this.#due ||= requestAnimationFrame(() => {
      this.#due = 0;
      if (this.#paint()) this.draw();
    });
  }

  /** Draw one picture; whether something still moves. */
  #paint() {
    const { width, height } = this.#size;
    if (!width) return false;
    const context = this.#context;
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const target = Math.max(this.seconds, this.growing ? this.expected : 0) || this.expected || 1;
    const near = still || Math.abs(target - this.#span) < 0.01;
    this.#span = near ? target : this.#span + (target - this.#span) * 0.12;
    let moving = !near;

    context.setTransform(devicePixelRatio, 0, 0, devicePixelRatio, 0, 0);
    context.clearRect(0, 0, width, height);
    const bars = Math.floor(width / STEP);
    for (let i = 0; i < bars; i += 1) {
      const [from, to] = [(i / bars) * this.#span, ((i + 1) / bars) * this.#span];
      const here = from < this.seconds;
      const wanted = here ? Math.min(1, this.#peak(from, to) * 1.25) ** 0.7 : 0;
      const shown = this.#heights[i] ?? 0;
      const next = still || Math.abs(wanted - shown) < 0.01 ? wanted : shown + (wanted - shown) * 0.25;
      this.#heights[i] = next;
      moving ||= next !== wanted;
      const tall = Math.max(BAR, next * (height - 2));
      const part = (this.heard - from) / (to - from);
      context.fillStyle = !here ? this.#colours.rest : part > 0.5 ? this.#colours.heard : this.#colours.here;
      context.beginPath();
      context.roundRect(i * STEP + (STEP - BAR) / 2, (height - tall) / 2, BAR, tall, BAR / 2);
      context.fill();
    }
    return moving;
  }

  #peak(from, to) {
    let peak = 0;
    const last = Math.max(Math.floor(from * PEAKS_PER_SECOND) + 1, Math.floor(to * PEAKS_PER_SECOND));
    for (let i = Math.floor(from * PEAKS_PER_SECOND); i < last; i += 1) peak = Math.max(peak, this.#peaks[i] ?? 0);
    return peak;
  }
}
