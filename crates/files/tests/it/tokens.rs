//! Token shards: round trips across borders, damage, bounds.

use std::path::Path;

use proptest::prelude::*;
use tritrain_files::tokens::{CorpusWriter, Document, Manifest, NO_TARGET_MARK, Split, TokenCorpus};
use tritrain_files::{Disk, Error, FaultyStorage, Result, Storage};

const EOS: u32 = 2;

fn dir() -> &'static Path {
    Path::new("/run/tokens")
}

/// Split, domain, tokens.
type Text = (Split, usize, Vec<u32>);

fn write(storage: &dyn Storage, dir: &Path, vocab: u32, shard: u64, texts: &[Text]) -> Result<Manifest> {
    let mut writer = CorpusWriter::create(storage, dir, vocab, EOS, "t0k", "50ce")?.with_shard_bytes(shard);
    for (n, (split, domain, tokens)) in texts.iter().enumerate() {
        writer.document(*split, &format!("domain-{domain}"), &format!("doc-{n}"), n as u64, tokens)?;
    }
    writer.finish()
}

fn sample(vocab: u32) -> Vec<Text> {
    let split = |n: u32| if n.is_multiple_of(4) { Split::Validation } else { Split::Train };
    (0..20).map(|n| (split(n), n as usize % 3, (0..n * 7).map(|t| (t * 31 + n) % vocab).collect())).collect()
}

/// Everything a corpus says, against what was written.
fn check(corpus: &TokenCorpus, texts: &[Text]) {
    for split in Split::ALL {
        let mut stream = Vec::new();
        let mut documents = Vec::new();
        for (n, (_, domain, tokens)) in texts.iter().enumerate().filter(|(_, text)| text.0 == split) {
            let name = format!("domain-{domain}");
            documents.push(Document {
                domain: corpus.manifest().domains.iter().position(|d| *d == name).unwrap(),
                name: format!("doc-{n}"),
                start: stream.len() as u64,
                tokens: tokens.len() as u64 + 1,
                bytes: n as u64,
            });
            stream.extend(tokens);
            stream.push(EOS);
        }
        assert_eq!(corpus.len(split), stream.len() as u64);
        assert_eq!(corpus.is_empty(split), stream.is_empty());
        assert_eq!(corpus.documents(split).collect::<Result<Vec<_>>>().unwrap(), documents);
        let totals = corpus.manifest().totals(split);
        assert_eq!(totals.documents, documents.len() as u64);
        assert_eq!(totals.bytes, documents.iter().map(|d| d.bytes).sum::<u64>());
        let mut out = vec![0; stream.len()];
        corpus.read(split, 0, &mut out).unwrap();
        assert_eq!(out, stream);
        for start in 0..stream.len() {
            let len = (start * 13 + 5) % (stream.len() - start + 1);
            corpus.read(split, start as u64, &mut out[..len]).unwrap();
            assert_eq!(out[..len], stream[start..start + len]);
        }
        for (start, len) in [(stream.len() as u64, 1), (u64::MAX, 1), (0, stream.len() + 1)] {
            let error = corpus.read(split, start, &mut vec![0; len]).unwrap_err();
            assert!(matches!(error, Error::Invalid { .. }));
        }
    }
}

#[test]
fn round_trip_across_shards_in_both_widths() {
    for (vocab, width) in [(50, 2), (65_536, 2), (65_537, 4), (u32::MAX, 4)] {
        for shard in [1, 64, 100, 1 << 20] {
            let storage = FaultyStorage::new();
            let mut texts = sample(vocab);
            texts.push((Split::Train, 0, vec![vocab - 1, 0, vocab - 1]));
            let manifest = write(&storage, dir(), vocab, shard, &texts).unwrap();
            let corpus = TokenCorpus::open(&storage, dir()).unwrap();
            assert_eq!(corpus.manifest(), &manifest);
            assert_eq!(manifest.dtype.width(), width);
            corpus.verify(&storage).unwrap();
            check(&corpus, &texts);
        }
    }
}

