// ModelWorker: what Model gives, by messages; errors, ends, and what the page's thread has to do meanwhile.
import { Model } from "/latten/latten.js";
import { ModelWorker } from "/latten/worker.js";
import { assert, json, refused } from "./common.mjs";

const prompt = "ROMEO:\n";

/** The same tokens, logits and numbers as Model has; by await, by callback and by iteration; stopped in each way. */
export async function worker() {
  const own = await Model.load("/models/gla");
  const { greedy } = await json("/vectors/logits_gla.json");
  const [steps, some] = [[], greedy.tokens.slice(0, 60)];
  const model = await ModelWorker.load(new URL("/models/gla", location.href), { onProgress: (step) => steps.push(step) });
  const last = steps.at(-1);
  assert(last.bytes === last.totalBytes && last.totalBytes > 2.9e6, JSON.stringify(last));
  assert(JSON.stringify(model.info) === JSON.stringify(own.info), "another model");
  assert(model.device.info.adapter === own.device.info.adapter, "another device");

  const seen = [];
  const all = await model.generate(Uint32Array.from(greedy.prompt), { maxNewTokens: 60 }, (text, token) => void seen.push(token));
  assert(`${all.tokens}` === `${some}` && `${seen}` === `${some}`, `tokens ${all.tokens}`);
  assert(all.tokens instanceof Uint32Array && all.finished === "length", all.finished);
  const [mine, theirs] = [await own.logits(all.tokens.slice(0, 20)), await model.logits([...all.tokens.slice(0, 20)])];
  assert(theirs instanceof Float32Array && mine.length === 20 * 256 && `${mine}` === `${theirs}`, "other logits");

  const how = { maxNewTokens: 12, temperature: 0.8, topP: 0.95, seed: 4, logprobs: 2 };
  const want = await own.generate(prompt, how);
  let text = "";
  const making = model.generate(prompt, how);
  for await (const part of making) text += part.text;
  const made = await making;
  assert(JSON.stringify(made) === JSON.stringify(want) && text === want.text, `${text}, ${want.text}`);
  const stats = model.stats();
  assert(stats.used === 0 && stats.total === own.stats().total, `${stats.used} of ${stats.total}`);
  own.free();
  const ends = await stops(model, greedy);
  model.free();
  await refused("Closed", () => model.logits([1]));
  return `60 tokens and 5,120 logits as Model has them; ${ends}`;
}

/** A text that would be long ends soon after it is told to, and the next call is served. */
async function stops(model, greedy) {
  const make = (options, on) => model.generate(Uint32Array.from(greedy.prompt), { maxNewTokens: 400, ...options }, on);
  const after = async (what) => {
    const { tokens } = await make({ maxNewTokens: 3 });
    assert(`${tokens}` === `${greedy.tokens.slice(0, 3)}`, `after ${what}: ${tokens}`);
  };
  let count = 0;
  const stopped = await make({}, () => ++count < 5);
  assert(stopped.finished === "callback" && count === 5, `${stopped.finished}, ${count}`);
  assert(stopped.tokens.length < 40 && `${stopped.tokens.slice(0, 5)}` === `${greedy.tokens.slice(0, 5)}`, `${stopped.tokens.length}`);
  await after("false");
  const iterated = make({});
  for await (const { token } of iterated) if (token === greedy.tokens[0]) break;
  const { finished, tokens: left } = await iterated;
  assert(finished === "callback" && left.length < 40, `${finished}, ${left.length}`);
  await after("break");
  const aborter = new AbortController();
  const aborted = make({ signal: aborter.signal }, () => aborter.abort());
  const error = await aborted.then(() => null, (error) => error);
  assert(error === aborter.signal.reason && error.name === "AbortError", `${error}`);
  await after("abort");
  const early = await make({ signal: AbortSignal.abort() }).then(() => null, (error) => error);
  assert(early?.name === "AbortError", `${early}`);
  const thrown = await make({}, () => { throw new RangeError("mine"); }).then(() => null, (error) => error);
  assert(thrown instanceof RangeError && thrown.message === "mine", `${thrown}`);
  await after("throw");
  return `stopped after ${stopped.tokens.length} and ${left.length} tokens where 5 and 1 were wanted`;
}

