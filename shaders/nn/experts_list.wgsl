// The pairs (row, slot) of a step by the expert they go to, in tiles of TILE_ROWS of one expert each.
//   the pairs of expert e, in their own order, stand from tile b(e) on, b(e) = floor(first(e) / TILE_ROWS) + e,
//   where first(e) pairs go to experts before e; what is left of its tiles, up to b(e + 1), holds NONE
// Room enough: n pairs need ceil(n / TILE_ROWS) tiles, and b(e + 1) - b(e) is no less. So each workgroup finds its place from
// the choices alone, without waiting for another; nothing depends on what runs first.
//
// Grid: (experts); each reads all choices. A lane has a run of pairs, so that their order stays.
// Constants: LANES, TILE_ROWS. Parts: experts_listed.

struct Params {
    pairs: u32, // rows * experts of a row
    experts: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
// ids: (pairs) u32, the expert of each
@group(0) @binding(1) var<storage, read> ids: array<u32>;
// list: (pairs / TILE_ROWS + experts, TILE_ROWS) u32, pairs and NONE
@group(0) @binding(2) var<storage, read_write> list: array<u32>;

// Of each lane's pairs: those of experts before this one, and this one's.
var<workgroup> before: array<u32, LANES>;
var<workgroup> own: array<u32, LANES>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let expert = group.x;
    let run = (params.pairs + LANES - 1u) / LANES;
    let begin = min(lane * run, params.pairs);
    let end = min(begin + run, params.pairs);
    var lower = 0u;
    var equal = 0u;
    for (var pair = begin; pair < end; pair++) {
        let e = expert_of(pair);
        lower += select(0u, 1u, e < expert);
        equal += select(0u, 1u, e == expert);
    }
    before[lane] = lower;
    own[lane] = equal;
    workgroupBarrier();
    var first = 0u;
    var count = 0u;
    var rank = 0u;
    for (var i = 0u; i < LANES; i++) {
        first += before[i];
        count += own[i];
        rank += select(0u, own[i], i < lane);
    }
    let base = (first / TILE_ROWS + expert) * TILE_ROWS;
    let next = ((first + count) / TILE_ROWS + expert + 1u) * TILE_ROWS;
    for (var pair = begin; pair < end; pair++) {
        if (expert_of(pair) == expert) {
            list[base + rank] = pair;
            rank++;
        }
    }
    for (var at = base + count + lane; at < next; at += LANES) {
        list[at] = NONE;
    }
}