#[test]
fn a_corpus_on_disk() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("run/tokens");
    let texts = sample(300);
    write(&Disk, &dir, 300, 128, &texts).unwrap();
    let corpus = TokenCorpus::open(&Disk, &dir).unwrap();
    corpus.verify(&Disk).unwrap();
    check(&corpus, &texts);
    // The hash is one of content: the same text gives it again, another text another.
    let storage = FaultyStorage::new();
    write(&storage, &dir, 300, 128, &texts).unwrap();
    assert_eq!(TokenCorpus::open(&storage, &dir).unwrap().content_hash(), corpus.content_hash());
    write(&storage, self::dir(), 300, 128, &texts[1..]).unwrap();
    assert_ne!(TokenCorpus::open(&storage, self::dir()).unwrap().content_hash(), corpus.content_hash());
    // It is never overwritten, and nothing is left behind.
    assert!(matches!(write(&Disk, &dir, 300, 128, &texts), Err(Error::Exists { .. })));
    drop(CorpusWriter::create(&Disk, &temp.path().join("run/other"), 300, 0, "", "").unwrap());
    assert_eq!(Disk.list(&temp.path().join("run")).unwrap(), [dir]);
}

#[test]
fn an_empty_corpus() {
    let storage = FaultyStorage::new();
    write(&storage, dir(), 300, 128, &[]).unwrap();
    let corpus = TokenCorpus::open(&storage, dir()).unwrap();
    check(&corpus, &[]);
    check(&corpus, &[]);
    corpus.verify(&storage).unwrap();
}

#[test]
fn every_truncation_and_extension_is_refused() {
    let storage = FaultyStorage::new();
    write(&storage, dir(), 300, 700, &sample(300)).unwrap();
    for path in storage.list(dir()).unwrap() {
        let whole = storage.read(&path).unwrap();
        for len in (0..whole.len()).rev() {
            storage.damage(&path, |bytes| bytes.truncate(len)).unwrap();
            TokenCorpus::open(&storage, dir()).map(drop).expect_err("a cut file");
        }
        storage.damage(&path, |bytes| (*bytes = whole.clone(), bytes.push(0)).1).unwrap();
        TokenCorpus::open(&storage, dir()).map(drop).expect_err("a longer file");
        storage.damage(&path, |bytes| *bytes = whole).unwrap();
    }
    for path in storage.list(dir()).unwrap() {
        let fork = storage.fork();
        fork.remove_file(&path).unwrap();
        TokenCorpus::open(&fork, dir()).map(drop).expect_err("a missing file");
    }
}

#[test]
fn every_flipped_bit_is_found_and_none_panics() {
    let storage = FaultyStorage::new();
    write(&storage, dir(), 300, 128, &sample(300)[..8]).unwrap();
    for path in storage.list(dir()).unwrap() {
        for bit in 0..storage.len(&path).unwrap() as usize * 8 {
            let flip = |bytes: &mut Vec<u8>| bytes[bit / 8] ^= 1 << (bit % 8);
            storage.damage(&path, flip).unwrap();
            if let Ok(corpus) = TokenCorpus::open(&storage, dir()) {
                corpus.verify(&storage).expect_err("a flipped bit");
                for split in Split::ALL {
                    let _ = corpus.read(split, 0, &mut vec![0; corpus.len(split) as usize]);
                    corpus.documents(split).for_each(drop);
                }
            }
            storage.damage(&path, flip).unwrap();
        }
    }
}

#[test]
fn marks_come_back_and_are_no_part_of_tokens() {
    let storage = FaultyStorage::new();
    let writer = CorpusWriter::create(&storage, dir(), 300, EOS, "t", "s").unwrap();
    // Shards of three tokens.
    let mut writer = writer.with_marks().with_shard_bytes(14);
    let m = NO_TARGET_MARK;
    writer.document(Split::Train, "d", "a", 1, &[5 | m, 6, 299 | m]).unwrap();
    writer.document(Split::Train, "d", "b", 1, &[7 | m, 8]).unwrap();
    writer.document(Split::Validation, "d", "c", 1, &[9]).unwrap();
    writer.document(Split::Train, "d", "x", 1, &[300 | m]).unwrap_err();
    assert_eq!(writer.finish().unwrap().shards.len(), 4);
    let corpus = TokenCorpus::open(&storage, dir()).unwrap();
    corpus.verify(&storage).unwrap();
    assert!(corpus.is_marked());
    let mut tokens = [0; 7];
    corpus.read(Split::Train, 0, &mut tokens).unwrap();
    assert_eq!(tokens, [5, 6, 299, EOS, 7, 8, EOS]);
    corpus.read_marked(Split::Train, 0, &mut tokens).unwrap();
    // The end of a document is a target where what is before it is one.
    assert_eq!(tokens, [5 | m, 6, 299 | m, EOS | m, 7 | m, 8, EOS]);
    storage
        .damage(&dir().join("train-00000.tok"), |bytes| {
            bytes[4..8].copy_from_slice(&(300 | NO_TARGET_MARK).to_le_bytes());
        })
        .unwrap();
    let corpus = TokenCorpus::open(&storage, dir()).unwrap();
    let error = corpus.read_marked(Split::Train, 0, &mut [0; 3]).unwrap_err();
    assert!(matches!(&error, Error::Broken { what, .. } if what == "token 1"), "{error}");
}

