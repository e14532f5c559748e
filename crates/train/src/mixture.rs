//! Experts mixed by the text so far.
//!
//! The probability of the next token is the sum over experts of `w_k · p_k`, where `w` is the softmax of
//! `-distance² / temperature`, from the vector of the text so far to the centroids of the experts' clusters
//! (Gururangan et al., arXiv 2303.14177, section 2.3). Losses of a mixture come from the losses of its
//! experts: `-ln Σ exp(ln w_k - loss_k)`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tritrain_backend::Backend;
use tritrain_data::{Corpus, Split, Tokenizer, clusters::Clusters, embed::Scratch};
use tritrain_files::{Storage, write_atomic};
use tritrain_model::{Activations, Generator, Keep, Model};

use crate::{CLUSTERS, Error, Loaded, Next, Part, Predict, Result, load, part::SHARED};

/// The file that names the parts of a mixture, in the run directory.
const MIXTURE: &str = "mixture.json";
/// The newest format that is read, and the one that is written.
const FORMAT: u32 = 1;

/// Tokens between two looks at the text so far.
const EVERY: usize = 8;
/// Tokens of a document without which its text says nothing: until then experts weigh what they were trained on.
const LEAST: usize = 8;

/// How experts are mixed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mixing {
    /// Divides squared distances: the smaller, the more the nearest expert counts. Above 0.
    pub temperature: f64,
    /// The experts that count, the nearest first; 0 for all.
    pub nearest: usize,
}

impl Default for Mixing {
    fn default() -> Self {
        Mixing { temperature: 0.1, nearest: 0 }
    }
}

/// `mixture.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Recipe {
    format: u32,
    clusters: String,
    shared: String,
    experts: Vec<Expert>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expert {
    folder: String,
    /// Of its cluster.
    name: String,
    /// Of the training tokens.
    share: f64,
}

/// A mixture read from disk.
#[derive(Debug)]
pub struct Mixture {
    /// The shared start.
    pub shared: Loaded,
    /// The experts, by cluster.
    pub experts: Vec<Loaded>,
    /// Names of their clusters.
    pub names: Vec<String>,
    shares: Vec<f64>,
    clusters: PathBuf,
}

impl Mixture {
    /// Writes `mixture.json` into the run directory `dir`, whose parts are all trained.
    ///
    /// # Errors
    /// [`Error::Files`].
    pub fn save(
        storage: &dyn Storage,
        dir: &Path,
        parts: &[Part],
        names: &[String],
        corpus: &Corpus,
    ) -> Result<()> {
        let totals = corpus.labels().map(|labels| labels.totals(Split::Train)).unwrap_or_default();
        let all = totals.iter().sum::<u64>().max(1) as f64;
        let of = parts.iter().filter(|part| part.cluster.is_some()).zip(names).zip(totals);
        let experts = of.map(|((part, name), tokens)| Expert {
            folder: part.name.clone(),
            name: name.clone(),
            share: tokens as f64 / all,
        });
        let recipe = Recipe {
            format: FORMAT,
            clusters: CLUSTERS.into(),
            shared: SHARED.into(),
            experts: experts.collect(),
        };
        let text = serde_json::to_string_pretty(&recipe).unwrap_or_default();
        Ok(write_atomic(storage, &dir.join(MIXTURE), text.as_bytes())?)
    }

    /// Reads the mixture of a run directory; `None` where there is none.
    ///
    /// # Errors
    /// As [`load`]; experts that do not fit each other.
    pub fn load(storage: &dyn Storage, dir: &Path) -> Result<Option<Mixture>> {
        let path = dir.join(MIXTURE);
        if !dir.is_dir() || !storage.exists(&path)? {
            return Ok(None);
        }
        let content = |expected: &str, found: String| Error::Content {
            path: path.clone(),
            expected: expected.to_owned(),
            found,
        };
        let recipe: Recipe = serde_json::from_slice(&storage.read(&path)?)
            .map_err(|error| content("a mixture of this version", error.to_string()))?;
        if recipe.format != FORMAT || recipe.experts.is_empty() {
            let found = format!("format {} and {} experts", recipe.format, recipe.experts.len());
            return Err(content(&format!("format {FORMAT} and at least one expert"), found));
        }
        let shared = load(storage, &dir.join(&recipe.shared))?;
        let (mut experts, mut names, mut shares) = (Vec::new(), Vec::new(), Vec::new());
        for expert in recipe.experts {
            let loaded = load(storage, &dir.join(&expert.folder))?;
            if loaded.config != shared.config || loaded.tokenizer.hash() != shared.tokenizer.hash() {
                let expected = format!("experts with the model and tokenizer of {}", recipe.shared);
                return Err(content(&expected, format!("another in {}", expert.folder)));
            }
            if !(expert.share >= 0.0 && expert.share <= 1.0) {
                return Err(content("shares from 0 to 1", expert.share.to_string()));
            }
            experts.push(loaded);
            names.push(expert.name);
            shares.push(expert.share);
        }
        Ok(Some(Mixture { shared, experts, names, shares, clusters: dir.join(recipe.clusters) }))
    }

