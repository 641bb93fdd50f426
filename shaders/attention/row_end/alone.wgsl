// The end of a tile whose tokens one squad has seen: every squad of a workgroup has a group of its own. Slot:
// attention/row_end. Parts: decode_io, attention/block/*.

// Writes a finished row, or its partial result if the tokens of its tile are split.
fn write_row(item: WorkItem, group: u32, lane: u32, tile_row: u32, total: f32, top: f32, values: array<f32, SUM_WIDTH>) {
    let row = item.row_first + tile_row;
    if (row >= item.q_len * HEADS_PER_GROUP) {
        return;
    }
    let split = item.partial_row != NO_PARTIAL;
    let finished = finish_row(item, group, row, top, total);
    let partial = partial_of(item, group, tile_row);
    let final_row = query_row(item, group, row);
    // unroll
    for (var i = 0u; i < VALUE_SLOTS; i++) {
        let word = lane + (VALUE_SLOT_FIRST + i) * TEAM;
        // unroll
        for (var e = 0u; e < ELEMS_PER_WORD; e++) {
            let dim = (word - VALUE_FIRST) * ELEMS_PER_WORD + e;
            if (word >= VALUE_FIRST && dim < V_DIM) {
                if (split) {
                    partials[partial * V_DIM + dim] = values[i * ELEMS_PER_WORD + e] * finished.factor;
                } else {
                    out[final_row * V_DIM + dim] = values[i * ELEMS_PER_WORD + e] * finished.factor;
                }
            }
        }
    }
    if (lane == 0u) {
        write_lse(item, group, tile_row, finished.lse2);
    }
}

fn finish_tile(item: WorkItem, group: u32, lane: u32, team: u32, thread: u32) {
    // unroll
    for (var b = 0u; b < ROW_BLOCKS; b++) {
        // unroll
        for (var j = 0u; j < ROWS_PER_BLOCK; j++) {
            if ((b * ROWS_PER_BLOCK + j) % TEAMS == team) {
                var values: array<f32, SUM_WIDTH>;
                // unroll
                for (var i = 0u; i < SUM_WIDTH; i++) {
                    values[i] = rows_get(sums[i * ROW_BLOCKS + b], j);
                }
                let tile_row = b * ROWS_PER_BLOCK + j;
                write_row(item, group, lane, tile_row, rows_get(totals[b], j), rows_get(row_max[b], j), values);
            }
        }
    }
}