#[test]
fn a_token_outside_the_vocabulary_is_refused_on_both_sides() {
    let storage = FaultyStorage::new();
    let mut writer = CorpusWriter::create(&storage, dir(), 300, EOS, "t", "s").unwrap();
    writer.document(Split::Train, "d", "n", 1, &[1, 300]).unwrap_err();
    writer.document(Split::Train, "d", "n", 1, &[1, 299]).unwrap();
    writer.document(Split::Train, "d", &"n".repeat(1 << 16), 1, &[1]).unwrap_err();
    assert_eq!(writer.finish().unwrap().train.tokens, 3);
    storage
        .damage(&dir().join("train-00000.tok"), |bytes| bytes[2..4].copy_from_slice(&300u16.to_le_bytes()))
        .unwrap();
    let corpus = TokenCorpus::open(&storage, dir()).unwrap();
    let error = corpus.read(Split::Train, 0, &mut [0; 3]).unwrap_err();
    assert!(matches!(&error, Error::Broken { what, .. } if what == "token 1"), "{error}");
    corpus.read(Split::Train, 2, &mut [0]).unwrap();
    let bad = CorpusWriter::create(&storage, Path::new("/run/bad"), 300, 300, "t", "s");
    assert!(matches!(bad, Err(Error::Invalid { .. })));
}

#[test]
fn bad_document_records_are_typed_errors() {
    // Byte of the second record, new value, rule.
    let cases: [(usize, u8, &str); 7] = [
        (0, 7, "split"),
        (2, 255, "name"),
        (4, 9, "domain"),
        (8, 99, "first token"),
        (16, 0, "number of tokens"),
        (23, 255, "number of tokens"),
        (39, 255, "name"),
    ];
    for (at, value, rule) in cases {
        let storage = FaultyStorage::new();
        let texts = [(Split::Train, 0, vec![5, 6]), (Split::Train, 0, vec![7])];
        write(&storage, dir(), 300, 128, &texts).unwrap();
        storage.damage(&dir().join("documents.bin"), |bytes| bytes[40 + at] = value).unwrap();
        let corpus = TokenCorpus::open(&storage, dir()).unwrap();
        let all: Vec<_> = corpus.documents(Split::Train).collect();
        assert_eq!(all.len(), 2, "{rule}");
        assert!(matches!(&all[1], Err(Error::Broken { what, .. }) if what == rule), "{rule}: {:?}", all[1]);
    }
    // A record that claims the other split leaves tokens without a document.
    let storage = FaultyStorage::new();
    write(&storage, dir(), 300, 128, &[(Split::Train, 0, vec![5]), (Split::Train, 0, vec![6])]).unwrap();
    storage.damage(&dir().join("documents.bin"), |bytes| bytes[40] = 1).unwrap();
    let corpus = TokenCorpus::open(&storage, dir()).unwrap();
    corpus.documents(Split::Train).last().unwrap().unwrap_err();
    corpus.documents(Split::Validation).last().unwrap().unwrap_err();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_corpus_comes_back(
        texts in prop::collection::vec(
            (prop::sample::select(&Split::ALL[..]), 0..4usize, prop::collection::vec(0..70_000u32, 0..60)), 0..12),
        shard in 1..300u64,
    ) {
        let storage = FaultyStorage::new();
        storage.short_writes(shard);
        write(&storage, dir(), 70_000, shard, &texts).unwrap();
        check(&TokenCorpus::open(&storage, dir()).unwrap(), &texts);
    }
}
