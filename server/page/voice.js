/**
 * voice.js: all that is known of one voice, and its name to be changed.
 */
import { $, attempt, copy, focusFirst, h, iconButton, toast } from "./dom.js";
import { kindOf } from "./words.js";

export class VoiceDialog {
  #app;
  #changed;
  #voice = null;

  /** @param app `{utter}`; @param changed is called when something was saved */
  constructor(app, changed) {
    this.#app = app;
    this.#changed = changed;
    $("voice").querySelector("form").onsubmit = (event) => {
      event.preventDefault();
      attempt($("voice-save"), () => this.#save(), $("voice-problem"));
    };
  }

  open(voice) {
    this.#voice = voice;
    $("voice-name").value = voice.name;
    $("voice-problem").textContent = "";
    $("voice-default").checked = Boolean(voice.default);
    $("voice-default").disabled = Boolean(voice.default); // another one is marked instead
    $("voice-default-field").hidden = voice.default === undefined || (!voice.default && !voice.compatible);
    const facts = {
      Kind: kindOf(voice),
      Language: voice.language === "Auto" ? "Any" : voice.language,
      Made: new Date(voice.created_at).toLocaleString("en", { dateStyle: "long", timeStyle: "short" }),
      "How it should sound": voice.description,
      "What the recording says": voice.reference_transcript,
      Consent: voice.consent,
      "Cannot speak": voice.incompatible_reason,
      Model: voice.provider_target_model ?? voice.tts_provider,
      Reference: h("span", {}, h("code", {}, voice.id), " ", iconButton("copy", "Copy the reference", () => copy(voice.id, "Reference copied."))),
    };
    $("voice-details").replaceChildren(...Object.entries(facts).filter(([, fact]) => fact).flatMap(([name, fact]) => [
      h("dt", {}, name), h("dd", { dir: "auto" }, fact),
    ]));
    $("voice").showModal();
    $("voice-name").select();
  }

  async #save() {
    const voice = this.#voice;
    const name = $("voice-name").value.trim();
    if (!name) {
      $("voice-name").focus();
      throw new Error("Give the voice a name.");
    }
    const changes = {
      ...(name !== voice.name && { name }),
      ...($("voice-default").checked && voice.default === false && { default: true }),
    };
    if (Object.keys(changes).length) {
      await this.#app.utter.call("PATCH", `/api/voices/${voice.id}`, { body: changes });
      await this.#changed();
      toast("Saved.");
    }
    $("voice").close();
    const input = document.querySelector(`.voice input[value="${voice.id}"]`);
    focusFirst(input?.closest(".voice").querySelector(".tools button:last-child"), $("text"));
  }
}
