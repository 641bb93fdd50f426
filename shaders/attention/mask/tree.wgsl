// Which cached tokens a row sees, where the step's tokens are a tree: all before the step, and of the step's own those
// whose bits are set in its query token's mask; or only the last WINDOW and the first KEEP_FIRST of all these. Where
// the plan leaves pages out between the two, tokens are counted without them. Slot: attention/mask.
// Constants: HEADS_PER_GROUP, WINDOW (0: no window), KEEP_FIRST (0 without one). Parts: plan, whose header says where
// the masks lie.

// Of one row, within its work item.
struct Visible {
    first: u32, // first token of the window; matters with one only
    before: u32, // tokens before the step's; 0 for a row past the sequence's last, with no bit set
    low: u32, // bit i: the step's token i of the sequence
    high: u32, // bit i: its token 32 + i
}

fn visible_to(item: WorkItem, row: u32) -> Visible {
    let held = row < item.q_len * HEADS_PER_GROUP;
    let m = min(row / HEADS_PER_GROUP, item.q_len - 1u);
    let at = tree_masks_first() + 2u * (item.q_token_first + m);
    let low = select(0u, plan[at], held);
    let high = select(0u, plan[at + 1u], held);
    let before = select(0u, item.kv_len - item.q_len, held);
    // The host has left the bits of a mask that are shown. Where it took some, so many are left that the window has
    // none of the tokens before the step.
    let seen = before + countOneBits(low) + countOneBits(high);
    return Visible(seen - min(seen, WINDOW), before, low, high);
}

fn sees(visible: Visible, token: u32) -> bool {
    if (token < visible.before) {
        return WINDOW == 0u || token >= visible.first || token < KEEP_FIRST;
    }
    let i = token - visible.before;
    let bits = select(visible.low, visible.high, i >= 32u);
    return i < 64u && ((bits >> (i & 31u)) & 1u) == 1u;
}

// A first token and one past a last, all between seen by the row: those before the step, or the last of them in the
// window; those of KEEP_FIRST left out.
fn clear_tokens(visible: Visible) -> vec2<u32> {
    return vec2<u32>(select(visible.first, 0u, WINDOW == 0u), visible.before);
}
