// Where weights in blocks lie: their integers in one plane, `weights`, and what belongs to them in another, `scales`: for GROUP
// words HEADER u32s of scales, then HIGH u32s of upper bits for each word.
// Constants: GROUP, HEADER, HIGH, SCALES_BINDING. Parts: what binds `weights`.
@group(0) @binding(SCALES_BINDING) var<storage, read> scales: array<u32>;
const GROUP_STRIDE = HEADER + GROUP * HIGH;

fn header_word(at: u32, n: u32) -> u32 {
    return scales[at / GROUP * GROUP_STRIDE + n];
}

fn high_word(at: u32, n: u32) -> u32 {
    return scales[at / GROUP * GROUP_STRIDE + HEADER + at % GROUP * HIGH + n];
}
