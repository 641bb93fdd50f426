// Codes of 4 bits: a word of 16 bytes, the low halves of its u32s 4 elements each, then the high ones. Slot: nn/bits.
alias Codes = vec4<u32>;

fn load_codes(at: u32) -> Codes {
    return weights[at];
}

// The codes of elements 4 quad .. 4 quad + 3, a byte each.
fn code_bytes(codes: Codes, quad: u32) -> u32 {
    return (codes[quad % 4u] >> (quad / 4u * 4u)) & 0x0f0f0f0fu;
}

// The same of quads `piece` and 4 + piece alone: what of them lanes side by side load.
alias Piece = u32;

fn load_piece(at: u32, piece: u32) -> Piece {
    return weights[at][piece];
}

// Of the first or the second of these quads.
fn piece_bytes(loaded: Piece, piece: u32, run: u32) -> u32 {
    return (loaded >> (run * 4u)) & 0x0f0f0f0fu;
}