/** Errors are of the same kind and have the same numbers as on this side; what ends a worker is told to all that wait. */
export async function workerErrors() {
  const io = await refused("Io", () => ModelWorker.load("/models/none"));
  assert(io.path.endsWith("/models/none/config.json") && io.message.includes("404"), io.message);
  const config = await (await fetch("/models/gla/config.json")).text();
  await refused("Weights", () => ModelWorker.load({ config, weights: new Uint8Array(9) }));
  await refused("Weights", () => ModelWorker.load({ config: new Blob([config]), weights: new Blob([new Uint8Array(9)]) }));
  await refused("Argument", () => ModelWorker.load({ config }));
  await refused("Argument", () => ModelWorker.load("/models/gla", { chunks: 3 }));
  await refused("Argument", () => ModelWorker.load("/models/gla", { chunk: 0 }));
  const aborter = new AbortController();
  const loading = ModelWorker.load("/models/gla", { signal: aborter.signal, onProgress: () => aborter.abort(new Error("enough")) });
  assert((await loading.catch((error) => error)).message === "enough", "a load goes on after its signal");

  const model = await ModelWorker.load("/models/gla", { cacheTokens: 128, pageSize: 64 });
  const bad = await refused("Argument", () => model.generate(prompt, { topK: -1 }));
  assert(bad.argument === "options.topK" && bad.why && bad.stack, JSON.stringify(bad));
  const full = await refused("CacheFull", () => model.logits(new Uint32Array(200)));
  assert(full.needed === 4 && full.free === 2, `${full.needed}, ${full.free}`);
  const uncopied = await model.generate(prompt, { stop: () => {} }).then(() => null, (error) => error);
  assert(uncopied?.name === "DataCloneError", `${uncopied}`);
  const [first, second] = [model.generate(prompt, { maxNewTokens: 30 }), refused("Busy", () => model.generate(prompt))];
  assert((await first).tokens.length === 30, "a second call has ended the first");
  await second;
  // Ended from outside, as a browser does that has no memory left, while two calls wait.
  const waiting = [model.generate(prompt, { maxNewTokens: 90 }, () => model.worker.terminate()), model.logits([1, 2, 3])];
  const told = await Promise.all(waiting.map((call) => call.then(() => null, (error) => error)));
  assert(told[0]?.kind === "WorkerLost", `${told[0]}`);
  assert(["WorkerLost", "Busy"].includes(told[1]?.kind), `${told[1]}`);
  await refused("WorkerLost", () => model.logits([1]));
  const freed = await ModelWorker.load("/models/gla");
  const call = refused("Closed", () => freed.generate(prompt));
  freed.free();
  await call;
  for (const script of ["data:text/javascript,throw new Error('mine')", "/no/such/script.js"]) {
    const worker = new Worker(script, { type: "module" });
    await refused("WorkerLost", () => ModelWorker.load("/models/gla", { worker }));
  }
  return `${io.message}`;
}

/** A file of more than 2^32 bytes, read where the tensors lie: in the last of its bytes. The whole never is in memory. */
export async function workerLarge() {
  const [config, small] = await Promise.all(["config.json", "model.safetensors"].map((name) =>
    fetch(`/models/gla/${name}`).then((answer) => answer.arrayBuffer())));
  const size = Number(new DataView(small).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(small.slice(8, 8 + size)));
  // Before the tensors lie two that the model has no use for, of 2.5 GiB each.
  const pad = 5 * 2 ** 29;
  const padding = (first) => ({ dtype: "U8", shape: [pad], data_offsets: [first, first + pad] });
  const moved = { padding_a: padding(0), padding_b: padding(pad) };
  for (const [name, tensor] of Object.entries(header)) {
    moved[name] = name === "__metadata__" ? tensor : { ...tensor, data_offsets: tensor.data_offsets.map((at) => at + 2 * pad) };
  }
  const text = new TextEncoder().encode(JSON.stringify(moved));
  const length = new DataView(new ArrayBuffer(8));
  length.setBigUint64(0, BigInt(text.length), true);
  const block = new Blob([new Uint8Array(2 ** 24)]);
  const weights = new Blob([length, text, ...new Array((2 * pad) / 2 ** 24).fill(block), small.slice(8 + size)]);
  assert(weights.size > 2 ** 32 + 2 ** 29, `${weights.size} bytes`);
  const steps = [];
  const model = await ModelWorker.load({ config: new Blob([config]), weights }, { onProgress: (step) => steps.push(step) });
  const { greedy } = await json("/vectors/logits_gla.json");
  const { tokens } = await model.generate(Uint32Array.from(greedy.prompt), { maxNewTokens: 20 });
  model.free();
  assert(`${tokens}` === `${greedy.tokens.slice(0, 20)}`, `${tokens}`);
  assert(steps.at(-1).totalBytes > 2 ** 32, JSON.stringify(steps.at(-1)));
  return `${weights.size} bytes, tensors from byte ${2 * pad} on`;
}

