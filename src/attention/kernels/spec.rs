//! The texts of the decode kernels and of the merge: constants, parts and bindings. Pure.

use super::matrix::MatrixShape;
use super::rows::RowShape;
use super::select::KernelShape;
use super::short::ShortShape;
use super::tile::DecodeShape;
use crate::attention::options::AttentionOptions;
use crate::error::Result;
use crate::gpu::elements::cache_parts;
use crate::gpu::{number, part, Access, Const, Consts, DType, KernelSpec, ShaderPart};
use crate::kv::layout::StateLayout;
use crate::kv::HeadLayout;

fn head_consts(heads: &HeadLayout) -> Consts {
    vec![
        ("GROUPS", number(heads.groups())),
        ("HEADS_PER_GROUP", number(heads.heads_per_group())),
        ("Q_HEADS", number(heads.q_heads())),
        ("V_DIM", number(heads.v_dim())),
    ]
}

/// The kernel of a shape; all take the same bindings: pool, queries, plan, output, LSE, partial results, and sinks
/// where there are any.
pub(crate) fn kernel_spec(
    heads: &HeadLayout,
    dtype: DType,
    options: &AttentionOptions,
    shape: &KernelShape,
) -> Result<KernelSpec> {
    match shape {
        KernelShape::Tile(shape) => tile_spec(heads, dtype, options, shape),
        KernelShape::Rows(shape) => rows_spec(heads, dtype, options, shape),
        KernelShape::Matrix(shape) => Ok(matrix_spec(heads, dtype, options, shape)),
        KernelShape::Short(shape) => short_spec(heads, dtype, options, shape),
    }
}

/// Which reads stay ahead of the barriers that they are written ahead of.
#[derive(Debug, Clone, Copy)]
enum Ordered {
    None,
    Pool,
    PoolAndPlan,
}

/// What every decode kernel shares: its bindings and the parts that follow from the options. Adds to `consts`.
fn common(options: &AttentionOptions, ordered: Ordered, consts: &mut Consts) -> (Vec<Access>, Vec<ShaderPart>) {
    use Access::{Read, Write};
    let (pool, pool_part) = match ordered {
        Ordered::None => (Read, part!("attention/pool/constant.wgsl")),
        Ordered::Pool | Ordered::PoolAndPlan => (Write, part!("attention/pool/ordered.wgsl")),
    };
    let (plan, plan_part) = match ordered {
        Ordered::None | Ordered::Pool => (Read, part!("attention/plan_words/constant.wgsl")),
        Ordered::PoolAndPlan => (Write, part!("attention/plan_words/ordered.wgsl")),
    };
    let mut bindings = vec![pool, Read, plan, Write, Write, Write];
    let [score, mask] = options.score_parts(consts);
    let sink = options.sink_part(consts, &mut bindings);
    let parts = vec![
        part!("kv/slabs/1.wgsl"),
        part!("kv/slab_loads/1.wgsl"),
        part!("kv/page.wgsl"),
        plan_part,
        part!("attention/plan.wgsl"),
        part!("attention/softmax.wgsl"),
        pool_part,
        part!("attention/decode_io.wgsl"),
        score,
        mask,
        sink,
    ];
    (bindings, parts)
}

/// `Rows` where a lane has one row, for `attention/softmax.wgsl`.
const ONE_ROW: Const = Const::Alias("f32");

/// The vector that holds the rows of a block.
fn rows_slot(rows_per_block: usize) -> (Const, ShaderPart) {
    match rows_per_block {
        1 => (ONE_ROW, part!("attention/block/1.wgsl")),
        2 => (Const::Alias("vec2<f32>"), part!("attention/block/2.wgsl")),
        _ => (Const::Alias("vec4<f32>"), part!("attention/block/4.wgsl")),
    }
}

