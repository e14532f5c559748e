//! What a run begins with: another model, own or imported, whose weights go on being trained and whose predictions
//! may be the targets.
//!
//! The model of the run has the sizes of the other one. It may be ternary where that one is f32: the f32 weights are
//! its latent weights. It may have sub-norms where that one has none: their gains are then what that model has there,
//! in the root mean square over some text, so that what a norm divides by comes back.

use std::path::Path;

use tritrain_backend::{Backend, Memory, NO_TARGET, Stream, Tally, Values};
use tritrain_data::{
    Corpus,
    chat::{TEMPLATE, TOKENIZER_CONFIG},
};
use tritrain_files::{
    Storage,
    tensors::{self, TensorFile, TensorView},
    tokens::Split,
    write_atomic,
};
use tritrain_model::{Activations, Keep, Layout, Model, ModelConfig, Precision, Relations, TensorKind};

use crate::{Config, Error, Learner, Loaded, Result, load};

/// The model that a run begins with, where `run.from` names one.
///
/// # Errors
/// As [`load`]; [`Error::Content`] where its sizes or its tokenizer are not those of the run.
pub(crate) fn origin(storage: &dyn Storage, config: &Config, tokenizer: &str) -> Result<Option<Loaded>> {
    if config.run.from.is_empty() {
        return Ok(None);
    }
    let loaded = load(storage, Path::new(&config.run.from))?;
    loaded.tokenizer_path()?;
    loaded.without_adapters()?;
    let content =
        |expected: String, found: String| Error::Content { path: loaded.path.clone(), expected, found };
    if loaded.tokenizer.hash() != tokenizer {
        let expected = format!("the tokenizer of the run, {tokenizer}");
        let found = format!("{}; set data.tokenizer to that of the model", loaded.tokenizer.hash());
        return Err(content(expected, found));
    }
    let (ours, theirs) = (&config.model, &loaded.config);
    // What may differ is made the same, and sub-norms may be added. Adapters are for the model as it is.
    let adapts = ours.lora > 0;
    let sub_norm = if theirs.sub_norm || adapts { ours.sub_norm } else { false };
    let precision = if adapts { ours.precision } else { theirs.precision };
    let same = ModelConfig { context: theirs.context, lora: 0, precision, sub_norm, ..ours.clone() };
    if same != *theirs {
        let differ = match adapts {
            true => "a ternary model of the same sizes, for adapters; only the context may differ",
            false => {
                "a model of the same sizes; only context and precision may differ, and sub-norms be added"
            }
        };
        return Err(content(differ.into(), format!("{theirs:?}, and for the run {ours:?}")));
    }
    if ours.context > theirs.context {
        let found = format!("{}, and {} for the run", theirs.context, ours.context);
        return Err(content("a context that is no shorter".into(), found));
    }
    Ok(Some(loaded))
}

/// Pieces of text by which gains are found, and the most tokens in each: all activations of one exist at a time.
const PIECES: (u64, usize) = (4, 256);

/// Gains of the sub-norms that a run with this layout adds to the model it begins with: for attention and the
/// feed-forward part of each block, none where none are added.
///
/// # Errors
/// The corpus cannot be read.
pub(crate) fn gains<B: Backend>(
    backend: &B,
    from: Option<&Loaded>,
    config: &ModelConfig,
    corpus: &Corpus,
) -> Result<Vec<[f32; 2]>> {
    let Some(from) = from.filter(|from| config.sub_norm && !from.config.sub_norm) else {
        return Ok(Vec::new());
    };
    let model = match from.config.precision {
        Precision::F32 => from.model(backend)?,
        Precision::Ternary => from.in_floats(backend)?,
    };
    let time = config.context.min(PIECES.1);
    let pieces = (corpus.len(Split::Train) / time as u64).clamp(1, PIECES.0);
    let mut activations = Activations::new(backend, model.config(), 1, time, Keep::Everything);
    let (mut tokens, mut squares) = (vec![0; time], vec![[0.0; 2]; model.config().layers]);
    for piece in 0..pieces {
        corpus.tokens().read(Split::Train, piece * time as u64, &mut tokens)?;
        model.evaluate(backend, &mut activations, &tokens, &tokens);
        for (squares, rms) in squares.iter_mut().zip(model.inner_rms(backend, &activations)) {
            squares.iter_mut().zip(rms).for_each(|(sum, rms)| *sum += rms * rms);
        }
    }
    Ok(squares.into_iter().map(|squares| squares.map(|sum| (sum / pieces as f32).sqrt())).collect())
}

