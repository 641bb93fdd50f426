// ModelStore: downloads that break off and go on, what is refused, and a model from the store. From outside the page, which cannot cut a
// connection nor take room away.
import { part } from "./serve.mjs";

function assert(condition, message) {
  if (!condition) throw new Error(message);
}

/** Runs a function in the page, with the store and what it may want; what is thrown comes back as {kind, ..}. */
const inside = (page, work, given) => page.evaluate(async ([text, given]) => {
  const { ModelStore } = await import("/latten/store.js");
  const store = await ModelStore.open();
  const steps = [];
  const get = async (name, options = {}) => {
    try {
      return await store.download(name, `/models/${name}`, { onProgress: (step) => steps.push(step), ...options });
    } catch (error) {
      return { ...error, name: error.name, message: error.message };
    }
  };
  const sum = async (file) => [...new Uint8Array(await crypto.subtle.digest("SHA-256", await file.arrayBuffer()))]
    .map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return new Function("store", "get", "sum", "steps", "given", `return (${text})(store, get, sum, steps, given)`)(store, get, sum, steps, given);
}, [`${work}`, given]);

/** Whole, sums and all; a text of it; again without a request. */
async function whole(page, asked) {
  const found = await inside(page, async (store, get, sum, steps) => {
    const want = await sum(await fetch("/models/gla/model.safetensors").then((answer) => answer.blob()));
    const got = await get("gla", { sha256: { "model.safetensors": want } });
    const same = (await sum((await store.files("gla"))["model.safetensors"])) === want;
    const model = await store.load("gla");
    const { greedy } = await (await fetch("/vectors/logits_gla.json")).json();
    const { tokens } = await model.generate(Uint32Array.from(greedy.prompt), { maxNewTokens: 20 });
    model.free();
    return { got, same, tokens: `${tokens}` === `${greedy.tokens.slice(0, 20)}`, last: steps.at(-1), list: await store.list() };
  });
  const { got, last } = found;
  assert(got.complete && found.same && found.tokens, JSON.stringify(found));
  assert(got.bytes === got.files["config.json"] + got.files["model.safetensors"], JSON.stringify(got));
  assert(last.file === "model.safetensors" && last.bytes === last.totalBytes && last.bytes > 2.9e6, JSON.stringify(last));
  assert(JSON.stringify(found.list) === JSON.stringify([got]), JSON.stringify(found.list));
  asked.length = 0;
  const again = await inside(page, (store, get) => get("gla"));
  assert(again.complete && asked.length === 0, `${asked}`);
}

/** A connection that is cut, at several places: each call goes on where the last one ended, if the file is the same. */
async function cuts(page, asked, rule) {
  const have = () => inside(page, async (store) => (await store.list()).find(({ name }) => name === "gqa"));
  const weights = () => asked.filter((line) => line.includes("safetensors"));
  rule.cut = 1_000_000;
  const first = await inside(page, (store, get) => get("gqa"));
  assert(first.kind === "Io" && first.path.endsWith("/models/gqa/model.safetensors"), JSON.stringify(first));
  const held = (await have()).files["model.safetensors"];
  assert(held > 0 && held <= 1_000_000 && !(await have()).complete, `${held} bytes`);
  const early = await inside(page, (store) => store.files("gqa").then(() => null, ({ kind, message }) => ({ kind, message })));
  assert(early?.kind === "Io" && early.message.includes("not complete"), JSON.stringify(early));
  asked.length = 0;
  const second = await inside(page, (store, get) => get("gqa"));
  const more = (await have()).files["model.safetensors"];
  assert(second.kind === "Io" && more > held && `${weights()}` === `model.safetensors ${held}`, `${asked}; ${held}, ${more}`);
  asked.length = 0;
  rule.cut = 0;
  const third = await inside(page, async (store, get, sum) => {
    const got = await get("gqa");
    const want = await fetch("/models/gqa/model.safetensors").then((answer) => answer.blob());
    return { got, same: (await sum((await store.files("gqa"))["model.safetensors"])) === (await sum(want)) };
  });
  assert(third.got.complete && third.same && weights()[0] === `model.safetensors ${more}`, `${asked}; ${JSON.stringify(third)}`);
  return `went on at ${held} and ${more}`;
}

/** What was begun is of no use where the file is another, or the server knows no ranges: it begins anew. */
async function anew(page, asked, rule) {
  for (const change of ["version", "plain"]) {
    rule.cut = 500_000;
    const broken = await inside(page, (store, get) => get("gta"));
    assert(broken.kind === "Io", JSON.stringify(broken));
    asked.length = 0;
    Object.assign(rule, { cut: 0, [change]: true });
    const got = await inside(page, async (store, get, sum) => {
      const got = await get("gta");
      const want = await fetch("/models/gta/model.safetensors").then((answer) => answer.blob());
      const same = got.complete && (await sum((await store.files("gta"))["model.safetensors"])) === (await sum(want));
      return { got, same, gone: await store.delete("gta"), none: await store.delete("gta") };
    });
    assert(got.same && got.gone && !got.none, `${change}: ${JSON.stringify(got)}`);
    const ranges = asked.filter((line) => line.startsWith("model.safetensors")).map((line) => Number(line.split(" ")[1]));
    assert(ranges[0] > 0 && (change === "plain" || ranges[1] === 0), `${change}: ${asked}`);
    rule[change] = false;
  }
}

