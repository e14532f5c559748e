//! Validation: loss, perplexity and bits per byte, in all and per domain.

use std::collections::BTreeMap;

use serde::Serialize;
use tritrain_backend::{Backend, NO_TARGET};
use tritrain_data::{Corpus, Source, Tokenizer, ValidationSet, chat::ChatTemplate, clusters::Clusters};
use tritrain_files::{Storage, tokens::NO_TARGET_MARK};
use tritrain_model::{Activations, Model};

use crate::{Loaded, Result};

/// Cross entropy over a set of windows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Mean loss in nats per token, of conversations over the tokens of their answers.
    pub loss: f64,
    /// `e^loss`.
    pub perplexity: f64,
    /// Mean loss in bits per byte of text, at the split's bytes per token.
    pub bits_per_byte: f64,
    /// Tokens looked at: those that were to be predicted.
    pub tokens: u64,
    /// Whether there are conversations, of which only answers count.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub answers: bool,
    /// The same for every domain with at least one window, in order of name.
    pub domains: Vec<DomainLoss>,
    /// The same for every cluster with at least one window, where the text has clusters.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub clusters: Vec<ClusterLoss>,
}

/// Cross entropy over one cluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ClusterLoss {
    /// Number of the cluster.
    pub cluster: u32,
    /// Mean loss in nats per token.
    pub loss: f64,
    /// Tokens looked at.
    pub tokens: u64,
}

/// Cross entropy over one domain.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DomainLoss {
    /// Name of the domain.
    pub domain: String,
    /// Mean loss in nats per token.
    pub loss: f64,
    /// Mean loss in bits per byte of text.
    pub bits_per_byte: f64,
    /// Tokens looked at.
    pub tokens: u64,
}

#[derive(Clone, Copy, Default)]
struct Sum {
    nats: f64,
    tokens: u64,
    bytes: f64,
}

impl Sum {
    fn mean(self) -> f64 {
        self.nats / self.tokens.max(1) as f64
    }

    fn bits_per_byte(self) -> f64 {
        self.nats / std::f64::consts::LN_2 / self.bytes.max(1.0)
    }
}

impl Evaluation {
    /// Sums over domains; those without tokens are left out.
    fn of<'a>(sums: impl Iterator<Item = (&'a str, Sum)>) -> Evaluation {
        let (mut total, mut domains) = (Sum::default(), Vec::new());
        for (domain, sum) in sums.filter(|(_, sum)| sum.tokens > 0) {
            total.nats += sum.nats;
            total.tokens += sum.tokens;
            total.bytes += sum.bytes;
            domains.push(DomainLoss {
                domain: domain.to_owned(),
                loss: sum.mean(),
                bits_per_byte: sum.bits_per_byte(),
                tokens: sum.tokens,
            });
        }
        domains.sort_by(|a, b| a.domain.cmp(&b.domain));
        Evaluation {
            loss: total.mean(),
            perplexity: total.mean().exp(),
            bits_per_byte: total.bits_per_byte(),
            tokens: total.tokens,
            answers: false,
            domains,
            clusters: Vec::new(),
        }
    }
}

/// Windows of some length that are evaluated at once: four, and fewer of long ones.
pub fn windows_at_once(time: usize) -> usize {
    const MOST: usize = 4;
    (MOST * 512 / time.max(1)).clamp(1, MOST)
}

/// What is evaluated: it predicts every token of a batch, in one or more ways at once.
pub trait Predict {
    /// Sequences of a batch, and tokens of a sequence.
    fn shape(&self) -> (usize, usize);

    /// Losses of every token of a batch, `[batch][time]` for each way, in nats. Those of a token depend on no
    /// token behind it; without a target there is none.
    ///
    /// # Errors
    /// [`Error::Data`](crate::Error::Data) where the text cannot be embedded.
    fn losses(&mut self, inputs: &[u32], targets: &[u32]) -> Result<Vec<Vec<f32>>>;
}

/// One model.
pub struct Single<'a, B: Backend> {
    backend: &'a B,
    model: &'a Model<B>,
    activations: &'a mut Activations<B>,
}

impl<'a, B: Backend> Single<'a, B> {
    /// With activations of the size of a batch.
    pub fn new(backend: &'a B, model: &'a Model<B>, activations: &'a mut Activations<B>) -> Self {
        Single { backend, model, activations }
    }
}

