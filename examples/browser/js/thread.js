// What runs in the worker of a ModelWorker or a ModelStore: answers calls, one message each, and tells what happens on the way.
// No import is dynamic: bundlers make one script of it.
import { download } from "./download.js";
import { packed } from "./error.js";
import init, { Model } from "./latten.js";

/** The model, once it is loaded. */
let model = null;
/** Generations under way, and those of them that are to end with their next token. */
const ends = new Map();
const stopped = new Set();
/** The page may not wait for what it has stopped: whoever comes next does. */
const free = () => Promise.all([...stopped].map((id) => ends.get(id)));

const state = () => ({ stats: model.stats(), counters: model.device.counters });

/** A file of the browser's as what reads ranges: no more of it is in memory than is asked for, or a MiB. */
function ranges(file) {
  const [least, reader] = [1 << 20, new FileReaderSync()];
  let [first, held] = [0, new Uint8Array(0)];
  const read = (offset, bytes) => {
    if (offset < first || offset + bytes > first + held.length) {
      const end = Math.min(file.size, offset + Math.max(bytes, least));
      held = new Uint8Array(reader.readAsArrayBuffer(file.slice(offset, end)));
      first = offset;
    }
    return held.subarray(offset - first, offset - first + bytes);
  };
  return { size: file.size, read };
}

/** What Model.load takes. */
async function source(given) {
  if (typeof given === "string") return given;
  const { config, weights, ...rest } = given;
  const read = weights instanceof Blob ? ranges(weights) : weights;
  return { ...rest, config: config instanceof Blob ? await config.text() : config, weights: read };
}

const calls = {
  async load(id, { from, options, progress }) {
    await init();
    let told = 0;
    const onProgress = (step) => {
      const now = performance.now();
      if (now - told < 50 && step.bytes < step.totalBytes) return;
      told = now;
      postMessage({ id, progress: step });
    };
    model = await Model.load(await source(from), { ...options, ...(progress ? { onProgress } : {}) });
    return { info: model.info, device: model.device.info };
  },

  async generate(id, { prompt, options }) {
    await free();
    const made = model.generate(prompt, options, (text, token) => {
      postMessage({ id, token: { text, token }, ...state() });
      return !stopped.has(id);
    });
    const end = () => void (ends.delete(id), stopped.delete(id));
    ends.set(id, made.then(end, end));
    return made;
  },

  async logits(id, { tokens }) {
    await free();
    return model.logits(tokens);
  },

  async download(id, what) {
    return download(what, (progress) => postMessage({ id, progress }));
  },
};

addEventListener("message", async ({ data: { id, call, given, stop } }) => {
  if (stop !== undefined) return void (ends.has(stop) && stopped.add(stop));
  try {
    const done = await calls[call](id, given);
    postMessage({ id, done, ...(model ? state() : {}) }, done instanceof Float32Array ? [done.buffer] : []);
  } catch (error) {
    postMessage({ id, failed: packed(error) });
  }
});

// What nobody waited for: the page hears of it, as of an error that nobody caught.
addEventListener("unhandledrejection", ({ reason }) => postMessage({ lost: `${reason?.stack ?? reason}` }));

// A lock goes with its worker, however that ends: then the page gets it.
const name = `latten-${crypto.randomUUID()}`;
navigator.locks.request(name, () => {
  postMessage({ lock: name });
  return new Promise(() => {});
});
