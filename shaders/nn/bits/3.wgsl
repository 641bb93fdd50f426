// Codes of 3 bits: those of 2, and a u32 of the third ones: of element e of quad q, bit 8 e + q. Slot: nn/bits.
struct Codes {
    low: vec2<u32>,
    high: u32,
}

fn load_codes(at: u32) -> Codes {
    let first = at % 2u * 2u;
    return Codes(vec2<u32>(weights[at / 2u][first], weights[at / 2u][first + 1u]), high_word(at, 0u));
}

// The codes of elements 4 quad .. 4 quad + 3, a byte each.
fn code_bytes(codes: Codes, quad: u32) -> u32 {
    let low = (codes.low[quad / 4u] >> (quad % 4u * 2u)) & 0x03030303u;
    return low | (((codes.high >> quad) & 0x01010101u) << 2u);
}

// The same of quads `piece` and 4 + piece alone: what of them lanes side by side load.
alias Piece = vec3<u32>;

fn load_piece(at: u32, piece: u32) -> Piece {
    let codes = load_codes(at);
    return vec3<u32>(codes.low, codes.high);
}

// Of the first or the second of these quads.
fn piece_bytes(loaded: Piece, piece: u32, run: u32) -> u32 {
    return ((loaded[run] >> (2u * piece)) & 0x03030303u) | (((loaded.z >> (piece + 4u * run)) & 0x01010101u) << 2u);
}
