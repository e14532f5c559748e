//! Whether a dispatcher chooses well: random tasks, its choice, and what every engine takes for them.

use std::hint::black_box;

use serde::Serialize;
use tritrain_dispatch::{Config, Dispatcher, Engine, EngineKind, Operation, Quantized, Task};
use tritrain_trit::rng::Stream;

use crate::{BenchError, time};

/// One task.
#[derive(Clone, Debug, Serialize)]
pub struct Choice {
    /// What was to be done.
    pub task: Task,
    /// The engine that was chosen.
    pub chosen: EngineKind,
    /// The engine that was fastest.
    pub fastest: EngineKind,
    /// Seconds of the one over those of the other.
    pub over_fastest: f64,
    /// Seconds of the chosen engine over what was predicted for it.
    pub over_predicted: f64,
}

/// All of them.
#[derive(Clone, Debug, Serialize)]
pub struct ChoicesReport {
    /// The tasks.
    pub choices: Vec<Choice>,
    /// Share of tasks whose engine takes at most 1.1 times as long as the fastest.
    pub within_tenth: f64,
    /// The mean of `over_fastest`.
    pub mean_over_fastest: f64,
    /// Microseconds that a call through the dispatcher takes beyond the engine's.
    pub overhead_us: f64,
    /// Seconds of the calibration.
    pub calibration_s: f64,
    /// Engines, and what they run on.
    pub engines: Vec<(EngineKind, String)>,
}

/// Times that every engine is measured.
const ROUNDS: usize = 9;

/// Calibrates a dispatcher, then has it choose for `count` random tasks, which are measured on every engine.
///
/// # Errors
/// Threads cannot be started, or the device of an engine fails.
pub fn choices(
    gpu: Result<Box<dyn Engine>, String>,
    (threads, count, seed): (usize, usize, u64),
    mut show: impl FnMut(&Choice),
) -> Result<ChoicesReport, BenchError> {
    let dispatcher = Dispatcher::new(Config { threads, ..Config::default() }, gpu, None)?;
    let calibration_s = dispatcher.metrics().measuring_seconds;
    let mut choices = Vec::new();
    for index in 0..count {
        let task = random(seed, index);
        let decision = dispatcher.explain(&task);
        let (task, measured) = dispatcher.measure(&task, ROUNDS)?;
        let of = |kind| measured.iter().find(|(of, _)| *of == kind).map_or(f64::INFINITY, |(_, s)| *s);
        let seconds = of(decision.chosen);
        let (fastest, least) =
            measured.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap_or((decision.chosen, seconds));
        let predicted = decision.weighed.iter().find(|of| of.engine == decision.chosen);
        let predicted = predicted.and_then(|of| of.predicted_s).unwrap_or(f64::NAN);
        let choice = Choice {
            task,
            chosen: decision.chosen,
            fastest,
            over_fastest: seconds / least,
            over_predicted: seconds / predicted,
        };
        show(&choice);
        choices.push(choice);
    }
    let engines = EngineKind::ALL.into_iter().zip(dispatcher.engines());
    let mean = |of: &dyn Fn(&Choice) -> f64| choices.iter().map(of).sum::<f64>() / count.max(1) as f64;
    Ok(ChoicesReport {
        within_tenth: mean(&|choice| f64::from(u8::from(choice.over_fastest <= 1.1))),
        mean_over_fastest: mean(&|choice| choice.over_fastest),
        overhead_us: overhead(&dispatcher)? * 1e6,
        calibration_s,
        engines: engines.filter_map(|(kind, engine)| Some((kind, engine.ok()?.describe()))).collect(),
        choices,
    })
}

/// A task whose sizes are spread evenly over their powers of two.
fn random(seed: u64, index: usize) -> Task {
    let random = Stream::new(seed, 0, index as u64);
    let size = |at: u64, low: f32, high: f32| (low + (high - low) * random.uniform(at)).exp2() as usize;
    let sizes = || (size(1, 3.0, 9.0), size(2, 3.0, 9.0), size(3, 3.0, 9.0));
    match Operation::ALL[index % Operation::ALL.len()] {
        Operation::Quantize => Task::Quantize { len: size(1, 8.0, 23.0) },
        Operation::Dequantize => Task::Dequantize { len: size(1, 8.0, 23.0) },
        Operation::Kmeans => {
            let rows = size(1, 7.0, 14.0);
            Task::Kmeans { rows, dim: size(2, 3.0, 7.0), k: size(3, 1.0, 6.0), iterations: 5 }
        }
        Operation::Matmul => {
            let (rows, outputs, inputs) = sizes();
            Task::Matmul { rows, outputs, inputs }
        }
        Operation::TernaryMatmul => {
            let (rows, outputs, inputs) = sizes();
            Task::TernaryMatmul { rows, outputs, inputs }
        }
    }
}

/// Seconds that a call takes beyond that of the engine: of the smallest operation there is, the shortest of many
/// rounds of each, which alternate.
fn overhead(dispatcher: &Dispatcher) -> Result<f64, BenchError> {
    const CALLS: u32 = 2000;
    let codes = Quantized::new(vec![0x55], 1.0, 4).map_err(BenchError::from)?;
    let chosen = dispatcher.explain(&Task::Dequantize { len: 4 }).chosen;
    let Ok(engine) = dispatcher.engines()[chosen as usize] else { return Ok(f64::NAN) };
    let mut out = [0.0; 4];
    let mut shortest = [f64::INFINITY; 2];
    let mut failed = Ok(());
    for _ in 0..20 {
        let through = time::seconds(|| {
            for _ in 0..CALLS {
                failed = dispatcher
                    .dequantize(&codes, black_box(&mut out))
                    .and(std::mem::replace(&mut failed, Ok(())));
            }
        });
        let direct = time::seconds(|| {
            for _ in 0..CALLS {
                let done = engine.dequantize(codes.codes(), 1.0, black_box(&mut out));
                failed = done.and(std::mem::replace(&mut failed, Ok(())));
            }
        });
        shortest = [shortest[0].min(through), shortest[1].min(direct)];
    }
    failed?;
    Ok((shortest[0] - shortest[1]) / f64::from(CALLS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_tasks_are_of_every_operation_and_of_many_sizes() {
        let tasks: Vec<Task> = (0..200).map(|index| random(1, index)).collect();
        for operation in Operation::ALL {
            let of: Vec<f64> =
                tasks.iter().filter(|task| task.operation() == operation).map(Task::work).collect();
            let (least, most) = of.iter().fold((f64::INFINITY, 0f64), |(a, b), x| (a.min(*x), b.max(*x)));
            assert!(of.len() == 40 && least > 0.0 && most / least > 1000.0, "{}", operation.name());
        }
        assert_eq!(random(1, 7), random(1, 7));
        assert_ne!(random(1, 7), random(2, 7));
    }

    #[test]
    fn a_report_counts_what_it_shows() {
        let mut shown = 0;
        let report = choices(Err("none".into()), (2, 3, 1), |_| shown += 1).unwrap();
        assert_eq!((report.choices.len(), shown), (3, 3));
        let within = report.choices.iter().filter(|choice| choice.over_fastest <= 1.1).count();
        assert!((report.within_tenth - within as f64 / 3.0).abs() < 1e-12);
        assert!(report.choices.iter().all(|choice| choice.over_fastest >= 1.0));
    }
}
