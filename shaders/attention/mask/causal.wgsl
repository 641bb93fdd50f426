// Which cached tokens a row sees: those up to its own, or of these only the last WINDOW and the first KEEP_FIRST. Where
// the plan leaves pages out between the two, tokens are counted without them. Slot: attention/mask.
// Constants: HEADS_PER_GROUP, WINDOW (0: no window), KEEP_FIRST (0 without one). Parts: plan.

// Of one row, within its work item.
struct Visible {
    first: u32, // first token of the window; matters with one only
    last: u32, // one past the last token; 0 for a row past the sequence's last
}

// Causal, aligned to the end.
fn visible_to(item: WorkItem, row: u32) -> Visible {
    let seen = item.kv_len + row / HEADS_PER_GROUP + 1u - item.q_len;
    let last = select(0u, min(seen, item.token_last), row < item.q_len * HEADS_PER_GROUP);
    return Visible(seen - min(seen, WINDOW), last);
}

fn sees(visible: Visible, token: u32) -> bool {
    return token < visible.last && (WINDOW == 0u || token >= visible.first || token < KEEP_FIRST);
}

// Of the tokens up to the item's last, the first that the row sees and one past the last, all between seen; those of
// KEEP_FIRST left out.
fn clear_tokens(visible: Visible) -> vec2<u32> {
    return vec2<u32>(select(visible.first, 0u, WINDOW == 0u), visible.last);
}
