// What is refused, what is lost, and what goes on afterwards.
import { Decode, Device, KvCache, Model } from "/latten/latten.js";
import { assert, refused } from "./common.mjs";

export async function deviceLost() {
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

export async function badInput() {
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
export async function lateErrors() {
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
