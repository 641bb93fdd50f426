// The page: a device, four models on it, and what they cost.
import { file, giveUp } from "./boot.js";
import { cells, compare, download } from "./compare.js";
import { bytes, milliseconds, short, whole, wrong } from "./format.js";
import { draw } from "./plot.js";
import { whileCompiling } from "./progress.js";
import { tellScrolling } from "./scroll.js";

const variants = ["gqa", "gta", "gla", "mla"];
const byId = (id) => document.getElementById(id);
const slopes = {};
const runs = Object.fromEntries(variants.map((name) => [name, []]));
const rates = {};
const models = new Map();
/** Why a model is not here, by variant. */
const absent = new Map();
const here = () => variants.filter((name) => slopes[name] && !absent.has(name));
/** The package, once it is there. */
let latten = null;
let device = null;
let running = false;
let stopped = false;
let table = null;
/** What the reader has chosen; while a text is written, the one that writes is marked instead. */
let chosen = "gla";
let writer = null;
const choice = (name) => document.querySelector(`[name=variant][value=${name}]`);

/** Bytes per cached token in f16, from a model's config.json. */
function kvBytes(c) {
  const width = {
    gqa: () => 2 * c.num_key_value_heads * c.head_dim,
    gta: () => c.num_key_value_heads * c.head_dim + c.rope_dim,
    gla: () => c.latent_heads * c.latent_dim + c.rope_dim,
    mla: () => c.latent_dim + c.rope_dim,
  };
  return 2 * c.num_hidden_layers * width[c.attention]();
}

function say(text, failed = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("failed", failed);
}

function setRunning(now) {
  running = now;
  for (const id of ["generate", "all", "compare"]) {
    byId(id).disabled = !device || (id !== "compare" && here().length === 0);
    // A disabled button would lose the focus of whoever has just pressed it.
    byId(id).setAttribute("aria-disabled", now);
  }
  if (!now && document.activeElement === byId("stop")) byId("generate").focus({ preventScroll: true });
  byId("stop").disabled = !now;
  byId("download").disabled = now || !table;
  byId("text").setAttribute("aria-busy", now);
  if (absent.has(chosen)) chosen = here()[0] ?? chosen;
  if (!now) choice(chosen).checked = true;
}

/** Goes on without a model, and says why. */
function without(name, why) {
  absent.set(name, why);
  choice(name).disabled = true;
  document.querySelector(`[data-kv="${name}"]`).textContent = "not here";
  const lines = [...absent].map(([name, why]) => Object.assign(document.createElement("li"), { textContent: `${name.toUpperCase()}: ${why}` }));
  byId("absent").replaceChildren(...lines);
  byId("absent").hidden = false;
  byId("all").textContent = "All in turn";
}

/** What a model caches per token, by its config.json. */
async function look(name) {
  const path = `models/${name}/config.json`;
  try {
    const config = await file(path).then((answer) => answer.json());
    const found = kvBytes(config);
    if (!(found > 0)) throw new Error(`${path} is of another model`);
    slopes[name] = found;
    document.querySelector(`[data-kv="${name}"]`).textContent = `${whole.format(found)} B/token`;
  } catch (error) {
    without(name, error instanceof SyntaxError ? `${path} is no JSON: ${error.message}` : error.message);
  }
}

function plot() {
  const most = Math.max(256, ...Object.values(runs).flat().map(([tokens]) => tokens * 1.1));
  // In the order of the form, whichever came first.
  const known = Object.fromEntries(variants.filter((name) => slopes[name]).map((name) => [name, slopes[name]]));
  draw(byId("plot"), known, runs, Math.ceil(most / 64) * 64);
}

function fillTable() {
  const rows = variants.filter((name) => slopes[name]).map((name) => {
    const last = runs[name].at(-1);
    const row = [name.toUpperCase(), whole.format(slopes[name]), bytes(1000 * slopes[name]), last ? whole.format(last[0]) : "–",
      last ? bytes(last[1]) : "–", rates[name] ? short(rates[name]) : "–"];
    return tableRow(row);
  });
  byId("plot-table").tBodies[0].replaceChildren(...rows);
}

function tableRow(texts) {
  const row = document.createElement("tr");
  texts.forEach((text, i) => {
    const cell = document.createElement(i === 0 ? "th" : "td");
    if (i === 0) cell.scope = "row";
    cell.textContent = text;
    row.append(cell);
  });
  return row;
}

function showDevice() {
  const info = device.info;
  byId("adapter").textContent = info.software ? `${info.adapter} (software)` : info.adapter;
  const rows = [
    ["Adapter", info.adapter],
    ["Largest binding", bytes(info.maxBindingBytes)],
    ["Largest buffer", bytes(info.maxBufferBytes)],
    ["Storage buffers per kernel", info.maxStorageBuffers],
    ["Workgroup memory", bytes(info.workgroupStorageBytes)],
    ["Invocations per workgroup", info.maxInvocations],
    ["Timestamps", info.timestamps ? "yes" : "no"],
  ];
  byId("device").replaceChildren(...rows.flatMap(([name, value]) => {
    const [dt, dd] = [document.createElement("dt"), document.createElement("dd")];
    [dt.textContent, dd.textContent] = [name, value];
    return [dt, dd];
  }));
}

async function start() {
  byId("missing").hidden = true;
  try {
    latten = await import("./latten/latten.js");
    await latten.default();
    device = await latten.Device.request();
  } catch (error) {
    device = null;
    // A file that failed once is not asked for again, but by a new page.
    if (await giveUp("No WebGPU here", wrong(error), byId("missing-webgpu"))) latten = null;
    return setRunning(false);
  }
  models.clear();
  showDevice();
  setRunning(false);
  say("Ready.");
}

