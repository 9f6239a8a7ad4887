/**
 * hello.js: what somebody sees who was never here: what this is, and a sentence to begin with.
 */
import { $, h } from "./dom.js";
import { sampleSentence } from "./words.js";

/** @param {any} app `{service, history, voices, compose}` */
export function greet(app) {
  const { history, voices, compose } = app;
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
    $("samples").hidden = !history.isEmpty || !voices.chosen; // nothing that is not seen takes the focus
    $("headline").textContent = app.service?.capabilities.supports_generate_stream === false
      ? "Your words, in your own voices" : "Your words, heard while they are being spoken";
    $("invitation").textContent = voices.chosen ? "Choose a voice, write something, press Generate."
      : "Clone your voice or design one, write something, press Generate.";
  };
  history.addEventListener("change", show);
  voices.addEventListener("loaded", show);
  show();
}
