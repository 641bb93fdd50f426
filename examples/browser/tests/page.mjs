// The page as a reader has it: written on, looked at, without a mouse, on a phone, and without WebGPU.
import { readFileSync } from "node:fs";
import { join } from "node:path";

function assert(condition, message) {
  if (!condition) throw new Error(message);
}

/** A page that may only ask for the server's own files; `errors` gets what its console says. */
async function visit(context, origin, errors, viewport = { width: 1280, height: 1000 }) {
  const page = await context.newPage();
  await page.setViewportSize(viewport);
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  page.on("pageerror", (error) => errors.push(`${error}`));
  page.on("request", (request) => {
    const own = request.url().startsWith(origin) || /^(data|blob):/.test(request.url());
    if (!own) errors.push(`asked for ${request.url()}`);
  });
  await page.goto(`${origin}/`);
  return page;
}

const text = (page, id) => page.textContent(`#${id}`);
const ready = (page) => page.waitForSelector('#generate:enabled:not([aria-disabled="true"])', { timeout: 60_000 });

/** Waits for what the page says at the end of a text, or of a failure. */
async function said(page, start) {
  const ended = (start) => {
    const status = document.getElementById("status");
    return status.textContent.startsWith(start) || status.classList.contains("failed");
  };
  await page.waitForFunction(ended, start, { timeout: 240_000 });
  const status = await text(page, "status");
  assert(status.startsWith(start), `it says ${JSON.stringify(status)}, not "${start}"`);
}

/** axe's rules; none may be broken. */
async function accessible(page, axe) {
  // The page's own policy keeps foreign scripts out, a debugger's not.
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => window.axe.run());
  const broken = violations.map((v) => `${v.id}: ${v.nodes.map((n) => n.target).join(", ")}`);
  assert(broken.length === 0, `accessibility: ${broken.join("; ")}`);
}

/** All four in turn: their texts one below the other, and all of them in plot and table. */
async function four(page) {
  await page.fill("#tokens", "");
  await page.click("#all");
  assert((await text(page, "status")).startsWith("Argument: "), "it writes without a count of tokens");
  await page.fill("#tokens", "3");
  await page.click("#all");
  await said(page, "MLA: 3 tokens");
  const names = await page.locator("#text .which").allTextContents();
  assert(`${names}` === "GQA,GTA,GLA,MLA", `texts of ${names}`);
  assert((await page.locator("#plot path.held").count()) === 4, "not four lines in the plot");
  const cells = await page.locator("#plot-table tbody tr").evaluateAll((rows) => rows.map((row) => row.cells[4].textContent));
  assert(`${cells}` === "128 KiB,72 KiB,72 KiB,72 KiB", `caches of ${cells}`);
}

async function writes({ context, origin, shots, axe }) {
  const errors = [];
  const page = await visit(context, origin, errors);
  await ready(page);
  assert((await text(page, "adapter")).toLowerCase().includes("swiftshader"), await text(page, "adapter"));
  await page.fill("#prompt", "KING:\n");
  await page.fill("#tokens", "70");
  await page.check('input[value="gta"]', { force: true });
  await page.click("#generate");
  await said(page, "GTA: 70 tokens");
  const made = await text(page, "text");
  assert(made.startsWith("GTAKING:\n") && made.length >= 70, JSON.stringify(made));
  assert(Number(await text(page, "rate")) > 0 && (await text(page, "readbacks")) === "1.00", await text(page, "readbacks"));
  // 75 tokens are two pages of 64 rows of 1,152 bytes.
  assert((await text(page, "bytes")) === "144 KiB", await text(page, "bytes"));
  assert((await page.getAttribute("#plot svg", "aria-label")).includes("GTA holds 144 KiB for 75 tokens"), "the plot's words");
  assert((await page.locator("#plot path.gta.held").count()) === 1, "no line in the plot");
  await page.fill("#prompt", "");
  await page.click("#generate");
  await said(page, "Argument: "); // a text of nothing is refused, which is said
  await page.fill("#prompt", "KING:\n");
  await four(page);
  await page.click("#compare");
  await page.waitForSelector("#download:enabled", { timeout: 240_000 });
  assert((await page.locator("#kernels tbody tr").count()) === 4, "not four kernels");
  const [download] = await Promise.all([page.waitForEvent("download"), page.click("#download")]);
  const table = JSON.parse(readFileSync(await download.path(), "utf8"));
  const right = (row) => row.microseconds > 0 && row.maxError < 2e-5;
  assert(table.rows.length === 4 && table.rows.every(right), JSON.stringify(table));
  assert(table.rows[1].bytesPerToken === 1152 && table.adapter.length > 0, JSON.stringify(table));
  await accessible(page, axe);
  await page.screenshot({ path: join(shots, "desktop.png"), fullPage: true });
  await page.close();
  assert(errors.length === 0, errors.join("\n"));
  return `${JSON.stringify(made.slice(9, 43))} .., ${table.rows.length} kernels`;
}

