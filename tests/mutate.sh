#!/usr/bin/env bash
# Mutation check of the kernels around attention: each clamp and mask of shaders/kv and shaders/attention is changed in turn,
# and at least one test of tests/kernels must fail, or of src/cache/file/page_rows_tests.rs for pages_rows, which software GPUs
# use nowhere else. So are decisions of the scheduler, of steps ahead and of speculative decoding (src/model), whose tests are tests/model and
# src/model/generate/rejection_tests.rs, and the kernels that list rows by expert and
# those of weights in blocks and of sampling, whose tests are those of tests/nn; and what ranks of a model share (tests/parallel). Not part of
# the default run, but for --check; about an hour on two cores with a software GPU.
#
#   tests/mutate.sh --check         only whether every row applies: its text occurs once in its file, its tests have such names
#   tests/mutate.sh                 the mutations that must die
#   tests/mutate.sh append          those whose name contains a word (requests, guesses, rule: those of src/model)
#   tests/mutate.sh --same [word]   the equivalent ones, to see that they still are (slow: all tests, each time)
#
# It works on a copy under target/mutate and leaves the checkout alone. A mutation that no longer applies is an error:
# the table below must follow the sources. Exit status: 0 if every mutation that must die does.
#
# Each row: name ~ file under shaders/, or from src/ on ~ text ~ replacement ~ tests ~ "dies", or why no reachable input shows it.
# "same" rows guard against what the host rules out (a row without tokens) or save only time; --same reports those that
# die after all.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

