//! The order of training and the windows of validation.

use std::collections::BTreeMap;

use tritrain_data::{BatchPlan, Corpus, DataConfig, Error, PlanKind, PlanOptions, Split, ValidationSet};

use crate::common::{folder, memory, prepare, prose, small, three_domains};

/// A corpus and the folder it lives in.
fn corpus() -> (tempfile::TempDir, Corpus) {
    let dir = folder();
    let corpus = prepare(&three_domains(), &small(), dir.path()).unwrap();
    (dir, corpus)
}

fn plan_of(corpus: &Corpus, seed: u64, batch: usize, context: usize) -> Result<BatchPlan, Error> {
    let options = PlanOptions { kind: PlanKind::Shuffle, only: None, repeat: 1, seed, batch, context };
    BatchPlan::new(corpus, &options)
}

fn batch(plan: &mut BatchPlan, corpus: &Corpus, step: u64, len: usize) -> (Vec<u32>, Vec<u32>) {
    let (mut inputs, mut targets) = (vec![9; len], vec![9; len]);
    let windows = plan.windows_of(step, None).unwrap();
    plan.read(corpus, &windows, &mut inputs, &mut targets).unwrap();
    (inputs, targets)
}

fn tokens(corpus: &Corpus, split: Split) -> Vec<u32> {
    let mut tokens = vec![0; corpus.len(split) as usize];
    corpus.tokens().read(split, 0, &mut tokens).unwrap();
    tokens
}

#[test]
fn an_epoch_is_a_permutation_of_adjacent_windows() {
    let (_dir, corpus) = corpus();
    let all = tokens(&corpus, Split::Train);
    let context = 16;
    let mut plan = plan_of(&corpus, 3, 1, context).unwrap();
    let n = plan.windows();
    assert!(n > 100 && n * 16 + 32 > all.len() as u64);
    let mut orders = Vec::new();
    for epoch in 0..3 {
        // By content: which shift makes the windows of this epoch out of the stream, once each?
        let mut found: Vec<_> = (0..n).map(|i| batch(&mut plan, &corpus, epoch * n + i, context)).collect();
        orders.push(found.clone());
        found.sort();
        let fits = |shift: &usize| {
            let mut expected: Vec<_> = (0..n as usize)
                .map(|i| {
                    let at = shift + i * context;
                    (all[at..at + context].to_vec(), all[at + 1..at + 1 + context].to_vec())
                })
                .collect();
            expected.sort();
            expected == found
        };
        assert_eq!((0..context).filter(fits).count(), 1, "epoch {epoch}");
    }
    assert!(orders[0] != orders[1] && orders[1] != orders[2]);
}

#[test]
fn a_batch_is_a_function_of_the_step() {
    let (_dir, corpus) = corpus();
    let mut plan = plan_of(&corpus, 3, 4, 16).unwrap();
    let steps = [0, 1, 7, 1000, 12_345, 1 << 40];
    let forward: Vec<_> = steps.iter().map(|&step| batch(&mut plan, &corpus, step, 64)).collect();
    // After a restart: another plan, other steps, other order.
    let mut again = plan_of(&corpus, 3, 4, 16).unwrap();
    for (i, &step) in steps.iter().enumerate().rev() {
        assert_eq!(batch(&mut again, &corpus, step, 64), forward[i]);
    }
    // Rows of a batch are the windows in turn, whatever the size of the batch.
    let mut single = plan_of(&corpus, 3, 1, 16).unwrap();
    for row in 0..4 {
        let (inputs, _) = batch(&mut single, &corpus, 7 * 4 + row, 16);
        assert_eq!(forward[2].0[row as usize * 16..][..16], inputs);
    }
    let mut other = plan_of(&corpus, 4, 4, 16).unwrap();
    assert_ne!(batch(&mut other, &corpus, 0, 64), forward[0]);
    assert!((plan.epoch(plan.windows()) - 4.0).abs() < 1e-9);
}

#[test]
fn windows_at_the_edge_of_the_text() {
    let dir = folder();
    let corpus = prepare(&memory(&[("d", "n", prose(1, 60))]), &small(), dir.path()).unwrap();
    let len = corpus.len(Split::Train) as usize;
    let held = corpus.len(Split::Validation) as usize;
    for context in 1..held {
        let mut plan = plan_of(&corpus, 1, 1, context).unwrap();
        assert!(plan.windows() >= 1 && plan.windows() as usize * context < len);
        for step in 0..plan.windows().min(50) * 3 {
            batch(&mut plan, &corpus, step, context);
        }
    }
    corpus.check(held - 1).unwrap();
    let error = corpus.check(held).unwrap_err();
    let expected = format!(
        "the validation split holds {held} tokens, fewer than one context of {held}: add text, \
         raise data.validation or lower model.context"
    );
    assert_eq!((error.to_string(), error.exit_code()), (expected, 2));
    let error = corpus.check(len).unwrap_err().to_string();
    let expected = format!(
        "the training split holds {len} tokens, fewer than one context of {len}: add text or lower model.context"
    );
    assert_eq!(error, expected);
    assert!(matches!(plan_of(&corpus, 1, 1, len), Err(Error::Short { .. })));
}

