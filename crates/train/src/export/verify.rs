//! Whether an exported model is the model: every weight as its format rounds it, and logits on real text.

use std::path::Path;

use serde::Serialize;
use tritrain_backend::Backend;
use tritrain_data::Source;
use tritrain_files::{
    Storage,
    gguf::GgufFile,
    tokens::{Split, TokenCorpus},
};
use tritrain_model::{Activations, Keep, Model};
use tritrain_trit::blocks::{self, Block};

use super::{
    gguf,
    hf::Folder,
    weights::{Piece, Rows, Weights, pieces},
};
use crate::{Error, Loaded, Result};

/// Tokens of text on which logits are compared.
pub const TEXT_TOKENS: usize = 1024;
/// Mean divergence from which on rounding of a format is no rounding any more, in nats.
const MOST_DIVERGENCE: f64 = 0.01;

/// What a comparison found. Losses are nats per token of the text, with the output head in f32.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verified {
    /// Tensors, each of which is that of the model, as its format rounds it.
    pub tensors: usize,
    /// How many of them lost something by that.
    pub rounded: usize,
    /// Tokens of text.
    pub tokens: usize,
    /// Largest difference between two logits.
    pub largest_difference: f64,
    /// Mean Kullback-Leibler divergence of the exported model's predictions from the model's, in nats.
    pub divergence: f64,
    /// Share of tokens for which both think another token the most probable.
    pub other_first: f64,
    /// Loss of the model.
    pub loss: f64,
    /// Loss of the exported model.
    pub exported_loss: f64,
    /// Loss of the exported model where activations are not rounded to int8, as in llama.cpp with F32 or F16.
    pub loss_in_floats: f64,
}

/// Reads an exported file or folder and compares it with the model it was made of: metadata, tokenizer, every
/// weight, and logits on `tokens`, of which each context is a text of its own.
///
/// # Errors
/// [`Error::Differs`] with the first thing that is not as it should be; files that cannot be read.
pub fn verify<B: Backend>(
    backend: &B,
    storage: &dyn Storage,
    loaded: &Loaded,
    exported: &Path,
    tokens: &[u32],
) -> Result<Verified> {
    verify_weights(backend, storage, loaded, &Weights::of(backend, loaded)?, exported, tokens)
}

/// A file or a folder.
enum Exported {
    Gguf(Box<GgufFile>),
    Hf(Folder),
}

pub(super) fn verify_weights<B: Backend>(
    backend: &B,
    storage: &dyn Storage,
    loaded: &Loaded,
    weights: &Weights,
    path: &Path,
    tokens: &[u32],
) -> Result<Verified> {
    let exported = match storage.exists(&path.join("config.json"))? {
        true => Exported::Hf(Folder::open(storage, path, loaded, weights)?),
        false => {
            let file = GgufFile::open(storage, path)?;
            gguf::compare_metadata(storage, &file, loaded, weights)?;
            Exported::Gguf(Box::new(file))
        }
    };
    let (copy, tensors, rounded) = compare(&exported, weights, path)?;
    let ours = loaded.model(backend)?;
    let mut sums = Sums::default();
    {
        let theirs = copy.model(backend);
        for text in tokens.chunks(weights.config.context) {
            let [ours, theirs] = [&ours, &theirs].map(|model| logits(backend, model, text));
            sums.add(text, &ours, &theirs, weights.vocab);
        }
    }
    let in_floats = copy.in_floats(backend);
    for text in tokens.chunks(weights.config.context) {
        sums.in_floats += losses(text, &logits(backend, &in_floats, text), weights.vocab);
    }
    let verified = sums.means(tensors, rounded);
    let differs = |what: &str, expected: String, found: f64| {
        Err(Error::Differs {
            path: path.to_path_buf(),
            what: what.into(),
            expected,
            found: found.to_string(),
        })
    };
    if rounded == 0 && verified.largest_difference != 0.0 {
        return differs("a logit", "the same bits, as all weights have".into(), verified.largest_difference);
    }
    // Not a number is no small divergence either.
    if verified.divergence.is_nan() || verified.divergence > MOST_DIVERGENCE {
        return differs("divergence", format!("at most {MOST_DIVERGENCE} nats"), verified.divergence);
    }
    Ok(verified)
}