A="append::"
U="appending::"
V="appending_rest::"
D="steps:: split::many|split::odd split::every split::several|isolation:: adversarial::"
O="options::"
K="kept::first kept::with"
T="tree::"
I="integers::append integers::slots integers::every|integers::odd|integers::|isolation::"
C="sharing::"
G="--include-ignored split::more_merges"
S="page_rows::"
H="scheduler::|speculative::"
Q="scheduler_load::"
W="scheduler_ahead::|streams::"
N="repeats::"
R="rejection::"
E="experts::"
B="blocks::"
X="caches::|forms::|context::"
Z="rows::a_norm"
F="window_pages::"
Y="linear::every rows::embedding fused::geglu"
P="logprobs:: sampled::the sampled::what sampled::numbers|sampled::shaped_draws_equal|sampled::shaped_draws_of"
table() {
  cat <<'TABLE'
rows-word-end       ~kv/pages_rows.wgsl~word >= TOKEN_WORDS || ~~S~dies
rows-token-end      ~kv/pages_rows.wgsl~ || row >= tokens~~S~dies
rows-rope-end       ~kv/pages_rows.wgsl~after_states < ROPE_WORDS~true~S~dies
rows-first-token    ~kv/pages_rows.wgsl~let token = places[0] + row~let token = row~S~dies
append-row-end      ~kv/append.wgsl~id.x >= ROW_U32S || ~~A~dies
append-token-end    ~kv/append.wgsl~ || token >= params.token_count~~A~dies
append-slot-none    ~kv/append.wgsl~if (slot >= params.slot_count)~if (false)~A~dies
append-rotated-end  ~kv/append_row.wgsl~if (i >= rotated)~if (i > rotated)~A~dies
append-rotated-none ~kv/append_row.wgsl~if (i >= rotated)~if (false)~A~dies
append-tied-pad     ~kv/append_row.wgsl~if (e < STATE_DIM)~if (true)~A~dies
append-key-pad      ~kv/append_row.wgsl~if (e < KEY_DIM)~if (e < VALUE_FIRST * ELEMS_PER_WORD)~A~dies
append-value-first  ~kv/append_row.wgsl~e >= VALUE_FIRST * ELEMS_PER_WORD && ~~A~dies
append-value-end    ~kv/append_row.wgsl~ && e < VALUE_FIRST * ELEMS_PER_WORD + VALUE_DIM~~A~dies
append-rope-pad     ~kv/append_row.wgsl~if (e < ROPE_DIM)~if (true)~A~dies
append-group        ~kv/append.wgsl~select(GROUPS, group, in_state)~group~A~dies
unit-row-end        ~nn/rows_end/cached.wgsl~row >= params.rows || ~~U~dies
unit-output-end     ~nn/rows_end/cached.wgsl~ || output >= params.out_dim~~U~dies
unit-slot-none      ~nn/rows_end/cached.wgsl~if (slot >= params.slot_count)~if (false)~U~dies
unit-turned         ~nn/rows_end/cached.wgsl~element_of(place, output, 0u) >= place.rotated_first + place.rotated~true~U~dies
unit-copied         ~nn/cached_place.wgsl~Q_DIM - ROTATED, ROTATED~0u, ROTATED~U~dies
unit-rope-key       ~nn/rows_end/cached.wgsl~if (group < GROUPS)~if (true)~U~dies
rest-row-end        ~nn/beside/append.wgsl~ || row >= params.rows~~V~dies
rest-column-end     ~nn/beside/append.wgsl~group.x >= ROWS * stretches || ~~V~same: rows of the next workgroups, written twice alike
rest-rope-key       ~nn/beside/append.wgsl~if (stretch < GROUPS)~if (true)~V~dies
rest-rotated        ~nn/beside/append.wgsl~if (i >= ROTATED_ROPE)~if (true)~V~dies
rest-state          ~nn/beside/append.wgsl~if (is_state)~if (true)~V~dies
rest-slot-none      ~nn/beside/append.wgsl~if (slots[row] >= params.slot_count)~if (false)~V~dies
sums-segments       ~nn/reduce/workgroup.wgsl~i < SEGMENTS~i < 1u~B~dies
unit-half           ~nn/unit/half.wgsl~k ^ 2u~k ^ 1u~U~dies
unit-neighbours     ~nn/unit/interleaved.wgsl~k ^ 1u~k ^ 2u~U~dies
copy-page-source    ~kv/copy_pages.wgsl~pool_word(source + word)~pool_word(target_first + word)~C~dies
copy-walk           ~kv/copy_pages.wgsl~word += grid.x * 64u~word += params.page_words~C~dies
copy-walk-end       ~kv/copy_pages.wgsl~word < params.page_words~word <= params.page_words~C~dies
copy-end            ~kv/copy_pages.wgsl~if (index >= params.copy_count)~if (false)~C~same: a list of under 65,536 copies fills its grid
copy-clamp          ~kv/copy_pages.wgsl~min(copies[index], vec2<u32>(params.page_count - 1u))~copies[index]~C~same: the host makes the list
f16-clamp           ~kv/pack/f16.wgsl~clamp(vec2<f32>(values[0], values[1]), vec2<f32>(-65504.0), vec2<f32>(65504.0))~vec2<f32>(values[0], values[1])~A~dies
bf16-tie            ~kv/pack/bf16.wgsl~ + ((size >> 16u) & 1u)~~A~dies
bf16-largest        ~kv/pack/bf16.wgsl~min((size + 0x7fffu~max((size + 0x7fffu~A~dies
bf16-nan            ~kv/pack/bf16.wgsl~size > 0x7f800000u~false~A~dies
scaled-token-end    ~kv/append_scaled.wgsl~if (token >= params.token_count)~if (false)~I~dies
scaled-slot-none    ~kv/append_scaled.wgsl~if (slot >= params.slot_count)~if (false)~I~dies
scaled-least        ~kv/append_scaled.wgsl~let held = top >= LEAST~let held = true~I~dies
scaled-most         ~kv/append_scaled.wgsl~min(tops[0], MOST)~tops[0]~I~dies
scaled-range        ~kv/append_scaled.wgsl~clamp(round(x * inverse), -LEVELS, LEVELS)~round(x * inverse)~I~dies
scaled-key-end      ~kv/append_scaled.wgsl~SPANS == 2u && !is_value~false~I~dies
scaled-value-first  ~kv/append_scaled.wgsl~select(0u, VALUE_FIRST, is_value)~0u~I~dies
scaled-padding      ~kv/append_scaled.wgsl~workgroup.x == 0u && GROUPS~false && GROUPS~I~dies
scaled-padding-end  ~kv/append_scaled.wgsl~ < SCALE_WORDS * U32S_PER_WORD~ <= SCALE_WORDS * U32S_PER_WORD~I~dies
scaled-rope-range   ~kv/append_scaled.wgsl~clamp(values, vec2<f32>(-65504.0), vec2<f32>(65504.0))~values~I~dies
scales-nowhere      ~attention/scales/token.wgsl~if (scales_at != NOWHERE)~if (true)~I~same: where what is read out of bounds is a number (a device that clamps reads the pool's last word, which may be NaN)
scales-fetch-lane   ~attention/scales/token.wgsl~    if (lane < TOKENS) {\n        fetched~    if (true) {\n        fetched~I~same: what is fetched past the tile is not stored
scales-rope-word    ~attention/scales/token.wgsl~select(1.0, scales[token], word < KEY_WORDS)~scales[token]~I~dies
scaled-last-element ~kv/append_scaled.wgsl~state_element(token, group, u * ELEMS_PER_U32 + e)));~state_element(token, group, u * ELEMS_PER_U32)));~I~dies
i4-levels           ~kv/pack/i4.wgsl~LEVELS = 7.0~LEVELS = 8.0~I~dies
i4-pack-sign        ~kv/pack/i4.wgsl~u32(i32(values[i])) & 0xfu~u32(i32(values[i]))~I~dies
i4-sign             ~kv/element/i4.wgsl~raw ^ vec2<u32>(0x88888888u)~raw~I~dies
i4-upper            ~kv/element/i4.wgsl~biased >> vec2<u32>(16u)~biased >> vec2<u32>(12u)~I~dies
i4-offset           ~kv/element/i4.wgsl~-32776.0~-32775.0~I~dies
i4-tile-halves      ~attention/tile/vec2.wgsl~tile[2u * lane + 1u] = bitcast~tile[2u * lane] = bitcast~I~dies
scales-rope-first   ~attention/scales/token.wgsl~(word - KEY_WORDS) * (VECS_PER_WORD / ROPE_VECS)~(word - KEY_WORDS)~I~dies
scales-rope-halves  ~attention/scales/token.wgsl~halves[i % ROPE_VECS]~halves[0]~I~dies
scales-u32          ~attention/scales/token.wgsl~pool_u32(scales_at + value / U32S_PER_WORD, ~pool_u32(scales_at + value / 4u, ~I~dies
rows-scales-u32     ~attention/row_scales/token.wgsl~pool_u32(word + value / U32S_PER_WORD, ~pool_u32(word + value / 4u, ~I~dies
scales-key-word     ~attention/scales/token.wgsl~ROPE_WORDS > 0u && word >= KEY_WORDS~false~I~dies
decode-item-end     ~attention/decode_tile.wgsl~if (index >= work_item_count(params.class_index))~if (false)~G~dies
decode-chunk-end    ~attention/mask/causal.wgsl~min(seen, item.token_last)~seen~D~same: chunks end on whole tiles, the last where its last row sees
decode-row-visible  ~attention/mask/causal.wgsl~, row < item.q_len * HEADS_PER_GROUP);~, true);~D~same: a row past the end is never written
decode-causal       ~attention/mask/causal.wgsl~item.kv_len + row / HEADS_PER_GROUP + 1u - item.q_len~item.kv_len~D~dies
decode-page-held    ~attention/decode_io.wgsl~min(token, max(item.token_last, 1u) - 1u)~token~D~dies
decode-page-clamp   ~attention/decode_io.wgsl~min(plan[item.page_table_first + (held >> params.page_shift)], params.page_count - 1u)~plan[item.page_table_first + (held >> params.page_shift)]~L~dies
decode-state-held   ~attention/decode_tile.wgsl~page_state(page, page_size, offset, group), held)~page_state(page, page_size, offset, group), true)~D~dies
decode-rope-held    ~attention/decode_tile.wgsl~page_rope(page, page_size, offset), held)~page_rope(page, page_size, offset), true)~D~same: the score is masked, and rope keys enter nothing else
decode-nowhere      ~attention/decode_tile.wgsl~if (base == NOWHERE)~if (false)~D~dies
decode-lane-base    ~attention/decode_tile.wgsl~    if (lane < TOKENS) {~    if (lane <= TOKENS) {~D~dies
decode-fetch-state  ~attention/decode_tile.wgsl~if (token < TOKENS) {\n            fetched[i]~if (true) {\n            fetched[i]~D~same: what is fetched past the tile is not stored
decode-fetch-rope   ~attention/decode_tile.wgsl~if (token < TOKENS) {\n            fetched[STATE~if (true) {\n            fetched[STATE~D~same: what is fetched past the tile is not stored
decode-store-state  ~attention/decode_tile.wgsl~if (token < TOKENS) {\n            tile[token * TILE_STRIDE + tile_word~if (true) {\n            tile[token * TILE_STRIDE + tile_word~D~dies
decode-store-rope   ~attention/decode_tile.wgsl~if (token < TOKENS) {\n            tile[token * TILE_STRIDE + KEY~if (true) {\n            tile[token * TILE_STRIDE + KEY~D~dies
decode-score-lanes  ~attention/decode_tile.wgsl~if (token_lane >= SCORE_LANES)~if (false)~D~dies
decode-key-end      ~attention/decode_tile.wgsl~if (word < QUERY_WORDS)~if (true)~D~dies
decode-score-mask   ~attention/decode_tile.wgsl~select(NEGATIVE, score_transform(wide[j]), sees(visible[j], first + token))~score_transform(wide[j])~D~dies
decode-weight-mask  ~attention/decode_tile.wgsl~select(0.0, wide[j], sees(visible[j], first + token))~wide[j]~D~same: a row that sees nothing of a tile has weights exp2(0) until the next maximum rescales them by 0, and LSE NEGATIVE, which the merge skips, if none comes
decode-output-units ~attention/decode_tile.wgsl~unit < VALUE_UNITS && token_split < TOKEN_SPLITS~true~D~same: a unit past the end is never written
decode-write-units  ~attention/decode_tile.wgsl~if (unit < VALUE_UNITS && token_split_of(lane) == 0u)~if (token_split_of(lane) == 0u)~D~dies
decode-write-split  ~attention/decode_tile.wgsl~if (unit < VALUE_UNITS && token_split_of(lane) == 0u)~if (unit < VALUE_UNITS)~D~dies
decode-write-row    ~attention/decode_tile.wgsl~    if (row >= item.q_len * HEADS_PER_GROUP) {~    if (false) {~D~dies
decode-write-dim    ~attention/decode_tile.wgsl~if (first_dim + e < V_DIM)~if (true)~D~dies
decode-merge-units  ~attention/decode_tile.wgsl~if (lane < VALUE_UNITS) {~if (true) {~D~same: only lanes below VALUE_UNITS write
mask-window         ~attention/mask/causal.wgsl~(WINDOW == 0u || token >= visible.first || token < KEEP_FIRST)~true~O~dies
mask-kept           ~attention/mask/causal.wgsl~ || token < KEEP_FIRST~~K~dies
mask-kept-edge      ~attention/mask/causal.wgsl~token < KEEP_FIRST~token <= KEEP_FIRST~K~dies
mask-window-edge    ~attention/mask/causal.wgsl~token >= visible.first~token > visible.first~O~dies
mask-window-start   ~attention/mask/causal.wgsl~seen - min(seen, WINDOW)~seen - WINDOW~O~dies
mask-clear-first    ~attention/mask/causal.wgsl~select(visible.first, 0u, WINDOW == 0u)~0u~O~dies
mask-clear-last     ~attention/mask/causal.wgsl~WINDOW == 0u), visible.last~WINDOW == 0u), visible.last + 64u~O~dies
softcap-large       ~attention/score/softcap.wgsl~min(abs(x), 15.0)~abs(x)~O~same: where exp2 overflows to infinity, which WGSL does not promise
softcap-near        ~attention/score/softcap.wgsl~select(far, near, size < 0.75)~far~O~dies
softcap-far         ~attention/score/softcap.wgsl~select(far, near, size < 0.75)~near~O~dies
softcap-sign        ~attention/score/softcap.wgsl~select(value, -value, x < 0.0)~value~O~dies
sink-none           ~attention/sink/logit.wgsl~max(sinks[head] * LOG2_E, NEGATIVE)~sinks[head] * LOG2_E~O~same: where exp2 of minus infinity is 0, which WGSL does not promise
sink-split          ~attention/decode_io.wgsl~if (item.partial_row != NO_PARTIAL) {\n        return Finished~if (false) {\n        return Finished~O~dies
tree-window         ~attention/mask/tree.wgsl~return WINDOW == 0u || token >= visible.first || token < KEEP_FIRST;~return true;~T~dies
tree-kept           ~attention/mask/tree.wgsl~ || token < KEEP_FIRST~~T~dies
tree-kept-edge      ~attention/mask/tree.wgsl~token < KEEP_FIRST~token <= KEEP_FIRST~T~dies
tree-window-start   ~attention/mask/tree.wgsl~seen - min(seen, WINDOW)~seen - WINDOW~T~dies
tree-clear-first    ~attention/mask/tree.wgsl~select(visible.first, 0u, WINDOW == 0u)~0u~T~dies
tree-clear-last     ~attention/mask/tree.wgsl~WINDOW == 0u), visible.before~WINDOW == 0u), visible.before + 64u~T~dies
tree-row            ~attention/mask/tree.wgsl~select(0u, item.kv_len - item.q_len, held)~item.kv_len - item.q_len~T~same: a row past the end is never written
tree-high           ~attention/mask/tree.wgsl~select(visible.low, visible.high, i >= 32u)~visible.low~T~dies
tree-end            ~attention/mask/tree.wgsl~i < 64u && ~~T~dies
query-held          ~attention/query/registers.wgsl~held && ~~D~same: the cached padding is zero
query-row           ~attention/query/registers.wgsl~ && row < item.q_len * HEADS_PER_GROUP~~D~same: a row past the end is never written
query-stream-end    ~attention/query/stream.wgsl~if (first + v < end)~if (true)~D~same: the cached padding is zero
query-stream-row    ~attention/query/stream.wgsl~min(row, item.q_len * HEADS_PER_GROUP - 1u)~row~D~same: a row past the end is never written
rows-item-end       ~attention/decode_rows.wgsl~if (index >= work_item_count(params.class_index))~if (false)~G~dies
rows-token-held     ~attention/pages/each.wgsl~min(step + team + u * TEAMS, item.token_last - 1u)~(step + team + u * TEAMS)~D~dies
rows-joint-held     ~attention/pages/joint.wgsl~min(step + team + u * TEAMS, item.token_last - 1u)~(step + team + u * TEAMS)~D~dies
rows-state-end      ~attention/decode_rows.wgsl~words[(half * TOKENS + u) * SLOTS + i] = pool_word(base.x + min(lane + i * TEAM, STATE_WORDS - 1u))~words[(half * TOKENS + u) * SLOTS + i] = pool_word(base.x + lane + i * TEAM)~D~dies
rows-query-held     ~attention/decode_rows.wgsl~held && row < item.q_len~row < item.q_len~D~dies
rows-clear          ~attention/decode_rows.wgsl~let masked = now < clear.x || now + STEP > clear.y;~let masked = false;~D~dies
rows-clear-rows     ~attention/decode_rows.wgsl~        if (item.row_first + r < item.q_len * HEADS_PER_GROUP) {~        if (true) {~D~same: saves time
rows-mask-last      ~attention/decode_rows.wgsl~token < item.token_last && sees~sees~D~same: a causal row's last token ends with the item
rows-mask-tree-last ~attention/decode_rows.wgsl~token < item.token_last && sees~sees~T~same: where chunks are whole pairs of steps; not with subgroups of 64
rows-softcap        ~attention/decode_rows.wgsl~own[i] = score_transform(own[i]);~~O~dies
norm-joined         ~nn/norm.wgsl~select(1u, params.groups, params.joined != 0u)~1u~Z~dies
norm-adds           ~nn/norm.wgsl~return y[at] + value;~return value;~Z~dies
linear-scale        ~nn/linear_io.wgsl~value * params.scale~value~Y~dies
geglu-cube          ~nn/output/geglu.wgsl~0.044715 * g * g * g~0.044715 * g * g~Y~dies
output-softcap      ~nn/output/softcap.wgsl~first / params.cap~first~Y~dies
embedding-scale     ~nn/embedding.wgsl~params.scale * values[e]~values[e]~Y~dies
rows-write-row      ~attention/row_end/alone.wgsl~    if (row >= item.q_len * HEADS_PER_GROUP) {~    if (false) {~D~dies
rows-write-dim      ~attention/row_end/alone.wgsl~word >= VALUE_FIRST && dim < V_DIM~word >= VALUE_FIRST~D~dies
rows-write-first    ~attention/row_end/alone.wgsl~word >= VALUE_FIRST && dim < V_DIM~dim < V_DIM~D~same: words before the value wrap past V_DIM
rows-key-scale      ~attention/row_scales/token.wgsl~return sum * scales.x~return sum * scales.y~I~dies
rows-value-scale    ~attention/row_scales/token.wgsl~return weight * scales.y~return weight * scales.x~I~dies
rows-scale-group    ~attention/row_scales/token.wgsl~let key = group * SPANS~let key = group~I~dies
merge-item-end      ~attention/merge.wgsl~if (index >= merge_item_count(params.class_index))~if (false)~G~dies
merge-row-end       ~attention/merge.wgsl~if (tile_row >= item.rows)~if (false)~D~dies
merge-weight        ~attention/softmax.wgsl~select(0.0, exp2(lse2 - m), lse2 > FLOOR)~exp2(lse2 - m)~D~same: such a part weighs 0 beside any score, and its own sums are 0
lse2-empty          ~attention/softmax.wgsl~select(NEGATIVE, m + log2(max(l, 1.0e-38)), l > 0.0)~m + log2(max(l, 1.0e-38))~D~same: m is NEGATIVE then
lse-bits-empty      ~attention/softmax.wgsl~select(bitcast<u32>(lse2 * LN_2), MINUS_INFINITY_BITS, lse2 <= FLOOR)~bitcast<u32>(lse2 * LN_2)~D~same: every row sees a token
inverse-empty       ~attention/softmax.wgsl~select(0.0, 1.0 / max(l, 1.0e-38), l > 0.0)~1.0 / l~D~dies
requests-next       ~src/model/session/room.rs~tokens.saturating_add(1).div_ceil(size)~tokens.div_ceil(size)~H~dies
requests-batch      ~src/model/serve/scheduler.rs~running >= self.session.max_batch()~false~H~dies
requests-fit        ~src/model/serve/scheduler.rs~needed > available(&self.session)~needed >= available(&self.session)~H~dies
requests-refused    ~src/model/serve/scheduler.rs~                self.give_up(running);\n                self.refused_at = Some~                self.refused_at = Some~H~dies
requests-running    ~src/model/serve/scheduler.rs~.map(|request| self.needed(request)).sum()~.map(|_| 0).sum()~H~dies
requests-give-up    ~src/model/serve/steps.rs~let _ = self.session.remove_alone(id);~let _ = id;~H~dies
requests-second     ~src/model/serve/scheduler.rs~if youngest > 0 {~if youngest > 1 {~H~dies
requests-room       ~src/model/serve/steps.rs~    let room = room - parts.len(); // there are at most as many as the capacity\n~~H~dies
requests-chunk      ~src/model/serve/steps.rs~part.from + wanted(part).min(left)~part.from + wanted(part)~H~dies
requests-half       ~src/model/serve/steps.rs~wanted(oldest).min(room.div_ceil(2))~wanted(oldest).min(room)~Q~dies
requests-oldest     ~src/model/serve/steps.rs~wanted(oldest).min(half + left)~wanted(oldest).min(half)~Q~dies
requests-least      ~src/model/serve/steps.rs~others.sort_by_key(|part| (wanted(part), part.request));~~Q~dies
requests-late       ~src/model/serve/steps.rs~deadline <= now~deadline > now~Q~dies
requests-prompt     ~src/model/serve/steps.rs~in parts.iter().zip(drawn).filter(|(part, _)| part.draws()) {~in parts.iter().zip(drawn) {~H~dies
requests-ended      ~src/model/serve/steps.rs~        self.give_up(place);\n        self.requests.remove(place)~        self.requests.remove(place)~H~dies
requests-rollback   ~src/model/serve/steps.rs~            self.session.roll_back(); // what an earlier step left half done~~H~same: off browsers no step is left half way, and what is submitted next rolls back itself
requests-asked      ~src/model/serve/steps.rs~        self.refused_at = None;\n        if let Some(id)~        if let Some(id)~H~same: time only, who was refused is asked again once there is more room, or none runs
requests-age        ~src/model/serve/steps.rs~parts.sort_by_key(|part| part.request);~~H~dies
ahead-ended         ~src/model/serve/steps.rs~if draws && request.ends_with_next() {~if false {~W~dies
ahead-waits         ~src/model/serve/steps.rs~ || (has_place && self.waiting() > 0);~;~W~dies
ahead-draw          ~src/model/serve/steps.rs~self.draw(part, usize::from(drawn.is_some()))~self.draw(part, 0)~W~dies
ahead-ids           ~src/model/serve/steps.rs~let ids = if in_order {~let ids = if true {~W~dies
ahead-window        ~src/model/session/behind.rs~forked || !fed.iter().all(stays) || ~forked || ~W~dies
ahead-losses        ~src/model/session/behind.rs~ || self.decoder.gpu().losses() != first.losses {~ {~W~same: the first is refused when it is read
repeats-items       ~src/attention/decode.rs~let numbers = [*items, *merges,~let numbers = [0, *merges,~N~dies
repeats-forget      ~src/gpu/kernel.rs~        self.forget_tapes(id);~~N~dies
guesses-target      ~src/model/generate/speculative.rs~own.session.truncate(sequence, tokens.len() + stand)?;~~H~dies
guesses-drafter     ~src/model/generate/speculative.rs~own.session.truncate(sequence, same)?;~~H~dies
guesses-left        ~src/model/generate/speculative.rs~made.tokens.len() - 1;~made.tokens.len();~H~dies
guesses-most        ~src/model/generate/speculative.rs~(k + 2).min(most)~k + 2~H~dies
guesses-least       ~src/model/generate/speculative.rs~(k - 1).max(1)~k - 1~H~dies
guesses-position    ~src/model/generate/speculative.rs~all <= session.max_positions()~all < session.max_positions()~H~dies
guesses-last        ~src/model/generate/speculative.rs~has_room(own.session, sequence, tokens, k - 1)~has_room(own.session, sequence, tokens, k)~H~dies
guesses-prompt      ~src/model/generate/speculative.rs~made.steps > 0 && ~~H~dies
guesses-rows        ~src/model/generate/speculative.rs~(logits.len() / vocab).saturating_sub(proposals.len() + 1)~(logits.len() / vocab).saturating_sub(proposals.len())~H~dies
guesses-tokens      ~src/model/generate/speculative.rs~most_likely.len().saturating_sub(proposals.len() + 1)~most_likely.len().saturating_sub(proposals.len())~H~dies
guesses-unread      ~src/model/generate/speculative.rs~let first = unfed.len() - 1;~let first = unfed.len();~H~dies
guesses-copied      ~src/model/session/guesses.rs~to: 4 * guess as u64~to: 0~H~dies
guesses-committed   ~src/model/session/guesses.rs~&[tokens, &guesses].concat()~&unknown~H~same: the sequence is the call's own and shares no prefix
guesses-device      ~src/model/session/guesses.rs~self.decoder.gpu().is_same(drafter.decoder.gpu()) && ~~H~dies
guesses-stream      ~src/model/generate/speculative.rs~stream.next(guess < k)~stream.next(guess <= k)~H~same: the step ahead is rolled back
guesses-lacks       ~src/model/generate/speculative.rs~ && own.session.decoder().config().vocab_size <= vocab~~H~dies
guesses-equal       ~src/model/generate/rejection.rs~proposal.token == **token~true~R~dies
rule-less           ~src/model/generate/rejection.rs~proposal.probability(proposal.token) < p.of~proposal.probability(proposal.token) <= p.of~R~dies
rule-rest           ~src/model/generate/rejection.rs~(p - proposal.probability(token)).max(0.0)~{ let _ = token; *p }~R~dies
rule-again          ~src/model/generate/rejection.rs~pick(rest, f64::from(random.uniform()))~pick(rest, u)~R~dies
rule-nucleus        ~src/model/generate/rejection.rs~|p| **p < least~|p| **p <= least~R~dies
places-first        ~src/cache/window_pages.rs~(len + 1).saturating_sub(self.window + more)~(len + 2).saturating_sub(self.window + more)~F~dies
places-source       ~src/cache/window_pages.rs~        held.extend(wanted.copies.iter().map(|copy| copy.source));\n~~F~dies
places-seen         ~src/cache/window_pages.rs~.filter(|(page, _)| !seen.contains(page))~.filter(|(page, _)| !wanted.sequences.is_empty() || seen.contains(page))~F~dies
places-cut-back     ~src/cache/window_pages.rs~(wished.contains(&page), is_out(page), asked)~(false, is_out(page), asked)~F~dies
places-stale        ~src/cache/window_pages.rs~            if wanted.at_once {\n~            if false {\n~F~dies
places-lost         ~src/cache/window_pages.rs~None if at * page_size < *len => return~None if false => return~F~same: who is in use has the places of its window
places-cut          ~src/cache/window_pages.rs~if len > sequence.len || self.sees_all(&sequence.pages, len, table.page_size) {~if true {~F~dies
places-usable       ~src/cache/window_pages.rs~self.sees_all(pages, count * page_size, page_size);~true;~F~dies
places-joined       ~src/cache/window_pages.rs~self.place(to).is_none() && table~false && table~F~dies
places-joined-held  ~src/cache/window_pages.rs~table.store.pages.holders(from) == 0 {~true {~F~same: a page that was just filled is its writer's alone
places-copied       ~src/cache/window_pages.rs~Some(source) => new.push((page, Some(source))),~Some(_) => new.push((page, None)),~F~dies
places-needed       ~src/cache/window_pages.rs~.div_ceil(page_size) + 4;~.div_ceil(page_size);~F~dies
rule-pick           ~src/model/generate/rejection.rs~if cumulative > wanted~if cumulative >= wanted~R~dies
rule-all            ~src/model/generate/rejection.rs~Ok((proposals.len(), last.draw(random)))~Ok((proposals.len().saturating_sub(1), last.draw(random)))~R~dies
requests-random     ~src/model/sampler/mod.rs~        self.random.uniform();\n        self.window.push~        self.window.push~H~dies
experts-base        ~nn/experts_list.wgsl~(first / TILE_ROWS + expert) * TILE_ROWS~(first / TILE_ROWS) * TILE_ROWS~E~dies
experts-rank        ~nn/experts_list.wgsl~i < lane~i <= lane~E~dies
experts-none        ~nn/experts_list.wgsl~at < next~at + 1u < next~E~dies
experts-clamp       ~nn/experts_listed.wgsl~min(ids[pair], params.experts - 1u)~ids[pair]~E~dies
experts-bias-listed ~nn/experts_io.wgsl~row_scale(at) + bias_at(at)~row_scale(at)~E~dies
experts-bias-up     ~nn/expert_side/up.wgsl~sums += vec2<f32>(bias_at(gate), bias_at(up));~sums += vec2<f32>(bias_at(gate), bias_at(gate));~E~dies
experts-bias-down   ~nn/expert_side/down.wgsl~shares[row * TOP + k] * bias_at(at)~bias_at(at)~E~dies
experts-clamp-gate  ~nn/output/clamped.wgsl~let g = min(first, LIMIT);~let g = first;~E~dies
experts-clamp-up    ~nn/output/clamped.wgsl~clamp(last, -LIMIT, LIMIT)~min(last, LIMIT)~E~dies
experts-input-row   ~nn/experts_io.wgsl~ / params.pairs_per_row * params~ * params~E~dies
experts-first-out   ~nn/experts_io.wgsl~ + at - params.first_out]~ + at]~E~dies
experts-first-tile  ~nn/experts_io.wgsl~group.y + params.first_tile~group.y~E~dies
experts-first-group ~nn/experts_io.wgsl~group.x + params.first_group~group.x~E~dies
experts-store-none  ~nn/experts_io.wgsl~pair != NONE && ~~E~same: Vulkan drops what is stored past the buffer
experts-row-scale   ~nn/experts_io.wgsl~return product * row_scale(at) + ~return product * row_scale(at % params.out_dim) + ~E~dies
experts-sum-slots   ~nn/experts_sum.wgsl~slot < TOP~slot < TOP - 1u~E~dies
experts-sum-first   ~nn/experts_sum.wgsl~params.first_out + out] +=~out] +=~E~dies
experts-sum-adds    ~nn/experts_sum.wgsl~out] += sum~out] = sum~E~dies
experts-rule        ~src/nn/experts/listed.rs~shape.top) >= self~shape.top) > self~E~dies
experts-empty       ~nn/experts_io.wgsl~list[first_row] == NONE~false~E~same: a tile without pairs stores nothing
blocks-high-run     ~nn/bits/5.wgsl~(piece + 4u * run)~piece~B~dies
blocks-high-word    ~nn/block_planes.wgsl~at % GROUP * HIGH + n~n~B~dies
blocks-half         ~nn/block_scales/half.wgsl~unpack2x16float(header)[at % 2u]~unpack2x16float(header).x~B~dies
blocks-offset       ~nn/block_scales/k4.wgsl~product * scale.x - inputs * scale.y~product * scale.x~B~dies
blocks-zero         ~nn/block_scales/zero.wgsl~product * scale.x + inputs * scale.y~product * scale.x~B~dies
blocks-zero-byte    ~nn/block_scales/zero.wgsl~(header >> 16u) & 255u~header >> 16u~B~dies
blocks-last-group   ~src/nn/linear/blocks/planes.rs~words.truncate(end)~~B~dies
sampled-mask        ~nn/sampled_shape.wgsl~(rows[mask + i / 32u] >> (i % 32u)) & 1u~rows[mask + i / 32u] & 1u~P~dies
sampled-mask-spoils ~nn/sampled_shape.wgsl~mask != NONE && is_finite(bits) && ~mask != NONE && ~P~dies
sampled-list-start  ~nn/sampled_shape.wgsl~low = middle + 1u;~low = middle + 2u;~P~dies
sampled-list-end    ~nn/sampled_shape.wgsl~token < first || token >= end~token < first || token > end~P~dies
sampled-drawn-once  ~nn/sampled_shape.wgsl~listed == 0u && last >= first~last >= first~P~dies
sampled-drawn-count ~nn/sampled_shape.wgsl~select(0u, 1u, again)~0u~P~dies
sampled-sign        ~nn/sampled_shape.wgsl~value / repetition, value > 0.0~value / repetition, true~P~dies
sampled-presence    ~nn/sampled_shape.wgsl~ - head_number(row, PRESENCE)~~P~dies
sampled-range       ~nn/sampled_shape.wgsl~clamp(bitcast<f32>(bits) + bias, -LARGEST, LARGEST)~bitcast<f32>(bits) + bias~P~same: the largest f32 and 1000 round to itself
sampled-members     ~nn/sampled_draw.wgsl~select(SOME, WHOLE, inside && bucket < end)~select(SOME, WHOLE, inside)~P~dies
sampled-spread      ~nn/sampled_draw.wgsl~abs(near - cut.mean) <= cut.spread && abs(far - cut.mean) <= cut.spread~true~P~dies
sampled-keeps       ~nn/sampled_draw.wgsl~value >= cut.low && abs(x - cut.mean)~abs(x - cut.mean)~P~dies
sampled-dead        ~nn/sampled_draw.wgsl~cut.spread && x < LAST_PLACE~cut.spread~P~same: of a bucket that is not drawn from no member is looked at, but in the part of the token
sampled-none        ~nn/sampled_draw.wgsl~select(token, NO_TOKEN, best.index == NO_TOKEN)~token~P~dies
sampled-edge        ~nn/sampled_places.wgsl~24.0 + 4.0 * (f32(bucket)~24.0 + 3.0 * (f32(bucket)~P~same: what is so far below the top has no weight in a sum of f32
sampled-sorted      ~nn/sampled_buckets.wgsl~i < lane; i++~i < lane + 1u; i++~P~dies
logprobs-later      ~nn/logprobs.wgsl~logit == best.value && i > best.index~logit == best.value~P~dies
logprobs-scaled     ~nn/logprobs.wgsl~part_sum * exp(max(exponent, -80.0))~part_sum~P~dies
logprobs-none       ~nn/logprobs.wgsl~!spoiled && token < params.vocab~token < params.vocab~P~dies
norm-gap-end        ~nn/norm.wgsl~i < params.dim + params.gap~i < params.dim~Z~dies
norm-gap-stride     ~nn/norm.wgsl~group.x * (params.dim + params.gap)~group.x * params.dim~Z~dies
shard-copies        ~src/cache/reserve.rs~journal.push(copies);~~X~dies
shard-adds          ~src/model/layers/attention.rs~accumulate: self.adds,~accumulate: true,~X~dies
shard-bias          ~src/model/layers/feed_forward.rs~let down = if first { down } else { down.without_any_bias() };~~X~dies
shard-norms         ~src/model/weights/reader.rs~&gains[groups.start * shape.dim..groups.end * shape.dim]~&gains[..groups.len() * shape.dim]~X~dies
shard-pages         ~src/cache/mirror.rs~drop(pages.cut(same..));~~X~dies
shard-turns         ~src/kv/turns.rs~let kv_len = if own(at) { seen } else { seen.saturating_add(q_len) };~let kv_len = seen.max(q_len);~X~dies
shard-slots         ~src/cache/step.rs~*slot = share.slot(*slot)~()~X~dies
shard-weighs        ~src/model/session/ranks.rs~merge::weigh(values, width, own, all_lse);~~X~dies
TABLE
}

# The groups of tests of a row: words that `cargo test` takes, groups apart by |.
groups_of() {
  case $1 in
    A) echo "$A" ;;
    D) echo "$D" ;;
    G) echo "$G" ;;
    O) echo "$O" ;;
    K) echo "$K" ;;
    T) echo "$T" ;;
    I) echo "$I" ;;
    C) echo "$C" ;;
    L) echo "corrupted" ;;
    S) echo "$S" ;;
    H) echo "$H" ;;
    Q) echo "$Q" ;;
    W) echo "$W" ;;
    N) echo "$N" ;;
    R) echo "$R" ;;
    E) echo "$E" ;;
    U) echo "$U" ;;
    V) echo "$V" ;;
    B) echo "$B" ;;
    P) echo "$P" ;;
    Y) echo "$Y" ;;
    Z) echo "$Z" ;;
    X) echo "$X" ;;
    F) echo "$F" ;;
    *) return 1 ;;
  esac
}

# The target of those tests.
target_of() {
  case $1 in
    L | S | R | F) echo "--lib" ;;
    H | Q | W | N) echo "--test model" ;;
    E | B | P | Y | Z) echo "--test nn" ;;
    X) echo "--test parallel" ;;
    *) echo "--test kernels" ;;
  esac
}

path_of() {
  case $1 in
    src/*) echo "$1" ;;
    *) echo "shaders/$1" ;;
  esac
}

# Is there a test in the target whose name begins so? `steps::` is a file, `split::many` a function of one.
test_exists() {
  local target=$1 name=$2 file function folder
  file=${name%%::*} function=
  [[ $name != *::* ]] || function=${name#*::}
  case $target in
    --lib) grep -rqE "fn [a-z_0-9]*$file|mod [a-z_0-9]*$file|^#\[path = \"${file}_tests" src ;;
    *)
      folder=tests/${target#--test }
      [[ -f $folder/$file.rs ]] && { [[ -z $function ]] || grep -qE "^(    )?fn $function" "$folder/$file.rs"; }
      ;;
  esac
}

# Says every row that does not apply, and fails where there is one.
check_table() {
  local name file text new tests fate path wrong=0 rows=0 found word target
  while IFS='~' read -r name file text new tests fate; do
    name=${name// /} path=$(path_of "$file") rows=$((rows + 1))
    if [[ $fate != dies && $fate != "same: "* ]]; then
      echo "$name: the row does not end in \"dies\" or \"same: why\"" >&2 && wrong=$((wrong + 1))
    elif [[ ! -f $path ]]; then
      echo "$name: $path does not exist" >&2 && wrong=$((wrong + 1))
    else
      found=$(TEXT=$text perl -0ne 'my $text = $ENV{TEXT}; $text =~ s/\\n/\n/g; print scalar(() = /\Q$text\E/g)' "$path")
      [[ $found == 1 ]] || { echo "$name: its text occurs $found times in $path, wanted once" >&2 && wrong=$((wrong + 1)); }
    fi
    if ! groups_of "$tests" >/dev/null; then
      echo "$name: no group of tests $tests" >&2 && wrong=$((wrong + 1))
    fi
  done < <(table)
  for tests in A D G O K T I C L S H Q W N R E U V B P Z X F; do
    target=$(target_of "$tests")
    for word in $(groups_of "$tests" | tr '|' ' '); do
      [[ $word != --* ]] || continue
      test_exists "$target" "$word" || { echo "group $tests: no test $word in $target" >&2 && wrong=$((wrong + 1)); }
    done
  done
  echo "$rows mutations, $wrong do not apply" >&2
  [[ $wrong == 0 ]]
}

if [[ ${1:-} == --check ]]; then
  check_table
  exit
fi

copy=target/mutate/tree
mkdir -p "$copy"
export CARGO_TARGET_DIR="$PWD/target/mutate/build"
fresh() {
  for part in src shaders tests tools examples mpi benches docs Cargo.toml Cargo.lock clippy.toml README.md; do
    if [[ -e $part ]]; then rm -rf "${copy:?}/$part" && cp -r "$part" "$copy/"; fi
  done
  read_shaders_late
}

# In the copy, a test reads the shaders when it runs, so that a row of a shader needs no build.
read_shaders_late() {
  perl -0pi -e 's/part\.text\.lines\(\)/late_text(part).lines()/' "$copy/src/gpu/shader.rs"
  grep -q 'late_text(part)' "$copy/src/gpu/shader.rs" ||
    { echo "the place that reads a shader's text is not where mutate.sh looks" >&2 && exit 2; }
  cat >>"$copy/src/gpu/shader.rs" <<'RUST'

/// The file's text as it is now.
pub(crate) fn late_text(part: &ShaderPart) -> &'static str {
    let path = format!("{}/shaders/{}", env!("CARGO_MANIFEST_DIR"), part.name);
    std::fs::read_to_string(path).map_or(part.text, |text| text.leak())
}
RUST
}

# The test binary of a target, built from the copy as it is.
binary_of() {
  { (cd "$copy" && cargo test --release --quiet --no-run --message-format=json "$@") 2>>target/mutate/log ||
    cat target/mutate/log >&2; } | sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | head -1
}

# The kernel of every device is tested as such: where there are subgroups, the row kernel would take its place.
tier_of() {
  case $1 in
    attention/decode_tile.wgsl | attention/scales/* | attention/query/* | attention/tile/*) echo t0 ;;
  esac
}

# Runs the groups of tests, cheapest first; true as soon as one fails.
dies() {
  local groups target group tier binary
  groups=$(groups_of "$1") target=$(target_of "$1")
  tier=$(tier_of "$2")
  if [[ -n $tier ]]; then export LATTEN_TEST_TIER=$tier; else unset LATTEN_TEST_TIER; fi
  : >target/mutate/log
  case $2 in
    src/*)
      # shellcheck disable=SC2086 # words
      binary=$(binary_of $target)
      changed=yes
      ;;
    *) binary=${built[$target]} ;;
  esac
  [[ -n $binary ]] || { cat target/mutate/log >&2 && exit 2; }
  while read -r group; do
    # shellcheck disable=SC2086 # words
    (cd "$copy" && CARGO_MANIFEST_DIR=$PWD timeout 900 "$binary" $group) >>"target/mutate/log" 2>&1 || return 0
  done <<<"${groups//|/$'\n'}"
  return 1
}

# The binaries without a mutation; again after a row of src, which may have replaced them.
declare -A built
build_all() {
  local target
  for target in "--lib" "--test kernels" "--test model" "--test nn"; do
    # shellcheck disable=SC2086 # words
    built[$target]=$(binary_of $target)
    [[ -n ${built[$target]} ]] || { cat target/mutate/log >&2 && exit 2; }
  done
  changed=
}

kind=dies
if [[ ${1:-} == --same ]]; then kind=same && shift; fi
word=${1:-}
fresh
: >target/mutate/log
build_all
survived=0 killed=0
while IFS='~' read -r name file text new tests fate; do
  name=${name// /}
  [[ $name == *"$word"* && ${fate%%:*} == "$kind" ]] || continue
  fresh
  path=$(path_of "$file")
  [[ $file == src/* || -z $changed ]] || build_all
  TEXT=$text NEW=$new perl -0pi -e '
    my ($text, $new) = @ENV{qw(TEXT NEW)};
    s/\\n/\n/g for $text, $new;
    my $at = index($_, $text);
    substr($_, $at, length $text) = $new if $at >= 0;
  ' "$copy/$path"
  if cmp -s "$path" "$copy/$path"; then
    echo "$name: does not apply to $path any more: correct the table" >&2
    exit 2
  fi
  if dies "$tests" "$file"; then
    killed=$((killed + 1))
    echo "killed    $name ($(grep -o 'test [a-z_0-9:]* \.\.\. FAILED\|[a-z_0-9]*::[a-z_0-9:]* --- FAILED' target/mutate/log | head -1))"
    [[ $fate == dies ]] || echo "          though listed as $fate"
  elif [[ $fate == same* ]]; then
    echo "survived  $name, as expected ($fate)"
  else
    survived=$((survived + 1))
    echo "SURVIVED  $name: no test noticed"
  fi
done < <(table)
echo "$killed killed, $survived survived that should not"
[[ $survived == 0 ]]
