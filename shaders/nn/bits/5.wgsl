// Codes of 5 bits: those of 4, and a u32 of the fifth ones: of element e of quad q, bit 8 e + q. Slot: nn/bits.
struct Codes {
    low: vec4<u32>,
    high: u32,
}

fn load_codes(at: u32) -> Codes {
    return Codes(weights[at], high_word(at, 0u));
}

// The codes of elements 4 quad .. 4 quad + 3, a byte each.
fn code_bytes(codes: Codes, quad: u32) -> u32 {
    let low = (codes.low[quad % 4u] >> (quad / 4u * 4u)) & 0x0f0f0f0fu;
    return low | (((codes.high >> quad) & 0x01010101u) << 4u);
}

// The same of quads `piece` and 4 + piece alone: what of them lanes side by side load.
alias Piece = vec2<u32>;

fn load_piece(at: u32, piece: u32) -> Piece {
    return vec2<u32>(weights[at][piece], high_word(at, 0u));
}

// Of the first or the second of these quads.
fn piece_bytes(loaded: Piece, piece: u32, run: u32) -> u32 {
    return ((loaded.x >> (run * 4u)) & 0x0f0f0f0fu) | (((loaded.y >> (piece + 4u * run)) & 0x01010101u) << 4u);
}
