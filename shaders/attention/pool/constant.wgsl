// One layer's pages (kv/page.wgsl), words of elements. Slot: attention/pool. A driver may take it for constant and move
// reads to where they are used.
@group(0) @binding(1) var<storage, read> pool: array<PoolWord>;
