// What is tested inside the browser. Each function gets nothing, throws what is wrong and returns what it found, in words.
import init, { Decode, Device, KvCache, Model, kernelVariants } from "/latten/latten.js";
import { vector } from "./vectors.mjs";

const wasm = await init();
const variants = ["gqa", "gta", "gla", "mla"];

function assert(condition, message) {
  if (!condition) throw new Error(message);
}

/** Fails unless the call throws, or its promise rejects, a LattenError of that kind; returns the error. */
async function refused(kind, call) {
  let value;
  try {
    value = await call();
  } catch (error) {
    assert(error instanceof Error && error.name === "LattenError", `${call}: threw ${error}`);
    assert(error.kind === kind, `${call}: kind ${error.kind} (${error.message}), wanted ${kind}`);
    return error;
  }
  throw new Error(`${call}: gave ${value}, wanted an error of kind ${kind}`);
}

async function pytorch(variant) {
  return (await fetch(`/vectors/logits_${variant}.json`)).json();
}

const names = (await (await fetch("/vectors/names.json")).json()).filter((name) => name.startsWith("kernel_"));

async function vectors(variant) {
  const device = await Device.request();
  let [runs, worst, files] = [0, 0, 0];
  for (const name of names.filter((name) => name.startsWith(`kernel_${variant}`))) {
    // Dtypes differ in how a word is unpacked alone, and SwiftShader takes seconds to compile each: one vector has all.
    const found = await vector(device, name, name.endsWith("_1.json") ? ["f32", "f16", "bf16"] : ["f16"]);
    [runs, worst, files] = [runs + found.runs, Math.max(worst, found.worst), files + 1];
  }
  device.destroy();
  assert(files >= 6 && runs >= 4 * 2 + 6, `only ${runs} runs of ${files} vectors`);
  return `${files} vectors, ${runs} runs, at most ${worst.toExponential(1)} off`;
}

/** PyTorch's logits within 2e-3, as the native tests have them, and its 200 greedy tokens, to the token. */
async function model(variant) {
  const model = await Model.load(`/models/${variant}`, { kvDType: "f32" });
  const { prompts, greedy } = await pytorch(variant);
  const vocab = model.info.vocabSize;
  let [worst, compared] = [0, 0];
  for (const prompt of prompts) {
    const got = await model.logits(Uint32Array.from(prompt.tokens));
    assert(got.length === prompt.tokens.length * vocab, `${got.length} logits`);
    prompt.positions.forEach((position, i) => {
      prompt.logits[i].forEach((want, token) => {
        const error = Math.abs(got[position * vocab + token] - want);
        assert(error <= 2e-3, `logit ${token} at ${position} is off by ${error}`);
        worst = Math.max(worst, error);
        compared += 1;
      });
    });
  }
  assert(compared >= 10 * vocab, `only ${compared} logits`);
  const rest = await greedyTokens(model, greedy);
  model.free();
  return `${compared} logits at most ${worst.toExponential(1)} off; ${rest}`;
}

/** One submit and one readback for each token, and nothing made. */
async function greedyTokens(model, greedy) {
  assert(greedy.tokens.length === 200, "not 200 tokens");
  const seen = [];
  let [before, stats, first] = [null, null, 0];
  const { tokens } = await model.generate(Uint32Array.from(greedy.prompt), { maxNewTokens: 200 }, (text, token) => {
    seen.push(token);
    if (seen.length === 2) [before, first] = [model.device.counters, performance.now()];
    stats = model.stats();
  });
  const rate = (198 * 1000) / (performance.now() - first);
  const after = model.device.counters;
  assert(`${tokens}` === `${greedy.tokens}`, `tokens ${tokens}, PyTorch has ${greedy.tokens}`);
  assert(`${seen}` === `${greedy.tokens}`, "the callback saw other tokens");
  const held = greedy.prompt.length + 199;
  assert(stats.used === Math.ceil(held / stats.pageSize), `${stats.used} pages hold ${held} tokens`);
  const each = (name) => (after[name] - before[name]) / 198;
  const waits = `${each("readbacks")} readbacks, ${each("submits")} submits a token`;
  assert(waits === "1 readbacks, 1 submits a token", waits);
  assert(each("buffers") === 0 && each("pipelines") === 0 && each("bindGroups") <= 0.1, "a step made objects");
  assert(model.stats().used === 0, "the sequence is still there");
  return `200 tokens as PyTorch's, ${each("dispatches").toFixed(0)} dispatches, ${waits}, ${rate.toFixed(0)} a second`;
}

