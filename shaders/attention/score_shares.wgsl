// Scores of which every lane of a team has a part, summed and shared out among the lanes, and gathered again. Score
// (token * ROWS + row) of a step. A lane passes on half of its scores at each of HALVINGS exchanges: SCORES - OWNED
// shuffles, where summing every score in every lane takes SCORES * TEAM_LOG2.
// Constants: attention/rows.rs, RowShape. Parts: attention/block/*.

// The first of the scores that the lane ends up with: bit j of the lane chose the half of exchange j.
fn own_first(lane: u32) -> u32 {
    var first = 0u;
    // unroll
    for (var j = 0u; j < HALVINGS; j++) {
        first += ((lane >> j) & 1u) * (SCORES >> (j + 1u));
    }
    return first;
}

// Every lane's parts of the step's SCORES, per token the rows' blocks, to OWNED of their sums.
fn share_out(parts: array<Rows, SCORE_BLOCKS>, lane: u32) -> array<f32, OWNED> {
    var sums: array<f32, SCORES>;
    // unroll
    for (var s = 0u; s < SCORE_BLOCKS; s++) {
        // unroll
        for (var k = 0u; k < ROWS_PER_BLOCK; k++) {
            sums[s * ROWS_PER_BLOCK + k] = rows_get(parts[s], k);
        }
    }
    // unroll
    for (var j = 0u; j < HALVINGS; j++) {
        let upper = ((lane >> j) & 1u) == 1u;
        // unroll
        for (var i = 0u; i < HALF_SCORES; i++) {
            if (i < (SCORES >> (j + 1u))) {
                let other = min(i + (SCORES >> (j + 1u)), SCORES - 1u);
                let passed = select(sums[other], sums[i], upper);
                sums[i] = select(sums[i], sums[other], upper) + subgroupShuffleXor(passed, 1u << j);
            }
        }
    }
    var own: array<f32, OWNED>;
    // unroll
    for (var i = 0u; i < OWNED; i++) {
        own[i] = sums[i];
        // Several lanes come to the same.
        // unroll
        for (var j = 0u; j < DOUBLINGS; j++) {
            own[i] += subgroupShuffleXor(own[i], 1u << (HALVINGS + j));
        }
    }
    return own;
}

// And back: all SCORES from those who own them, per token the rows' blocks. `first_lane`: the team's, in the subgroup.
fn gather(own: array<f32, OWNED>, first_lane: u32) -> array<Rows, SCORE_BLOCKS> {
    var blocks: array<Rows, SCORE_BLOCKS>;
    // unroll
    for (var s = 0u; s < SCORE_BLOCKS; s++) {
        var wide = vec4<f32>(0.0);
        // unroll
        for (var k = 0u; k < ROWS_PER_BLOCK; k++) {
            let score = s * ROWS_PER_BLOCK + k;
            var owner = 0u;
            // unroll
            for (var j = 0u; j < HALVINGS; j++) {
                owner |= ((score >> (SCORES_LOG2 - 1u - j)) & 1u) << j;
            }
            if (HALVINGS == 0u) {
                wide[k] = own[score % OWNED];
            } else {
                wide[k] = subgroupShuffle(own[score % OWNED], first_lane + owner);
            }
        }
        blocks[s] = rows_narrow(wide);
    }
    return blocks;
}
