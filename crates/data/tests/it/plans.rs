//! Plans by clusters: what an epoch shows, and that a plan is a function of its step and state.

use std::collections::{BTreeMap, BTreeSet};

use tritrain_data::clusters::Clusters;
use tritrain_data::embed::Fit;
use tritrain_data::{
    BatchPlan, Corpus, Document, Error, Labelling, LeftOut, Mixer, PlanKind, PlanOptions, Source, Split,
    ValidationSet, Window,
};
use tritrain_files::Disk;

use crate::common::{folder, prepare, small};

const K: usize = 3;
const CONTEXT: usize = 16;
const BATCH: usize = 4;

/// Documents about three things, most of them about the first.
fn source() -> Source {
    let words = [
        ["bread", "flour", "oven", "yeast", "crust", "dough"],
        ["sail", "mast", "harbour", "tide", "anchor", "deck"],
        ["violin", "sonata", "tempo", "chord", "octave", "opera"],
    ];
    let text = |about: usize, n: usize| {
        let word = |i: usize| words[about][(i * i + n * 7 + i / 5) % 6];
        (0..150).map(word).collect::<Vec<_>>().join(" ")
    };
    let about = |n: usize| [0, 0, 0, 1, 0, 2][n % 6];
    let documents = (0..60).map(|n| Document {
        domain: about(n).to_string(),
        name: n.to_string(),
        text: text(about(n), n),
        ..Document::default()
    });
    Source::Memory { name: "three things".into(), documents: documents.collect() }
}

/// A cluster for each thing, from a document about it.
fn clusters(source: &Source) -> Clusters<'static> {
    let mut fit = Fit::words(source.open().unwrap(), 1).unwrap();
    while fit.advance().unwrap() {}
    let embedder = fit.finish().unwrap().embedder;
    let mut scratch = embedder.scratch();
    let mut centroids = vec![0.0; K * embedder.dim()];
    let Source::Memory { documents, .. } = source else { unreachable!() };
    for (thing, centroid) in centroids.chunks_exact_mut(embedder.dim()).enumerate() {
        let document = documents.iter().find(|d| d.domain == thing.to_string()).unwrap();
        embedder.embed(&mut scratch, &document.text, centroid).unwrap();
    }
    Clusters::new(embedder, centroids, (0..K).map(|k| k.to_string()).collect()).unwrap()
}

fn labelling(id: &str) -> Labelling<'_> {
    Labelling { id, ordered: true, duplicates: 0.0 }
}

fn corpus() -> (tempfile::TempDir, Corpus) {
    let (dir, source) = (folder(), source());
    let corpus = prepare(&source, &small(), dir.path()).unwrap();
    let corpus =
        corpus.with_clusters::<Error>(&Disk, dir.path(), labelling("things"), |_| Ok(clusters(&source)));
    (dir, corpus.unwrap())
}

fn options(kind: PlanKind, seed: u64) -> PlanOptions {
    PlanOptions { kind, only: None, repeat: 2, seed, batch: BATCH, context: CONTEXT }
}

fn windows(plan: &mut BatchPlan, steps: std::ops::Range<u64>) -> Vec<Window> {
    steps.flat_map(|step| plan.windows_of(step, None).unwrap()).collect()
}

fn counts(windows: &[Window]) -> BTreeMap<u32, usize> {
    let mut counts = BTreeMap::new();
    for window in windows {
        *counts.entry(window.cluster.unwrap()).or_default() += 1;
    }
    counts
}

