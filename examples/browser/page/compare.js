// The kernel table: one decode step of each variant at the paper's XL shape.
import { duration, percent, short, whole } from "./format.js";

const shapes = [
  ["GQA-4", { variant: "gqa", qHeads: 16, kvHeads: 4, headDim: 128 }],
  ["GTA-4", { variant: "gta", qHeads: 16, kvHeads: 4, headDim: 128, ropeDim: 64 }],
  ["GLA-2", { variant: "gla", qHeads: 16, latentHeads: 2, latentDim: 256, ropeDim: 64 }],
  ["MLA", { variant: "mla", qHeads: 16, latentDim: 512, ropeDim: 64 }],
];

/** Measures all rows; `onStart` gets the name and the number of each, `onRow` the row when it is there. Resolves to what is downloaded. */
export async function compare(device, onStart, onRow) {
  const info = device.info;
  // A software adapter would take minutes for what fills a GPU.
  const [sequences, tokens] = info.software ? [1, 1024] : [16, 4096];
  const read = await device.streamingRead().catch(() => null);
  const rows = [];
  for (const [name, layout] of shapes) {
    onStart(name, rows.length + 1, shapes.length);
    const found = await device.measure(layout, "f16", { tokens, sequences, milliseconds: 400 });
    const row = { name, ...layout, dtype: "f16", tokens, sequences, ...found, ofRead: read && found.gbPerSecond / read };
    rows.push(row);
    onRow(row);
  }
  const when = new Date().toISOString();
  return { adapter: info.adapter, agent: navigator.userAgent, when, device: info, readGbPerSecond: read, rows };
}

export function cells(row) {
  return [row.name, whole.format(row.bytesPerToken), duration(row.microseconds), short(row.gbPerSecond),
    row.ofRead === null ? "no clock" : percent(row.ofRead), row.maxError.toExponential(0)];
}

export function download(table) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(table, null, 1)], { type: "application/json" }));
  link.download = "latten-kernels.json";
  link.click();
  URL.revokeObjectURL(link.href);
}
