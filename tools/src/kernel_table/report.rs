//! Numbers of a row against the ceilings, as text and as JSON.

use super::measure::Measured;
use crate::common::ceilings::Ceilings;
use crate::common::facts::Facts;
use latten::{ErrorKind, Result};
use serde::{Deserialize, Serialize};

/// All that a run found; what `--json` writes and `--from` reads.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Table {
    pub adapter: String,
    #[serde(flatten)]
    pub facts: Facts,
    #[serde(flatten)]
    pub ceilings: Ceilings,
    pub rows: Vec<Row>,
}

/// One measured shape. Fields that older files lack have defaults.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    pub shape: String,
    #[serde(default = "t0")]
    pub tier: String,
    #[serde(default = "f16")]
    pub dtype: String,
    pub workgroups: usize,
    pub us: f64,
    pub spread_us: f64,
    pub gbps: f64,
    pub read_percent: f64,
    pub tflops: f64,
    pub fma_percent: f64,
    #[serde(default)]
    pub matmul_percent: Option<f64>,
    /// The lower of the two ceilings: "bytes" or "flops".
    pub bound: String,
    pub max_error: f64,
    /// "cold" or "warm".
    pub cache: String,
}

fn t0() -> String {
    "t0".into()
}

fn f16() -> String {
    "f16".into()
}

impl Row {
    /// FLOP per byte that must move.
    pub fn intensity(&self) -> f64 {
        1e3 * self.tflops / self.gbps
    }
}

/// What a row was measured with.
pub struct Run<'a> {
    pub shape: &'a super::shapes::Shape,
    pub tier: &'a str,
    pub dtype: latten::DType,
}

impl Run<'_> {
    pub fn row(&self, m: &Measured, c: &Ceilings) -> Row {
        let (bytes, flops) = self.shape.bytes_and_flops(self.dtype);
        let (gbps, tflops) = (bytes / m.us / 1e3, flops / m.us / 1e6);
        // Matrix units are the ceiling where kernels use them.
        let matrices = self.tier == "t2" && self.dtype == latten::DType::F16;
        let most_tflops = if matrices { c.matmul_tflops.unwrap_or(c.fma_tflops) } else { c.fma_tflops };
        let bound = if bytes / c.read_gbps > flops / most_tflops / 1e3 { "bytes" } else { "flops" };
        Row {
            shape: self.shape.name.clone(),
            tier: self.tier.into(),
            dtype: self.dtype.to_string(),
            workgroups: m.workgroups,
            us: digits(m.us, 5),
            spread_us: digits(m.spread_us, 3),
            gbps: digits(gbps, 5),
            read_percent: digits(100.0 * gbps / c.read_gbps, 3),
            tflops: digits(tflops, 5),
            fma_percent: digits(100.0 * tflops / c.fma_tflops, 3),
            matmul_percent: c.matmul_tflops.map(|most| digits(100.0 * tflops / most, 3)),
            bound: bound.into(),
            max_error: digits(m.max_error, 3),
            cache: if self.shape.warm { "warm" } else { "cold" }.into(),
        }
    }
}

/// Rounded to so many significant digits.
pub fn digits(value: f64, digits: i32) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let unit = 10f64.powi(digits - 1 - value.abs().log10().floor() as i32);
    (value * unit).round() / unit
}

pub fn print_head() {
    println!(
        "{:<40} {:<4} {:<4} {:>6} {:>10} {:>8} {:>6} {:>9} {:>6} {:>6}  {:<6} {:>7} {:>9}",
        "shape",
        "tier",
        "type",
        "groups",
        "us",
        "GB/s",
        "%read",
        "TFLOP/s",
        "%fma",
        "%mm",
        "bound",
        "max err",
        "us spread"
    );
}

pub fn print(r: &Row) {
    let matmul = r.matmul_percent.map_or("-".into(), |percent| format!("{percent:.1}"));
    println!(
        "{:<40} {:<4} {:<4} {:>6} {:>10.1} {:>8.1} {:>6.1} {:>9.3} {:>6.1} {:>6}  {:<6} {:>7.0e} {:>9.1}",
        r.shape,
        r.tier,
        r.dtype,
        r.workgroups,
        r.us,
        r.gbps,
        r.read_percent,
        r.tflops,
        r.fma_percent,
        matmul,
        r.bound,
        r.max_error,
        r.spread_us
    );
}

impl Table {
    /// One row to a line, so that two runs can be compared with diff.
    pub fn write(&self, path: &str) -> Result<()> {
        let rows: Vec<String> = self.rows.iter().map(|row| serde_json::json!(row).to_string()).collect();
        let Ceilings { read_gbps, fma_tflops, matmul_tflops } = self.ceilings;
        let Facts { commit, date, device, driver, clocks } = &self.facts;
        let head = serde_json::json!({
            "adapter": self.adapter,
            "commit": commit,
            "date": date,
            "device": device,
            "driver": driver,
            "clocks": clocks,
            "read_gbps": digits(read_gbps, 5),
            "fma_tflops": digits(fma_tflops, 5),
            "matmul_tflops": matmul_tflops.map(|tflops| digits(tflops, 5)),
        })
        .to_string();
        let text = format!("{},\"rows\":[\n{}\n]}}\n", head.trim_end_matches('}'), rows.join(",\n"));
        write(path, &text)
    }

    pub fn read(path: &str) -> Result<Self> {
        let io = |message| ErrorKind::Io { path: path.into(), message };
        let text = std::fs::read_to_string(path).map_err(|e| io(e.to_string()))?;
        Ok(serde_json::from_str(&text).map_err(|e| io(format!("is no table of kernel_table: {e}")))?)
    }
}

pub fn write(path: &str, text: &str) -> Result<()> {
    std::fs::write(path, text).map_err(|e| ErrorKind::Io { path: path.into(), message: e.to_string() }.into())
}
