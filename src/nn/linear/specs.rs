//! A representative set of a linear's kernel texts, for tests and for whoever looks at them.

use super::blocks::BlockType;
use super::cached;
use super::matrix::{pack_spec, MatrixTile};
use super::shape::{Fusion, LinearTuning, Shape};
use crate::error::Result;
use crate::gpu::{DType, KernelSpec};
use crate::rope::RopePairs;

/// A representative set of kernel texts: every slot and shape, on software adapters and GPUs of either tier.
pub(crate) fn specs() -> Result<Vec<(String, KernelSpec)>> {
    let [one, software, _] = LinearTuning::SOFTWARE;
    let portable = LinearTuning { in_lanes: 32, outs: 2, steps: 4, max_rows: 16, out_lanes: 2, subgroups: false };
    let wide = LinearTuning { in_lanes: 128, outs: 4, steps: 2, out_lanes: 1, ..portable };
    let subgroups = LinearTuning { in_lanes: 64, subgroups: true, ..wide };
    let side_by_side = LinearTuning { in_lanes: 32, steps: 8, out_lanes: 4, ..subgroups };
    let plain = Fusion::default();
    let norm = Fusion { norm: true, ..plain };
    let both = Fusion { swiglu: true, ..norm };
    let (geglu, softcap) = (Fusion { gelu: true, ..both }, Fusion { softcap: true, ..norm });
    let rest = Fusion { rest: true, ..norm };
    let tails = [RopePairs::Half, RopePairs::Interleaved].map(|r| Fusion { tail: Some(r), ..plain });
    let mut all = Vec::new();
    let mut add = |shape: Shape, tuning: &LinearTuning, dtype: DType, vec4: bool, fusion: Fusion| {
        shape.spec(tuning, dtype, vec4, fusion).map(|spec| all.push((dtype.to_string(), spec)))
    };
    // Each slot with each dtype and alignment, then each shape of each device.
    for dtype in [DType::F32, DType::F16, DType::I8] {
        for vec4 in [true, false] {
            for fusion in [plain, norm, both, geglu, softcap, rest, tails[0], tails[1]] {
                add(Shape::Rows(1), &one, dtype, vec4, fusion)?;
            }
            add(Shape::Tile(4), &software, dtype, vec4, both)?;
        }
    }
    for tuning in [software, portable, wide, subgroups, side_by_side] {
        for shape in tuning.shapes() {
            add(shape, &tuning, DType::F16, true, both)?;
        }
        add(Shape::Rows(tuning.max_rows), &tuning, DType::I8, true, rest)?;
        add(Shape::Rows(1), &tuning, DType::F16, true, plain)?;
    }
    for (dtype, outs, steps) in [(DType::F16, 1, 2), (DType::I8, 2, 4)] {
        for tuning in [wide, subgroups] {
            add(Shape::Rows(1), &LinearTuning { outs, steps, ..tuning }, dtype, true, norm)?;
        }
    }
    let whole = Fusion { whole: true, ..norm };
    for (dtype, fusion) in [(DType::F16, whole), (DType::I8, whole), (DType::I8, Fusion { integers: true, ..whole })] {
        add(Shape::Rows(1), &wide, dtype, true, fusion)?;
        add(Shape::Rows(4), &wide, dtype, true, Fusion { whole: false, ..fusion })?;
    }
    for fusion in [plain, tails[0], geglu, softcap] {
        add(Shape::Tile(2), &software, DType::F16, true, fusion)?;
    }
    for tile in MatrixTile::TABLE {
        for dtype in [DType::F16, DType::I8] {
            for fusion in [plain, both, geglu, softcap, tails[0], tails[1]] {
                add(Shape::Matrix(tile), &subgroups, dtype, true, fusion)?;
            }
        }
    }
    all.extend(block_specs(&subgroups, &software)?);
    all.extend(cached::specs([one, subgroups, portable])?);
    for (in_dim, vec4) in [(4096, true), (64, true), (61, false)] {
        all.extend([false, true].map(|norm| (format!("{in_dim}"), pack_spec(in_dim, vec4, norm))));
    }
    Ok(all)
}

/// The same of each block type, with fewer of the other slots.
fn block_specs(gpu: &LinearTuning, software: &LinearTuning) -> Result<Vec<(String, KernelSpec)>> {
    let plain = Fusion::default();
    let both = Fusion { norm: true, swiglu: true, ..plain };
    let rest = Fusion { rest: true, norm: true, ..plain };
    let mut all = Vec::new();
    for block in BlockType::ALL {
        let few = [
            (Shape::Rows(1), software, false, plain),
            (Shape::Rows(1), gpu, true, rest),
            (Shape::Rows(8), software, true, both),
            (Shape::Rows(16), gpu, true, both),
        ];
        let many = [(Shape::Tile(2), software, true, plain), (Shape::Tile(4), software, false, both)];
        let tiles = MatrixTile::TABLE.map(|tile| (Shape::Matrix(tile), gpu, true, both));
        let bytes = Fusion { norm: true, integers: true, whole: true, ..plain };
        let integers =
            [(Shape::Rows(1), gpu, true, bytes), (Shape::Rows(8), gpu, true, Fusion { whole: false, ..bytes })];
        for (shape, tuning, vec4, fusion) in few.into_iter().chain(many).chain(tiles).chain(integers) {
            all.push((block.to_string(), shape.spec(tuning, block, vec4, fusion)?));
        }
    }
    Ok(all)
}
