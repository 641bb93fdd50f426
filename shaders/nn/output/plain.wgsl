// One row of the matrix per output. Slot: nn/output.
// A workgroup's n-th sums of its out_lanes belong to row matrix_row(..), and output output_at(..) joins SUMS_PER_OUTPUT.
const SUMS_PER_OUTPUT = 1u;

fn matrix_row(first: u32, n: u32, out_lane: u32) -> u32 {
    return first + n * OUT_LANES + out_lane;
}

fn joined(first: f32, last: f32) -> f32 {
    return first;
}
