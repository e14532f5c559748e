//! What a run has seen of its text: its plan done over again, beside what it logged.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Serialize;
use serde_json::Value;
use tritrain_data::{BatchPlan, Corpus, PlanOptions, Split};
use tritrain_files::Storage;

use crate::{Config, Error, Part, Result};

/// What a run has logged.
const LOG: &str = "metrics.jsonl";

/// How much of the training text some steps have seen, and how often.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Audit {
    /// Steps done over again.
    pub steps: u64,
    /// Epochs of the plan in them.
    pub epochs: f64,
    /// Tokens of the training text that were predicted, once or more.
    pub predicted: u64,
    /// Tokens of the training text.
    pub tokens: u64,
    /// The fewest and the most times a token was predicted; the first of the text never is.
    pub times: (u64, u64),
    /// Near-duplicates left out of training: documents and tokens.
    pub left_out: (u64, u64),
    /// Documents of which all tokens but the first of the text were predicted, some, and none.
    pub documents: [u64; 3],
    /// Shares of the clusters in the text and in the windows seen, where there are clusters.
    pub clusters: Vec<ClusterAudit>,
    /// Steps of the log whose clusters are not those of the plan: none, or the plan was not kept.
    pub differing: u64,
    /// The first of them.
    pub first_differing: Option<u64>,
}

/// A cluster in text and windows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct ClusterAudit {
    /// Its share of the training tokens.
    pub text: f64,
    /// Its share of the windows seen.
    pub seen: f64,
    /// Windows seen.
    pub windows: u64,
}

/// Times that the balanced plan shows the same text in an epoch, at most: up to four, text that is repeated teaches
/// nearly as much as new text (Muennighoff et al. 2023, arXiv:2305.16264).
const REPEAT: u32 = 4;

/// The plan of a part of a run.
pub(crate) fn plan_options(config: &Config, part: &Part) -> PlanOptions {
    PlanOptions {
        kind: config.data.plan,
        only: part.cluster,
        repeat: REPEAT,
        seed: config.run.seed,
        batch: config.run.batch,
        context: config.model.context,
    }
}

/// Does the plan of the run in `dir` over again, as far as its log goes; of a run of experts that of every part
/// that has begun, each with its name. Needs no source text and no model.
///
/// # Errors
/// The configuration, the tokens or the log are missing or damaged.
pub fn audit(storage: &dyn Storage, dir: &Path) -> Result<Vec<(String, Audit)>> {
    let path = dir.join("config.toml");
    let text = String::from_utf8_lossy(&storage.read(&path)?).into_owned();
    let config = Config::parse(&text, &path.display().to_string())?;
    let corpus = Corpus::open(storage, dir)?.with_saved_clusters(storage, dir)?;
    if config.run.experts == 0 {
        let part = Part::whole(&config)?;
        return Ok(vec![(String::new(), audit_part(storage, dir, &config, &corpus, &part)?)]);
    }
    let mut audits = Vec::new();
    for part in Part::all(&config, &corpus)? {
        let dir = dir.join(&part.name);
        if storage.exists(&dir.join(LOG))? {
            audits.push((part.name.clone(), audit_part(storage, &dir, &config, &corpus, &part)?));
        }
    }
    Ok(audits)
}

fn audit_part(
    storage: &dyn Storage,
    dir: &Path,
    config: &Config,
    corpus: &Corpus,
    part: &Part,
) -> Result<Audit> {
    let log = dir.join(LOG);
    let records = String::from_utf8_lossy(&storage.read(&log)?).into_owned();
    let records = records.lines().map(serde_json::from_str::<Value>);
    let records = records.collect::<Result<Vec<_>, _>>().map_err(|error| Error::Content {
        path: log.clone(),
        expected: "a JSON object in every line".into(),
        found: error.to_string(),
    })?;
    replay(corpus, &plan_options(config, part), &records)
}

/// Clusters and their losses that a step logged.
fn logged(record: &Value) -> Vec<(u32, f64)> {
    let clusters = record.get("clusters").and_then(Value::as_object).into_iter().flatten();
    // As the run had them: in f32.
    let pair =
        |(cluster, loss): (&String, &Value)| Some((cluster.parse().ok()?, f64::from(loss.as_f64()? as f32)));
    clusters.filter_map(pair).collect()
}

