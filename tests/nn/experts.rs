//! Mixtures of experts: the choice equal to the reference's, products as if each row had its matrices alone.

use crate::assert_kind;
use crate::common::*;
use latten::nn::{
    quantise, ExpertArgs, ExpertShape, ExpertTuning, Experts, GateClamp, Route, RouteShape, Span, Weight,
};
use latten::reference;
use latten::reference::Routing;
use latten::{DType, ErrorKind, Gpu, GpuOptions, Tensor};

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
    let ids = Tensor::from_slice(gpu, &[rows, shape.top], &vec![u32::MAX; rows * shape.top], DType::U32).unwrap();
    let weights = tensor(gpu, &[rows, shape.top], &vec![f32::NAN; rows * shape.top]);
    let route = Route::new(gpu, &tensor(gpu, &[shape.experts], bias), shape).unwrap();
    route.run(&tensor(gpu, &[rows, shape.experts], logits), &ids, &weights).unwrap();
    (pollster::block_on(gpu.download::<u32>(&ids)).unwrap(), download(gpu, &weights))
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
        DType::BF16 => values.iter().map(|v| half::bf16::from_f32(*v).to_f64()).collect(),
        _ => f64s(&rounded(values, dtype)),
    }
}

/// A layer with random weights, and rows for it.
struct Layer {
    dtype: DType,
    shape: ExpertShape,
    /// (experts, 2 width, dim) and (experts, dim, width)
    up: Vec<f32>,
    down: Vec<f32>,
    /// (experts, 2 width) and (experts, dim)
    biases: Option<[Vec<f32>; 2]>,
    clamp: Option<GateClamp>,
    rng: Rng,
}

/// What goes into a layer: (rows, dim), (rows, top), (rows, top).
#[derive(Clone)]
struct Rows {
    x: Vec<f32>,
    ids: Vec<u32>,
    weights: Vec<f32>,
}

/// What the outputs hold beforehand, whose rows end in this many elements of NaN.
const BEFORE: f32 = 0.25;
const GAP: usize = 3;

impl Layer {
    fn new(dtype: DType, [experts, top, dim, width]: [usize; 4]) -> Layer {
        let mut rng = Rng((dim * width) as u64);
        let up = rng.normals(experts * 2 * width * dim, 0.2);
        let down = rng.normals(experts * dim * width, 0.2);
        Layer { dtype, shape: ExpertShape { experts, top, dim, width }, up, down, biases: None, clamp: None, rng }
    }

    /// With biases and a clamped SwiGLU, whose limit a part of the numbers reaches.
    fn with_biases(mut self, clamp: GateClamp) -> Layer {
        let ExpertShape { experts, dim, width, .. } = self.shape;
        let biases = [experts * 2 * width, experts * dim].map(|count| self.rng.normals(count, 0.7));
        Layer { biases: Some(biases), clamp: Some(clamp), ..self }
    }

    /// Rows whose pairs go to what `expert` says of (row, slot).
    fn rows(&mut self, rows: usize, mut expert: impl FnMut(&mut Rng, usize, usize) -> usize) -> Rows {
        let ExpertShape { top, dim, .. } = self.shape;
        let rng = &mut self.rng;
        let ids = (0..rows * top).map(|pair| expert(rng, pair / top, pair % top) as u32).collect();
        Rows { x: rng.normals(rows * dim, 1.0), ids, weights: rng.normals(rows * top, 1.0) }
    }

    fn experts(&self, gpu: &Gpu, tuning: Option<ExpertTuning>) -> Experts {
        let ExpertShape { experts, top, dim, width } = self.shape;
        let part = |all: &[f32], e: usize, size: usize| Ok(all[e * size..(e + 1) * size].to_vec());
        let up = |e| part(&self.up, e, 2 * width * dim);
        let down = |e| part(&self.down, e, dim * width);
        let gate_up = Weight::from_heads(gpu, [experts, 2 * width, dim], self.dtype, up).unwrap();
        let down = Weight::from_heads(gpu, [experts, dim, width], self.dtype, down).unwrap();
        let mut layer = Experts::new(gpu, gate_up, down, top).unwrap();
        if let Some([of_up, of_down]) = &self.biases {
            let of_up = tensor(gpu, &[experts, 2 * width], of_up);
            layer = layer.with_biases(&of_up, &tensor(gpu, &[experts, dim], of_down)).unwrap();
        }
        if let Some(clamp) = self.clamp {
            layer = layer.with_clamp(clamp).unwrap();
        }
        match tuning {
            Some(tuning) => layer.with_tuning(tuning).unwrap(),
            None => layer,
        }
    }

