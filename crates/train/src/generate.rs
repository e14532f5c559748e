//! Continuing a text token by token.

use tritrain_backend::Backend;
use tritrain_data::Tokenizer;
use tritrain_model::{Generator, Model, Sampling, sample};

use crate::Result;

/// What predicts the next token of a sequence: one model, or a mixture.
pub trait Next {
    /// Logits of the next token, `[vocab]`.
    fn logits(&self) -> &[f32];

    /// Appends a token.
    ///
    /// # Errors
    /// [`Error::Data`](crate::Error::Data) where the text cannot be embedded.
    fn push(&mut self, token: u32) -> Result<()>;
}

/// A sequence that one model continues.
pub struct Continuation<'a, B: Backend> {
    backend: &'a B,
    model: &'a Model<B>,
    generator: Generator<B>,
}

impl<'a, B: Backend> Continuation<'a, B> {
    /// Reads `prompt`.
    ///
    /// # Errors
    /// [`Error::Prompt`](crate::Error::Prompt).
    pub fn new(backend: &'a B, model: &'a Model<B>, prompt: &[u32]) -> Result<Self> {
        Ok(Continuation { backend, model, generator: Generator::new(model, backend, prompt)? })
    }
}

impl<B: Backend> Next for Continuation<'_, B> {
    fn logits(&self) -> &[f32] {
        self.generator.logits()
    }

    fn push(&mut self, token: u32) -> Result<()> {
        self.generator.push(self.model, self.backend, token);
        Ok(())
    }
}

/// Makes up to `limit` tokens and hands every piece of text to `emit`, which returns whether to go on; ends at
/// the end of text too. Returns the number of tokens made.
///
/// # Errors
/// Those of [`Next::push`].
pub fn generate(
    next: &mut impl Next,
    tokenizer: &Tokenizer,
    sampling: &Sampling,
    limit: usize,
    mut emit: impl FnMut(&str) -> bool,
) -> Result<usize> {
    let mut text = tokenizer.decode_stream();
    let mut made = Vec::new();
    while made.len() < limit {
        let token = sample(next.logits(), sampling, &made);
        made.push(token);
        if token == tokenizer.eos() {
            break;
        }
        if let Some(piece) = text.push(token)
            && !emit(&piece)
        {
            return Ok(made.len());
        }
        if made.len() < limit {
            next.push(token)?;
        }
    }
    if let Some(rest) = text.finish() {
        emit(&rest);
    }
    Ok(made.len())
}
