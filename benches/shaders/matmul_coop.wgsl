// Ceiling 3: f16 products with f32 sums on matrix units. Each subgroup multiplies 64 x K by K x 64, in tiles of
// 16 x 16 from padded workgroup arrays, as an attention kernel does; nothing but the first fill comes from memory.
// Needs subgroups of one known size (SUBGROUPS of them in LANES lanes) and an f16 x f16 -> f32 shape of 16 x 16 x 16.
//
// Grid: any. Each subgroup does STEPS * 2 * 64 * 64 * 16 FLOP.
//
//   X[i][k] = (i + 2 k) % 3 - 1,  Y[k][j] = (k + 2 j) % 5 - 2: small integers, so that every sum is exact
//   sink[workgroup][i][j] = (STEPS / 4) * sum over row and column tiles r, c of sum_k X[16 r + i][k] Y[k][16 c + j]

enable f16;
enable wgpu_cooperative_matrix;

const LANES = 128u;
const STEPS = 2048u;
const WIDTH = 64u;
// Padded by 16 bytes, against bank conflicts.
const STRIDE = WIDTH + 8u;

alias Left = coop_mat16x16<f16, A>;
alias Right = coop_mat16x16<f16, B>;
alias Sum = coop_mat16x16<f32, C>;

// (workgroups, 16, 16) f32; all subgroups of a workgroup write the same
@group(0) @binding(0) var<storage, read_write> sink: array<f32>;

var<workgroup> x: array<f16, WIDTH * STRIDE>; // [row][k]
var<workgroup> y: array<f16, WIDTH * STRIDE>; // [k][column]

@compute @workgroup_size(LANES)
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(local_invocation_index) lane: u32) {
    for (var i = lane; i < WIDTH * WIDTH; i += LANES) {
        let at = i / WIDTH * STRIDE + i % WIDTH;
        x[at] = f16(f32((i / WIDTH + 2u * (i % WIDTH)) % 3u) - 1.0);
        y[at] = f16(f32((i / WIDTH + 2u * (i % WIDTH)) % 5u) - 2.0);
    }
    workgroupBarrier();

    var c00 = Sum(); var c01 = Sum(); var c02 = Sum(); var c03 = Sum();
    var c10 = Sum(); var c11 = Sum(); var c12 = Sum(); var c13 = Sum();
    var c20 = Sum(); var c21 = Sum(); var c22 = Sum(); var c23 = Sum();
    var c30 = Sum(); var c31 = Sum(); var c32 = Sum(); var c33 = Sum();
    for (var step = 0u; step < STEPS; step++) {
        // Another place each time, or the loads would leave the loop.
        let k = step % 4u * 16u;
        let y0 = coopLoadT<Right>(&y[k * STRIDE], STRIDE);
        let y1 = coopLoadT<Right>(&y[k * STRIDE + 16u], STRIDE);
        let y2 = coopLoadT<Right>(&y[k * STRIDE + 32u], STRIDE);
        let y3 = coopLoadT<Right>(&y[k * STRIDE + 48u], STRIDE);
        let x0 = coopLoadT<Left>(&x[k], STRIDE);
        c00 = coopMultiplyAdd(x0, y0, c00);
        c01 = coopMultiplyAdd(x0, y1, c01);
        c02 = coopMultiplyAdd(x0, y2, c02);
        c03 = coopMultiplyAdd(x0, y3, c03);
        let x1 = coopLoadT<Left>(&x[16u * STRIDE + k], STRIDE);
        c10 = coopMultiplyAdd(x1, y0, c10);
        c11 = coopMultiplyAdd(x1, y1, c11);
        c12 = coopMultiplyAdd(x1, y2, c12);
        c13 = coopMultiplyAdd(x1, y3, c13);
        let x2 = coopLoadT<Left>(&x[32u * STRIDE + k], STRIDE);
        c20 = coopMultiplyAdd(x2, y0, c20);
        c21 = coopMultiplyAdd(x2, y1, c21);
        c22 = coopMultiplyAdd(x2, y2, c22);
        c23 = coopMultiplyAdd(x2, y3, c23);
        let x3 = coopLoadT<Left>(&x[48u * STRIDE + k], STRIDE);
        c30 = coopMultiplyAdd(x3, y0, c30);
        c31 = coopMultiplyAdd(x3, y1, c31);
        c32 = coopMultiplyAdd(x3, y2, c32);
        c33 = coopMultiplyAdd(x3, y3, c33);
    }
    let sum0 = c00 + c01 + c02 + c03;
    let sum1 = c10 + c11 + c12 + c13;
    let sum2 = c20 + c21 + c22 + c23;
    let sum3 = c30 + c31 + c32 + c33;
    let sum = sum0 + sum1 + sum2 + sum3;
    coopStoreT(sum, &sink[workgroup.x * 256u], 16u);
}
