//! Explicit = absorbed = split = sharded; the algebra of the merge; masks.

use crate::vector::LayerWeights;
use latten::reference::{
    absorb_query, decode, decode_split, gla_layer, gla_project, linear, merge, unabsorb_values, Attended, DecodeInputs,
    Form, GlaWeights, LayerConfig,
};
use latten::{Gla, Gqa, Gta, HeadLayout};
use proptest::prelude::*;

use crate::assert_close;
use crate::random::Rng;
use crate::vectors::{exact, layers};

#[test]
fn identities_split_absorbed_layer_is_the_explicit_one() {
    for (name, vector) in layers("layer_", 8) {
        let LayerWeights::Gla(weights) = &vector.weights else { continue };
        let config = exact(&vector.config);
        let layout = gla_layout(&config);
        let projected = gla_project(&config, weights, &vector.x).unwrap();
        let q = absorb_query(&config, weights, &projected.q).unwrap();
        let step = DecodeInputs {
            q: &q,
            states: &projected.states,
            rope_keys: &projected.rope_keys,
            softmax_scale: ((config.head_dim + config.rope_dim) as f64).powf(-0.5),
            causal: true,
        };
        let partials = decode_split(&layout, &step, &[0..3, 3..4, 4..100]).unwrap();
        let out = merge(&partials, config.q_heads, config.state_dim).unwrap().out;
        let values = unabsorb_values(&config, weights, &out).unwrap();
        let y = linear(&values, &weights.w_o, None, config.q_heads * config.head_dim).unwrap();
        let explicit = gla_layer(&config, weights, &vector.x, Form::Explicit).unwrap();
        assert_close(&name, &y, &explicit);
    }
}

#[test]
fn identities_sum_of_shards_is_the_whole_layer() {
    let mut sharded = 0;
    for (name, vector) in layers("layer_gla", 3) {
        let LayerWeights::Gla(weights) = &vector.weights else { panic!("{name} holds no gla") };
        let config = exact(&vector.config);
        for ranks in [2, 4].into_iter().filter(|ranks| config.groups.is_multiple_of(*ranks)) {
            for form in [Form::Explicit, Form::Absorbed] {
                let mut sum = vec![0.0; config.model_dim];
                for rank in 0..ranks {
                    let (config, weights) = shard(&config, weights, rank, ranks);
                    let y = gla_layer(&config, &weights, &vector.x, form).unwrap();
                    sum.iter_mut().zip(y).for_each(|(sum, y)| *sum += y);
                }
                assert_close(&format!("{name} over {ranks} ranks, {form:?}"), &sum, &vector.y);
                sharded += 1;
            }
        }
    }
    assert!(sharded >= 8, "only {sharded} shardings tested");
}

fn gla_layout(config: &LayerConfig) -> HeadLayout {
    let LayerConfig { q_heads, groups, state_dim, rope_dim, .. } = *config;
    HeadLayout::gla(Gla { q_heads, latent_heads: groups, latent_dim: state_dim, rope_dim }).unwrap()
}

/// What rank `rank` of `ranks` owns: some latent heads with their query heads, and the rope key.
fn shard(config: &LayerConfig, weights: &GlaWeights, rank: usize, ranks: usize) -> (LayerConfig, GlaWeights) {
    let part = |v: &[f64]| v[rank * v.len() / ranks..][..v.len() / ranks].to_vec();
    let latents = config.groups * config.state_dim;
    let latents_then_rope_key = |v: &[f64], width: usize| {
        let (latents, rope_key) = v.split_at(latents * width);
        [part(latents).as_slice(), rope_key].concat()
    };
    let shard = GlaWeights {
        w_uq: part(&weights.w_uq),
        b_uq: part(&weights.b_uq),
        w_dkv: latents_then_rope_key(&weights.w_dkv, config.model_dim),
        b_dkv: latents_then_rope_key(&weights.b_dkv, 1),
        c_gain: part(&weights.c_gain),
        w_ukv: part(&weights.w_ukv),
        b_ukv: part(&weights.b_ukv),
        w_o: weights.w_o.chunks_exact(config.q_heads * config.head_dim).flat_map(part).collect(),
        ..weights.clone()
    };
    (LayerConfig { q_heads: config.q_heads / ranks, groups: config.groups / ranks, ..config.clone() }, shard)
}

