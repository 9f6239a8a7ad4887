// Put into every page before its own scripts: hears what is really played, and notes what went wrong.
(() => {
  const TICK_MS = 20;
  const AUDIBLE = 0.004; // effective value; full scale is 1
  const ear = { loudest: 0, audibleSeconds: 0, longestSilence: 0, playing: false, violations: [], streams: [], elements: [], contexts: [] };
  let silence = 0;
  const taps = [];
  const numbers = new Float32Array(1024);

  const listen = (context, node) => {
    const tap = new AnalyserNode(context, { fftSize: numbers.length });
    node.connect(tap);
    taps.push(tap);
  };

  setInterval(() => {
    let rms = 0;
    for (const tap of taps) {
      if (tap.context.state !== "running") continue;
      tap.getFloatTimeDomainData(numbers);
      rms = Math.max(rms, Math.sqrt(numbers.reduce((sum, x) => sum + x * x, 0) / numbers.length));
    }
    ear.loudest = Math.max(ear.loudest, rms);
    if (rms > AUDIBLE) {
      if (ear.audibleSeconds) ear.longestSilence = Math.max(ear.longestSilence, silence);
      ear.audibleSeconds += TICK_MS / 1000;
      silence = 0;
    } else silence += TICK_MS / 1000;
    ear.playing = silence < 0.5;
  }, TICK_MS);

  // Audio elements: a copy of what they play.
  const play = HTMLMediaElement.prototype.play;
  const Context = globalThis.AudioContext;
  let copies = null;
  HTMLMediaElement.prototype.play = function (...rest) {
    if (!this.heard) {
      this.heard = true;
      ear.elements.push(this);
      this.addEventListener("playing", () => {
        copies ??= new Context();
        listen(copies, copies.createMediaStreamSource(this.captureStream()));
      }, { once: true });
    }
    return play.apply(this, rest);
  };

  // Web Audio: whatever goes to the loudspeaker.
  const connect = AudioNode.prototype.connect;
  AudioNode.prototype.connect = function (target, ...rest) {
    if (target instanceof AudioDestinationNode && !(this.context instanceof OfflineAudioContext)) {
      if (!this.context.tap) {
        ear.contexts.push(this.context);
        this.context.tap = new AnalyserNode(this.context, { fftSize: numbers.length });
        taps.push(this.context.tap);
      }
      connect.call(this, this.context.tap);
    }
    return connect.call(this, target, ...rest);
  };

  const Source = globalThis.EventSource;
  globalThis.EventSource = class extends Source {
    constructor(url, ...rest) {
      super(url, ...rest);
      ear.streams.push(url);
    }
  };

  document.addEventListener("securitypolicyviolation", (event) => ear.violations.push(event.violatedDirective));
  globalThis.ear = ear;
})();
