//! How long to train and what to keep: the `[run]` section of the configuration file.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The `[run]` section. Everything counted in steps unless it says otherwise.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RunConfig {
    /// Seed of initialisation and data order.
    pub seed: u64,
    /// Steps to train; 0 leaves the bound to run.tokens.
    #[schemars(range(min = 0, max = 1_000_000_000_u64))]
    pub steps: u64,
    /// Tokens to train on; 0 leaves the bound to run.steps. With both, the smaller one ends the run.
    #[schemars(range(min = 0, max = 1_000_000_000_000_000_u64))]
    pub tokens: u64,
    /// Sequences in a batch.
    #[schemars(range(min = 1, max = 65536))]
    pub batch: usize,
    /// Sequences that go through the model at a time, a divisor of run.batch: their gradients add up, and memory of
    /// activations is for these alone; 0 for the whole batch.
    #[schemars(range(min = 0, max = 65536))]
    pub micro_batch: usize,
    /// Model to begin with, own or imported: a run folder, step folder or model.safetensors; empty begins anew.
    pub from: String,
    /// Share of the targets that are drawn from what the model in run.from predicts: distillation.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub teach: f32,
    /// Weight in the loss of how far relations within queries, keys and values of the block three quarters up are from
    /// those of the model in run.from, in nats: distillation, too.
    #[schemars(range(min = 0.0, max = 1000.0))]
    pub relations: f32,
    /// Share of the run over which the rounding of ternary matrices is turned on, for models that were f32: they
    /// multiply by λ of their codes and 1 - λ of their latent weights, λ from 0 to 1. Such steps are slower; validation,
    /// samples and checkpoints are of the codes. 0 rounds from the first step on.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub lambda_warmup: f32,
    /// Experts, one for each cluster of the text, that go on from a shared start; 0 trains one model.
    #[schemars(range(max = 1024))]
    pub experts: usize,
    /// Share of the steps that the shared start of experts takes.
    #[schemars(range(min = 0.01, max = 0.99))]
    pub shared: f32,
    /// Threads; 0 takes every core. The result does not depend on it.
    #[schemars(range(min = 0, max = 1024))]
    pub threads: usize,
    /// Keep only the input of each block for the backward pass and compute the rest again: longer contexts
    /// for the same memory, slower steps. The result does not depend on it.
    pub recompute: bool,
    /// Evaluate on the validation split this often; 0 only at the end.
    pub eval_every: u64,
    /// Validation tokens of one evaluation.
    #[schemars(range(min = 1, max = 1_000_000_000_u64))]
    pub eval_tokens: u64,
    /// Print a sample this often; 0 only at the end.
    pub sample_every: u64,
    /// Save a checkpoint this often; 0 only at the end. Signals always save.
    pub checkpoint_every: u64,
    /// Newest checkpoints kept beside the best one.
    #[schemars(range(min = 1, max = 1000))]
    pub keep: usize,
}

impl RunConfig {
    /// Passes through the model in a step.
    pub fn passes(&self) -> usize {
        self.batch.checked_div(self.micro_batch).map_or(1, |passes| passes.max(1))
    }

    /// Whether the model in `from` has to predict anything.
    pub fn has_teacher(&self) -> bool {
        self.teach > 0.0 || self.relations > 0.0
    }

    /// λ of a step, counted from 0, of some: the share of codes in what ternary matrices multiply by.
    pub(crate) fn lambda(&self, (step, steps): (u64, u64)) -> f32 {
        let over = f64::from(self.lambda_warmup) * steps as f64;
        if step as f64 >= over { 1.0 } else { (step as f64 / over) as f32 }
    }
}

impl Default for RunConfig {
    fn default() -> Self {
        RunConfig {
            seed: 1,
            steps: 0,
            tokens: 800_000,
            batch: 4,
            micro_batch: 0,
            from: String::new(),
            teach: 0.0,
            relations: 0.0,
            lambda_warmup: 0.0,
            experts: 0,
            shared: 0.7,
            threads: 0,
            recompute: false,
            eval_every: 100,
            eval_tokens: 32_768,
            sample_every: 100,
            checkpoint_every: 200,
            keep: 2,
        }
    }
}
