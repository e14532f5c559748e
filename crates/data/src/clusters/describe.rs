//! Clusters in words: what is frequent in them, what is nearest to their centroids, which domains they
//! hold.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::Serialize;
use tritrain_trit::rng::Stream;

use super::{Clustering, Table};
use crate::embed::{Passage, PassageText, visit, words};
use crate::source::Documents;
use crate::{Error, Result};

/// Passages whose words are looked at: in all, and of one cluster at least and at most.
const SAMPLE: usize = 1 << 13;
const SAMPLE_ONE: (usize, usize) = (32, 512);
/// Words that are shown, and how many of them make the name.
const WORDS: usize = 8;
const NAME: usize = 3;
/// Documents that are shown.
const NEAREST: usize = 3;
/// Weight of the prior against what is counted, in passages' words (Monroe et al.: the larger, the more
/// evidence a rare word needs).
const PRIOR: f64 = 1000.0;
/// Characters of a passage's opening that are shown.
const OPENING: usize = 72;

/// A cluster.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Cluster {
    /// Its most characteristic words, three at most.
    pub name: String,
    /// Passages in it.
    pub passages: u64,
    /// Bytes of their text.
    pub bytes: u64,
    /// Mean squared distance of its passages to its centroid.
    pub spread: f64,
    /// Its most characteristic words.
    pub words: Vec<String>,
    /// The documents nearest to its centroid.
    pub nearest: Vec<Nearest>,
    /// Its domains, the most frequent first.
    pub domains: Vec<DomainShare>,
}

/// A passage near a centroid.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Nearest {
    /// Index of the passage.
    pub passage: u32,
    /// Name of its document.
    pub document: String,
    /// Domain of its document.
    pub domain: String,
    /// How its text begins, on one line.
    pub opening: String,
}

/// The part of a cluster that belongs to a domain.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct DomainShare {
    /// Its name.
    pub domain: String,
    /// Passages of the cluster in it.
    pub passages: u64,
}

/// All clusters.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Description {
    /// The clusters, in the order of their centroids.
    pub clusters: Vec<Cluster>,
    /// Agreement of clusters and domains; see [`Table::nmi`]. None with one domain.
    pub nmi: Option<f64>,
    /// Share of passages in the most frequent domain of their cluster. None with one domain.
    pub purity: Option<f64>,
}

