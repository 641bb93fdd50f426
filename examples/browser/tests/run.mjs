// Runs the checks and looks at the page in headless Chromium, on the package as npm would install it.
// node run.mjs [NAME..]: only what has one of these in its name. What is in `onRequest` of checks.mjs runs by its whole name alone.
import { mkdir, mkdtemp, readFile, readdir, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { native } from "./native.mjs";
import { looks } from "./page.mjs";
import { readme, types } from "./readme.mjs";
import { serve } from "./serve.mjs";
import { store, storeWarm } from "./store.mjs";
import { vite } from "./vite.mjs";

const here = dirname(fileURLToPath(import.meta.url));
const root = join(here, "../../..");
const built = join(root, "target/browser");
const modules = join(built, "npm/node_modules");
const natives = join(built, "native");
const { chromium } = createRequire(join(built, "npm/package.json"))("playwright-core");

// Chromium asks its makers' servers for things unless told not to.
const flags = ["--no-sandbox", "--no-first-run", "--disable-quic", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];
// A CPU's adapter, the same everywhere.
const webgpu = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"];

/** A browser with a folder of its own. */
export async function open(extra = webgpu) {
  const folder = await mkdtemp(join(tmpdir(), "latten-chromium-"));
  const options = { executablePath: process.env.LATTEN_CHROMIUM ?? "/usr/bin/chromium", headless: true };
  const context = await chromium.launchPersistentContext(folder, { ...options, args: [...flags, ...extra] });
  const close = async () => {
    await context.close();
    await rm(folder, { recursive: true, force: true });
  };
  return { context, close };
}

/** The page with the package, the oracle's vectors, the native results, and the tests. */
export async function server() {
  const vectors = join(root, "tests/vectors");
  const hooks = [];
  const served = await serve({ "": join(built, "site"), vectors, tests: here, native: natives }, 0, (...file) => hooks.some((hook) => hook(...file)));
  return { ...served, hooks, names: (await readdir(vectors)).filter((name) => name.endsWith(".json")) };
}

let failed = 0;

/** Runs one test and prints what came of it. */
async function report(name, test) {
  const start = performance.now();
  const took = () => `${((performance.now() - start) / 1000).toFixed(1)} s`;
  try {
    const said = await test();
    console.log(`ok   ${name} (${took()}): ${said}`);
  } catch (error) {
    failed += 1;
    console.log(`FAIL ${name} (${took()}): ${error?.stack ?? error}`);
  }
}

/** Warnings and errors that the page's console should not have. */
function listen(page) {
  const known = /no GPU found|powerPreference/;
  page.on("console", (message) => {
    if (message.type() !== "log" && !known.test(message.text())) console.log(`  [${message.type()}] ${message.text().slice(0, 400)}`);
  });
  page.on("pageerror", (error) => console.log(`  [uncaught] ${error}`));
}

/** Takes checks from a list until it is empty, in one browser. */
async function inside({ origin, names }, queue) {
  const browser = await open();
  try {
    const page = await browser.context.newPage();
    listen(page);
    await page.route("**/vectors/names.json", (route) => route.fulfill({ json: names }));
    await page.goto(`${origin}/tests/blank.html`);
    for (let name = queue.shift(); name; name = queue.shift()) {
      await report(name, async () => {
        const { said, wrong } = await page.evaluate(async (name) => {
          const { checks, onRequest } = await import("/tests/checks.mjs");
          try {
            return { said: await (checks[name] ?? onRequest[name])() };
          } catch (error) {
            return { wrong: error?.name === "LattenError" ? `${error.kind}: ${error.message}` : `${error?.stack ?? error}` };
          }
        }, name);
        if (wrong) throw wrong;
        return said;
      });
    }
  } finally {
    await browser.close();
  }
}

/** The sizes that the package may have. */
async function sizes() {
  const { gzipSync } = await import("node:zlib");
  const wasm = await readFile(join(built, "site/latten/latten_bg.wasm"));
  const zipped = gzipSync(wasm, { level: 9 }).length;
  if (wasm.length >= 1.5e6 || zipped >= 500e3) throw new Error(`${wasm.length} bytes, ${zipped} by gzip`);
  return `.wasm ${wasm.length} bytes, ${zipped} by gzip`;
}

async function main(filter) {
  const wanted = (name) => filter.length === 0 || filter.some((part) => name.includes(part));
  const shots = join(built, "shots");
  await mkdir(shots, { recursive: true });
  const served = await server();
  const names = /^ {2}(?:\.\.\.Object.*`(\w+)_\$\{v\}`|(\w+),$)/gm;
  const source = await readFile(join(here, "checks.mjs"), "utf8");
  const [tests, asked] = source.slice(source.indexOf("export const checks")).split("export const onRequest");
  const listed = [...tests.matchAll(names)];
  const all = listed.flatMap(([, each, one]) => (each ? ["gqa", "gta", "gla", "mla"].map((v) => `${each}_${v}`) : [one]));
  const queue = [...all.filter(wanted), ...[...asked.matchAll(names)].map(([, , one]) => one).filter((one) => filter.includes(one))];
  if (wanted("types")) await report("types", () => types(root, built));
  if (wanted("sizes")) await report("sizes", sizes);
  const models = queue.filter((name) => name.startsWith("model_")).map((name) => name.slice("model_".length));
  if (models.length > 0) {
    await report("native", async () => {
      await rm(natives, { recursive: true, force: true });
      for (const variant of models) await native(root, natives, variant);
      return `logits and tokens of ${models.join(", ")}, in ${natives}`;
    });
  }
  const shown = async () => {
    const { context, close } = await open();
    await report("readme", () => readme(root, context, served.origin));
    await close();
  };
  const stored = async () => {
    const { context, close } = await open();
    if (wanted("store")) await report("store", () => store(context, served));
    if (filter.includes("storeWarm")) await report("storeWarm", () => storeWarm(context, served));
    await close();
  };
  const installed = async () => {
    const { context, close } = await open();
    await report("vite", () => vite(context, built));
    await close();
  };
  // Two browsers: compiling is one thread's work in each.
  await Promise.all([wanted("readme") && shown(), wanted("store") && stored(), wanted("vite") && installed(), inside(served, queue), inside(served, queue)]);
  const pages = Object.keys(looks).filter((name) => wanted(`page_${name}`));
  if (pages.length > 0) {
    const axe = await readFile(join(modules, "axe-core/axe.min.js"), "utf8");
    const [browser, without] = [await open(), await open(["--disable-features=WebGPU"])];
    const how = { context: browser.context, without: without.context, origin: served.origin, shots, axe };
    for (const name of pages) await report(`page_${name}`, () => looks[name](how));
    await browser.close();
    await without.close();
    console.log(`screenshots: ${shots}`);
  }
  served.close();
  console.log(failed ? `${failed} failed` : "all passed");
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await main(process.argv.slice(2));
  process.exit(failed ? 1 : 0);
}
