// One layer's pages (kv/page.wgsl), words of elements. Slot: attention/pool. No kernel that reads it writes to it, but a
// driver that knows so may move reads past the barriers they are issued ahead of, to where they are used.
@group(0) @binding(1) var<storage, read_write> pool: array<PoolWord>;
