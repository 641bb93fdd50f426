// What a KvCache does by itself: rotation, and prefixes that are shared.
import { Decode, Device, KvCache } from "/latten/latten.js";
import { assert, refused } from "./common.mjs";

/** `x` rotated to a position in f64, as numbers of JavaScript. */
function rotated(x, position, theta, pairs) {
  const [y, half] = [[...x], x.length / 2];
  for (let i = 0; i < half; i++) {
    // The angle is a product in f32, as in training.
    const angle = Math.fround(Math.fround(theta ** (-i / half)) * position);
    const [a, b] = pairs === "half" ? [i, i + half] : [2 * i, 2 * i + 1];
    [y[a], y[b]] = [x[a] * Math.cos(angle) - x[b] * Math.sin(angle), x[a] * Math.sin(angle) + x[b] * Math.cos(angle)];
  }
  return y;
}

const layouts = {
  // [layout, elements of a row that are rotated: their first and count in each run of so many, those of a query]
  gqa: [{ variant: "gqa", qHeads: 4, kvHeads: 2, headDim: 16 }, 64, [[0, 16], [32, 16]], 16, 0],
  gla: [{ variant: "gla", qHeads: 4, latentHeads: 2, latentDim: 16, ropeDim: 8 }, 40, [[32, 8]], 24, 16],
};

/** A cache that rotates gives what one gives whose rows and queries come rotated. */
export async function cacheRotates() {
  const device = await Device.request();
  let worst = 0;
  for (const [heads, width, keys, qDim, copied] of Object.values(layouts)) {
    const decode = new Decode(device, heads, "f32");
    for (const rope of [{}, { theta: 500, pairs: "interleaved" }]) {
      const [theta, pairs] = [rope.theta ?? 1e4, rope.pairs ?? "half"];
      const rows = [...new Array(37)].map((_, t) => [...new Array(width)].map((_, i) => Math.sin(1 + t * 7.3 + i * 1.7)));
      const query = [...new Array(4 * qDim)].map((_, i) => Math.cos(i * 2.3));
      const run = async (options, own) => {
        const cache = new KvCache(device, heads, "f32", { pages: 8, pageSize: 8, ...options });
        const sequence = cache.insert();
        const turn = (row, t) => keys.reduce((all, [first, count]) =>
          all.toSpliced(first, count, ...rotated(all.slice(first, first + count), t, theta, pairs)), row);
        const given = Float32Array.from(rows.flatMap((row, t) => (own ? turn(row, t) : row)));
        for (const [first, end] of [[0, 20], [20, 36], [36, 37]]) {
          cache.reserve([sequence], end - first);
          cache.append(0, [sequence], given.subarray(first * width, end * width));
          if (end < 37) cache.commit([sequence], end - first);
        }
        const q = query.map((_, i) => query.slice(i, i + qDim)).filter((_, i) => i % qDim === 0)
          .flatMap((head) => (own ? [...head.slice(0, copied), ...rotated(head.slice(copied), 36, theta, pairs)] : head));
        const { out } = await decode.run(cache, 0, [sequence], Float32Array.from(q), 0.2);
        cache.free();
        return out;
      };
      const [want, got, plain] = [await run({}, true), await run({ rope }, false), await run({}, false)];
      const error = (other) => Math.max(...want.map((value, i) => Math.abs(value - other[i])));
      assert(error(got) < 5e-6 && error(plain) > 1e-2, `${heads.variant}: off by ${error(got)}, unrotated by ${error(plain)}`);
      worst = Math.max(worst, error(got));
    }
  }
  const [heads] = layouts.gla;
  for (const rope of [{ theta: 0 }, { theta: "a" }, { pairs: "none" }, { dim: 3 }, 7]) {
    await refused("Argument", () => new KvCache(device, heads, "f32", { pages: 1, rope }));
  }
  device.destroy();
  return `at most ${worst.toExponential(1)} off`;
}

/** Equal beginnings are held once, found by their tokens and salt, and give the same as rows of one's own. */
export async function cacheShares() {
  const device = await Device.request();
  const [heads, width] = layouts.gla;
  const cache = new KvCache(device, heads, "f32", { pages: 12, pageSize: 8, rope: {} });
  const decode = new Decode(device, heads, "f32");
  const tokens = Uint32Array.from({ length: 30 }, (_, i) => (i * i) % 251);
  const rows = Float32Array.from({ length: 31 * width }, (_, i) => Math.sin(i));
  const q = new Float32Array(4 * 24).map((_, i) => Math.cos(i));
  const fill = (salt, all = tokens) => {
    const sequence = cache.matchPrefix(all, salt);
    const known = cache.lengthOf(sequence);
    cache.reserve([sequence], all.length - known);
    cache.append(0, [sequence], rows.subarray(known * width, all.length * width));
    cache.commitTokens(sequence, all.subarray(known));
    return { sequence, known };
  };
  const out = async ({ sequence }) => {
    cache.reserve([sequence], 1);
    cache.append(0, [sequence], rows.subarray(30 * width));
    const { out } = await decode.run(cache, 0, [sequence], q, 0.2);
    cache.commit([sequence], 0);
    return `${out}`;
  };
  const [first, second, other] = [fill(), fill(), fill(7)];
  assert(first.known === 0 && second.known === 24 && other.known === 0, `${first.known}, ${second.known}, ${other.known}`);
  assert(cache.stats().shared === 3 && cache.stats().used === 4 + 1 + 4, JSON.stringify(cache.stats()));
  const want = await out(first);
  assert((await out(second)) === want && (await out(other)) === want, "another result of shared pages");
  // What nobody holds is kept, until it is dropped.
  [first, second].forEach(({ sequence }) => cache.remove(sequence));
  assert(cache.stats().evictable === 3, JSON.stringify(cache.stats()));
  const third = fill();
  assert(third.known === 24 && (await out(third)) === want, `${third.known}`);
  cache.remove(third.sequence);
  cache.dropKept();
  const fourth = cache.matchPrefix(tokens);
  assert(cache.lengthOf(fourth) === 0 && cache.stats().evictable === 0, JSON.stringify(cache.stats()));
  await refused("UnknownSequence", () => cache.commitTokens(third.sequence, tokens));
  await refused("Argument", () => cache.commitTokens(fourth, tokens));
  device.destroy();
  return `24 of 30 tokens shared`;
}
