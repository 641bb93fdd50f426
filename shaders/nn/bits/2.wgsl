// Codes of 2 bits: two u32s, of element e of quad q bits 8 e + 2 (q % 4) of the first or, from quad 4 on, of the second.
// Slot: nn/bits.
alias Codes = vec2<u32>;

fn load_codes(at: u32) -> Codes {
    let first = at % 2u * 2u;
    return vec2<u32>(weights[at / 2u][first], weights[at / 2u][first + 1u]);
}

// The codes of elements 4 quad .. 4 quad + 3, a byte each.
fn code_bytes(codes: Codes, quad: u32) -> u32 {
    return (codes[quad / 4u] >> (quad % 4u * 2u)) & 0x03030303u;
}

// The same of quads `piece` and 4 + piece alone: what of them lanes side by side load.
alias Piece = vec2<u32>;

fn load_piece(at: u32, piece: u32) -> Piece {
    return load_codes(at);
}

// Of the first or the second of these quads.
fn piece_bytes(loaded: Piece, piece: u32, run: u32) -> u32 {
    return (loaded[run] >> (2u * piece)) & 0x03030303u;
}
