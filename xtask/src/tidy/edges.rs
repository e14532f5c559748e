//! Which crate may import which: the table of ARCHITECTURE.md as data.

use super::{Problem, problem};

/// Crate (folder name) and the crates it may import.
const ALLOWED: [(&str, &[&str]); 13] = [
    ("trit", &[]),
    ("kernels", &["trit"]),
    ("backend", &["kernels", "trit"]),
    ("cluster", &["backend", "trit"]),
    ("dispatch", &["backend", "cluster", "trit"]),
    ("gpu", &["backend", "cluster", "dispatch", "trit"]),
    ("model", &["backend", "trit"]),
    ("optim", &["backend", "cluster"]),
    ("files", &["trit"]),
    ("data", &["files", "trit"]),
    ("train", &["backend", "cluster", "data", "files", "model", "optim", "trit"]),
    ("bench", &["backend", "cluster", "dispatch", "kernels", "model", "optim", "train", "trit"]),
    (
        "cli",
        &[
            "backend", "bench", "cluster", "data", "dispatch", "files", "gpu", "kernels", "model", "optim",
            "train", "trit",
        ],
    ),
];

const PREFIX: &str = "tritrain-";

fn allowed(name: &str) -> Option<&'static [&'static str]> {
    ALLOWED.iter().find(|(owner, _)| *owner == name).map(|(_, list)| *list)
}

/// Whether `from` reaches `to` along the table: a development edge back would close a cycle.
fn reaches(from: &str, to: &str) -> bool {
    from == to || allowed(from).is_some_and(|list| list.iter().any(|next| reaches(next, to)))
}

/// Checks all manifests, given as (path, text).
pub(crate) fn check(manifests: &[(String, String)]) -> Vec<Problem> {
    manifests.iter().flat_map(|(path, text)| check_one(path, text)).collect()
}

fn check_one(path: &str, text: &str) -> Vec<Problem> {
    let table: toml::Table = match text.parse() {
        Ok(table) => table,
        Err(error) => {
            let what = format!("not TOML: {}", error.message());
            return vec![problem(path, 1, what, "cargo cannot read it either")];
        }
    };
    let Some(package) = table.get("package").and_then(|p| p.get("name")).and_then(|n| n.as_str()) else {
        return Vec::new(); // The workspace itself.
    };
    let folder = path.strip_suffix("/Cargo.toml").and_then(|p| p.strip_prefix("crates/"));
    let mut problems = Vec::new();
    let name = match folder {
        Some(folder) => {
            if package != format!("{PREFIX}{folder}") {
                let what = format!("package {package} in crates/{folder}");
                problems.push(problem(path, line_of(text, "name"), what, "folder and name must agree"));
            }
            if allowed(folder).is_none() {
                let what = format!("crate {folder} is not in the table");
                let hint = "add it to ARCHITECTURE.md and to xtask/src/tidy/edges.rs";
                problems.push(problem(path, 1, what, hint));
                return problems;
            }
            folder
        }
        // xtask, fuzz and the like: beside the table, whatever they use cannot close a cycle.
        None => return problems,
    };
    for (dependency, dev) in dependencies(&table) {
        let Some(target) = dependency.strip_prefix(PREFIX) else { continue };
        let line = line_of(text, &dependency);
        if dev {
            if reaches(target, name) {
                let what = format!("{name} tests import {target}, which imports {name}");
                problems.push(problem(path, line, what, "test from the outer crate instead"));
            }
        } else if !allowed(name).is_some_and(|list| list.contains(&target)) {
            let what = format!("{name} imports {target}");
            problems.push(problem(path, line, what, "not an edge of the table in ARCHITECTURE.md"));
        }
    }
    problems
}

/// Every dependency by the name of its package, with `true` for development ones.
fn dependencies(table: &toml::Table) -> Vec<(String, bool)> {
    let mut found = Vec::new();
    let targets = table.get("target").and_then(|t| t.as_table());
    let scopes = targets.into_iter().flat_map(|t| t.values()).filter_map(|t| t.as_table());
    for scope in std::iter::once(table).chain(scopes) {
        for (kind, dev) in
            [("dependencies", false), ("build-dependencies", false), ("dev-dependencies", true)]
        {
            let Some(list) = scope.get(kind).and_then(|d| d.as_table()) else { continue };
            for (key, value) in list {
                let package = value.get("package").and_then(|p| p.as_str()).unwrap_or(key);
                found.push((package.to_owned(), dev));
            }
        }
    }
    found
}

fn line_of(text: &str, key: &str) -> usize {
    text.lines().position(|line| line.trim_start().starts_with(key)).map_or(1, |at| at + 1)
}

#[cfg(test)]
mod tests {
    //! One manifest per way to break the table.
    use super::*;

    fn found(folder: &str, dependencies: &str) -> Vec<String> {
        let text = format!("[package]\nname = \"tritrain-{folder}\"\n{dependencies}");
        let manifests = [(format!("crates/{folder}/Cargo.toml"), text)];
        check(&manifests).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn edges_of_the_table_pass() {
        for (name, list) in ALLOWED {
            let lines: String = list.iter().map(|d| format!("tritrain-{d}.workspace = true\n")).collect();
            assert_eq!(found(name, &format!("[dependencies]\n{lines}serde = \"1\"\n")), [""; 0]);
        }
    }

    #[test]
    fn other_edges_fail_wherever_they_are_declared() {
        let cases = [
            "[dependencies]\ntritrain-kernels.workspace = true",
            "[build-dependencies]\ntritrain-kernels.workspace = true",
            "[target.'cfg(unix)'.dependencies]\ntritrain-kernels.workspace = true",
        ];
        for case in cases {
            let expected = "crates/model/Cargo.toml:4: model imports kernels, not an edge of the table in ARCHITECTURE.md";
            assert_eq!(found("model", case), [expected], "{case}");
        }
        let renamed = "[dependencies]\nk = { package = \"tritrain-kernels\", path = \"../kernels\" }";
        assert_eq!(found("model", renamed).len(), 1);
    }

    #[test]
    fn test_edges_may_go_sideways_but_not_in_a_circle() {
        assert_eq!(found("optim", "[dev-dependencies]\ntritrain-model.workspace = true"), [""; 0]);
        let back = found("trit", "[dev-dependencies]\ntritrain-kernels.workspace = true");
        assert!(back[0].starts_with("crates/trit/Cargo.toml:4: trit tests import kernels"), "{back:?}");
    }

    #[test]
    fn strangers_and_misnamed_crates_fail() {
        assert!(found("helpers", "")[0].contains("crate helpers is not in the table"));
        let manifests = [("crates/trit/Cargo.toml".into(), "[package]\nname = \"trit\"".into())];
        assert!(check(&manifests)[0].to_string().contains("package trit in crates/trit"));
        let broken = [("crates/trit/Cargo.toml".into(), "[package".into())];
        assert!(check(&broken)[0].to_string().contains("not TOML"));
    }

    #[test]
    fn the_table_has_no_cycle() {
        for (name, list) in ALLOWED {
            assert!(!list.iter().any(|next| reaches(next, name)), "{name}");
        }
    }
}
