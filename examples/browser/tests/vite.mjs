// The packed package in a fresh project of Vite and TypeScript: installed by npm, checked by tsc, built, and looked at, as built and as the
// development server gives it.
import { execFile, spawn } from "node:child_process";
import { cp, mkdtemp, readFile, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { serve } from "./serve.mjs";

const run = promisify(execFile);
const project = fileURLToPath(new URL("vite", import.meta.url));
// Of the programs alone; the package is the one that was just made.
const tools = { typescript: "5.9.3", vite: "7.3.6" };
const unreachable = /ENOTFOUND|ECONNREFUSED|EAI_AGAIN|ETIMEDOUT|ENETUNREACH|E40[134]|ENOTCACHED|ECONNRESET/;

/** What a page's title says when its app is done. */
async function title(context, address) {
  const page = await context.newPage();
  const wrong = [];
  page.on("pageerror", (error) => wrong.push(`${error}`));
  try {
    await page.goto(address);
    await page.waitForFunction(() => /^(done|failed)/.test(document.title), null, { timeout: 120_000 });
    const found = await page.title();
    if (!found.startsWith("done") || wrong.length > 0) throw new Error(`${address}: ${found} ${wrong}`);
    return found;
  } finally {
    await page.close();
  }
}

/** Vite's development server, whose address it tells; it ends with `use`. */
async function developed(folder, use) {
  const server = spawn("node", ["node_modules/vite/bin/vite.js", "--port", "0", "--host", "127.0.0.1"], { cwd: folder });
  try {
    const address = await new Promise((resolve, reject) => {
      let said = "";
      const hear = (part) => {
        said += part;
        // Its colours are around the number as well.
        const found = /http:\/\/127\.0\.0\.1:(\d+)/.exec(said.replaceAll(/\x1b\[\d+m/g, ""));
        if (found) resolve(found[0]);
      };
      server.stdout.on("data", hear);
      server.stderr.on("data", hear);
      server.on("exit", () => reject(new Error(said)));
    });
    return await use(address);
  } finally {
    server.kill();
  }
}

export async function vite(context, built) {
  const folder = await mkdtemp(join(tmpdir(), "latten-vite-"));
  try {
    await cp(project, folder, { recursive: true });
    const tarball = (await readdir(built)).find((name) => /^latten-.*\.tgz$/.test(name));
    const wanted = JSON.parse(await readFile(join(folder, "package.json"), "utf8"));
    Object.assign(wanted, { dependencies: { latten: `file:${join(built, tarball)}` }, devDependencies: tools });
    await writeFile(join(folder, "package.json"), JSON.stringify(wanted));
    try {
      await run("npm", ["install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefer-offline", "--loglevel=error"], { cwd: folder });
    } catch (error) {
      if (!unreachable.test(error.stderr)) throw error;
      return `SKIPPED: npm cannot get vite and typescript here: ${error.stderr.split("\n")[0]}`;
    }
    // What the app serves of its own: models.
    await cp(join(built, "site/models/gla"), join(folder, "public/models/gla"), { recursive: true });
    const program = (name, ...args) => run("node", [join("node_modules", name), ...args], { cwd: folder }).catch((error) => {
      throw new Error(`${name}: ${error.stdout}${error.stderr}`);
    });
    await program("typescript/bin/tsc", "--noEmit");
    await program("vite/bin/vite.js", "build", "--logLevel", "warn");
    const assets = await readdir(join(folder, "dist/assets"));
    const count = assets.filter((name) => name.endsWith(".wasm")).length;
    if (count !== 1) throw new Error(`${count} .wasm files: ${assets}`);
    const served = await serve({ "": join(folder, "dist") });
    const said = await title(context, `${served.origin}/`).finally(() => served.close());
    await developed(folder, (address) => title(context, `${address}/`));
    return `${said.trim()}, built and in development; ${assets.length} files`;
  } finally {
    await rm(folder, { recursive: true, force: true });
  }
}
