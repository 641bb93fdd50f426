// An app with everything that the package has: its title says in the end what came of it.
import init, { Decode, Device, KvCache, type LattenError } from "latten";
import { ModelStore } from "latten/store";
import { ModelWorker } from "latten/worker";

async function attention(): Promise<number> {
  await init();
  const device = await Device.request();
  const heads = { variant: "gqa", qHeads: 2, kvHeads: 1, headDim: 8 };
  const cache = new KvCache(device, heads, "f32", { pages: 1 });
  const sequence = cache.insert();
  cache.reserve([sequence], 1);
  cache.append(0, [sequence], new Float32Array(16).fill(2));
  const { out } = await new Decode(device, heads, "f32").run(cache, 0, [sequence], new Float32Array(16), 1);
  device.destroy();
  return out.reduce((sum, value) => sum + value, 0);
}

async function text(): Promise<string> {
  const store = await ModelStore.open("app");
  await store.download("gla", "/models/gla");
  const model: ModelWorker = await store.load("gla");
  let text = "";
  for await (const part of model.generate("ROMEO:\n", { maxNewTokens: 8 })) text += part.text;
  model.free();
  return text;
}

async function main(): Promise<string> {
  const [sum, written] = [await attention(), await text()];
  const wrong = await ModelWorker.load("/models/none").catch((error: LattenError) => error.kind);
  // Some servers answer with their start page where there is no file.
  const refused = wrong === "Io" || wrong === "Config";
  if (sum !== 32 || written.length < 4 || !refused) throw new Error(`${sum}, ${written}, ${String(wrong)}`);
  return `done: ${written}`;
}

document.title = await main().catch((error: unknown) => `failed: ${String(error)}`);