/// A made-up step of one sequence.
#[derive(Debug)]
struct Case {
    layout: HeadLayout,
    q_len: usize,
    kv_len: usize,
    q: Vec<f64>,
    states: Vec<f64>,
    rope_keys: Vec<f64>,
}

impl Case {
    fn new(layout: HeadLayout, q_len: usize, kv_len: usize, seed: u64) -> Self {
        let mut draw = Rng(seed);
        Case {
            layout,
            q_len,
            kv_len,
            q: draw.many_signed(q_len * layout.q_heads() * layout.q_dim()),
            states: draw.many_signed(kv_len * layout.groups() * layout.state_dim()),
            rope_keys: draw.many_signed(kv_len * layout.rope_dim()),
        }
    }

    fn step(&self) -> DecodeInputs<'_> {
        DecodeInputs { q: &self.q, states: &self.states, rope_keys: &self.rope_keys, softmax_scale: 1.3, causal: true }
    }

    fn rows(&self) -> usize {
        self.q_len * self.layout.q_heads()
    }
}

fn layout(variant: usize, groups: usize, heads_per_group: usize, half: usize) -> HeadLayout {
    let (q_heads, head_dim, rope_dim) = (groups * heads_per_group, 2 * half + 3, 2 * half);
    match variant {
        0 => HeadLayout::gqa(Gqa { q_heads, kv_heads: groups, head_dim }),
        1 => HeadLayout::gta(Gta { q_heads, kv_heads: groups, head_dim, rope_dim }),
        _ => HeadLayout::gla(Gla { q_heads, latent_heads: groups, latent_dim: head_dim, rope_dim }),
    }
    .unwrap()
}

fn any_case() -> impl Strategy<Value = Case> {
    (0..3usize, 1..4usize, 1..4usize, 0..4usize, (0..6usize, 0..24usize), any::<u64>()).prop_map(
        |(variant, groups, g, half, (q_len, len), seed)| Case::new(layout(variant, groups, g, half), q_len, len, seed),
    )
}

