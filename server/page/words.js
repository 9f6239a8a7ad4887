/**
 * words.js: what a speech is doing, for people; and guesses that are good enough to look at.
 */

const STEPS = {
  ws_connecting: "Calling the voice…",
  session_updated: "The voice is ready…",
  streaming: "Speaking…",
  finalizing: "Saving…",
  provider_synthesizing: "The voice is recording…",
  provider_downloading: "Fetching the recording…",
  provider_persisting: "Saving…",
};

/** One short sentence. Where it is kept is said elsewhere. */
export function stateOf(speech, { sounding = false, replay = false } = {}) {
  if (speech.state === "failed") return "It did not work.";
  if (speech.state === "cancelled") return "Cancelled.";
  if (speech.state === "completed") {
    if (!speech.stored && speech.error) return "It did not work.";
    if (!speech.stored && (replay || !sounding)) return replay ? "Fetching it…" : "Almost there…";
    if (sounding) return "Playing";
    return speech.currentTime > 0 && speech.currentTime < speech.seconds - 0.2 ? "Paused" : "Ready";
  }
  if (speech.link === "reconnecting") return "Connection lost, coming back…";
  if (speech.state === "starting") return "Sending your text…";
  if (speech.state === "pending") return "Waiting for its turn…";
  return STEPS[speech.task?.provider_status] ?? "The voice is working on it…";
}

export const HISTORY_STATES = {
  pending: "waiting", processing: "being spoken", failed: "did not work", cancelled: "cancelled",
};

/** What the history can be narrowed to: values of the query, and what they are called. */
export const STATUS_FILTERS = [
  ["", "Everything"], ["completed", "Spoken"], ["processing", "Being spoken"], ["failed", "Did not work"], ["cancelled", "Cancelled"],
];

/** How long a text will take to say, roughly. */
export function expectedSeconds(text) {
  const dense = (text.match(/[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]/g) ?? []).length;
  return Math.max(1.5, dense * 0.24 + (text.length - dense) * 0.068);
}

/** What somebody says who clones a voice; it is kept with the voice. */
export const CONSENT = "This is my own voice, or its owner has agreed that I use it.";

/** What to read aloud for a recording, about twelve seconds. */
export const PASSAGES = {
  English: "The morning train was late again, so I walked along the river instead. The water was quiet, two swans drifted by, and for once nobody was in a hurry. I think I will do that more often.",
  German: "Der Zug hatte wieder Verspätung, also ging ich zu Fuß am Fluss entlang. Das Wasser war ruhig, zwei Schwäne zogen vorbei, und ausnahmsweise hatte es niemand eilig. Das mache ich jetzt öfter.",
  French: "Le train avait encore du retard, alors j’ai marché le long de la rivière. L’eau était calme, deux cygnes passaient, et pour une fois personne n’était pressé. Je crois que je le ferai plus souvent.",
  Spanish: "El tren llegaba tarde otra vez, así que caminé junto al río. El agua estaba tranquila, pasaron dos cisnes y, por una vez, nadie tenía prisa. Creo que lo haré más a menudo.",
  Italian: "Il treno era di nuovo in ritardo, così ho camminato lungo il fiume. L’acqua era calma, passavano due cigni e, per una volta, nessuno aveva fretta. Credo che lo farò più spesso.",
  Portuguese: "O trem estava atrasado outra vez, então caminhei ao longo do rio. A água estava calma, passaram dois cisnes e, por uma vez, ninguém tinha pressa. Acho que vou fazer isso mais vezes.",
  Russian: "Поезд снова опаздывал, и я пошёл пешком вдоль реки. Вода была спокойной, мимо проплыли два лебедя, и в кои-то веки никто никуда не спешил. Пожалуй, буду делать так чаще.",
  Chinese: "早上的火车又晚点了，我就沿着河边走路过去。水面很安静，两只天鹅慢慢游过，难得谁也不着急。我想以后可以常常这样走走。",
  Japanese: "今朝も電車が遅れていたので、川沿いを歩いて行くことにしました。水面は静かで、白鳥が二羽ゆっくりと通り過ぎ、珍しく誰も急いでいませんでした。これからはもっと歩こうと思います。",
  Korean: "아침 기차가 또 늦어서 강을 따라 걸었습니다. 물은 잔잔했고 백조 두 마리가 천천히 지나갔으며, 모처럼 아무도 서두르지 않았습니다. 앞으로는 더 자주 걸어야겠어요.",
};

const ISO = { de: "German", fr: "French", es: "Spanish", it: "Italian", pt: "Portuguese", ru: "Russian", zh: "Chinese", ja: "Japanese", ko: "Korean" };

/** The passage of a language; of the reader's own where the language is left open. */
export function passageFor(language) {
  return PASSAGES[language] ?? PASSAGES[ISO[navigator.language.slice(0, 2)]] ?? PASSAGES.English;
}

/** Something to hear first, in the reader's own language where we have it. */
export function sampleSentence() {
  return /^.*?[.。]/u.exec(passageFor("Auto"))?.[0] ?? PASSAGES.English;
}

/** What kind of voice it is. */
export function kindOf(voice) {
  return voice.source === "designed" ? "Designed" : "Cloned";
}

export const VOICE_IDEAS = {
  "Calm and warm": "A woman in her fifties with a low, warm voice, who takes her time and is never in doubt.",
  "Bright and quick": "A young man, bright and quick, as if he had good news for a friend.",
  "Old storyteller": "An old storyteller with a gravelly voice and long pauses, close to the microphone.",
  "News desk": "A clear, neutral voice in its thirties that reads the news, even and precise.",
};

/** A file name from a text. */
export function fileName(text, blob) {
  const words = text.replace(/[^\p{L}\p{N} ]+/gu, "").trim().split(/\s+/).slice(0, 6).join("-").slice(0, 48);
  return `utter-${words || "speech"}.${blob.type.includes("wav") ? "wav" : "mp3"}`;
}

/** A text that is too long for one speech as several of at most `limit` UTF-16 units, cut where sentences or words end. */
export function partsOf(text, limit) {
  const parts = [];
  let rest = text.trim();
  while (rest.length > limit) {
    const piece = rest.slice(0, limit);
    const sentence = Math.max(...[...piece.matchAll(/[.!?…。！？؟][\p{Pe}\p{Pf}"']*(?=\s|$)|[。！？]|\n/gu)].map((found) => found.index + found[0].length), 0);
    const word = piece.lastIndexOf(" ");
    const half = /[\ud800-\udbff]$/.test(piece) ? limit - 1 : limit; // never between the halves of a character
    const end = sentence > limit / 3 ? sentence : word > 0 ? word : half;
    parts.push(rest.slice(0, end).trim());
    rest = rest.slice(end).trim();
  }
  return rest ? [...parts, rest] : parts;
}
