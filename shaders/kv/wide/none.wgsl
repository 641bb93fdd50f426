// No channel of a key is wide. Slot: kv/wide of append_scaled.

fn wide_keep(token: u32, group: u32, is_value: bool, rope: u32, lane: u32) {
}

fn wide_rest(group: u32, e: u32, x: f32) -> f32 {
    return x;
}