    /// Outputs as they lie, with the gaps between rows. `extra` rows more than are used fit the scratch.
    fn run(&self, gpu: &Gpu, experts: &Experts, rows: &Rows, extra: usize) -> Vec<f32> {
        let ExpertShape { top, dim, .. } = self.shape;
        let count = rows.ids.len() / top;
        let spread = |values: &[f32]| -> Vec<f32> {
            values.chunks_exact(dim).flat_map(|row| [row, &[f32::NAN; GAP]].concat()).collect()
        };
        let x = tensor(gpu, &[count, dim + GAP], &spread(&rows.x));
        let y = tensor(gpu, &[count, dim + GAP], &spread(&vec![BEFORE; count * dim]));
        let ids = Tensor::from_slice(gpu, &[count, top], &rows.ids, DType::U32).unwrap();
        let weights = tensor(gpu, &[count, top], &rows.weights);
        let scratch = experts.scratch(count + extra).unwrap();
        experts
            .run(Span::of(&x), Span::of(&y), ExpertArgs { ids: &ids, weights: &weights, scratch: &scratch })
            .unwrap();
        download(gpu, &y)
    }

    fn reference(&self, rows: &Rows) -> Vec<f64> {
        let ExpertShape { top, dim, width, .. } = self.shape;
        let (up, down) = (held(&self.up, dim, self.dtype), held(&self.down, width, self.dtype));
        let (wide, narrow) = (2 * width * dim, dim * width);
        let mut all = Vec::new();
        for (x, pairs) in
            rows.x.chunks_exact(dim).zip(rows.ids.iter().zip(&rows.weights).collect::<Vec<_>>().chunks(top))
        {
            let mut y = vec![f64::from(BEFORE); dim];
            for (id, weight) in pairs {
                let e = **id as usize;
                let bias = |which: usize, size: usize| {
                    let all = self.biases.as_ref().map(|both| &both[which]);
                    all.map(|all| f64s(&all[e * size..(e + 1) * size]))
                };
                let (of_up, of_down) = (bias(0, 2 * width), bias(1, dim));
                let both = reference::linear(&f64s(x), &up[e * wide..(e + 1) * wide], of_up.as_deref(), dim).unwrap();
                let joined = match self.clamp {
                    Some(GateClamp { alpha, limit }) => {
                        reference::clamped_swiglu(&both, width, (alpha.into(), limit.into())).unwrap()
                    }
                    None => reference::swiglu(&both, width).unwrap(),
                };
                let down = &down[e * narrow..(e + 1) * narrow];
                let out = reference::linear(&joined, down, of_down.as_deref(), width).unwrap();
                y.iter_mut().zip(out).for_each(|(y, v)| *y += f64::from(**weight) * v);
            }
            all.extend(y.into_iter().chain([f64::NAN; GAP]));
        }
        all
    }
}

/// Rows one by one, and listed in tiles of each height.
const ONE_BY_ONE: ExpertTuning = ExpertTuning { tile_rows: 16, rows_per_expert: usize::MAX };
const LISTED: [ExpertTuning; 3] = [listed(8), listed(16), listed(32)];

const fn listed(tile_rows: usize) -> ExpertTuning {
    ExpertTuning { tile_rows, rows_per_expert: 0 }
}

#[test]
fn products_are_those_of_the_chosen_matrices() {
    let gpu = gpu();
    for (dtype, rows, experts, top, dim, width) in [
        (DType::F32, 1, 5, 3, 64, 20),
        (DType::F32, 9, 4, 1, 13, 7),
        (DType::F16, 5, 6, 2, 24, 50),
        (DType::BF16, 40, 7, 3, 72, 36),
        (DType::BF16, 11, 3, 2, 17, 9),
        (DType::I8, 3, 3, 3, 100, 33),
        // More outputs than a tile has, a share of them filled.
        (DType::I8, 70, 5, 2, 132, 68),
        (DType::F32, 50, 3, 2, 65, 33),
        (DType::F16, 130, 9, 4, 80, 48),
    ] {
        let mut layer = Layer::new(dtype, [experts, top, dim, width]);
        let inputs = layer.rows(rows, |rng, _, _| rng.below(experts));
        let want = layer.reference(&inputs);
        for tuning in [ONE_BY_ONE].into_iter().chain(LISTED) {
            let case = format!("{dtype}, {rows} rows of {dim}, {top} of {experts} experts of {width}, {tuning:?}");
            let got = layer.run(gpu, &layer.experts(gpu, Some(tuning)), &inputs, 0);
            assert_close(&case, &got, &want, 2e-5, 1e-10);
        }
    }
}

