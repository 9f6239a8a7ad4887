/**
 * connect.js: a key for an app, and what goes where in it.
 */
import { CLIENTS } from "./clients.js";
import { $, ago, attempt, copy, dayOf, focusFirst, h, toast } from "./dom.js";

const HERE = "<your key>";

export class ConnectDialog {
  #app;
  #key = "";

  /** @param app `{utter, voices}` */
  constructor(app) {
    this.#app = app;
    $("open-connect").onclick = () => this.open();
    $("connect-address").value = app.utter.address(`${app.utter.base}/v1`);
    $("client").replaceChildren(...CLIENTS.map(({ name }, i) => h("option", { value: String(i) }, name)));
    $("client").onchange = () => this.#showLines();
    $("copy-address").onclick = () => copy($("connect-address").value, "Address copied.");
    $("copy-key").onclick = () => copy(this.#key, "Key copied.");
    $("copy-lines").onclick = () => copy($("client-lines").textContent, "Copied.");
    for (const id of ["connect-address", "key"]) $(id).onfocus = () => $(id).select();
    $("connect").querySelector("form").onsubmit = (event) => {
      event.preventDefault();
      attempt($("make-key"), () => this.#make(), $("connect-problem"));
    };
    $("connect").addEventListener("close", () => this.#forget());
  }

  /** Show the way here where this server makes keys. */
  async offer() {
    $("open-connect").hidden = !await this.#app.utter.call("GET", "/api/keys").then(() => true, () => false);
  }

  open() {
    $("connect-problem").textContent = "";
    this.#showLines();
    $("connect").showModal();
    focusFirst($("key-name"));
    return attempt(null, () => this.#load(), $("connect-problem"));
  }

  async #make() {
    const name = $("key-name").value.trim();
    if (!name) {
      $("key-name").focus();
      throw new Error("Say what the key is for, so that you know it again.");
    }
    const days = Number($("key-days").value);
    const { key } = await this.#app.utter.call("POST", "/api/keys", { body: { name, ...(days && { expires_in_days: days }) } });
    this.#key = key;
    $("key").value = key;
    $("key-shown").hidden = false;
    $("key-name").value = "";
    this.#showLines();
    $("key").focus();
    await this.#load();
  }

  /** Nobody finds the key here again. */
  #forget() {
    this.#key = $("key").value = "";
    $("key-shown").hidden = true;
    this.#showLines();
  }

  #showLines() {
    const { lines, hint } = CLIENTS[Number($("client").value)];
    const voice = this.#app.voices.chosen?.name ?? "alloy";
    $("client-lines").textContent = lines({ address: $("connect-address").value, key: this.#key || HERE, voice });
    $("client-hint").textContent = hint ?? "";
  }

  async #load() {
    const { keys } = await this.#app.utter.call("GET", "/api/keys");
    $("made").hidden = !keys.length;
    $("key-entries").replaceChildren(...keys.map((key) => this.#entry(key)));
  }

  #entry(key) {
    const facts = [
      `${key.prefix}…`,
      key.last_used_at ? `last used ${when(key.last_used_at)}` : "never used",
      key.expires_at && `${Date.parse(key.expires_at) < Date.now() ? "expired" : "until"} ${dayOf(key.expires_at).toLowerCase()}`,
    ];
    let sure = false;
    const revoke = h("button", { type: "button", className: "quiet small", "aria-label": `Revoke ${key.name}`, onclick: async () => {
      if (!sure) { // what used it stops working, and nothing brings the key back
        sure = true;
        revoke.textContent = "Revoke for good?";
        revoke.setAttribute("aria-label", `Revoke ${key.name} for good: press again`);
        return;
      }
      await attempt(revoke, async () => {
        await this.#app.utter.call("DELETE", `/api/keys/${key.id}`);
        toast(`${key.name} no longer works.`);
        await this.#load();
        focusFirst($("key-entries").querySelector("button"), $("key-name"));
      }, $("connect-problem"));
    } }, "Revoke");
    return h("li", {}, h("span", {}, h("strong", { dir: "auto" }, key.name), h("small", {}, facts.filter(Boolean).join(" · "))), revoke);
  }
}

/** "5 min. ago", "today at 14:05", "March 2". */
function when(timestamp) {
  const day = dayOf(timestamp);
  if (Date.now() - Date.parse(timestamp) < 3_600_000) return ago(timestamp);
  return day === "Today" ? `today at ${ago(timestamp)}` : day === "Yesterday" ? "yesterday" : `on ${day}`;
}
