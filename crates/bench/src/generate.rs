//! Reading a prompt and making tokens one by one.

use serde::Serialize;
use tritrain_backend::{Backend, Cpu};
use tritrain_kernels::Context;
use tritrain_model::{Generator, Model, Use};

use crate::{BenchError, ModelShape, limits::Reader, time};

/// What generation takes, for one sequence.
#[derive(Clone, Debug, Serialize)]
pub struct GenerateReport {
    /// Tokens made a second.
    pub tokens_per_s: f64,
    /// Tokens of the prompt read a second.
    pub prefill_tokens_per_s: f64,
    /// Bytes of weights that one token reads, packed codes and head.
    pub bytes_per_token: usize,
    /// Gigabytes of weights read a second.
    pub weights_gb_per_s: f64,
    /// Gigabytes a second that the same number of threads reads from a buffer of that size, again and
    /// again, without anything to compute.
    pub read_gb_per_s: f64,
    /// The one over the other.
    pub share_of_bandwidth: f64,
    /// Threads used.
    pub threads: usize,
    /// Instructions used.
    pub tier: &'static str,
}

/// Reads a prompt of half a context, and makes `tokens` tokens from a single one, several times: apart, so
/// that the rate of making does not depend on a prompt.
///
/// # Errors
/// The sizes make no model, or the backend does not start.
pub fn generate(shape: &ModelShape, tokens: usize) -> Result<GenerateReport, BenchError> {
    const RUNS: usize = 5;
    shape.check()?;
    let backend = Cpu::new(shape.threads)?;
    let model = Model::new(&backend, &shape.model, shape.vocab, &|id| shape.weights(id), Use::Inference);
    let prompt = shape.tokens((shape.model.context / 2).max(1), 2);
    let tokens = tokens.clamp(1, (shape.model.context - 1).max(1));
    let bytes_per_token = shape.bytes_per_token();
    let cx = Context::new(backend.tier(), backend.threads())?;
    let weights = Reader::new(&cx, bytes_per_token);
    let (mut reading, mut making, mut alone) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        alone.push(weights.gb_per_s());
        let mut read = Ok(());
        reading.push(time::seconds(|| read = Generator::new(&model, &backend, &prompt).map(|_| ())));
        read?;
        let mut generator = Generator::new(&model, &backend, &prompt[..1])?;
        let next = shape.tokens(tokens, 3);
        making.push(time::seconds(|| {
            backend.run_awake(|| next.iter().for_each(|token| generator.push(&model, &backend, *token)));
        }));
    }
    let tokens_per_s = tokens as f64 / time::median(making);
    let read_gb_per_s = time::median(alone);
    let weights_gb_per_s = tokens_per_s * bytes_per_token as f64 / 1e9;
    Ok(GenerateReport {
        tokens_per_s,
        prefill_tokens_per_s: prompt.len() as f64 / time::median(reading),
        bytes_per_token,
        weights_gb_per_s,
        read_gb_per_s,
        share_of_bandwidth: weights_gb_per_s / read_gb_per_s,
        threads: backend.threads(),
        tier: backend.tier().name(),
    })
}
