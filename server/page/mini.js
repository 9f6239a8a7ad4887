/**
 * mini.js: a small player for a recording that is not spoken yet: what was recorded, or how a designed voice sounds.
 */
import { clock, h, iconButton, relabel } from "./dom.js";

export class Mini extends EventTarget {
  #place;
  #audio = new Audio();
  #seconds = 0;

  constructor(place) {
    super();
    this.#place = place;
    const button = iconButton("play", "Play", () => (this.#audio.paused ? this.play() : this.#audio.pause()));
    button.classList.add("round");
    const seek = h("input", { type: "range", min: "0", step: "0.01", value: "0", "aria-label": "Position" });
    const time = h("p", { className: "time" });
    seek.oninput = () => { this.#audio.currentTime = Number(seek.value); };
    const render = () => {
      relabel(button, this.#audio.paused ? "play" : "pause", this.#audio.paused ? "Play" : "Pause");
      seek.max = String(this.#seconds || 1);
      seek.value = String(this.#audio.currentTime);
      seek.setAttribute("aria-valuetext", `${clock(this.#audio.currentTime)} of ${clock(this.#seconds)}`);
      time.textContent = `${clock(this.#audio.currentTime)} / ${clock(this.#seconds)}`;
    };
    for (const name of ["play", "pause", "timeupdate", "seeked", "loadedmetadata"]) this.#audio.addEventListener(name, render);
    this.#audio.addEventListener("loadedmetadata", () => {
      if (Number.isFinite(this.#audio.duration)) this.#seconds = this.#audio.duration;
      render();
    });
    this.#audio.addEventListener("play", () => this.dispatchEvent(new Event("playing")));
    place.replaceChildren(button, seek, time);
  }

  get audio() { return this.#audio; }

  /** Show a recording: a Blob, or null for none. `seconds` where the browser may not know. */
  show(blob, seconds = 0) {
    if (this.#audio.src) URL.revokeObjectURL(this.#audio.src);
    this.#seconds = seconds;
    this.#place.hidden = !blob;
    if (blob) this.#audio.src = URL.createObjectURL(blob);
    else {
      this.#audio.pause();
      this.#audio.removeAttribute("src");
    }
  }

  play() { return this.#audio.play().catch(() => {}); }
  pause() { this.#audio.pause(); }
}
