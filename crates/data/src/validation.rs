//! The text a model is measured on: the same windows at every evaluation.

use std::collections::BTreeMap;

use tritrain_files::tokens::{NO_TARGET_MARK, Split};

use crate::labels::most;
use crate::plan::{check_len, copy_window};
use crate::{Corpus, Error, Result};

/// Fixed windows of `context + 1` validation tokens, spread evenly over each domain, in proportion to
/// the domains' tokens and at least one for each.
///
/// The documents of a domain are taken as one stream: a window may run across its documents, never into
/// another domain. Domains too short for a window are taken together, under the name `(short domains)`.
///
/// Of conversations only the answers are measured: windows without a token of one are left out, and tokens and bytes
/// below are those of answers.
///
/// Counting of bytes: a document's end of text is predicted, so its nats count, and it has no byte. So
/// bits per byte = mean nats per token / ln 2 / [`bytes_per_token`](Self::bytes_per_token), where tokens
/// include one end of text per document and bytes are those of the text.
#[derive(Clone, Debug)]
pub struct ValidationSet {
    context: usize,
    domains: Vec<Domain>,
    windows: Vec<Window>,
}

/// One part of the validation text.
#[derive(Clone, Debug)]
pub struct Domain {
    /// Its name.
    pub name: String,
    /// All its validation tokens, the ends of text included.
    pub tokens: u64,
    /// Those of them that are targets.
    pub targets: u64,
    /// All its validation bytes, of conversations those of the answers.
    pub bytes: u64,
    /// Stretches of the split, in order.
    spans: Vec<Span>,
}

#[derive(Clone, Copy, Debug)]
struct Span {
    /// Tokens of the domain before it.
    before: u64,
    /// First token, counted from the start of the split.
    start: u64,
    tokens: u64,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    domain: usize,
    /// First token, counted from the start of the domain.
    at: u64,
}

impl Domain {
    fn new(name: &str) -> Self {
        Domain { name: name.to_owned(), tokens: 0, targets: 0, bytes: 0, spans: Vec::new() }
    }

    fn push(&mut self, start: u64, tokens: u64) {
        match self.spans.last_mut() {
            Some(last) if last.start + last.tokens == start => last.tokens += tokens,
            _ => self.spans.push(Span { before: self.tokens, start, tokens }),
        }
        self.tokens += tokens;
    }

    /// Stretches of the split, `(first token, tokens)`, of `len` tokens of the domain from `at` on.
    fn stretches(&self, at: u64, len: u64) -> impl Iterator<Item = (u64, u64)> {
        let first = self.spans.partition_point(|span| span.before + span.tokens <= at);
        let end = at + len;
        self.spans.iter().skip(first).take_while(move |span| span.before < end).map(move |span| {
            let (from, to) = (at.max(span.before), end.min(span.before + span.tokens));
            (span.start + (from - span.before), to - from)
        })
    }

    fn read(&self, corpus: &Corpus, at: u64, mut out: &mut [u32]) -> Result<()> {
        for (start, len) in self.stretches(at, out.len() as u64) {
            let (now, later) = std::mem::take(&mut out).split_at_mut(len as usize);
            corpus.tokens().read_marked(Split::Validation, start, now)?;
            out = later;
        }
        Ok(())
    }
}

impl ValidationSet {
    /// Chooses windows of at most `max_tokens` targets together; one window per domain even if that is
    /// more.
    ///
    /// # Errors
    /// [`Error::Short`] when the validation split holds no window; [`Error::Files`] for a damaged index.
    pub fn new(corpus: &Corpus, context: usize, max_tokens: u64) -> Result<Self> {
        corpus.check(context)?;
        if context == 0 {
            return Err(Error::Shape { what: "context", expected: "at least 1".into(), found: "0".into() });
        }
        let names = &corpus.tokens().manifest().domains;
        let mut by_domain: BTreeMap<usize, Domain> = BTreeMap::new();
        for document in corpus.tokens().documents(Split::Validation) {
            let document = document?;
            let name = names.get(document.domain).map_or("", String::as_str);
            let domain = by_domain.entry(document.domain).or_insert_with(|| Domain::new(name));
            domain.push(document.start, document.tokens);
            domain.targets += targets(corpus, document.start, document.tokens)?;
            domain.bytes += document.bytes;
        }
        let step = context as u64;
        let (mut domains, short): (Vec<_>, Vec<_>) =
            by_domain.into_values().partition(|domain| domain.tokens > step);
        let mut together = Domain::new("(short domains)");
        for domain in short {
            domain.spans.iter().for_each(|span| together.push(span.start, span.tokens));
            together.bytes += domain.bytes;
            together.targets += domain.targets;
        }
        if together.tokens > step {
            domains.push(together);
        }
        let mut windows = choose(&domains, step, max_tokens / step);
        if corpus.tokens().is_marked() {
            let mut tokens = vec![0; context];
            let mut measured = Vec::with_capacity(windows.len());
            for window in windows {
                if let Some(domain) = domains.get(window.domain) {
                    domain.read(corpus, window.at + 1, &mut tokens)?;
                    measured.extend(tokens.iter().any(|token| *token < NO_TARGET_MARK).then_some(window));
                }
            }
            windows = measured;
        }
        if windows.is_empty() {
            let hint = "add conversations, raise run.eval_tokens or data.validation, or raise model.context";
            return Err(Error::NoAnswer { split: "validation", hint });
        }
        Ok(ValidationSet { context, domains, windows })
    }