#[test]
fn labels_are_those_of_the_documents_and_are_found_again() {
    let (dir, corpus) = corpus();
    let labels = corpus.labels().unwrap();
    let names = &corpus.tokens().manifest().domains;
    for split in [Split::Train, Split::Validation] {
        for document in corpus.tokens().documents(split).map(Result::unwrap) {
            let found = labels.majority(split, document.start, document.tokens);
            assert_eq!(found.to_string(), names[document.domain], "{}", document.name);
        }
        assert_eq!(labels.totals(split).iter().sum::<u64>(), corpus.len(split));
    }
    // The same ones come from the file; other clusters make others.
    let hash = labels.hash().to_owned();
    assert_eq!(corpus.hash(), hash);
    let again = Corpus::open(&Disk, dir.path()).unwrap();
    let plain = again.hash().to_owned();
    let again = again
        .with_clusters::<Error>(&Disk, dir.path(), labelling("things"), |_| panic!("the file is there"))
        .unwrap();
    assert_eq!(again.hash(), hash);
    assert_ne!(hash, plain);
    let saved = Corpus::open(&Disk, dir.path()).unwrap().with_saved_clusters(&Disk, dir.path()).unwrap();
    assert_eq!(saved.hash(), hash);
    let mut asked = false;
    let other = Corpus::open(&Disk, dir.path()).unwrap();
    let other = other.with_clusters::<Error>(&Disk, dir.path(), labelling("other things"), |_| {
        asked = true;
        Ok(clusters(&source()))
    });
    assert!(other.unwrap().hash() != hash && asked);
}

#[test]
fn plans_without_repeats_show_every_window_once() {
    let (_dir, corpus) = corpus();
    for kind in [PlanKind::Shuffle, PlanKind::Stratified, PlanKind::Ordered, PlanKind::Homogeneous] {
        let mut plan = BatchPlan::new(&corpus, &options(kind, 5)).unwrap();
        // Whole epochs and whole batches.
        let epochs = BATCH as u64;
        let steps = plan.windows();
        let all = windows(&mut plan, 0..steps);
        assert_eq!(all.len() as u64, plan.windows() * epochs);
        let mut orders = BTreeSet::new();
        for epoch in all.chunks(plan.windows() as usize) {
            let starts: BTreeSet<u64> = epoch.iter().map(|window| window.start).collect();
            assert_eq!(starts.len(), epoch.len(), "{kind:?} shows a window twice");
            assert!(starts.iter().zip(starts.iter().skip(1)).all(|(a, b)| b - a >= CONTEXT as u64));
            orders.insert(epoch.iter().map(|window| window.start).collect::<Vec<_>>());
        }
        assert_eq!(orders.len() as u64, epochs, "{kind:?} repeats an epoch");
        // And of the text every token but those at the ends.
        let mut seen = vec![0u32; corpus.len(Split::Train) as usize];
        for window in &all[..plan.windows() as usize] {
            for (start, len) in plan.tokens_of(*window) {
                seen[start as usize..(start + len) as usize].iter_mut().for_each(|count| *count += 1);
            }
        }
        let missed = seen.iter().filter(|count| **count == 0).count();
        let most = if kind == PlanKind::Homogeneous { (BATCH + 1) * CONTEXT } else { 2 * CONTEXT };
        assert!(missed <= most, "{kind:?} leaves out {missed} tokens");
        // Windows overlap by one token, in the order that the plan lays them out in.
        assert!(seen.iter().all(|count| *count <= 2));
    }
}

#[test]
fn shares_are_those_of_the_plan() {
    let (_dir, corpus) = corpus();
    let mut shuffle = BatchPlan::new(&corpus, &options(PlanKind::Shuffle, 5)).unwrap();
    let steps = shuffle.windows() / BATCH as u64;
    let natural = counts(&windows(&mut shuffle, 0..steps));
    assert!(natural[&0] > 3 * natural[&1]);
    // Stratified: any few batches have the shares of the whole.
    let mut plan = BatchPlan::new(&corpus, &options(PlanKind::Stratified, 5)).unwrap();
    for from in [0, 5, steps - 10] {
        let found = counts(&windows(&mut plan, from..from + 10));
        for (cluster, count) in &natural {
            let expected = 40.0 * *count as f64 / (steps * BATCH as u64) as f64;
            let found = found.get(cluster).copied().unwrap_or(0) as f64;
            assert!((found - expected).abs() <= 3.0, "{cluster}: {found} for {expected}");
        }
    }
    // Balanced: the small ones come twice, which is as often as they may.
    let mut plan = BatchPlan::new(&corpus, &options(PlanKind::Balanced, 5)).unwrap();
    let all = windows(&mut plan, 0..steps);
    let balanced = counts(&all);
    assert!(balanced[&1] + 4 >= 2 * natural[&1] && balanced[&1] <= 2 * natural[&1] + 4, "{balanced:?}");
    let mut times: BTreeMap<u64, usize> = BTreeMap::new();
    all.iter().for_each(|window| *times.entry(window.start).or_default() += 1);
    assert!(times.values().all(|count| *count <= 2));
    // Homogeneous: nearly all batches hold one cluster.
    let mut plan = BatchPlan::new(&corpus, &options(PlanKind::Homogeneous, 5)).unwrap();
    let pure = windows(&mut plan, 0..steps)
        .chunks(BATCH)
        .filter(|batch| batch.iter().all(|window| window.cluster == batch[0].cluster))
        .count() as u64;
    assert!(pure + K as u64 >= steps, "{pure} of {steps}");
}

