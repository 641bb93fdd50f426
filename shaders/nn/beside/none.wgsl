// Nothing beside a product of few rows. Slot: nn/beside.

fn rest_of(group: vec3<u32>, lane: u32) -> bool {
    return false;
}
