// ModelStore: models in the origin's private file system. They stay until they are deleted, or the browser needs the room.
import { Calls } from "./calls.js";
import { noted, notes, part } from "./download.js";
import { argument, known, lattenError } from "./error.js";
import { ModelWorker } from "./worker.js";

/** A name, not a path. */
function name(value, what = "name") {
  const good = typeof value === "string" && /^[^/\\\p{Cc}]{1,200}$/u.test(value) && value !== "." && value !== "..";
  if (!good) throw argument(what, `${JSON.stringify(value)} is no name of a file: 1 to 200 characters, no slashes`);
  return value;
}

async function entries(folder) {
  const found = [];
  for await (const entry of folder.values()) found.push(entry);
  return found;
}

/** Null where there is none. */
const maybe = (promise) => promise.catch((error) => {
  if (error.name === "NotFoundError") return null;
  throw error;
});

export class ModelStore {
  #folder;

  constructor(folder) {
    this.#folder = folder;
  }

  static async open(folder = "latten") {
    if (!navigator.storage?.getDirectory) throw lattenError("Unsupported", "this browser has no private file system here");
    const root = await navigator.storage.getDirectory();
    return new ModelStore(await root.getDirectoryHandle(name(folder, "folder"), { create: true }));
  }

  async download(model, source, options = {}) {
    known(options, ["files", "bytes", "sha256", "signal", "onProgress"]);
    const { files = ["config.json", "model.safetensors"], bytes = {}, sha256 = {}, signal, onProgress } = options;
    name(model);
    if (!Array.isArray(files) || files.length === 0) throw argument("options.files", "is no list of names");
    for (const file of files) {
      if (name(file, "options.files") === notes || file.endsWith(part)) throw argument("options.files", `${file} is a name of the store's own`);
    }
    for (const [what, of] of [["bytes", bytes], ["sha256", sha256]]) {
      for (const file of Object.keys(of)) if (!files.includes(file)) throw argument(`options.${what}`, `${file} is none of the files`);
    }
    signal?.throwIfAborted();
    const base = new URL(`${String(source).replace(/\/$/, "")}/`, globalThis.document?.baseURI ?? location.href).href;
    const folder = await this.#folder.getDirectoryHandle(model, { create: true });
    const calls = new Calls();
    const aborted = () => calls.end(signal.reason);
    signal?.addEventListener("abort", aborted, { once: true });
    try {
      const all = files.map((file) => ({ file, address: new URL(encodeURIComponent(file), base).href, bytes: bytes[file], sha256: sha256[file] }));
      await calls.ask("download", { folder, base, files: all }, { onProgress });
    } finally {
      signal?.removeEventListener("abort", aborted);
      calls.end(lattenError("Closed", "the download has ended"));
    }
    return this.#look(folder);
  }

  async #look(folder) {
    const state = await noted(folder);
    const files = {};
    for (const entry of await entries(folder)) {
      const file = entry.kind === "file" && entry.name !== notes ? await maybe(entry.getFile()) : null;
      if (file) files[entry.name.replace(/\.part$/, "")] = file.size;
    }
    const bytes = Object.values(files).reduce((a, b) => a + b, 0);
    return { name: folder.name, complete: state?.complete === true, url: state?.url, bytes, files };
  }

  async list() {
    const folders = (await entries(this.#folder)).filter(({ kind }) => kind === "directory");
    return Promise.all(folders.map((folder) => this.#look(folder)));
  }

  async files(model) {
    const folder = await maybe(this.#folder.getDirectoryHandle(name(model)));
    const found = folder && (await this.#look(folder));
    if (!found?.complete) {
      const why = found ? "is not complete: download it again, which goes on where it ended" : "is not in the store";
      throw lattenError("Io", `${model}: ${why}`, { path: model });
    }
    const file = async (name) => (await folder.getFileHandle(name)).getFile();
    return Object.fromEntries(await Promise.all(Object.keys(found.files).map(async (name) => [name, await file(name)])));
  }

  async load(model, options) {
    const files = await this.files(model);
    return ModelWorker.load({ config: files["config.json"], weights: files["model.safetensors"] }, options);
  }

  async delete(model) {
    try {
      await this.#folder.removeEntry(name(model), { recursive: true });
      return true;
    } catch (error) {
      if (error.name === "NotFoundError") return false;
      if (error.name === "NoModificationAllowedError") throw lattenError("Busy", `${model} is being downloaded`);
      throw error;
    }
  }
}