impl<B: Backend> Predict for Single<'_, B> {
    fn shape(&self) -> (usize, usize) {
        (self.activations.batch(), self.activations.tokens() / self.activations.batch())
    }

    fn losses(&mut self, inputs: &[u32], targets: &[u32]) -> Result<Vec<Vec<f32>>> {
        let mut losses = vec![0.0; inputs.len()];
        self.model.evaluate(self.backend, self.activations, inputs, targets);
        self.backend.download(self.activations.losses(), &mut losses);
        Ok(vec![losses])
    }
}

/// The evaluation of what predicts in one way.
pub(crate) fn only(evaluations: Vec<Evaluation>) -> Evaluation {
    let one = evaluations.into_iter().next();
    one.unwrap_or_else(|| Evaluation::of(std::iter::empty()))
}

/// Sums by domain and cluster of one way to predict.
#[derive(Clone, Default)]
struct Sums {
    domains: Vec<Sum>,
    clusters: BTreeMap<u32, Sum>,
}

impl Sums {
    /// Adds nats, tokens and bytes.
    fn add(&mut self, (domain, cluster): (usize, Option<u32>), part: Sum) {
        if self.domains.len() <= domain {
            self.domains.resize(domain + 1, Sum::default());
        }
        let cluster = cluster.map(|cluster| self.clusters.entry(cluster).or_default());
        for sum in [self.domains.get_mut(domain), cluster].into_iter().flatten() {
            sum.nats += part.nats;
            sum.tokens += part.tokens;
            sum.bytes += part.bytes;
        }
    }
}

/// Evaluates on every window of `set`: an evaluation for each way to predict.
///
/// # Errors
/// The token shards cannot be read; those of [`Predict::losses`].
pub fn evaluate(of: &mut impl Predict, corpus: &Corpus, set: &ValidationSet) -> Result<Vec<Evaluation>> {
    let (batch, time) = of.shape();
    let (mut inputs, mut targets) = (vec![0; batch * time], vec![0; batch * time]);
    let mut ways: Vec<Sums> = Vec::new();
    for first in (0..set.len()).step_by(batch) {
        // The last batch may be short: the rows left over keep their old tokens and are not counted.
        let count = batch.min(set.len() - first);
        for row in 0..count {
            let part = row * time..(row + 1) * time;
            set.read(corpus, first + row, &mut inputs[part.clone()], &mut targets[part])?;
        }
        let losses = of.losses(&inputs, &targets)?;
        ways.resize(losses.len(), Sums::default());
        for (sums, losses) in ways.iter_mut().zip(&losses) {
            let rows = losses.chunks_exact(time).zip(targets.chunks_exact(time));
            for (row, (losses, targets)) in rows.enumerate().take(count) {
                let (nats, tokens) = measured(losses, targets);
                let place = (set.domain(first + row).unwrap_or_default(), set.cluster(corpus, first + row));
                sums.add(place, Sum { nats, tokens, bytes: 0.0 });
            }
        }
    }
    let evaluations = ways.into_iter().map(|Sums { domains, clusters }| {
        // Windows are a sample of a domain: their bytes follow from its bytes per token.
        let named = set.domains().iter().zip(domains).map(|(domain, sum)| {
            let bytes = sum.tokens as f64 * domain.bytes_per_token();
            (domain.name.as_str(), Sum { bytes, ..sum })
        });
        let answers = corpus.tokens().is_marked();
        Evaluation { clusters: by_cluster(clusters), answers, ..Evaluation::of(named) }
    });
    Ok(evaluations.collect())
}

/// Sum of the losses where there is a target, and how many there are.
pub(crate) fn measured(losses: &[f32], targets: &[u32]) -> (f64, u64) {
    let counted = losses.iter().zip(targets).filter(|(_, target)| **target != NO_TARGET);
    counted.fold((0.0, 0), |(nats, tokens), (loss, _)| (nats + f64::from(*loss), tokens + 1))
}

fn by_cluster(sums: BTreeMap<u32, Sum>) -> Vec<ClusterLoss> {
    let loss = |(cluster, sum): (u32, Sum)| ClusterLoss { cluster, loss: sum.mean(), tokens: sum.tokens };
    sums.into_iter().map(loss).collect()
}

/// A text being evaluated: tokens wait here until a batch of windows is full.
struct Stream {
    /// Tokens not yet evaluated, with marks, the first of which is only an input.
    tokens: Vec<u32>,
    /// Index of the domain, and the cluster, that each of them counts for.
    parts: Vec<(usize, Option<u32>)>,
    names: Vec<String>,
    /// For each way to predict.
    ways: Vec<Sums>,
}