/// The weights of tensor `id` of `layout`, from another model and the [`gains`] of sub-norms.
pub(crate) fn weights<'a>(from: &'a Loaded, gains: &[[f32; 2]], layout: &Layout, id: usize) -> Values<'a> {
    let spec = &layout.specs[id];
    from.tensor(&spec.name).unwrap_or_else(|| {
        let added =
            layout.blocks.iter().zip(gains).find_map(|(ids, [attention, feed_forward])| match Some(id) {
                id if id == ids.attn_sub_norm => Some(*attention),
                id if id == ids.ffn_sub_norm => Some(*feed_forward),
                _ => None,
            });
        let gain = added.unwrap_or_else(|| unreachable!("{} is in both models", spec.name));
        Values::Floats(vec![gain; spec.len()].into())
    })
}

/// Copies what says how the model chats beside the tokenizer of the run in `dir`.
pub(crate) fn bring_chat(storage: &dyn Storage, from: &Loaded, dir: &Path) -> Result<()> {
    let tokenizer = from.tokenizer_path()?;
    for name in [TEMPLATE, TOKENIZER_CONFIG] {
        let (old, new) = (tokenizer.with_file_name(name), dir.join(name));
        if storage.exists(&old)? && !storage.exists(&new)? {
            write_atomic(storage, &new, &storage.read(&old)?)?;
        }
    }
    Ok(())
}

/// Tokens of which a prediction keeps the probabilities: the most probable ones.
const KEPT: usize = 16;
/// Separates these draws from every other use of a seed.
const TEACHER: u32 = u32::MAX - 1;
/// Folder of kept predictions below that of a run.
const FOLDER: &str = "teacher";

/// A model whose predictions are targets: distillation (Hinton et al. 2015, arXiv:1503.02531) by drawing.
///
/// A target is, with a given probability, a token drawn from the 16 that the teacher holds most probable, by its
/// probabilities. In the mean over draws, the gradient of cross entropy with such targets is that with the
/// probabilities themselves. Predictions depend on the window alone: they are kept on disk, under the hash of teacher
/// and window, and made once.
pub(crate) struct Teacher<B: Backend> {
    model: Model<B>,
    activations: Activations<B>,
    /// Hidden states and logits of some positions.
    part: (B::Floats, B::Floats),
    rows: usize,
    share: f32,
    seed: u64,
    /// Hash of the file.
    name: blake3::Hash,
    /// Where relations are taught: activations of a pass.
    related: Option<Activations<B>>,
}

/// The block whose relations are taught: three quarters up.
fn related(config: &ModelConfig) -> usize {
    (3 * config.layers / 4).min(config.layers - 1)
}

/// Positions whose logits a teacher makes at once: at most 64, a divisor of the context.
fn part(context: usize) -> usize {
    (1..=context.min(64)).rev().find(|rows| context.is_multiple_of(*rows)).unwrap_or(1)
}

/// What the teacher of a run takes, counted.
pub(crate) fn count_teacher(tally: &Tally, config: &ModelConfig, vocab: usize, of: &Config) {
    let context = of.model.context;
    let layout = Layout::new(config, vocab);
    for spec in &layout.specs {
        match layout.ternary && spec.kind == TensorKind::Matrix {
            true => tally.ternary(spec.rows, spec.cols, false),
            false => tally.floats(spec.len()),
        }
    }
    let config = ModelConfig { context, ..config.clone() };
    Activations::<Tally>::new(tally, &config, 1, context, Keep::Nothing);
    tally.floats(part(context) * (config.dim + vocab));
    if of.run.relations > 0.0 {
        let (batch, passes) = (of.run.batch, of.run.passes());
        Activations::<Tally>::new(tally, &config, batch / passes, context, Keep::Nothing);
        tally.floats(batch * context * config.qkv_rows());
    }
}