/// Constants of a layout in a dtype, for every decode kernel.
fn state_consts(heads: &HeadLayout, layout: &StateLayout) -> Consts {
    let mut consts = head_consts(heads);
    consts.extend([
        ("NOPE_DIM", number(heads.nope_dim())),
        ("Q_DIM", number(heads.q_dim())),
        ("ELEMS_PER_WORD", number(layout.elems_per_word)),
        ("U32S_PER_WORD", number(layout.word_bytes / 4)),
        ("ROPE_VECS", number(layout.rope_elems() / 4)),
        ("PoolWord", Const::Alias(if layout.word_bytes == 8 { "vec2<u32>" } else { "vec4<u32>" })),
        ("KEY_WORDS", number(layout.key_words)),
        ("ROPE_WORDS", number(layout.rope_words)),
        ("STATE_WORDS", number(layout.state_words)),
        ("VALUE_FIRST", number(layout.value_first)),
        ("VALUE_WORDS", number(layout.value_words)),
    ]);
    consts.extend(layout.scale_consts());
    consts
}

fn rows_spec(heads: &HeadLayout, dtype: DType, options: &AttentionOptions, shape: &RowShape) -> Result<KernelSpec> {
    let layout = StateLayout::of_decode(heads, dtype);
    let slots = shape.slots(&layout);
    let query_elems = slots.key * layout.elems_per_word + slots.rope * layout.rope_elems();
    let ordered = if shape.ordered(&layout) { Ordered::Pool } else { Ordered::None };
    let mut consts = state_consts(heads, &layout);
    let (rows_type, rows) = rows_slot(shape.rows_per_block);
    let (scores, halvings) = (shape.scores(), shape.halvings(&layout));
    consts.extend([
        ("THREADS", number(shape.threads())),
        ("TEAM", number(shape.team)),
        ("TEAM_LOG2", number(shape.team.ilog2() as usize)),
        ("TEAMS", number(shape.teams)),
        ("TEAMS_LOG2", number(shape.teams.ilog2() as usize)),
        ("TOKENS", number(shape.tokens)),
        ("GROUPS_PER_WORKGROUP", number(shape.groups_per_workgroup)),
        ("SQUADS", number(shape.squads)),
        ("ROWS", number(shape.rows())),
        ("ROWS_PER_BLOCK", number(shape.rows_per_block)),
        ("ROW_BLOCKS", number(shape.row_blocks)),
        ("KEY_SLOTS", number(slots.key)),
        ("ROPE_SLOTS", number(slots.rope)),
        ("STATE_SLOTS", number(slots.state)),
        ("SLOTS", number(slots.state + slots.rope)),
        ("VALUE_SLOT_FIRST", number(slots.value_first)),
        ("VALUE_SLOTS", number(slots.value)),
        ("ROPE_ELEMS", number(layout.rope_elems())),
        ("QUERY_ELEMS", number(query_elems * shape.row_blocks)),
        ("FETCHED_WORDS", number(2 * shape.tokens * (slots.state + slots.rope))),
        ("SCORE_BLOCKS", number(shape.tokens * shape.row_blocks)),
        ("SCORES", number(scores)),
        ("SCORES_LOG2", number(scores.ilog2() as usize)),
        ("HALF_SCORES", number((scores / 2).max(1))),
        ("HALVINGS", number(halvings)),
        ("DOUBLINGS", number(shape.team.ilog2() as usize - halvings)),
        ("OWNED", number(scores >> halvings)),
        ("SUM_WIDTH", number(slots.value * layout.elems_per_word)),
        ("SUM_ELEMS", number(slots.value * layout.elems_per_word * shape.row_blocks)),
        ("Rows", rows_type),
    ]);
    let (bindings, mut parts) = common(options, ordered, &mut consts);
    let scales = if layout.spans > 0 {
        part!("attention/row_scales/token.wgsl")
    } else {
        part!("attention/row_scales/none.wgsl")
    };
    let pages = if shape.joint_pages(&layout) {
        part!("attention/pages/joint.wgsl")
    } else {
        part!("attention/pages/each.wgsl")
    };
    let end = match shape.squads {
        1 => part!("attention/row_end/alone.wgsl"),
        _ => part!("attention/row_end/joined.wgsl"),
    };
    let shares = part!("attention/score_shares.wgsl", Subgroup);
    parts.extend(cache_parts(dtype, layout.word_bytes)?);
    parts.extend([scales, rows, shares, pages, end, part!("attention/decode_rows.wgsl", Subgroup)]);
    let name = if shape.squads == 1 { "decode_rows" } else { "decode_squads" };
    Ok(KernelSpec { name, consts, parts, bindings, workgroup_bytes: shape.workgroup_bytes(heads) })
}

