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
  // The adapter has a name in all that is said of it.
  page.on("console", (message) => /adapter(?! \w+ \w+)/.test(message.text()) && errors.push(message.text()));
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

/** Notes, whenever the text changes, which variant is written and which is marked. */
async function noteMarks(page) {
  await page.evaluate(() => {
    window.marks = new Set();
    const note = () => {
      const writes = [...document.querySelectorAll("#text .which")].at(-1)?.textContent.toLowerCase();
      window.marks.add(`${writes} ${new FormData(document.getElementById("form")).get("variant")}`);
    };
    new MutationObserver(note).observe(document.getElementById("text"), { childList: true, characterData: true, subtree: true });
  });
}

/** How many pixels the nearest two of these lines are from each other, of which each is so wide: of lines at one place, 0. */
function nearest(page, lines) {
  return page.evaluate((lines) => {
    const all = [...document.querySelectorAll(lines)].map((line) => {
      const at = line.getPointAtLength(1).matrixTransform(line.getScreenCTM());
      return { x: at.x, y: at.y, wide: parseFloat(getComputedStyle(line).strokeWidth) };
    });
    const pairs = all.flatMap((a, i) => all.slice(i + 1).map((b) => [Math.hypot(a.x - b.x, a.y - b.y), Math.max(a.wide, b.wide)]));
    return { pairs: pairs.length, told: pairs.every(([apart, wide]) => apart >= wide), said: JSON.stringify(pairs) };
  }, lines);
}

/** Notes what the bar of what is compiled shows. */
async function noteProgress(page) {
  await page.evaluate(() => {
    window.progress = [];
    const [box, bar] = [document.getElementById("progress"), document.querySelector("#progress progress")];
    new MutationObserver(() => box.hidden || window.progress.push([bar.value, bar.max])).observe(bar, { attributes: true });
  });
}

/** All four in turn: their texts one below the other, and all of them in plot and table. */
async function four(page) {
  const chosen = () => page.evaluate(() => new FormData(document.getElementById("form")).get("variant"));
  const before = await chosen();
  await page.fill("#tokens", "");
  await page.click("#all");
  assert((await text(page, "status")).startsWith("Argument: "), "it writes without a count of tokens");
  await page.fill("#tokens", "3");
  await noteMarks(page);
  await page.click("#all");
  // What is chosen meanwhile is for afterwards.
  await page.click('input[value="mla"]', { force: true });
  await page.click(`input[value="${before}"]`, { force: true });
  await said(page, "MLA: 3 tokens");
  const marks = await page.evaluate(() => [...window.marks]);
  assert(`${marks}` === "gqa gqa,gta gta,gla gla,mla mla", `written and marked: ${marks}`);
  await ready(page);
  assert((await chosen()) === before, `${await chosen()} is marked afterwards, ${before} was chosen`);
  for (const lines of ["row-bytes", "held"]) {
    const { pairs, told, said } = await nearest(page, ["gta", "gla", "mla"].map((name) => `#plot .${lines}.${name}[transform]`).join());
    assert(pairs === 3 && told, `equal lines of ${lines} hide each other, [pixels apart, width]: ${said}`);
  }
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
  const links = await page.locator("footer nav a").evaluateAll((all) => all.map((a) => a.href));
  assert(links.length >= 6, `${links}`);
  for (const link of links) assert((await page.request.get(link)).ok(), `${link} leads nowhere`);
  await page.fill("#prompt", "KING:\n");
  await page.fill("#tokens", "70");
  await noteProgress(page);
  await page.check('input[value="gta"]', { force: true });
  await page.click("#generate");
  await said(page, "GTA: 70 tokens");
  const made = await text(page, "text");
  assert(made.startsWith("GTAKING:\n") && made.length >= 70, JSON.stringify(made));
  assert(Number(await text(page, "rate")) > 0 && (await text(page, "readbacks")) === "1.00", await text(page, "readbacks"));
  const shown = await page.evaluate(() => window.progress);
  const rises = shown.every(([done, all], i) => done <= all && (i === 0 || done >= shown[i - 1][0]));
  assert(shown.length > 5 && rises && shown.some(([done]) => done > 5), `compiled, of: ${JSON.stringify(shown)}`);
  assert(await page.isHidden("#progress"), "compiling is still shown");
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
  const times = await page.locator("#kernels tbody tr").evaluateAll((rows) => rows.map((row) => row.cells[2].textContent));
  const unit = (us) => (us < 1000 ? "µs" : us < 1e6 ? "ms" : "s");
  const parts = times.map((time) => time.split(" "));
  const timed = ([value, has], i) => has === unit(table.rows[i].microseconds) && parseFloat(value) < 1000;
  assert(parts.every(timed), `${times} of ${table.rows.map((row) => row.microseconds)} µs`);
  assert((await page.locator(".more:visible").count()) === 0, "it says that a table scrolls that does not");
  await accessible(page, axe);
  await page.screenshot({ path: join(shots, "desktop.png"), fullPage: true });
  await page.close();
  assert(errors.length === 0, errors.join("\n"));
  return `${JSON.stringify(made.slice(9, 43))} .., ${table.rows.length} kernels`;
}