    /// What finds the cluster of a text.
    ///
    /// # Errors
    /// The file is missing or damaged, or has another number of clusters.
    pub fn clusters(&self, storage: &dyn Storage) -> Result<Clusters<'_>> {
        let clusters = Clusters::open(storage, &self.clusters, Some(&self.shared.tokenizer))?;
        if clusters.names().len() != self.experts.len() {
            return Err(Error::Content {
                path: self.clusters.clone(),
                expected: format!("{} clusters, one for each expert", self.experts.len()),
                found: clusters.names().len().to_string(),
            });
        }
        Ok(clusters)
    }

    /// How much each expert counts, with its clusters.
    pub fn weights<'a>(&'a self, clusters: &'a Clusters<'a>, mixing: Mixing) -> Weights<'a> {
        let shares = self.shares.iter().map(|share| share.ln()).collect();
        let scratch = clusters.embedder().scratch();
        Weights { tokenizer: &self.shared.tokenizer, clusters, shares, mixing, scratch }
    }
}

/// How much each expert counts for the next token.
pub struct Weights<'a> {
    tokenizer: &'a Tokenizer,
    clusters: &'a Clusters<'a>,
    /// Logarithms of what experts count without any text.
    shares: Vec<f64>,
    mixing: Mixing,
    scratch: Scratch,
}

impl Weights<'_> {
    /// Whether the weights are made anew behind these tokens: every few tokens, and where a document ends.
    fn due(&self, past: &[u32]) -> bool {
        past.len() % EVERY == 1 || past.last() == Some(&self.tokenizer.eos())
    }

    /// Logarithms of the weights, by expert, from the tokens before the next one and nothing else: the text
    /// behind the last end of text among them.
    ///
    /// # Errors
    /// [`Error::Data`] where the text cannot be embedded.
    pub fn of(&mut self, past: &[u32]) -> Result<Vec<f64>> {
        let start = past.iter().rposition(|token| *token == self.tokenizer.eos()).map_or(0, |at| at + 1);
        let document = past.get(start..).unwrap_or_default();
        let mut scores = self.shares.clone();
        if document.len() >= LEAST {
            let mut vector = vec![0.0; self.clusters.embedder().dim()];
            let text = self.tokenizer.decode(document);
            self.clusters.embedder().embed(&mut self.scratch, &text, &mut vector)?;
            scores = self.clusters.distances(&vector).map(|d| -d / self.mixing.temperature).collect();
        }
        if (1..scores.len()).contains(&self.mixing.nearest) {
            let mut order: Vec<usize> = (0..scores.len()).collect();
            order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
            order.iter().skip(self.mixing.nearest).for_each(|&at| scores[at] = f64::NEG_INFINITY);
        }
        let sum = log_sum_exp(scores.iter().copied());
        Ok(scores.into_iter().map(|score| score - sum).collect())
    }
}

/// `ln Σ eˣ`; minus infinity of nothing.
fn log_sum_exp(values: impl Iterator<Item = f64> + Clone) -> f64 {
    let most = values.clone().fold(f64::NEG_INFINITY, f64::max);
    if most.is_finite() { most + values.map(|x| (x - most).exp()).sum::<f64>().ln() } else { most }
}

/// Index of the largest, the first of equals.
fn largest(values: &[f64]) -> usize {
    let best = (0..values.len()).max_by(|&a, &b| values[a].total_cmp(&values[b]).then(b.cmp(&a)));
    best.unwrap_or_default()
}

/// A mixture on a device.
pub struct Mixed<'a, B: Backend> {
    backend: &'a B,
    experts: Vec<Model<B>>,
    shared: Model<B>,
    weights: Weights<'a>,
}

/// The ways in which [`MixedLosses`] predicts, in order.
pub const WAYS: [&str; 3] = ["mixture", "nearest expert", "shared start"];

impl<'a, B: Backend> Mixed<'a, B> {
    /// Puts all models on the device.
    ///
    /// # Errors
    /// As [`Loaded::model`].
    pub fn new(backend: &'a B, mixture: &Mixture, weights: Weights<'a>) -> Result<Self> {
        let experts = mixture.experts.iter().map(|expert| expert.model(backend)).collect::<Result<_>>()?;
        Ok(Mixed { backend, experts, shared: mixture.shared.model(backend)?, weights })
    }

