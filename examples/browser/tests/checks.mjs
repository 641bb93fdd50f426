// What is tested inside the browser. Each function gets nothing, throws what is wrong and returns what it found, in words.
import { Device, kernelVariants } from "/latten/latten.js";
import { cacheRotates, cacheShares } from "./caches.mjs";
import { assert, json, variants } from "./common.mjs";
import { cacheFreed, defaultLimits, measured } from "./devices.mjs";
import { badInput, deviceLost, lateErrors } from "./errors.mjs";
import { model, modelFreed, sampling, seeds } from "./models.mjs";
import { vector } from "./vectors.mjs";
import { worker, workerErrors, workerFrames, workerLarge } from "./workers.mjs";

const names = (await json("/vectors/names.json")).filter((name) => name.startsWith("kernel_"));

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
      const head = what === "subgroup" && /decode_(rows|squads)/.test(name) ? voted : enable;
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

export const checks = {
  ...Object.fromEntries(variants.map((v) => [`vectors_${v}`, () => vectors(v)])),
  ...Object.fromEntries(variants.map((v) => [`model_${v}`, () => model(v)])),
  sampling,
  seeds,
  measured,
  badInput,
  lateErrors,
  deviceLost,
  defaultLimits,
  cacheFreed,
  cacheRotates,
  cacheShares,
  modelFreed,
  tint,
  worker,
  workerErrors,
  workerLarge,
};

/** What takes long, and runs where it is asked for by name alone. */
export const onRequest = {
  workerFrames,
};
