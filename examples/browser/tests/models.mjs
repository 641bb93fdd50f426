// Models: their logits, their tokens, and what is left of them.
import { Device, Model } from "/latten/latten.js";
import { assert, json, refused, wasm } from "./common.mjs";

/** Differences of logits from PyTorch's, and from those of another driver. */
const bounds = { pytorch: 2e-3, native: 2e-4 };

/**
 * Logits and 200 greedy tokens. PyTorch's within what the native tests allow; those of a native run of the crate, after each
 * token of its text, within a tenth of that. The tokens are those of both, to the token.
 */
export async function model(variant) {
  const model = await Model.load(`/models/${variant}`, { kvDType: "f32" });
  const { prompts, greedy } = await json(`/vectors/logits_${variant}.json`);
  const pytorch = { worst: 0, compared: 0, bound: bounds.pytorch };
  for (const { tokens, positions, logits } of prompts) {
    compare(pytorch, await model.logits(Uint32Array.from(tokens)), tokens, positions, logits);
  }
  assert(pytorch.compared >= 10 * 256, `only ${pytorch.compared} logits`);

  const native = { worst: 0, compared: 0, bound: bounds.native };
  const own = await json(`/native/${variant}.json`);
  const text = [...own.prompt, ...own.tokens].slice(0, -1);
  compare(native, await model.logits(Uint32Array.from(text)), text, [...text.keys()], own.logits);
  assert(native.compared === (greedy.prompt.length + 199) * 256, `${native.compared} logits`);

  const rest = await greedyTokens(model, greedy, own);
  model.free();
  const said = ({ compared, worst }, whose) => `${compared} logits at most ${worst.toExponential(1)} from ${whose}`;
  return `${said(pytorch, "PyTorch's")}, ${said(native, "the native ones")}; ${rest}`;
}

/** `want` has the logits after some of the tokens, `got` those after each. */
function compare(sums, got, tokens, positions, want) {
  assert(got.length === tokens.length * 256 && want.length === positions.length, `${got.length} and ${want.length} logits`);
  positions.forEach((position, i) => {
    assert(want[i].length === 256, `${want[i].length} logits`);
    want[i].forEach((logit, token) => {
      const error = Math.abs(got[position * 256 + token] - logit);
      assert(error <= sums.bound, `logit ${token} at ${position} is off by ${error}`);
      sums.worst = Math.max(sums.worst, error);
      sums.compared += 1;
    });
  });
}

/** One submit and one readback for each token, and nothing made. */
async function greedyTokens(model, greedy, native) {
  assert(greedy.tokens.length === 200 && native.tokens.length === 200, "not 200 tokens");
  assert(`${native.prompt}` === `${greedy.prompt}`, "the native run had another prompt");
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
  assert(`${tokens}` === `${native.tokens}`, `tokens ${tokens}, the native run has ${native.tokens}`);
  assert(`${seen}` === `${greedy.tokens}`, "the callback saw other tokens");
  const held = greedy.prompt.length + 199;
  assert(stats.used === Math.ceil(held / stats.pageSize), `${stats.used} pages hold ${held} tokens`);
  // When a token is handed out the next step is under way, but for the last.
  const each = (name) => (after[name] - before[name]) / 197;
  const waits = `${each("readbacks")} readbacks, ${each("submits")} submits a token`;
  assert(waits === "1 readbacks, 1 submits a token", waits);
  assert(each("buffers") === 0 && each("pipelines") === 0 && each("bindGroups") <= 0.1, "a step made objects");
  assert(model.stats().used === 0, "the sequence is still there");
  return `200 tokens as both have, ${each("dispatches").toFixed(0)} dispatches, ${waits}, ${rate.toFixed(0)} a second`;
}

/** With a seed, the same text; with another, another; and the greedy one where no but the most probable token may be drawn. */
export async function seeds() {
  const model = await Model.load(new URL("/models/mla", location.href), { warmUp: true, chunk: 8 });
  const how = { maxNewTokens: 40, temperature: 0.8, topP: 0.95 };
  const text = async (options) => (await model.generate("KING:", { ...how, ...options })).text;
  const [a, b, c] = [await text({ seed: 7 }), await text({ seed: 7 }), await text({ seed: 8 })];
  const [narrow, greedy] = [await text({ seed: 7, topP: 1e-6 }), await text({ temperature: 0, topP: 1 })];
  model.free();
  assert(a === b && a !== c && a.length > 20, `${a}\n${b}\n${c}`);
  assert(narrow === greedy && greedy !== a, `${narrow}\n${greedy}`);
  return JSON.stringify(a);
}