/** Caches of 64 MiB, filled and freed: neither WebAssembly's memory nor the number of live buffers grows. */
async function cacheFreed() {
  const live = new Set();
  let most = 0;
  const { createBuffer } = GPUDevice.prototype;
  const { destroy } = GPUBuffer.prototype;
  GPUDevice.prototype.createBuffer = function (descriptor) {
    const buffer = createBuffer.call(this, descriptor);
    live.add(buffer);
    return buffer;
  };
  GPUBuffer.prototype.destroy = function () {
    live.delete(this);
    return destroy.call(this);
  };
  const liveBytes = () => [...live].reduce((sum, buffer) => sum + buffer.size, 0);
  try {
    const device = await Device.request();
    const heads = { variant: "gla", qHeads: 4, latentHeads: 2, latentDim: 256, ropeDim: 64 };
    const decode = new Decode(device, heads, "f16");
    const [pages, pageSize, tokens] = [870, 64, 64];
    const rows = new Float32Array(tokens * 576).map((_, i) => Math.sin(i));
    const q = new Float32Array(4 * 320).map((_, i) => Math.cos(i));
    const marks = [];
    let want = null;
    for (let round = 0; round < 100; round++) {
      const cache = new KvCache(device, heads, "f16", { pages, pageSize });
      assert(cache.stats().poolBytes > 60 << 20, `${cache.stats().poolBytes} bytes`);
      const sequence = cache.insert();
      // All pages are taken; rows are written into the first.
      cache.reserve([sequence], tokens);
      cache.append(0, [sequence], rows);
      cache.commit([sequence], tokens);
      cache.reserve([sequence], pages * pageSize - tokens - 1);
      cache.commit([sequence], pages * pageSize - tokens - 1);
      const full = await refused("CacheFull", () => cache.reserve([sequence], 2));
      assert(full.needed === 1 && full.free === 0, `needed ${full.needed}, free ${full.free}`);
      cache.truncate(sequence, tokens - 1);
      cache.reserve([sequence], 1);
      cache.append(0, [sequence], rows.subarray(0, 576));
      const { out } = await decode.run(cache, 0, [sequence], q, 0.07);
      want ??= out;
      assert(`${out}` === `${want}`, `round ${round} has another result`);
      most = Math.max(most, liveBytes());
      cache.free();
      marks.push({ buffers: live.size, bytes: liveBytes(), wasm: wasm.memory.buffer.byteLength });
    }
    assert(most < 140 << 20, `${most} bytes at once: a freed cache stays`);
    const [early, late] = [marks[4], marks[99]];
    for (const what of ["buffers", "bytes", "wasm"]) {
      assert(late[what] <= early[what], `${what}: ${early[what]} after 5 rounds, ${late[what]} after 100`);
    }
    device.destroy();
    const mib = (late.bytes / 2 ** 20).toFixed(1);
    return `${late.buffers} buffers of ${mib} MiB, ${late.wasm >> 16} pages of WebAssembly, after 5 rounds as after 100`;
  } finally {
    GPUDevice.prototype.createBuffer = createBuffer;
    GPUBuffer.prototype.destroy = destroy;
  }
}

/** A model as well: loaded and freed, its weights go. */
async function modelFreed() {
  const marks = [];
  // On one device, which keeps its compiled kernels.
  const device = await Device.request();
  for (let round = 0; round < 12; round++) {
    const model = await Model.load("/models/gla", { device });
    await model.generate("A", { maxNewTokens: 2 });
    model.free();
    marks.push(wasm.memory.buffer.byteLength);
  }
  device.destroy();
  assert(marks[11] <= marks[3], `${marks}`);
  return `${marks[11] >> 16} pages of WebAssembly after 4 models and after 12`;
}

