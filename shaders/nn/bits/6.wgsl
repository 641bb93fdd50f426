// Codes of 6 bits: those of 4, and two u32s of the upper two bits: of element e of quad q, bits 8 e + 2 (q % 4) of the first or,
// from quad 4 on, of the second. Slot: nn/bits.
struct Codes {
    low: vec4<u32>,
    high: vec2<u32>,
}

fn load_codes(at: u32) -> Codes {
    return Codes(weights[at], vec2<u32>(high_word(at, 0u), high_word(at, 1u)));
}

// The codes of elements 4 quad .. 4 quad + 3, a byte each.
fn code_bytes(codes: Codes, quad: u32) -> u32 {
    let low = (codes.low[quad % 4u] >> (quad / 4u * 4u)) & 0x0f0f0f0fu;
    return low | (((codes.high[quad / 4u] >> (quad % 4u * 2u)) & 0x03030303u) << 4u);
}

// The same of quads `piece` and 4 + piece alone: what of them lanes side by side load.
alias Piece = vec3<u32>;

fn load_piece(at: u32, piece: u32) -> Piece {
    return vec3<u32>(weights[at][piece], high_word(at, 0u), high_word(at, 1u));
}

// Of the first or the second of these quads.
fn piece_bytes(loaded: Piece, piece: u32, run: u32) -> u32 {
    return ((loaded.x >> (run * 4u)) & 0x0f0f0f0fu) | (((loaded[1u + run] >> (2u * piece)) & 0x03030303u) << 4u);
}
