// The input of a linear as it is. Slot: nn/gain.

// What four elements of the input are multiplied by before the product.
fn input_gain(quad: u32) -> vec4<f32> {
    return vec4<f32>(1.0);
}

// What the product is multiplied by, given the sum of squares of the row.
fn input_factor(squares: f32) -> f32 {
    return 1.0;
}