async function deviceLost() {
  const model = await Model.load("/models/gta");
  const want = (await model.generate("ROMEO:\n", { maxNewTokens: 12 })).text;
  // In the middle of a text, and then again.
  let count = 0;
  const lost = await refused("DeviceLost", () =>
    model.generate("ROMEO:\n", { maxNewTokens: 200 }, () => {
      count += 1;
      if (count === 3) model.device.destroy();
    }),
  );
  assert(count < 10, `${count} tokens after the loss`);
  await refused("DeviceLost", () => model.generate("ROMEO:\n", { maxNewTokens: 12 }));
  await refused("DeviceLost", () => model.logits(Uint32Array.of(1, 2)));
  model.free();
  const again = await Model.load("/models/gta");
  const { text } = await again.generate("ROMEO:\n", { maxNewTokens: 12 });
  again.free();
  assert(text === want, `${JSON.stringify(text)} after the reload, ${JSON.stringify(want)} before`);
  // Kernels without a model.
  const device = await Device.request();
  const heads = { variant: "gqa", qHeads: 2, kvHeads: 1, headDim: 8 };
  const [cache, decode] = [new KvCache(device, heads, "f32", { pages: 1 }), new Decode(device, heads, "f32")];
  const sequence = cache.insert();
  cache.reserve([sequence], 1);
  cache.append(0, [sequence], new Float32Array(16));
  device.destroy();
  await refused("DeviceLost", () => decode.run(cache, 0, [sequence], new Float32Array(16), 1));
  await refused("DeviceLost", () => new KvCache(device, heads, "f32", { pages: 1 }));
  return lost.message;
}

