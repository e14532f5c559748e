//! What each tier of this processor does for a whole operation, and what memory gives.

use serde::Serialize;
use tritrain_backend::{Cpu, Tier};
use tritrain_kernels::Context;
use tritrain_trit::rng::Stream;

use crate::{BenchError, limits::Reader, time};

/// Whether a tier can be used here.
#[derive(Clone, Debug, Serialize)]
pub struct TierReport {
    /// Its name.
    pub name: &'static str,
    /// Why it cannot be used; none where it can.
    pub unusable: Option<String>,
    /// What it does on one thread, and on all.
    pub speed: Vec<Speed>,
}

/// What a tier does on so many threads.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Speed {
    /// Threads.
    pub threads: usize,
    /// Billions of multiply-adds a second of a ternary product, 256 rows × 512 × 512, rounding of the rows included.
    pub ternary_gmacs: f64,
}

/// What so many threads do, whatever the tier.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Common {
    /// Threads.
    pub threads: usize,
    /// Billions of multiply-adds a second of an f32 product of the same sizes by the `gemm` crate, whose instructions
    /// are its own choice.
    pub f32_gmacs: f64,
    /// Gigabytes a second read from a buffer that no cache of a core holds.
    pub read_gb_per_s: f64,
}

/// Every tier there is, and what is common to them.
#[derive(Clone, Debug, Serialize)]
pub struct DevicesReport {
    /// The tiers, slowest first.
    pub tiers: Vec<TierReport>,
    /// On one thread, and on all.
    pub common: Vec<Common>,
}

/// Rows, outputs and inputs of the products.
const SIZES: [usize; 3] = [256, 512, 512];
/// Bytes that are read.
const BYTES: usize = 64 << 20;
/// Measurements of which the best counts.
const RUNS: usize = 5;

/// Billions of multiply-adds a second of a product of [`SIZES`], at best.
fn gmacs(mut product: impl FnMut()) -> f64 {
    let gmacs = SIZES.iter().product::<usize>() as f64 / 1e9;
    (0..=RUNS).map(|_| gmacs / time::seconds(&mut product)).fold(0.0, f64::max)
}

/// Measures every tier, on one thread and on all where it can be used.
///
/// # Errors
/// The threads cannot be started, or `TRITRAIN_TIER` names no tier of this machine.
pub fn devices() -> Result<DevicesReport, BenchError> {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    let counts = if all > 1 { vec![1, all] } else { vec![1] };
    let [rows, outputs, inputs] = SIZES;
    let random = Stream::new(1, 0, 0);
    let floats = |len: usize| -> Vec<f32> { (0..len as u64).map(|i| random.uniform(i) - 0.5).collect() };
    let (x, w, mut y) = (floats(rows * inputs), floats(outputs * inputs), vec![0.0; rows * outputs]);
    let codes: Vec<i8> = w.iter().map(|w| i8::from(*w > 0.2) - i8::from(*w < -0.2)).collect();
    let mut tiers = Vec::new();
    for (name, tier) in Tier::known() {
        let mut report = TierReport { name, unusable: tier.as_ref().err().cloned(), speed: Vec::new() };
        if let Ok(tier) = tier {
            for threads in &counts {
                let cpu = Cpu::with_tier(tier, *threads)?;
                let matrix = cpu.ternary_matrix(&codes, 1.0, (outputs, inputs));
                let ternary_gmacs = gmacs(|| cpu.ternary_product(&x, &matrix, &mut y));
                report.speed.push(Speed { threads: *threads, ternary_gmacs });
            }
        }
        tiers.push(report);
    }
    let mut common = Vec::new();
    for threads in counts {
        let cpu = Cpu::new(threads)?;
        let f32_gmacs = gmacs(|| cpu.product(&x, &w, SIZES, &mut y));
        let cx = Context::new(cpu.tier(), threads)?;
        let reader = Reader::new(&cx, BYTES);
        let read_gb_per_s = (0..RUNS).map(|_| reader.gb_per_s()).fold(0.0, f64::max);
        common.push(Common { threads, f32_gmacs, read_gb_per_s });
    }
    Ok(DevicesReport { tiers, common })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_used_is_measured_and_what_cannot_has_a_reason() {
        let report = devices().unwrap();
        let usable: Vec<&str> = Tier::available().iter().map(|tier| tier.name()).collect();
        for tier in &report.tiers {
            assert_eq!(usable.contains(&tier.name), tier.unusable.is_none(), "{tier:?}");
            assert_eq!(tier.speed.is_empty(), tier.unusable.is_some(), "{tier:?}");
            assert!(tier.speed.iter().all(|speed| speed.ternary_gmacs > 0.0), "{tier:?}");
        }
        assert!(report.common.iter().all(|of| of.f32_gmacs > 0.0 && of.read_gb_per_s > 0.0));
    }
}
