// What the same crate gives natively, on whatever adapter it takes here: what the browser's results are compared with.
import { execFile } from "node:child_process";
import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { promisify } from "node:util";

const run = promisify(execFile);

/** tools/src/logits.rs; weights and cache as in the browser's check. */
async function logits(root, variant, tokens, ...rest) {
  const cargo = ["run", "--quiet", "--locked", "--release", "-p", "latten-tools", "--", "logits"];
  const what = [`examples/models/${variant}`, `${tokens}`, "--dtype", "f16", "--kv-dtype", "f32", ...rest];
  const { stdout } = await run("cargo", [...cargo, ...what], { cwd: root, maxBuffer: 1 << 28 });
  return JSON.parse(stdout);
}

/** Writes FOLDER/VARIANT.json: a prompt, the 200 greedy tokens after it, and the logits after each token of both but the last. */
export async function native(root, folder, variant) {
  const vectors = join(root, `tests/vectors/logits_${variant}.json`);
  const { prompt } = JSON.parse(await readFile(vectors, "utf8")).greedy;
  const tokens = await logits(root, variant, prompt, "--greedy", "200");
  const after = await logits(root, variant, [...prompt, ...tokens.slice(0, -1)], "--all");
  await mkdir(folder, { recursive: true });
  await writeFile(join(folder, `${variant}.json`), JSON.stringify({ prompt, tokens, logits: after }));
}