async function badInput() {
  const device = await Device.request();
  const heads = { variant: "gla", qHeads: 4, latentHeads: 2, latentDim: 16, ropeDim: 4 };
  const [cache, decode] = [new KvCache(device, heads, "f32", { pages: 2, pageSize: 4 }), new Decode(device, heads, "f32")];
  const sequence = cache.insert();
  const q = new Float32Array(4 * 20);
  const before = JSON.stringify(cache.stats());
  const full = await refused("CacheFull", () => cache.reserve([sequence], 9));
  assert(full.needed === 3 && full.free === 2, `needed ${full.needed}, free ${full.free}`);
  await refused("UnknownSequence", () => cache.reserve([77], 1));
  await refused("UnknownSequence", () => cache.remove(77));
  await refused("RepeatedSequence", () => cache.reserve([sequence, sequence], 1));
  await refused("Argument", () => cache.truncate(sequence, 5));
  assert(JSON.stringify(cache.stats()) === before, "a refused call changed the cache");
  cache.reserve([sequence], 1);
  await refused("Argument", () => cache.append(0, [sequence], new Float32Array(35)));
  await refused("Shape", () => cache.append(0, [sequence], new Float32Array(72)));
  await refused("Argument", () => cache.append(1, [sequence], new Float32Array(36)));
  const shape = await refused("Shape", () => decode.run(cache, 0, [sequence], new Float32Array(79), 1));
  assert(shape.got.includes("79"), `got ${shape.got}`);
  await refused("Argument", () => decode.run(cache, 3, [sequence], q, 1));
  await refused("Argument", () => decode.run(cache, 0, [], q, 1));
  await refused("Argument", () => new Decode(device, { ...heads, latentHeads: 3 }, "f32"));
  await refused("Argument", () => new Decode(device, { ...heads, variant: "linear" }, "f32"));
  await refused("Argument", () => new Decode(device, { ...heads, qHeads: 2.5 }, "f32"));
  await refused("Argument", () => new Decode(device, { ...heads, qHeads: "4" }, "f32"));
  await refused("Argument", () => new Decode(device, heads, "f64"));
  await refused("Argument", () => new Decode(device, heads, "f32", { windw: 4 }));
  await refused("Argument", () => new Decode(device, heads, "f32", { keepFirst: 4 }));
  await refused("Argument", () => new KvCache(device, heads, "f32", {}));
  await refused("Argument", () => new KvCache(device, heads, "f32", { pages: 4, pageSize: 3 }));
  const large = await refused("TooLarge", () => new KvCache(device, heads, "f32", { pages: 1 << 19, pageSize: 4096 }));
  assert(large.neededBytes > large.limitBytes, `${large.message}`);
  await refused("Argument", () => Device.request({ limits: "all" }));
  await refused("Argument", () => device.measure(heads, "f32", {}));
  device.destroy();

  const config = await (await fetch("/models/gla/config.json")).text();
  const weights = new Uint8Array(await (await fetch("/models/gla/model.safetensors")).arrayBuffer());
  await refused("Io", () => Model.load("/models/none"));
  await refused("Argument", () => Model.load(undefined));
  await refused("Argument", () => Model.load("/models/gla", { weights: "f8" }));
  await refused("Argument", () => Model.load("/models/gla", { device: {} }));
  await refused("Config", () => Model.load({ config: "{", weights }));
  await refused("Config", () => Model.load({ config: config.replace('"head_dim": 32', '"head_dim": -1'), weights }));
  await refused("Weights", () => Model.load({ config, weights: weights.subarray(0, 1000) }));
  await refused("Weights", () => Model.load({ config: config.replace('"hidden_size": 256', '"hidden_size": 128'), weights }));
  await refused("Argument", () => Model.load({ config }));
  const model = await Model.load({ config, weights });
  await refused("Argument", () => model.generate(""));
  await refused("Argument", () => model.generate(7));
  await refused("Argument", () => model.generate(Uint32Array.of(256)));
  await refused("Argument", () => model.generate("A", { maxNewTokens: -1 }));
  await refused("Argument", () => model.generate("A", { maxNewTokens: 5000 }));
  await refused("Argument", () => model.generate("A", { temperature: -1 }));
  await refused("Argument", () => model.generate("A", { topP: 2 }));
  await refused("Argument", () => model.generate("A", { tokens: 2 }));
  await refused("Argument", () => model.logits(new Uint32Array(0)));
  // One call at a time; an exception of the callback's comes out; false stops; and the model goes on as before.
  const running = model.generate("A", { maxNewTokens: 3 });
  await refused("Busy", () => model.generate("A"));
  const { text } = await running;
  let own = null;
  await model.generate("A", { maxNewTokens: 3 }, () => { throw new RangeError("mine"); }).catch((error) => (own = error));
  assert(own instanceof RangeError && own.message === "mine", `${own}`);
  const { tokens } = await model.generate("A", { maxNewTokens: 30 }, () => false);
  assert(tokens.length === 1, `${tokens.length} tokens after false`);
  assert((await model.generate("A", { maxNewTokens: 3 })).text === text, "another text after errors");
  assert(model.stats().used === 0, "a sequence is left");
  model.free();
  return "refused with kinds and numbers, and nothing changed";
}

/** Errors that browsers report later: the next result is an exception, and the one after it is right again. */
async function lateErrors() {
  const device = await Device.request();
  const heads = { variant: "gqa", qHeads: 2, kvHeads: 1, headDim: 8 };
  const { createBuffer } = GPUDevice.prototype;
  GPUDevice.prototype.createBuffer = function (descriptor) {
    const usage = descriptor.label === "KV pool" ? descriptor.usage & ~GPUBufferUsage.STORAGE : descriptor.usage;
    return createBuffer.call(this, { ...descriptor, usage });
  };
  const run = async (cache) => {
    const decode = new Decode(device, heads, "f32");
    const sequence = cache.insert();
    cache.reserve([sequence], 1);
    cache.append(0, [sequence], new Float32Array(16).fill(0.5));
    return decode.run(cache, 0, [sequence], new Float32Array(16), 1);
  };
  let error;
  try {
    error = await refused("Gpu", async () => run(new KvCache(device, heads, "f32", { pages: 1 })));
  } finally {
    GPUDevice.prototype.createBuffer = createBuffer;
  }
  const { out } = await run(new KvCache(device, heads, "f32", { pages: 1 }));
  assert(out.every((x) => x === 0.5), `${out}`);
  device.destroy();
  return error.message.split("\n")[0].slice(0, 90);
}

