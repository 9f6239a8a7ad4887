/**
 * hello.js: what somebody sees who was never here: what this is, and a sentence to begin with.
 */
import { $, h } from "./dom.js";
import { sampleSentence } from "./words.js";

/** @param {any} app `{history, compose}` */
export function greet({ history, compose }) {
  const sentence = sampleSentence();
  $("samples").replaceChildren(h("button", {
    type: "button", className: "chip", onclick: () => {
      $("text").value = sentence;
      compose.count();
      $("text").focus();
    },
  }, "Try a sentence"));
  const show = () => {
    $("hello").classList.toggle("unseen", !history.isEmpty);
    $("samples").hidden = !history.isEmpty; // nothing that is not seen takes the focus
  };
  history.addEventListener("change", show);
  show();
}
