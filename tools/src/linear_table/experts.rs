//! Layers of many experts by the number of rows: one by one, and listed by expert in tiles of each height.

use crate::common::timing::{random, times_us, WARM};
use latten::nn::{ExpertArgs, ExpertShape, ExpertTuning, Experts, Span, Weight, WeightType};
use latten::{DType, ErrorKind, Gpu, Result, Tensor};

/// Of the outputs' root mean square, in f32 and whatever the order of its sums.
const LARGEST_ERROR: f64 = 1e-4;
/// The heights that there are.
const TILES: [usize; 3] = [8, 16, 32];
/// Copies of a row that decide nothing: what a layer adds grows with each run.
const SCALE: f32 = 1e-3;

/// A layer with random weights, and rows that go to experts drawn for each.
pub struct Layer<'a> {
    gpu: &'a Gpu,
    experts: Experts,
    shape: ExpertShape,
}

/// The tensors of so many rows.
struct Rows {
    x: Tensor,
    ids: Tensor,
    weights: Tensor,
}

impl<'a> Layer<'a> {
    pub fn new(gpu: &'a Gpu, shape: ExpertShape, kind: WeightType) -> Result<Self> {
        let ExpertShape { experts, top, dim, width } = shape;
        let values = random(2 * width * dim + experts, 5);
        // Each expert's matrices begin elsewhere in the same numbers.
        let part = |e: usize, count: usize| Ok(values[e..e + count].iter().map(|v| v * 0.05).collect());
        let gate_up = Weight::from_heads(gpu, [experts, 2 * width, dim], kind, |e| part(e, 2 * width * dim))?;
        let down = Weight::from_heads(gpu, [experts, dim, width], kind, |e| part(e, dim * width))?;
        Ok(Layer { gpu, experts: Experts::new(gpu, gate_up, down, top)?, shape })
    }

    /// A table: a line per number of rows, a column per way.
    pub async fn table(&self, rows_of_lines: &[usize]) -> Result<()> {
        let ExpertShape { experts, top, dim, width } = self.shape;
        println!("{top} of {experts} experts of {width}, rows of {dim}: milliseconds of a layer");
        println!(
            "{:>6} {:>16} {:>10} {:>10} {:>10} {:>10} {:>9}  chosen",
            "rows", "rows per expert", "one by one", "tiles of 8", "of 16", "of 32", "max diff"
        );
        for &count in rows_of_lines {
            let rows = self.rows(count)?;
            let alone = ExpertTuning { tile_rows: 16, rows_per_expert: usize::MAX };
            let mut times = vec![self.time(alone, &rows).await?];
            let want = self.outputs(alone, &rows).await?;
            let mut worst = 0.0f64;
            for tile_rows in TILES {
                let tuning = ExpertTuning { tile_rows, rows_per_expert: 0 };
                worst = worst.max(self.difference(&self.outputs(tuning, &rows).await?, &want)?);
                times.push(self.time(tuning, &rows).await?);
            }
            let per_expert = (count * top) as f64 / experts as f64;
            let tuning = self.experts.tuning();
            let chosen = match tuning.lists(self.shape, count) {
                true => format!("tiles of {}", tuning.tile_rows),
                false => "one by one".into(),
            };
            let [alone, eight, sixteen, thirty_two] = [0, 1, 2, 3].map(|i: usize| times[i] / 1e3);
            println!(
                "{count:>6} {per_expert:>16.2} {alone:>10.3} {eight:>10.3} {sixteen:>10.3} {thirty_two:>10.3} \
                 {worst:>9.0e}  {chosen}"
            );
        }
        Ok(())
    }

    fn rows(&self, count: usize) -> Result<Rows> {
        let ExpertShape { experts, top, dim, .. } = self.shape;
        let draws = random(count * experts, 11);
        // A row's experts are those of its largest draws.
        let choose = |draws: &[f32]| {
            let mut order: Vec<u32> = (0..experts as u32).collect();
            order.sort_by(|a, b| draws[*b as usize].total_cmp(&draws[*a as usize]));
            order.truncate(top);
            order
        };
        let ids: Vec<u32> = draws.chunks_exact(experts).flat_map(choose).collect();
        Ok(Rows {
            x: Tensor::from_slice(self.gpu, &[count, dim], &random(count * dim, 9), DType::F32)?,
            ids: Tensor::from_slice(self.gpu, &[count, top], &ids, DType::U32)?,
            weights: Tensor::from_slice(self.gpu, &[count, top], &vec![SCALE; count * top], DType::F32)?,
        })
    }

    /// Median microseconds.
    async fn time(&self, tuning: ExpertTuning, rows: &Rows) -> Result<f64> {
        let experts = self.experts.clone().with_tuning(tuning)?;
        let (count, y) = (rows.ids.shape()[0], Tensor::zeros(self.gpu, rows.x.shape(), DType::F32)?);
        let scratch = experts.scratch(count)?;
        let args = ExpertArgs { ids: &rows.ids, weights: &rows.weights, scratch: &scratch };
        let work =
            |pass: &mut latten::wgpu::ComputePass<'_>, _| experts.encode(pass, Span::of(&rows.x), Span::of(&y), args);
        let times = times_us(self.gpu, WARM, work).await?;
        Ok(times[times.len() / 2])
    }

    async fn outputs(&self, tuning: ExpertTuning, rows: &Rows) -> Result<Vec<f32>> {
        let experts = self.experts.clone().with_tuning(tuning)?;
        let (count, y) = (rows.ids.shape()[0], Tensor::zeros(self.gpu, rows.x.shape(), DType::F32)?);
        let scratch = experts.scratch(count)?;
        let args = ExpertArgs { ids: &rows.ids, weights: &rows.weights, scratch: &scratch };
        experts.run(Span::of(&rows.x), Span::of(&y), args)?;
        self.gpu.download(&y).await
    }

    /// The largest, in units of the root mean square; it must be small.
    fn difference(&self, got: &[f32], want: &[f32]) -> Result<f64> {
        let square = want.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
        let rms = (square / want.len() as f64).sqrt();
        let off = got.iter().zip(want).map(|(g, w)| f64::from((g - w).abs()) / rms);
        let worst = off.fold(0.0, |most: f64, off| if off.is_nan() { f64::INFINITY } else { most.max(off) });
        if rms > 0.0 && worst <= LARGEST_ERROR {
            return Ok(worst);
        }
        let message = format!("listed rows are off by {worst:e} of {rms:e}");
        Err(ErrorKind::Gpu { context: format!("{:?}", self.shape), message }.into())
    }
}
