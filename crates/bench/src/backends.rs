//! The single operations of a dispatcher on every engine: time, throughput, memory, and how much faster than scalar.

use serde::Serialize;
use tritrain_cluster::{Options, Start};
use tritrain_dispatch::{Config, Dispatcher, Engine, EngineKind, Operation, Task, TernaryWeights};
use tritrain_trit::{pack::packed2_len, rng::Stream};

use crate::{BenchError, peak_memory, time};

/// What is worked on.
#[derive(Clone, Debug)]
pub struct Arrays {
    /// To be quantised, [`Arrays::NUMBERS`].
    pub numbers: Vec<f32>,
    /// To be clustered, `[rows][dim]` of [`Arrays::ROWS`].
    pub rows: Vec<f32>,
    /// The first centroids, [`Arrays::CLUSTERS`] of them.
    pub centroids: Vec<f32>,
    /// To be multiplied, squares with a side of [`Arrays::SIDE`].
    pub factors: [Vec<f32>; 2],
}

impl Arrays {
    /// Numbers to quantise.
    pub const NUMBERS: usize = 1_000_000;
    /// Rows and columns to cluster.
    pub const ROWS: (usize, usize) = (10_000, 128);
    /// Clusters.
    pub const CLUSTERS: usize = 10;
    /// Side of the matrices.
    pub const SIDE: usize = 512;

    /// Normal numbers.
    pub fn normal(seed: u64) -> Arrays {
        let normal = |array: u32, len: usize| -> Vec<f32> {
            let random = Stream::new(seed, array, 0);
            (0..len as u64).map(|i| random.normal(i)).collect()
        };
        let rows = normal(1, Arrays::ROWS.0 * Arrays::ROWS.1);
        let centroids = rows[..Arrays::CLUSTERS * Arrays::ROWS.1].to_vec();
        let side = Arrays::SIDE * Arrays::SIDE;
        Arrays {
            numbers: normal(0, Arrays::NUMBERS),
            rows,
            centroids,
            factors: [normal(2, side), normal(3, side)],
        }
    }

    fn check(&self) -> Result<(), BenchError> {
        let lengths = [
            ("the numbers to quantise", Arrays::NUMBERS, &self.numbers),
            ("the rows to cluster", Arrays::ROWS.0 * Arrays::ROWS.1, &self.rows),
            ("the first centroids", Arrays::CLUSTERS * Arrays::ROWS.1, &self.centroids),
            ("the first factor", Arrays::SIDE * Arrays::SIDE, &self.factors[0]),
            ("the second factor", Arrays::SIDE * Arrays::SIDE, &self.factors[1]),
        ];
        for (what, expected, array) in lengths {
            if array.len() != expected {
                return Err(BenchError::Array { what, expected, found: array.len() });
            }
        }
        Ok(())
    }
}

/// One operation on one engine.
#[derive(Clone, Debug, Serialize)]
pub struct BackendReport {
    /// The operation.
    pub operation: Operation,
    /// Its sizes.
    pub task: Task,
    /// The engine.
    pub engine: EngineKind,
    /// What it runs on.
    pub runs_on: String,
    /// Milliseconds, the median.
    pub ms: f64,
    /// Billions of numbers, compared coordinates or multiply-adds a second.
    pub giga_per_s: f64,
    /// Time of the scalar engine over this one's.
    pub over_scalar: f64,
    /// Megabytes that were taken beyond inputs and results, at most; none where the system does not say.
    pub memory_mb: Option<f64>,
    /// Whether a dispatcher would take this engine.
    pub chosen: bool,
    /// Of k-means: the sum of squared distances to centroids.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inertia: Option<f64>,
}

/// All of them.
#[derive(Clone, Debug, Serialize)]
pub struct BackendsReport {
    /// The rows of the table.
    pub backends: Vec<BackendReport>,
    /// Why engines are missing.
    pub absent: Vec<(EngineKind, String)>,
    /// Measurements behind each median.
    pub runs: usize,
    /// Seconds that the dispatcher took to calibrate.
    pub calibration_s: f64,
}

/// Results that operations write.
struct Out {
    codes: Vec<u8>,
    numbers: Vec<f32>,
    product: Vec<f32>,
}

