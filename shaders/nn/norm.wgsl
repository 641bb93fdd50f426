// y[r, g, i] = gain[g, i] x[r, g, i] / sqrt(mean_i x[r, g, i]^2 + eps), then `tail` further elements of each row copied
// (GLA, arXiv 2505.21487 section 3.3.2: the latents are normalised one by one, the rope key behind them is not), and `gap` elements
// behind each group (the values of GQA's heads, between keys that are normalised).
//
// `joined` takes one mean over all groups (OLMo 2's norm of all keys, between which values lie); `adds` adds to y.
//
// Grid: (groups + 1 if there is a tail, rows); one workgroup per group of a row.
// Constants: LANES. Parts: none.

struct Params {
    groups: u32,
    dim: u32,
    tail: u32,
    x_offset: u32,
    x_row_stride: u32,
    y_offset: u32,
    y_row_stride: u32,
    eps: f32,
    gap: u32,
    joined: u32,
    adds: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
// x: (rows, groups * (dim + gap) + tail) f32 through x_offset and x_row_stride
@group(0) @binding(1) var<storage, read> x: array<f32>;
// gain: (groups, dim) f32
@group(0) @binding(2) var<storage, read> gain: array<f32>;
// y: (rows, groups * (dim + gap) + tail) f32 through y_offset and y_row_stride
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

var<workgroup> squares: array<f32, LANES>;

fn added(at: u32, value: f32) -> f32 {
    if (params.adds != 0u) {
        return y[at] + value;
    }
    return value;
}

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    let first = group.x * (params.dim + params.gap);
    let x_first = params.x_offset + group.y * params.x_row_stride + first;
    let y_first = params.y_offset + group.y * params.y_row_stride + first;
    if (group.x == params.groups) {
        for (var i = lane; i < params.tail; i += LANES) {
            y[y_first + i] = added(y_first + i, x[x_first + i]);
        }
        return;
    }
    var square = 0.0;
    let groups = select(1u, params.groups, params.joined != 0u);
    let squares_first = select(x_first, x_first - first, params.joined != 0u);
    for (var g = 0u; g < groups; g++) {
        let group_first = squares_first + g * (params.dim + params.gap);
        for (var i = lane; i < params.dim; i += LANES) {
            square += x[group_first + i] * x[group_first + i];
        }
    }
    squares[lane] = square;
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < LANES; i++) {
        sum += squares[i];
    }
    let scale = 1.0 / sqrt(sum / f32(groups * params.dim) + params.eps);
    for (var i = lane; i < params.dim; i += LANES) {
        y[y_first + i] = added(y_first + i, x[x_first + i] * scale * gain[group.x * params.dim + i]);
    }
    for (var i = params.dim + lane; i < params.dim + params.gap; i += LANES) {
        y[y_first + i] = added(y_first + i, x[x_first + i]);
    }
}
