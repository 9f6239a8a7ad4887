/**
 * utter.js: have a text spoken, and hear it while it is being spoken. For any page.
 *
 *   import { Utter } from "/static/utter.js";
 *   const utter = new Utter({ token: () => "the user's bearer token" });
 *   button.onclick = () => {                                    // browsers allow sound only after a click
 *     const speech = utter.speak({ voice_id, text, language: "Auto" });
 *     speech.addEventListener("state", () => show(speech.state, speech.link, speech.task));
 *     speech.addEventListener("end", () => show(speech.error?.message ?? speech.state));
 *   };
 *   const again = utter.restore();                              // after a reload: the speech that was running, or null
 *
 * A Speech survives what networks do: lost connections, proxies that answer errors, expired tickets, restarted servers.
 * It goes on at the byte it had reached; where streaming is not offered or keeps failing it polls the task (v1) and
 * plays the stored audio when that is there. At the end stored audio takes the place of what was streamed, at a moment
 * when nothing is heard. Browsers open few connections to one server, so one speech per page streams, the newest; the
 * others poll.
 *
 *   speech.state     "starting", then the task's status: pending, processing, completed, failed, cancelled
 *   speech.link      "none", "live", "reconnecting" or "polling"
 *   speech.task      the task as GET /api/tasks/:id shows it;  speech.answer  the answer to the POST (estimate, ids)
 *   speech.seconds   how much audio is here;  speech.currentTime  how much of it was heard;  speech.paused
 *   speech.error     an UtterError with a sentence for a person;  speech.stored  Blob of the stored audio
 *   speech.words     with `words: true` and where the voice's lane says so: [{text, start_ms, end_ms}], in order
 *   speech.rate      how fast it is heard, 1 as it was spoken;  speech.volume  0..1
 *   speech.play()  pause()  seek(seconds)  cancel()  close()
 *
 *   events: state     state, link or task changed          progress    more audio is here
 *           time      four times a second while playing    samples     detail {samples, rate}: to draw, in order
 *           playing, waiting, paused, ended                firstaudio  detail {milliseconds} since speak()
 *           blocked   the browser wants a click: play()    stored      the stored audio is here
 *           words     more is known of when words are heard
 *           end       state is completed, failed or cancelled, and nothing more will come
 */
import { kept } from "./keep.js";
import { Client, persist, randomKey } from "./requests.js";
import { REMEMBERED, Speech } from "./speech.js";

export { UtterError } from "./requests.js";
export { Speech };

/** The version of this helper; its first number is in the address of the files that keep what it promises. */
export const VERSION = "1.1.0";

export class Utter extends Client {
  /** How fast and how loud speeches begin: 1 as they were spoken, and 0..1. */
  rate = 1;
  volume = 1;

  /**
   * @param base    where the server is: "" for this page's own, or "https://voice.example"
   * @param token   gives the bearer token, or a promise of it
   * @param player  "auto", or the live player to use whatever the browser can (see playback.js)
   */
  constructor({ base = "", token = () => null, player = "auto" } = {}) {
    super({ base, token });
    this.player = player;
  }

  /**
   * Have a text spoken. Repeated by itself where the network fails, and still spoken and paid for only once.
   * @param request  `{voice_id, text, language, format, speed, pitch, volume}` as POST /api/generate takes them
   */
  speak({ language = "Auto", ...fields }, options = {}) {
    const headers = { "Idempotency-Key": randomKey() };
    const request = { body: { ...fields, language }, headers };
    return new Speech(this, { ...options, begin: () => persist(() => this.call("POST", "/api/generate", request)) });
  }

  /** Follow a speech that is under way, or was: from its beginning, heard from second `from` on. */
  follow(task_id, options = {}) {
    return new Speech(this, { ...options, begin: async () => ({ task_id }) });
  }

  /** Listen to a stored generation. */
  replay(generation_id, options = {}) {
    return new Speech(this, { ...options, generation_id });
  }

  /** The speech that this tab was listening to when it was reloaded, or null. */
  restore(options = {}) {
    const { task_id, heard, paused } = kept(REMEMBERED) ?? {};
    return task_id ? this.follow(task_id, { from: heard, autoplay: !paused, ...options }) : null;
  }
}