/** WebGPU's default limits and wgpu's lower ones, without optional features: what was asked of the browser is looked at. */
async function defaultLimits() {
  const { requestDevice } = GPUAdapter.prototype;
  let asked = null;
  GPUAdapter.prototype.requestDevice = async function (descriptor) {
    const device = await requestDevice.call(this, descriptor);
    asked = { features: [...(descriptor.requiredFeatures ?? [])], has: [...device.features], limits: device.limits };
    return device;
  };
  const said = [];
  try {
    for (const limits of ["default", "downlevel"]) {
      const device = await Device.request({ limits, noFeatures: true });
      assert(asked.features.length === 0, `features asked for: ${asked.features}`);
      assert(!asked.has.includes("shader-f16") && !asked.has.includes("subgroups"), `features: ${asked.has}`);
      const { maxStorageBufferBindingSize: binding, maxComputeWorkgroupStorageSize: storage } = asked.limits;
      assert(binding === 128 << 20 && storage === 16384, `${binding} and ${storage}`);
      assert(asked.limits.maxComputeInvocationsPerWorkgroup === 256, "invocations");
      assert(asked.limits.maxStorageBuffersPerShaderStage === 8, "storage buffers");
      assert(!device.info.timestamps && device.info.maxBindingBytes === 128 << 20, JSON.stringify(device.info));
      for (const variant of limits === "default" ? variants : ["gla"]) {
        await vector(device, `kernel_${variant}_6.json`, ["f16"]);
      }
      await refused("Unsupported", () => device.streamingRead());
      if (limits === "default") await slabs(device);
      for (const variant of limits === "default" ? ["gla"] : []) {
        const model = await Model.load(`/models/${variant}`, { device, kvDType: "f32" });
        const { greedy } = await pytorch(variant);
        const { tokens } = await model.generate(Uint32Array.from(greedy.prompt), { maxNewTokens: 20 });
        assert(`${tokens}` === `${greedy.tokens.slice(0, 20)}`, `${variant}: ${tokens}`);
        model.free();
      }
      device.destroy();
      said.push(limits);
    }
  } finally {
    GPUAdapter.prototype.requestDevice = requestDevice;
  }
  return `${said.join(", ")}: 128 MiB bindings (and a layer in two), 16 KiB, 256 invocations, no shader-f16`;
}

/** A layer of 192 MiB in bindings of 128: a sequence in the second slab has the result of one in a small cache. */
async function slabs(device) {
  const heads = { variant: "gqa", qHeads: 2, kvHeads: 2, headDim: 128 };
  const decode = new Decode(device, heads, "f32");
  const [rowBytes, pageSize, tokens] = [2 * 256 * 4, 64, 100];
  const rows = new Float32Array(tokens * 512).map((_, i) => Math.sin(i));
  const q = new Float32Array(256).map((_, i) => Math.cos(i));
  const run = async (pages, filler) => {
    const cache = new KvCache(device, heads, "f32", { pages, pageSize });
    const [first, sequence] = [cache.insert(), cache.insert()];
    if (filler > 0) {
      cache.reserve([first], filler * pageSize);
      cache.commit([first], filler * pageSize);
    }
    cache.reserve([sequence], tokens - 1);
    cache.append(0, [sequence], rows.subarray(512));
    cache.commit([sequence], tokens - 1);
    cache.reserve([sequence], 1);
    cache.append(0, [sequence], rows.subarray(0, 512));
    const { out } = await decode.run(cache, 0, [sequence], q, 0.1);
    cache.free();
    return out;
  };
  const pages = (192 << 20) / (rowBytes * pageSize);
  const [small, large] = [await run(2, 0), await run(pages, pages - 2)];
  assert(small.some((x) => x !== 0) && `${small}` === `${large}`, "the second slab gives another result");
  decode.free();
}

