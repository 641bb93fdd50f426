// How the sums of lanes are joined, whoever does it: first eight lanes side by side, in pairs of pairs,
//   ((0 + 4) + (2 + 6)) + ((1 + 5) + (3 + 7)),
// then the SEGMENTS of an output in turn. One order, so a row's result does not hang on which slot of nn/reduce it met.
// Constants: SEGMENTS = IN_LANES / 8, PADDED, OUT_LANES, LANES.
const SEGMENT_STRIDE = SEGMENTS | 1u; // odd, against bank conflicts
var<workgroup> totals: array<f32, PADDED * OUT_LANES>;
