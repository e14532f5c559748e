//! What each tier of this processor does, as a whole operation and as reading alone.

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

/// What so many threads do.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Speed {
    /// Threads.
    pub threads: usize,
    /// Billions of multiply-adds a second of a ternary product, 256 rows × 512 × 512, rounding of the rows included.
    pub ternary_gmacs: f64,
    /// The same of an f32 product by the `gemm` crate, whose instructions are its own choice.
    pub f32_gmacs: f64,
    /// Gigabytes a second read from a buffer that no cache of a core holds.
    pub read_gb_per_s: f64,
}

/// Rows, outputs and inputs of the products.
const SIZES: [usize; 3] = [256, 512, 512];
/// Bytes that are read.
const BYTES: usize = 64 << 20;
/// Measurements of which the best counts.
const RUNS: usize = 5;

/// What one tier does on so many threads; 0 for one per core.
///
/// # Errors
/// The threads cannot be started.
pub fn speed(tier: Tier, threads: usize) -> Result<Speed, BenchError> {
    let [rows, outputs, inputs] = SIZES;
    let random = Stream::new(1, 0, 0);
    let floats = |len: usize| -> Vec<f32> { (0..len as u64).map(|i| random.uniform(i) - 0.5).collect() };
    let (x, w, mut y) = (floats(rows * inputs), floats(outputs * inputs), vec![0.0; rows * outputs]);
    let codes: Vec<i8> = w.iter().map(|w| i8::from(*w > 0.2) - i8::from(*w < -0.2)).collect();
    let cpu = Cpu::with_tier(tier, threads)?;
    let matrix = cpu.ternary_matrix(&codes, 1.0, (outputs, inputs));
    let gmacs = SIZES.iter().product::<usize>() as f64 / 1e9;
    let best =
        |work: &mut dyn FnMut()| (0..=RUNS).map(|_| gmacs / time::seconds(&mut *work)).fold(0.0, f64::max);
    let ternary_gmacs = best(&mut || cpu.ternary_product(&x, &matrix, &mut y));
    let f32_gmacs = best(&mut || cpu.product(&x, &w, SIZES, &mut y));
    let cx = Context::new(tier, threads)?;
    let reader = Reader::new(&cx, BYTES);
    let read_gb_per_s = (0..RUNS).map(|_| reader.gb_per_s()).fold(0.0, f64::max);
    Ok(Speed { threads: cpu.threads(), ternary_gmacs, f32_gmacs, read_gb_per_s })
}

/// Every tier there is, measured on one thread and on all where it can be used.
///
/// # Errors
/// The threads cannot be started.
pub fn tiers() -> Result<Vec<TierReport>, BenchError> {
    let all = std::thread::available_parallelism().map_or(1, usize::from);
    let counts = if all > 1 { vec![1, all] } else { vec![1] };
    let report = |(name, tier): (&'static str, Result<Tier, String>)| match tier {
        Ok(tier) => {
            let speed = counts.iter().map(|threads| speed(tier, *threads)).collect::<Result<_, _>>()?;
            Ok(TierReport { name, unusable: None, speed })
        }
        Err(why) => Ok(TierReport { name, unusable: Some(why), speed: Vec::new() }),
    };
    Tier::known().into_iter().map(report).collect()
}
