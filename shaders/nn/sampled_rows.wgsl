// How rows are drawn from, as the host wrote it: a head of HEAD words for each, then lists. Part of the sampled_* kernels.

// (words) u32
@group(0) @binding(1) var<storage, read> rows: array<u32>;

const HEAD = 16u;
const NONE = 0xffffffffu;
// Words of a head: the row of the logits; temperature, top_p, u; the least count kept (0: all); the most places below the top,
// -ln(min_p); typical_p; the penalties; where the list of tokens begins, and its length; where the mask begins; the index of a
// token that was drawn and that the host did not know.
const LOGITS_ROW = 0u;
const TEMPERATURE = 1u;
const TOP_P = 2u;
const UNIFORM = 3u;
const TOP_K = 4u;
const MOST_BELOW = 5u;
const TYPICAL_P = 6u;
const REPETITION = 7u;
const PRESENCE = 8u;
const FREQUENCY = 9u;
const LIST = 10u;
const LISTED = 11u;
const MASK = 12u;
const DRAWN = 13u;

fn head(row: u32, word: u32) -> u32 {
    return rows[row * HEAD + word];
}

fn head_number(row: u32, word: u32) -> f32 {
    return bitcast<f32>(rows[row * HEAD + word]);
}
