/**
 * keep.js: small things that outlive a page, in a browser that may not let us keep any.
 */

/** What was kept under this name, or null. `store` is "sessionStorage" (this tab) or "localStorage" (this browser). */
export function kept(name, store = "sessionStorage") {
  try {
    return JSON.parse(globalThis[store].getItem(name));
  } catch {
    return null;
  }
}

/** Keep a value; undefined forgets it. */
export function keep(name, value, store = "sessionStorage") {
  try {
    if (value === undefined) globalThis[store].removeItem(name);
    else globalThis[store].setItem(name, JSON.stringify(value));
  } catch { /* full, or not allowed: it is forgotten at the next reload */ }
}
