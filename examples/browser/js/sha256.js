// SHA-256 (FIPS 180-4) of bytes that come in parts: the browser's own takes a whole file at once.

const first = (count) => {
  const found = [];
  for (let n = 2; found.length < count; n++) if (found.every((prime) => n % prime)) found.push(n);
  return found;
};
/** The first 32 bits of the fraction of a root. */
const fraction = (root) => Math.floor((root - Math.floor(root)) * 2 ** 32);
const rounds = Uint32Array.from(first(64), (prime) => fraction(Math.cbrt(prime)));
const start = Uint32Array.from(first(8), (prime) => fraction(Math.sqrt(prime)));

export class Sha256 {
  #state = start.slice();
  #words = new Uint32Array(64);
  #rest = new Uint8Array(64);
  #bytes = 0;

  push(bytes) {
    let at = 0;
    const held = this.#bytes % 64;
    this.#bytes += bytes.length;
    if (held > 0) {
      at = Math.min(64 - held, bytes.length);
      this.#rest.set(bytes.subarray(0, at), held);
      if (held + at < 64) return;
      this.#block(this.#rest, 0);
    }
    for (; at + 64 <= bytes.length; at += 64) this.#block(bytes, at);
    this.#rest.set(bytes.subarray(at));
  }

  #block(bytes, at) {
    const [w, s] = [this.#words, this.#state];
    for (let i = 0; i < 16; i++, at += 4) w[i] = (bytes[at] << 24) | (bytes[at + 1] << 16) | (bytes[at + 2] << 8) | bytes[at + 3];
    for (let i = 16; i < 64; i++) {
      const [x, y] = [w[i - 15], w[i - 2]];
      const low = ((x >>> 7) | (x << 25)) ^ ((x >>> 18) | (x << 14)) ^ (x >>> 3);
      const high = ((y >>> 17) | (y << 15)) ^ ((y >>> 19) | (y << 13)) ^ (y >>> 10);
      w[i] = w[i - 16] + low + w[i - 7] + high;
    }
    let [a, b, c, d, e, f, g, h] = s;
    for (let i = 0; i < 64; i++) {
      const one = ((e >>> 6) | (e << 26)) ^ ((e >>> 11) | (e << 21)) ^ ((e >>> 25) | (e << 7));
      const t = (h + one + ((e & f) ^ (~e & g)) + rounds[i] + w[i]) | 0;
      const zero = ((a >>> 2) | (a << 30)) ^ ((a >>> 13) | (a << 19)) ^ ((a >>> 22) | (a << 10));
      const u = (zero + ((a & b) ^ (a & c) ^ (b & c))) | 0;
      [h, g, f, e, d, c, b, a] = [g, f, e, (d + t) | 0, c, b, a, (t + u) | 0];
    }
    [a, b, c, d, e, f, g, h].forEach((value, i) => (s[i] += value));
  }

  /** In hexadecimal. */
  finish() {
    const bits = this.#bytes * 8;
    const end = new Uint8Array((this.#bytes % 64 < 56 ? 64 : 128) - (this.#bytes % 64));
    end[0] = 0x80;
    new DataView(end.buffer).setBigUint64(end.length - 8, BigInt(bits));
    this.push(end);
    return [...this.#state].map((word) => word.toString(16).padStart(8, "0")).join("");
  }
}
