// Outputs of few rows, stored one by one. Slot: nn/rows_end.
// Parts: linear_io, nn/output/*, nn/tail/*, nn/reduce/*.

// What becomes of a workgroup's sums: `first_out` is its first output, `first_row` its first row of x.
fn finish(head: u32, first_row: u32, first_out: u32, lane: u32) {
    for (var t = lane; t < ROWS * OUTPUTS * OUT_LANES; t += LANES) {
        let out_lane = t % OUT_LANES;
        let r = t / OUT_LANES / OUTPUTS;
        let n = t / OUT_LANES % OUTPUTS;
        var factor = 1.0;
        // unroll
        for (var m = 0u; m < NORMS; m++) {
            factor = input_factor(total(ROWS * OUTS + r, out_lane));
        }
        let a = n * SUMS_PER_OUTPUT;
        let b = a + SUMS_PER_OUTPUT - 1u;
        let first = with_bias(head, matrix_row(first_out, a, out_lane), total(r * OUTS + a, out_lane) * factor);
        let last = with_bias(head, matrix_row(first_out, b, out_lane), total(r * OUTS + b, out_lane) * factor);
        store(first_row + r, head, first_out + n * OUT_LANES + out_lane, joined(first, last));
    }
}
