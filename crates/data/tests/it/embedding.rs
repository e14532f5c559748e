//! Text to vectors to clusters, and what is made of them.

use std::path::Path;

use tritrain_data::clusters::{Clustering, Clusters, Shingles, candidates, describe, duplicates, nmi};
use tritrain_data::embed::{Embedder, Fit, Fitted, Passage, Vectors};
use tritrain_data::{Document, Error, Source, Tokenizer};
use tritrain_files::tensors::{Dtype, TensorFile, TensorView, encode};
use tritrain_files::{Disk, Storage, write_atomic};

use crate::common::{folder, memory, message, prose, put, three_domains};

fn fit(source: &Source) -> Fitted<'static> {
    let mut fit = Fit::words(source.open().unwrap(), 3).unwrap();
    while fit.advance().unwrap() {}
    fit.finish().unwrap()
}

fn embed(fitted: &Fitted<'_>, source: &Source) -> (Vec<f32>, Vec<Passage>, Vec<String>) {
    let (mut values, mut pass) = (Vec::new(), Vectors::new(fitted, source.open().unwrap()).unwrap());
    let mut out = |new: &[f32]| {
        values.extend_from_slice(new);
        Ok(())
    };
    while pass.advance(&mut out).unwrap() {}
    let (passages, domains) = pass.finish().unwrap();
    (values, passages, domains)
}

fn texts(texts: &[&str]) -> Source {
    memory(&texts.iter().map(|text| ("d", *text, (*text).to_owned())).collect::<Vec<_>>())
}

fn dot(vectors: &[f32], dim: usize, i: usize, j: usize) -> f64 {
    let row = |i: usize| vectors[i * dim..][..dim].iter().map(|x| f64::from(*x));
    row(i).zip(row(j)).map(|(a, b)| a * b).sum()
}

/// With fewer passages than directions nothing is lost: cosines are those of TF-IDF, here in f64 by hand.
#[test]
fn cosines_of_a_small_corpus_are_those_of_tf_idf() {
    let corpus = ["red fish red sea", "blue fish", "blue sky sky sky", "Red SKY!", "green"];
    let tokens: Vec<Vec<String>> = corpus
        .iter()
        .map(|text| text.split(|c: char| !c.is_alphanumeric()).map(str::to_lowercase).collect())
        .collect();
    let mut words: Vec<&String> = tokens.iter().flatten().filter(|word| !word.is_empty()).collect();
    words.sort();
    words.dedup();
    let weight = |text: &[String], word: &String| {
        let n = text.iter().filter(|other| *other == word).count() as f64;
        let with = tokens.iter().filter(|other| other.contains(word)).count() as f64;
        if n > 0.0 { (1.0 + n.ln()) * (6.0 / (1.0 + with)).ln() } else { 0.0 }
    };
    let rows: Vec<Vec<f64>> =
        tokens.iter().map(|text| words.iter().map(|word| weight(text, word)).collect()).collect();
    let source = texts(&corpus);
    let fitted = fit(&source);
    let (vectors, passages, _) = embed(&fitted, &source);
    assert_eq!((fitted.passages, fitted.bytes, passages.len()), (5, 54, 5));
    for i in 0..5 {
        for j in 0..5 {
            let product = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let expected = product(&rows[i], &rows[j])
                / (product(&rows[i], &rows[i]) * product(&rows[j], &rows[j])).sqrt();
            let found = dot(&vectors, fitted.embedder.dim(), i, j);
            assert!((found - expected).abs() < 1e-5, "{i} {j}: {found} {expected}");
        }
    }
    // A text of known words has the same vector, whatever its order; one of unknown words the first axis.
    let (mut scratch, mut vector) = (fitted.embedder.scratch(), vec![0.0; 64]);
    fitted.embedder.embed(&mut scratch, "sea RED fish, red", &mut vector).unwrap();
    assert!(vector.iter().zip(&vectors).all(|(a, b)| (a - b).abs() < 1e-6));
    fitted.embedder.embed(&mut scratch, "nothing known", &mut vector).unwrap();
    assert_eq!((vector[0], &vector[1..]), (1.0, &[0.0; 63][..]));
}