/// In the order of the ordered plan, documents about a thing follow each other.
#[test]
fn documents_that_are_alike_share_windows() {
    let (_dir, corpus) = corpus();
    let mixed = |kind: PlanKind| {
        let mut plan = BatchPlan::new(&corpus, &options(kind, 5)).unwrap();
        let (labels, steps) = (corpus.labels().unwrap(), plan.windows() / BATCH as u64);
        let all = windows(&mut plan, 0..steps);
        let several = |window: &&Window| {
            let mut tokens = vec![0; K];
            for (start, len) in plan.tokens_of(**window) {
                labels.count(Split::Train, start, len, &mut tokens);
            }
            tokens.iter().filter(|tokens| **tokens > 0).count() > 1
        };
        all.iter().filter(several).count()
    };
    let (ordered, shuffled) = (mixed(PlanKind::Ordered), mixed(PlanKind::Shuffle));
    assert!(ordered <= K && shuffled > 10 * K, "{ordered} and {shuffled} windows of two things");
}

#[test]
fn the_adaptive_plan_is_a_function_of_its_state() {
    let (_dir, corpus) = corpus();
    let learn = |mixer: &mut Mixer, windows: &[Window], step: u64| {
        let clusters: BTreeSet<u32> = windows.iter().map(|window| window.cluster.unwrap()).collect();
        // The third thing is being learnt, the others are not.
        let loss = |cluster: u32| if cluster == 2 { 5.0 / (1.0 + 0.05 * step as f64) } else { 5.0 };
        mixer.learn(clusters.into_iter().map(|cluster| (cluster, loss(cluster))));
    };
    let run = |from: u64, to: u64, mixer: &mut Mixer| {
        let mut plan = BatchPlan::new(&corpus, &options(PlanKind::Adaptive, 5)).unwrap();
        let mut all = Vec::new();
        for step in from..to {
            let windows = plan.windows_of(step, Some(mixer)).unwrap();
            learn(mixer, &windows, step);
            all.push(windows);
        }
        all
    };
    let plan = BatchPlan::new(&corpus, &options(PlanKind::Adaptive, 5)).unwrap();
    let mut mixer = plan.mixer().unwrap();
    let whole = run(0, 120, &mut mixer);
    // Stopped anywhere, it goes on the same.
    for stop in [1, 17, 60] {
        let mut mixer = plan.mixer().unwrap();
        run(0, stop, &mut mixer);
        let text = serde_json::to_string(&mixer).unwrap();
        let mut mixer: Mixer = serde_json::from_str(&text).unwrap();
        assert_eq!(run(stop, 120, &mut mixer), whole[stop as usize..], "from step {stop}");
    }
    let share = |part: &[Vec<Window>]| {
        let counts = counts(&part.concat());
        counts[&2] as f64 / counts.values().sum::<usize>() as f64
    };
    assert!(share(&whole[90..]) > 1.5 * share(&whole[..20]), "what is learnt is seen more");
    // No mixer, or that of another plan.
    let mut other = BatchPlan::new(&corpus, &options(PlanKind::Adaptive, 5)).unwrap();
    assert!(matches!(other.windows_of(0, None), Err(Error::Shape { what: "mixer", .. })));
    assert!(BatchPlan::new(&corpus, &options(PlanKind::Shuffle, 5)).unwrap().mixer().is_none());
}

