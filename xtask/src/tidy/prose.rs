//! Rules for pages: no status files, no words that sell, no dead links.

use super::{Problem, problem, scan};

const STATUS: [&str; 5] = ["status", "summary", "report", "phase", "progress"];

/// Compared in lower case, with every hyphen read as a space.
const SELLING: [&str; 7] =
    ["production ready", "comprehensive", "robust", "blazing", "state of the art", "seamless", "powerful"];

/// All rules for a page. `exists` answers for paths relative to the root.
pub(crate) fn check(path: &str, text: &str, exists: &dyn Fn(&str) -> bool) -> Vec<Problem> {
    let mut problems = Vec::new();
    let name = path.rsplit('/').next().unwrap_or(path).to_lowercase();
    if STATUS.iter().any(|word| name.contains(word)) {
        problems.push(problem(path, 1, "a status file", "history belongs to git and CHANGELOG.md"));
    }
    let mut fence = false;
    for (at, line) in text.lines().enumerate() {
        problems.extend(selling(path, at + 1, line));
        if line.trim_start().starts_with("```") {
            fence = !fence;
        } else if !fence {
            for target in links(line) {
                if !exists(&resolve(path, &target)) {
                    let what = format!("dead link {target}");
                    problems.push(problem(path, at + 1, what, "links are relative to their page"));
                }
            }
        }
    }
    problems
}

/// The same words in doc comments, which become pages too.
pub(crate) fn selling_words_in_docs(path: &str, text: &str) -> Vec<Problem> {
    let lines = scan::lines(text);
    let docs = lines.iter().enumerate().filter(|(_, line)| {
        let comment = line.comment.trim_start();
        comment.starts_with("///") || comment.starts_with("//!")
    });
    docs.flat_map(|(at, line)| selling(path, at + 1, &line.comment)).collect()
}

fn selling(path: &str, line: usize, text: &str) -> Vec<Problem> {
    let text = text.to_lowercase().replace('-', " ");
    let found = SELLING.iter().filter(|word| scan::words_at(&text, word).next().is_some());
    found
        .map(|word| problem(path, line, format!("\"{word}\" sells"), "say what it does, with a figure"))
        .collect()
}

/// Targets of `[text](target)` and `[text]: target` that point into the repository.
fn links(line: &str) -> Vec<String> {
    let line = without_code_spans(line);
    let mut found: Vec<&str> = Vec::new();
    for (at, _) in line.match_indices("](") {
        let rest = &line[at + 2..];
        found.extend(rest.split_once(')').map(|(target, _)| target));
    }
    if line.starts_with('[') && !line.starts_with("[^") {
        found.extend(line.split_once("]: ").map(|(_, target)| target));
    }
    let targets = found.into_iter().filter_map(|target| {
        let target = target.trim().trim_start_matches('<');
        let target = target.split([' ', '#', '?', '>']).next().unwrap_or("");
        let outside = target.contains("://") || target.starts_with("mailto:");
        (!target.is_empty() && !outside).then(|| target.replace("%20", " "))
    });
    targets.collect()
}

fn without_code_spans(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join("``")
}

/// `target` as seen from the root, for a link on the page `path`.
fn resolve(path: &str, target: &str) -> String {
    let mut parts: Vec<&str> = path.split('/').collect();
    parts.pop();
    let steps = match target.strip_prefix('/') {
        Some(rest) => {
            parts.clear();
            rest
        }
        None => target,
    };
    for step in steps.split('/') {
        match step {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            _ => parts.push(step),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    //! Each rule with a page that breaks it and one that does not.
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        let exists = |target: &str| ["docs/a b.md", "README.md", "docs", ""].contains(&target);
        check(path, text, &exists).into_iter().map(|p| format!("{}: {}", p.line, p.what)).collect()
    }

    #[test]
    fn status_files_fail() {
        for name in ["STATUS.md", "docs/Phase-2.md", "final_report.md", "docs/progress.md", "summary.md"] {
            assert_eq!(found(name, ""), ["1: a status file"], "{name}");
        }
        assert_eq!(found("docs/formats.md", ""), [""; 0]);
        assert_eq!(found("report/formats.md", ""), [""; 0]);
    }

    #[test]
    fn words_that_sell_fail() {
        let text = "It is Robust,\nand state-of-the-art.\nA robustness test, full power.\n";
        assert_eq!(found("a.md", text), ["1: \"robust\" sells", "2: \"state of the art\" sells"]);
        let code = "//! A blazing file.\n// A blazing aside.\nlet a = \"blazing\";\n";
        let lines: Vec<usize> = selling_words_in_docs("a.rs", code).iter().map(|p| p.line).collect();
        assert_eq!(lines, [1]);
    }

    #[test]
    fn dead_links_fail() {
        let dead = "[x](gone.md) and [y](../README.md)\n[z]: ../gone.md\n";
        assert_eq!(found("docs/x.md", dead), ["1: dead link gone.md", "2: dead link ../gone.md"]);
        assert_eq!(found("README.md", "![i](docs/i.png \"title\")\n"), ["1: dead link docs/i.png"]);
    }

    #[test]
    fn living_links_pass() {
        let text = "[a](docs/a%20b.md#part) [b](https://x.org/y) [c](#here) [d](mailto:a@b.c) [e](docs/)\n\
                    `[f](gone.md)`\n```\n[g](gone.md)\n```\n[h]: </README.md>\n[^1]: a note\n[i](docs/../README.md)\n";
        assert_eq!(found("README.md", text), [""; 0]);
    }
}