/** Cuts, penalties, biases, log-probabilities and what ends a text: each by what it must do to a greedy text. */
export async function sampling() {
  const model = await Model.load("/models/gla", { chunk: 8 });
  const prompt = "ROMEO:\n";
  const make = (options, on) => model.generate(prompt, { maxNewTokens: 40, ...options }, on);
  const greedy = await make({});
  assert(greedy.finished === "length" && greedy.logprobs === undefined, `${greedy.finished}, ${greedy.logprobs}`);
  for (const cut of [{ topK: 1 }, { minP: 1 }, { typicalP: 1, topP: 1e-6 }]) {
    const { tokens } = await make({ temperature: 0.8, seed: 3, ...cut });
    assert(`${tokens}` === `${greedy.tokens}`, `${JSON.stringify(cut)}: ${tokens}`);
  }
  const some = await make({ temperature: 1.5, topK: 3, seed: 5, logprobs: 3 });
  some.tokens.forEach((token, i) =>
    assert(some.logprobs[i].mostLikely.some(([likely]) => likely === token), `token ${token} is not of the three`));
  // A bias forbids, another forces; a penalty leaves no token twice, within its window.
  const without = await make({ logitBias: { [greedy.tokens[0]]: -1000 } });
  assert(!without.tokens.includes(greedy.tokens[0]), `${without.tokens} have ${greedy.tokens[0]}`);
  const forced = await make({ logitBias: { 90: 1000 }, maxNewTokens: 5 });
  assert(forced.text === "ZZZZZ", forced.text);
  const once = await make({ presencePenalty: 100 });
  assert(new Set(once.tokens).size === 40 && new Set(greedy.tokens).size < 40, `${once.tokens}`);
  const windowed = await make({ frequencyPenalty: 100, penaltyWindow: 4 });
  windowed.tokens.forEach((token, i) =>
    assert(!windowed.tokens.subarray(Math.max(0, i - 4), i).includes(token), `${windowed.tokens}: ${i} is not new`));
  // By the logits themselves, prompt and answer fed again.
  const told = await make({ logprobs: 2, repetitionPenalty: 1.5, temperature: 0.7, seed: 2 });
  const fed = [...new TextEncoder().encode(prompt), ...told.tokens];
  const logits = await model.logits(Uint32Array.from(fed));
  let worst = 0;
  told.tokens.forEach((token, i) => {
    const row = logits.subarray((prompt.length - 1 + i) * 256, (prompt.length + i) * 256);
    const sum = Math.log(row.reduce((all, logit) => all + Math.exp(logit), 0));
    const { logprob, mostLikely } = told.logprobs[i];
    const best = [...row].sort((a, b) => b - a);
    const pairs = [[logprob, row[token]], [mostLikely[0][1], best[0]], [mostLikely[1][1], best[1]]];
    pairs.forEach(([found, logit]) => (worst = Math.max(worst, Math.abs(found - (logit - sum)))));
    assert(mostLikely.length === 2, `${mostLikely.length} of two`);
  });
  assert(worst < 2e-3, `a log-probability is off by ${worst}`);
  // What ends it: a text across tokens is in no part that comes; a token; a callback.
  const word = greedy.text.slice(9, 13);
  let parts = "";
  const stopped = await make({ stop: ["no such text", word] }, (part) => void (parts += part));
  assert(stopped.finished === "stop" && stopped.text === greedy.text.slice(0, greedy.text.indexOf(word)), stopped.text);
  assert(parts === stopped.text && stopped.tokens.length === greedy.text.indexOf(word) + 4, parts);
  parts = "";
  const half = await make({ stop: `${greedy.text.slice(36, 40)}!` }, (part) => void (parts += part));
  assert(half.finished === "length" && half.text === greedy.text && parts === greedy.text, `${half.text} ${parts}`);
  const at = greedy.tokens[5];
  const token = await make({ stopTokens: [at] });
  assert(token.finished === "stop" && token.tokens.length === greedy.tokens.indexOf(at) + 1, `${token.tokens}`);
  assert(token.text === greedy.text.slice(0, greedy.tokens.indexOf(at)), token.text);
  const left = await make({ stop: `${greedy.text.slice(0, 3)}!` }, () => false);
  assert(left.finished === "callback" && left.text === greedy.text.slice(0, left.tokens.length), left.text);
  const bad = [
    { topK: -1 }, { minP: 2 }, { typicalP: -1 }, { repetitionPenalty: 0 }, { presencePenalty: 101 }, { penaltyWindow: 0.5 },
    { logitBias: [1] }, { logitBias: { a: 1 } }, { logitBias: { 256: 1 } }, { logitBias: { 1: 1001 } }, { logitBias: { 1: "a" } },
    { logprobs: 21 }, { stop: "" }, { stop: [1] }, { stop: 1 }, { stopTokens: [256] }, { stopTokens: [1.5] }, { stopTokens: 1 },
  ];
  for (const options of bad) await refused("Argument", () => make(options));
  assert(`${(await make({})).tokens}` === `${greedy.tokens}`, "another text after all that");
  model.free();
  return `log-probabilities to ${worst.toExponential(1)}, ${bad.length} kinds of bad options refused`;
}

/** A model as well: loaded and freed, its weights go, and a device that was made for it. */
export async function modelFreed() {
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
  const own = await Model.load("/models/gla");
  const { device: left } = own;
  own.free();
  const heads = { variant: "gqa", qHeads: 2, kvHeads: 1, headDim: 8 };
  await refused("DeviceLost", () => left.measure(heads, "f16", { tokens: 1, milliseconds: 1 }));
  return `${marks[11] >> 16} pages of WebAssembly after 4 models and after 12`;
}
