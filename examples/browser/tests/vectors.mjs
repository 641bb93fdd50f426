// The oracle's kernel vectors through KvCache and Decode, against the vectors and a reference of its own in f64.
import { Decode, KvCache } from "/latten/latten.js";

const flat = (nested) => nested.flat(Infinity);

/** Rounds as a cache of that dtype holds a value. */
function rounded(dtype, value) {
  if (dtype === "f32") return Math.fround(value);
  if (dtype === "f16") return Math.f16round(Math.fround(value));
  // bf16: the upper half of an f32, to nearest even.
  const bits = new Uint32Array(new Float32Array([value]).buffer)[0];
  const up = 0x7fff + ((bits >>> 16) & 1);
  return new Float32Array(new Uint32Array([(bits + up) & 0xffff0000]).buffer)[0];
}

/** Causal attention, aligned to the end, as plain loops. */
function reference({ layout: l, q, rows, qLen, kvLen, qHeads, scale }) {
  const width = l.groups * l.state + l.rope;
  const out = [];
  const lse = [];
  for (let token = 0; token < qLen; token++) {
    for (let head = 0; head < qHeads; head++) {
      const group = Math.floor(head / (qHeads / l.groups));
      const query = q.slice((token * qHeads + head) * (l.nope + l.rope)).slice(0, l.nope + l.rope);
      const scores = [];
      for (let t = 0; t <= kvLen - qLen + token; t++) {
        const row = rows.slice(t * width, (t + 1) * width);
        const key = [...row.slice(group * l.state).slice(0, l.nope), ...row.slice(l.groups * l.state)];
        scores.push(scale * query.reduce((sum, x, i) => sum + x * key[i], 0));
      }
      const most = Math.max(...scores, -Infinity);
      const weights = scores.map((s) => Math.exp(s - most));
      const total = weights.reduce((a, b) => a + b, 0);
      for (let v = 0; v < l.v; v++) {
        const at = (t) => rows[t * width + group * l.state + l.v_offset + v];
        out.push(total > 0 ? weights.reduce((sum, w, t) => sum + w * at(t), 0) / total : 0);
      }
      lse.push(total > 0 ? most + Math.log(total) : -Infinity);
    }
  }
  return { out, lse };
}

/** Where results must be: NaN and infinities in their places, then largest and mean square error. */
function compare(what, got, want, bounds) {
  if (got.length !== want.length) throw new Error(`${what}: ${got.length} values, wanted ${want.length}`);
  let [error, size, worst] = [0, 0, 0];
  for (let i = 0; i < want.length; i++) {
    if (!Number.isFinite(want[i]) || !Number.isFinite(got[i])) {
      if (got[i] !== want[i]) throw new Error(`${what}: element ${i} is ${got[i]}, wanted ${want[i]}`);
      continue;
    }
    const d = got[i] - want[i];
    [error, size, worst] = [error + d * d, size + want[i] * want[i], Math.max(worst, Math.abs(d))];
  }
  const nmse = size > 0 ? error / size : error;
  if (!(nmse <= bounds.nmse && worst <= bounds.absolute)) {
    throw new Error(`${what}: NMSE ${nmse}, largest error ${worst}; at most ${bounds.nmse} and ${bounds.absolute}`);
  }
  return worst;
}

/** The layout in the bindings' words. */
function layoutOf(variant, l, qHeads) {
  switch (variant) {
    case "gqa": return { variant, qHeads, kvHeads: l.groups, headDim: l.v };
    case "gta": return { variant, qHeads, kvHeads: l.groups, headDim: l.v, ropeDim: l.rope };
    case "gla": return { variant, qHeads, latentHeads: l.groups, latentDim: l.v, ropeDim: l.rope };
    default: return { variant, qHeads, latentDim: l.v, ropeDim: l.rope };
  }
}

