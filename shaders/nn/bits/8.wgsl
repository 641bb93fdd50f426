// Codes of 8 bits: two words of 16 bytes. Slot: nn/bits.
struct Codes {
    low: vec4<u32>,
    high: vec4<u32>,
}

fn load_codes(at: u32) -> Codes {
    return Codes(weights[2u * at], weights[2u * at + 1u]);
}

// The codes of elements 4 quad .. 4 quad + 3, a byte each.
fn code_bytes(codes: Codes, quad: u32) -> u32 {
    return select(codes.low[quad % 4u], codes.high[quad % 4u], quad >= 4u);
}

// The same of quads `piece` and 4 + piece alone: what of them lanes side by side load.
alias Piece = vec2<u32>;

fn load_piece(at: u32, piece: u32) -> Piece {
    return vec2<u32>(weights[2u * at][piece], weights[2u * at + 1u][piece]);
}

// Of the first or the second of these quads.
fn piece_bytes(loaded: Piece, piece: u32, run: u32) -> u32 {
    return loaded[run];
}
