// The words of a plan (attention/plan.wgsl). Slot: attention/plan_words. No kernel writes to them, but a driver that knows so
// may move the look-up of a page past the barriers it is issued ahead of, to where the page is used.
@group(0) @binding(3) var<storage, read_write> plan: array<u32>;