    /// To be evaluated on batches of so many sequences.
    pub fn losses(&mut self, batch: usize) -> MixedLosses<'_, 'a, B> {
        let config = self.shared.config().clone();
        let activations = Activations::new(self.backend, &config, batch, config.context, Keep::Nothing);
        MixedLosses { mixed: self, activations }
    }

    /// Reads `prompt`, to be continued.
    ///
    /// # Errors
    /// [`Error::Prompt`]; [`Error::Data`] where the text cannot be embedded.
    pub fn continuation(&mut self, prompt: &[u32]) -> Result<MixedContinuation<'_, 'a, B>> {
        let generators = self.experts.iter().map(|model| Generator::new(model, self.backend, prompt));
        let generators = generators.collect::<Result<Vec<_>, _>>()?;
        let log_weights = self.weights.of(prompt)?;
        let logits = vec![0.0; self.shared.vocab()];
        let mut next =
            MixedContinuation { mixed: self, generators, past: prompt.to_vec(), log_weights, logits };
        next.mix();
        Ok(next)
    }
}

/// A mixture being evaluated, in the ways [`WAYS`].
pub struct MixedLosses<'m, 'a, B: Backend> {
    mixed: &'m mut Mixed<'a, B>,
    activations: Activations<B>,
}

impl<B: Backend> Predict for MixedLosses<'_, '_, B> {
    fn shape(&self) -> (usize, usize) {
        (self.activations.batch(), self.activations.tokens() / self.activations.batch())
    }

    fn losses(&mut self, inputs: &[u32], targets: &[u32]) -> Result<Vec<Vec<f32>>> {
        let (_, time) = self.shape();
        let Mixed { backend, experts, shared, weights } = &mut *self.mixed;
        let mut of = |model: &Model<B>| {
            let mut losses = vec![0.0; inputs.len()];
            model.evaluate(*backend, &mut self.activations, inputs, targets);
            backend.download(self.activations.losses(), &mut losses);
            losses
        };
        let (by_expert, shared) = (experts.iter().map(&mut of).collect::<Vec<_>>(), of(shared));
        let (mut mixture, mut nearest) = (vec![0.0; inputs.len()], vec![0.0; inputs.len()]);
        for (row, inputs) in inputs.chunks_exact(time).enumerate() {
            let mut log_weights = Vec::new();
            for at in 0..time {
                let past = &inputs[..=at];
                if weights.due(past) {
                    log_weights = weights.of(past)?;
                }
                let token = row * time + at;
                let parts = log_weights.iter().zip(&by_expert);
                let parts = parts.map(|(weight, losses)| weight - f64::from(losses[token]));
                mixture[token] = -log_sum_exp(parts) as f32;
                nearest[token] = by_expert[largest(&log_weights)][token];
            }
        }
        Ok(vec![mixture, nearest, shared])
    }
}

/// A sequence that a mixture continues.
pub struct MixedContinuation<'m, 'a, B: Backend> {
    mixed: &'m mut Mixed<'a, B>,
    generators: Vec<Generator<B>>,
    past: Vec<u32>,
    log_weights: Vec<f64>,
    /// Logarithms of the mixed probabilities, `[vocab]`, and to each the mean logarithm of what softmax divides
    /// by in the experts: so they lie where those of a model lie, and one expert alone has its own.
    logits: Vec<f32>,
}

impl<B: Backend> MixedContinuation<'_, '_, B> {
    fn mix(&mut self) {
        let logits = self.generators.iter().map(Generator::logits).zip(&self.log_weights);
        // Of each expert, what softmax divides by, and its weight.
        let parts: Vec<(&[f32], f64, f64)> = logits
            .map(|(logits, weight)| {
                (logits, log_sum_exp(logits.iter().map(|logit| f64::from(*logit))), *weight)
            })
            .collect();
        let mean: f64 = parts.iter().map(|(_, divisor, weight)| weight.exp() * divisor).sum();
        for (token, mixed) in self.logits.iter_mut().enumerate() {
            let of =
                parts.iter().map(|(logits, divisor, weight)| f64::from(logits[token]) - divisor + weight);
            *mixed = (log_sum_exp(of) + mean) as f32;
        }
    }
}

impl<B: Backend> Next for MixedContinuation<'_, '_, B> {
    fn logits(&self) -> &[f32] {
        &self.logits
    }

    fn push(&mut self, token: u32) -> Result<()> {
        self.past.push(token);
        for (generator, model) in self.generators.iter_mut().zip(&self.mixed.experts) {
            generator.push(model, self.mixed.backend, token);
        }
        if self.mixed.weights.due(&self.past) {
            self.log_weights = self.mixed.weights.of(&self.past)?;
        }
        self.mix();
        Ok(())
    }
}
