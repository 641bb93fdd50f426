// The end of a tile whose tokens SQUADS squads of a workgroup have shared: joined in workgroup memory, in the squads' order,
// as `merge` joins partial results. Slot: attention/row_end. Parts: decode_io, softmax, attention/block/*.

// By squad and row of the tile: maximum, total of weights, weighted sums.
var<workgroup> squad_max: array<f32, SQUADS * ROWS>;
var<workgroup> squad_totals: array<f32, SQUADS * ROWS>;
var<workgroup> squad_sums: array<f32, SQUADS * ROWS * V_DIM>;

// Puts what the lane has of its squad's rows there; of a row one team does it.
fn publish_rows(lane: u32, team: u32, squad: u32) {
    // unroll
    for (var b = 0u; b < ROW_BLOCKS; b++) {
        // unroll
        for (var j = 0u; j < ROWS_PER_BLOCK; j++) {
            let row = squad * ROWS + b * ROWS_PER_BLOCK + j;
            if ((b * ROWS_PER_BLOCK + j) % TEAMS == team) {
                // unroll
                for (var i = 0u; i < VALUE_SLOTS; i++) {
                    let word = lane + (VALUE_SLOT_FIRST + i) * TEAM;
                    // unroll
                    for (var e = 0u; e < ELEMS_PER_WORD; e++) {
                        let dim = (word - VALUE_FIRST) * ELEMS_PER_WORD + e;
                        if (word >= VALUE_FIRST && dim < V_DIM) {
                            squad_sums[row * V_DIM + dim] = rows_get(sums[(i * ELEMS_PER_WORD + e) * ROW_BLOCKS + b], j);
                        }
                    }
                }
                if (lane == 0u) {
                    squad_max[row] = rows_get(row_max[b], j);
                    squad_totals[row] = rows_get(totals[b], j);
                }
            }
        }
    }
}

fn finish_tile(item: WorkItem, group: u32, lane: u32, team: u32, thread: u32) {
    publish_rows(lane, team, thread / (TEAM * TEAMS));
    workgroupBarrier();
    for (var t = thread; t < ROWS * V_DIM; t += THREADS) {
        let tile_row = t / V_DIM;
        let dim = t % V_DIM;
        let row = item.row_first + tile_row;
        if (row >= item.q_len * HEADS_PER_GROUP) {
            break; // so are those behind it
        }
        var top = FLOOR;
        // unroll
        for (var k = 0u; k < SQUADS; k++) {
            top = max(top, squad_max[k * ROWS + tile_row]);
        }
        var total = 0.0;
        var sum = 0.0;
        // unroll
        for (var k = 0u; k < SQUADS; k++) {
            let share = softmax_weight(squad_max[k * ROWS + tile_row], top);
            total += share * squad_totals[k * ROWS + tile_row];
            sum = fma(share, squad_sums[k * ROWS * V_DIM + t], sum);
        }
        let finished = finish_row(item, group, row, top, total);
        if (item.partial_row != NO_PARTIAL) {
            partials[partial_of(item, group, tile_row) * V_DIM + dim] = sum * finished.factor;
        } else {
            out[query_row(item, group, row) * V_DIM + dim] = sum * finished.factor;
        }
        if (dim == 0u) {
            write_lse(item, group, tile_row, finished.lse2);
        }
    }
}
