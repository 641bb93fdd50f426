// Compiles against the package's declarations; never runs.
import init, { Decode, Device, KvCache, Model, type KvCacheStats, type LattenError, type Layout } from "latten";
import { ModelStore, type StoredModel } from "latten/store";
import { ModelWorker, type TokenPart } from "latten/worker";

await init();
const device: Device = await Device.request({ limits: "default" });
const model: Model = await Model.load(new URL("https://localhost/models/gla"), { device, kvDType: "i8", warmUp: true });
const made: { text: string; tokens: Uint32Array } = await model.generate("A", { maxNewTokens: 3, seed: 1 }, (text, token) => text.length + token < 9);
const stats: KvCacheStats = model.stats();
const layout: Layout = { variant: "gta", qHeads: 4, kvHeads: 2, headDim: 8, ropeDim: 4 };
// What has a default may be left out, and the variant of an object whose type is not said is a string to TypeScript.
const heads = { variant: "gla", qHeads: 4, latentHeads: 2, latentDim: 8, ropeDim: 4 };
const short: [Device, Model, Decode] = [await Device.request(), await Model.load("models/gla"), new Decode(device, heads)];
await device.measure(heads, undefined, { tokens: 4 });
new KvCache(device, { variant: "mla", qHeads: 4, latentDim: 8, ropeDim: 4 }, "f16", { pages: 1 }).reserve([1], 1);
const cache = new KvCache(device, layout, "bf16", { pages: stats.total });
const decode = new Decode(device, layout, "bf16", { window: 5 });
const turning = new KvCache(device, layout, "f16", { pages: 1, rope: { theta: 5e5, pairs: "interleaved" } });
turning.commitTokens(turning.matchPrefix([1, 2, 3], 7), Uint32Array.of(1));
// @ts-expect-error no such pairs
new KvCache(device, layout, "f16", { pages: 1, rope: { pairs: "none" } });
const sequence: number = cache.insert();
const { out, lse }: { out: Float32Array; lse: Float32Array } = await decode.run(cache, 0, Uint32Array.of(sequence), made.tokens.length ? new Float32Array(9) : lse0(), 1);
function lse0(): Float32Array {
  return lse ?? out;
}
try {
  cache.reserve(Uint32Array.of(sequence), 1);
} catch (error) {
  const full = error as LattenError;
  if (full.kind === "CacheFull") console.log(full.needed, full.free);
}
// @ts-expect-error no such variant
const wrong: Layout = { variant: "linear", qHeads: 1 };
// @ts-expect-error no such option
await model.generate("A", { tokens: 3 });
// @ts-expect-error a number is missing
new Decode(device, { variant: "gla", qHeads: 4, latentDim: 8 });
// @ts-expect-error a number is misspelt
new Decode(device, { variant: "gqa", qHeads: 4, kvHeads: 2, headDims: 8 });
// @ts-expect-error no such element type
new Decode(device, heads, "f64");
const store: ModelStore = await ModelStore.open();
const got: StoredModel = await store.download("gla", "models/gla", { sha256: { "config.json": "00" }, onProgress: ({ bytes, totalBytes }) => bytes + (totalBytes ?? 0) });
const files: Record<string, File> = await store.files(got.name);
const worker: ModelWorker = await ModelWorker.load({ config: files["config.json"], weights: new Blob() }, { chunk: 8, signal: AbortSignal.timeout(9), onProgress: (p) => p.bytes });
const parts: TokenPart[] = [];
for await (const part of worker.generate("A", { signal: AbortSignal.timeout(9) })) parts.push(part);
const { finished }: { finished: "length" | "stop" | "callback" } = await worker.generate(Uint32Array.of(1), {}, (text) => text.length < 3);
const row: Float32Array = await worker.logits([1, 2]);
console.log(worker.stats().used, worker.info.layers, worker.device.info.adapter, finished, row, await store.delete("gla"));
// @ts-expect-error a device does not leave its thread
await ModelWorker.load("models/gla", { device });
// @ts-expect-error it has no constructor
new ModelWorker();
console.log(wrong, short);
