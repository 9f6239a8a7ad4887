// What an AudioWorklet finds in its global scope; TypeScript's own library describes that of a page alone.
declare class AudioWorkletProcessor {
  readonly port: MessagePort;
}
declare function registerProcessor(name: string, processor: new () => AudioWorkletProcessor): void;
