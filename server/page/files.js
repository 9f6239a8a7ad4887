/**
 * files.js: a stored speech as a file to keep, or as a link to it.
 */
import { copy, save } from "./dom.js";
import { samplesOf, wavFile } from "./recorder.js";
import { fileName } from "./words.js";

const MOST_MS = 600_000;

/**
 * Fetch a stored speech and save it.
 * @param {any} utter
 * @param {{id: string, text: string, wav: boolean}} speech `wav`: what it is stored as; else MP3
 * @param {"mp3" | "wav" | null} form as it is stored, where none is named
 * @param {Blob | null} here the stored audio, if it was fetched already
 */
export async function download(utter, { id, text, wav }, form = null, here = null) {
  const asStored = async () => here ?? (await utter.linked(`/api/generations/${id}/audio`, { timeout: MOST_MS })).blob();
  let blob;
  if (form === "mp3" && wav) blob = await (await utter.fetch("GET", `/api/generations/${id}/audio.mp3`, { timeout: MOST_MS })).blob();
  else if (form === "wav" && !wav) blob = wavFile(await samplesOf(await asStored()));
  else blob = await asStored();
  save(blob, fileName(text, blob));
}

/** Put a link on the clipboard that plays it without signing in, for a while. */
export function copyLink(utter, id) {
  const link = utter.link(`/api/generations/${id}/audio`).then(({ url }) => utter.address(url));
  return copy(link, "Link copied. It works for an hour.");
}
