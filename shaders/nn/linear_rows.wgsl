// y[r, h, o] (+)= scale (sum_i W[h, o, i] x[r, h, i] + b[h, o])     for few rows: each weight is read once per ROWS rows.
// The slots add to it: weights with scales, a norm before, SwiGLU or rotated elements after.
//
// Grid: (ceil(outputs / (OUTPUTS * OUT_LANES)), ceil(rows / ROWS), heads), or more with nn/beside/norm.wgsl.
// IN_LANES lanes go along the input together, a word of weights each and STEPS times OUTS of those in flight, since
// the time is that of the memory; every lane does OUTS matrix rows for ROWS rows of x. With IN_LANES = 1 no lane waits for
// another, which is what counts where lanes are simulated.
// A row's sums are formed in the same order whatever ROWS and STEPS are and whatever the other rows hold.
// Constants: ROWS, OUTS, STEPS, IN_LANES, OUT_LANES, LANES = IN_LANES * OUT_LANES, VECS_PER_WORD, STEP_WORDS = STEPS *
// OUTS, OUTPUTS = OUTS / SUMS_PER_OUTPUT, NORMS (1 with a norm, else 0); PADDED = PASSES * PASS, at least
// ROWS * (OUTS + NORMS); SEGMENTS; WHOLE (1 where no step passes the end of a row, else 0); JOINED_LANES, JOINED_SUMS: rest_norm's lanes per sum, and sums per total.
// Parts: linear_params, linear_io, and one each of nn/input/*, kv/element/*, nn/weights/*, nn/sums/*, nn/gain/*, nn/output/*,
// nn/tail/*, nn/beside/*, nn/rows_end/* (what becomes of the sums), nn/reduce/* (which holds main, and the sums
// over lanes: ROWS * OUTS of the products, then ROWS * NORMS of the squares, OUT_LANES of each).

fn product(workgroup: vec3<u32>, lane: u32) {
    let group = product_group(workgroup);
    if (rest_of(group, lane)) {
        return;
    }
    let head = group.z;
    let first_row = group.y * ROWS;
    let in_lane = lane % IN_LANES;
    let first_out = group.x * OUTPUTS * OUT_LANES;
    if (first_out >= params.out_dim / SUMS_PER_OUTPUT + params.tail_dim) {
        return; // the grid is wide for the sake of rest_of
    }
    var x_base: array<u32, ROWS>;
    // unroll
    for (var r = 0u; r < ROWS; r++) {
        x_base[r] = input_base(first_row + r, head);
    }
    var w_base: array<u32, OUTS>;
    // unroll
    for (var j = 0u; j < OUTS; j++) {
        w_base[j] = weight_base(head, matrix_row(first_out, j, lane / IN_LANES));
    }
    reduce(lane, row_sums(x_base, w_base, in_lane));
    finish(head, first_row, first_out, lane);
}
