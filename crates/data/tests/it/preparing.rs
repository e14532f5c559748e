//! Text to shards: the split, determinism, sizes.

use std::collections::BTreeSet;

use tritrain_data::{Corpus, DataConfig, Preparation, Source, Split, Stage};
use tritrain_files::Disk;

use crate::common::{CONTEXT, files, folder, memory, prepare, prose, put, small, three_domains};

/// (domain, name) of every document of a split.
fn names(corpus: &Corpus, split: Split) -> BTreeSet<(String, String)> {
    let domains = &corpus.tokens().manifest().domains;
    let documents = corpus.tokens().documents(split).map(Result::unwrap);
    documents.map(|d| (domains[d.domain].clone(), d.name)).collect()
}

fn text(corpus: &Corpus, split: Split) -> String {
    let mut tokens = vec![0; corpus.len(split) as usize];
    corpus.tokens().read(split, 0, &mut tokens).unwrap();
    corpus.tokenizer().decode(&tokens)
}

#[test]
fn the_same_bytes_on_any_number_of_threads() {
    let (one, four) = (folder(), folder());
    for (dir, threads) in [(&one, 1), (&four, 4)] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| prepare(&three_domains(), &small(), dir.path()).unwrap());
    }
    let found = files(one.path());
    assert!(found.iter().any(|(name, _)| name == "tokenizer.json"));
    assert!(found.iter().any(|(name, bytes)| name == "tokens/train-00000.tok" && bytes.len() > 1000));
    assert!(found == files(four.path()));
}

#[test]
fn the_split_is_disjoint_complete_and_stable() {
    let dir = folder();
    let source = three_domains();
    let corpus = prepare(&source, &small(), dir.path()).unwrap();
    let (train, held) = (names(&corpus, Split::Train), names(&corpus, Split::Validation));
    // `one` is a single document, so it is in both, in two parts.
    let both: Vec<_> = train.intersection(&held).collect();
    assert_eq!(both, [&("one".to_owned(), "o".to_owned())]);
    assert_eq!(train.union(&held).count(), 48);
    let of = |domain: &str| held.iter().filter(|(d, _)| d == domain).count();
    assert!((1..=9).contains(&of("many")), "{held:?}");
    assert!((1..=3).contains(&of("few")), "{held:?}");
    // Every byte is in one of the two.
    let totals = Split::ALL.map(|split| corpus.tokens().manifest().totals(split));
    let bytes: usize = source.open().unwrap().map(|d| d.unwrap().text.len()).sum();
    assert_eq!(totals[0].bytes + totals[1].bytes, bytes as u64);
    assert_eq!((text(&corpus, Split::Train).len() + text(&corpus, Split::Validation).len()), bytes);

    // Other order, other documents beside them: each stays where it was.
    let Source::Memory { documents, .. } = source else { unreachable!() };
    let mut more: Vec<_> = documents.into_iter().rev().collect();
    more.extend((0..30).map(|i| tritrain_data::Document {
        domain: "new".into(),
        name: format!("n{i}"),
        text: prose(500 + i, 5),
        ..Default::default()
    }));
    let more = Source::Memory { name: "more".into(), documents: more };
    let dir = folder();
    let other = prepare(&more, &small(), dir.path()).unwrap();
    let old = |(domain, _): &(String, String)| domain != "new";
    assert_eq!(names(&other, Split::Validation).into_iter().filter(old).collect::<BTreeSet<_>>(), held);
    assert_eq!(names(&other, Split::Train).into_iter().filter(old).collect::<BTreeSet<_>>(), train);
}

#[test]
fn shares_are_met() {
    let documents: Vec<_> = (0..4000).map(|i| ("d", i.to_string(), format!("text {i}"))).collect();
    let documents: Vec<_> = documents.iter().map(|(d, n, t)| (*d, n.as_str(), t.clone())).collect();
    let dir = folder();
    let config = DataConfig { validation: 0.05, vocab: 300, ..DataConfig::default() };
    let corpus = prepare(&memory(&documents), &config, dir.path()).unwrap();
    let held = corpus.tokens().manifest().validation.documents;
    assert!((150..250).contains(&held), "{held} of 4000");
}

#[test]
fn a_single_document_is_split_by_its_tokens() {
    let dir = folder();
    let all = prose(1, 400);
    let corpus = prepare(&memory(&[("d", "n", all.clone())]), &small(), dir.path()).unwrap();
    assert_eq!(text(&corpus, Split::Train) + &text(&corpus, Split::Validation), all);
    // Each part has an end of text.
    let [train, held] = Split::ALL.map(|split| corpus.len(split) - 1);
    assert_eq!(held, ((train + held) as f64 * f64::from(0.1f32)).ceil() as u64);
    let totals = corpus.tokens().manifest().validation;
    assert_eq!(totals.bytes as usize, text(&corpus, Split::Validation).len());
}

