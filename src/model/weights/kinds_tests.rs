//! What the matrices of a GGUF file become: `tests/vectors/gguf/tiny.gguf` has q in Q4_0, k in Q5_0, v in Q5_1, gate in F16, up in Q8_0.

use super::*;
use crate::gpu::Gpu;
use crate::model::weights::store::WeightFiles;

#[allow(clippy::duplicate_mod)] // of another file of tests, too
#[path = "../../../tests/common/checkout.rs"]
mod checkout;

const BLOCK: &str = "model.layers.0";

/// Of dtype and blocks: the runs of q, k and v below one another, and what their matrices become.
fn attention(dtype: DType, blocks: Option<BlockType>) -> Vec<(Range<usize>, String)> {
    let gpu = pollster::block_on(Gpu::new()).expect("a GPU adapter, software ones count");
    let bytes = std::fs::read(checkout::checkout("tests/vectors/gguf/tiny.gguf")).unwrap();
    let (config, store) = WeightFiles::gguf_from_bytes("tiny.gguf", &bytes).unwrap();
    let source = WeightReader::new(&gpu, &config, store, dtype).with_blocks(blocks).unwrap();
    let matrix = |name: &str, rows| source.matrix(&format!("{BLOCK}.self_attn.{name}"), rows, 32).unwrap();
    let all = Matrix::stack(&[matrix("q_proj", 32), matrix("k_proj", 16), matrix("v_proj", 16)]);
    let runs = source.parts(std::slice::from_ref(&all));
    let linear = source.linear(&all).unwrap();
    let kinds = linear.weights().map(|weight| weight.weight_type().to_string());
    assert_eq!(linear.weights().count(), runs.len());
    runs.into_iter().zip(kinds).collect()
}

#[test]
fn rows_stay_in_the_blocks_of_the_file_with_f16_alone() {
    let text = |all: Vec<(Range<usize>, String)>| format!("{all:?}");
    let kept = r#"[(0..32, "q4_0"), (32..48, "q5_0"), (48..64, "q5_1")]"#;
    assert_eq!(text(attention(DType::F16, None)), kept);
    assert_eq!(text(attention(DType::F32, None)), r#"[(0..64, "f32")]"#);
    assert_eq!(text(attention(DType::I8, None)), r#"[(0..64, "i8")]"#);
    assert_eq!(text(attention(DType::F16, Some(BlockType::Q8_0))), r#"[(0..64, "q8_0")]"#);
}

#[test]
fn matrices_side_by_side_are_of_one_type() {
    let gpu = pollster::block_on(Gpu::new()).expect("a GPU adapter, software ones count");
    let bytes = std::fs::read(checkout::checkout("tests/vectors/gguf/tiny.gguf")).unwrap();
    let (config, store) = WeightFiles::gguf_from_bytes("tiny.gguf", &bytes).unwrap();
    let source = WeightReader::new(&gpu, &config, store, DType::F16);
    let matrix = |name: &str| source.matrix(&format!("{BLOCK}.mlp.{name}"), 64, 32).unwrap();
    let (gate, up) = (matrix("gate_proj"), matrix("up_proj"));
    assert_eq!(source.kind(&[gate.clone(), up.clone()]), DType::F16.into());
    assert_eq!(source.kind(&[up.clone(), up.clone()]), BlockType::Q8_0.into());
    assert_eq!(source.kind(&[up.transposed()]), DType::F16.into());
    let mut scaled = up;
    scaled.scale_rows(1, 0..1, 0.5);
    assert_eq!(source.kind(&[scaled]), DType::F16.into());
    assert_eq!(source.table("model.embed_tokens", 24, 32).unwrap()[0].weight_type(), BlockType::Q8_0.into());
}
