/**
 * saying.js: the word that is being heard, marked where the text stands.
 */

const NAME = "heard"; // page.css has its colours

export class Saying {
  #places;
  #words = null;
  #text = "";
  #spans = []; // where each word stands in the text: [start, end], or null where it was said otherwise than written
  #shown = "";

  /** @param {() => (Element | null)[]} places where the text stands, each of them with nothing in it but the text */
  constructor(places) {
    this.#places = places;
  }

  /** @param {number} seconds of the speech @param {{text: string, start_ms: number, end_ms: number}[]} words */
  at(seconds, words) {
    if (!globalThis.Highlight || !CSS.highlights) return;
    const places = this.#places().filter((place) => place?.firstChild);
    const text = places[0]?.textContent ?? "";
    if (words !== this.#words || text !== this.#text) {
      this.#words = words;
      this.#text = text;
      this.#spans = spansOf(text, words);
    }
    const begun = seconds > 0 ? words.filter(({ start_ms }) => start_ms <= seconds * 1000).length : 0;
    const span = this.#spans[begun - 1];
    const shown = `${span} ${places.length}`;
    if (shown === this.#shown) return;
    this.#shown = shown;
    CSS.highlights.delete(NAME);
    if (!span) {
      if (places[0]) places[0].scrollLeft = 0;
      return;
    }
    const ranges = places.filter((place) => place.textContent === text).map((place) => rangeOf(place.firstChild, span));
    CSS.highlights.set(NAME, new Highlight(...ranges));
    bringIntoView(places[0], ranges[0]);
  }
}

/** Where the words stand in the text, one after another. */
function spansOf(text, words) {
  const plain = text.toLowerCase();
  let from = 0;
  return words.map(({ text: word }) => {
    const sought = word.trim().toLowerCase();
    const start = sought ? plain.indexOf(sought, from) : -1;
    if (start < 0 || start > from + 200) return null; // a number that is read out, say
    from = start + sought.length;
    return [start, from];
  });
}

function rangeOf(node, [start, end]) {
  const range = document.createRange();
  range.setStart(node, Math.min(start, node.length));
  range.setEnd(node, Math.min(end, node.length));
  return range;
}

/** In a line that is cut off at its end, whichever end that is. */
function bringIntoView(place, range) {
  const [here, word] = [place.getBoundingClientRect(), range.getBoundingClientRect()];
  if (word.left < here.left || word.right > here.right - 24) place.scrollLeft += word.left - here.left - here.width / 4;
}