/// Evaluates on every token of `source`: documents one after the other, each behind an end of text, in windows
/// of the predictor's length. Stops after `max_tokens` tokens, when that is not 0. With clusters every document
/// counts for the one it belongs to as a whole. An evaluation for each way to predict. Of conversations, in the chat
/// template beside the tokenizer or a plain one, only answers are measured.
///
/// Bits per byte are exact: total nats over the bytes of the tokens predicted.
///
/// # Errors
/// The text cannot be read, or holds nothing; the template does not take a conversation; those of
/// [`Predict::losses`].
pub fn evaluate_text(
    of: &mut impl Predict,
    (loaded, clusters): (&Loaded, Option<&Clusters<'_>>),
    (storage, source): (&dyn Storage, &Source),
    max_tokens: u64,
) -> Result<Vec<Evaluation>> {
    let tokenizer = &loaded.tokenizer;
    let mut template = None;
    let mut stream =
        Stream { tokens: vec![tokenizer.eos()], parts: vec![(0, None)], names: Vec::new(), ways: Vec::new() };
    let (batch, time) = of.shape();
    let mut scratch = clusters.map(|clusters| (clusters, clusters.embedder().scratch()));
    let mut read = 0;
    let mut documents = source.open()?;
    while let Some(document) = documents.next().transpose()? {
        let known = stream.names.iter().position(|name| *name == document.domain);
        let domain = known.unwrap_or_else(|| {
            stream.names.push(document.domain.clone());
            stream.names.len() - 1
        });
        let mut tokens = if document.messages.is_empty() {
            tokenizer.encode(&document.text)?
        } else {
            if template.is_none() {
                template = Some(match loaded.template_file(storage)? {
                    Some(file) => ChatTemplate::of(file)?,
                    None => ChatTemplate::plain(tokenizer)?,
                });
            }
            let tokens = template.as_ref().map(|of| of.conversation(tokenizer, &document.messages));
            tokens.transpose()?.unwrap_or_default()
        };
        // A target where the token before it is one.
        tokens.push(tokenizer.eos() | (tokens.last().map_or(0, |last| last & NO_TARGET_MARK)));
        if max_tokens > 0 {
            tokens.truncate(usize::try_from(max_tokens - read).unwrap_or(usize::MAX));
        }
        read += tokens.len() as u64;
        let cluster = match &mut scratch {
            Some((clusters, scratch)) => Some(clusters.nearest(scratch, &document.text)? as u32),
            None => None,
        };
        stream.parts.resize(stream.parts.len() + tokens.len(), (domain, cluster));
        stream.tokens.append(&mut tokens);
        while stream.tokens.len() > batch * time {
            stream.evaluate(of, tokenizer)?;
        }
        if max_tokens > 0 && read >= max_tokens {
            break;
        }
    }
    for damage in documents.damaged() {
        tracing::warn!("{damage}");
    }
    if stream.tokens.len() > 1 {
        stream.evaluate(of, tokenizer)?;
    }
    let Stream { names, ways, .. } = stream;
    let answers = template.is_some();
    let evaluations = ways.into_iter().map(|Sums { domains, clusters }| Evaluation {
        clusters: by_cluster(clusters),
        answers,
        ..Evaluation::of(names.iter().map(String::as_str).zip(domains))
    });
    Ok(evaluations.collect())
}

impl Stream {
    /// Evaluates one batch, or what there is, and forgets its inputs.
    fn evaluate(&mut self, of: &mut impl Predict, tokenizer: &Tokenizer) -> Result<()> {
        let (batch, time) = of.shape();
        let count = (self.tokens.len() - 1).min(batch * time);
        // What is missing at the end is filled up; attention is causal, so it changes nothing before.
        let window = |from: usize| {
            let mut window = self.tokens[from..from + count].to_vec();
            window.resize(batch * time, tokenizer.eos());
            window
        };
        let (mut inputs, mut targets) = (window(0), window(1));
        inputs.iter_mut().for_each(|token| *token &= !NO_TARGET_MARK);
        let unmeasured = targets.iter_mut().filter(|token| **token >= NO_TARGET_MARK);
        unmeasured.for_each(|token| *token = NO_TARGET);
        let losses = of.losses(&inputs, &targets)?;
        self.ways.resize(losses.len(), Sums::default());
        for (sums, losses) in self.ways.iter_mut().zip(&losses) {
            let measured = losses.iter().enumerate().take(count);
            for (at, loss) in measured.filter(|(at, _)| targets[*at] != NO_TARGET) {
                let bytes = tokenizer.bytes_of(targets[at]).len() as f64;
                sums.add(self.parts[at + 1], Sum { nats: f64::from(*loss), tokens: 1, bytes });
            }
        }
        self.tokens.drain(..count);
        self.parts.drain(..count);
        Ok(())
    }
}