/// The smallest corpora that pass the check give plans that never read outside.
#[test]
fn tiny_training_splits() {
    let dir = folder();
    // Half is held out, so that both splits are equally small.
    let config = DataConfig { validation: 0.5, vocab: 257, ..small() };
    let corpus = prepare(&memory(&[("d", "n", "abcdefghijklmnopqrst".into())]), &config, dir.path()).unwrap();
    assert_eq!((corpus.len(Split::Train), corpus.len(Split::Validation)), (11, 11));
    for (context, windows) in [(10, 1), (9, 1), (6, 1), (5, 1), (4, 1), (3, 2), (2, 4), (1, 10)] {
        let mut plan = plan_of(&corpus, 5, 2, context).unwrap();
        assert_eq!(plan.windows(), windows, "context {context}");
        for step in 0..40 {
            batch(&mut plan, &corpus, step, 2 * context);
        }
        let set = ValidationSet::new(&corpus, context, u64::MAX).unwrap();
        assert_eq!(set.len(), 10 / context);
    }
}

#[test]
fn slices_of_the_wrong_size() {
    let (_dir, corpus) = corpus();
    let mut plan = plan_of(&corpus, 3, 2, 16).unwrap();
    let windows = plan.windows_of(0, None).unwrap();
    let error = plan.read(&corpus, &windows, &mut [0; 32], &mut [0; 31]).unwrap_err();
    assert_eq!(error.to_string(), "targets: expected 32 tokens, found 31 (this is a bug in the caller)");
    assert!(plan.windows_of(u64::MAX, None).is_err());
    assert!(plan_of(&corpus, 3, 0, 16).is_err());
    assert!(plan_of(&corpus, 3, 1, 0).is_err());
    assert!(ValidationSet::new(&corpus, 0, 100).is_err());
}

#[test]
fn validation_windows_stay_in_their_domain() {
    let (_dir, corpus) = corpus();
    let all = tokens(&corpus, Split::Validation);
    let context = 8;
    let set = ValidationSet::new(&corpus, context, u64::MAX).unwrap();
    // The stream of each domain, from the index of documents.
    let names = &corpus.tokens().manifest().domains;
    let mut streams: BTreeMap<&str, Vec<u32>> = BTreeMap::new();
    for document in corpus.tokens().documents(Split::Validation).map(Result::unwrap) {
        let range = document.start as usize..(document.start + document.tokens) as usize;
        streams.entry(&names[document.domain]).or_default().extend(&all[range]);
    }
    assert_eq!(set.domains().len(), 3);
    let (mut inputs, mut targets) = (vec![0; context], vec![0; context]);
    let mut next = vec![0; 3];
    for window in 0..set.len() {
        let domain = set.domain(window).unwrap();
        let stream = &streams[set.domains()[domain].name.as_str()];
        set.read(&corpus, window, &mut inputs, &mut targets).unwrap();
        let at: usize = next[domain];
        assert_eq!(
            (&inputs[..], &targets[..]),
            (&stream[at..at + context], &stream[at + 1..at + 1 + context])
        );
        next[domain] += context;
    }
    for (domain, reached) in set.domains().iter().zip(next) {
        let stream = &streams[domain.name.as_str()];
        assert_eq!(domain.tokens, stream.len() as u64);
        assert!(reached + context + 1 > stream.len());
    }
    assert!(set.read(&corpus, set.len(), &mut inputs, &mut targets).is_err());
}

#[test]
fn validation_is_bounded_proportional_and_fixed() {
    let (_dir, corpus) = corpus();
    let set = ValidationSet::new(&corpus, 8, 400).unwrap();
    let again = ValidationSet::new(&corpus, 8, 400).unwrap();
    assert!(set.len() <= 50 && set.len() > 45, "{}", set.len());
    let (mut a, mut b, mut targets) = (vec![0; 8], vec![0; 8], vec![0; 8]);
    let mut counts = vec![0u64; set.domains().len()];
    for window in 0..set.len() {
        set.read(&corpus, window, &mut a, &mut targets).unwrap();
        again.read(&corpus, window, &mut b, &mut targets).unwrap();
        assert_eq!(a, b);
        counts[set.domain(window).unwrap()] += 1;
    }
    let all: u64 = set.domains().iter().map(|d| d.tokens).sum();
    for (domain, count) in set.domains().iter().zip(counts) {
        assert_eq!(count, (50 * domain.tokens / all).max(1));
    }
    // One each, if there is room for none.
    assert_eq!(ValidationSet::new(&corpus, 8, 0).unwrap().len(), 3);
    let totals = corpus.tokens().manifest().validation;
    assert!((set.bytes_per_token() - totals.bytes as f64 / totals.tokens as f64).abs() < 1e-12);
    // A model that knows nothing: log2(vocab) bits per token.
    let nats = 400f64.ln();
    let expected = 400f64.log2() * totals.tokens as f64 / totals.bytes as f64;
    assert!((set.bits_per_byte(nats) - expected).abs() < 1e-9);
}

#[test]
fn short_domains_are_taken_together() {
    let documents: Vec<(String, String)> = (0..30).map(|i| (format!("d{i}"), prose(i, 6))).collect();
    let documents: Vec<_> =
        documents.iter().map(|(domain, text)| (domain.as_str(), "n", text.clone())).collect();
    let dir = folder();
    let corpus = prepare(&memory(&documents), &small(), dir.path()).unwrap();
    let set = ValidationSet::new(&corpus, 100, u64::MAX).unwrap();
    assert_eq!(set.domains().len(), 1);
    assert_eq!(set.domains()[0].name, "(short domains)");
    assert_eq!(set.domains()[0].tokens, corpus.len(Split::Validation));
    assert_eq!(set.domains()[0].bytes, corpus.tokens().manifest().validation.bytes);
    assert!(!set.is_empty());
}
