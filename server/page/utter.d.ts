/** Have a text spoken, and hear it while it is being spoken. See utter.js for the whole story. */

/** The version of this helper; its first number is in the address of the files that keep what it promises. */
export const VERSION: string;

export type TaskStatus = "pending" | "processing" | "completed" | "failed" | "cancelled";
export type SpeechState = "starting" | TaskStatus;
export type Link = "none" | "live" | "reconnecting" | "polling";

/** What is to be spoken, as POST /api/generate takes it. */
export interface SpeechRequest {
  voice_id: string;
  text: string;
  /** A name that GET /api/languages serves. */
  language?: string;
  format?: "mp3" | "wav";
  /** 0.5 to 2, where the voice's lane can vary it; so is `pitch`. */
  speed?: number;
  pitch?: number;
  /** 0 to 100. */
  volume?: number;
}

export interface SpeechOptions {
  /** False: not streamed, the task is polled and the stored audio is played. */
  live?: boolean;
  /** False: waits for play(). */
  autoplay?: boolean;
  /** Heard from this second on. */
  from?: number;
  /** True: also asks when words are heard, where the voice's lane says so. */
  words?: boolean;
  /** False: restore() does not know it after a reload. */
  remember?: boolean;
  rate?: number;
  volume?: number;
}

/** A task as GET /api/tasks/{task_id} shows it; further members are in the OpenAPI document. */
export interface Task {
  id: string;
  status: TaskStatus;
  error: string | null;
  error_category: string | null;
  generation_id: string | null;
  provider_status: string | null;
  stream_url?: string;
  audio?: { format: string; mime: string; sample_rate: number; header_bytes: number; bytes: number; seconds: number | null };
  [member: string]: unknown;
}

/** A failure in a sentence for a person. */
export class UtterError extends Error {
  constructor(
    message: string,
    options?: { category?: string; status?: number; passing?: boolean; reference?: string | null },
  );
  /** The API's word for what kind of failure it is, or "network". */
  category: string;
  status: number;
  /** It may be gone soon. */
  passing: boolean;
  /** Under which the server's log has it; null where it was never there. */
  reference: string | null;
}

export interface SpeechEvents {
  state: CustomEvent<undefined>;
  progress: CustomEvent<undefined>;
  time: CustomEvent<undefined>;
  samples: CustomEvent<{ samples: Float32Array; rate: number; at: number }>;
  playing: CustomEvent<undefined>;
  waiting: CustomEvent<undefined>;
  paused: CustomEvent<undefined>;
  ended: CustomEvent<undefined>;
  firstaudio: CustomEvent<{ milliseconds: number }>;
  blocked: CustomEvent<undefined>;
  stored: CustomEvent<undefined>;
  words: CustomEvent<undefined>;
  end: CustomEvent<undefined>;
}

/** One text on its way from the voice to the ear. Made by an Utter. */
export class Speech extends EventTarget {
  private constructor();
  readonly state: SpeechState;
  readonly link: Link;
  readonly task: Task | null;
  readonly answer: { task_id: string; generation_id?: string | null; [member: string]: unknown } | null;
  readonly error: UtterError | null;
  readonly stored: Blob | null;
  /** How much audio is here. */
  readonly seconds: number;
  /** What is known of when words are heard, in order. */
  readonly words: readonly { text: string; start_ms: number; end_ms: number }[];
  /** How much of it was heard. */
  readonly currentTime: number;
  readonly paused: boolean;
  /** Completed, failed or cancelled. */
  readonly over: boolean;
  readonly id: string | null;
  readonly generationId: string | null;
  readonly player: string | null;
  /** How fast it is heard, 1 as it was spoken. */
  rate: number;
  /** How loud it is heard, 0 to 1. */
  volume: number;
  play(): void;
  pause(): void;
  seek(seconds: number): void;
  /** Stop it for good; false where it was over before. */
  cancel(): Promise<boolean>;
  /** Let go of everything here. At the server the speech goes on. */
  close(): void;
  addEventListener<K extends keyof SpeechEvents>(
    type: K,
    listener: (event: SpeechEvents[K]) => void,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener(
    type: string,
    listener: EventListenerOrEventListenerObject | null,
    options?: boolean | AddEventListenerOptions,
  ): void;
}

export interface UtterOptions {
  /** Where the server is: "" for this page's own, or "https://voice.example". */
  base?: string;
  /** Gives the bearer token, or a promise of it. */
  token?: () => string | null | Promise<string | null>;
  /** "auto", or the live player to use whatever the browser can. */
  player?: "auto" | "mediasource" | "webaudio" | "element";
}

export interface RequestOptions {
  body?: unknown;
  form?: BodyInit;
  headers?: Record<string, string>;
  signal?: AbortSignal;
  timeout?: number;
  keepalive?: boolean;
}

export class Utter {
  constructor(options?: UtterOptions);
  base: string;
  token: () => string | null | Promise<string | null>;
  player: string;
  /** How fast and how loud speeches begin. */
  rate: number;
  volume: number;
  /** Have a text spoken. Repeated by itself where the network fails, and still spoken and paid for only once. */
  speak(request: SpeechRequest, options?: SpeechOptions): Speech;
  /** Follow a speech that is under way, or was. */
  follow(task_id: string, options?: SpeechOptions): Speech;
  /** Listen to a stored generation. */
  replay(generation_id: string, options?: SpeechOptions): Speech;
  /** The speech that this tab was listening to when it was reloaded, or null. */
  restore(options?: SpeechOptions): Speech | null;
  /** An address that an answer holds, as it is reached from here. */
  address(path: string): string;
  /** The link that an address of the API gives out, such as a generation's audio. */
  link(path: string, options?: { signal?: AbortSignal }): Promise<{ url: string; expires_in: number }>;
  /** What such a link leads to, fetched without a token. */
  linked(path: string, options?: { signal?: AbortSignal; timeout?: number }): Promise<Response>;
  /** One request of the API: its JSON, or an UtterError. */
  call(method: string, path: string, options?: RequestOptions): Promise<any>;
  /** One request of the API: its response, which is a good one, or an UtterError. */
  fetch(method: string, path: string, options?: RequestOptions): Promise<Response>;
}