#[test]
fn vectors_do_not_depend_on_the_number_of_threads() {
    let source = three_domains();
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| embed(&fit(&source), &source))
    };
    assert_eq!(run(1), run(3));
}

/// Half of the passages speak of one thing, half of another: their vectors are two bundles.
#[test]
fn topics_come_apart_and_are_named() {
    let topics = [["cell", "membrane", "protein", "enzyme"], ["court", "judge", "appeal", "verdict"]];
    let text = |i: usize| {
        let word = |j: usize| topics[i % 2][j % (4 - i / 2 % 2)];
        (0..60).map(|j| format!("{} the of {} ", word(j), ["old", "new", "big"][(i + j) % 3])).collect()
    };
    let documents = (0..80).map(|i| Document {
        domain: ["b", "l"][i % 2].into(),
        name: i.to_string(),
        text: text(i),
        ..Document::default()
    });
    let source = Source::Memory { name: "test".into(), documents: documents.collect() };
    let fitted = fit(&source);
    let (vectors, passages, domains) = embed(&fitted, &source);
    let same = dot(&vectors, 64, 0, 2).min(dot(&vectors, 64, 1, 3));
    assert!(same > 0.6 && dot(&vectors, 64, 0, 1) < 0.2, "{same}");
    let labels: Vec<u32> = (0..80).map(|i| i % 2).collect();
    let centroids = [&vectors[..64], &vectors[64..128]].concat();
    let clustering = Clustering::new(&vectors, 64, &labels, &centroids).unwrap();
    let mut seen = Vec::new();
    let describe = |each: &mut dyn FnMut(usize)| {
        describe(&clustering, source.open().unwrap(), &passages, &domains, 1, |passage| {
            each(passage.index);
            Ok(())
        })
    };
    let found = describe(&mut |index| seen.push(index)).unwrap();
    assert!(seen.into_iter().eq(0..80));
    for (cluster, topic) in found.clusters.iter().zip(topics) {
        let mut words = cluster.words[..4].to_vec();
        words.sort();
        let mut expected = topic;
        expected.sort_unstable();
        assert_eq!(words, expected);
        assert_eq!((cluster.passages, cluster.domains.len(), cluster.nearest.len()), (40, 1, 3));
        assert!(cluster.name.split(' ').count() == 3);
    }
    assert_eq!((found.nmi, found.purity), (Some(1.0), Some(1.0)));
    assert_eq!(found.clusters[1].nearest[0].document, "1");
    let bytes: u64 = found.clusters.iter().map(|cluster| cluster.bytes).sum();
    assert_eq!(bytes, fitted.bytes);
}

#[test]
fn copies_are_near_duplicates() {
    let words = |i: u64| (0..60).map(move |j| format!("w{} ", (i * 977 + j * j * 31) % 211));
    let text = |i: u64| words(if i == 7 { 2 } else { i }).collect::<String>() + &format!("unique{i}");
    let documents: Vec<(&str, &str, String)> = (0..12).map(|i| ("d", "n", text(i))).collect();
    let source = memory(&documents);
    let (vectors, passages, _) = embed(&fit(&source), &source);
    let labels = vec![0; passages.len()];
    let clustering = Clustering::new(&vectors, 64, &labels, &vectors[..64]).unwrap();
    let exact = nmi(&labels, &labels);
    assert_eq!(exact, 1.0);
    let marked = candidates(&clustering, 0.9).unwrap();
    assert!(marked.contains(&2) && marked.contains(&7), "{marked:?}");
    let shingles = marked.iter().map(|&at| (at, Shingles::of(&documents[at as usize].2))).collect();
    let found = duplicates(&clustering, 0.9, &shingles).unwrap();
    let pair = found.clusters[0].pairs[0];
    let mut both = [passages[pair.dropped as usize].document, passages[pair.kept as usize].document];
    both.sort_unstable();
    assert_eq!(both, [2, 7]);
}

