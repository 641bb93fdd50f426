// Four elements that are rotated together, pairs i and i + span / 2: two neighbours and their partners. Slot: nn/unit.

// The k-th element of unit `unit` of a span; `span` is a multiple of 4.
fn unit_element(unit: u32, k: u32, span: u32) -> u32 {
    return (k / 2u) * (span / 2u) + 2u * unit + k % 2u;
}

// The partner of the k-th.
fn unit_partner(k: u32) -> u32 {
    return k ^ 2u;
}