/// Describes clusters of the passages of `documents`, which it reads once more. The seed draws the sample
/// of passages whose words are counted; memory holds their words. `each` sees every passage on the way.
///
/// The words are those with the largest log odds of a passage of the cluster against the passages of all
/// others, in standard deviations, with all passages as the prior (Monroe, Colaresi, Quinn, Political
/// Analysis 16, 2008, section 3.3). Counted are passages with the word, so that one cannot make a name.
///
/// # Errors
/// Those of the stream of documents and of `each`; [`Error::Shape`] when there are more or fewer passages than labels.
pub fn describe(
    clustering: &Clustering<'_>,
    documents: Documents,
    passages: &[Passage],
    domains: &[String],
    seed: u64,
    mut each: impl FnMut(PassageText<'_>) -> Result<()>,
) -> Result<Description> {
    let wrong = |found: usize| Error::Shape {
        what: "passages",
        expected: format!("one for each of {} labels", clustering.labels.len()),
        found: found.to_string(),
    };
    if passages.len() != clustering.labels.len() {
        return Err(wrong(passages.len()));
    }
    let members = clustering.members();
    let mut wanted: HashMap<u32, Wanted> = HashMap::new();
    for (cluster, members) in members.iter().enumerate() {
        for passage in drawn(members, members_of(clustering.k()), seed) {
            wanted.entry(passage).or_default().words = true;
        }
        for passage in nearest(clustering, members, passages) {
            wanted.entry(passage).or_default().shown = true;
        }
        tracing::debug!(cluster, passages = members.len(), "to be described");
    }
    let mut counts = Words::new(clustering.k());
    let mut shown: BTreeMap<u32, Nearest> = BTreeMap::new();
    let mut seen = 0;
    visit(documents, |passage| {
        seen += 1;
        each(passage)?;
        let index = passage.index as u32;
        let Some(wanted) = wanted.get(&index) else { return Ok(()) };
        if wanted.words {
            counts.add(clustering.labels[passage.index], passage.text);
        }
        if wanted.shown {
            let (document, domain) = (passage.document.name.clone(), passage.document.domain.clone());
            let nearest = Nearest { passage: index, document, domain, opening: opening(passage.text) };
            shown.insert(index, nearest);
        }
        Ok(())
    })?;
    if seen != passages.len() {
        return Err(wrong(seen));
    }
    let table = Table::new(clustering.labels.iter().zip(passages).map(|(&label, p)| (label, p.domain)));
    let several = domains.len() > 1;
    let one = |((cluster, members), words): ((usize, &Vec<u32>), Vec<String>)| {
        let sum: f64 = members.iter().map(|&passage| clustering.distance(passage as usize)).sum();
        Cluster {
            name: words.get(..NAME.min(words.len())).unwrap_or_default().join(" "),
            passages: members.len() as u64,
            bytes: members.iter().map(|&passage| u64::from(passages[passage as usize].bytes)).sum(),
            spread: sum / members.len().max(1) as f64,
            nearest: nearest(clustering, members, passages)
                .into_iter()
                .filter_map(|passage| shown.get(&passage).cloned())
                .collect(),
            domains: shares(&table, cluster as u32, domains),
            words,
        }
    };
    Ok(Description {
        clusters: members.iter().enumerate().zip(counts.best(WORDS)).map(one).collect(),
        nmi: several.then(|| table.nmi()),
        purity: several.then(|| table.purity()),
    })
}

#[derive(Clone, Copy, Default)]
struct Wanted {
    words: bool,
    shown: bool,
}

fn members_of(k: usize) -> usize {
    (SAMPLE / k.max(1)).clamp(SAMPLE_ONE.0, SAMPLE_ONE.1)
}

/// The `count` members with the smallest random numbers.
fn drawn(members: &[u32], count: usize, seed: u64) -> Vec<u32> {
    let stream = Stream::new(seed, 1, 0);
    let mut numbered: Vec<(u32, u32)> =
        members.iter().map(|&passage| (stream.bits(u64::from(passage)), passage)).collect();
    if numbered.len() > count {
        numbered.select_nth_unstable(count);
        numbered.truncate(count);
    }
    numbered.into_iter().map(|(_, passage)| passage).collect()
}

/// The members nearest to the centroid, the nearest first, no two of one document.
fn nearest(clustering: &Clustering<'_>, members: &[u32], passages: &[Passage]) -> Vec<u32> {
    let mut best: Vec<(f64, u32)> = Vec::new();
    for &passage in members {
        let distance = clustering.distance(passage as usize);
        if best.len() == NEAREST && best.last().is_some_and(|(last, _)| distance >= *last) {
            continue;
        }
        let document = passages[passage as usize].document;
        let same = best.iter().position(|(_, other)| passages[*other as usize].document == document);
        match same {
            Some(same) if best[same].0 <= distance => continue,
            Some(same) => drop(best.remove(same)),
            None => {}
        }
        let at = best.partition_point(|(other, _)| *other <= distance);
        best.insert(at, (distance, passage));
        best.truncate(NEAREST);
    }
    best.into_iter().map(|(_, passage)| passage).collect()
}

fn shares(table: &Table, cluster: u32, domains: &[String]) -> Vec<DomainShare> {
    let share = |(index, domain): (usize, &String)| {
        let passages = table.count(cluster, index as u32);
        (passages > 0).then(|| DomainShare { domain: domain.clone(), passages })
    };
    let mut shares: Vec<_> = domains.iter().enumerate().filter_map(share).collect();
    shares.sort_by_key(|share| std::cmp::Reverse(share.passages));
    shares
}

/// The start of a text on one line.
fn opening(text: &str) -> String {
    let mut line = String::new();
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty()) {
        if !line.is_empty() {
            line.push(' ');
        }
        line.extend(word.chars().take(OPENING));
        if line.chars().count() > OPENING {
            let cut: String = line.chars().take(OPENING - 1).collect();
            return cut + "…";
        }
    }
    line
}

/// Passages of a sample with each word, by cluster.
struct Words {
    /// Clusters that have the word, in order, with the number of passages.
    words: BTreeMap<String, Vec<(u32, u32)>>,
    /// Sum over the words, by cluster.
    sums: Vec<u64>,
}

impl Words {
    fn new(k: usize) -> Self {
        Words { words: BTreeMap::new(), sums: vec![0; k] }
    }

