// ModelWorker: a Model in a worker of its own, so that the page does nothing while it loads and writes.
import { Calls } from "./calls.js";
import { known, lattenError } from "./error.js";

const loads = ["weights", "kvDType", "cacheTokens", "pageSize", "chunk", "warmUp", "onProgress", "signal", "worker"];

/** An address as the page means it: a worker's own is another. */
function absolute(source) {
  const address = source instanceof URL ? source.href : source;
  if (typeof address !== "string") return address;
  return new URL(address, globalThis.document?.baseURI ?? location.href).href;
}

/** Calls `stop` when a signal is aborted, until the promise is settled; returns the promise. */
function whileWaiting(promise, signal, stop) {
  if (!signal) return promise;
  const aborted = () => stop(signal.reason);
  signal.addEventListener("abort", aborted, { once: true });
  const end = () => signal.removeEventListener("abort", aborted);
  promise.then(end, end);
  return promise;
}

export class ModelWorker {
  #calls;
  #state;
  #loaded;

  constructor(calls, loaded, state) {
    [this.#calls, this.#loaded, this.#state] = [calls, loaded, state];
    calls.onState = (state) => (this.#state = state);
  }

  static async load(source, options = {}) {
    known(options, loads);
    const { onProgress, signal, worker, ...rest } = options;
    signal?.throwIfAborted();
    const calls = new Calls(worker);
    let state = null;
    calls.onState = (first) => (state = first);
    try {
      const given = { from: absolute(source), options: rest, progress: !!onProgress };
      const loading = calls.ask("load", given, { onProgress });
      const loaded = await whileWaiting(loading, signal, (reason) => calls.end(reason));
      return new ModelWorker(calls, loaded, state);
    } catch (error) {
      calls.end(error);
      throw error;
    }
  }

  generate(prompt, options = {}, onToken) {
    const { signal, ...rest } = options ?? {};
    const [tokens, calls] = [[], this.#calls];
    let [number, wake] = [-1, () => {}];
    let ended = false;
    const stop = () => void (ended || calls.stop(number));
    const heard = (token) => {
      tokens.push(token);
      wake();
      if (!onToken) return;
      try {
        if (onToken(token.text, token.token) === false) {
          onToken = undefined;
          stop();
        }
      } catch (error) {
        stop();
        calls.forget(number, error);
      }
    };
    const begin = () => (signal?.aborted ? Promise.reject(signal.reason)
      : calls.ask("generate", { prompt, options: rest }, { onToken: heard }, (id) => (number = id)));
    const made = whileWaiting(begin(), signal, (reason) => {
      stop();
      calls.forget(number, reason);
    });
    const end = () => {
      ended = true;
      wake();
    };
    made.then(end, end);
    async function* each() {
      // Whoever iterates hears of an error here, and does not have to await the promise as well.
      made.catch(() => {});
      try {
        for (;;) {
          while (tokens.length > 0) yield tokens.shift();
          if (ended) return await made;
          await new Promise((resolve) => (wake = resolve));
        }
      } finally {
        stop();
      }
    }
    return Object.assign(made, { [Symbol.asyncIterator]: each });
  }

  logits(tokens) {
    return this.#calls.ask("logits", { tokens: Uint32Array.from(tokens) });
  }

  stats() {
    return this.#state.stats;
  }

  get info() {
    return this.#loaded.info;
  }

  get device() {
    return { info: this.#loaded.device, counters: this.#state.counters };
  }

  get worker() {
    return this.#calls.worker;
  }

  free() {
    this.#calls.end(lattenError("Closed", "the model was freed"));
  }
}

if (Symbol.dispose) ModelWorker.prototype[Symbol.dispose] = ModelWorker.prototype.free;
