// Tokens a second in headless Chromium and natively, on the same SwiftShader, in turn: greedy, f16 weights and cache, one sequence.
// After ./dev browser and cargo build --release --example generate: node examples/browser/bench/tokens.mjs [ROUNDS]
import { execFileSync } from "node:child_process";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { open, server } from "../tests/run.mjs";

const root = join(dirname(fileURLToPath(import.meta.url)), "../../..");
const icd = process.env.VK_DRIVER_FILES ?? "/usr/lib/chromium/vk_swiftshader_icd.json";
const tokens = 200;

/** In the page: tokens a second from the second on, and seconds from the call to the first. */
async function browser({ variant, tokens }) {
  const { default: init, Model } = await import("/latten/latten.js");
  await init();
  const start = performance.now();
  const model = await Model.load(`/models/${variant}`);
  const times = [];
  await model.generate("KING:\n", { maxNewTokens: tokens, temperature: 0 }, () => void times.push(performance.now()));
  model.free();
  return { rate: ((tokens - 1) * 1000) / (times.at(-1) - times[0]), first: (times[0] - start) / 1000 };
}

/** The example says what it took, from the second token on as well. */
function native(variant) {
  const args = ["--variant", variant, "--prompt", "KING:\n", "--tokens", `${tokens}`, "--temperature", "0"];
  const env = { ...process.env, VK_DRIVER_FILES: icd };
  const all = { cwd: root, env, stdio: ["ignore", "pipe", "pipe"], encoding: "utf8" };
  const said = execFileSync("/bin/sh", ["-c", 'exec "$0" "$@" 2>&1', "target/release/examples/generate", ...args], all);
  // Its last line: the rate of the prompt, then that of the tokens.
  return Number([...said.matchAll(/([\d.]+) tok\/s/g)].at(-1)?.[1] ?? NaN);
}

const served = await server();
for (let round = 0; round < Number(process.argv[2] ?? 3); round++) {
  for (const variant of ["gqa", "gta", "gla", "mla"]) {
    const { context, close } = await open();
    const page = await context.newPage();
    await page.goto(`${served.origin}/tests/blank.html`);
    const { rate, first } = await page.evaluate(browser, { variant, tokens });
    await close();
    const own = native(variant);
    console.log(`${variant}: ${rate.toFixed(1)} in the browser, ${own} natively: ${((100 * rate) / own).toFixed(0)}%; first token after ${first.toFixed(1)} s`);
  }
}
served.close();