fn short_spec(heads: &HeadLayout, dtype: DType, options: &AttentionOptions, shape: &ShortShape) -> Result<KernelSpec> {
    let layout = StateLayout::of_decode(heads, dtype);
    let (key_slots, rope_slots) = shape.slots(&layout);
    let mut consts = state_consts(heads, &layout);
    let (rows_type, rows) = rows_slot(shape.rows);
    consts.extend([
        ("THREADS", number(shape.threads())),
        ("TEAM", number(shape.team())),
        ("TEAM_LOG2", number(shape.team().ilog2() as usize)),
        ("ROWS", number(shape.rows)),
        ("ROW_PARTS", number(shape.row_parts)),
        ("KEY_SLOTS", number(key_slots)),
        ("ROPE_SLOTS", number(rope_slots)),
        ("SLOTS", number(key_slots + rope_slots)),
        ("ROPE_ELEMS", number(layout.rope_elems())),
        ("ELEM_QUADS", number(layout.elems_per_word / 4)),
        ("VALUE_LANES", number(shape.value_lanes)),
        ("AT_ONCE", number(shape.at_once())),
        ("AREA", number(shape.area(&layout))),
        ("SUBGROUPS", number(shape.subgroups)),
        ("Rows", rows_type),
    ]);
    let (bindings, mut parts) = common(options, Ordered::None, &mut consts);
    let scales = if layout.spans > 0 {
        part!("attention/row_scales/token.wgsl")
    } else {
        part!("attention/row_scales/none.wgsl")
    };
    parts.extend(cache_parts(dtype, layout.word_bytes)?);
    parts.extend([scales, rows, part!("attention/decode_short.wgsl", Subgroup)]);
    let workgroup_bytes = shape.workgroup_bytes(&layout);
    Ok(KernelSpec { name: "decode_short", consts, parts, bindings, workgroup_bytes })
}