/// As gpt-oss has them: biases of both products, each expert's own, under the row's weight; gate and up held within bounds.
#[test]
fn products_have_biases_and_a_clamped_gate() {
    let gpu = gpu();
    for (dtype, rows, experts, top, dim, width, limit) in
        [(DType::F32, 1, 5, 3, 64, 20, 7.0), (DType::F16, 21, 4, 2, 33, 37, 0.75), (DType::I8, 40, 7, 3, 72, 36, 1.5)]
    {
        let mut layer = Layer::new(dtype, [experts, top, dim, width]).with_biases(GateClamp { alpha: 1.702, limit });
        let inputs = layer.rows(rows, |rng, _, _| rng.below(experts));
        let want = layer.reference(&inputs);
        for tuning in [ONE_BY_ONE, LISTED[rows % 3]] {
            let case = format!("{dtype}, {rows} rows of {dim}, {top} of {experts} experts of {width}, {tuning:?}");
            let got = layer.run(gpu, &layer.experts(gpu, Some(tuning)), &inputs, 0);
            assert_close(&case, &got, &want, 2e-5, 1e-10);
        }
    }
    let layer = Layer::new(DType::F32, [3, 2, 12, 4]).experts(gpu, None);
    let f32s = |shape: &[usize]| Tensor::zeros(gpu, shape, DType::F32).unwrap();
    let (up, down) = (f32s(&[3, 8]), f32s(&[3, 12]));
    assert_kind!(layer.clone().with_biases(&down, &down), ErrorKind::Shape { name: "gate_up", .. });
    assert_kind!(layer.clone().with_biases(&up, &up), ErrorKind::Shape { name: "down", .. });
    for clamp in [GateClamp { alpha: f32::NAN, limit: 7.0 }, GateClamp { alpha: -1.0, limit: 7.0 }] {
        assert_kind!(layer.clone().with_clamp(clamp), ErrorKind::Argument { name: "alpha", .. });
    }
    assert_kind!(layer.with_clamp(GateClamp { alpha: 1.0, limit: 0.0 }), ErrorKind::Argument { name: "limit", .. });
}

/// Choices that fill tiles to the last row and one more, leave experts without a row, or give one all of them.
#[test]
fn any_choice_of_experts_has_its_place() {
    let gpu = gpu();
    let mut layer = Layer::new(DType::F32, [11, 2, 12, 8]);
    type Choice = fn(&mut Rng, usize, usize) -> usize;
    let choices: [(&str, Choice); 7] = [
        ("all to the first", |_, _, _| 0),
        ("all to the last", |_, _, _| 10),
        ("one slot to one expert", |_, _, slot| [7, 2][slot]),
        ("every third expert", |rng, _, _| 3 * rng.below(4)),
        ("in turn", |_, row, slot| (2 * row + slot) % 11),
        ("ids that fall", |_, row, _| 10 - row % 11),
        ("runs that end a tile", |_, row, slot| if 2 * row + slot < 32 { 4 } else { 5 }),
    ];
    for (name, choice) in choices {
        for rows in [1, 4, 8, 9, 16, 17, 32, 33, 65, 200] {
            let inputs = layer.rows(rows, choice);
            let want = layer.reference(&inputs);
            for tuning in LISTED {
                let got = layer.run(gpu, &layer.experts(gpu, Some(tuning)), &inputs, rows % 3);
                assert_close(&format!("{name}, {rows} rows, {tuning:?}"), &got, &want, 2e-5, 1e-10);
            }
        }
    }
}