/** Every assembled kernel through Tint, whose uniformity analysis must accept it. */
async function tint() {
  const adapter = await navigator.gpu.requestAdapter();
  const subgroups = adapter.features.has("subgroups");
  const device = await adapter.requestDevice({ requiredFeatures: subgroups ? ["subgroups"] : [] });
  const [counts, wrong] = [[], new Map()];
  for (const what of subgroups ? ["portable", "subgroup"] : ["portable"]) {
    const all = kernelVariants(what === "subgroup");
    const enable = what === "subgroup" ? "enable subgroups;\n" : "";
    // It shuffles where a vote of the subgroup was won (`raise`): uniform within a subgroup, which the analysis does not
    // see. No browser gets this text: wgpu offers none subgroups.
    const voted = `${enable}diagnostic(off, subgroup_uniformity);\n`;
    assert(all.length > 20, `${all.length} ${what} variants`);
    await Promise.all(all.map(async ({ label, name, wgsl }) => {
      const head = what === "subgroup" && name.includes("decode_rows") ? voted : enable;
      const { messages } = await device.createShaderModule({ code: head + wgsl, label: name }).getCompilationInfo();
      for (const m of messages.filter((m) => m.type !== "info")) {
        const line = (head + wgsl).split("\n")[m.lineNum - 1]?.trim();
        wrong.set(`${m.message.split("\n")[0]} at: ${line}`, `${name}, ${label.slice(0, 40)}`);
      }
    }));
    counts.push(`${all.length} ${what} variants`);
  }
  assert(wrong.size === 0, [...wrong].map(([what, where]) => `${what} (${where})`).join("\n"));
  // What Tint must not accept, so that silence means something.
  const divergent = `@group(0) @binding(0) var<storage, read_write> a: array<u32>;
    @compute @workgroup_size(64) fn main(@builtin(local_invocation_index) i: u32) {
      if (i < 3u) { workgroupBarrier(); }
      a[i] = i;
    }`;
  device.pushErrorScope("validation");
  const { messages } = await device.createShaderModule({ code: divergent }).getCompilationInfo();
  await device.popErrorScope();
  assert(messages.some((m) => m.type === "error"), "a barrier in divergent control flow passes");
  device.destroy();
  return `${counts.join(" and ")} without an error or a warning`;
}

async function measured() {
  const device = await Device.request();
  const heads = { variant: "mla", qHeads: 4, latentDim: 64, ropeDim: 16 };
  const found = await device.measure(heads, "f16", { tokens: 300, sequences: 3, milliseconds: 20 });
  device.destroy();
  assert(found.maxError < 2e-5, `off by ${found.maxError}`);
  assert(found.bytesPerToken === 160 && found.microseconds > 1 && found.gbPerSecond > 0, JSON.stringify(found));
  return `${found.microseconds.toFixed(0)} us, ${found.maxError.toExponential(1)} off`;
}

/** With a seed, the same text; with another, another. */
async function seeds() {
  const model = await Model.load(new URL("/models/mla", location.href), { warmUp: true, chunk: 8 });
  const how = { maxNewTokens: 40, temperature: 0.8, topP: 0.95 };
  const text = async (seed) => (await model.generate("KING:", { ...how, seed })).text;
  const [a, b, c] = [await text(7), await text(7), await text(8)];
  model.free();
  assert(a === b && a !== c && a.length > 20, `${a}\n${b}\n${c}`);
  return JSON.stringify(a);
}

export const checks = {
  ...Object.fromEntries(variants.map((v) => [`vectors_${v}`, () => vectors(v)])),
  ...Object.fromEntries(variants.map((v) => [`model_${v}`, () => model(v)])),
  seeds,
  measured,
  badInput,
  lateErrors,
  deviceLost,
  defaultLimits,
  cacheFreed,
  modelFreed,
  tint,
};
