//! Gathers the embedded corpus: the project's own sources and documentation, as one .jsonl.zst.

use std::{
    env, fs,
    io::Write,
    path::{Path, PathBuf},
};

use walkdir::WalkDir;

fn main() {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let root = here.join("../..");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")).join("corpus.jsonl.zst");
    let mut documents = Vec::new();
    for place in ["crates", "xtask", "docs"] {
        println!("cargo::rerun-if-changed={}", root.join(place).display());
        documents.extend(files_below(&root.join(place)));
    }
    for name in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"] {
        println!("cargo::rerun-if-changed={}", root.join(name).display());
        documents.push(root.join(name));
    }
    documents.sort();
    let file = fs::File::create(&out).expect("the build folder can be written");
    let mut encoder = zstd::Encoder::new(file, 12).expect("zstd starts");
    for path in documents {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let name = path.strip_prefix(&root).unwrap_or(&path).display().to_string();
        let domain = if path.extension().is_some_and(|e| e == "md") { "documentation" } else { "sources" };
        let line = serde_json::json!({ "domain": domain, "title": name, "text": text });
        writeln!(encoder, "{line}").expect("the build folder can be written");
    }
    encoder.finish().expect("the build folder can be written");
}

fn files_below(place: &Path) -> Vec<PathBuf> {
    let entries = WalkDir::new(place).sort_by_file_name().into_iter().filter_map(Result::ok);
    let known = |path: &Path| path.extension().is_some_and(|e| e == "rs" || e == "md");
    entries.map(walkdir::DirEntry::into_path).filter(|path| known(path)).collect()
}
