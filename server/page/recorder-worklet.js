// Runs where the sound is: hands every 2048 samples of the microphone, mixed to one channel, to the page.
class Tap extends AudioWorkletProcessor {
  #held = new Float32Array(2048);
  #count = 0;

  process([channels]) {
    const length = channels[0]?.length ?? 0;
    for (let i = 0; i < length; i += 1) {
      let sum = 0;
      for (const channel of channels) sum += channel[i];
      this.#held[this.#count++] = sum / channels.length;
      if (this.#count === this.#held.length) {
        this.port.postMessage(this.#held, [this.#held.buffer]);
        this.#held = new Float32Array(2048);
        this.#count = 0;
      }
    }
    return true;
  }
}

registerProcessor("tap", Tap);
