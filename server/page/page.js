/**
 * page.js: puts the page together: who is signed in, the form, the stage, the history.
 */
import { CloneDialog } from "./clone.js";
import { DesignDialog } from "./design.js";
import { $, h, icon, relabel, toast } from "./dom.js";
import { History } from "./history.js";
import { keep, kept } from "./keep.js";
import { persist } from "./requests.js";
import { Stage } from "./stage.js";
import { Utter } from "./utter.js";
import { Voices } from "./voices.js";
import { expectedSeconds } from "./words.js";

const TOKEN = "utter.token";
const DRAFT = "utter.draft";
const THEMES = ["auto", "light", "dark"];

const utter = new Utter({ token: () => given ?? kept(TOKEN) });
const stage = new Stage();
const app = { utter, stage, service: null, again, failed };
const voices = new Voices(app);
app.voices = voices;
const history = new History(app);
let given = null; // a token that the server hands to its page, as it does where everything is a simulation
let limit = 2000;

// --- signing in ------------------------------------------------------------------------------------------------------

/** Ask for a token where one is missing or no longer good. */
function failed(error) {
  if (error.category === "unauthorized" && !$("sign-in").open) $("sign-in").showModal();
}

$("sign-in").addEventListener("cancel", (event) => event.preventDefault());
$("sign-in").querySelector("form").onsubmit = async (event) => {
  event.preventDefault();
  const problem = $("sign-in-problem");
  keep(TOKEN, $("token").value.trim());
  given = null;
  try {
    const { signed_in } = await utter.call("GET", "/api/me");
    problem.textContent = signed_in ? "" : "This token is not valid, or no longer.";
    if (!signed_in) return;
  } catch (error) {
    problem.textContent = error.message;
    return;
  }
  $("token").value = "";
  $("sign-in").close();
  await enter();
};
$("sign-out").onclick = () => {
  for (const name of [TOKEN, DRAFT]) keep(name, undefined);
  stage.clear();
  location.reload();
};

// --- the form --------------------------------------------------------------------------------------------------------

function count() {
  const length = $("text").value.trim().length; // UTF-16 code units, as the server counts
  $("counter").textContent = `${length.toLocaleString("en")} / ${limit.toLocaleString("en")}`;
  $("counter").classList.toggle("over", length > limit);
  $("generate").disabled = busy || length > limit || !voices.chosen;
  $("text").setAttribute("aria-invalid", String(length > limit));
  keep(DRAFT, $("text").value);
  const extra = length - limit;
  $("compose-problem").textContent = extra > 0
    ? `This is ${extra.toLocaleString("en")} character${extra === 1 ? "" : "s"} too long.` : "";
}
let busy = false;

function generate() {
  const text = $("text").value.trim();
  const voice = voices.chosen;
  if ($("generate").disabled) return;
  if (!text) {
    $("compose-problem").textContent = "Write something first.";
    $("text").focus();
    return;
  }
  voices.hush();
  busy = true;
  count();
  const mode = $("modes").hidden ? app.service.capabilities.default_generate_mode
    : $("modes").querySelector("input:checked").value;
  const speech = utter.speak(
    { voice_id: voice.id, text, language: $("language").value },
    { live: mode === "stream" },
  );
  speech.addEventListener("state", () => {
    if (speech.error) failed(speech.error);
    if (busy && speech.state !== "starting") {
      busy = false;
      count();
    }
  });
  stage.show(speech, { text, voice, expected: expectedSeconds(text) });
}

/** Fill the form with what was spoken before. */
function again({ voice_id, text, language }) {
  $("text").value = text;
  if (Array.from($("language").options).some((option) => option.value === language)) $("language").value = language;
  if (!voices.choose(voice_id)) toast("That voice cannot speak at the moment. Please choose another one.", "trouble");
  count();
  $("compose").scrollIntoView({ block: "start" });
  $("text").focus();
}

$("compose").onsubmit = (event) => {
  event.preventDefault();
  generate();
};
$("text").addEventListener("input", count);
$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    generate();
  }
});
voices.addEventListener("change", count);
stage.addEventListener("change", (/** @type {CustomEvent} */ { detail }) => {
  if (detail === "playing") voices.hush();
});

