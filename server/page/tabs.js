/**
 * tabs.js: one tab is heard at a time.
 */

const channel = globalThis.BroadcastChannel ? new BroadcastChannel("utter.sound") : null;

/** Tell the other tabs that this one can be heard now. */
export function takeTheFloor() {
  channel?.postMessage("sounding");
}

/** Call `hush` when another tab begins to be heard. */
export function yieldTheFloor(hush) {
  channel?.addEventListener("message", () => hush());
}
