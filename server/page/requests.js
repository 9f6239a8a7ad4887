/**
 * requests.js: talking to the server's API, where everything that goes wrong becomes a sentence for a person.
 */

/** A failure in words for a person. `category` is the contract's, or "network"; `passing` says that it may be gone soon. */
export class UtterError extends Error {
  constructor(message, { category = "internal", status = 0, passing = false, reference = null } = {}) {
    super(message);
    this.name = "UtterError";
    this.category = category;
    this.status = status;
    this.passing = passing;
    /** Under which the server's log has it; null where it was never there. */
    this.reference = reference;
  }
}

export class Client {
  /**
   * @param {object} options
   * @param {string} [options.base] where the server is, "" for this page's own
   * @param {() => string | null | Promise<string | null>} [options.token] gives the bearer token, or a promise of it
   */
  constructor({ base = "", token = () => null } = {}) {
    this.base = base;
    this.token = token;
  }

  /** An address that an answer holds, as it is reached from here: the server may be another, or below a path. */
  address(path) {
    return new URL(path, new URL(`${this.base}/`, globalThis.location?.href)).href;
  }

  /**
   * What a link leads to that the API gives out, fetched without a token. The link is asked for, not followed: after a
   * redirect from one origin to another a browser calls itself `null`, and some stores refuse that.
   * @param {string} path an address that answers with a link
   * @param {{signal?: AbortSignal, timeout?: number}} options
   */
  async linked(path, { signal, timeout = 60_000 } = {}) {
    const { url } = await this.link(path, { signal });
    const response = await read(() => fetch(this.address(url), { signal: within(timeout, signal) }), signal);
    if (response.ok) return response;
    throw new UtterError(`The audio cannot be fetched right now (${response.status}).`, {
      status: response.status, category: "network", passing: response.status >= 500,
    });
  }

  /**
   * The link that an address of the API gives out, and how many seconds it holds.
   * @param {string} path
   * @param {{signal?: AbortSignal}} options
   * @returns {Promise<{url: string, expires_in: number}>}
   */
  link(path, { signal } = {}) {
    return this.call("GET", path, { headers: { Accept: "application/json" }, signal });
  }

  /** One request: its JSON. @throws UtterError with a sentence, whatever went wrong. */
  async call(method, path, options) {
    const response = await this.fetch(method, path, options);
    return read(() => response.json(), options?.signal);
  }

  /**
   * One request: its response, which is a good one. A `body` is sent as JSON, a `form` as it is.
   * @param {string} method
   * @param {string} path
   * @param {{body?: unknown, form?: BodyInit, headers?: Record<string, string>, signal?: AbortSignal, timeout?: number,
   *          keepalive?: boolean}} options `keepalive`: also when the page is being left
   */
  async fetch(method, path, { body, form, headers = {}, signal, timeout = 20_000, keepalive = false } = {}) {
    const token = await this.token();
    if (token) headers = { ...headers, Authorization: `Bearer ${token}` };
    if (body !== undefined) headers = { ...headers, "Content-Type": "application/json" };
    const response = await read(() => fetch(this.base + path, {
      method, headers, body: body === undefined ? form : JSON.stringify(body), keepalive, signal: within(timeout, signal),
    }), signal);
    if (response.ok) return response;
    const { status } = response;
    const { detail, category, request_id } = await response.json().catch(() => ({}));
    throw new UtterError(typeof detail === "string" ? detail : `The server cannot answer right now (${status}).`, {
      // What is not in the contract's form was said by something on the way.
      reference: request_id ?? null,
      status, category: category ?? "network", passing: status >= 500 || status === 408 || status === 429,
    });
  }
}

/**
 * Try until it works; `failed(error)` hears of each attempt that did not.
 * With a number of tries only what the network did is tried again, not what the server said.
 * @template T
 * @param {() => Promise<T>} attempt
 * @param {{tries?: number, signal?: AbortSignal, failed?: (error: UtterError) => void}} options
 */
export async function persist(attempt, { tries = 4, signal, failed = () => {} } = {}) {
  for (let tried = 1; ; tried += 1) {
    try {
      return await attempt();
    } catch (error) {
      if (!error.passing || tried >= tries || (tries < Infinity && error.category !== "network")) throw error;
      failed(error);
      await rest(Math.min(250 * 2 ** tried, 5000), signal);
    }
  }
}

/** Wait; not longer than until the network is back. @returns {Promise<void>} */
export function rest(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const settle = () => {
      clearTimeout(timer);
      globalThis.removeEventListener("online", settle);
      signal?.removeEventListener("abort", settle);
      if (signal?.aborted) reject(signal.reason);
      else resolve();
    };
    const timer = setTimeout(settle, milliseconds);
    globalThis.addEventListener("online", settle);
    signal?.addEventListener("abort", settle);
  });
}

/** What a request gives, or a sentence where the network failed. */
export async function read(request, signal) {
  try {
    return await request();
  } catch (error) {
    if (signal?.aborted) throw error;
    const what = error.name === "TimeoutError" ? "The server did not answer in time." : "The server cannot be reached.";
    throw new UtterError(`${what} Please check your connection and try again.`, { category: "network", passing: true });
  }
}

function within(milliseconds, signal) {
  const tooLong = AbortSignal.timeout(milliseconds);
  return signal && AbortSignal.any ? AbortSignal.any([signal, tooLong]) : signal ?? tooLong;
}

/** A name for a request, by which the server knows it again when it is repeated. */
export function randomKey() {
  // crypto.randomUUID is there on secure origins alone.
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
