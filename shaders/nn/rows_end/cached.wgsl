// Outputs of few rows that are queries and new rows of the cache: rotated; the queries go to y, the others into their pages, as
// nn/rope.wgsl and kv/append.wgsl have it. Nothing of a row is padded. Slot: nn/rows_end.
// y: (rows, Q_HEADS, Q_DIM) through y_offset, y_row_stride and y_head_stride.
// Constants: PAGE_SIZE ELEMS_PER_U32, PACKED = 4 / ELEMS_PER_U32, and those of its parts. Parts: linear_io, nn/output/cached, cached_place, nn/unit/*, rope/*, kv/pack/*, page,
// kv/slabs/*, kv/slab_stores/*, nn/reduce/*.

// cos_sin: (rows, ROTATED / 2) vec2<f32>
@group(0) @binding(7) var<storage, read> cos_sin: array<vec2<f32>>;
// slots: (rows) u32, page * PAGE_SIZE + offset; past the pool where the token is not kept here
@group(0) @binding(8) var<storage, read> slots: array<u32>;
// pages of one layer, as u32 (kv/slabs/*)
@group(0) @binding(9) var<storage, read_write> pool: array<PoolWord>;

alias PoolWord = u32;

// Units of a workgroup, for each row.
const UNITS = OUTS * OUT_LANES / 4u;

// `values` rotated, if their place is.
fn rotated_unit(row: u32, place: Place, output: u32, values: array<f32, 4>) -> array<f32, 4> {
    if (element_of(place, output, 0u) < place.rotated_first
        || element_of(place, output, 0u) >= place.rotated_first + place.rotated) {
        return values;
    }
    var all = values;
    var turned: array<f32, 4>;
    // unroll
    for (var k = 0u; k < 4u; k++) {
        let i = element_of(place, output, k) - place.rotated_first;
        let angle = cos_sin[row * (ROTATED / 2u) + rope_angle(i, place.rotated)];
        turned[k] = all[k] * angle.x + rope_sign(i, place.rotated) * all[unit_partner(k)] * angle.y;
    }
    return turned;
}

// Writes four values of a new row into its page.
fn store_cached(row: u32, place: Place, output: u32, values: array<f32, 4>) {
    // A token of another rank, or a corrupted buffer: nothing is written.
    let slot = slots[row];
    if (slot >= params.slot_count) {
        return;
    }
    let page = slot / PAGE_SIZE;
    let offset = slot % PAGE_SIZE;
    let group = (place.first - Q_WIDTH) / STATE_DIM;
    var word = 0u;
    if (group < GROUPS) {
        word = page_state(page, PAGE_SIZE, offset, group);
    } else {
        word = page_rope(page, PAGE_SIZE, offset);
    }
    var all = values;
    // unroll
    for (var p = 0u; p < PACKED; p++) {
        var packed: array<f32, ELEMS_PER_U32>;
        // unroll
        for (var e = 0u; e < ELEMS_PER_U32; e++) {
            packed[e] = all[p * ELEMS_PER_U32 + e];
        }
        let first = element_of(place, output, p * ELEMS_PER_U32);
        store_pool_word(u32_at(word, first / ELEMS_PER_U32), pack_elements(packed));
    }
}

// What becomes of a workgroup's sums: `first_out` is its first output, `first_row` its first row of x.
fn finish(head: u32, first_row: u32, first_out: u32, lane: u32) {
    for (var t = lane; t < ROWS * UNITS; t += LANES) {
        let r = t / UNITS;
        let row = first_row + r;
        let output = first_out + t % UNITS * 4u;
        if (row >= params.rows || output >= params.out_dim) {
            continue;
        }
        var values: array<f32, 4>;
        // unroll
        for (var k = 0u; k < 4u; k++) {
            let at = t % UNITS * 4u + k;
            let out_lane = at / OUTS;
            var factor = 1.0;
            // unroll
            for (var m = 0u; m < NORMS; m++) {
                factor = input_factor(total(ROWS * OUTS + r, out_lane));
            }
            let sum = total(r * OUTS + at % OUTS, out_lane);
            values[k] = with_bias(head, matrix_row(first_out, at % OUTS, out_lane), sum * factor);
        }
        let place = place_of(output);
        let turned = rotated_unit(row, place, output, values);
        if (output >= Q_WIDTH) {
            store_cached(row, place, output, turned);
            continue;
        }
        var all = turned;
        let to = params.y_offset + row * params.y_row_stride + place.first / Q_DIM * params.y_head_stride;
        // unroll
        for (var k = 0u; k < 4u; k++) {
            y[to + element_of(place, output, k)] = all[k];
        }
    }
}
