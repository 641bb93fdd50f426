// KV-cache bytes against tokens, as an SVG that grows with the text.
import { bytes, whole } from "./format.js";

const margin = { left: 64, right: 12, top: 12 };
const graph = 236;
/** Pixels from one line to the next where several are of the same bytes. */
const apart = 3.5;
const dashes = { gqa: "", gta: "9 5", gla: "2 4", mla: "12 4 2 4" };

function element(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  return made;
}

/** By name, how many pixels it is moved so that those with the same slope lie side by side. */
function shifts(names, slopes) {
  return Object.fromEntries(names.map((name) => {
    const same = names.filter((other) => slopes[other] === slopes[name]);
    return [name, (same.indexOf(name) - (same.length - 1) / 2) * apart];
  }));
}

/** A step that reads well on an axis: 1, 2 or 5 times a power of `base`. */
function niceStep(most, base) {
  for (let unit = 1; ; unit *= base) {
    for (const factor of base === 10 ? [1, 2, 5] : [1, 2, 4, 8]) if (most / (unit * factor) <= 5) return unit * factor;
  }
}

/**
 * `slopes`: bytes per token by variant. `runs`: by variant, [[tokens, bytes], ..] of the last text.
 */
export function draw(container, slopes, runs, mostTokens) {
  // One unit is one pixel, so that the words are as large on a phone as elsewhere.
  const width = Math.max(container.clientWidth, 280);
  const wide = width > 420;
  const height = graph + (wide ? 64 : 100);
  const names = Object.keys(slopes);
  const heldBytes = Object.values(runs).flat().map(([, b]) => b);
  const mostBytes = Math.max(...names.map((name) => slopes[name] * mostTokens), ...heldBytes, 1);
  const x = (tokens) => margin.left + (tokens / mostTokens) * (width - margin.left - margin.right);
  const y = (b) => graph - (b / mostBytes) * (graph - margin.top);
  const held = Object.entries(runs).filter(([, run]) => run.length > 0);
  const said = names.map((name) => `${name.toUpperCase()} ${whole.format(slopes[name])} bytes per token`).join(", ");
  const last = ([name, run]) => `; ${name.toUpperCase()} holds ${bytes(run.at(-1)[1])} for ${run.at(-1)[0]} tokens`;
  const label = `Bytes of the KV cache: ${said}${held.map(last).join("")}.`;
  const svg = element("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  const tokenStep = niceStep(mostTokens * (wide ? 1 : 1.6), 10);
  for (let t = 0; t <= mostTokens; t += tokenStep) {
    svg.append(element("line", { class: "grid", x1: x(t), x2: x(t), y1: margin.top, y2: y(0) }));
    svg.append(element("text", { x: x(t), y: y(0) + 16, "text-anchor": "middle" }, whole.format(t)));
  }
  const byteStep = niceStep(mostBytes, 16);
  for (let b = 0; b <= mostBytes; b += byteStep) {
    svg.append(element("line", { class: "grid", x1: x(0), x2: x(mostTokens), y1: y(b), y2: y(b) }));
    svg.append(element("text", { x: margin.left - 6, y: y(b) + 4, "text-anchor": "end" }, bytes(b)));
  }
  const columns = wide ? 4 : 2;
  const [lineShift, heldShift] = [shifts(names, slopes), shifts(held.map(([name]) => name), slopes)];
  names.forEach((name, i) => {
    const line = { class: `${name} row-bytes`, "stroke-dasharray": dashes[name] };
    const moved = { transform: `translate(0 ${lineShift[name]})` };
    svg.append(element("line", { ...line, ...moved, x1: x(0), y1: y(0), x2: x(mostTokens), y2: y(slopes[name] * mostTokens) }));
    const left = (wide ? margin.left : margin.right) + (i % columns) * ((width - margin.left - margin.right) / columns);
    const top = graph + 46 + 36 * Math.floor(i / columns);
    svg.append(element("line", { ...line, x1: left, x2: left + 28, y1: top - 4, y2: top - 4, "stroke-width": 3 }));
    svg.append(element("text", { class: "key", x: left + 33, y: top }, name.toUpperCase()));
    svg.append(element("text", { x: left, y: top + 14 }, `${whole.format(slopes[name])} B/token`));
  });
  for (const [name, run] of held) {
    const at = ([tokens, b]) => [x(tokens).toFixed(1), y(b).toFixed(1)];
    const steps = run.map(at).map(([px, py], i) => (i ? `H${px}V${py}` : `M${px},${py}`));
    // Up and left alike, so that they stay side by side where they rise.
    const moved = `translate(${heldShift[name]} ${heldShift[name]})`;
    svg.append(element("path", { class: `${name} held`, d: steps.join(""), transform: moved }));
  }
  for (const bytesPerToken of new Set(Object.values(slopes))) {
    const same = names.filter((name) => slopes[name] === bytesPerToken).map((name) => name.toUpperCase());
    if (same.length === 1) continue;
    // Below the lines, where the words begin.
    const y0 = y(bytesPerToken * mostTokens * (wide ? 0.7 : 0.52)) + 16;
    svg.append(element("text", { class: "alike", x: x(mostTokens) - 4, y: y0, "text-anchor": "end" }, same.join(" = ")));
  }
  svg.append(element("text", { x: x(mostTokens), y: y(0) + 30, "text-anchor": "end" }, "tokens"));
  container.replaceChildren(svg);
}
