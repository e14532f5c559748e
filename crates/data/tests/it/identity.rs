//! When shards are used again, when they are made again, and when that is refused.

use std::path::Path;

use tritrain_data::{Corpus, DataConfig, Error, Preparation, Source, Tokenizer};
use tritrain_files::faulty::{Failure, PowerLoss};
use tritrain_files::{Disk, FaultyStorage};

use crate::common::{CONTEXT, files, folder, prepare, prose, put, small};

/// Whether preparing did nothing at all, did only read, or made shards.
#[derive(Debug, PartialEq)]
enum Did {
    Nothing,
    Read,
    Made,
}

fn did(source: &Source, config: &DataConfig, dir: &Path) -> Did {
    let shard = dir.join("tokens/manifest.json");
    let before = std::fs::metadata(&shard).and_then(|meta| meta.modified()).ok();
    let mut work = Preparation::start(&Disk, source, (config, CONTEXT), dir).unwrap();
    if work.progress().is_none() {
        return Did::Nothing;
    }
    while work.advance().unwrap().is_some() {}
    work.finish().unwrap();
    let after = std::fs::metadata(&shard).and_then(|meta| meta.modified()).ok();
    if before == after { Did::Read } else { Did::Made }
}

fn resume(source: &Source, config: &DataConfig, dir: &Path) -> Result<Corpus, Error> {
    Preparation::resume(&Disk, source, (config, CONTEXT), dir)?.finish()
}

fn corpus(text: &Path) -> Source {
    for i in 0..6 {
        put(text, &format!("{i}.txt"), prose(i, 40));
    }
    Source::Paths(vec![text.to_path_buf()])
}

#[test]
fn what_agrees_is_used_again() {
    let (dir, text) = (folder(), folder());
    let source = corpus(text.path());
    assert_eq!(did(&source, &small(), dir.path()), Did::Made);
    let made = files(dir.path());
    assert_eq!(did(&source, &small(), dir.path()), Did::Nothing);
    let hash = resume(&source, &small(), dir.path()).unwrap().hash().to_owned();
    // Touched, not changed: read once, then known.
    put(text.path(), "3.txt", prose(3, 40));
    assert_eq!(did(&source, &small(), dir.path()), Did::Read);
    assert_eq!(did(&source, &small(), dir.path()), Did::Nothing);
    put(text.path(), "3.txt", prose(3, 40));
    assert_eq!(resume(&source, &small(), dir.path()).unwrap().hash(), hash);
    assert_eq!(did(&source, &small(), dir.path()), Did::Nothing);
    assert!(files(dir.path()) == made);
    assert_eq!(Corpus::open(&Disk, dir.path()).unwrap().hash(), hash);
}

#[test]
fn what_does_not_agree_is_made_again_or_refused() {
    let (dir, text) = (folder(), folder());
    let source = corpus(text.path());
    prepare(&source, &small(), dir.path()).unwrap();
    for config in [DataConfig { vocab: 300, ..small() }, DataConfig { validation: 0.2, ..small() }] {
        let error = resume(&source, &config, dir.path()).unwrap_err();
        assert!(error.to_string().starts_with("the data options of "), "{error}");
        assert_eq!(error.exit_code(), 5);
    }
    put(text.path(), "3.txt", prose(99, 40));
    let error = resume(&source, &small(), dir.path()).unwrap_err();
    assert!(matches!(&error, Error::Identity { what: "the text", .. }), "{error}");
    assert_eq!(error.exit_code(), 5);
    assert_eq!(did(&source, &small(), dir.path()), Did::Made);
    assert_eq!(did(&source, &DataConfig { vocab: 300, ..small() }, dir.path()), Did::Made);
    assert_eq!(Corpus::open(&Disk, dir.path()).unwrap().tokenizer().vocab_size(), 300);
}

#[test]
fn nothing_to_resume() {
    let (dir, text) = (folder(), folder());
    let error = resume(&corpus(text.path()), &small(), dir.path()).unwrap_err();
    assert_eq!(error.exit_code(), 4, "{error}");
}