/** Tab and keys alone, on a phone's screen: choose, write, stop. */
async function keys({ context, origin, shots, axe }) {
  const errors = [];
  const page = await visit(context, origin, errors, { width: 360, height: 740 });
  await page.emulateMedia({ colorScheme: "dark" });
  await ready(page);
  const focused = () =>
    page.evaluate(() => ["id", "value", "className"].map((key) => document.activeElement[key]).find(Boolean));
  const order = [];
  for (let i = 0; i < 8; i++) {
    await page.keyboard.press("Tab");
    order.push(await focused());
    if (order.at(-1) === "gla") await page.keyboard.press("ArrowLeft"); // to GTA
  }
  assert(`${order}` === "skip,gla,prompt,tokens,temperature,seed,generate,all", `${order}`);
  await page.keyboard.press("Shift+Tab");
  await page.keyboard.press("Enter");
  assert((await focused()) === "generate", `the focus went to ${await focused()}`);
  await page.waitForFunction(() => Number(document.getElementById("rate").textContent) > 0, null, { timeout: 120_000 });
  const below = await page.evaluate(() => document.getElementById("text").getBoundingClientRect().bottom > window.innerHeight);
  assert(!below, "the text is out of sight");
  await page.focus("#stop");
  await page.keyboard.press("Space");
  await said(page, "GTA: ");
  assert((await text(page, "status")).endsWith("stopped."), await text(page, "status"));
  assert((await focused()) === "generate", `after a stop the focus is at ${await focused()}`);
  const wide = await page.evaluate(() => document.documentElement.scrollWidth > window.innerWidth);
  assert(!wide, "wider than a phone");
  const small = await page.evaluate(() => [...document.querySelectorAll("button, input, textarea")]
    .filter((e) => e.offsetParent && e.getBoundingClientRect().height < 34).map((e) => e.id));
  assert(small.length === 0, `too small for a finger: ${small}`);
  await accessible(page, axe);
  await page.screenshot({ path: join(shots, "phone.png"), fullPage: true });
  await page.close();
  assert(errors.length === 0, errors.join("\n"));
  return `${order.join(" > ")}`;
}

/** A device that is lost while the page writes: said, and the next text is written on a new one. */
async function lost({ context, origin }) {
  const errors = [];
  const page = await context.newPage();
  await page.addInitScript(() => {
    const { requestDevice } = GPUAdapter.prototype;
    GPUAdapter.prototype.requestDevice = async function (descriptor) {
      return (window.lastDevice = await requestDevice.call(this, descriptor));
    };
  });
  page.on("pageerror", (error) => errors.push(`${error}`));
  await page.goto(`${origin}/`);
  await ready(page);
  await page.click("#generate");
  await page.waitForFunction(() => document.getElementById("rate").textContent !== "–", null, { timeout: 120_000 });
  await page.evaluate(() => window.lastDevice.destroy());
  await said(page, "DeviceLost");
  await ready(page);
  await page.fill("#tokens", "5");
  await page.click("#generate");
  await said(page, "GLA: 5 tokens");
  await page.close();
  assert(errors.length === 0, errors.join("\n"));
  return "said, and written on";
}

async function missing({ without, origin, shots, axe }) {
  const errors = [];
  const page = await visit(without, origin, errors);
  await page.waitForSelector("#missing:not([hidden])", { timeout: 30_000 });
  const why = await text(page, "missing-why");
  assert(why.startsWith("NoAdapter"), why);
  assert(await page.isDisabled("#generate"), "generate is enabled");
  await accessible(page, axe);
  await page.screenshot({ path: join(shots, "missing.png") });
  await page.close();
  const bad = errors.filter((e) => !/adapter|WebGPU/i.test(e));
  assert(bad.length === 0, bad.join("\n"));
  return why.slice(0, 80);
}

export const looks = { writes, keys, lost, missing };