fn matrix_spec(heads: &HeadLayout, dtype: DType, options: &AttentionOptions, shape: &MatrixShape) -> KernelSpec {
    let layout = StateLayout::of_decode(heads, dtype);
    let (arrays, fetches) = (shape.arrays(&layout), shape.fetches(&layout));
    let lanes = (shape.threads() / shape.tokens(), shape.threads() / shape.rows());
    let stage_steps = shape.stage_steps(heads, &layout);
    let mut consts = vec![("f16", Const::Enable), ("wgpu_cooperative_matrix", Const::Enable)];
    consts.extend(state_consts(heads, &layout));
    consts.extend([
        ("THREADS", number(shape.threads())),
        ("ROW_TILES", number(shape.row_tiles)),
        ("TOKEN_TILES", number(shape.token_tiles)),
        ("KEY_SPLITS", number(shape.key_splits)),
        ("KEY_STEPS", number(shape.key_steps(heads))),
        ("GROUP_TILES", number(shape.group_tiles())),
        ("COLUMN_TILES", number(shape.column_tiles(heads))),
        ("ROW_GROUPS", number(shape.row_groups)),
        ("MORE_TOKEN_TILES", number(shape.token_tiles - 1)),
        ("QUERY_MATRICES", number(shape.key_steps(heads) * shape.group_tiles())),
        ("SUM_MATRICES", number(shape.row_tiles * shape.column_tiles(heads))),
        ("STATE_FETCHES", number(fetches.0)),
        ("ROPE_FETCHES", number(fetches.1)),
        ("FETCHES", number(fetches.0 + fetches.1)),
        ("STAGES", number(shape.key_steps(heads) / stage_steps)),
        ("STAGE_STEPS", number(stage_steps)),
        ("SCORE_STRIDE", number(shape.score_stride())),
        ("LANES_PER_TOKEN_LOG2", number(lanes.0.ilog2() as usize)),
        ("LANES_PER_ROW_LOG2", number(lanes.1.ilog2() as usize)),
        ("TOKENS_PER_LANE", number(shape.tokens() / lanes.1)),
        ("ROW_COUNT", number(shape.rows())),
        ("TILE_WORD_COUNT", number(arrays.tile_words)),
        ("SCORE_VEC4S", number(arrays.score_vec4s)),
        ("WEIGHT_WORDS", number(arrays.weight_words)),
    ]);
    consts.push(("Rows", ONE_ROW));
    let (bindings, mut parts) = common(options, Ordered::PoolAndPlan, &mut consts);
    let step = match shape.own() {
        true => part!("attention/matrix_step/own.wgsl", Subgroup, native),
        false => part!("attention/matrix_step/joint.wgsl", Subgroup, native),
    };
    parts.extend([part!("half_word.wgsl"), part!("attention/decode_matrix.wgsl", Subgroup, native), step]);
    let workgroup_bytes = shape.workgroup_bytes(&layout);
    KernelSpec { name: "decode_matrix", consts, parts, bindings, workgroup_bytes }
}

fn tile_spec(heads: &HeadLayout, dtype: DType, options: &AttentionOptions, shape: &DecodeShape) -> Result<KernelSpec> {
    let layout = StateLayout::of_decode(heads, dtype);
    let mut consts = state_consts(heads, &layout);
    consts.extend([
        ("ELEMS_PER_WORD_AND_TOTAL", number(layout.elems_per_word + 1)),
        ("VECS_PER_WORD", number(layout.elems_per_word / 4)),
        ("QUERY_WORDS", number(layout.query_words())),
        ("THREADS", number(shape.threads)),
        ("ROWS_PER_BLOCK", number(shape.rows_per_block)),
        ("ROW_BLOCKS", number(shape.row_blocks)),
        ("TOKENS", number(shape.tokens)),
        ("KEY_SPLITS", number(shape.key_splits)),
        ("WORDS_PER_SPLIT", number(shape.words_per_split)),
        ("TOKEN_SPLITS", number(shape.token_splits)),
        ("TOKENS_PER_SPLIT", number(shape.tokens / shape.token_splits)),
        ("TOKENS_UNROLLED", number(shape.tokens_unrolled)),
        ("UNITS_PER_LANE", number(shape.units_per_lane)),
        ("STATE_FETCHES", number(shape.state_fetches)),
        ("ROPE_FETCHES", number(shape.rope_fetches)),
        ("SCORE_LANES", number(shape.score_lanes)),
        ("TOKENS_PER_LANE", number(shape.tokens / shape.score_lanes)),
        ("TILE_LENGTH", number(shape.tile_length)),
        ("SPLIT_SCORES", number(shape.row_blocks * shape.tokens * (shape.key_splits | 1))),
    ]);
    let (rows_type, rows) = rows_slot(shape.rows_per_block);
    consts.push(("Rows", rows_type));
    let scales =
        if layout.spans > 0 { part!("attention/scales/token.wgsl") } else { part!("attention/scales/none.wgsl") };
    let query = if shape.query_in_registers {
        part!("attention/query/registers.wgsl")
    } else {
        part!("attention/query/stream.wgsl")
    };
    let (bindings, mut parts) = common(options, Ordered::None, &mut consts);
    let tile = match layout.word_bytes {
        8 => part!("attention/tile/vec2.wgsl"),
        _ => part!("attention/tile/vec4.wgsl"),
    };
    parts.extend(cache_parts(dtype, layout.word_bytes)?);
    parts.extend([scales, rows, query, tile, part!("attention/decode_tile.wgsl")]);
    Ok(KernelSpec { name: "decode", consts, parts, bindings, workgroup_bytes: shape.workgroup_bytes })
}

