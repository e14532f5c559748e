//! Text to test with, and short ways to prepare it.

use std::path::{Path, PathBuf};

use tritrain_data::{Corpus, DataConfig, Document, Preparation, Source, documents};
use tritrain_files::Disk;

/// Of conversations that are prepared.
pub(crate) const CONTEXT: usize = 64;

/// A folder that goes away with the value.
pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Writes a file below a folder.
pub(crate) fn put(folder: &Path, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, bytes).unwrap();
    path
}

pub(crate) fn read(path: &Path) -> Vec<Document> {
    documents(&[path.to_path_buf()]).unwrap().map(Result::unwrap).collect()
}

/// The message of the first error, at once or in the stream, with the path shortened to its file name.
pub(crate) fn failure(path: &Path) -> String {
    let error = match documents(&[path.to_path_buf()]) {
        Err(error) => error,
        Ok(mut documents) => documents.find_map(Result::err).expect("an error"),
    };
    message(&error, path)
}

pub(crate) fn message(error: &tritrain_data::Error, path: &Path) -> String {
    let text = error.to_string();
    assert!(!text.contains('\n'), "one line: {text}");
    text.replace(&path.display().to_string(), path.file_name().unwrap().to_str().unwrap())
}

/// Sentences that differ, in a small language.
pub(crate) fn prose(seed: u64, sentences: usize) -> String {
    const WORDS: [&str; 24] = [
        "the", "river", "a", "mountain", "sees", "crosses", "it's", "old", "green", "house", "under",
        "winter", "light", "and", "slowly", "Zürich", "42", "1984", "never", "reads", "books", "—", "don't",
        "naïve",
    ];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut out = String::new();
    for _ in 0..sentences {
        for _ in 0..9 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            out += WORDS[(state >> 33) as usize % WORDS.len()];
            out.push(' ');
        }
        out += if state >> 62 == 0 { ".\n\n" } else { ".\n" };
    }
    out
}

pub(crate) fn memory(documents: &[(&str, &str, String)]) -> Source {
    let one = |(domain, name, text): &(&str, &str, String)| Document {
        domain: (*domain).into(),
        name: (*name).into(),
        text: text.clone(),
        ..Document::default()
    };
    Source::Memory { name: "test".into(), documents: documents.iter().map(one).collect() }
}

/// Three domains: 40 and 7 documents, and one.
pub(crate) fn three_domains() -> Source {
    let mut all = Vec::new();
    for i in 0..40 {
        all.push(("many", format!("m{i}"), prose(i, 12)));
    }
    for i in 0..7 {
        all.push(("few", format!("f{i}"), prose(100 + i, 30)));
    }
    all.push(("one", "o".into(), prose(1000, 200)));
    let documents = all
        .into_iter()
        .map(|(domain, name, text)| Document { domain: domain.into(), name, text, ..Document::default() })
        .collect();
    Source::Memory { name: "test".into(), documents }
}

pub(crate) fn small() -> DataConfig {
    DataConfig { vocab: 400, validation: 0.1, ..DataConfig::default() }
}

pub(crate) fn prepare(source: &Source, config: &DataConfig, dir: &Path) -> tritrain_data::Result<Corpus> {
    Preparation::start(&Disk, source, (config, CONTEXT), dir)?.finish()
}

/// Every file below a folder except `source.json`, by name, with its bytes.
pub(crate) fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in walkdir::WalkDir::new(dir).sort_by_file_name() {
        let entry = entry.unwrap();
        if entry.file_type().is_file() && entry.file_name() != "source.json" {
            let name = entry.path().strip_prefix(dir).unwrap().display().to_string();
            all.push((name, std::fs::read(entry.path()).unwrap()));
        }
    }
    all
}
