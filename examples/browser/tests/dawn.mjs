// The package under Node.js with Dawn (npm `webgpu`), on whatever adapter Vulkan has: the browser's own checks, unchanged.
// node dawn.mjs PACKAGE NATIVE WEBGPU [--adapter NAME] [CHECK..]: the package's folder, that of native results (native.mjs makes it), that of
// npm's `webgpu`, and what to run: names of checks.mjs, or rate_VARIANT; without any, vectors_, model_ and rate_ of the four variants.
import { readFile, readdir } from "node:fs/promises";
import { register } from "node:module";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const [pkg, native, webgpu, ...rest] = process.argv.slice(2);
if (!webgpu) throw new Error("node dawn.mjs PACKAGE NATIVE WEBGPU [--adapter NAME] [CHECK..]");
const root = join(here, "../../..");
const at = rest.indexOf("--adapter");
const adapter = at < 0 ? undefined : rest.splice(at, 2)[1];
const vectors = join(root, "tests/vectors");
const folders = { latten: resolve(pkg), native: resolve(native), models: join(root, "examples/models"), tests: here, vectors };

// Modules are imported by the server's paths.
register(`data:text/javascript,${encodeURIComponent(`
  const folder = ${JSON.stringify(pathToFileURL(`${folders.latten}/`).href)};
  export const resolve = (name, context, next) =>
    name.startsWith("/latten/") ? { url: folder + name.slice("/latten/".length), shortCircuit: true } : next(name, context);
`)}`);

// Files in place of a server.
globalThis.location = new URL("http://localhost/");
globalThis.fetch = async (what) => {
  const url = new URL(what?.url ?? what, location.href);
  const [, first, ...parts] = url.pathname.split("/");
  const path = url.protocol === "file:" ? fileURLToPath(url) : join(folders[first] ?? "", ...parts);
  if (path.endsWith("names.json")) return Response.json((await readdir(vectors)).filter((name) => name.endsWith(".json")));
  try {
    const type = path.endsWith(".wasm") ? "application/wasm" : "application/octet-stream";
    return new Response(await readFile(path), { headers: { "content-type": type } });
  } catch {
    return new Response("not found", { status: 404 });
  }
};

// Node.js 20 lacks it. What lies between two neighbours of f16 goes to the even one, as f64's own rounding does.
Math.f16round ??= (x) => {
  if (!Number.isFinite(x) || x === 0) return x;
  const step = 2 ** (Math.max(Math.floor(Math.log2(Math.abs(x))), -14) - 10);
  const rounded = x + 2 ** 52 * 1.5 * step - 2 ** 52 * 1.5 * step;
  return Math.abs(rounded) > 65504 ? Math.sign(x) * Infinity : rounded;
};

// wgpu asks for the class of the global object, and looks for WebGPU where a window or a worker has it.
const { create, globals } = await import(pathToFileURL(join(resolve(webgpu), "index.js")).href);
Object.assign(globalThis, globals);
const options = ["backend=vulkan", ...(adapter ? [`adapter=${adapter}`] : [])];
const gpu = create(options);
globalThis.Window = class { static [Symbol.hasInstance] = (value) => value === globalThis; };
Object.defineProperty(globalThis, "navigator", { value: { gpu }, configurable: true });
const found = await gpu.requestAdapter({ powerPreference: "high-performance" });
if (!found) throw new Error("Dawn finds no adapter");
console.log(`adapter: ${["vendor", "architecture", "device", "description"].map((key) => found.info[key]).filter(Boolean).join(" ")}`);
console.log(`features: ${[...found.features].sort().join(" ")}`);

const { checks } = await import("./checks.mjs");
const { Model } = await import("/latten/latten.js");
const variants = ["gqa", "gta", "gla", "mla"];

/** Tokens a second from the second on, as examples/generate tells of the same: greedy, weights and cache in f16. The best of five. */
async function rate(variant) {
  const model = await Model.load(`/models/${variant}`, { warmUp: true });
  const found = [];
  for (let round = 0; round < 5; round++) {
    const times = [];
    await model.generate("KING:\n", { maxNewTokens: 200 }, () => void times.push(performance.now()));
    found.push((199 * 1000) / (times.at(-1) - times[0]));
  }
  model.free();
  return `${Math.max(...found).toFixed(1)} tok/s of ${found.map((rate) => rate.toFixed(1)).join(", ")}`;
}

const all = { ...checks, ...Object.fromEntries(variants.map((v) => [`rate_${v}`, () => rate(v)])) };
const wanted = rest.length ? rest : ["vectors", "model", "rate"].flatMap((what) => variants.map((v) => `${what}_${v}`));
let failed = 0;
for (const name of wanted) {
  const start = performance.now();
  const took = () => `${((performance.now() - start) / 1000).toFixed(1)} s`;
  try {
    const said = await all[name]();
    console.log(`ok   ${name} (${took()}): ${said}`);
  } catch (error) {
    failed += 1;
    console.log(`FAIL ${name} (${took()}): ${error?.kind ?? ""} ${error?.stack ?? error}`);
  }
}
console.log(failed ? `${failed} failed` : "all passed");
process.exit(failed ? 1 : 0);
