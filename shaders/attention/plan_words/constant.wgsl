// The words of a plan (attention/plan.wgsl). Slot: attention/plan_words.
@group(0) @binding(3) var<storage, read> plan: array<u32>;