#[test]
fn copies_do_not_leak() {
    let copy = prose(1, 50);
    let mut documents = vec![("d", "same", copy.clone()), ("d", "same", copy.clone()), ("d", "same", copy)];
    for i in 0..10 {
        documents.push(("d", "other", prose(10 + i, 20)));
    }
    let dir = folder();
    let config = DataConfig { validation: 0.5, ..small() };
    let corpus = prepare(&memory(&documents), &config, dir.path()).unwrap();
    let same = |split| {
        let all = corpus.tokens().documents(split).map(Result::unwrap);
        all.filter(|d| d.name == "same").count()
    };
    assert!([(3, 0), (0, 3)].contains(&(same(Split::Train), same(Split::Validation))));
}

#[test]
fn domains_of_files_survive() {
    let (dir, text) = (folder(), folder());
    put(text.path(), "en/a.txt", prose(1, 50));
    put(text.path(), "en/b.txt", prose(2, 50));
    put(text.path(), "wiki.jsonl", format!("{{\"text\": {:?}}}\n", prose(3, 50)));
    let source = Source::Paths(vec![text.path().to_path_buf()]);
    let corpus = prepare(&source, &small(), dir.path()).unwrap();
    assert_eq!(corpus.tokens().manifest().domains, ["en", "wiki"]);
    corpus.tokens().verify(&Disk).unwrap();
}

#[test]
fn progress_goes_through_the_stages() {
    let dir = folder();
    let source = three_domains();
    let mut work = Preparation::start(&Disk, &source, (&small(), CONTEXT), dir.path()).unwrap();
    let mut stages = vec![work.progress().unwrap()];
    while let Some(progress) = work.advance().unwrap() {
        assert!(progress.done <= progress.total && progress.total > 0);
        stages.push(progress);
    }
    let stages: Vec<_> = stages.iter().map(|progress| progress.stage).collect();
    assert_eq!(stages, [Stage::Scan, Stage::Tokenizer, Stage::Encode]);
    assert!(work.advance().unwrap().is_none());
    work.finish().unwrap();
}

#[test]
fn large_text_streams_through_several_chunks() {
    let (dir, text) = (folder(), folder());
    let long = prose(5, 400_000);
    assert!(long.len() > 18 << 20);
    put(text.path(), "long.txt", &long);
    let source = Source::Paths(vec![text.path().join("long.txt")]);
    let mut work = Preparation::start(&Disk, &source, (&DataConfig::default(), CONTEXT), dir.path()).unwrap();
    let mut steps = 0;
    while work.advance().unwrap().is_some() {
        steps += 1;
    }
    assert!(steps > 4);
    let corpus = work.finish().unwrap();
    let totals = Split::ALL.map(|split| corpus.tokens().manifest().totals(split));
    assert_eq!(totals[0].bytes + totals[1].bytes, long.len() as u64);
    let share = totals[1].bytes as f64 / long.len() as f64;
    assert!((0.005..0.08).contains(&share), "{share}");
}

#[test]
fn no_text_is_an_error() {
    let (dir, text) = (folder(), folder());
    put(text.path(), "empty.txt", "");
    put(text.path(), "image.png", "x");
    put(text.path(), ".hidden", "x");
    let source = Source::Paths(vec![text.path().to_path_buf()]);
    let error = prepare(&source, &small(), dir.path()).unwrap_err();
    let found = error.to_string();
    assert!(found.starts_with("no text in "), "{found}");
    assert!(
        found.contains("(1 hidden and 1 unknown files skipped): expected at least one document"),
        "{found}"
    );
    assert_eq!(error.exit_code(), 2);
    assert!(!dir.path().join("tokens").exists());
}

#[test]
fn a_bad_line_at_the_end_leaves_nothing() {
    let (dir, text) = (folder(), folder());
    let good = "{\"text\": \"good\"}\n".repeat(1000);
    let path = put(text.path(), "a.jsonl", [good.as_bytes(), b"\xff\n"].concat());
    let error = prepare(&Source::Paths(vec![path]), &small(), dir.path()).unwrap_err();
    assert!(error.to_string().contains("a.jsonl:1001: expected UTF-8"), "{error}");
    assert!(files(dir.path()).is_empty());
}

#[test]
fn options_out_of_range() {
    let dir = folder();
    for (config, expected) in [
        (DataConfig { vocab: 256, ..small() }, "data.vocab = 256: expected 257 to 262144"),
        (
            DataConfig { validation: 2.0, ..small() },
            "data.validation = 2: expected 0.0001 to 0.5 (a share, not percent)",
        ),
        (
            DataConfig { validation: f32::NAN, ..small() },
            "data.validation = NaN: expected 0.0001 to 0.5 (a share, not percent)",
        ),
        (
            DataConfig { paths: vec![" ".into()], ..small() },
            "data.paths = \" \": expected paths of files or folders",
        ),
    ] {
        let error = prepare(&three_domains(), &config, dir.path()).unwrap_err();
        assert_eq!((error.to_string().as_str(), error.exit_code()), (expected, 2));
    }
}
