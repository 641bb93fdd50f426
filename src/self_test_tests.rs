//! The self-test passes right kernels and fails wrong ones; and it reaches what it is for.

use super::*;
use crate::attention::kernels::spec::kernel_spec;
use crate::attention::kernels::tile::ShapeLimits;
use crate::attention::AttentionOptions;
use naga::valid::{Capabilities, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};

/// As small as the kernels of software GPUs like it, with the same inputs otherwise.
fn small() -> HeadLayout {
    HeadLayout::gla(Gla { q_heads: 12, latent_heads: 2, latent_dim: 16, rope_dim: 8 }).unwrap()
}

fn expected(heads: &HeadLayout) -> Vec<Vec<Row<f64>>> {
    (0..).zip(LENGTHS).map(|(i, (kv, q))| SequenceInputs::new(heads, kv, q, i).expected(heads).unwrap()).collect()
}

fn narrow(rows: &[Row<f64>]) -> Vec<Row<f32>> {
    let narrow = |r: &Row<f64>| Row {
        out: r.out.iter().map(|v| *v as f32).collect(),
        lse: r.lse as f32,
        out_bound: 0.0,
        lse_bound: 0.0,
    };
    rows.iter().map(narrow).collect()
}

#[test]
fn the_kernels_that_every_device_has_pass() {
    let gpu = pollster::block_on(Gpu::new()).expect("a GPU adapter, software ones count");
    for tier in [Tier::Portable, Tier::Subgroup] {
        let gpu = gpu.at_tier(tier);
        assert_eq!(pollster::block_on(run_layout(&gpu, small())).unwrap(), None, "{tier:?}");
    }
}

#[test]
fn products_of_the_kernels_that_every_device_has_pass_and_wrong_ones_do_not() {
    let gpu = pollster::block_on(Gpu::new()).expect("a GPU adapter, software ones count");
    let gpu = gpu.at_tier(Tier::Portable);
    let right = pollster::block_on(multiply(&gpu, &product(&gpu, None).unwrap())).unwrap();
    assert_eq!(product_fault(&right), None);
    let [rows, outs, _] = PRODUCT;
    type Spoil = fn(&mut Vec<f32>);
    let spoils: [Spoil; 5] = [
        |y| y[PRODUCT[1] * PRODUCT[0] - 1] = f32::NAN,
        |y| y.swap(0, 1),
        |y| y.rotate_right(PRODUCT[1]),
        |y| y[16 * PRODUCT[1]..][..16].fill(0.0),
        |y| y.truncate(10),
    ];
    assert_eq!(right.len(), rows * outs);
    for spoil in spoils {
        let mut wrong = right.clone();
        spoil(&mut wrong);
        assert!(product_fault(&wrong).is_some());
    }
}

/// All heights of the matrix kernel, and no other kernel, on a GPU with 48 KiB of workgroup memory or with 32.
#[test]
fn every_height_of_the_matrix_kernel_is_run() {
    let heads = layout().unwrap();
    for (kib, least) in [(48, 3), (32, 1)] {
        let limits = ShapeLimits { workgroup_bytes: kib << 10, subgroup_size: 32 };
        let device = Device { limits, tier: Tier::Matrix, subgroup_min: 32 };
        let shapes = KernelShape::all(&heads, DType::F16, &device).unwrap();
        let matrices: Vec<usize> =
            shapes.iter().filter(|s| matches!(s, KernelShape::Matrix(_))).map(KernelShape::rows).collect();
        assert!(matrices.len() >= least, "{kib} KiB: {shapes:?}");
        // Each by a sequence of its own.
        let used = |q_len: usize| shapes.iter().map(KernelShape::rows).find(|rows| *rows >= q_len * PER_GROUP);
        for rows in matrices {
            assert!(LENGTHS.iter().any(|(_, q_len)| used(*q_len) == Some(rows)), "{kib} KiB: nothing has {rows} rows");
        }
    }
}