#[test]
fn another_tokenizer_under_the_tokens() {
    let (dir, text) = (folder(), folder());
    let source = corpus(text.path());
    prepare(&source, &small(), dir.path()).unwrap();
    let other = Tokenizer::train(&[prose(77, 50)], 300).unwrap();
    other.save(&Disk, &dir.path().join("tokenizer.json")).unwrap();
    let error = Corpus::open(&Disk, dir.path()).unwrap_err();
    assert!(error.to_string().starts_with("the tokenizer of "), "{error}");
    assert_eq!(error.exit_code(), 5);
    assert_eq!(resume(&source, &small(), dir.path()).unwrap_err().exit_code(), 5);
    assert_eq!(did(&source, &small(), dir.path()), Did::Made);
}

#[test]
fn a_tokenizer_of_ones_own() {
    let (dir, text) = (folder(), folder());
    let source = corpus(text.path());
    let own = Tokenizer::train(&[prose(77, 50)], 300).unwrap();
    let path = text.path().join("own.tokenizer");
    own.save(&Disk, &path).unwrap();
    let config = DataConfig { tokenizer: path.display().to_string(), ..small() };
    let corpus = prepare(&source, &config, dir.path()).unwrap();
    assert_eq!(corpus.tokenizer().hash(), own.hash());
    drop(corpus);
    assert_eq!(did(&source, &config, dir.path()), Did::Nothing);
    // data.vocab plays no part then.
    assert_eq!(did(&source, &DataConfig { vocab: 999, ..config.clone() }, dir.path()), Did::Nothing);
    Tokenizer::train(&[prose(78, 50)], 310).unwrap().save(&Disk, &path).unwrap();
    assert_eq!(resume(&source, &config, dir.path()).unwrap_err().exit_code(), 5);
}

#[test]
fn leftovers_of_a_killed_preparation_are_removed() {
    let (dir, text) = (folder(), folder());
    let source = corpus(text.path());
    put(dir.path(), "tokens.tmp-1-0/train-00000.tok", "x");
    put(dir.path(), "tokens/train-00000.tok", "half a corpus");
    assert_eq!(did(&source, &small(), dir.path()), Did::Made);
    assert!(!dir.path().join("tokens.tmp-1-0").exists());
    Corpus::open(&Disk, dir.path()).unwrap().tokens().verify(&Disk).unwrap();
}

#[test]
fn text_that_changes_between_the_passes() {
    let (dir, text) = (folder(), folder());
    let source = corpus(text.path());
    let mut work = Preparation::start(&Disk, &source, (&small(), CONTEXT), dir.path()).unwrap();
    work.advance().unwrap();
    put(text.path(), "3.txt", prose(99, 40));
    let error = work.finish().unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error}");
    assert!(!dir.path().join("tokens").exists());
}

/// Whatever operation fails, and whatever of it survives, there is afterwards a whole corpus, the right
/// one, or none; and the next preparation makes it.
#[test]
fn storage_that_fails_leaves_a_whole_corpus_or_none() {
    let text = folder();
    let source = corpus(text.path());
    let dir = Path::new("/run");
    let make =
        |storage: &FaultyStorage| Preparation::start(storage, &source, (&small(), CONTEXT), dir)?.finish();
    let whole = FaultyStorage::new();
    let hash = make(&whole).unwrap().hash().to_owned();
    let operations = whole.operations();
    assert!(operations > 20, "{operations}");
    for how in [Failure::NoSpace, Failure::Io, Failure::PowerOff] {
        for at in 0..operations {
            let storage = FaultyStorage::new();
            storage.fail_at(at, how, true);
            if let Err(error) = make(&storage) {
                assert_eq!(error.exit_code(), 4, "{error}");
            }
            storage.heal();
            for after in
                [storage.fork(), storage.crash(PowerLoss::DropAll), storage.crash(PowerLoss::Random(at))]
            {
                if let Ok(found) = Corpus::open(&after, dir) {
                    assert_eq!(found.hash(), hash);
                    found.tokens().verify(&after).unwrap();
                }
                assert_eq!(make(&after).unwrap().hash(), hash);
            }
        }
    }
}
