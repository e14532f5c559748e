//! Rules for every `.rs` file: opening line, length, attributes, panics.

use super::scan::{self, Line};
use super::{Problem, problem};

const LONGEST: usize = 600;

/// Crates that meet user input: an error there is a value, never a panic.
const NO_PANIC: [&str; 4] = ["crates/files/", "crates/data/", "crates/train/", "crates/cli/"];

/// All rules of this file.
pub(crate) fn check(path: &str, text: &str) -> Vec<Problem> {
    let lines = scan::lines(text);
    let mut problems = Vec::new();
    opening(path, &lines, &mut problems);
    length(path, text, &mut problems);
    attributes(path, &lines, &mut problems);
    panics(path, &lines, &mut problems);
    problems
}

fn opening(path: &str, lines: &[Line], problems: &mut Vec<Problem>) {
    if !lines[0].comment.starts_with("//!") {
        problems.push(problem(path, 1, "no opening //! line", "say in one line what the file is for"));
    }
}

fn length(path: &str, text: &str, problems: &mut Vec<Problem>) {
    let count = text.lines().count();
    if count > LONGEST && !path.starts_with("crates/model/src/reference") {
        let what = format!("{count} lines, more than {LONGEST}");
        problems.push(problem(path, LONGEST + 1, what, "split it by concern"));
    }
}

fn attributes(path: &str, lines: &[Line], problems: &mut Vec<Problem>) {
    for (at, line) in lines.iter().enumerate() {
        let code = &line.code;
        let conditional = code.contains("cfg_attr(") && code.contains(" allow(");
        if code.contains("#[allow(") || code.contains("#![allow(") || conditional {
            let hint = "use #[expect(.., reason = \"..\")], which ends with its cause";
            problems.push(problem(path, at + 1, "an allow attribute", hint));
        }
        if (code.contains("#[expect(") || code.contains("#![expect(")) && !has_reason(&lines[at..]) {
            problems.push(problem(path, at + 1, "expect without a reason", "add reason = \"..\""));
        }
        for name in ["todo", "unimplemented"] {
            if line.has_word(name) && code.contains(&format!("{name}!")) {
                problems.push(problem(path, at + 1, format!("{name}!"), "finish it or leave it out"));
            }
        }
        if code.contains("#[ignore") {
            let hint = "guard slow tests by an environment variable";
            problems.push(problem(path, at + 1, "an ignored test", hint));
        }
    }
}

/// Whether the attribute that opens on the first line names its reason before it closes.
fn has_reason(lines: &[Line]) -> bool {
    let code: String = lines.iter().take(12).flat_map(|l| [l.code.as_str(), " "]).collect();
    let attribute = code.split_once("[expect(").map_or("", |(_, rest)| rest);
    attribute.split(']').next().is_some_and(|inside| inside.contains("reason ="))
}

fn panics(path: &str, lines: &[Line], problems: &mut Vec<Problem>) {
    let beside = ["/tests/", "/benches/", "/examples/"].iter().any(|folder| path.contains(folder));
    let exempt = beside || path.ends_with("/tests.rs") || path.ends_with("/build.rs");
    if exempt || !NO_PANIC.iter().any(|folder| path.starts_with(folder)) {
        return;
    }
    for (at, line) in lines.iter().enumerate().filter(|(_, line)| !line.test) {
        let excused =
            line.comment.split_once("// cannot fail:").is_some_and(|(_, why)| !why.trim().is_empty());
        if excused {
            continue;
        }
        let hint = "return an error, or end the line with // cannot fail: and why";
        for call in [".unwrap()", ".expect("] {
            if line.code.contains(call) {
                problems.push(problem(path, at + 1, format!("{call} on the way of user input"), hint));
            }
        }
        if line.has_word("panic") && line.code.contains("panic!") {
            problems.push(problem(path, at + 1, "panic! on the way of user input", hint));
        }
    }
}

#[cfg(test)]
mod tests {
    //! Each rule with a text that breaks it and one that does not.
    use super::*;

    const PATH: &str = "crates/train/src/x.rs";

    fn found(path: &str, body: &str) -> Vec<String> {
        check(path, &format!("//! X.\n{body}"))
            .into_iter()
            .map(|p| format!("{}: {}", p.line, p.what))
            .collect()
    }

    #[test]
    fn the_first_line_says_what_the_file_is() {
        assert_eq!(check("xtask/src/a.rs", "//! A.\n").len(), 0);
        for text in ["", "/// A.\n", "\n//! A.\n", "// A.\n", "fn f() {}\n"] {
            assert_eq!(check("xtask/src/a.rs", text)[0].what, "no opening //! line", "{text:?}");
        }
    }

    #[test]
    fn files_stay_short() {
        assert_eq!(found(PATH, &"x\n".repeat(599)), [""; 0]);
        assert_eq!(found(PATH, &"x\n".repeat(600)), ["601: 601 lines, more than 600"]);
        assert_eq!(found("crates/model/src/reference.rs", &"x\n".repeat(600)), [""; 0]);
        assert_eq!(found("crates/model/src/reference/f64.rs", &"x\n".repeat(600)), [""; 0]);
    }

    #[test]
    fn attributes_that_hide_things_fail() {
        assert_eq!(found(PATH, "#[allow(dead_code)]\n"), ["2: an allow attribute"]);
        assert_eq!(found(PATH, "#![allow(dead_code)]\n"), ["2: an allow attribute"]);
        assert_eq!(found(PATH, "#[cfg_attr(test, allow(dead_code))]\n"), ["2: an allow attribute"]);
        assert_eq!(found(PATH, "#[expect(dead_code)]\n"), ["2: expect without a reason"]);
        assert_eq!(found(PATH, "#[expect(\n  dead_code,\n  reason = \"x\"\n)]\n"), [""; 0]);
        assert_eq!(found(PATH, "#[ignore]\n#[ignore = \"slow\"]\n").len(), 2);
        assert_eq!(found(PATH, "// #[allow(x)] #[ignore] todo!()\nlet a = \"todo!()\";\n"), [""; 0]);
    }

    #[test]
    fn unfinished_code_fails() {
        assert_eq!(found(PATH, "todo!()\nunimplemented!(\"x\")\n"), ["2: todo!", "3: unimplemented!"]);
    }

    #[test]
    fn panics_fail_on_the_way_of_user_input() {
        let bad = "a.unwrap();\na\n  .expect(\"x\");\npanic!(\"x\");\n";
        let expected = [
            "2: .unwrap() on the way of user input",
            "4: .expect( on the way of user input",
            "5: panic! on the way of user input",
        ];
        assert_eq!(found(PATH, bad), expected);
        assert_eq!(found("crates/kernels/src/x.rs", bad), [""; 0]);
        assert_eq!(found("crates/train/tests/x.rs", bad), [""; 0]);
        assert_eq!(found(PATH, &format!("#[cfg(test)]\nmod t {{\n{bad}}}\n")), [""; 0]);
    }

    #[test]
    fn an_excuse_gives_a_reason() {
        assert_eq!(found(PATH, "a.unwrap(); // cannot fail: len checked above\n"), [""; 0]);
        assert_eq!(found(PATH, "a.unwrap(); // cannot fail:\n").len(), 1);
        assert_eq!(found(PATH, "a.unwrap_or(1);\nstd::panic::catch_unwind(f);\n"), [""; 0]);
    }
}
