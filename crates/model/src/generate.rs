//! Generation: sequences, one token at a time, with cached keys and values.

use tritrain_backend::{Backend, Shape};

use crate::{Keep, Model, Precision, activations::BlockBuffers, linear::Gated};

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
    /// The residual stream.
    x: B::Floats,
    block: BlockBuffers<B>,
    gated: Gated<B>,
}

/// Sequences being continued together: each token of all of them costs one pass over the weights.
///
/// The caches hold up to `model.context` positions of a sequence. When they are full, the later half of the sequence
/// is read again from position 0 and the earlier half forgotten.
pub struct Generator<B: Backend> {
    /// Keys and values, `[layers][sequences]`.
    caches: Vec<Vec<B::Cache>>,
    /// The head as int8 rows, in a ternary model that has none: a quarter of the bytes to read for every token.
    head: Option<B::Rows>,
    step: Pass<B>,
    /// Hidden states of the newest tokens, and their reciprocal root mean squares.
    hidden: B::Floats,
    rstd: B::Floats,
    sequences: Vec<Vec<u32>>,
    device_logits: B::Floats,
    logits: Vec<f32>,
}

impl<B: Backend> Generator<B> {
    /// Reads `prompt`.
    ///
    /// # Errors
    /// The prompt is empty or holds a token outside the vocabulary.
    pub fn new(model: &Model<B>, backend: &B, prompt: &[u32]) -> Result<Generator<B>, PromptError> {
        Generator::of_all(model, backend, &[prompt])
    }

    /// Reads several prompts, each a sequence of its own.
    ///
    /// # Errors
    /// As [`Generator::new`], of any of them.
    pub fn of_all(model: &Model<B>, backend: &B, prompts: &[&[u32]]) -> Result<Generator<B>, PromptError> {
        for prompt in prompts {
            if prompt.is_empty() {
                return Err(PromptError::Empty);
            }
            for (position, &found) in prompt.iter().enumerate() {
                if found as usize >= model.vocab {
                    return Err(PromptError::Token { found, position, vocab: model.vocab });
                }
            }
        }
        let ternary = model.config.precision == Precision::Ternary;
        let head = (ternary && model.head_rows.is_none()).then(|| {
            let mut rows = backend.rows(model.vocab, model.config.dim);
            backend.quantize_rows(model.floats(model.layout.head), &mut rows);
            rows
        });
        let count = prompts.len();
        let caches = (0..model.config.layers).map(|_| (0..count).map(|_| backend.cache()).collect());
        let mut generator = Generator {
            caches: caches.collect(),
            head,
            step: Pass::new(model, backend, (count, 1)),
            hidden: backend.floats(count * model.config.dim),
            rstd: backend.floats(count),
            sequences: vec![Vec::new(); count],
            device_logits: backend.floats(count * model.vocab),
            logits: vec![0.0; count * model.vocab],
        };
        let kept = |prompt: &'_ &[u32]| prompt.len() - prompt.len().min(model.config.context);
        backend.run(|| {
            let mut last = Vec::new();
            for (sequence, prompt) in prompts.iter().enumerate() {
                let tokens = &prompt[kept(prompt)..];
                let (newest, before) = tokens.split_last().expect("prompts hold a token");
                generator.read(model, backend, sequence, before);
                last.push(*newest);
            }
            generator.append(model, backend, &last);
        });
        Ok(generator)
    }

    /// Logits of the next token of each sequence, `[sequences][vocab]`.
    pub fn logits(&self) -> &[f32] {
        &self.logits
    }

    /// Appends a token to the one sequence.
    ///
    /// # Panics
    /// As [`Generator::push_all`].
    pub fn push(&mut self, model: &Model<B>, backend: &B, token: u32) {
        self.push_all(model, backend, &[token]);
    }

    /// Appends a token to each sequence.
    ///
    /// # Panics
    /// A token is outside the vocabulary, or there are not as many as sequences.
    pub fn push_all(&mut self, model: &Model<B>, backend: &B, tokens: &[u32]) {
        backend.run_awake(|| self.append(model, backend, tokens));
    }

