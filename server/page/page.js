/**
 * page.js: puts the page together: who is signed in, the form, the stage, the history.
 */
import { CloneDialog } from "./clone.js";
import { Compose } from "./compose.js";
import { ConnectDialog } from "./connect.js";
import { DesignDialog } from "./design.js";
import { $, h, icon, relabel, toast } from "./dom.js";
import { greet } from "./hello.js";
import { History } from "./history.js";
import { keep } from "./keep.js";
import { Keyboard } from "./keyboard.js";
import { Queue } from "./queue.js";
import { persist } from "./requests.js";
import { SignIn } from "./signin.js";
import { Stage } from "./stage.js";
import { undo } from "./undo.js";
import { Utter } from "./utter.js";
import { Voices } from "./voices.js";
import { expectedSeconds } from "./words.js";

const THEMES = ["auto", "light", "dark"];

/** What the parts of the page know of each other. @type {Record<string, any>} */
const app = { service: null, again, failed: (error) => signIn.failed(error) };
const signIn = new SignIn({ utter: () => app.utter, entered: enter, left: () => {
  app.compose.forget();
  app.stage.clear();
} });
// Where the page came from: below a path, if the server is.
const base = new URL("..", import.meta.url).pathname.replace(/\/$/, "");
app.utter = new Utter({ base, token: () => signIn.token });
const stage = app.stage = new Stage(app.utter);
const voices = app.voices = new Voices(app);
const history = app.history = new History(app);
const compose = app.compose = new Compose(app);
app.queue = new Queue(app);
new Keyboard({
  playOrPause: () => stage.toggle(),
  skip: (seconds) => stage.skip(seconds),
  cancel: () => { stage.cancel(); },
  search: () => $("history-search").focus(),
  undo,
});

/** Fill the form with what was spoken before. */
function again(fields) {
  if (!compose.fill(fields)) toast("That voice cannot speak at the moment. Please choose another one.", "trouble");
}

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
const connect = new ConnectDialog(app);

// --- the beginning ---------------------------------------------------------------------------------------------------

/** What the server is and can, however long it takes to be reached. */
function learn() {
  const failed = (error) => { $("service").textContent = `${error.message} Trying again…`; };
  return persist(async () => {
    const [session, service] = await Promise.all([
      app.utter.call("GET", "/static/session.json"), app.utter.call("GET", "/api/languages"),
    ]);
    signIn.given = session.token;
    app.service = service;
  }, { tries: Infinity, failed });
}

function showService() {
  const { languages, default: usual, capabilities, provider } = app.service;
  for (const id of ["clone-language", "design-language"]) {
    $(id).replaceChildren(...languages.map((name) => h("option", { value: name }, name === "Auto" ? "Automatic" : name)));
    $(id).value = usual;
  }
  compose.service = app.service;
  $("service").textContent = capabilities.supports_generate_stream ? "" : "This voice service answers in one piece.";
  $("service").dataset.provider = provider;
}

/** Everything that needs a signed-in user. */
async function enter() {
  signIn.offer();
  const failing = (error) => {
    $("voices-note").hidden = false;
    $("voices-note").textContent = `${error.message} Trying again…`;
  };
  try {
    await persist(() => voices.load(), { tries: Infinity, failed: failing });
  } catch (error) {
    $("voices-note").hidden = false;
    $("voices-note").textContent = error.message;
    signIn.failed(error);
    return;
  }
  const asked = new URLSearchParams(location.search);
  if (asked.has("text")) {
    again({ voice_id: asked.get("voice"), text: asked.get("text"), language: asked.get("language") });
    window.history.replaceState(null, "", "/");
  } else if (matchMedia("(hover: hover)").matches) $("text").focus({ preventScroll: true });
  await history.refresh();
  comeBack();
  await connect.offer();
}

/** After a reload: go on with what was being spoken. */
function comeBack() {
  const speech = stage.speech ? null : app.utter.restore({ words: true });
  if (!speech) return;
  stage.show(speech, { late: true });
  const describe = () => {
    const entry = history.entry(speech.generationId);
    if (entry) stage.describe({ text: entry.text, voice: { id: entry.voice_id }, expected: expectedSeconds(entry.text), late: true });
  };
  speech.addEventListener("state", describe);
  speech.addEventListener("end", () => speech.error?.status === 404 && stage.speech === speech && stage.clear());
}

greet(app);
showTheme();
try {
  await learn();
  showService();
  await enter();
} catch (error) {
  $("service").textContent = error.message;
}
