//! Every committed vector of the oracle.

use crate::vector::{KernelVector, LayerVector, LayerWeights, Variant, Vector};
use latten::reference::{decode, decode_split, gla_layer, gta_layer, merge, Form, LayerConfig};

use crate::{assert_close, vectors};

fn kernels(prefix: &str, at_least: usize) -> Vec<(String, KernelVector)> {
    let kernel = |(name, vector)| match vector {
        Vector::Kernel(vector) => (name, *vector),
        Vector::Layer(_) => panic!("{name} is no kernel vector"),
    };
    vectors(prefix, at_least).into_iter().map(kernel).collect()
}

pub(crate) fn layers(prefix: &str, at_least: usize) -> Vec<(String, LayerVector)> {
    let layer = |(name, vector)| match vector {
        Vector::Layer(vector) => (name, *vector),
        Vector::Kernel(_) => panic!("{name} is no layer vector"),
    };
    vectors(prefix, at_least).into_iter().map(layer).collect()
}

/// The vector's layer with the oracle's angles.
pub(crate) fn exact(config: &LayerConfig) -> LayerConfig {
    LayerConfig { rotation: config.rotation.clone().exact(), ..config.clone() }
}

#[test]
fn vectors_name_and_content_agree() {
    let count = |variant: Variant| kernels("kernel_", 24).iter().filter(|(_, v)| v.variant == variant).count();
    for (variant, name) in [(Variant::Gqa, "gqa"), (Variant::Gta, "gta"), (Variant::Gla, "gla"), (Variant::Mla, "mla")]
    {
        let named = kernels(&format!("kernel_{name}_"), 6);
        assert!(named.iter().all(|(_, v)| v.variant == variant), "a kernel_{name} file holds another variant");
        assert_eq!(count(variant), named.len());
    }
}

#[test]
fn vectors_cover_the_shapes_that_matter() {
    let all = kernels("kernel_", 24);
    for len in [0, 1, 17, 37, 70] {
        assert!(all.iter().any(|(_, v)| v.kv_len == len), "no vector of {len} tokens");
    }
    for q_len in [1, 3, 5] {
        assert!(all.iter().any(|(_, v)| v.q_len == q_len), "no vector of {q_len} query tokens");
    }
    for heads in [1, 2, 3, 9] {
        assert!(all.iter().any(|(_, v)| v.layout.heads_per_group() == heads), "none of {heads} heads per group");
    }
    assert!(all.iter().any(|(_, v)| v.kv_len > 0 && v.q_len > v.kv_len), "none with more queries than tokens");
}

#[test]
fn vectors_decode_matches_the_oracle() {
    for (name, vector) in kernels("kernel_", 24) {
        let got = decode(&vector.layout, &vector.inputs()).unwrap();
        assert_close(&format!("{name} out"), &got.out, &vector.out);
        assert_close(&format!("{name} lse"), &got.lse, &vector.lse);
    }
}

#[test]
fn vectors_decode_split_and_merged_matches_the_oracle() {
    for (name, vector) in kernels("kernel_", 24) {
        for split in [1, 7, 16] {
            let ranges: Vec<_> = (0..vector.kv_len).step_by(split).map(|lo| lo..lo + split).collect();
            let partials = decode_split(&vector.layout, &vector.inputs(), &ranges).unwrap();
            assert_eq!(partials.len(), vector.kv_len.div_ceil(split));
            let got = merge(&partials, vector.lse.len(), vector.layout.v_dim()).unwrap();
            assert_close(&format!("{name} in splits of {split}, out"), &got.out, &vector.out);
            assert_close(&format!("{name} in splits of {split}, lse"), &got.lse, &vector.lse);
        }
    }
}

#[test]
fn vectors_rows_without_tokens_are_zeros_and_minus_infinity() {
    let mut empty_rows = 0;
    for (name, vector) in kernels("kernel_", 24) {
        let got = decode(&vector.layout, &vector.inputs()).unwrap();
        let q_heads = vector.layout.q_heads();
        for (row, lse) in got.lse.iter().enumerate() {
            let empty = row / q_heads + vector.kv_len < vector.q_len;
            assert_eq!(*lse == f64::NEG_INFINITY, empty, "{name} row {row}: lse {lse}");
            if empty {
                let v_dim = vector.layout.v_dim();
                assert_eq!(&got.out[row * v_dim..][..v_dim], vec![0.0; v_dim], "{name} row {row}");
                empty_rows += 1;
            }
        }
    }
    assert!(empty_rows > 20, "only {empty_rows} empty rows in all vectors");
}

#[test]
fn vectors_layers_match_the_oracle_in_every_form() {
    for (name, vector) in layers("layer_", 8) {
        let config = exact(&vector.config);
        match &vector.weights {
            LayerWeights::Gta(weights) => {
                assert_eq!(vector.variant, Variant::Gta, "{name}");
                assert_close(&name, &gta_layer(&config, weights, &vector.x).unwrap(), &vector.y);
            }
            LayerWeights::Gla(weights) => {
                for form in [Form::Explicit, Form::Absorbed] {
                    let y = gla_layer(&config, weights, &vector.x, form).unwrap();
                    assert_close(&format!("{name} {form:?}"), &y, &vector.y);
                }
            }
        }
    }
}

/// The kernels' f32 angles are near the oracle's, and not the same: a test that mixes them up would fail above.
#[test]
fn vectors_f32_angles_differ_within_their_rounding() {
    let (_, vector) = layers("layer_gla_2", 1).remove(0);
    let LayerWeights::Gla(weights) = &vector.weights else { panic!("layer_gla_2 holds no gla") };
    let y = gla_layer(&vector.config, weights, &vector.x, Form::Absorbed).unwrap();
    let gap = y.iter().zip(&vector.y).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(gap > 1e-10 && gap < 1e-5, "f32 angles move the output by {gap:e}");
}
