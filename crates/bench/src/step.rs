//! Whole training steps.

use serde::Serialize;
use tritrain_backend::Cpu;
use tritrain_optim::{OptimConfig, Rates};
use tritrain_train::{Learner, Setup};

use crate::{BenchError, ModelShape, peak_memory, shape::SEED, time};

/// What a training step takes.
#[derive(Clone, Debug, Serialize)]
pub struct StepReport {
    /// Tokens a second, at the median step.
    pub tokens_per_s: f64,
    /// Seconds of the median step.
    pub step_s: f64,
    /// Largest resident set of the process in MiB, where the system says.
    pub peak_rss_mb: Option<f64>,
    /// Parameters of the model.
    pub parameters: usize,
    /// Threads used.
    pub threads: usize,
    /// Instructions used.
    pub tier: &'static str,
    /// Where the time of the measured steps went, the longest first; empty unless asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub profile: Vec<Operation>,
}

/// One operation's part of a step.
#[derive(Clone, Debug, Serialize)]
pub struct Operation {
    /// Name of the operation in `Backend`.
    pub name: &'static str,
    /// Calls per step.
    pub calls: f64,
    /// Milliseconds per step.
    pub ms: f64,
    /// Share of the step.
    pub share: f64,
}

/// Steps before the clock starts.
const WARMUP: usize = 2;

/// Trains a new model for some steps and times each. `recompute` as in
/// [`RunConfig`](tritrain_train::RunConfig::recompute).
///
/// # Errors
/// The sizes make no model, or the backend does not start.
pub fn step(
    shape: &ModelShape,
    optim: &OptimConfig,
    steps: usize,
    recompute: bool,
    profile: bool,
) -> Result<StepReport, BenchError> {
    shape.check()?;
    let backend = Cpu::new(shape.threads)?;
    let backend = if profile { backend.profiled() } else { backend };
    let setup = Setup { vocab: shape.vocab, batch: shape.batch, passes: 1, recompute, seed: SEED };
    let mut learner = Learner::new(&backend, &shape.model, optim, setup, &|id| shape.weights(id));
    let rates = Rates { matrices: optim.rate, embedding: optim.embedding_rate, radius: optim.bound() };
    let count = shape.batch * shape.model.context;
    let mut times = Vec::with_capacity(steps);
    for step in 0..WARMUP + steps.max(1) {
        let (inputs, targets) = (shape.tokens(count, 0), shape.tokens(count, 1));
        if step == WARMUP {
            backend.spent();
        }
        let mut outcome = Ok(());
        let seconds = time::seconds(|| {
            outcome = learner.step(&backend, &inputs, &targets, rates).map(|_| ());
        });
        outcome.map_err(|what| BenchError::Step { step, what })?;
        if step >= WARMUP {
            times.push(seconds);
        }
    }
    let (measured, total) = (times.len() as f64, times.iter().sum::<f64>());
    let mut profile: Vec<Operation> = backend
        .spent()
        .into_iter()
        .map(|(name, spent)| Operation {
            name,
            calls: spent.calls as f64 / measured,
            ms: spent.time.as_secs_f64() * 1e3 / measured,
            share: spent.time.as_secs_f64() / total,
        })
        .collect();
    profile.sort_by(|a, b| b.ms.total_cmp(&a.ms));
    let step_s = time::median(times);
    Ok(StepReport {
        tokens_per_s: count as f64 / step_s,
        step_s,
        peak_rss_mb: peak_memory::bytes().map(|bytes| bytes as f64 / f64::from(1 << 20)),
        parameters: shape.parameters(),
        threads: backend.threads(),
        tier: backend.tier().name(),
        profile,
    })
}