async function refusals(page, rule) {
  const found = await inside(page, async (store, get) => {
    const weights = "model.safetensors";
    const aborter = new AbortController();
    const aborted = await get("mla", { signal: aborter.signal, onProgress: () => aborter.abort() });
    const some = [
      ["Damaged", await get("mla", { sha256: { [weights]: "00".repeat(32) } })],
      ["Damaged", await get("mla", { bytes: { [weights]: 5 } })],
      ["Io", await get("none")],
      ["Argument", await get("mla/b")],
      ["Argument", await get("..")],
      ["Argument", await get("mla", { chunk: 1 })],
      ["Argument", await get("mla", { files: ["a/b"] })],
      ["Argument", await get("mla", { files: ["latten.json"] })],
      ["Argument", await get("mla", { bytes: { other: 5 } })],
    ];
    const both = await Promise.all([get("mla"), get("mla")]);
    return { aborted, some, both, list: await store.list() };
  });
  assert(found.aborted.message?.includes("abort"), JSON.stringify(found.aborted));
  for (const [kind, error] of found.some) assert(error.kind === kind, `${kind}: ${JSON.stringify(error)}`);
  const [kept, lost] = found.both.sort((a, b) => (a.kind ? 1 : 0) - (b.kind ? 1 : 0));
  assert(kept.complete && (lost.kind === "Busy" || lost.complete), JSON.stringify(found.both));
  assert(found.list.find(({ name }) => name === "mla").complete, JSON.stringify(found.list));
}

/** Less room than a file needs: the numbers of the estimate are told, and with room enough it goes on. */
async function quota(page, origin, asked) {
  const session = await page.context().newCDPSession(page);
  await inside(page, (store) => store.delete("mla"));
  const { usage } = await page.evaluate(() => navigator.storage.estimate());
  await session.send("Storage.overrideQuotaForOrigin", { origin, quotaSize: usage + 2_500_000 });
  const full = await inside(page, (store, get) => get("mla"));
  assert(full.kind === "Quota" && full.path === "model.safetensors" && full.neededBytes > 0, JSON.stringify(full));
  // What the browser tells: the room that is really there is none of a page's business.
  const estimate = await page.evaluate(() => navigator.storage.estimate());
  assert(full.usedBytes >= usage && full.usedBytes < full.quotaBytes && estimate.quota > 0, JSON.stringify(full));
  await session.send("Storage.overrideQuotaForOrigin", { origin });
  asked.length = 0;
  const got = await inside(page, (store, get) => get("mla"));
  assert(got.complete && !asked.includes("model.safetensors 0"), `${asked}, ${JSON.stringify(got)}`);
  return full.message;
}

/** Each length about a block's, in parts that cut it anywhere, as the browser's own sum has it. */
async function sums(page) {
  const wrong = await page.evaluate(async () => {
    const { Sha256 } = await import("/latten/sha256.js");
    for (let length = 0; length < 300; length++) {
      const bytes = crypto.getRandomValues(new Uint8Array(length));
      const want = [...new Uint8Array(await crypto.subtle.digest("SHA-256", bytes))].map((b) => b.toString(16).padStart(2, "0")).join("");
      const hash = new Sha256();
      for (let at = 0; at < length; ) {
        const end = Math.min(length, at + 1 + ((at * 7 + length) % 90));
        hash.push(bytes.subarray(at, end));
        at = end;
      }
      if (hash.finish() !== want) return length;
    }
    return null;
  });
  assert(wrong === null, `SHA-256 of ${wrong} bytes`);
}

export async function store(context, { origin, hooks }) {
  const [asked, rule] = [[], { cut: 0, version: false, plain: false }];
  hooks.push((request, response, path, body) => {
    const name = /^\/models\/\w+\/(config\.json|model\.safetensors)$/.exec(path)?.[1];
    if (!name || !request.headers.range) return false;
    asked.push(`${name} ${/\d+/.exec(request.headers.range)[0]}`);
    if (name === "config.json") return false;
    let [status, some, headers] = part(rule.plain ? { headers: {} } : request, body);
    if (rule.version && request.headers.range) headers = { ...headers, etag: '"another"' };
    if (!rule.cut && !rule.plain && !rule.version) return false;
    response.writeHead(status, { ...headers, "content-length": some.length });
    if (!rule.cut) return response.end(some) && true;
    // Some of it, and then the connection is gone.
    response.write(some.subarray(0, rule.cut));
    setTimeout(() => response.destroy(), 150);
    return true;
  });
  const page = await context.newPage();
  await page.goto(`${origin}/tests/blank.html`);
  await sums(page);
  await whole(page, asked);
  const where = await cuts(page, asked, rule);
  await anew(page, asked, rule);
  await refusals(page, rule);
  const full = await quota(page, origin, asked);
  await page.close();
  hooks.pop();
  return `${where}; ${full}`;
}

/** First token of a page that finds its model in the store: from the page's start, three times each. */
export async function storeWarm(context, { origin }) {
  const said = [];
  for (const variant of ["gqa", "gta", "gla", "mla"]) {
    const times = [];
    for (let round = 0; round < 4; round++) {
      const page = await context.newPage();
      await page.goto(`${origin}/tests/blank.html`);
      times.push(await page.evaluate(async (variant) => {
        const { ModelStore } = await import("/latten/store.js");
        const store = await ModelStore.open();
        if (!(await store.list()).some(({ name, complete }) => name === variant && complete)) await store.download(variant, `/models/${variant}`);
        const start = performance.now();
        const model = await store.load(variant);
        const loaded = performance.now();
        let first = 0;
        await model.generate("KING:\n", { maxNewTokens: 2 }, () => (first ||= performance.now()));
        const { pipelines } = model.device.counters;
        model.free();
        return { load: loaded - start, first: first - loaded, pipelines };
      }, variant));
      await page.close();
    }
    const of = ({ load, first }) => `${load.toFixed(0)} + ${first.toFixed(0)}`;
    said.push(`${variant}, ${times[0].pipelines} kernels: ${times.map(of).join(", ")} ms`);
  }
  return `load + first token: ${said.join("; ")}`;
}