/// A text that wgpu refuses would cost every device its matrix kernels.
#[test]
fn the_matrix_kernels_of_the_test_are_valid() {
    let heads = layout().unwrap();
    let limits = ShapeLimits { workgroup_bytes: crate::gpu::MATRIX_WORKGROUP_BYTES, subgroup_size: 32 };
    let device = Device { limits, tier: Tier::Matrix, subgroup_min: 32 };
    for shape in KernelShape::all(&heads, DType::F16, &device).unwrap() {
        let spec = kernel_spec(&heads, DType::F16, &AttentionOptions::default(), &shape).unwrap();
        let module = naga::front::wgsl::parse_str(&spec.assemble().text).unwrap();
        let allowed = Capabilities::SHADER_FLOAT16_IN_FLOAT32 | Capabilities::SHADER_FLOAT16;
        let allowed =
            allowed | Capabilities::SUBGROUP | Capabilities::SUBGROUP_BARRIER | Capabilities::COOPERATIVE_MATRIX;
        let mut validator = Validator::new(ValidationFlags::all(), allowed);
        validator.subgroup_stages(ShaderStages::COMPUTE).subgroup_operations(SubgroupOperationSet::all());
        validator.validate(&module).unwrap();
    }
}

/// Rounding that is allowed for does nothing: weights to f16, sums in f32.
#[test]
fn what_rounding_does_passes() {
    let heads = small();
    let want = expected(&heads).concat();
    assert_eq!(Errors::of(&narrow(&want), &want).fault(), None);
    let mut got = narrow(&want);
    for (i, row) in got.iter_mut().enumerate() {
        let sign = if i % 2 == 0 { 1.0 } else { -1.0 };
        row.out.iter_mut().for_each(|v| *v *= 1.0 + sign * 2f32.powi(-12));
        row.lse += sign * 2f32.powi(-12);
    }
    assert_eq!(Errors::of(&got, &want).fault(), None);
}

#[test]
fn what_is_wrong_fails_with_numbers() {
    let heads = small();
    let want = expected(&heads).concat();
    let breaks: [fn(&mut Vec<Row<f32>>); 7] = [
        |rows| rows[3].out[5] = f32::NAN,
        |rows| rows[0].lse = f32::NEG_INFINITY,
        |rows| rows[40].out[1] += 0.2,
        |rows| rows[12].lse += 0.01,
        // Two heads' results exchanged, and one never written.
        |rows| rows.swap(20, 21),
        |rows| rows[30].out.fill(0.0),
        |rows| rows.truncate(50),
    ];
    for (i, break_it) in breaks.into_iter().enumerate() {
        let mut got = narrow(&want);
        break_it(&mut got);
        let fault = Errors::of(&got, &want).fault().unwrap_or_else(|| panic!("break {i} was not found"));
        assert!(fault.contains("NMSE ") && fault.contains("at most"), "{fault}");
    }
}

/// What a matrix kernel may get wrong, made from the reference: the last token left out, the causal mask off by one, and
/// earlier sums that were not rescaled.
#[test]
fn faults_of_kernels_are_found() {
    let heads = small();
    for (i, (kv_len, q_len)) in (0..).zip(LENGTHS).filter(|(_, lengths)| lengths.0 > 1) {
        let s = SequenceInputs::new(&heads, kv_len, q_len, i);
        let want = s.expected(&heads).unwrap();
        let shorter =
            SequenceInputs { kv_len: kv_len - 1, rows: s.rows[..(kv_len - 1) * heads.kv_dim()].to_vec(), ..s };
        let got = narrow(&shorter.expected(&heads).unwrap());
        assert!(Errors::of(&got, &want).fault().is_some(), "{kv_len} tokens, the last left out");
    }
    // Halves of 100 tokens put together as if their maxima were the same.
    let s = SequenceInputs::new(&heads, 100, 1, 2);
    let want = s.expected(&heads).unwrap();
    let part = |first: usize| {
        let rows = s.rows[first * heads.kv_dim()..(first + 50) * heads.kv_dim()].to_vec();
        SequenceInputs { kv_len: 50, q_len: 1, rows, q: s.q.clone() }.expected(&heads).unwrap()
    };
    let mut got = narrow(&want);
    for ((row, a), b) in got.iter_mut().zip(part(0)).zip(part(50)) {
        row.out = a.out.iter().zip(b.out).map(|(a, b)| ((a + b) / 2.0) as f32).collect();
    }
    let fault = Errors::of(&got, &want);
    assert!(fault.nmse > 1e-2, "{fault:?}");
}
