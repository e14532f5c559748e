//! Generation: one sequence, one token at a time, with cached keys and values.

use tritrain_backend::{Backend, Shape};

use crate::{Model, Precision, activations::BlockBuffers, linear::Gated};

/// Why a prompt cannot be continued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PromptError {
    /// Nothing to continue.
    #[error("the prompt holds no tokens; start it with the end-of-text token")]
    Empty,
    /// A token that the model does not have.
    #[error("token {found} at position {position} of the prompt: the model has {vocab} tokens")]
    Token {
        /// The token.
        found: u32,
        /// Where it stands.
        position: usize,
        /// The vocabulary size.
        vocab: usize,
    },
}

/// Buffers for a pass over some number of new tokens; all blocks use the same ones in turn.
struct Pass<B: Backend> {
    shape: Shape,
    tokens: B::Tokens,
    /// The residual stream before and behind a block.
    x: B::Floats,
    out: B::Floats,
    block: BlockBuffers<B>,
    gated: Gated<B>,
    hidden: B::Floats,
    rstd: B::Floats,
}

/// A sequence being continued.
///
/// The caches hold up to `model.context` positions. When they are full, the later half of the sequence is
/// read again from position 0 and the earlier half forgotten.
pub struct Generator<B: Backend> {
    /// Keys and values by block.
    caches: Vec<B::Cache>,
    /// The head as int8 rows, in a ternary model: a quarter of the bytes to read for every token.
    head: Option<B::Rows>,
    step: Pass<B>,
    sequence: Vec<u32>,
    device_logits: B::Floats,
    logits: Vec<f32>,
}

impl<B: Backend> Generator<B> {
    /// Reads `prompt`.
    ///
    /// # Errors
    /// The prompt is empty or holds a token outside the vocabulary.
    pub fn new(model: &Model<B>, backend: &B, prompt: &[u32]) -> Result<Generator<B>, PromptError> {
        if prompt.is_empty() {
            return Err(PromptError::Empty);
        }
        for (position, &found) in prompt.iter().enumerate() {
            if found as usize >= model.vocab {
                return Err(PromptError::Token { found, position, vocab: model.vocab });
            }
        }
        let head = (model.config.precision == Precision::Ternary).then(|| {
            let mut rows = backend.rows(model.vocab, model.config.dim);
            backend.quantize_rows(model.floats(model.layout.head), &mut rows);
            rows
        });
        let mut generator = Generator {
            caches: (0..model.config.layers).map(|_| backend.cache()).collect(),
            head,
            step: Pass::new(model, backend, 1),
            sequence: Vec::new(),
            device_logits: backend.floats(model.vocab),
            logits: vec![0.0; model.vocab],
        };
        let kept = prompt.len().min(model.config.context);
        backend.run(|| generator.read(model, backend, &prompt[prompt.len() - kept..]));
        Ok(generator)
    }

    /// Logits of the next token, `[vocab]`.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// Appends a token.
    ///
    /// # Panics
    /// The token is outside the vocabulary.
    pub fn push(&mut self, model: &Model<B>, backend: &B, token: u32) {
        backend.run_awake(|| self.append(model, backend, token));
    }

    fn append(&mut self, model: &Model<B>, backend: &B, token: u32) {
        if self.sequence.len() == model.config.context {
            let mut kept = self.sequence.split_off(model.config.context.div_ceil(2));
            kept.push(token);
            self.sequence.clear();
            self.caches.iter_mut().for_each(|cache| backend.forget(cache));
            self.read(model, backend, &kept);
            return;
        }
        self.step.run(model, backend, &mut self.caches, &[token]);
        let (hidden, dim, logits) = (&self.step.hidden, model.config.dim, &mut self.device_logits);
        match &self.head {
            Some(head) => backend.head_logits_int8(hidden, head, logits),
            None => backend.head_logits(hidden, model.floats(model.layout.head), dim, logits),
        }
        model.expect_after(backend, model.layout.embedding);
        backend.download(&self.device_logits, &mut self.logits);
        self.sequence.push(token);
    }

    /// Reads tokens from position 0: all but the last in one pass, the last as a step, which gives logits.
    fn read(&mut self, model: &Model<B>, backend: &B, tokens: &[u32]) {
        let (last, before) = tokens.split_last().expect("prompts hold a token");
        if !before.is_empty() {
            let mut pass = Pass::new(model, backend, before.len());
            pass.run(model, backend, &mut self.caches, before);
            self.sequence.extend_from_slice(before);
        }
        self.append(model, backend, *last);
    }
}

impl<B: Backend> Pass<B> {
    fn new(model: &Model<B>, backend: &B, rows: usize) -> Pass<B> {
        let config = &model.config;
        Pass {
            shape: config.attention(1, rows),
            tokens: backend.tokens(rows),
            x: backend.floats(rows * config.dim),
            out: backend.floats(rows * config.dim),
            block: BlockBuffers::new(backend, config, rows),
            gated: Gated::new(backend, config.precision == Precision::Ternary, rows, config.ffn),
            hidden: backend.floats(rows * config.dim),
            rstd: backend.floats(rows),
        }
    }

    /// The next token of the sequence in `caches`, or the first ones of a new one.
    fn run(&mut self, model: &Model<B>, backend: &B, caches: &mut [B::Cache], tokens: &[u32]) {
        let (config, layout) = (&model.config, &model.layout);
        let shape = self.shape;
        backend.upload_tokens(tokens, &mut self.tokens);
        backend.embed(&self.tokens, model.floats(layout.embedding), config.dim, &mut self.x);
        for (layer, cache) in caches.iter_mut().enumerate() {
            let attend = |qkv: &B::Floats, attended: &mut B::Floats, lse: &mut B::Floats| {
                if shape.time == 1 {
                    backend.attention_decode(qkv, &model.rope, shape, cache, attended);
                } else {
                    backend.remember(qkv, &model.rope, shape, cache);
                    backend.attention(qkv, &model.rope, shape, attended, lse);
                }
            };
            let (block, gated) = (&mut self.block, &mut self.gated);
            model.block_forward(backend, layer, &self.x, block, gated, attend, &mut self.out);
            std::mem::swap(&mut self.x, &mut self.out);
        }
        let gain = model.floats(layout.norm);
        backend.rmsnorm(&self.x, gain, config.norm_eps, &mut self.hidden, &mut self.rstd);
    }
}
