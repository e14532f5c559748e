//! `unsafe` is fenced, and each use states why it is sound.

use super::scan::{self, Line, words_at};
use super::{Problem, problem};

const FENCED: [&str; 3] = ["crates/kernels/", "crates/files/src/map.rs", "crates/gpu/src/launch.rs"];

/// Lines of code between a `SAFETY` comment and the block it speaks of.
const REACH: usize = 6;

/// Where `unsafe` stands, and that blocks, impls and functions say why.
pub(crate) fn check(path: &str, text: &str) -> Vec<Problem> {
    let lines = scan::lines(text);
    let fenced = FENCED.iter().any(|allowed| path.starts_with(allowed));
    let mut problems = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        if !line.has_word("unsafe") {
            continue;
        }
        if !fenced {
            let hint =
                "it lives in crates/kernels, crates/files/src/map.rs and crates/gpu/src/launch.rs only";
            problems.push(problem(path, at + 1, "unsafe outside the fence", hint));
            continue;
        }
        for offset in words_at(&line.code, "unsafe") {
            match what_follows(&lines, at, offset) {
                Use::Function if !documented(&lines, at) => {
                    let hint = "say in the doc comment what the caller must guarantee";
                    problems.push(problem(path, at + 1, "unsafe fn without a # Safety section", hint));
                }
                Use::Block if !justified(&lines, at) => {
                    let hint = "write // SAFETY: and the numbers that make it sound, just above";
                    problems.push(problem(path, at + 1, "unsafe without a SAFETY comment", hint));
                }
                Use::Function | Use::Block | Use::Type => {}
            }
        }
    }
    problems
}

enum Use {
    /// A function is declared.
    Function,
    /// A block, an impl, an extern block: something is claimed.
    Block,
    /// A function pointer type, a trait, an attribute: nothing to justify here.
    Type,
}

fn what_follows(lines: &[Line], at: usize, offset: usize) -> Use {
    let mut rest = lines[at].code[offset + "unsafe".len()..].to_owned();
    if let Some(next) = lines.get(at + 1) {
        rest.push(' ');
        rest.push_str(&next.code);
    }
    let rest = rest.trim_start();
    let after_extern =
        rest.strip_prefix("extern").map(|r| r.trim_start().trim_start_matches('"').trim_start());
    let head = after_extern.unwrap_or(rest);
    if let Some(name) = head.strip_prefix("fn") {
        return if name.trim_start().starts_with('(') { Use::Type } else { Use::Function };
    }
    if rest.starts_with("trait") || rest.starts_with('(') { Use::Type } else { Use::Block }
}

/// A `# Safety` heading among the doc comments and attributes right above.
fn documented(lines: &[Line], at: usize) -> bool {
    for line in lines[..at].iter().rev() {
        if line.comment.trim_start().starts_with("///") && line.comment.contains("# Safety") {
            return true;
        }
        let code = line.code.trim();
        let attribute = code.starts_with("#[") || code.ends_with(")]");
        if !(attribute || code.is_empty() && !line.comment.is_empty()) {
            return false;
        }
    }
    false
}

/// A `SAFETY:` comment on the line or at most [`REACH`] lines of code above; comments are free.
fn justified(lines: &[Line], at: usize) -> bool {
    if lines[at].comment.contains("SAFETY:") {
        return true;
    }
    let mut budget = REACH;
    for line in lines[..at].iter().rev() {
        if line.comment.contains("SAFETY:") {
            return true;
        }
        if line.comment.is_empty() {
            if budget == 0 {
                return false;
            }
            budget -= 1;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    //! Inside the fence and outside it.
    use super::*;

    fn found(path: &str, text: &str) -> Vec<String> {
        check(path, text).into_iter().map(|p| format!("{}: {}", p.line, p.what)).collect()
    }

    #[test]
    fn outside_the_fence_the_word_alone_fails() {
        let text = "// SAFETY: well founded\nunsafe { f() }\n";
        assert_eq!(found("crates/model/src/lib.rs", text), ["2: unsafe outside the fence"]);
        assert_eq!(found("crates/files/src/lib.rs", text).len(), 1);
        assert_eq!(found("crates/files/src/map.rs", text), [""; 0]);
        assert_eq!(found("crates/model/src/lib.rs", "#![deny(unsafe_code)] // no unsafe\n"), [""; 0]);
    }

    #[test]
    fn a_block_needs_a_reason_close_by() {
        let path = "crates/kernels/src/x.rs";
        let lost = ["1: unsafe without a SAFETY comment"];
        assert_eq!(found(path, "unsafe { f() }\n"), lost);
        assert_eq!(found(path, "unsafe\n{ f() }\n"), lost);
        assert_eq!(found(path, "unsafe impl Send for X {}\n"), lost);
        let far = format!("// SAFETY: too far\n{}unsafe {{ f() }}\n", "x();\n".repeat(REACH + 1));
        assert_eq!(found(path, &far).len(), 1);
        let near = format!("// SAFETY: near\n{}unsafe {{ f() }}\n", "x();\n".repeat(REACH));
        assert_eq!(found(path, &near), [""; 0]);
        let long = format!("// SAFETY: {}\nunsafe {{ f() }}\n", "many\n// ".repeat(9));
        assert_eq!(found(path, &long), [""; 0]);
    }

    #[test]
    fn a_function_needs_its_section() {
        let path = "crates/kernels/src/x.rs";
        let lost = ["2: unsafe fn without a # Safety section"];
        assert_eq!(found(path, "/// Adds.\npub unsafe fn f() {}\n"), lost);
        assert_eq!(found(path, "// # Safety\nunsafe extern \"C\" fn f() {}\n"), lost);
        let other = "/// # Safety\n/// n > 0\nunsafe fn f() {}\nunsafe fn g() {}\n";
        assert_eq!(found(path, other), ["4: unsafe fn without a # Safety section"]);
        let good = "/// # Safety\n/// n > 0\n#[target_feature(enable = \"avx2\")]\npub unsafe fn f() {}\n";
        assert_eq!(found(path, good), [""; 0]);
    }

    #[test]
    fn types_and_traits_claim_nothing() {
        let text = "struct T { f: unsafe fn(*const u8), g: unsafe extern \"C\" fn(u8) }\nunsafe trait Q {}\n";
        assert_eq!(found("crates/kernels/src/x.rs", text), [""; 0]);
    }
}
