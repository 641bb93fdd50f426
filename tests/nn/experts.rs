//! Mixtures of experts: the choice equal to the reference's, products as if each row had its matrices alone.

use crate::assert_kind;
use crate::shared::*;
use latten::nn::{quantise, ExpertArgs, Experts, Route, RouteShape, Span, Weight};
use latten::reference::{self, Routing};
use latten::{DType, ErrorKind, Tensor};

const V2: RouteShape = RouteShape {
    experts: 160,
    top: 6,
    groups: 8,
    top_groups: 3,
    group_best: 1,
    sigmoid: false,
    normalise: false,
    factor: 16.0,
};
const V3: RouteShape = RouteShape {
    experts: 256,
    top: 8,
    groups: 8,
    top_groups: 4,
    group_best: 2,
    sigmoid: true,
    normalise: true,
    factor: 2.5,
};

/// Experts and weights of rows of logits.
fn choose(shape: RouteShape, logits: &[f32], bias: &[f32]) -> (Vec<u32>, Vec<f32>) {
    let gpu = gpu();
    let rows = logits.len() / shape.experts;
    let ids = Tensor::from_u32(gpu, &[rows, shape.top], &vec![u32::MAX; rows * shape.top]).unwrap();
    let weights = tensor(gpu, &[rows, shape.top], &vec![f32::NAN; rows * shape.top]);
    let route = Route::new(gpu, &tensor(gpu, &[shape.experts], bias), shape).unwrap();
    route.run(&tensor(gpu, &[rows, shape.experts], logits), &ids, &weights).unwrap();
    (pollster::block_on(gpu.download_u32(&ids)).unwrap(), download(gpu, &weights))
}

fn routing(s: RouteShape) -> Routing {
    Routing {
        top: s.top,
        groups: s.groups,
        top_groups: s.top_groups,
        group_best: s.group_best,
        sigmoid: s.sigmoid,
        normalise: s.normalise,
        factor: s.factor.into(),
    }
}

/// Whether changes of the bias by 1e-6 leave the reference's choice as it is.
fn is_clear(logits: &[f64], bias: &[f64], shape: RouteShape) -> bool {
    let ids = |step: f64| -> Vec<usize> {
        let moved: Vec<f64> = bias.iter().enumerate().map(|(e, b)| b + step * (e % 7) as f64).collect();
        reference::route(logits, &moved, &routing(shape)).unwrap().into_iter().map(|(e, _)| e).collect()
    };
    [1e-6, -1e-6].iter().all(|step| ids(*step) == ids(0.0))
}

#[test]
fn choices_equal_the_reference() {
    let mut compared = 0;
    let small = RouteShape { experts: 12, top: 3, groups: 4, top_groups: 2, ..V3 };
    let shapes = [
        V2,
        V3,
        small,
        RouteShape { group_best: 1, normalise: false, ..small },
        RouteShape { sigmoid: false, normalise: true, factor: 1.0, ..small },
        RouteShape { groups: 1, top_groups: 1, group_best: 1, top: 12, ..small },
        RouteShape { experts: 1, top: 1, groups: 1, top_groups: 1, group_best: 1, ..V2 },
        RouteShape { experts: 1024, top: 64, groups: 128, top_groups: 8, group_best: 2, ..V3 },
    ];
    for shape in shapes {
        let mut rng = Rng(shape.experts as u64);
        let rows = 40;
        // A grid of logits has equals, whose order is decided by index.
        let grid = |v: f32| (v * 16.0).round() / 16.0;
        let logits: Vec<f32> = rng.normals(rows * shape.experts, 1.5).into_iter().map(grid).collect();
        let bias = if shape.sigmoid { rng.normals(shape.experts, 0.2) } else { vec![0.0; shape.experts] };
        let (ids, weights) = choose(shape, &logits, &bias);
        for (r, row) in logits.chunks_exact(shape.experts).enumerate() {
            // Scores of different logits are far apart; a bias may bring them as near as it likes.
            if shape.sigmoid && !is_clear(&f64s(row), &f64s(&bias), shape) {
                continue;
            }
            compared += 1;
            let want = reference::route(&f64s(row), &f64s(&bias), &routing(shape)).unwrap();
            let (want_ids, want_weights): (Vec<u32>, Vec<f64>) = want.iter().map(|(e, w)| (*e as u32, *w)).unzip();
            let of = r * shape.top..(r + 1) * shape.top;
            assert_eq!(ids[of.clone()], want_ids, "row {r} of {shape:?}");
            assert_close(&format!("row {r} of {shape:?}"), &weights[of], &want_weights, 1e-5, 1e-10);
        }
    }
    assert!(compared > 280, "only {compared} of 320 choices were clear");
}