#[test]
fn plans_by_clusters_need_clusters() {
    let dir = folder();
    let corpus = prepare(&source(), &small(), dir.path()).unwrap();
    for kind in [PlanKind::Stratified, PlanKind::Adaptive, PlanKind::Ordered] {
        let error = BatchPlan::new(&corpus, &options(kind, 1)).unwrap_err();
        assert!(matches!(error, Error::Shape { what: "clusters of a plan", .. }), "{error}");
    }
    assert!(BatchPlan::new(&corpus, &options(PlanKind::Shuffle, 1)).is_ok());
}

/// Every window of the cluster comes once in a pass, none of another comes at all, and passes differ.
#[test]
fn a_plan_of_one_cluster_shows_it_alone() {
    let (_dir, corpus) = corpus();
    for kind in [PlanKind::Shuffle, PlanKind::Adaptive, PlanKind::Ordered] {
        for cluster in 0..K as u32 {
            let only = PlanOptions { only: Some(cluster), ..options(kind, 5) };
            let mut plan = BatchPlan::new(&corpus, &only).unwrap();
            assert_eq!(plan.mixer(), None);
            let pass = plan.windows() as usize;
            let seen = windows(&mut plan, 0..(3 * pass).div_ceil(BATCH) as u64);
            assert_eq!(counts(&seen).into_keys().collect::<Vec<_>>(), [cluster]);
            let starts = |part: &[Window]| part.iter().map(|window| window.start).collect::<BTreeSet<_>>();
            let (first, second) = (&seen[..pass], &seen[pass..2 * pass]);
            assert_eq!((starts(first).len(), starts(first)), (pass, starts(second)));
            assert!(pass < 4 || first != second);
            for window in &seen {
                let labels = corpus.labels().unwrap();
                assert_eq!(labels.majority(Split::Train, window.start, CONTEXT as u64 + 1), cluster);
            }
        }
    }
    let all: u64 = (0..K as u32)
        .map(|cluster| {
            let only = PlanOptions { only: Some(cluster), ..options(PlanKind::Shuffle, 5) };
            BatchPlan::new(&corpus, &only).unwrap().windows()
        })
        .sum();
    assert_eq!(all, BatchPlan::new(&corpus, &options(PlanKind::Shuffle, 5)).unwrap().windows());
    let none = PlanOptions { only: Some(K as u32), ..options(PlanKind::Shuffle, 5) };
    assert!(matches!(BatchPlan::new(&corpus, &none), Err(Error::NoWindow { cluster: 3, .. })));
    let all = ValidationSet::new(&corpus, CONTEXT, 10_000).unwrap();
    let parts: usize = (0..K as u32)
        .map(|cluster| {
            let part = all.clone().only(&corpus, cluster).unwrap();
            assert!((0..part.len()).all(|window| part.cluster(&corpus, window) == Some(cluster)));
            part.len()
        })
        .sum();
    assert_eq!(parts, all.len());
}

