// Where the tokens of a step lie, looked up together where all are in one page. Slot: attention/pages of decode_rows.
// Constants: TEAMS TOKENS. Parts: decode_io, page.

// Tokens of all teams of a group in one step.
const STEP = TEAMS * TOKENS;

// Pages of the lane's tokens of the step after the one that is being fetched; where all lie in one, the first.
var<private> pages: array<u32, TOKENS>;

// Whether all teams' tokens of a step lie in one page, and none is past the item's last. The same for all lanes.
fn in_one_page(item: WorkItem, step: u32) -> bool {
    let page_size = 1u << params.page_shift;
    return (step & (page_size - 1u)) + STEP <= page_size && step + STEP <= item.token_last;
}

// Looks up the pages of the lane's tokens of a step. Past the item's last token that one stands in: its memory is the
// sequence's own, and its weight will be 0.
fn fetch_pages(item: WorkItem, step: u32, team: u32) {
    if (in_one_page(item, step)) {
        pages[0] = page_of(item, step);
        return;
    }
    // unroll
    for (var u = 0u; u < TOKENS; u++) {
        pages[u] = page_of(item, step + team + u * TEAMS);
    }
}

// Of each of the lane's tokens of a step: first word of its state, rope key and scales.
alias StepBases = array<vec3<u32>, TOKENS>;

// Of the step whose pages are known.
fn step_bases(item: WorkItem, group: u32, step: u32, team: u32) -> StepBases {
    let page_size = 1u << params.page_shift;
    var bases: StepBases;
    if (in_one_page(item, step)) {
        let offset = (step & (page_size - 1u)) + team;
        let state = page_state(pages[0], page_size, offset, group);
        let rope = page_rope(pages[0], page_size, offset);
        let scales = page_scales(pages[0], page_size, offset);
        // unroll
        for (var u = 0u; u < TOKENS; u++) {
            let tokens = u * TEAMS;
            bases[u] = vec3<u32>(state + tokens * STATE_WORDS, rope + tokens * ROPE_WORDS, scales + tokens * SCALE_WORDS);
        }
        return bases;
    }
    // unroll
    for (var u = 0u; u < TOKENS; u++) {
        let offset = min(step + team + u * TEAMS, item.token_last - 1u) & (page_size - 1u);
        bases[u] = vec3<u32>(
            page_state(pages[u], page_size, offset, group),
            page_rope(pages[u], page_size, offset),
            page_scales(pages[u], page_size, offset),
        );
    }
    return bases;
}

fn token_base(item: WorkItem, group: u32, step: u32, team: u32, bases: StepBases, u: u32) -> vec3<u32> {
    return bases[u];
}
