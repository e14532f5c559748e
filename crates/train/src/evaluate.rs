//! Validation: loss, perplexity and bits per byte, in all and per domain.

use std::collections::BTreeMap;

use serde::Serialize;
use tritrain_backend::Backend;
use tritrain_data::{Corpus, Source, Tokenizer, ValidationSet, clusters::Clusters};
use tritrain_model::{Activations, Model};

use crate::Result;

/// Cross entropy over a set of windows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Evaluation {
    /// Mean loss in nats per token.
    pub loss: f64,
    /// `e^loss`.
    pub perplexity: f64,
    /// Mean loss in bits per byte of text, at the split's bytes per token.
    pub bits_per_byte: f64,
    /// Tokens looked at.
    pub tokens: u64,
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
            domains,
            clusters: Vec::new(),
        }
    }
}

/// Evaluates `model` on every window of `set`.
///
/// # Errors
/// The token shards cannot be read.
pub fn evaluate<B: Backend>(
    backend: &B,
    model: &Model<B>,
    a: &mut Activations<B>,
    corpus: &Corpus,
    set: &ValidationSet,
) -> Result<Evaluation> {
    let (batch, time) = (a.batch(), a.tokens() / a.batch());
    let (mut inputs, mut targets) = (vec![0; a.tokens()], vec![0; a.tokens()]);
    let mut losses = vec![0.0; a.tokens()];
    let mut sums = vec![Sum::default(); set.domains().len()];
    let mut clusters: BTreeMap<u32, Sum> = BTreeMap::new();
    for first in (0..set.len()).step_by(batch) {
        // The last batch may be short: the rows left over keep their old tokens and are not counted.
        let count = batch.min(set.len() - first);
        for row in 0..count {
            let part = row * time..(row + 1) * time;
            set.read(corpus, first + row, &mut inputs[part.clone()], &mut targets[part])?;
        }
        model.evaluate(backend, a, &inputs, &targets);
        backend.download(a.losses(), &mut losses);
        for (row, losses) in losses.chunks_exact(time).enumerate().take(count) {
            let nats = losses.iter().map(|loss| f64::from(*loss)).sum::<f64>();
            let domain = set.domain(first + row).and_then(|domain| sums.get_mut(domain));
            let cluster = set.cluster(corpus, first + row).map(|c| clusters.entry(c).or_default());
            for sum in [domain, cluster].into_iter().flatten() {
                sum.nats += nats;
                sum.tokens += time as u64;
            }
        }
    }
    // Windows are a sample of a domain: their bytes follow from its bytes per token.
    let named = set.domains().iter().zip(sums).map(|(domain, sum)| {
        let bytes = sum.tokens as f64 * domain.bytes_per_token();
        (domain.name.as_str(), Sum { bytes, ..sum })
    });
    Ok(Evaluation { clusters: by_cluster(clusters), ..Evaluation::of(named) })
}

fn by_cluster(sums: BTreeMap<u32, Sum>) -> Vec<ClusterLoss> {
    let loss = |(cluster, sum): (u32, Sum)| ClusterLoss { cluster, loss: sum.mean(), tokens: sum.tokens };
    sums.into_iter().map(loss).collect()
}

/// A text being evaluated: tokens wait here until a batch of windows is full.
struct Stream {
    /// Tokens not yet evaluated, the first of which is only an input.
    tokens: Vec<u32>,
    /// Index of the domain, and the cluster, that each of them counts for.
    parts: Vec<(usize, Option<u32>)>,
    names: Vec<String>,
    sums: Vec<Sum>,
    clusters: BTreeMap<u32, Sum>,
}

/// Evaluates `model` on every token of `source`: documents one after the other, each behind an end of
/// text, in windows of the activations' length. Stops after `max_tokens` tokens, when that is not 0. With
/// clusters every document counts for the one it belongs to as a whole.
///
/// Bits per byte are exact: total nats over the bytes of the tokens predicted.
///
/// # Errors
/// The text cannot be read, or holds nothing.
pub fn evaluate_text<B: Backend>(
    backend: &B,
    model: &Model<B>,
    a: &mut Activations<B>,
    (tokenizer, clusters): (&Tokenizer, Option<&Clusters<'_>>),
    source: &Source,
    max_tokens: u64,
) -> Result<Evaluation> {
    let mut stream = Stream {
        tokens: vec![tokenizer.eos()],
        parts: vec![(0, None)],
        names: Vec::new(),
        sums: Vec::new(),
        clusters: BTreeMap::new(),
    };
    let mut scratch = clusters.map(|clusters| (clusters, clusters.embedder().scratch()));
    let mut read = 0;
    let mut documents = source.open()?;
    while let Some(document) = documents.next().transpose()? {
        let known = stream.names.iter().position(|name| *name == document.domain);
        let domain = known.unwrap_or_else(|| {
            stream.names.push(document.domain.clone());
            stream.sums.push(Sum::default());
            stream.names.len() - 1
        });
        let mut tokens = tokenizer.encode(&document.text)?;
        tokens.push(tokenizer.eos());
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
        while stream.tokens.len() > a.tokens() {
            stream.evaluate(backend, model, a, tokenizer);
        }
        if max_tokens > 0 && read >= max_tokens {
            break;
        }
    }
    for damage in documents.damaged() {
        tracing::warn!("{damage}");
    }
    if stream.tokens.len() > 1 {
        stream.evaluate(backend, model, a, tokenizer);
    }
    let clusters = by_cluster(stream.clusters);
    Ok(Evaluation { clusters, ..Evaluation::of(stream.names.iter().map(String::as_str).zip(stream.sums)) })
}

impl Stream {
    /// Evaluates one batch, or what there is, and forgets its inputs.
    fn evaluate<B: Backend>(
        &mut self,
        backend: &B,
        model: &Model<B>,
        a: &mut Activations<B>,
        tokenizer: &Tokenizer,
    ) {
        let count = (self.tokens.len() - 1).min(a.tokens());
        // What is missing at the end is filled up; attention is causal, so it changes nothing before.
        let window = |from: usize| {
            let mut window = self.tokens[from..from + count].to_vec();
            window.resize(a.tokens(), tokenizer.eos());
            window
        };
        let (inputs, targets) = (window(0), window(1));
        let mut losses = vec![0.0; a.tokens()];
        model.evaluate(backend, a, &inputs, &targets);
        backend.download(a.losses(), &mut losses);
        for (at, loss) in losses.iter().enumerate().take(count) {
            let (domain, cluster) = self.parts[at + 1];
            let cluster = cluster.map(|cluster| self.clusters.entry(cluster).or_default());
            for sum in [self.sums.get_mut(domain), cluster].into_iter().flatten() {
                sum.nats += f64::from(*loss);
                sum.tokens += 1;
                sum.bytes += tokenizer.bytes_of(targets[at]).len() as f64;
            }
        }
        self.tokens.drain(..count);
        self.parts.drain(..count);
    }
}