#[test]
fn long_documents_are_many_passages() {
    let source = memory(&[("a", "long", prose(1, 900)), ("b", "short", "a word".into())]);
    let (vectors, passages, domains) = embed(&fit(&source), &source);
    let Source::Memory { documents, .. } = &source else { unreachable!() };
    assert_eq!(domains, ["a", "b"]);
    assert_eq!(vectors.len(), passages.len() * 64);
    let (last, first) = passages.split_last().unwrap();
    assert_eq!(*last, Passage { document: 1, domain: 1, start: 0, bytes: 6 });
    assert!(first.len() > 5);
    let mut at = 0;
    for passage in first {
        assert_eq!((passage.document, passage.start), (0, at));
        at += passage.bytes;
    }
    assert_eq!(at as usize, documents[0].text.len());
}

#[test]
fn text_that_changes_between_the_passes_is_noticed() {
    let fitted = fit(&texts(&["one two", "three four"]));
    let other = texts(&["one two", "three five"]);
    let mut pass = Vectors::new(&fitted, other.open().unwrap()).unwrap();
    while pass.advance(|_| Ok(())).unwrap() {}
    let error = pass.finish().unwrap_err();
    assert!(matches!(error, Error::Changed { .. }), "{error}");
}

#[test]
fn no_text_is_an_error() {
    let source = texts(&[]);
    let mut fit = Fit::words(source.open().unwrap(), 0).unwrap();
    assert!(!fit.advance().unwrap());
    assert!(matches!(fit.finish(), Err(Error::Empty { .. })));
    // A text without words is a text.
    let source = texts(&["!!!"]);
    let (vectors, ..) = embed(&self::fit(&source), &source);
    assert_eq!((vectors.len(), vectors[0]), (64, 1.0));
}

#[test]
fn sizes_that_do_not_fit_are_errors() {
    let vectors = [1.0, 0.0, 0.0, 1.0];
    for (dim, labels, centroids) in [
        (0, vec![0u32; 2], vec![0.0; 2]),
        (2, vec![0], vec![0.0; 2]),
        (2, vec![0, 1], vec![0.0; 2]),
        (2, vec![0, 0], vec![0.0; 3]),
        (2, vec![0, 0], vec![]),
    ] {
        assert!(matches!(Clustering::new(&vectors, dim, &labels, &centroids), Err(Error::Shape { .. })));
    }
}

fn tokenizer() -> Tokenizer {
    Tokenizer::train(&[prose(1, 60)], 300).unwrap()
}