/// Measures every operation on every engine, engines alternating, `runs` times.
///
/// # Errors
/// Arrays of other sizes, numbers that are not finite, or an engine that fails.
pub fn backends(
    gpu: Result<Box<dyn Engine>, String>,
    arrays: &Arrays,
    (threads, runs): (usize, usize),
    mut show: impl FnMut(&BackendReport),
) -> Result<BackendsReport, BenchError> {
    arrays.check()?;
    let dispatcher = Dispatcher::new(Config { threads, ..Config::default() }, gpu, None)?;
    let calibration_s = dispatcher.metrics().measuring_seconds;
    let codes = dispatcher.quantize(&arrays.numbers)?;
    let side = Arrays::SIDE;
    let weights = TernaryWeights::new(dispatcher.quantize(&arrays.factors[1])?, side, side)?;
    let mut out = Out {
        codes: vec![0; packed2_len(Arrays::NUMBERS)],
        numbers: vec![0.0; Arrays::NUMBERS],
        product: vec![0.0; side * side],
    };
    let mut reports = Vec::new();
    for operation in Operation::ALL {
        // Seconds, memory and what came of k-means, by engine.
        let mut seen: [(Vec<f64>, Option<usize>, Option<(usize, f64)>); 4] = Default::default();
        for run in 0..=runs.max(1) {
            for (engine, (seconds, memory, fitted)) in dispatcher.engines().into_iter().zip(&mut seen) {
                let Ok(engine) = engine else { continue };
                peak_memory::forget();
                let (before, mut result) = (peak_memory::now(), Ok(None));
                let took = time::seconds(|| {
                    result =
                        once(operation, engine, arrays, (codes.codes(), codes.scale()), &weights, &mut out);
                });
                *fitted = result?;
                // The first one warms up, and takes memory that stays.
                if run == 0 {
                    *memory =
                        peak_memory::bytes().zip(before).map(|(most, before)| most.saturating_sub(before));
                } else {
                    seconds.push(took);
                }
            }
        }
        let mut scalar = f64::NAN;
        for (kind, (seconds, memory, fitted)) in EngineKind::ALL.into_iter().zip(seen) {
            let Ok(engine) = dispatcher.engines()[kind as usize] else { continue };
            let seconds = time::median(seconds);
            if kind == EngineKind::Scalar {
                scalar = seconds;
            }
            let task = task(operation, fitted.map_or(0, |(iterations, _)| iterations));
            let report = BackendReport {
                operation,
                task,
                engine: kind,
                runs_on: engine.describe(),
                ms: seconds * 1e3,
                giga_per_s: task.work() / seconds / 1e9,
                over_scalar: scalar / seconds,
                memory_mb: memory.map(|bytes| bytes as f64 / 1e6),
                chosen: dispatcher.explain(&task).chosen == kind,
                inertia: fitted.map(|(_, inertia)| inertia),
            };
            show(&report);
            reports.push(report);
        }
    }
    let absent = EngineKind::ALL.into_iter().zip(dispatcher.engines());
    let absent = absent.filter_map(|(kind, engine)| Some((kind, engine.err()?.to_owned()))).collect();
    Ok(BackendsReport { backends: reports, absent, runs: runs.max(1), calibration_s })
}

fn task(operation: Operation, iterations: usize) -> Task {
    let (rows, outputs, inputs) = (Arrays::SIDE, Arrays::SIDE, Arrays::SIDE);
    match operation {
        Operation::Quantize => Task::Quantize { len: Arrays::NUMBERS },
        Operation::Dequantize => Task::Dequantize { len: Arrays::NUMBERS },
        Operation::Kmeans => {
            Task::Kmeans { rows: Arrays::ROWS.0, dim: Arrays::ROWS.1, k: Arrays::CLUSTERS, iterations }
        }
        Operation::Matmul => Task::Matmul { rows, outputs, inputs },
        Operation::TernaryMatmul => Task::TernaryMatmul { rows, outputs, inputs },
    }
}

/// Does an operation once; of k-means, iterations and inertia.
fn once(
    operation: Operation,
    engine: &dyn Engine,
    arrays: &Arrays,
    (codes, scale): (&[u8], f32),
    weights: &TernaryWeights,
    out: &mut Out,
) -> Result<Option<(usize, f64)>, BenchError> {
    let [a, b] = &arrays.factors;
    match operation {
        Operation::Quantize => engine.quantize(&arrays.numbers, &mut out.codes).map(|_| None),
        Operation::Dequantize => engine.dequantize(codes, scale, &mut out.numbers).map(|()| None),
        Operation::Kmeans => {
            let (start, options) = (Start::Given(&arrays.centroids), Options::default());
            let fit = engine.kmeans(&arrays.rows, Arrays::ROWS, start, &options);
            fit.map(|fit| Some((fit.iterations, fit.inertia)))
        }
        Operation::Matmul => engine.matmul(a, b, [Arrays::SIDE; 3], &mut out.product).map(|()| None),
        Operation::TernaryMatmul => engine.ternary_matmul(a, weights, &mut out.product).map(|()| None),
    }
    .map_err(BenchError::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_of_other_sizes_are_refused() {
        let mut arrays = Arrays::normal(1);
        arrays.check().unwrap();
        arrays.centroids.pop();
        let message = arrays.check().unwrap_err().to_string();
        assert!(message.contains("the first centroids: expected 1280 numbers, found 1279"), "{message}");
    }
}