/** Runs a vector in a cache with scattered pages; returns {out, lse}. */
async function run(device, c, dtype, { pageSize, splitTokens }) {
  const width = c.layout.groups * c.layout.state + c.layout.rope;
  const cache = new KvCache(device, c.heads, dtype, { pages: 2 * Math.ceil(c.kvLen / pageSize) + 4, pageSize });
  const decode = new Decode(device, c.heads, dtype, splitTokens ? { splitTokens } : undefined);
  const [neighbour, sequence] = [cache.insert(), cache.insert()];
  const rows = Float32Array.from(c.rows);
  const past = c.kvLen - c.seeing;
  for (let first = 0; first < past; first += pageSize) {
    const count = Math.min(pageSize, past - first);
    const own = rows.subarray(first * width, (first + count) * width);
    cache.reserve([neighbour, sequence], count);
    // Seen by mistake, a neighbour's rows would not go unnoticed.
    cache.append(0, [neighbour, sequence], Float32Array.of(...new Float32Array(own.length).fill(6e4), ...own));
    cache.commit([neighbour, sequence], count);
  }
  cache.reserve([sequence], c.seeing);
  cache.append(0, [sequence], rows.subarray(past * width));
  const blind = c.qLen - c.seeing;
  const qDim = c.layout.nope + c.layout.rope;
  const q = Float32Array.from(c.q.slice(blind * c.qHeads * qDim));
  const result = await decode.run(cache, 0, [sequence], q, c.scale);
  const before = (n, value) => [...new Float32Array(n).fill(value)];
  const got = {
    out: [...before(blind * c.qHeads * c.layout.v, 0), ...result.out],
    lse: [...before(blind * c.qHeads, -Infinity), ...result.lse],
  };
  cache.free();
  decode.free();
  return got;
}

/** One vector in some float dtypes, whole and split. Returns what was compared, in words. */
export async function vector(device, name, dtypes) {
  const v = await (await fetch(`/vectors/${name}`)).json();
  const l = v.layout;
  const [qLen, kvLen, qHeads] = [v.q.length, v.states.length, v.q[0].length];
  const exact = v.states.flatMap((state, t) => [...flat(state), ...v.rope_keys[t]]);
  // Query tokens without a token to see cannot be asked of a cache: theirs are zeros and -inf by contract.
  const seeing = Math.min(qLen, kvLen);
  const c = { layout: l, q: flat(v.q), qLen, kvLen, qHeads, scale: Math.fround(v.softmax_scale), seeing };
  c.heads = layoutOf(v.variant, l, qHeads);
  let [worst, runs] = [0, 0];
  for (const dtype of dtypes) {
    c.rows = exact.map((x) => rounded(dtype, x));
    if (!c.rows.every(Number.isFinite) || !c.q.every((x) => Number.isFinite(Math.fround(x)))) continue;
    const held = c.q.every((x) => Math.fround(x) === x) && c.rows.every((x, i) => x === exact[i]);
    const inputs = { ...c, q: c.q.map(Math.fround) };
    const given = { out: flat(v.out), lse: flat(v.lse).map((x) => x ?? -Infinity) };
    const want = held ? given : reference(inputs);
    const rms = Math.sqrt(want.out.reduce((s, x) => s + x * x, 0) / Math.max(want.out.length, 1));
    for (const how of [{ pageSize: 4 }, { pageSize: 4, splitTokens: 1 }]) {
      if (c.seeing === 0) continue;
      const got = await run(device, c, dtype, how);
      const what = `${name}, ${dtype}, ${how.splitTokens ? "split" : "whole"}`;
      const bounds = { nmse: dtype === "f32" ? 1e-10 : 1e-9, absolute: 2e-5 * Math.max(rms, 1) };
      worst = Math.max(worst, compare(`${what}, out`, got.out, want.out, bounds));
      compare(`${what}, lse`, got.lse, want.lse, { nmse: Infinity, absolute: 1e-5 });
      runs += 1;
    }
  }
  return { runs, worst };
}
