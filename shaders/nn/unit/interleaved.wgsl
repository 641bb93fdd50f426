// Four elements that are rotated together, pairs 2i and 2i + 1: four neighbours. Slot: nn/unit.

// The k-th element of unit `unit` of a span; `span` is a multiple of 4.
fn unit_element(unit: u32, k: u32, span: u32) -> u32 {
    return 4u * unit + k;
}

// The partner of the k-th.
fn unit_partner(k: u32) -> u32 {
    return k ^ 1u;
}
