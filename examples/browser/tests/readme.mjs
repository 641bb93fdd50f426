// The programs that the documents show, and the package's declarations: TypeScript accepts them as they stand, and they run.
import { execFileSync } from "node:child_process";
import { mkdir, mkdtemp, readFile, readdir, rm, symlink, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const declared = fileURLToPath(new URL("types.ts", import.meta.url));

/** All blocks of JavaScript and TypeScript in the repository's Markdown, as [name, code]. */
async function blocks(root) {
  const skipped = /^(target|node_modules|\..*)$/;
  const found = [];
  const look = async (folder) => {
    for (const entry of await readdir(join(root, folder), { withFileTypes: true })) {
      const path = join(folder, entry.name);
      if (entry.isDirectory() && !skipped.test(entry.name)) await look(path);
      if (!entry.name.endsWith(".md")) continue;
      const text = await readFile(join(root, path), "utf8");
      for (const block of text.matchAll(/^```(?:js|mjs|javascript|ts|typescript)\b.*\n([^]*?)^```/gm)) {
        const line = text.slice(0, block.index).split("\n").length;
        found.push([`${path.replaceAll(/\W/g, "_")}_line_${line}`, block[1]]);
      }
    }
  };
  await look("");
  // One of README.md, two of the package's README.md.
  if (found.length < 3) throw new Error(`only ${found.length} blocks: ${found.map(([name]) => name)}`);
  return found;
}

/** The declarations, for a program that uses them and for those of the documents. */
export async function types(root, built) {
  // What may be `undefined` may be left out, unless something behind it may not.
  const declarations = await readFile(join(built, "site/latten/latten.d.ts"), "utf8");
  const wanted = declarations.match(/^.*\w: [^,()]*\| (?:undefined|null)\).*$/gm);
  if (wanted) throw new Error(`an argument with a default must be given: ${wanted}`);
  const folder = await mkdtemp(join(tmpdir(), "latten-types-"));
  try {
    await mkdir(join(folder, "node_modules"));
    await symlink(join(built, "site/latten"), join(folder, "node_modules/latten"));
    await symlink(declared, join(folder, "types.ts"));
    const shown = await blocks(root);
    for (const [name, code] of shown) await writeFile(join(folder, `${name}.ts`), code);
    const options = ["--noEmit", "--strict", "--target", "esnext", "--module", "esnext", "--moduleResolution", "bundler",
      "--preserveSymlinks"];
    const files = ["types", ...shown.map(([name]) => name)].map((name) => join(folder, `${name}.ts`));
    execFileSync("node", [join(built, "npm/node_modules/typescript/bin/tsc"), ...options, ...files], { encoding: "utf8" });
    return `types.ts and ${shown.length} blocks of documents compile, and what must not does not`;
  } catch (error) {
    throw new Error(error.stdout || error.message);
  } finally {
    await rm(folder, { recursive: true });
  }
}

/** Runs the blocks, each on a page of its own, without those that write with a model: the page itself does that. */
export async function readme(root, context, origin) {
  const run = (await blocks(root)).filter(([, code]) => !/Model(Worker)?\.load/.test(code));
  if (run.length === 0) throw new Error("no block to run");
  const page = await context.newPage();
  await page.route(`${origin}/shown.html`, (route) => route.fulfill({ contentType: "text/html", body: "<!doctype html>" }));
  for (const [name, code] of run) {
    await page.goto(`${origin}/shown.html`);
    const wrong = await page.evaluate(async (code) => {
      const module = new Blob([code.replaceAll(/"latten(\/\w+)?"/g, (_, part) => `"${location.origin}/latten${part ?? "/latten"}.js"`)], { type: "text/javascript" });
      try {
        await import(URL.createObjectURL(module));
        return null;
      } catch (error) {
        return `${error?.stack ?? error}`;
      }
    }, code);
    if (wrong) throw new Error(`${name}: ${wrong}`);
  }
  await page.close();
  return `${run.map(([name]) => name)} runs`;
}