fn replay(corpus: &Corpus, options: &PlanOptions, records: &[Value]) -> Result<Audit> {
    let mut plan = BatchPlan::new(corpus, options)?;
    let mut mixer = plan.mixer();
    let labels = corpus.labels();
    let mut windows = vec![0u64; labels.map_or(0, |labels| labels.k())];
    // Where stretches of predicted tokens begin and end.
    let mut ends: Vec<(u64, i64)> = Vec::new();
    let (mut steps, mut differing, mut first_differing) = (0, 0, None);
    let trained = records.iter().filter(|r| r.get("validation_loss").is_none() && r.get("setback").is_none());
    for record in trained {
        let seen = plan.windows_of(steps, mixer.as_mut())?;
        steps += 1;
        let mut here = BTreeSet::new();
        for window in &seen {
            if let Some(cluster) = window.cluster {
                here.insert(cluster);
                windows[cluster as usize] += 1;
            }
            // The first token of a window is not predicted.
            let mut first = 1;
            for (start, tokens) in plan.tokens_of(*window) {
                let skipped = first.min(tokens);
                first -= skipped;
                ends.extend([(start + skipped, 1), (start + tokens, -1)]);
            }
        }
        let losses = logged(record);
        if record.get("skipped").is_some() {
            // A step that was not finite says nothing about its windows, and nothing is learnt from it.
            continue;
        }
        if losses.iter().map(|(cluster, _)| *cluster).collect::<BTreeSet<u32>>() != here {
            differing += 1;
            first_differing = first_differing.or(Some(steps));
        }
        if let Some(mixer) = &mut mixer {
            mixer.learn(losses);
        }
    }
    ends.sort_unstable();
    let times = Times::new(&ends, corpus.len(Split::Train));
    let (mut documents, mut left_out) = ([0; 3], (0, 0));
    let dropped = labels.map(|labels| labels.dropped()).unwrap_or_default();
    for (number, document) in (0..).zip(corpus.tokens().documents(Split::Train)) {
        let document = document?;
        if dropped.binary_search(&number).is_ok() {
            left_out = (left_out.0 + 1, left_out.1 + document.tokens);
        }
        // Nothing comes before the first token of the text.
        let first = u64::from(document.start == 0);
        let (start, tokens) = (document.start + first, document.tokens - first);
        let predicted = times.predicted(start, tokens);
        let kind = usize::from(predicted < tokens) + usize::from(predicted == 0 && tokens > 0);
        documents[kind] += 1;
    }
    let tokens = corpus.len(Split::Train);
    let clusters = labels.map(|labels| {
        let (of_text, all) = (labels.totals(Split::Train), windows.iter().sum::<u64>().max(1));
        let pairs = of_text.into_iter().zip(&windows);
        pairs
            .map(|(text, &windows)| ClusterAudit {
                text: text as f64 / tokens as f64,
                seen: windows as f64 / all as f64,
                windows,
            })
            .collect()
    });
    Ok(Audit {
        steps,
        epochs: plan.epoch(steps),
        predicted: times.predicted(0, tokens),
        tokens,
        times: times.range(),
        left_out,
        documents,
        clusters: clusters.unwrap_or_default(),
        differing,
        first_differing,
    })
}

/// How often each stretch of the text was predicted.
struct Times {
    /// First token and count, in order; each reaches to the next.
    stretches: Vec<(u64, u64)>,
    len: u64,
}

impl Times {
    fn new(ends: &[(u64, i64)], len: u64) -> Times {
        let mut stretches = vec![(0, 0)];
        let mut count = 0;
        for &(at, change) in ends {
            count += change;
            match stretches.last_mut() {
                Some(last) if last.0 == at => last.1 = count as u64,
                _ => stretches.push((at, count as u64)),
            }
        }
        stretches.retain(|(start, _)| *start < len);
        Times { stretches, len }
    }

    fn within(&self, start: u64, tokens: u64) -> impl Iterator<Item = (u64, u64)> {
        let end = start + tokens;
        let first = self.stretches.partition_point(|(at, _)| *at <= start).saturating_sub(1);
        let next = self.stretches.iter().skip(first + 1).map(|(at, _)| *at).chain([self.len]);
        let stretches = self.stretches.iter().skip(first).zip(next);
        stretches
            .take_while(move |((at, _), _)| *at < end)
            .map(move |((at, count), next)| (next.min(end).saturating_sub(start.max(*at)), *count))
    }

    /// Tokens of a stretch that were predicted.
    fn predicted(&self, start: u64, tokens: u64) -> u64 {
        self.within(start, tokens).filter(|(_, count)| *count > 0).map(|(tokens, _)| tokens).sum()
    }

    /// The fewest and the most times of any token but the first.
    fn range(&self) -> (u64, u64) {
        let counts = || {
            self.within(1, self.len.saturating_sub(1))
                .filter(|(tokens, _)| *tokens > 0)
                .map(|(_, count)| count)
        };
        (counts().min().unwrap_or(0), counts().max().unwrap_or(0))
    }
}

impl Audit {
    /// Whether every step of the log took what the plan says.
    pub fn kept(&self) -> bool {
        self.differing == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_stretches_add_up() {
        let mut ends = vec![(5, 1), (10, -1), (8, 1), (12, -1), (10, 1), (11, -1)];
        ends.sort_unstable();
        let times = Times::new(&ends, 20);
        assert_eq!(times.predicted(0, 20), 7);
        assert_eq!(times.predicted(9, 2), 2);
        assert_eq!(times.predicted(12, 8), 0);
        assert_eq!(times.range(), (0, 2));
        assert_eq!(Times::new(&[(0, 1), (20, -1)], 20).range(), (1, 1));
    }
}
