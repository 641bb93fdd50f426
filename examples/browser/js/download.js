// Files into the private file system, in a worker: there a file is written in place, and what came before an interruption stays.
import { lattenError } from "./error.js";
import { Sha256 } from "./sha256.js";

/** In a model's folder: where it is from, what it is to be, and whether all is there. */
export const notes = "latten.json";
export const part = ".part";
/** Bytes that are read back at once. */
const block = 1 << 22;

const io = (path, why) => lattenError("Io", `${path}: ${why}`, { path });
const damaged = (path, why) => lattenError("Damaged", `${path}: ${why}`, { path });
/** Files do not change under the same one. */
const versionOf = (answer) => answer.headers.get("etag") ?? answer.headers.get("last-modified");

/** All files of a model. `told` hears of {file, bytes, totalBytes}. What is there already is not asked for again. */
export async function download({ folder, base, files }, told) {
  let state = await noted(folder);
  if (state?.url !== base) {
    for await (const name of folder.keys()) await folder.removeEntry(name);
    state = { url: base, complete: false, files: {} };
  }
  const save = async () => {
    const file = await opened(await folder.getFileHandle(notes, { create: true }));
    try {
      file.truncate(0);
      await fill(file, new TextEncoder().encode(JSON.stringify(state)), 0, notes);
    } finally {
      file.close();
    }
  };
  for (const wanted of files) {
    const known = state.files[wanted.file];
    if (known?.done && fits(known, wanted)) continue;
    state.complete = false;
    let before = 0;
    const report = (bytes, totalBytes) => {
      const now = performance.now();
      if (now - before < 50 && bytes !== totalBytes) return;
      before = now;
      told({ file: wanted.file, bytes, totalBytes });
    };
    const seen = async (version, bytes) => {
      state.files[wanted.file] = { version, bytes, done: false };
      await save();
    };
    const bytes = await one(folder, wanted, known?.done ? null : known, seen, report);
    state.files[wanted.file] = { ...state.files[wanted.file], bytes, sha256: wanted.sha256, done: true };
    await save();
  }
  if (!state.complete) {
    state.complete = true;
    await save();
  }
}

const fits = (known, { bytes, sha256 }) => (bytes ?? known.bytes) === known.bytes && (sha256 ?? known.sha256) === known.sha256;

/** What was noted of a folder, or null. */
export async function noted(folder) {
  try {
    return JSON.parse(await (await (await folder.getFileHandle(notes)).getFile()).text());
  } catch {
    return null; // none, or one that was not written to its end
  }
}

async function opened(handle) {
  try {
    return await handle.createSyncAccessHandle();
  } catch (error) {
    if (error.name !== "NoModificationAllowedError") throw error;
    throw lattenError("Busy", `${handle.name} is being downloaded by another call`);
  }
}

/** Writes, or says how much room there is. */
async function fill(file, bytes, at, path) {
  try {
    for (let written = 0; written < bytes.length; ) {
      const now = file.write(bytes.subarray(written), { at: at + written });
      if (!(now > 0)) throw new DOMException("nothing more was written", "QuotaExceededError");
      written += now;
    }
  } catch (error) {
    if (error.name !== "QuotaExceededError") throw error;
    throw await full(path, bytes.length);
  }
}

async function full(path, neededBytes) {
  const { usage: usedBytes, quota: quotaBytes } = await navigator.storage.estimate();
  const message = `${path}: no room for ${neededBytes} bytes more, this origin uses ${usedBytes} of ${quotaBytes}`;
  return lattenError("Quota", message, { path, neededBytes, usedBytes, quotaBytes });
}

/** From a byte on. With a range, what comes is not compressed on its way, so that its length is the file's. */
const asked = (address, begin) => fetch(address, { headers: { range: `bytes=${begin}-` } }).catch((error) => {
  throw io(address, error.message);
});

/** One file; of what is there of it, if it is of the same version, no byte is asked for again. */
async function one(folder, { file, address, bytes, sha256 }, known, seen, report) {
  const handle = await folder.getFileHandle(`${file}${part}`, { create: true });
  const there = await opened(handle);
  try {
    const { answer, begin } = await rest(address, known?.version ? there.getSize() : 0, known?.version);
    there.truncate(begin);
    const length = answer.headers.get("content-length");
    const total = length === null ? bytes : begin + Number(length);
    try {
      if (bytes !== undefined && total !== bytes) throw damaged(address, `${total} bytes, ${bytes} are wanted`);
      await seen(versionOf(answer), total);
      const { usage, quota } = await navigator.storage.estimate();
      if (total - begin > quota - usage) throw await full(file, total - begin);
    } catch (error) {
      await answer.body?.cancel();
      throw error;
    }
    const size = await body(answer, there, begin, file, (now) => report(now, total));
    if (total !== undefined && size !== total) throw io(address, `it ended after ${size} of ${total} bytes`);
    if (sha256 !== undefined) check(there, sha256, address);
    there.flush();
    there.close();
    await handle.move(file);
    return size;
  } finally {
    there.close(); // a second time changes nothing
  }
}

/** The answer from what is there on, or from the first byte where that is of another version, or the server knows no ranges. */
async function rest(address, begin, version) {
  const answer = await asked(address, begin);
  if (answer.status === 206 && begin > 0 && versionOf(answer) !== version) {
    await answer.body?.cancel();
    return rest(address, 0);
  }
  if (answer.status === 206) return { answer, begin };
  if (answer.status === 200) return { answer, begin: 0 };
  await answer.body?.cancel();
  // What is there is all, or more than all: whoever wants to know asks again.
  if (answer.status === 416 && begin > 0) return rest(address, 0);
  throw io(address, `the server answers with status ${answer.status}`);
}

/** Writes what comes; what was written before it breaks off stays. Returns where it ended. */
async function body(answer, there, begin, file, report) {
  let at = begin;
  const reader = answer.body.getReader();
  try {
    for (;;) {
      const { done, value } = await reader.read().catch((error) => {
        throw io(answer.url, `it broke off after ${at} bytes, and goes on there when it is asked for again: ${error.message}`);
      });
      if (done) break;
      await fill(there, value, at, file);
      at += value.length;
      report(at);
    }
  } finally {
    there.flush();
    reader.cancel().catch(() => {});
  }
  report(at);
  return at;
}

function check(there, sha256, address) {
  const [hash, held] = [new Sha256(), new Uint8Array(block)];
  for (let at = 0; at < there.getSize(); ) {
    const read = there.read(held, { at });
    hash.push(held.subarray(0, read));
    at += read;
  }
  const found = hash.finish();
  if (found === sha256.toLowerCase()) return;
  there.truncate(0); // it is not what it should be: no byte of it
  throw damaged(address, `its SHA-256 is ${found}, ${sha256} is wanted`);
}