/// As one by one, ids beyond the experts are taken for the last.
#[test]
fn ids_beyond_the_experts_are_the_last() {
    let gpu = gpu();
    let mut layer = Layer::new(DType::F32, [3, 2, 12, 8]);
    let clear = layer.rows(20, |_, row, slot| if (row + slot) % 4 == 0 { 2 } else { row % 3 });
    let beyond = |(pair, id): (usize, &u32)| if *id == 2 { [3, 17, u32::MAX][pair % 3] } else { *id };
    let wild = Rows { ids: clear.ids.iter().enumerate().map(beyond).collect(), ..clear.clone() };
    for tuning in [ONE_BY_ONE].into_iter().chain(LISTED) {
        let experts = layer.experts(gpu, Some(tuning));
        let bits =
            |rows: &Rows| -> Vec<u32> { layer.run(gpu, &experts, rows, 0).iter().map(|v| v.to_bits()).collect() };
        assert_eq!(bits(&wild), bits(&clear), "{tuning:?}");
    }
}

/// Whatever stands before, beside and behind a row, and goes to whichever experts.
#[test]
fn a_row_does_not_depend_on_the_others() {
    let gpu = gpu();
    for (dtype, dim, width) in [(DType::F32, 36, 20), (DType::F16, 61, 33), (DType::BF16, 64, 32), (DType::I8, 40, 24)]
    {
        let mut layer = Layer::new(dtype, [6, 3, dim, width]);
        let (rows, top, stride) = (45, 3, dim + GAP);
        let own = layer.rows(rows, |rng, _, _| rng.below(6));
        for tuning in [ONE_BY_ONE].into_iter().chain(LISTED) {
            let experts = layer.experts(gpu, Some(tuning));
            let bits =
                |rows: &Rows| -> Vec<u32> { layer.run(gpu, &experts, rows, 0).iter().map(|v| v.to_bits()).collect() };
            let alone: Vec<Vec<u32>> = (0..rows)
                .map(|r| {
                    bits(&Rows {
                        x: own.x[r * dim..(r + 1) * dim].to_vec(),
                        ids: own.ids[r * top..(r + 1) * top].to_vec(),
                        weights: own.weights[r * top..(r + 1) * top].to_vec(),
                    })
                })
                .collect();
            let together = bits(&own);
            assert_eq!(bits(&own), together, "{dtype} {tuning:?}: the same again");
            // Every fourth row stays; the others are NaN, and go to expert 1 alone.
            let mut beside = own.clone();
            for r in (0..rows).filter(|r| r % 4 != 1) {
                beside.x[r * dim..(r + 1) * dim].fill(f32::NAN);
                beside.ids[r * top..(r + 1) * top].fill(1);
            }
            let beside = bits(&beside);
            for (r, alone) in alone.iter().enumerate() {
                let of = r * stride..r * stride + dim;
                assert_eq!(together[of.clone()], alone[..dim], "{dtype} {tuning:?}: row {r} alone");
                if r % 4 == 1 {
                    assert_eq!(beside[of.clone()], alone[..dim], "{dtype} {tuning:?}: row {r} beside others");
                }
            }
        }
    }
}

/// Outputs that would take too much memory are made and summed in runs; and what would take too long is cut.
#[test]
fn runs_of_outputs_and_cut_dispatches_change_nothing() {
    let gpu = gpu_with(GpuOptions { dispatch_flop: Some(u64::MAX), ..Default::default() });
    let mut layer = Layer::new(DType::F16, [3, 2, 130, 4]);
    let inputs = layer.rows(35_000, |rng, _, _| rng.below(3));
    // 70,000 pairs of 130 are more than 32 MiB.
    let whole = layer.run(&gpu, &layer.experts(&gpu, Some(listed(16))), &inputs, 0);
    assert_close("three runs", &whole, &layer.reference(&inputs), 2e-5, 1e-10);

    let few = Rows {
        x: inputs.x[..130 * 90].to_vec(),
        ids: inputs.ids[..180].to_vec(),
        weights: inputs.weights[..180].to_vec(),
    };
    let whole = layer.run(&gpu, &layer.experts(&gpu, Some(listed(16))), &few, 0);
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    // A list, 14 tiles of one workgroup in runs of 3 or 1, 14 tiles of three in one or each by itself, and a sum.
    for (dispatch_flop, dispatches) in [(1_000_000, 1 + 5 + 1 + 1), (1, 1 + 14 + 42 + 1)] {
        let gpu = gpu_with(GpuOptions { dispatch_flop: Some(dispatch_flop), ..Default::default() });
        let cut = layer.run(&gpu, &layer.experts(&gpu, Some(listed(16))), &few, 0);
        assert_eq!(bits(&cut), bits(&whole), "dispatches of {dispatch_flop}");
        assert_eq!(gpu.counters().dispatches, dispatches, "dispatches of {dispatch_flop}");
    }
}