/// The mean of weighted token vectors less the mean of all passages, in f64 by hand.
#[test]
fn token_vectors_are_averaged() {
    let tokenizer = tokenizer();
    let (vocab, dim) = (tokenizer.vocab_size() as usize, 5);
    let table: Vec<f32> = (0..vocab * dim).map(|i| ((i * i * 7919) % 1013) as f32 / 1013.0 - 0.5).collect();
    let documents: Vec<(&str, &str, String)> = (0..9).map(|i| ("d", "n", prose(i, 3 + i as usize))).collect();
    let source = memory(&documents);
    let mut fit = Fit::tokens(source.open().unwrap(), &tokenizer, table.clone(), dim).unwrap();
    while fit.advance().unwrap() {}
    let fitted = fit.finish().unwrap();
    let (vectors, ..) = embed(&fitted, &source);
    let counts: Vec<Vec<f64>> = documents
        .iter()
        .map(|(.., text)| {
            let mut counts = vec![0.0; vocab];
            tokenizer.encode(text).unwrap().iter().for_each(|&id| counts[id as usize] += 1.0);
            counts
        })
        .collect();
    let idf = |id: usize| (10.0 / (1.0 + counts.iter().filter(|c| c[id] > 0.0).count() as f64)).ln();
    let mut means: Vec<Vec<f64>> = Vec::new();
    for text in &counts {
        let (mut sum, mut weights) = (vec![0.0; dim], 0.0);
        for id in (0..vocab).filter(|&id| text[id] > 0.0) {
            let weight = 1.0 + text[id].ln();
            weights += weight;
            (0..dim).for_each(|i| sum[i] += weight * idf(id) * f64::from(table[id * dim + i]));
        }
        means.push(sum.iter().map(|x| x / weights).collect());
    }
    let centre: Vec<f64> = (0..dim).map(|i| means.iter().map(|m| m[i]).sum::<f64>() / 9.0).collect();
    for (row, mean) in vectors.chunks(dim).zip(&means) {
        let difference: Vec<f64> = mean.iter().zip(&centre).map(|(a, b)| a - b).collect();
        let length = difference.iter().map(|x| x * x).sum::<f64>().sqrt();
        for (found, expected) in row.iter().zip(&difference) {
            assert!(
                (f64::from(*found) - expected / length).abs() < 1e-4,
                "{row:?} {difference:?} / {length}"
            );
        }
    }
    for bad in [vec![], vec![0.0; vocab * dim - 1], vec![f32::NAN; vocab * dim]] {
        let fit = Fit::tokens(source.open().unwrap(), &tokenizer, bad, dim);
        assert!(matches!(fit, Err(Error::Shape { .. })));
    }
}

fn clusters<'t>(embedder: Embedder<'t>, vectors: &[f32]) -> Clusters<'t> {
    let dim = embedder.dim();
    Clusters::new(embedder, vectors[..2 * dim].to_vec(), vec!["fish".into(), "sky".into()]).unwrap()
}

#[test]
fn a_saved_embedding_finds_the_cluster_of_a_text() {
    let source = texts(&["red fish red sea", "blue sky", "red fish", "sky sky blue"]);
    let fitted = fit(&source);
    let (vectors, ..) = embed(&fitted, &source);
    let made = clusters(fitted.embedder, &vectors);
    let dir = folder();
    let path = dir.path().join("clusters.safetensors");
    made.save(&Disk, &path).unwrap();
    let read = Clusters::open(&Disk, &path, None).unwrap();
    assert_eq!(read.names(), ["fish", "sky"]);
    let mut scratch = read.embedder().scratch();
    for (text, expected) in [("a fish in the sea", 0), ("the SKY", 1), ("red", 0), ("blue", 1)] {
        assert_eq!(read.nearest(&mut scratch, text).unwrap(), expected, "{text}");
    }
    let (mut a, mut b) = (vec![0.0; 64], vec![0.0; 64]);
    made.embedder().embed(&mut scratch, "red sky", &mut a).unwrap();
    read.embedder().embed(&mut scratch, "red sky", &mut b).unwrap();
    assert_eq!(a, b);
}

#[test]
fn clusters_of_tokens_need_their_tokenizer() {
    let tokenizer = tokenizer();
    let table: Vec<f32> = (0..tokenizer.vocab_size() * 2).map(|i| (i % 11) as f32).collect();
    let source = texts(&["the river", "a mountain", "winter light"]);
    let mut fit = Fit::tokens(source.open().unwrap(), &tokenizer, table.clone(), 2).unwrap();
    while fit.advance().unwrap() {}
    let fitted = fit.finish().unwrap();
    let (vectors, ..) = embed(&fitted, &source);
    let dir = folder();
    let path = dir.path().join("clusters.safetensors");
    clusters(fitted.embedder, &vectors).save(&Disk, &path).unwrap();
    let read = Clusters::open(&Disk, &path, Some(&tokenizer)).unwrap();
    assert_eq!(read.nearest(&mut read.embedder().scratch(), "the river").unwrap(), 0);
    let other = Tokenizer::train(&[prose(2, 90)], 290).unwrap();
    for wrong in [None, Some(&other)] {
        let error = Clusters::open(&Disk, &path, wrong).unwrap_err();
        assert_eq!(error.exit_code(), 5, "{error}");
    }
}

