// The page: a device, four models on it, and what they cost.
import init, { Device, Model } from "./latten/latten.js";
import { cells, compare, download } from "./compare.js";
import { bytes, milliseconds, short, whole, wrong } from "./format.js";
import { draw } from "./plot.js";

const variants = ["gqa", "gta", "gla", "mla"];
const byId = (id) => document.getElementById(id);
const slopes = {};
const runs = Object.fromEntries(variants.map((name) => [name, []]));
const rates = {};
const models = new Map();
let device = null;
let running = false;
let stopped = false;
let table = null;

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
    byId(id).disabled = !device;
    // A disabled button would lose the focus of whoever has just pressed it.
    byId(id).setAttribute("aria-disabled", now);
  }
  if (!now && document.activeElement === byId("stop")) byId("generate").focus({ preventScroll: true });
  byId("stop").disabled = !now;
  byId("download").disabled = now || !table;
  byId("text").setAttribute("aria-busy", now);
}

function plot() {
  const most = Math.max(256, ...Object.values(runs).flat().map(([tokens]) => tokens * 1.1));
  draw(byId("plot"), slopes, runs, Math.ceil(most / 64) * 64);
}

function fillTable() {
  const rows = variants.map((name) => {
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
    await init();
    device = await Device.request();
  } catch (error) {
    device = null;
    byId("adapter").textContent = "no WebGPU";
    byId("missing-why").textContent = wrong(error);
    byId("missing").hidden = false;
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
    models.set(name, await Model.load(`models/${name}`, { device }));
  }
  return models.get(name);
}

/** One text, behind the `kept` ones; fills tiles and plot as it comes. */
async function write(name, prompt, kept = []) {
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
  const { tokens } = await loaded.generate(prompt, options, (part) => {
    const now = performance.now();
    count += 1;
    if (count === 1) {
      [first, before] = [now, device.counters];
      byId("first").textContent = milliseconds(now - (loaded.warm ? start : begin));
      loaded.warm = true;
    }
    made.data += part;
    runs[name].push([promptTokens + count - 1, loaded.stats().bytes]);
    // Drawing is the page's own time: a few times a second is enough.
    if (now - drawn > 200) {
      drawn = now;
      show(loaded, count, now - first);
    }
    return !stopped;
  });
  if (count > 1) {
    show(loaded, count, performance.now() - first);
    rates[name] = (1000 * (count - 1)) / (performance.now() - first);
    byId("readbacks").textContent = short((device.counters.readbacks - before.readbacks) / (count - 1));
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
  setRunning(false);
}

const chosen = () => new FormData(byId("form")).get("variant");
byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  guarded(() => write(chosen(), byId("prompt").value));
});
byId("all").addEventListener("click", () =>
  byId("form").reportValidity() && guarded(async () => {
    let kept = [];
    for (const name of variants) {
      if (stopped) break;
      await write(name, byId("prompt").value, kept);
      kept = [...byId("text").childNodes];
    }
  }),
);
byId("stop").addEventListener("click", () => (stopped = true));
byId("retry").addEventListener("click", start);
byId("download").addEventListener("click", () => download(table));
byId("compare").addEventListener("click", () =>
  guarded(async () => {
    const body = byId("kernels").tBodies[0];
    byId("compare-status").textContent = "Measuring …";
    body.replaceChildren();
    table = await compare(device, (row) => body.append(tableRow(cells(row))));
    byId("compare-status").textContent = `Measured ${table.rows.length} kernels on ${table.adapter}, ` +
      `${table.rows[0].sequences} × ${whole.format(table.rows[0].tokens)} tokens.`;
  }),
);
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("form").requestSubmit();
});

addEventListener("resize", plot);

for (const name of variants) {
  slopes[name] = kvBytes(await (await fetch(`models/${name}/config.json`)).json());
  document.querySelector(`[data-kv="${name}"]`).textContent = `${whole.format(slopes[name])} B/token`;
}
plot();
fillTable();
await start();