// --- colours ---------------------------------------------------------------------------------------------------------

function showTheme() {
  const { theme } = document.documentElement.dataset;
  const label = { auto: "Colours: as the system", light: "Colours: light", dark: "Colours: dark" }[theme];
  relabel($("theme"), theme, label);
  stage.waveform.recolour();
}

$("theme").append(icon("auto"));
$("theme").onclick = () => {
  const { dataset } = document.documentElement;
  dataset.theme = THEMES[(THEMES.indexOf(dataset.theme) + 1) % THEMES.length];
  keep("utter.theme", dataset.theme, "localStorage");
  showTheme();
};

// --- dialogs ---------------------------------------------------------------------------------------------------------

for (const button of /** @type {NodeListOf<HTMLButtonElement>} */ (document.querySelectorAll("[data-close]"))) {
  button.onclick = () => button.closest("dialog").close();
}
for (const dialog of /** @type {NodeListOf<HTMLDialogElement>} */ (document.querySelectorAll("dialog:not(#sign-in)"))) {
  // A click on the dialog itself is one beside its form.
  dialog.addEventListener("mousedown", (event) => event.target === dialog && dialog.close());
}
new CloneDialog(app);
new DesignDialog(app);

// --- the beginning ---------------------------------------------------------------------------------------------------

/** What the server is and can, however long it takes to be reached. */
function learn() {
  const failed = (error) => { $("service").textContent = `${error.message} Trying again…`; };
  return persist(async () => {
    const [session, service] = await Promise.all([
      utter.call("GET", "/static/session.json"), utter.call("GET", "/api/languages"),
    ]);
    given = session.token;
    app.service = service;
    limit = service.capabilities.max_text_chars;
  }, { tries: Infinity, failed });
}

function showService() {
  const { languages, default: usual, capabilities, provider } = app.service;
  for (const id of ["language", "clone-language", "design-language"]) {
    const open = id === "language" ? "Detect language" : "Automatic";
    $(id).replaceChildren(...languages.map((name) => h("option", { value: name }, name === "Auto" ? open : name)));
    $(id).value = usual;
  }
  $("service").textContent = capabilities.supports_generate_stream ? "" : "This voice service answers in one piece.";
  $("service").dataset.provider = provider;
  $("modes").hidden = !capabilities.allow_generate_mode_toggle || !capabilities.supports_generate_stream;
  for (const radio of $("modes").querySelectorAll("input")) radio.checked = radio.value === capabilities.default_generate_mode;
}

/** Everything that needs a signed-in user. */
async function enter() {
  $("sign-out").hidden = Boolean(given) || !kept(TOKEN);
  const failing = (error) => {
    $("voices-note").hidden = false;
    $("voices-note").textContent = `${error.message} Trying again…`;
  };
  try {
    await persist(() => voices.load(), { tries: Infinity, failed: failing });
  } catch (error) {
    $("voices-note").hidden = false;
    $("voices-note").textContent = error.message;
    failed(error);
    return;
  }
  const asked = new URLSearchParams(location.search);
  if (asked.has("text")) {
    again({ voice_id: asked.get("voice"), text: asked.get("text"), language: asked.get("language") });
    window.history.replaceState(null, "", "/");
  } else if (matchMedia("(hover: hover)").matches) $("text").focus();
  await history.refresh();
  comeBack();
}

/** After a reload: go on with what was being spoken. */
function comeBack() {
  const speech = stage.speech ? null : utter.restore();
  if (!speech) return;
  stage.show(speech, { late: true });
  const describe = () => {
    const entry = history.entry(speech.generationId);
    if (entry) stage.describe({ text: entry.text, voice: { id: entry.voice_id }, expected: expectedSeconds(entry.text), late: true });
  };
  speech.addEventListener("state", describe);
  speech.addEventListener("end", () => speech.error?.status === 404 && stage.speech === speech && stage.clear());
}

$("text").value = kept(DRAFT) ?? "";
showTheme();
count();
try {
  await learn();
  showService();
  count();
  await enter();
} catch (error) {
  $("service").textContent = error.message;
}