    /// The windows of one cluster alone, in a corpus that has clusters.
    ///
    /// # Errors
    /// [`Error::NoWindow`].
    pub fn only(mut self, corpus: &Corpus, cluster: u32) -> Result<Self> {
        let of_it = (0..self.windows.len()).map(|window| self.cluster(corpus, window) == Some(cluster));
        let mut of_it = of_it.collect::<Vec<bool>>().into_iter();
        self.windows.retain(|_| of_it.next() == Some(true));
        if self.windows.is_empty() {
            let hint = "raise run.eval_tokens or data.validation, or take fewer clusters";
            return Err(Error::NoWindow { cluster, split: "validation", hint });
        }
        Ok(self)
    }

    /// Windows.
    pub fn len(&self) -> usize {
        self.windows.len()
    }

    /// Never: a corpus without a window is refused.
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }

    /// The parts that windows belong to.
    pub fn domains(&self) -> &[Domain] {
        &self.domains
    }

    /// Index of the domain of a window. Windows of one domain follow each other.
    pub fn domain(&self, window: usize) -> Option<usize> {
        self.windows.get(window).map(|window| window.domain)
    }

    /// The cluster of most tokens of a window, in a corpus that has clusters.
    pub fn cluster(&self, corpus: &Corpus, window: usize) -> Option<u32> {
        let (labels, window) = (corpus.labels()?, self.windows.get(window)?);
        let mut counts = vec![0; labels.k()];
        for (start, len) in self.domains.get(window.domain)?.stretches(window.at, self.context as u64 + 1) {
            labels.count(Split::Validation, start, len, &mut counts);
        }
        Some(most(&counts))
    }

    /// Reads a window: `inputs` and `targets`, `context` tokens each, targets one ahead, [`NO_TARGET`] where none is
    /// measured.
    ///
    /// [`NO_TARGET`]: tritrain_trit::NO_TARGET
    ///
    /// # Errors
    /// [`Error::Shape`] for a window or a slice that does not fit; [`Error::Files`] for a damaged shard.
    pub fn read(
        &self,
        corpus: &Corpus,
        window: usize,
        inputs: &mut [u32],
        targets: &mut [u32],
    ) -> Result<()> {
        check_len("inputs", inputs, self.context)?;
        check_len("targets", targets, self.context)?;
        let found = self.windows.get(window).and_then(|w| Some((self.domains.get(w.domain)?, w.at)));
        let Some((domain, at)) = found else {
            let expected = format!("less than {}", self.len());
            return Err(Error::Shape { what: "validation window", expected, found: window.to_string() });
        };
        let mut tokens = vec![0; self.context + 1];
        domain.read(corpus, at, &mut tokens)?;
        copy_window(&tokens, inputs, targets);
        Ok(())
    }

    /// Bytes of text per token over all domains, to turn nats per token into bits per byte.
    pub fn bytes_per_token(&self) -> f64 {
        let sum = |of: fn(&Domain) -> u64| self.domains.iter().map(of).sum::<u64>() as f64;
        sum(|domain| domain.bytes) / sum(|domain| domain.targets)
    }

    /// Bits per byte of a mean loss in nats per token.
    pub fn bits_per_byte(&self, nats_per_token: f64) -> f64 {
        nats_per_token / std::f64::consts::LN_2 / self.bytes_per_token()
    }
}

impl Domain {
    /// Bytes of text per token.
    pub fn bytes_per_token(&self) -> f64 {
        self.bytes as f64 / self.targets as f64
    }
}

/// Targets among tokens of the validation split.
fn targets(corpus: &Corpus, start: u64, count: u64) -> Result<u64> {
    if !corpus.tokens().is_marked() {
        return Ok(count);
    }
    let (mut at, end, mut found) = (start, start + count, 0);
    let mut tokens = [0; 1024];
    while at < end {
        let part = &mut tokens[..(end - at).min(1024) as usize];
        corpus.tokens().read_marked(Split::Validation, at, part)?;
        found += part.iter().filter(|token| **token < NO_TARGET_MARK).count() as u64;
        at += part.len() as u64;
    }
    Ok(found)
}

/// `budget` windows over the domains, by their tokens.
fn choose(domains: &[Domain], step: u64, budget: u64) -> Vec<Window> {
    let all: u64 = domains.iter().map(|domain| domain.tokens).sum();
    let mut windows = Vec::new();
    for (index, domain) in domains.iter().enumerate() {
        let there = (domain.tokens - 1) / step;
        let share = u128::from(budget) * u128::from(domain.tokens) / u128::from(all.max(1));
        let take = u64::try_from(share).unwrap_or(there).clamp(1, there);
        let place = |i: u64| (u128::from(i) * u128::from(there) / u128::from(take)) as u64 * step;
        windows.extend((0..take).map(|i| Window { domain: index, at: place(i) }));
    }
    windows
}