/// Texts that share few shingles, and copies of every fourth: whole, with a word exchanged, or with many.
fn copied() -> Source {
    let text = |n: usize| -> Vec<String> {
        let random = |i: usize| ((i * 1000 + n) as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        let word = |i: usize| format!("{}{}", ["bread", "sail", "violin"][n % 3], random(i) % 97);
        (0..120).map(word).collect()
    };
    let mut documents = Vec::new();
    for n in 0..48 {
        let mut push = |name: String, words: &[String]| {
            documents.push(Document {
                domain: "d".into(),
                name,
                text: words.join(" "),
                ..Document::default()
            });
        };
        let mut words = text(n);
        push(n.to_string(), &words);
        if n % 4 == 0 {
            match n % 3 {
                0 => {}
                1 => words[60] = "exchanged".into(),
                // In every shingle: near, but not the same.
                _ => words.iter_mut().step_by(5).for_each(|word| *word = "exchanged".into()),
            }
            push(format!("copy of {n}"), &words);
        }
    }
    Source::Memory { name: "copies".into(), documents }
}

#[test]
fn near_duplicates_are_left_out_of_training() {
    let (dir, source) = (folder(), copied());
    let label = |duplicates, ordered, threads| {
        let corpus = prepare(&source, &small(), dir.path()).unwrap();
        let labelling = Labelling { id: "copies", ordered, duplicates };
        let _ = std::fs::remove_file(dir.path().join("tokens/clusters.safetensors"));
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let label =
            || corpus.with_clusters::<Error>(&Disk, dir.path(), labelling, |_| Ok(one_cluster(&source)));
        pool.install(label).unwrap()
    };
    let plain = label(0.0, false, 1);
    assert!(plain.labels().unwrap().dropped().is_empty());
    let (three, one) = (label(0.9, false, 3), label(0.9, false, 1));
    assert_eq!(one.hash(), three.hash());
    assert_ne!(plain.hash(), one.hash());
    let saved = Corpus::open(&Disk, dir.path()).unwrap().with_saved_clusters(&Disk, dir.path()).unwrap();
    assert_eq!(saved.labels(), one.labels());
    // One of each pair goes whose words agree: those of 0, 4, 12, 16 ... that are in the training split.
    let documents: Vec<_> = one.tokens().documents(Split::Train).map(Result::unwrap).collect();
    let dropped = one.labels().unwrap().dropped().to_vec();
    let number = |name: &str| name.trim_start_matches("copy of ").parse::<usize>().unwrap();
    let there = |n: usize| documents.iter().filter(|document| number(&document.name) == n).count() == 2;
    let expected: BTreeSet<usize> = (0..48).step_by(4).filter(|n| n % 3 != 2 && there(*n)).collect();
    assert!(expected.len() > 4, "{expected:?}");
    let found: Vec<usize> = dropped.iter().map(|at| number(&documents[*at as usize].name)).collect();
    assert_eq!((found.len(), found.into_iter().collect()), (expected.len(), expected));
    // The report says so.
    let report = LeftOut::open(&Disk, dir.path()).unwrap();
    let tokens: u64 = dropped.iter().map(|at| documents[*at as usize].tokens).sum();
    assert_eq!(report.documents, (dropped.len() as u64, documents.len() as u64));
    assert_eq!(report.tokens, (tokens, one.len(Split::Train)));
    for example in &report.examples {
        assert_eq!(number(&example.dropped), number(&example.kept));
        assert!(example.resemblance >= 0.8 && example.cosine >= 0.9, "{example:?}");
    }
    // Every token of the others is predicted in an epoch, but for the ends; of these, none.
    let in_order = label(0.9, true, 1);
    for (corpus, kind, only) in [
        (&one, PlanKind::Shuffle, None),
        (&one, PlanKind::Stratified, None),
        (&one, PlanKind::Shuffle, Some(0)),
        (&in_order, PlanKind::Ordered, None),
    ] {
        let mut plan = BatchPlan::new(corpus, &PlanOptions { only, ..options(kind, 3) }).unwrap();
        let steps = plan.windows().div_ceil(BATCH as u64);
        let mut seen = vec![false; one.len(Split::Train) as usize];
        let (mut inputs, mut targets) = (vec![0; BATCH * CONTEXT], vec![0; BATCH * CONTEXT]);
        for step in 0..steps {
            let windows = plan.windows_of(step, None).unwrap();
            plan.read(corpus, &windows, &mut inputs, &mut targets).unwrap();
            for window in windows {
                assert_eq!(
                    plan.tokens_of(window).iter().map(|(_, len)| len).sum::<u64>(),
                    CONTEXT as u64 + 1
                );
                for (start, len) in plan.tokens_of(window) {
                    seen[start as usize..(start + len) as usize].fill(true);
                }
            }
        }
        let mut missed = 0;
        for (at, document) in (0u32..).zip(&documents) {
            let tokens = &seen[document.start as usize..(document.start + document.tokens) as usize];
            if dropped.contains(&at) {
                assert!(!tokens.contains(&true), "{} is left out of {kind:?}", document.name);
            } else {
                missed += tokens.iter().filter(|seen| !**seen).count();
            }
        }
        assert!(missed <= 2 * CONTEXT, "{missed} tokens missed by {kind:?}");
    }
}

/// One cluster of all texts.
fn one_cluster(source: &Source) -> Clusters<'static> {
    let mut fit = Fit::words(source.open().unwrap(), 1).unwrap();
    while fit.advance().unwrap() {}
    let embedder = fit.finish().unwrap().embedder;
    let centroids = vec![0.0; embedder.dim()];
    Clusters::new(embedder, centroids, vec!["all".into()]).unwrap()
}