/** Longest task of the page's thread and longest time between two frames, in ms, while something is done. */
async function watched(work) {
  let [frame, task, before, going] = [0, 0, performance.now(), true];
  const tick = (now) => {
    [frame, before] = [Math.max(frame, now - before), now];
    if (going) requestAnimationFrame(tick);
  };
  const observer = new PerformanceObserver((list) => list.getEntries().forEach(({ duration }) => (task = Math.max(task, duration))));
  observer.observe({ type: "longtask" });
  requestAnimationFrame((now) => {
    before = now;
    requestAnimationFrame(tick);
  });
  const start = performance.now();
  const done = await work();
  const whole = performance.now() - start;
  await new Promise((resolve) => setTimeout(resolve, 100));
  going = false;
  observer.disconnect();
  return { done, frame, task, whole };
}

/** A model of random numbers, of 128 MB: two layers of 16.8 million weights each. */
function random() {
  const [hidden, wide, layers] = [1024, 4096, 2];
  const config = { model_type: "latten", tokenizer: "bytes", rope_interleaved: false, vocab_size: 256, hidden_size: hidden, intermediate_size: wide, num_hidden_layers: layers, num_attention_heads: 16,
    num_key_value_heads: 16, head_dim: 64, max_position_embeddings: 256, rms_norm_eps: 1e-5, rope_theta: 1e4, tie_word_embeddings: true,
    attention: "gqa" };
  const shapes = { "model.embed_tokens.weight": [256, hidden], "model.norm.weight": [hidden] };
  for (let i = 0; i < layers; i++) {
    const layer = { "input_layernorm": [hidden], "post_attention_layernorm": [hidden], "mlp.gate_proj": [wide, hidden],
      "mlp.up_proj": [wide, hidden], "mlp.down_proj": [hidden, wide] };
    for (const part of "qkvo") layer[`self_attn.${part}_proj`] = [hidden, hidden];
    for (const [name, shape] of Object.entries(layer)) shapes[`model.layers.${i}.${name}.weight`] = shape;
  }
  let end = 0;
  const header = Object.fromEntries(Object.entries(shapes).map(([name, shape]) => {
    const bytes = 4 * shape.reduce((a, b) => a * b);
    end += bytes;
    return [name, { dtype: "F32", shape, data_offsets: [end - bytes, end] }];
  }));
  const text = new TextEncoder().encode(JSON.stringify(header).padEnd(4096));
  const weights = new Uint8Array(8 + text.length + end);
  new DataView(weights.buffer).setBigUint64(0, BigInt(text.length), true);
  weights.set(text, 8);
  const values = new Float32Array(weights.buffer, 8 + text.length);
  for (let i = 0; i < values.length; i++) values[i] = ((i * 2654435761) % 4093) / 60000 - 0.034;
  return { config: JSON.stringify(config), weights };
}

/** The page's thread is busy for long while a Model loads, and for no time that one would notice with a ModelWorker. */
export async function workerFrames() {
  const bytes = random();
  const files = { ...bytes, weights: new Blob([bytes.weights]) };
  const use = (Class, source) => watched(async () => {
    const model = await Class.load(source, { cacheTokens: 256 });
    const { tokens } = await model.generate("KING:\n".repeat(20), { maxNewTokens: 20 });
    model.free();
    return tokens.join();
  });
  const [own, other] = [await use(Model, bytes), await use(ModelWorker, files)];
  assert(own.done === other.done, "other tokens");
  assert(own.task > 100 && other.task < 50, `a task of ${other.task} ms, ${own.task} without a worker`);
  const said = ({ task, frame, whole }) => `task ${task.toFixed(0)}, frames ${frame.toFixed(0)} apart, of ${whole.toFixed(0)} ms`;
  return `Model: ${said(own)}; ModelWorker: ${said(other)}`;
}