/// The exported weights in our layout, the number of tensors, and how many of them were rounded.
fn compare(exported: &Exported, weights: &Weights, path: &Path) -> Result<(Weights, usize, usize)> {
    let mut copy = weights.clone();
    let pieces = pieces(&weights.config, &weights.layout);
    let mut rounded = 0;
    for piece in &pieces {
        let (name, (found, block)) = match exported {
            Exported::Gguf(file) => (&piece.gguf, gguf::read(file, &weights.config, piece)?),
            Exported::Hf(folder) => (&piece.hf, folder.read(path, piece)?),
        };
        let expected = weights.rows(piece);
        rounded += usize::from(!same(&expected, &found, block).map_err(|(expected, found)| {
            Error::Differs { path: path.to_path_buf(), what: name.clone(), expected, found }
        })?);
        put(&mut copy.tensors[piece.tensor], piece, found);
    }
    Ok((copy, pieces.len(), rounded))
}

/// Whether rows are equal, and not only as `block` rounds them; or the first that differ.
fn same(expected: &Rows, found: &Rows, block: Block) -> Result<bool, (String, String)> {
    let first = |at: usize, expected: String, found: String| {
        Err((format!("{expected} at {at}"), format!("{found} ({})", block.name())))
    };
    if let (Rows::Codes(codes, scale), Rows::Codes(others, other)) = (expected, found) {
        // Of codes that are all zero no scale says anything.
        if scale != other && codes.iter().any(|code| *code != 0) {
            return Err((format!("scale {scale}"), other.to_string()));
        }
        return match codes.iter().zip(others).position(|(a, b)| a != b) {
            Some(at) => first(at, codes[at].to_string(), others[at].to_string()),
            None => Ok(true),
        };
    }
    let (expected, found) = (expected.floats(), found.floats());
    let mut rounded = vec![0.0; expected.len()];
    let mut bytes = vec![0; block.len(expected.len()).unwrap_or_default()];
    let coded = blocks::encode(block, &expected, &mut bytes);
    coded
        .and_then(|()| blocks::decode(block, &bytes, &mut rounded))
        .map_err(|error| ("floats".to_owned(), error.to_string()))?;
    match rounded.iter().zip(&found).position(|(a, b)| a.to_bits() != b.to_bits()) {
        Some(at) => first(at, rounded[at].to_string(), found[at].to_string()),
        None => Ok(expected == rounded),
    }
}

/// Puts rows, which were compared, into their tensor. Floats of a ternary matrix are codes times its scale.
fn put(tensor: &mut Rows, piece: &Piece, rows: Rows) {
    let range = piece.rows.start * piece.cols..piece.rows.end * piece.cols;
    match (tensor, rows) {
        (Rows::Floats(to), Rows::Floats(from)) => to[range].copy_from_slice(&from),
        (Rows::Codes(to, _), Rows::Codes(from, _)) => to[range].copy_from_slice(&from),
        (Rows::Codes(to, _), Rows::Floats(from)) => {
            let code = |w: &f32| i8::from(*w > 0.0) - i8::from(*w < 0.0);
            to[range].iter_mut().zip(&from).for_each(|(to, from)| *to = code(from));
        }
        (Rows::Floats(to), Rows::Codes(..)) => to[range].fill(f32::NAN), // cannot be: they were compared
    }
}

/// Logits of a text, `[tokens][vocab]`; the text is no longer than the context.
pub fn logits<B: Backend>(backend: &B, model: &Model<B>, text: &[u32]) -> Vec<f32> {
    let mut activations = Activations::new(backend, model.config(), 1, text.len(), Keep::Nothing);
    let mut on_device = backend.floats(text.len() * model.vocab());
    model.logits(backend, &mut activations, text, &mut on_device);
    backend.host(&on_device).into_owned()
}

#[derive(Default)]
struct Sums {
    tokens: usize,
    predicted: usize,
    largest: f64,
    divergence: f64,
    other_first: usize,
    loss: f64,
    exported: f64,
    in_floats: f64,
}

