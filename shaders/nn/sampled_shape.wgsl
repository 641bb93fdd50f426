// shaped[r][i] = logit i of a row with its bias and penalties, -infinity where the row's mask forbids it; and the top of each part.
// l = logit + bias; where i was seen in the window: l / repetition where l > 0, else l * repetition; then
// l - frequency * count - presence where it was drawn `count` > 0 times in the window. Within the range of f32.
//
// Grid: (parts, rows).
// Constants: LANES, PART. Parts: top, sampled_rows.

struct Params {
    vocab: u32,
    row_stride: u32,
}
@group(0) @binding(0) var<uniform> params: Params;
// logits: rows of (vocab) f32, row_stride elements apart
@group(0) @binding(2) var<storage, read> logits: array<f32>;
// Tokens that the step before drew: u32
@group(0) @binding(3) var<storage, read> drawn: array<u32>;
// (rows, parts) vec2<u32>: as those of sample_parts
@group(0) @binding(4) var<storage, read_write> tops: array<vec2<u32>>;
// (rows, vocab) bits of f32
@group(0) @binding(5) var<storage, read_write> shaped: array<u32>;

const LARGEST = 3.4028234e38;
var<workgroup> part_bits: array<u32, PART>;
// Not 0 where the drawn token is in the list.
var<workgroup> listed: u32;

fn is_finite(bits: u32) -> bool {
    return (bits & EXPONENT_BITS) != EXPONENT_BITS;
}

// A logit with its bias and penalties.
fn with_penalties(row: u32, bits: u32, bias: f32, seen: bool, count: u32) -> u32 {
    if (!is_finite(bits)) {
        return bits;
    }
    var value = clamp(bitcast<f32>(bits) + bias, -LARGEST, LARGEST);
    let repetition = head_number(row, REPETITION);
    if (seen) {
        value = clamp(select(value * repetition, value / repetition, value > 0.0), -LARGEST, LARGEST);
    }
    if (count > 0u) {
        value = value - head_number(row, FREQUENCY) * f32(count) - head_number(row, PRESENCE);
        value = clamp(value, -LARGEST, LARGEST);
    }
    return bitcast<u32>(value);
}

@compute @workgroup_size(LANES)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = group.y;
    let first = group.x * PART;
    let end = min(first + PART, params.vocab);
    let base = head(row, LOGITS_ROW) * params.row_stride;
    for (var i = first + lane; i < end; i += LANES) {
        part_bits[i - first] = bitcast<u32>(logits[base + i]);
    }
    if (lane == 0u) {
        listed = 0u;
    }
    workgroupBarrier();

    let at = head(row, DRAWN);
    var last = NONE;
    if (at != NONE) {
        last = drawn[at];
    }
    // The list is in the order of its tokens, each once: those of this part follow one another.
    let list = head(row, LIST);
    var low = 0u;
    let count = min(head(row, LISTED), arrayLength(&rows) / 4u); // whatever an app wrote there
    var high = count;
    while (low < high) {
        let middle = (low + high) / 2u;
        if (rows[list + 4u * middle] < first) {
            low = middle + 1u;
        } else {
            high = middle;
        }
    }
    for (var i = low + lane; i < count; i += LANES) {
        let entry = list + 4u * i;
        let token = rows[entry];
        if (token < first || token >= end) {
            break;
        }
        let again = token == last;
        let times = rows[entry + 2u] + select(0u, 1u, again);
        let seen = rows[entry + 1u] > 0u || again;
        let bias = bitcast<f32>(rows[entry + 3u]);
        part_bits[token - first] = with_penalties(row, part_bits[token - first], bias, seen, times);
        if (again) {
            listed = 1u;
        }
    }
    workgroupBarrier();
    if (lane == 0u && listed == 0u && last >= first && last < end) {
        part_bits[last - first] = with_penalties(row, part_bits[last - first], 0.0, true, 1u);
    }
    workgroupBarrier();

    let mask = head(row, MASK);
    var best = Top(0.0, NO_TOKEN);
    for (var i = first + lane; i < end; i += LANES) {
        var bits = part_bits[i - first];
        if (mask != NONE && is_finite(bits) && ((rows[mask + i / 32u] >> (i % 32u)) & 1u) == 0u) {
            bits = MINUS_INFINITY_BITS;
        }
        shaped[row * params.vocab + i] = bits;
        if (bits != MINUS_INFINITY_BITS) {
            best = top_with(best, bitcast<f32>(bits), i);
        }
    }
    best = top_of_lanes(best, lane, LANES);
    if (lane == 0u) {
        tops[row * grid.x + group.x] = vec2<u32>(bitcast<u32>(best.value), best.index);
    }
}
