//! Models for other programs: GGUF for llama.cpp, a folder for transformers; written, read back and compared before
//! they are in their place.
//!
//! What other programs compute differs from what was trained in the rounding of activations alone, where they do
//! what the format says; `interop/` measures it with the programs themselves.

mod gguf;
mod hf;
mod verify;
pub(crate) mod weights;

use std::path::Path;

use tritrain_backend::Backend;
use tritrain_files::{Draft, Storage};
use tritrain_model::{ModelConfig, Precision};
use tritrain_trit::blocks::Block;

pub use hf::{Floats, Hf, LinearClass};
pub use verify::{TEXT_TOKENS, Verified, logits, text_of_run, tokens_of, verify};
pub(crate) use weights::Weights;

use crate::{Error, Loaded, Result};

/// What a model is exported to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A GGUF file with matrices in this format. Beside ternary matrices the embedding is F16.
    Gguf(Block),
    /// A folder for transformers.
    Hf(Hf),
}

impl Target {
    /// Whether the target holds such a model without changing what it computes.
    ///
    /// # Errors
    /// [`Error::Target`] with the reason.
    pub fn check(self, config: &ModelConfig) -> Result<()> {
        match self {
            Target::Gguf(block) => gguf::check(config, block),
            Target::Hf(hf) => hf::check(config, hf),
        }
    }
}

/// A refusal, with its reason and what to do.
fn refuse<T>(target: &'static str, reason: impl Into<String>, hint: &'static str) -> Result<T> {
    Err(Error::Target { target, reason: reason.into(), hint })
}

/// Writes a model to `out`, where nothing may lie yet, reads it back and compares it on `tokens`
/// (see [`verify`]). What fails the comparison does not stay.
///
/// # Errors
/// [`Error::Target`] for what the target cannot hold; [`Error::Differs`] where the copy is not the model;
/// [`Error::Files`].
pub fn export<B: Backend>(
    backend: &B,
    storage: &dyn Storage,
    loaded: &Loaded,
    target: Target,
    out: &Path,
    tokens: &[u32],
) -> Result<Verified> {
    target.check(&loaded.config)?;
    let draft = match target {
        Target::Gguf(_) => Draft::file(storage, out)?,
        Target::Hf(_) => Draft::folder(storage, out)?,
    };
    let weights = Weights::of(backend, loaded)?;
    match target {
        Target::Gguf(block) => gguf::write(storage, draft.path(), loaded, &weights, block)?,
        Target::Hf(hf) => hf::write(backend, storage, draft.path(), loaded, &weights, hf)?,
    }
    let verified = verify::verify_weights(backend, storage, loaded, &weights, draft.path(), tokens)?;
    draft.finish()?;
    Ok(verified)
}

/// Whether the matrices of a model are ternary.
fn is_ternary(config: &ModelConfig) -> bool {
    config.precision == Precision::Ternary
}