/// Lanes of a merge along the value, four dimensions each.
const MERGE_V_LANES: usize = 32;
/// Lanes of a merge that share the parts of a row.
const MERGE_SPLIT_LANES: usize = 8;
/// Parts that a lane of a merge loads before it uses the first.
const MERGE_AT_ONCE: usize = 4;

/// Blocks of value dimensions, each a workgroup of the merge.
pub(crate) fn merge_blocks(heads: &HeadLayout) -> usize {
    heads.v_dim().div_ceil(4 * MERGE_V_LANES)
}

pub(crate) fn merge_spec(heads: &HeadLayout, options: &AttentionOptions, row_tile: usize) -> KernelSpec {
    let mut consts = head_consts(heads);
    consts.extend([
        ("Rows", ONE_ROW),
        ("ROW_TILE", number(row_tile)),
        ("V_BLOCKS", number(merge_blocks(heads))),
        ("V_LANES", number(MERGE_V_LANES)),
        ("SPLIT_LANES", number(MERGE_SPLIT_LANES)),
        ("AT_ONCE", number(MERGE_AT_ONCE)),
    ]);
    let mut bindings = vec![Access::Read, Access::Write, Access::Read, Access::Write];
    let sink = options.sink_part(&mut consts, &mut bindings);
    KernelSpec {
        name: "merge",
        consts,
        parts: vec![
            part!("attention/plan_words/constant.wgsl"),
            part!("attention/plan.wgsl"),
            part!("attention/softmax.wgsl"),
            sink,
            part!("attention/merge.wgsl"),
        ],
        bindings,
        workgroup_bytes: MERGE_V_LANES * MERGE_SPLIT_LANES * 16 + 2 * MERGE_SPLIT_LANES * 4,
    }
}

/// Rows of latents out of their pages, rope keys behind rows of `row_dim` elements.
pub(crate) fn cached_rows_spec(heads: &HeadLayout, dtype: DType, row_dim: usize) -> Result<KernelSpec> {
    let layout = StateLayout::of_decode(heads, dtype);
    let mut consts = state_consts(heads, &layout);
    consts.extend([
        ("STATE_DIM", number(heads.state_dim())),
        ("ROPE_DIM", number(heads.rope_dim())),
        ("ROW_DIM", number(row_dim)),
        ("VECS_PER_WORD", number(layout.elems_per_word / 4)),
    ]);
    let scaled = layout.spans > 0;
    let elements = if scaled { part!("kv/row_elements/scaled.wgsl") } else { part!("kv/row_elements/plain.wgsl") };
    let mut parts = cache_parts(dtype, layout.word_bytes)?;
    parts.extend([
        part!("kv/slabs/1.wgsl"),
        part!("kv/slab_loads/1.wgsl"),
        part!("kv/page.wgsl"),
        elements,
        part!("kv/cached_rows.wgsl"),
    ]);
    Ok(KernelSpec {
        name: "cached_rows",
        consts,
        parts,
        bindings: vec![Access::Read, Access::Read, Access::Write, Access::Write],
        workgroup_bytes: 0,
    })
}

/// Two results of one step's rows, over disjoint tokens, into one.
pub(crate) fn join_spec(heads: &HeadLayout) -> KernelSpec {
    KernelSpec {
        name: "join",
        consts: vec![("Rows", ONE_ROW), ("Q_HEADS", number(heads.q_heads())), ("V_DIM", number(heads.v_dim()))],
        parts: vec![part!("attention/softmax.wgsl"), part!("attention/join.wgsl")],
        bindings: vec![Access::Read, Access::Read, Access::Read, Access::Write, Access::Write],
        workgroup_bytes: 0,
    }
}
