// Calls to a worker: whoever waits hears of its answer, or that there will be none.
import { lattenError, unpacked } from "./error.js";

export class Calls {
  worker;
  #waiting = new Map();
  #next = 0;
  /** Why no call is taken any more. */
  #gone = null;
  #left = new AbortController();
  /** Hears of what comes with answers. */
  onState = () => {};

  constructor(worker) {
    this.worker = worker ?? new Worker(new URL("./thread.js", import.meta.url), { type: "module", name: "latten" });
    this.worker.addEventListener("message", ({ data }) => this.#hear(data));
    this.worker.addEventListener("error", (event) => {
      event.preventDefault?.();
      this.#lost(event.message || "its script did not load");
    });
    this.worker.addEventListener("messageerror", () => this.#lost("a message could not be read"));
  }

  #hear(data) {
    if (data.lock) return this.#watch(data.lock);
    if (data.lost) return this.#lost(data.lost);
    if (data.stats) this.onState(data);
    const call = this.#waiting.get(data.id);
    if (!call) return;
    if (data.progress) return call.onProgress?.(data.progress);
    if (data.token) return call.onToken(data.token);
    this.#waiting.delete(data.id);
    if (data.failed) call.reject(unpacked(data.failed));
    else call.resolve(data.done);
  }

  /** The lock comes here when the worker has gone. */
  #watch(name) {
    navigator.locks.request(name, { signal: this.#left.signal }, () => this.#lost("it was ended")).catch(() => {});
  }

  #lost(why) {
    this.end(lattenError("WorkerLost", `the worker has gone with all that it had: ${why}`));
  }

  /** Ends the worker; all that waits is rejected. */
  end(error) {
    if (this.#gone) return;
    this.#gone = error;
    this.#left.abort();
    this.worker.terminate();
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
  }

  /** Rejects a call whose answer nobody waits for. */
  forget(id, error) {
    const call = this.#waiting.get(id);
    this.#waiting.delete(id);
    call?.reject(error);
  }

  stop(id) {
    if (!this.#gone) this.worker.postMessage({ stop: id });
  }

  /** `heard` hears of progress and tokens. Resolves to the answer; `begun` gets the call's number. */
  ask(call, given, heard = {}, begun = () => {}) {
    return new Promise((resolve, reject) => {
      if (this.#gone) return reject(this.#gone);
      const id = this.#next++;
      // Before it waits: what cannot be copied throws, and is an error of the call alone.
      this.worker.postMessage({ id, call, given });
      this.#waiting.set(id, { resolve, reject, ...heard });
      begun(id);
    });
  }
}
