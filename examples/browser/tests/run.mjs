// Runs the checks and looks at the page in headless Chromium, on the package as npm would install it.
// node run.mjs [NAME..]: only checks whose names contain one of these.
import { mkdir, mkdtemp, readdir, rm } from "node:fs/promises";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { serve } from "./serve.mjs";

const here = dirname(fileURLToPath(import.meta.url));
const root = join(here, "../../..");
const built = join(root, "target/browser");
const require = createRequire(join(built, "npm/package.json"));
const { chromium } = require("playwright-core");

/** Chromium asks its makers' servers for things unless told not to; the adapter is a CPU's, the same everywhere. */
const flags = ["--no-sandbox", "--no-first-run", "--disable-quic", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];
const webgpu = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"];

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

export async function server() {
  const vectors = join(root, "tests/vectors");
  const served = await serve({ "": join(built, "site"), vectors, tests: here });
  return { ...served, names: (await readdir(vectors)).filter((name) => name.endsWith(".json")) };
}

async function inside(filter) {
  const { origin, close, names } = await server();
  const browser = await open();
  let failed = 0;
  try {
    const page = await browser.context.newPage();
    page.on("console", (message) => message.type() !== "log" && console.log(`  [${message.type()}] ${message.text().slice(0, 400)}`));
    page.on("pageerror", (error) => console.log(`  [uncaught] ${error}`));
    await page.route("**/vectors/names.json", (route) => route.fulfill({ json: names }));
    await page.goto(`${origin}/tests/blank.html`);
    const all = await page.evaluate(async () => Object.keys((await import("/tests/checks.mjs")).checks));
    for (const name of all.filter((name) => filter.length === 0 || filter.some((part) => name.includes(part)))) {
      const start = performance.now();
      const run = (name) => import("/tests/checks.mjs").then(async ({ checks }) => {
        try {
          return { said: await checks[name]() };
        } catch (error) {
          return { wrong: error?.name === "LattenError" ? `${error.kind}: ${error.message}` : `${error?.stack ?? error}` };
        }
      });
      const { said, wrong } = await page.evaluate(run, name).catch((error) => ({ wrong: `${error}` }));
      const seconds = ((performance.now() - start) / 1000).toFixed(1);
      console.log(wrong ? `FAIL ${name} (${seconds} s): ${wrong}` : `ok   ${name} (${seconds} s): ${said}`);
      failed += wrong ? 1 : 0;
    }
  } finally {
    await browser.close();
    close();
  }
  return failed;
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  await mkdir(join(built, "shots"), { recursive: true });
  const failed = await inside(process.argv.slice(2));
  console.log(failed ? `${failed} failed` : "all passed");
  process.exit(failed ? 1 : 0);
}