proptest! {
    /// However the tokens are cut into consecutive ranges, empty ones and an overhang included.
    #[test]
    fn identities_any_split_merges_to_the_whole(case in any_case(), mut cuts in prop::collection::vec(0..30usize, 0..6)) {
        cuts.extend([0, 30]);
        cuts.sort();
        let ranges: Vec<_> = cuts.windows(2).map(|cut| cut[0]..cut[1]).collect();
        let whole = decode(&case.layout, &case.step()).unwrap();
        let partials = decode_split(&case.layout, &case.step(), &ranges).unwrap();
        let merged = merge(&partials, case.rows(), case.layout.v_dim()).unwrap();
        assert_close("out", &merged.out, &whole.out);
        assert_close("lse", &merged.lse, &whole.lse);
    }

    /// Row m of a causal step is a step of its own over the tokens before and at its position.
    #[test]
    fn identities_causal_rows_are_shorter_steps(case in any_case()) {
        let whole = decode(&case.layout, &case.step()).unwrap();
        let (q_row, out_row) = (case.layout.q_heads() * case.layout.q_dim(), case.layout.q_heads() * case.layout.v_dim());
        for m in 0..case.q_len {
            let visible = (case.kv_len + m + 1).saturating_sub(case.q_len);
            let alone = decode(&case.layout, &DecodeInputs {
                q: &case.q[m * q_row..][..q_row],
                states: &case.states[..visible * case.layout.groups() * case.layout.state_dim()],
                rope_keys: &case.rope_keys[..visible * case.layout.rope_dim()],
                ..case.step()
            }).unwrap();
            prop_assert_eq!(&alone.out, &whole.out[m * out_row..][..out_row]);
            prop_assert_eq!(&alone.lse, &whole.lse[m * case.layout.q_heads()..][..case.layout.q_heads()]);
        }
    }

    /// Merging any two neighbours first changes nothing, nor does the order.
    #[test]
    fn identities_merge_is_associative_and_commutative(case in any_case(), a in 0..24usize, b in 0..24usize) {
        let (a, b) = (a.min(b), a.max(b));
        let (rows, v_dim) = (case.rows(), case.layout.v_dim());
        let [x, y, z]: [Attended; 3] =
            decode_split(&case.layout, &case.step(), &[0..a, a..b, b..24]).unwrap().try_into().unwrap();
        let merge = |parts: &[&Attended]| {
            let parts: Vec<Attended> = parts.iter().map(|&part| part.clone()).collect();
            merge(&parts, rows, v_dim).unwrap()
        };
        let all = merge(&[&x, &y, &z]);
        for other in [merge(&[&merge(&[&x, &y]), &z]), merge(&[&x, &merge(&[&y, &z])]), merge(&[&z, &x, &y])] {
            assert_close("out", &other.out, &all.out);
            assert_close("lse", &other.lse, &all.lse);
        }
    }

    /// A row of zeros with LSE -inf is the merge's identity, exactly, and on either side.
    #[test]
    fn identities_merge_has_its_identity(case in any_case()) {
        let (rows, v_dim) = (case.rows(), case.layout.v_dim());
        let whole = decode(&case.layout, &case.step()).unwrap();
        let empty = Attended { out: vec![0.0; rows * v_dim], lse: vec![f64::NEG_INFINITY; rows] };
        prop_assert_eq!(&merge(&[], rows, v_dim).unwrap(), &empty);
        prop_assert_eq!(&merge(&[empty.clone(), empty.clone()], rows, v_dim).unwrap(), &empty);
        prop_assert_eq!(&merge(&[empty.clone(), whole.clone()], rows, v_dim).unwrap(), &whole);
        prop_assert_eq!(&merge(&[whole.clone(), empty], rows, v_dim).unwrap(), &whole);
    }
}

#[test]
fn identities_without_causal_mask_every_row_sees_every_token() {
    let case = Case::new(layout(2, 2, 3, 2), 3, 5, 11);
    let masked = decode(&case.layout, &case.step()).unwrap();
    let open = decode(&case.layout, &DecodeInputs { causal: false, ..case.step() }).unwrap();
    let q_heads = case.layout.q_heads();
    assert_eq!(open.lse[2 * q_heads..], masked.lse[2 * q_heads..], "the last query token sees all either way");
    for row in 0..2 * q_heads {
        assert!(open.lse[row] > masked.lse[row], "row {row}: more tokens, larger sum");
    }
}

/// Each group reads its own state: disturbing group 1 leaves exactly the heads of group 0 as they were.
#[test]
fn identities_a_head_reads_its_own_group_only() {
    let mut case = Case::new(layout(1, 2, 3, 2), 1, 4, 5);
    let before = decode(&case.layout, &case.step()).unwrap();
    let state_dim = case.layout.state_dim();
    for state in case.states.chunks_exact_mut(2 * state_dim) {
        state[state_dim..].fill(0.25);
    }
    let after = decode(&case.layout, &case.step()).unwrap();
    for h in 0..6 {
        assert_eq!(before.lse[h] == after.lse[h], h < 3, "head {h}");
    }
}

#[test]
fn identities_large_scores_do_not_overflow() {
    let layout = HeadLayout::mqa(1, 1).unwrap();
    let states = [-80.0, 1.0, 80.0, 2.0, -80.0, 3.0];
    let step = DecodeInputs { q: &[1e6], states: &states, rope_keys: &[], softmax_scale: 1.0, causal: true };
    let one_hot = decode(&layout, &step).unwrap();
    assert_eq!((one_hot.out, one_hot.lse), (vec![2.0], vec![8e7]));
}