    fn add(&mut self, cluster: u32, text: &str) {
        let mut seen = BTreeSet::new();
        words(text, 0, |word, _| {
            if word.chars().any(char::is_alphabetic) {
                seen.insert(word.to_lowercase());
            }
        });
        if let Some(sum) = self.sums.get_mut(cluster as usize) {
            *sum += seen.len() as u64;
        }
        for word in seen {
            let counts = self.words.entry(word).or_default();
            match counts.binary_search_by_key(&cluster, |(cluster, _)| *cluster) {
                Ok(at) => counts[at].1 += 1,
                Err(at) => counts.insert(at, (cluster, 1)),
            }
        }
    }

    /// The most characteristic words of each cluster, in falling order; ties in the order of the alphabet.
    fn best(&self, count: usize) -> Vec<Vec<String>> {
        let all: u64 = self.sums.iter().sum();
        let mut best: Vec<Vec<(f64, &str)>> = vec![Vec::new(); self.sums.len()];
        for (word, counts) in &self.words {
            let everywhere: f64 = counts.iter().map(|(_, n)| f64::from(*n)).sum();
            let prior = PRIOR * everywhere / all as f64;
            let odds = |n: f64, sum: f64| libm::log((n + prior) / (sum + PRIOR - n - prior));
            for &(cluster, here) in counts {
                let inside = self.sums[cluster as usize] as f64;
                let (here, elsewhere) = (f64::from(here), everywhere - f64::from(here));
                let variance = 1.0 / (here + prior) + 1.0 / (elsewhere + prior);
                let score = (odds(here, inside) - odds(elsewhere, all as f64 - inside)) / variance.sqrt();
                let list = &mut best[cluster as usize];
                let at = list.partition_point(|(other, _)| *other >= score);
                if score > 0.0 && at < count {
                    list.insert(at, (score, word));
                    list.truncate(count);
                }
            }
        }
        let texts = |list: Vec<(f64, &str)>| list.into_iter().map(|(_, word)| word.to_owned()).collect();
        best.into_iter().map(texts).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characteristic_words_of_a_corpus_done_by_hand() {
        let mut counts = Words::new(2);
        for text in ["the cell membrane", "the Cell CELL wall", "the cell 2024 x"] {
            counts.add(0, text);
        }
        for text in ["the court ruled", "the court sat", "the court cell"] {
            counts.add(1, text);
        }
        assert_eq!((counts.sums[0], counts.sums[1]), (8, 9));
        assert_eq!(counts.words["cell"], [(0, 3), (1, 1)]);
        assert!(!counts.words.contains_key("2024") && !counts.words.contains_key("x"));
        assert_eq!(counts.best(2), [["cell", "membrane"], ["court", "ruled"]]);
        assert_eq!(Words::new(1).best(3), [[""; 0]]);
    }

    #[test]
    fn openings_are_one_short_line() {
        assert_eq!(opening("  a\n\tb\u{0}c  "), "a b c");
        assert_eq!(opening(&"é".repeat(200)).chars().count(), OPENING);
        assert!(opening(&"word ".repeat(40)).ends_with('…'));
        assert_eq!(opening(""), "");
    }

    #[test]
    fn the_nearest_are_of_different_documents() {
        let vectors = [0.5f32, 0.1, 0.2, 0.3, 0.9];
        let labels = [0; 5];
        let clustering = Clustering::new(&vectors, 1, &labels, &[0.0]).unwrap();
        let place = |document| Passage { document, domain: 0, start: 0, bytes: 1 };
        let passages = [place(0), place(1), place(1), place(2), place(3)];
        assert_eq!(nearest(&clustering, &[0, 1, 2, 3, 4], &passages), [1, 3, 0]);
        assert_eq!(nearest(&clustering, &[4, 2], &passages), [2, 4]);
    }

    #[test]
    fn a_sample_depends_on_the_seed_alone() {
        let members: Vec<u32> = (0..1000).collect();
        let draw = |seed| {
            let mut drawn = drawn(&members, 20, seed);
            drawn.sort_unstable();
            drawn
        };
        assert_eq!((draw(1).len(), draw(1)), (20, draw(1)));
        assert_ne!(draw(1), draw(2));
        assert_eq!(drawn(&members[..5], 20, 1).len(), 5);
    }
}
