/**
 * signin.js: who is asking. The server may hand its page a token; else one is asked for, and kept in this tab.
 */
import { $ } from "./dom.js";
import { keep, kept } from "./keep.js";

const TOKEN = "utter.token";

export class SignIn {
  #given = null; // a token that the server hands to its page, as it does where everything is a simulation

  /** @param acts `{utter, entered, left}`: what is done when somebody signed in, and before they are signed out */
  constructor(acts) {
    const dialog = $("sign-in");
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    dialog.querySelector("form").onsubmit = async (event) => {
      event.preventDefault();
      const problem = $("sign-in-problem");
      keep(TOKEN, $("token").value.trim());
      this.#given = null;
      try {
        const { signed_in } = await acts.utter().call("GET", "/api/me");
        problem.textContent = signed_in ? "" : "This token is not valid, or no longer.";
        if (!signed_in) {
          $("token").select();
          return;
        }
      } catch (error) {
        problem.textContent = error.message;
        return;
      }
      $("token").value = "";
      dialog.close();
      await acts.entered();
    };
    $("sign-out").onclick = () => {
      keep(TOKEN, undefined);
      acts.left();
      location.reload();
    };
  }

  get token() { return this.#given ?? kept(TOKEN); }
  set given(token) { this.#given = token; }

  /** Offer to sign out where somebody signed in by hand. */
  offer() { $("sign-out").hidden = Boolean(this.#given) || !kept(TOKEN); }

  /** Ask for a token where one is missing or no longer good. */
  failed(error) {
    if (error.category === "unauthorized" && !$("sign-in").open) $("sign-in").showModal();
  }
}
