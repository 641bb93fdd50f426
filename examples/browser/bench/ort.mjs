// One GQA decode step through onnxruntime-web's WebGPU provider and through latten, on the same adapter.
// After ./dev browser: node examples/browser/bench/ort.mjs FOLDER/node_modules/onnxruntime-web
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { open } from "../tests/run.mjs";
import { serve } from "../tests/serve.mjs";

const [heads, kvHeads, dim, tokens] = [16, 4, 128, 1024];

// As much of protobuf as an ONNX file of one node needs: https://onnx.ai/onnx/repo-docs/IR.html, onnx.proto.
const varint = (n) => (n < 128 ? [n] : [(n & 127) | 128, ...varint(n >>> 7)]);
const int = (field, n) => [...varint(field << 3), ...varint(n)];
const block = (field, bytes) => [...varint((field << 3) | 2), ...varint(bytes.length), ...bytes];
const text = (field, string) => block(field, [...new TextEncoder().encode(string)]);
const real = (field, x) => [...varint((field << 3) | 5), ...new Uint8Array(new Float32Array([x]).buffer)];

function model() {
  const value = (name, type, shape) => {
    const dims = shape.flatMap((n) => block(1, typeof n === "string" ? text(2, n) : int(1, n)));
    return [...text(1, name), ...block(2, block(1, [...int(1, type), ...block(2, dims)]))];
  };
  const [FLOAT, INT32] = [1, 6];
  const row = (n) => [1, 1, n * dim];
  const inputs = [["q", FLOAT, row(heads)], ["k", FLOAT, row(kvHeads)], ["v", FLOAT, row(kvHeads)],
    ["pk", FLOAT, [1, kvHeads, "past", dim]], ["pv", FLOAT, [1, kvHeads, "past", dim]], ["sl", INT32, [1]], ["tl", INT32, [1]]];
  const outputs = [["o", FLOAT, row(heads)], ["ok", FLOAT, [1, kvHeads, "all", dim]], ["ov", FLOAT, [1, kvHeads, "all", dim]]];
  const attribute = (name, rest, type) => block(5, [...text(1, name), ...rest, ...int(20, type)]);
  const node = [...inputs.flatMap(([name]) => text(1, name)), ...outputs.flatMap(([name]) => text(2, name)),
    ...text(4, "GroupQueryAttention"), ...attribute("num_heads", int(3, heads), 2), ...attribute("kv_num_heads", int(3, kvHeads), 2),
    ...attribute("scale", real(2, dim ** -0.5), 1), ...text(7, "com.microsoft")];
  const graph = [...block(1, node), ...text(2, "g"), ...inputs.flatMap((v) => block(11, value(...v))),
    ...outputs.flatMap((v) => block(12, value(...v)))];
  const opset = (domain, version) => block(8, [...text(1, domain), ...int(2, version)]);
  return Uint8Array.from([...int(1, 10), ...block(7, graph), ...opset("", 21), ...opset("com.microsoft", 1)]);
}

/** In the page: microseconds of a step with the result read each time, and without. */
async function onnxruntime({ bytes, heads, kvHeads, dim, tokens }) {
  const ort = await import("/ort/dist/ort.all.min.mjs");
  ort.env.wasm.numThreads = 1;
  const how = { executionProviders: ["webgpu"], preferredOutputLocation: "gpu-buffer" };
  const session = await ort.InferenceSession.create(Uint8Array.from(bytes), how);
  const device = await ort.env.webgpu.device;
  const tensor = (dims) => {
    const data = new Float32Array(dims.reduce((a, b) => a * b)).map((_, i) => ((Math.imul(i, 0x9e3779b1) >>> 7) % 129) / 64 - 1);
    const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_DST | GPUBufferUsage.COPY_SRC;
    const buffer = device.createBuffer({ size: data.byteLength, usage });
    device.queue.writeBuffer(buffer, 0, data);
    return ort.Tensor.fromGpuBuffer(buffer, { dataType: "float32", dims });
  };
  const past = [1, kvHeads, tokens - 1, dim];
  const feeds = { q: tensor([1, 1, heads * dim]), k: tensor([1, 1, kvHeads * dim]), v: tensor([1, 1, kvHeads * dim]),
    pk: tensor(past), pv: tensor(past), sl: new ort.Tensor("int32", Int32Array.of(tokens - 1), [1]),
    tl: new ort.Tensor("int32", Int32Array.of(tokens), [1]) };
  const run = async (read) => {
    const made = await session.run(feeds);
    const values = read ? await made.o.getData() : null;
    Object.values(made).forEach((tensor) => tensor.dispose());
    return values;
  };
  const first = await run(true);
  if (!first.every(Number.isFinite) || first.every((x) => x === 0)) throw new Error(`${first.slice(0, 4)}`);
  const time = async (count, each) => {
    const start = performance.now();
    for (let i = 0; i < count; i++) await run(each || i === count - 1);
    return Math.round((1000 * (performance.now() - start)) / count);
  };
  return { read: [await time(20, true), await time(20, true)], unread: [await time(20, false), await time(20, false)] };
}

async function latten({ heads, kvHeads, dim, tokens }) {
  const module = await import("/latten/latten.js");
  await module.default();
  const device = await module.Device.request();
  const heads_ = { variant: "gqa", qHeads: heads, kvHeads, headDim: dim };
  const measure = async (dtype) => {
    const { microseconds, maxError } = await device.measure(heads_, dtype, { tokens, milliseconds: 800 });
    return `${Math.round(microseconds)} us, ${maxError.toExponential(0)} off`;
  };
  return { adapter: device.info.adapter, f32: [await measure("f32"), await measure("f32")], f16: [await measure("f16"), await measure("f16")] };
}

const site = join(dirname(fileURLToPath(import.meta.url)), "../../../target/browser/site");
const server = await serve({ "": site, ort: process.argv[2], tests: join(dirname(fileURLToPath(import.meta.url)), "../tests") });
const browser = await open();
const page = await browser.context.newPage();
await page.goto(`${server.origin}/tests/blank.html`);
const shape = { heads, kvHeads, dim, tokens };
console.log("onnxruntime-web, f32:", await page.evaluate(onnxruntime, { bytes: [...model()], ...shape }).catch((error) => `${error}`));
console.log("latten:", await page.evaluate(latten, shape).catch((error) => `${error}`));
await browser.close();
server.close();