async function model(name) {
  if (!models.has(name)) {
    say(`Loading ${name.toUpperCase()} …`);
    try {
      models.set(name, await latten.Model.load(`models/${name}`, { device }));
    } catch (error) {
      if (["Io", "Config", "Weights"].includes(error?.kind)) without(name, wrong(error));
      throw error;
    }
  }
  return models.get(name);
}

/** One text, behind the `kept` ones; fills tiles and plot as it comes. */
async function write(name, prompt, kept = []) {
  writer = name;
  choice(writer).checked = true;
  const begin = performance.now();
  const loaded = await model(name);
  say(`${name.toUpperCase()} is writing${loaded.warm ? "" : "; its kernels are compiled first"} …`);
  const text = byId("text");
  const which = Object.assign(document.createElement("span"), { className: "which", textContent: name.toUpperCase() });
  const given = Object.assign(document.createElement("span"), { className: "given", textContent: prompt });
  const made = document.createTextNode("");
  text.replaceChildren(...kept, which, given, made);
  // On a phone it is below the form.
  text.scrollIntoView({ block: "nearest" });
  runs[name] = [];
  const start = performance.now();
  const promptTokens = new TextEncoder().encode(prompt).length;
  const options = {
    maxNewTokens: byId("tokens").valueAsNumber,
    temperature: byId("temperature").valueAsNumber,
    topP: byId("temperature").valueAsNumber > 0 ? 0.95 : 1,
    seed: byId("seed").valueAsNumber,
  };
  let [count, first, before, drawn] = [0, 0, device.counters, 0];
  const { tokens } = await whileCompiling(device, byId("progress"), () => loaded.generate(prompt, options, (part) => {
    const now = performance.now();
    count += 1;
    if (count === 1) {
      [first, before] = [now, device.counters];
      byId("first").textContent = milliseconds(now - (loaded.warm ? start : begin));
      loaded.warm = true;
      say(`${name.toUpperCase()} is writing …`);
    }
    made.data += part;
    runs[name].push([promptTokens + count - 1, loaded.stats().bytes]);
    // Drawing is the page's own time: a few times a second is enough.
    if (now - drawn > 200) {
      drawn = now;
      show(loaded, count, now - first);
    }
    return !stopped;
  }));
  if (count > 1) {
    show(loaded, count, performance.now() - first);
    rates[name] = (1000 * (count - 1)) / (performance.now() - first);
    // The second token's step was under way, its readback asked for, when the first came.
    byId("readbacks").textContent = short((device.counters.readbacks - before.readbacks + 1) / (count - 1));
  }
  plot();
  fillTable();
  const speed = rates[name] ? `, ${short(rates[name])} tokens per second` : "";
  say(`${name.toUpperCase()}: ${tokens.length} tokens${speed}${stopped ? ", stopped" : ""}.`);

  function show(model, count, elapsed) {
    if (count > 1) byId("rate").textContent = short((1000 * (count - 1)) / elapsed);
    byId("bytes").textContent = bytes(runs[name].at(-1)[1]);
    text.scrollTop = text.scrollHeight;
    plot();
  }
}

async function guarded(work) {
  if (running || !device) return;
  stopped = false;
  setRunning(true);
  try {
    await work();
  } catch (error) {
    say(wrong(error), true);
    // Everything on a lost device is gone, but the page can have another.
    if (error?.kind === "DeviceLost") {
      await start();
      say(`${wrong(error)} A new device was made: try again.`, true);
    }
  }
  writer = null;
  setRunning(false);
}

/** One text after the other, without the models that turn out to be missing or damaged. */
async function writeAll() {
  let kept = [];
  for (const name of here()) {
    if (stopped) break;
    try {
      await write(name, byId("prompt").value, kept);
      kept = [...byId("text").childNodes];
    } catch (error) {
      if (!absent.has(name)) throw error;
    }
  }
  if (kept.length === 0 && !stopped) say("None of the models is here.", true);
}

byId("variants").addEventListener("change", (event) => {
  chosen = event.target.value;
  // Of measuring there is no writer.
  if (running && writer) choice(writer).checked = true;
});
byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  guarded(() => write(chosen, byId("prompt").value));
});
byId("all").addEventListener("click", () =>
  byId("form").reportValidity() && guarded(writeAll),
);
byId("stop").addEventListener("click", () => (stopped = true));
byId("retry").addEventListener("click", () => (latten ? start() : location.reload()));
byId("download").addEventListener("click", () => download(table));
byId("compare").addEventListener("click", () =>
  guarded(async () => {
    const body = byId("kernels").tBodies[0];
    byId("compare-status").textContent = "Measuring …";
    body.replaceChildren();
    const told = (name, number, all) => (byId("compare-status").textContent = `Measuring ${name}, ${number} of ${all} …`);
    const measured = () => compare(device, told, (row) => body.append(tableRow(cells(row))));
    table = await whileCompiling(device, byId("compare-progress"), measured);
    byId("compare-status").textContent = `Measured ${table.rows.length} kernels on ${table.adapter}, ` +
      `${table.rows[0].sequences} × ${whole.format(table.rows[0].tokens)} tokens.`;
  }),
);
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("form").requestSubmit();
});

addEventListener("resize", plot);

tellScrolling();
const looked = Promise.all(variants.map(look)).then(() => {
  plot();
  fillTable();
  setRunning(running);
});
await Promise.all([looked, start()]);