#[test]
fn any_logits_choose_experts_that_there_are() {
    for shape in [V2, V3] {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 3e38, -3e38] {
            let (ids, _) = choose(shape, &vec![value; shape.experts], &vec![0.0; shape.experts]);
            assert!(ids.iter().all(|id| (*id as usize) < shape.experts), "{value}: {ids:?}");
        }
    }
}

/// As the weights' dtype holds them, a matrix row at a time.
fn held(values: &[f32], in_dim: usize, dtype: DType) -> Vec<f64> {
    match dtype {
        DType::I8 => {
            let (integers, scales) = quantise(values, in_dim).unwrap();
            let scaled = |(i, v): (usize, &i8)| f64::from(*v) * f64::from(scales[i / in_dim]);
            integers.iter().enumerate().map(scaled).collect()
        }
        _ => f64s(&rounded(values, dtype)),
    }
}

#[test]
fn products_are_those_of_the_chosen_matrices() {
    let gpu = gpu();
    for (dtype, rows, dim, width, experts, top) in [
        (DType::F32, 1, 64, 20, 5, 3),
        (DType::F32, 9, 13, 7, 4, 1),
        (DType::F16, 5, 24, 50, 6, 2),
        (DType::I8, 3, 100, 33, 3, 3),
    ] {
        let mut rng = Rng(dim as u64);
        let up = rng.normals(experts * 2 * width * dim, 0.2);
        let down = rng.normals(experts * dim * width, 0.2);
        let (x, y) = (rng.normals(rows * dim, 1.0), rng.normals(rows * dim, 1.0));
        let ids: Vec<u32> = (0..rows * top).map(|_| rng.below(experts) as u32).collect();
        let weights = rng.normals(rows * top, 1.0);

        let part = |all: &[f32], e: usize, size: usize| Ok(all[e * size..(e + 1) * size].to_vec());
        let gate_up =
            Weight::from_heads(gpu, [experts, 2 * width, dim], dtype, |e| part(&up, e, 2 * width * dim)).unwrap();
        let down_weight =
            Weight::from_heads(gpu, [experts, dim, width], dtype, |e| part(&down, e, dim * width)).unwrap();
        let layer = Experts::new(gpu, gate_up, down_weight, top).unwrap();
        // Rows lie 3 elements apart, with NaN between.
        let spread = |values: &[f32]| -> Vec<f32> {
            values.chunks_exact(dim).flat_map(|row| [row, &[f32::NAN; 3]].concat()).collect()
        };
        let wide = [rows, dim + 3];
        let (x_tensor, y_tensor) = (tensor(gpu, &wide, &spread(&x)), tensor(gpu, &wide, &spread(&y)));
        let hidden = tensor(gpu, &[rows, top, width], &vec![f32::NAN; rows * top * width]);
        let id_tensor = Tensor::from_u32(gpu, &[rows, top], &ids).unwrap();
        let weight_tensor = tensor(gpu, &[rows, top], &weights);
        let args = ExpertArgs { ids: &id_tensor, weights: &weight_tensor, hidden: &hidden };
        layer.run(Span::of(&x_tensor), Span::of(&y_tensor), args).unwrap();

        let (up, down) = (held(&up, dim, dtype), held(&down, width, dtype));
        let mut want = Vec::new();
        for r in 0..rows {
            let mut row = f64s(&y[r * dim..(r + 1) * dim]);
            for s in r * top..(r + 1) * top {
                let e = ids[s] as usize;
                let w = &up[e * 2 * width * dim..(e + 1) * 2 * width * dim];
                let both = reference::linear(&f64s(&x[r * dim..(r + 1) * dim]), w, None, dim).unwrap();
                let joined = reference::swiglu(&both, width).unwrap();
                let out =
                    reference::linear(&joined, &down[e * dim * width..(e + 1) * dim * width], None, width).unwrap();
                row.iter_mut().zip(out).for_each(|(y, v)| *y += f64::from(weights[s]) * v);
            }
            want.extend(row.into_iter().chain([f64::NAN; 3]));
        }
        let case = format!("{dtype}, {rows} rows of {dim}, {top} of {experts} experts of {width}");
        assert_close(&case, &download(gpu, &y_tensor), &want, 2e-5, 1e-10);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let gpu = gpu();
    let bias = tensor(gpu, &[160], &[0.0; 160]);
    for shape in [
        RouteShape { experts: 0, ..V2 },
        RouteShape { top: 0, ..V2 },
        RouteShape { top: 61, ..V2 },
        RouteShape { top: 65, top_groups: 8, ..V2 },
        RouteShape { groups: 7, ..V2 },
        RouteShape { groups: 0, ..V2 },
        RouteShape { top_groups: 9, ..V2 },
        RouteShape { group_best: 3, ..V2 },
        RouteShape { group_best: 0, ..V2 },
        RouteShape { experts: 2048, ..V2 },
        RouteShape { factor: f32::NAN, ..V2 },
    ] {
        assert_kind!(Route::new(gpu, &bias, shape), ErrorKind::Argument { name: "shape", .. });
    }
    assert_kind!(Route::new(gpu, &bias, V3), ErrorKind::Shape { name: "bias", .. });
    let weight = |shape: [usize; 3]| Weight::new(gpu, shape, &vec![0.0; shape.iter().product()], DType::F32).unwrap();
    let up = weight([3, 8, 12]);
    for down in [[2, 12, 4], [3, 12, 8], [3, 8, 4]] {
        assert_kind!(Experts::new(gpu, up.clone(), weight(down), 2), ErrorKind::Shape { name: "down", .. });
    }
    let down = weight([3, 12, 4]);
    for top in [0, 4] {
        assert_kind!(Experts::new(gpu, up.clone(), down.clone(), top), ErrorKind::Argument { name: "top", .. });
    }
    let layer = Experts::new(gpu, up, down, 2).unwrap();
    let f32s = |shape: &[usize]| Tensor::zeros(gpu, shape, DType::F32).unwrap();
    let (x, y, hidden, weights) = (f32s(&[5, 12]), f32s(&[5, 12]), f32s(&[5, 2, 4]), f32s(&[5, 2]));
    let ids = Tensor::zeros(gpu, &[5, 2], DType::U32).unwrap();
    let (good, rows) = (ExpertArgs { ids: &ids, weights: &weights, hidden: &hidden }, Span::of(&x));
    assert!(layer.run(rows, Span::of(&y), good).is_ok());
    assert_kind!(layer.run(rows, rows, good), ErrorKind::Argument { name: "y", .. });
    assert_kind!(layer.run(rows.offset(4), Span::of(&y), good), ErrorKind::Shape { name: "x", .. });
    let short = f32s(&[4, 12]);
    assert_kind!(layer.run(Span::of(&short), Span::of(&y), good), ErrorKind::Shape { name: "x", .. });
    let wrong = ExpertArgs { ids: &weights, ..good };
    assert_kind!(layer.run(rows, Span::of(&y), wrong), ErrorKind::DType { name: "ids", .. });
    let wrong = ExpertArgs { hidden: &weights, ..good };
    assert_kind!(layer.run(rows, Span::of(&y), wrong), ErrorKind::Shape { name: "hidden", .. });
}
