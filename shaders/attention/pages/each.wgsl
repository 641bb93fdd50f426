// Where the tokens of a step lie, each looked up by itself. Slot: attention/pages of decode_rows.
// Constants: TEAMS TOKENS. Parts: decode_io, page.

// Tokens of all teams of a group in one step.
const STEP = TEAMS * TOKENS;

// Pages of the lane's tokens of the step after the one that is being fetched.
var<private> pages: array<u32, TOKENS>;

// Looks up the pages of the lane's tokens of a step. Past the item's last token that one stands in: its memory is the
// sequence's own, and its weight will be 0.
fn fetch_pages(item: WorkItem, step: u32, team: u32) {
    // unroll
    for (var u = 0u; u < TOKENS; u++) {
        pages[u] = page_of(item, step + team + u * TEAMS);
    }
}

// What a step's tokens have in common: nothing.
alias StepBases = u32;

fn step_bases(item: WorkItem, group: u32, step: u32, team: u32) -> StepBases {
    return 0u;
}

// Of the lane's u-th token of the step whose pages are known: first word of its state, rope key and scales.
fn token_base(item: WorkItem, group: u32, step: u32, team: u32, bases: StepBases, u: u32) -> vec3<u32> {
    let page_size = 1u << params.page_shift;
    let offset = min(step + team + u * TEAMS, item.token_last - 1u) & (page_size - 1u);
    return vec3<u32>(
        page_state(pages[u], page_size, offset, group),
        page_rope(pages[u], page_size, offset),
        page_scales(pages[u], page_size, offset),
    );
}