/// The most probable tokens of each position of a window, `[time][KEPT]` each.
struct Prediction {
    tokens: Vec<u32>,
    probabilities: Vec<f32>,
}

impl<B: Backend> Teacher<B> {
    /// The model `from`, for what it has to teach in a run.
    pub(crate) fn new(
        backend: &B,
        storage: &dyn Storage,
        from: &Loaded,
        of: &Config,
        learner: &mut Learner<B>,
    ) -> Result<Teacher<B>> {
        let context = of.model.context;
        let config = ModelConfig { context, ..from.config.clone() };
        let rows = part(context);
        let related = (of.run.relations > 0.0).then(|| {
            learner.relate(backend, related(&config), of.run.relations);
            Activations::new(backend, &config, of.run.batch / of.run.passes(), context, Keep::Nothing)
        });
        Ok(Teacher {
            model: from.model(backend)?,
            activations: Activations::new(backend, &config, 1, context, Keep::Nothing),
            part: (backend.floats(rows * config.dim), backend.floats(rows * from.vocab)),
            rows,
            share: of.run.teach,
            seed: of.run.seed,
            related,
            name: storage.map(&from.path)?.hash(),
        })
    }

    /// Writes the queries, keys and values that a step on `inputs` `[batch][context]` has to relate as it does.
    pub(crate) fn relate(&mut self, backend: &B, inputs: &[u32], relations: &mut Relations<B>) {
        let Some(activations) = &mut self.related else { return };
        let layer = related(self.model.config());
        for (pass, inputs) in inputs.chunks_exact(activations.tokens()).enumerate() {
            self.model.projections(backend, activations, inputs, layer, relations.of_pass(pass));
        }
    }

    /// Replaces targets of step `step`, `[batch][context]`; predictions are kept in the run's folder `dir`.
    pub(crate) fn teach(
        &mut self,
        backend: &B,
        (storage, dir): (&dyn Storage, &Path),
        step: u64,
        inputs: &[u32],
        targets: &mut [u32],
    ) -> Result<()> {
        if self.share == 0.0 {
            return Ok(());
        }
        let draws = Stream::new(self.seed, TEACHER, step);
        let time = self.activations.tokens();
        for (window, (inputs, targets)) in
            inputs.chunks_exact(time).zip(targets.chunks_exact_mut(time)).enumerate()
        {
            let prediction = self.prediction(backend, storage, dir, inputs)?;
            for (at, target) in targets.iter_mut().enumerate() {
                let number = 2 * (window * time + at) as u64;
                if *target != NO_TARGET && draws.uniform(number) < self.share {
                    let of = at * KEPT..(at + 1) * KEPT;
                    let (tokens, p) = (&prediction.tokens[of.clone()], &prediction.probabilities[of]);
                    *target = drawn(tokens, p, draws.uniform(number + 1));
                }
            }
        }
        Ok(())
    }

    /// The prediction for a window, from disk where it is there.
    fn prediction(
        &mut self,
        backend: &B,
        storage: &dyn Storage,
        dir: &Path,
        inputs: &[u32],
    ) -> Result<Prediction> {
        let mut hash = blake3::Hasher::new();
        hash.update(self.name.as_bytes());
        for token in inputs {
            hash.update(&token.to_le_bytes());
        }
        let dir = dir.join(FOLDER);
        let path = dir.join(format!("{}.safetensors", &hash.finalize().to_hex()[..32]));
        let shape = [inputs.len(), KEPT];
        if storage.exists(&path)? {
            let file = TensorFile::parse(&path, storage.map(&path)?)?;
            let (tokens, probabilities) = (file.u32("tokens", &shape)?, file.f32("probabilities", &shape)?);
            if let Some(token) = tokens.iter().find(|token| **token as usize >= self.model.vocab()) {
                let (expected, found) = ("tokens of the vocabulary".into(), token.to_string());
                return Err(Error::Content { path, expected, found });
            }
            return Ok(Prediction { tokens, probabilities });
        }
        let mut made = Prediction { tokens: Vec::new(), probabilities: Vec::new() };
        let Teacher { model, activations, part: (hidden, logits), rows, .. } = self;
        let vocab = model.vocab();
        model.logits_in_parts(backend, activations, inputs, (hidden, logits), *rows, |logits| {
            for logits in logits.chunks_exact(vocab) {
                let (tokens, probabilities) = most_probable(logits);
                made.tokens.extend_from_slice(&tokens);
                made.probabilities.extend_from_slice(&probabilities);
            }
        });
        storage.create_dir_all(&dir)?;
        let views = [
            TensorView::u32("tokens", &shape, &made.tokens),
            TensorView::f32("probabilities", &shape, &made.probabilities),
        ];
        tensors::save(storage, &path, views, &Default::default())?;
        Ok(made)
    }
}