    /// Ends the sequences for which `kept`, asked once for each in order, says no; the others move up.
    pub fn retain(&mut self, model: &Model<B>, backend: &B, mut kept: impl FnMut(usize) -> bool) {
        let before = self.sequences.len();
        let kept: Vec<bool> = (0..before).map(&mut kept).collect();
        let count = kept.iter().filter(|kept| **kept).count();
        if count == before {
            return;
        }
        for caches in &mut self.caches {
            let mut kept = kept.iter();
            caches.retain(|_| kept.next().is_some_and(|kept| *kept));
        }
        let mut each = kept.iter();
        self.sequences.retain(|_| each.next().is_some_and(|kept| *kept));
        let rows = self.logits.chunks_exact(model.vocab).zip(&kept).filter(|(_, kept)| **kept);
        self.logits = rows.flat_map(|(row, _)| row).copied().collect();
        self.step = Pass::new(model, backend, (count, 1));
        self.hidden = backend.floats(count * model.config.dim);
        self.rstd = backend.floats(count);
        self.device_logits = backend.floats(count * model.vocab);
    }

    fn append(&mut self, model: &Model<B>, backend: &B, tokens: &[u32]) {
        assert_eq!(tokens.len(), self.sequences.len(), "a token for each sequence");
        if tokens.is_empty() {
            return;
        }
        for sequence in 0..tokens.len() {
            if self.sequences[sequence].len() == model.config.context {
                let kept = self.sequences[sequence].split_off(model.config.context.div_ceil(2));
                self.sequences[sequence].clear();
                self.caches.iter_mut().for_each(|caches| backend.forget(&mut caches[sequence]));
                self.read(model, backend, sequence, &kept);
            }
        }
        self.step.run(model, backend, &mut self.caches, 0, tokens);
        model.last_norm(backend, &self.step.x, &mut self.hidden, &mut self.rstd);
        let (hidden, dim, logits) = (&self.hidden, model.config.dim, &mut self.device_logits);
        match model.head_rows.as_ref().or(self.head.as_ref()) {
            Some(head) => backend.head_logits_int8(hidden, head, logits),
            None => backend.head_logits(hidden, model.floats(model.layout.head), dim, logits),
        }
        model.expect_after(backend, model.layout.embedding);
        backend.download(&self.device_logits, &mut self.logits);
        self.sequences.iter_mut().zip(tokens).for_each(|(sequence, token)| sequence.push(*token));
    }

    /// Reads tokens of an empty sequence in one pass.
    fn read(&mut self, model: &Model<B>, backend: &B, sequence: usize, tokens: &[u32]) {
        if !tokens.is_empty() {
            let mut pass = Pass::new(model, backend, (1, tokens.len()));
            pass.run(model, backend, &mut self.caches, sequence, tokens);
            self.sequences[sequence].extend_from_slice(tokens);
        }
    }
}

impl<B: Backend> Pass<B> {
    /// For `time` new tokens of each of `batch` sequences.
    fn new(model: &Model<B>, backend: &B, (batch, time): (usize, usize)) -> Pass<B> {
        let (config, rows) = (&model.config, batch * time);
        Pass {
            shape: config.attention(batch, time),
            tokens: backend.tokens(rows),
            x: backend.floats(rows * config.dim),
            block: BlockBuffers::new(backend, config, rows, Keep::Nothing),
            gated: Gated::new(backend, config.precision == Precision::Ternary, rows, config.ffn),
        }
    }

    /// The next token of each sequence in `caches` from `first` on, or the first ones of a new one.
    fn run(
        &mut self,
        model: &Model<B>,
        backend: &B,
        caches: &mut [Vec<B::Cache>],
        first: usize,
        tokens: &[u32],
    ) {
        let shape = self.shape;
        model.embed(backend, tokens, &mut self.tokens, &mut self.x);
        for (layer, caches) in caches.iter_mut().enumerate() {
            let caches = &mut caches[first..first + shape.batch];
            let attend = |qkv: &B::Floats, attended: &mut B::Floats, lse: &mut B::Floats| {
                if shape.time == 1 {
                    backend.attention_decode(qkv, &model.rope, shape, caches, attended);
                } else {
                    backend.remember(qkv, &model.rope, shape, &mut caches[0]);
                    backend.attention(qkv, &model.rope, shape, attended, lse);
                }
            };
            let (block, gated) = (&mut self.block, &mut self.gated);
            model.block_activations(backend, layer, &self.x, block, gated, attend);
            model.block_output(backend, layer, block, &mut self.x);
        }
    }
}
