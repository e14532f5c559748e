//! The first pass over the text: is it readable, what is it, what is held out of it.
//!
//! The whole text is read before anything is made of it, at a fraction of the price of encoding, so that
//! a bad line at the end of 10 GB is found in seconds and the rule of the split knows every document.

use std::collections::BTreeMap;

use crate::Result;
use crate::sample::Sample;
use crate::source::{Document, Documents};

/// Text in memory at once, about, in bytes.
pub(crate) const CHUNK: usize = 8 << 20;

/// What is held out of a domain.
///
/// Each document has a [number](Document::number), uniform in 64 bits, that depends on its domain, name
/// and first 4096 bytes only. So the split does not depend on the seed of a run, on the order of files or
/// on other domains, and copies of a document fall on the same side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Rule {
    /// Documents numbered below this. The bound is the share of 2⁶⁴, moved as little as it takes to hold
    /// out at least one document and to keep at least one.
    Below(u64),
    /// A domain of one document (or of copies of one): the last share of its tokens.
    Tail(f64),
}

#[derive(Clone, Copy)]
struct Numbers {
    least: u64,
    most: u64,
}

impl Numbers {
    fn rule(self, share: f32) -> Rule {
        let share = f64::from(share);
        if self.least == self.most {
            return Rule::Tail(share);
        }
        // 2^64 times the share; the cast saturates.
        let below = (share * 18_446_744_073_709_551_616.0) as u64;
        Rule::Below(below.clamp(self.least + 1, self.most))
    }
}

/// The pass, a chunk at a time.
pub(crate) struct Scan {
    documents: Documents,
    sample: Option<Sample>,
    hash: blake3::Hasher,
    domains: BTreeMap<String, Numbers>,
    bytes: u64,
    conversations: u64,
}

/// What the pass found.
pub(crate) struct Scanned {
    /// Hash of all documents in their order.
    pub(crate) content: String,
    /// Bytes of text.
    pub(crate) bytes: u64,
    /// Documents that are conversations.
    pub(crate) conversations: u64,
    /// Rule of the split, by domain.
    pub(crate) rules: BTreeMap<String, Rule>,
    /// Text to train a tokenizer on.
    pub(crate) sample: Option<Sample>,
}

impl Scan {
    pub(crate) fn new(documents: Documents, sample: Option<Sample>) -> Self {
        Scan {
            documents,
            sample,
            hash: blake3::Hasher::new(),
            domains: BTreeMap::new(),
            bytes: 0,
            conversations: 0,
        }
    }

    pub(crate) fn documents(&self) -> &Documents {
        &self.documents
    }

    /// Reads a chunk; whether there may be more.
    pub(crate) fn advance(&mut self) -> Result<bool> {
        let mut left = CHUNK;
        while left > 0 {
            let Some(document) = self.documents.next().transpose()? else { return Ok(false) };
            self.add(&document);
            left = left.saturating_sub(document.text.len());
        }
        Ok(true)
    }

    fn add(&mut self, document: &Document) {
        document.hash(&mut self.hash);
        self.bytes += document.text.len() as u64;
        self.conversations += u64::from(!document.messages.is_empty());
        let number = document.number();
        if let Some(seen) = self.domains.get_mut(&document.domain) {
            seen.least = seen.least.min(number);
            seen.most = seen.most.max(number);
        } else {
            self.domains.insert(document.domain.clone(), Numbers { least: number, most: number });
        }
        if let Some(sample) = &mut self.sample {
            sample.add(document, number);
        }
    }

    pub(crate) fn finish(self, share: f32) -> Scanned {
        for damage in self.documents.damaged() {
            tracing::warn!("{damage}");
        }
        let rules = self.domains.into_iter().map(|(domain, numbers)| (domain, numbers.rule(share))).collect();
        let content = self.hash.finalize().to_hex().to_string();
        Scanned { content, bytes: self.bytes, conversations: self.conversations, rules, sample: self.sample }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_keeps_and_holds_out_at_least_one() {
        for (least, most) in [(0, 1), (0, u64::MAX), (u64::MAX - 1, u64::MAX), (1 << 40, 1 << 41)] {
            for share in [0.0001, 0.02, 0.5] {
                let Rule::Below(below) = (Numbers { least, most }).rule(share) else { unreachable!() };
                assert!(least < below && most >= below, "{least} {most} {share} {below}");
            }
        }
        assert_eq!(Numbers { least: 5, most: 5 }.rule(0.25), Rule::Tail(0.25));
        assert_eq!(Numbers { least: 0, most: u64::MAX }.rule(0.5), Rule::Below(1 << 63));
    }
}