/// Where it is not said, the number of rows per expert decides; the two ways differ in the last bits.
#[test]
fn many_rows_are_listed_and_few_are_not() {
    let gpu = gpu();
    let mut layer = Layer::new(DType::F32, [8, 2, 16, 12]);
    let plain = layer.experts(gpu, None);
    let ExpertTuning { rows_per_expert, tile_rows } = plain.tuning();
    let least = (8 * rows_per_expert).div_ceil(2);
    for (rows, lists) in [(least - 1, false), (least, true)] {
        let inputs = layer.rows(rows, |rng, _, _| rng.below(8));
        let bits = |experts: &Experts| -> Vec<u32> {
            layer.run(gpu, experts, &inputs, 0).iter().map(|v| v.to_bits()).collect()
        };
        let [listed, one_by_one] = [listed(tile_rows), ONE_BY_ONE].map(|t| bits(&layer.experts(gpu, Some(t))));
        assert_ne!(listed, one_by_one, "{rows} rows tell nothing");
        assert_eq!(bits(&plain), if lists { listed } else { one_by_one }, "{rows} rows");
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
    for tile_rows in [0, 4, 12, 64] {
        let tuning = ExpertTuning { tile_rows, rows_per_expert: 0 };
        assert_kind!(layer.clone().with_tuning(tuning), ErrorKind::Argument { name: "tuning", .. });
    }
    let f32s = |shape: &[usize]| Tensor::zeros(gpu, shape, DType::F32).unwrap();
    let (x, y, weights) = (f32s(&[5, 12]), f32s(&[5, 12]), f32s(&[5, 2]));
    let ids = Tensor::zeros(gpu, &[5, 2], DType::U32).unwrap();
    let other = Experts::new(gpu, weight([3, 8, 12]), weight([3, 12, 4]), 3).unwrap();
    for tuning in [ONE_BY_ONE, LISTED[0]] {
        let layer = layer.clone().with_tuning(tuning).unwrap();
        let scratch = layer.scratch(5).unwrap();
        let (good, rows) = (ExpertArgs { ids: &ids, weights: &weights, scratch: &scratch }, Span::of(&x));
        assert!(layer.run(rows, Span::of(&y), good).is_ok());
        assert_kind!(layer.run(rows, rows, good), ErrorKind::Argument { name: "y", .. });
        assert_kind!(layer.run(rows.offset(4), Span::of(&y), good), ErrorKind::Shape { name: "x", .. });
        let short = f32s(&[4, 12]);
        assert_kind!(layer.run(Span::of(&short), Span::of(&y), good), ErrorKind::Shape { name: "x", .. });
        assert_kind!(layer.run(rows, Span::of(&short), good), ErrorKind::Shape { name: "y", .. });
        let wrong = ExpertArgs { ids: &weights, ..good };
        assert_kind!(layer.run(rows, Span::of(&y), wrong), ErrorKind::DType { name: "ids", .. });
        let wrong = ExpertArgs { weights: &short, ..good };
        assert_kind!(layer.run(rows, Span::of(&y), wrong), ErrorKind::Shape { name: "weights", .. });
        for scratch in [layer.scratch(4).unwrap(), other.scratch(5).unwrap()] {
            let wrong = ExpertArgs { scratch: &scratch, ..good };
            assert_kind!(layer.run(rows, Span::of(&y), wrong), ErrorKind::Argument { name: "scratch", .. });
        }
        assert_kind!(layer.scratch(1 << 40), ErrorKind::TooLarge { .. });
    }
    // Memory that was made for rows one by one has no lists.
    let few = layer.clone().with_tuning(ONE_BY_ONE).unwrap().scratch(5).unwrap();
    let args = ExpertArgs { ids: &ids, weights: &weights, scratch: &few };
    let listed = layer.with_tuning(LISTED[1]).unwrap();
    assert_kind!(listed.run(Span::of(&x), Span::of(&y), args), ErrorKind::Argument { name: "scratch", .. });
}
