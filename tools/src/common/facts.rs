//! What a record of a measurement says about its run.

use latten::Gpu;
use serde::{Deserialize, Serialize};
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

/// Of one run. Tables of earlier versions have none of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Facts {
    /// Of the checkout, `+` behind it where files differ from it.
    pub(crate) commit: Option<String>,
    /// UTC, as 2026-11-30.
    pub(crate) date: Option<String>,
    pub(crate) device: Option<String>,
    pub(crate) driver: Option<String>,
    /// As the vendor's tool says them, after the run: those of a busy device.
    pub(crate) clocks: Option<String>,
}

impl Facts {
    pub(crate) fn of(gpu: &Gpu) -> Facts {
        let (device, driver) = device_and_driver(&gpu.capabilities().adapter);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Facts {
            commit: commit(),
            date: Some(date(since.as_secs() / 86_400)),
            clocks: clocks(&device),
            device: Some(device),
            driver,
        }
    }
}

/// The two parts of an adapter's text, as `NVIDIA H200 [580.159.04] (Vulkan, DiscreteGpu)`.
fn device_and_driver(adapter: &str) -> (String, Option<String>) {
    match adapter.split_once(" [") {
        Some((device, rest)) => (device.into(), rest.split_once(']').map(|(driver, _)| driver.into())),
        None => (adapter.into(), None),
    }
}

/// What a program prints, without the space around it; none where there is no such program, or it fails.
fn output(program: &str, args: &[&str]) -> Option<String> {
    let output = Command::new(program).args(args).output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8(output.stdout).ok()?.trim().to_string())
}

fn commit() -> Option<String> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let commit = output("git", &["-C", folder, "rev-parse", "HEAD"])?;
    let changed = output("git", &["-C", folder, "status", "--porcelain"]).is_none_or(|text| !text.is_empty());
    Some(if changed { commit + "+" } else { commit })
}

/// The clocks of compute units and memory, where the vendor's tool tells them of one device of this name.
fn clocks(device: &str) -> Option<String> {
    let query = ["--query-gpu=name,clocks.sm,clocks.mem", "--format=csv,noheader"];
    let text = output("nvidia-smi", &query).filter(|_| device.contains("NVIDIA"))?;
    let line = text.lines().find(|line| line.split(',').next().is_some_and(|name| device.contains(name.trim())))?;
    let numbers: Vec<&str> = line.split(',').skip(1).map(str::trim).collect();
    Some(format!("compute {}, memory {}", numbers.first()?, numbers.get(1)?))
}

/// A day since 1970-01-01 as a date (Hinnant, "chrono-compatible low-level date algorithms", 2013: `civil_from_days`).
fn date(days: u64) -> String {
    let z = days + 719_468;
    let (era, day_of_era) = (z / 146_097, z % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153; // from March on
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (days, want) in [
            (0, "1970-01-01"),
            (59, "1970-03-01"),
            (11_016, "2000-02-29"),
            (11_017, "2000-03-01"),
            (20_787, "2026-11-30"),
            (47_540, "2100-02-28"),
            (47_541, "2100-03-01"),
        ] {
            assert_eq!(date(days), want);
        }
    }

    #[test]
    fn device_and_driver_are_the_parts_of_an_adapter() {
        let parts = device_and_driver("NVIDIA H200 [580.159.04] (Vulkan, DiscreteGpu)");
        assert_eq!(parts, ("NVIDIA H200".into(), Some("580.159.04".into())));
        assert_eq!(device_and_driver("a device"), ("a device".into(), None));
    }

    #[test]
    fn a_commit_is_a_sum_of_forty_digits() {
        // Of a checkout that was unpacked without git there is none.
        if let Some(commit) = commit() {
            let sum = commit.trim_end_matches('+');
            assert!(sum.len() == 40 && sum.chars().all(|c| c.is_ascii_hexdigit()), "{commit}");
        }
    }
}