/** The kernel table is wider than a phone, and says so until its end is reached. */
async function scrolls(page) {
  const hint = page.locator(".more:has(+ .scroll #kernels)");
  assert((await hint.textContent()) === "more columns →" && (await hint.isVisible()), "it does not say that the table scrolls");
  const table = page.locator(".scroll:has(#kernels)");
  await table.evaluate((box) => (box.scrollLeft = box.scrollWidth));
  await page.waitForFunction(() => !document.querySelector(".scroll:has(#kernels)").classList.contains("cut"), null, { timeout: 5_000 });
  assert((await hint.textContent()) === "← more columns", "at the end it points to the right");
  const name = await page.locator("#kernels th").first().evaluate((cell) => cell.getBoundingClientRect().left);
  assert(name > 0, "the names are scrolled out of sight");
  await table.evaluate((box) => (box.scrollLeft = 0));
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
  await scrolls(page);
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

const nothing = (route) => route.fulfill({ status: 404, body: "not found" });

/** Models of which a file is missing, or is what a server gives for all it does not have: said, and the rest writes. */
async function absent({ context, origin, shots, axe }) {
  const errors = [];
  const page = await context.newPage();
  page.on("pageerror", (error) => errors.push(`${error}`));
  await page.route(/models\/gqa\/model\.safetensors/, nothing);
  await page.route(/models\/gla\/config\.json/, nothing);
  const html = { contentType: "text/html", body: "<!doctype html><title>Start</title>" };
  await page.route(/models\/mla\/config\.json/, (route) => route.fulfill(html));
  await page.goto(`${origin}/`);
  await ready(page);
  const lines = () => page.locator("#absent li").allTextContents();
  const files = (await lines()).sort().map((line) => line.match(/^\w+: (?:Io: )?(\S+)/)?.[0]);
  assert(`${files}` === "GLA: models/gla/config.json,MLA: models/mla/config.json", `${await lines()}`);
  assert((await page.isDisabled('input[value="gla"]')) && (await page.isChecked('input[value="gqa"]')), "GLA is still offered");
  await page.fill("#tokens", "2");
  await page.click("#all");
  await said(page, "GTA: 2 tokens");
  await ready(page);
  assert((await lines()).some((line) => /^GQA: .*models\/gqa\/model\.safetensors.*404/.test(line)), `${await lines()}`);
  assert(await page.isChecked('input[value="gta"]'), "the model that is there is not chosen");
  await accessible(page, axe);
  await page.screenshot({ path: join(shots, "absent.png"), fullPage: true });
  await page.close();
  assert(errors.length === 0, errors.join("\n"));
  return "GTA writes, and three are said to be missing";
}

/** Each of the page's own programs missing, in turn: it is named, within seconds. */
async function incomplete({ context, origin, shots }) {
  const files = ["compare.js", "format.js", "plot.js", "progress.js", "scroll.js", "page.js", "latten/latten.js", "latten/latten_bg.wasm"];
  for (const path of files) {
    const page = await context.newPage();
    await page.route(`**/${path}`, nothing);
    await page.goto(`${origin}/`);
    await page.waitForSelector("#missing:not([hidden])", { timeout: 15_000 });
    const why = await text(page, "missing-why");
    assert(why === `${path} is missing: the server answers with status 404.`, why);
    assert(await page.isHidden("#missing-webgpu"), "advice on WebGPU where it is not the matter");
    if (path === "latten/latten.js") await page.screenshot({ path: join(shots, "incomplete.png") });
    // The same page goes on once the file is there.
    await page.unroute(`**/${path}`);
    if (path.startsWith("latten/")) {
      await page.click("#retry");
      await ready(page);
    }
    await page.close();
  }
  const page = await context.newPage();
  await page.route("**/boot.js", nothing);
  await page.goto(`${origin}/`);
  await page.waitForSelector("#late", { timeout: 15_000 });
  assert((await text(page, "late")).includes("boot.js"), await text(page, "late"));
  await page.close();
  return `${files.length + 1} files, each named where it is missing`;
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

export const looks = { writes, keys, absent, incomplete, lost, missing };
