// y[r, first_out + o] += sum_s weights[r, s] x[r, s, o]: what the experts of a row made of it, slots in their order.
//
// Grid: (ceil(outputs / LANES), rows). Constants: LANES, TOP.

struct Params {
    outputs: u32, // of this dispatch
    first_out: u32,
    x_row_stride: u32, // of a pair
    y_row_stride: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
// weights: (rows, TOP) f32
@group(0) @binding(1) var<storage, read> weights: array<f32>;
// x: (rows, TOP, outputs) f32, pairs x_row_stride apart
@group(0) @binding(2) var<storage, read> x: array<f32>;
// y: (rows, all outputs) f32, y_row_stride apart
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let out = group.x * LANES + lane;
    if (out >= params.outputs) {
        return;
    }
    var sum = 0.0;
    for (var slot = 0u; slot < TOP; slot++) {
        let pair = group.y * TOP + slot;
        sum += weights[pair] * x[pair * params.x_row_stride + out];
    }
    y[group.y * params.y_row_stride + params.first_out + out] += sum;
}
