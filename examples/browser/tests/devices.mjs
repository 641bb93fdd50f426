// What a device may take: memory, limits, time.
import { Decode, Device, KvCache, Model } from "/latten/latten.js";
import { assert, json, refused, variants, wasm } from "./common.mjs";
import { vector } from "./vectors.mjs";

/** Caches of 64 MiB, filled and freed: neither WebAssembly's memory nor the number of live buffers grows. */
export async function cacheFreed() {
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
    await smallCaches(device, heads);
    device.destroy();
    const mib = (late.bytes / 2 ** 20).toFixed(1);
    return `${late.buffers} buffers of ${mib} MiB, ${late.wasm >> 16} pages of WebAssembly, after 5 rounds as after 100`;
  } finally {
    GPUDevice.prototype.createBuffer = createBuffer;
    GPUBuffer.prototype.destroy = destroy;
  }
}

/** So many that a few bytes of each that stayed would show, between the large ones they hide in what was freed. */
async function smallCaches(device, heads) {
  const marks = [];
  for (let round = 0; round < 4; round++) {
    for (let i = 0; i < 1000; i++) new KvCache(device, heads, "f16", { pages: 1, pageSize: 1 }).free();
    // What was made is asked for errors here.
    const cache = new KvCache(device, heads, "f16", { pages: 1, pageSize: 1 });
    const sequence = cache.insert();
    cache.reserve([sequence], 1);
    cache.append(0, [sequence], new Float32Array(576));
    const decode = new Decode(device, heads, "f16");
    await decode.run(cache, 0, [sequence], new Float32Array(4 * 320), 1);
    decode.free();
    cache.free();
    marks.push(wasm.memory.buffer.byteLength >> 16);
  }
  assert(marks[3] === marks[1], `pages of WebAssembly after each 1000 small caches: ${marks}`);
}

/** WebGPU's default limits and wgpu's lower ones, without optional features: what was asked of the browser is looked at. */
export async function defaultLimits() {
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
        const { greedy } = await json(`/vectors/logits_${variant}.json`);
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

/** The numbers of a measurement, against each other and the clock; of the second one, which compiles nothing. */
export async function measured() {
  const device = await Device.request();
  const heads = { variant: "mla", qHeads: 4, latentDim: 64, ropeDim: 16 };
  const how = { tokens: 300, sequences: 3, milliseconds: 20 };
  await device.measure(heads, "f16", how);
  const [before, start] = [device.counters.dispatches, performance.now()];
  const found = await device.measure(heads, "f16", how);
  const [dispatches, elapsed] = [device.counters.dispatches - before, 1000 * (performance.now() - start)];
  device.destroy();
  // Sums in f32 are never those of f64 in all 64 values.
  assert(found.maxError > 0 && found.maxError < 2e-5, `off by ${found.maxError}`);
  const bytes = found.gbPerSecond * found.microseconds * 1e3;
  const must = 3 * 300 * 160 + 4 * 3 * 4 * (80 + 64 + 1);
  assert(found.bytesPerToken === 160 && Math.abs(bytes / must - 1) < 1e-9, `${bytes} bytes, ${must} must be read`);
  // A decode is at most two dispatches, and half of all decodes or more were in the round that is told.
  const least = (found.microseconds * dispatches) / 5;
  assert(found.microseconds > 1 && least < elapsed, `${dispatches} dispatches in ${elapsed} us, ${found.microseconds} each`);
  return `${found.microseconds.toFixed(0)} us, ${found.maxError.toExponential(1)} off`;
}
