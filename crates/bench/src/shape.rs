//! Sizes of the models that are measured.

use tritrain_backend::{CpuError, Values};
use tritrain_model::{ConfigError, Layout, ModelConfig, PromptError, TensorKind, TensorSpec, initial_tensor};
use tritrain_optim::Skip;

/// Why something cannot be measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// Sizes that no model has.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A size of zero.
    #[error("{option} is 0; it must be at least 1")]
    Zero {
        /// The option.
        option: &'static str,
    },
    /// The backend does not start.
    #[error(transparent)]
    Cpu(#[from] CpuError),
    /// The model to measure on cannot be read.
    #[error(transparent)]
    Model(#[from] tritrain_train::Error),
    /// A single operation cannot be done.
    #[error(transparent)]
    Dispatch(#[from] tritrain_dispatch::Error),
    /// An array of other sizes than are measured.
    #[error("{what}: expected {expected} numbers, found {found}")]
    Array {
        /// Which one.
        what: &'static str,
        /// Numbers it should have.
        expected: usize,
        /// Numbers it has.
        found: usize,
    },
    /// The prompt does not fit the model.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// A model in f32 where a ternary one is measured.
    #[error("the model is in f32; expected a ternary one (model.precision)")]
    NotTernary,
    /// The model learnt nothing: a step was not finite.
    #[error("step {step} of the benchmark was not finite ({what:?})")]
    Step {
        /// The step.
        step: usize,
        /// The quantity.
        what: Skip,
    },
}

/// Sizes of a model, of a batch and of the pool of threads.
#[derive(Clone, Debug)]
pub struct ModelShape {
    /// Options of the model.
    pub model: ModelConfig,
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Sequences in a batch.
    pub batch: usize,
    /// Threads; 0 for one per core.
    pub threads: usize,
}

/// Seed of the weights and tokens.
pub(crate) const SEED: u64 = 1;

impl ModelShape {
    /// Whether a model of these sizes exists.
    ///
    /// # Errors
    /// Names the size that does not fit.
    pub fn check(&self) -> Result<(), BenchError> {
        let sizes = [
            ("dim", self.model.dim),
            ("layers", self.model.layers),
            ("heads", self.model.heads),
            ("ffn", self.model.ffn),
            ("ctx", self.model.context),
            ("vocab", self.vocab),
            ("batch", self.batch),
        ];
        if let Some((option, _)) = sizes.into_iter().find(|(_, size)| *size == 0) {
            return Err(BenchError::Zero { option });
        }
        Ok(self.model.check()?)
    }

    /// Parameters of the model.
    pub fn parameters(&self) -> usize {
        Layout::new(&self.model, self.vocab).parameters()
    }

    /// Bytes of weights that one generated token reads: two bits a code and the head in int8, or f32.
    pub fn bytes_per_token(&self) -> usize {
        let layout = Layout::new(&self.model, self.vocab);
        let bytes = |spec: &TensorSpec| match spec.kind {
            TensorKind::Embedding => 0,
            TensorKind::Matrix if layout.ternary => spec.len() / 4,
            TensorKind::Matrix | TensorKind::Norm | TensorKind::Bias | TensorKind::Adapter => spec.len() * 4,
        };
        let head = layout.specs[layout.head].len() * if layout.ternary { 1 } else { 4 };
        layout.specs.iter().map(bytes).sum::<usize>() + head
    }

    /// Initial weights, tensor by tensor.
    pub(crate) fn weights(&self, id: usize) -> Values<'static> {
        Values::Floats(initial_tensor(&self.model, &Layout::new(&self.model, self.vocab), SEED, id).into())
    }

    /// `count` tokens, the `stream`-th such list.
    pub(crate) fn tokens(&self, count: usize, stream: u32) -> Vec<u32> {
        let random = tritrain_trit::rng::Stream::new(SEED, stream, 1);
        let token = |i: u64| (random.uniform(i) * self.vocab as f32) as u32;
        (0..count as u64).map(|i| token(i).min(self.vocab as u32 - 1)).collect()
    }
}