/// The most probable tokens and their probabilities; the smaller token of equals. Of a smaller vocabulary the first
/// token fills up, with probability 0.
fn most_probable(logits: &[f32]) -> ([u32; KEPT], [f32; KEPT]) {
    let mut order: Vec<(f32, u32)> = logits.iter().copied().zip(0..).collect();
    let by_logit = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
    if order.len() > KEPT {
        order.select_nth_unstable_by(KEPT - 1, by_logit);
        order.truncate(KEPT);
    }
    order.sort_unstable_by(by_logit);
    let most = order.first().map_or(0.0, |(logit, _)| *logit);
    let total: f64 = logits.iter().map(|logit| f64::from(logit - most).exp()).sum();
    let (mut tokens, mut probabilities) = ([0; KEPT], [0.0; KEPT]);
    for (at, (logit, token)) in order.into_iter().enumerate() {
        tokens[at] = token;
        probabilities[at] = (f64::from(logit - most).exp() / total) as f32;
    }
    (tokens, probabilities)
}

/// The token at `uniform` of the sum of probabilities.
fn drawn(tokens: &[u32], probabilities: &[f32], uniform: f32) -> u32 {
    let mut left = uniform * probabilities.iter().sum::<f32>();
    for (token, p) in tokens.iter().zip(probabilities) {
        left -= p;
        if left < 0.0 {
            return *token;
        }
    }
    tokens.first().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_have_the_probabilities_of_the_teacher() {
        // Twenty tokens, of which token n has a logit of (7n mod 20)/4.
        let logits: Vec<f32> = (0..20).map(|n| (7 * n % 20) as f32 / 4.0).collect();
        let (tokens, probabilities) = most_probable(&logits);
        let total: f64 = logits.iter().map(|logit| f64::from(*logit).exp()).sum();
        let mut expected: Vec<(u32, f64)> =
            (0..20u32).map(|n| (n, f64::from(logits[n as usize]).exp() / total)).collect();
        expected.sort_by(|a, b| b.1.total_cmp(&a.1));
        for (at, (token, p)) in expected.iter().take(KEPT).enumerate() {
            assert!(tokens[at] == *token && (f64::from(probabilities[at]) - p).abs() < 1e-6);
        }
        let kept: f64 = expected.iter().take(KEPT).map(|(_, p)| p).sum();
        let (stream, n) = (Stream::new(1, TEACHER, 0), 40_000);
        let mut counts = [0.0; 20];
        for index in 0..n {
            counts[drawn(&tokens, &probabilities, stream.uniform(index)) as usize] += 1.0 / n as f64;
        }
        for (at, (token, p)) in expected.iter().enumerate() {
            let share = if at < KEPT { p / kept } else { 0.0 };
            assert!(
                (counts[*token as usize] - share).abs() < 0.008,
                "{token}: {} of {share}",
                counts[*token as usize]
            );
        }
    }

    #[test]
    fn small_vocabularies_are_filled_up() {
        let (tokens, probabilities) = most_probable(&[0.0, 1.0]);
        assert_eq!((tokens[0], tokens[1], probabilities[2]), (1, 0, 0.0));
        assert_eq!(drawn(&tokens, &probabilities, 0.999_999_9), 0);
    }
}
