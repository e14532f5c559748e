//! The rules that keep the repository as ARCHITECTURE.md and CONTRIBUTING.md describe it.
//!
//! A rule is a function from one file's text to problems, so that each is tested on a text that
//! breaks it and on one that does not.

mod edges;
mod prose;
mod rust;
mod safety;
mod scan;

use std::fmt;
use std::path::Path;
use walkdir::WalkDir;

/// One line that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Problem {
    path: String,
    line: usize,
    what: String,
    hint: &'static str,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}, {}", self.path, self.line, self.what, self.hint)
    }
}

fn problem(path: &str, line: usize, what: impl Into<String>, hint: &'static str) -> Problem {
    Problem { path: path.to_owned(), line, what: what.into(), hint }
}

/// Every problem under `root`, sorted by place.
pub(crate) fn check(root: &Path) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut manifests = Vec::new();
    for path in files(root) {
        let is_rust = path.ends_with(".rs");
        let is_page = path.ends_with(".md");
        let is_manifest = path == "Cargo.toml" || path.ends_with("/Cargo.toml");
        if !(is_rust || is_page || is_manifest) {
            continue;
        }
        let text = match std::fs::read_to_string(root.join(&path)) {
            Ok(text) => text,
            Err(error) => {
                problems.push(problem(&path, 1, format!("cannot be read: {error}"), "save it as UTF-8"));
                continue;
            }
        };
        if is_rust {
            problems.extend(rust::check(&path, &text));
            problems.extend(safety::check(&path, &text));
            problems.extend(prose::selling_words_in_docs(&path, &text));
        } else if is_page {
            problems.extend(prose::check(&path, &text, &|target| root.join(target).exists()));
        } else {
            manifests.push((path, text));
        }
    }
    problems.extend(edges::check(&manifests));
    if !crate::record::is_current(root) {
        let what = "the speed table is not that of the newest record";
        problems.push(problem(crate::record::PAGE, 1, what, "run cargo xtask record"));
    }
    problems.sort();
    problems
}

/// Paths relative to `root`, with `/`; build output, run directories and hidden folders left out.
fn files(root: &Path) -> Vec<String> {
    const SKIP: [&str; 6] = ["target", "run", "runs", "testdata", "node_modules", "shared"];
    let keep = |entry: &walkdir::DirEntry| {
        let name = entry.file_name().to_string_lossy();
        entry.depth() == 0
            || !(entry.file_type().is_dir() && (name.starts_with('.') || SKIP.contains(&&*name)))
    };
    WalkDir::new(root)
        .sort_by_file_name()
        .into_iter()
        .filter_entry(keep)
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_file())
        .filter_map(|entry| {
            let path = entry.path().strip_prefix(root).ok()?;
            Some(path.to_string_lossy().replace('\\', "/"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    //! The walk itself; each rule has its tests beside it.
    use super::*;

    #[test]
    fn a_problem_prints_place_fault_and_hint() {
        let shown = problem("a/b.rs", 7, "todo!", "finish it").to_string();
        assert_eq!(shown, "a/b.rs:7: todo!, finish it");
    }

    #[test]
    fn the_walk_sees_this_file_and_no_build_output() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let found = files(root);
        assert!(found.iter().any(|p| p == "xtask/src/tidy.rs"));
        assert!(found.iter().any(|p| p == "ARCHITECTURE.md"));
        assert!(!found.iter().any(|p| p.starts_with("target/") || p.starts_with(".git/")));
    }
}