impl Sums {
    fn add(&mut self, text: &[u32], ours: &[f32], theirs: &[f32], vocab: usize) {
        self.tokens += text.len();
        self.predicted += text.len().saturating_sub(1);
        self.loss += losses(text, ours, vocab);
        self.exported += losses(text, theirs, vocab);
        for (a, b) in ours.chunks_exact(vocab).zip(theirs.chunks_exact(vocab)) {
            let pairs = || a.iter().zip(b).map(|(a, b)| (f64::from(*a), f64::from(*b)));
            // A difference that is not a number must not be lost in a maximum.
            let largest = pairs().map(|(a, b)| (a - b).abs());
            self.largest = largest.fold(self.largest, |m, d| if d > m || d.is_nan() { d } else { m });
            let (log_a, log_b) = (log_sum(a), log_sum(b));
            let divergence = pairs().map(|(a, b)| (a - log_a).exp() * ((a - log_a) - (b - log_b)));
            self.divergence += divergence.sum::<f64>();
            self.other_first += usize::from(first(a) != first(b));
        }
    }

    fn means(&self, tensors: usize, rounded: usize) -> Verified {
        let per_token = |sum: f64| sum / self.tokens.max(1) as f64;
        let per_prediction = |sum: f64| sum / self.predicted.max(1) as f64;
        Verified {
            tensors,
            rounded,
            tokens: self.tokens,
            largest_difference: self.largest,
            divergence: per_token(self.divergence),
            other_first: per_token(self.other_first as f64),
            loss: per_prediction(self.loss),
            exported_loss: per_prediction(self.exported),
            loss_in_floats: per_prediction(self.in_floats),
        }
    }
}

/// Sum over a text of what its tokens, but for the first, are improbable.
fn losses(text: &[u32], logits: &[f32], vocab: usize) -> f64 {
    let next = text.iter().skip(1).zip(logits.chunks_exact(vocab));
    next.map(|(token, row)| log_sum(row) - row.get(*token as usize).map_or(f64::NAN, |x| f64::from(*x))).sum()
}

fn log_sum(row: &[f32]) -> f64 {
    let most = row.iter().fold(f32::NEG_INFINITY, |m, x| m.max(*x));
    f64::from(most) + row.iter().map(|x| f64::from(*x - most).exp()).sum::<f64>().ln()
}

fn first(row: &[f32]) -> usize {
    let higher = |best: usize, at: usize| if row[at] > row[best] { at } else { best };
    (1..row.len()).fold(0, higher)
}

/// Validation text of the run that a model belongs to: contexts spread evenly over it, [`TEXT_TOKENS`] tokens
/// together where there are as many. `None` where the model lies beside no run with such text.
///
/// # Errors
/// A damaged corpus.
pub fn text_of_run(storage: &dyn Storage, loaded: &Loaded) -> Result<Option<Vec<u32>>> {
    for folder in loaded.path.ancestors().skip(1).take(3) {
        let folder = folder.join("tokens");
        if !storage.exists(&folder.join("documents.bin"))? {
            continue;
        }
        let corpus = TokenCorpus::open(storage, &folder)?;
        let (all, context) = (corpus.len(Split::Validation), loaded.config.context.min(TEXT_TOKENS));
        if corpus.manifest().vocab as usize != loaded.vocab || all < context as u64 {
            return Ok(None);
        }
        let count = TEXT_TOKENS.div_ceil(context);
        let mut tokens = vec![0; count * context];
        for (n, window) in tokens.chunks_exact_mut(context).enumerate() {
            let last = all - context as u64;
            corpus.read(Split::Validation, last * n as u64 / count as u64, window)?;
        }
        return Ok(Some(tokens));
    }
    Ok(None)
}

/// The first [`TEXT_TOKENS`] tokens of a text, each document behind an end of text.
///
/// # Errors
/// Text that cannot be read, or holds nothing.
pub fn tokens_of(loaded: &Loaded, source: &Source) -> Result<Vec<u32>> {
    let mut tokens = Vec::new();
    let mut documents = source.open()?;
    while let Some(document) = documents.next().transpose()? {
        tokens.push(loaded.tokenizer.eos());
        tokens.extend(loaded.tokenizer.encode(&document.text)?);
        if tokens.len() >= TEXT_TOKENS {
            break;
        }
    }
    tokens.truncate(TEXT_TOKENS);
    Ok(tokens)
}
