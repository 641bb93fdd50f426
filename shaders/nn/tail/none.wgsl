// Nothing behind the outputs of a linear. Slot: nn/tail.

fn tail(row: u32, head: u32, i: u32) -> f32 {
    return 0.0;
}
