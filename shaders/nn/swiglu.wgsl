// y[r, i] = silu(gate[r, i]) up[r, i],  silu(g) = g / (1 + exp(-g))
//
// Grid: (ceil(width / 64), rows); one lane per element.
// Parts: none.

struct Params {
    width: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
// x: (rows, 2 * width) f32, [gate | up]
@group(0) @binding(1) var<storage, read> x: array<f32>;
// y: (rows, width) f32
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if (id.x >= params.width) {
        return;
    }
    let x_first = id.y * 2u * params.width + id.x;
    let gate = x[x_first];
    // Bounded: drivers may assume that there is no infinity.
    y[id.y * params.width + id.x] = gate / (1.0 + exp(min(-gate, 80.0))) * x[x_first + params.width];
}