#[test]
fn other_files_are_no_clusters() {
    let source = texts(&["red fish", "blue sky"]);
    let fitted = fit(&source);
    let (vectors, ..) = embed(&fitted, &source);
    let dir = folder();
    let path = dir.path().join("clusters.safetensors");
    clusters(fitted.embedder, &vectors).save(&Disk, &path).unwrap();
    let good = Disk.read(&path).unwrap();
    let file = TensorFile::parse(&path, good.clone().into()).unwrap();
    let meta = file.metadata()["tritrain.clusters"].clone();
    let open = |bytes: &[u8]| {
        write_atomic(&Disk, &path, bytes).unwrap();
        Clusters::open(&Disk, &path, None).map(|_| ()).map_err(|error| message(&error, &path))
    };
    assert_eq!(open(&good), Ok(()));
    open(&good[..good.len() - 1]).unwrap_err();
    open(b"").unwrap_err();
    let with = |from: &str, to: &str| {
        let tensors: Vec<TensorView<'_>> = file.names().map(|name| file.get(name).unwrap()).collect();
        assert!(meta.contains(from), "{from} in {meta}");
        let meta = [("tritrain.clusters".to_owned(), meta.replace(from, to))];
        encode(Path::new("x"), tensors, &meta.into()).unwrap()
    };
    for (from, to, part) in [
        ("\"format\":1", "\"format\":2", "expected format 1, found 2"),
        ("\"bits\":15", "\"bits\":63", "1 to 20 bits"),
        ("\"bits\":15", "\"bits\":16", "65536"),
        ("\"dim\":64", "\"dim\":0", "dimension"),
        ("\"dim\":64", "\"dim\":18446744073709551615", "tensor vectors"),
        ("[\"fish\",\"sky\"]", "[]", "at least one cluster"),
        ("[\"fish\",\"sky\"]", "[\"fish\"]", "tensor centroids"),
        ("\"seed\":\"3\"", "\"seed\":\"-3\"", "a seed of 64 bits"),
        ("\"format\":1", "\"form\":1", "metadata of this version"),
    ] {
        let error = open(&with(from, to)).unwrap_err();
        assert!(error.contains(part), "{to}: {error}");
    }
    let plain = encode(Path::new("x"), [TensorView::f32("mean", &[1], &[0.0])], &Default::default()).unwrap();
    assert!(open(&plain).unwrap_err().contains("another kind of file"));
    // A centroid that is not a number.
    let mut bad = good;
    let at = bad.len() - bad.len() % 4;
    let header = u64::from_le_bytes(*bad.first_chunk().unwrap()) as usize + 8;
    assert_eq!(file.get("centroids").unwrap().dtype, Dtype::F32);
    assert!(header < at);
    bad[header..header + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    assert!(open(&bad).unwrap_err().contains("finite"));
}

#[test]
fn a_folder_of_files_is_embedded_as_it_is_read() {
    let dir = folder();
    put(dir.path(), "a.jsonl", "{\"text\": \"red fish\"}\n{\"text\": \"blue sky\", \"title\": \"t\"}\n");
    put(dir.path(), "sub/b.txt", "green grass");
    let source = Source::Paths(vec![dir.path().to_path_buf()]);
    let (_, passages, domains) = embed(&fit(&source), &source);
    assert_eq!(domains, ["a", "sub"]);
    let places: Vec<_> = passages.iter().map(|p| (p.document, p.domain, p.bytes)).collect();
    assert_eq!(places, [(0, 0, 8), (1, 0, 8), (2, 1, 11)]);
}
