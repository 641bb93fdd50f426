// Two query rows per register block. Slot: attention/block.

fn rows_get(rows: Rows, i: u32) -> f32 {
    return rows[i];
}

fn rows_widen(rows: Rows) -> vec4<f32> {
    return vec4<f32>(rows, 0.0, 0.0);
}

fn rows_narrow(v: vec4<f32>) -> Rows {
    return v.xy;
}
