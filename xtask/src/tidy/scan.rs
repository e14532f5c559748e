//! A small scanner: Rust text to lines of code and lines of comment.
//!
//! Strings and comments are blanked in the code so that a rule never trips over a word inside them.
//! It knows nested block comments, escapes, raw strings, and characters from lifetimes; that is all
//! the rules need.

/// One line of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Line {
    /// The line without comments and without the contents of its strings.
    pub(crate) code: String,
    /// The text of its comments, markers included.
    pub(crate) comment: String,
    /// Inside an item marked `#[cfg(test)]`.
    pub(crate) test: bool,
}

impl Line {
    /// Whether the line holds the word, not as a part of a longer one.
    pub(crate) fn has_word(&self, word: &str) -> bool {
        words_at(&self.code, word).next().is_some()
    }
}

/// Byte offsets where `word` stands alone in `code`.
pub(crate) fn words_at<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word)
        .map(|(at, _)| at)
        .filter(move |&at| !code[..at].ends_with(part) && !code[at + word.len()..].starts_with(part))
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Code,
    LineComment,
    /// Depth of nesting.
    Block(u32),
    Str,
    /// Number of `#` that close it.
    Raw(usize),
}

/// The lines of `text`.
pub(crate) fn lines(text: &str) -> Vec<Line> {
    let chars: Vec<char> = text.chars().collect();
    let mut out = vec![Line::default()];
    let mut state = State::Code;
    let mut i = 0;
    while i < chars.len() {
        if chars[i] == '\n' {
            if state == State::LineComment {
                state = State::Code;
            }
            out.push(Line::default());
            i += 1;
            continue;
        }
        let line = out.len() - 1;
        let (next, used) = step(&chars, i, state, &mut out[line]);
        state = next;
        i += used;
    }
    mark_tests(&mut out);
    out
}

/// Reads one token part at `i`; returns the state after it and the characters it used.
fn step(chars: &[char], i: usize, state: State, line: &mut Line) -> (State, usize) {
    let c = chars[i];
    let next = chars.get(i + 1).copied();
    let pair = next.map(|n| [c, n]);
    match state {
        State::LineComment => {
            line.comment.push(c);
            (state, 1)
        }
        State::Block(depth) => match pair {
            Some(['*', '/']) => {
                line.comment.push_str("*/");
                (if depth == 1 { State::Code } else { State::Block(depth - 1) }, 2)
            }
            Some(['/', '*']) => {
                line.comment.push_str("/*");
                (State::Block(depth + 1), 2)
            }
            _ => {
                line.comment.push(c);
                (state, 1)
            }
        },
        State::Str if c == '\\' && next != Some('\n') => (state, 2),
        State::Str if c == '"' => {
            line.code.push('"');
            (State::Code, 1)
        }
        State::Raw(hashes) if c == '"' && (1..=hashes).all(|k| chars.get(i + k) == Some(&'#')) => {
            line.code.push('"');
            (State::Code, 1 + hashes)
        }
        State::Str | State::Raw(_) => (state, 1),
        State::Code => code_step(chars, i, line),
    }
}

fn code_step(chars: &[char], i: usize, line: &mut Line) -> (State, usize) {
    let c = chars[i];
    let next = chars.get(i + 1).copied();
    match (c, next) {
        ('/', Some('/')) => (State::LineComment, 0),
        ('/', Some('*')) => {
            line.comment.push_str("/*");
            (State::Block(1), 2)
        }
        ('"', _) => {
            line.code.push('"');
            (State::Str, 1)
        }
        ('r', Some('"' | '#'))
            if !line.code.ends_with(|p: char| p.is_alphanumeric() && p != 'b' && p != 'c') =>
        {
            let hashes = chars[i + 1..].iter().take_while(|&&h| h == '#').count();
            if chars.get(i + 1 + hashes) == Some(&'"') {
                line.code.push('"');
                (State::Raw(hashes), 2 + hashes)
            } else {
                line.code.push('r');
                (State::Code, 1)
            }
        }
        // A character; anything else that starts with an apostrophe is a lifetime.
        ('\'', Some('\\')) => {
            let rest = chars[i + 3..].iter().take_while(|&&q| q != '\'' && q != '\n').count();
            line.code.push_str("''");
            (State::Code, 4 + rest)
        }
        ('\'', Some(_)) if chars.get(i + 2) == Some(&'\'') => {
            line.code.push_str("''");
            (State::Code, 3)
        }
        _ => {
            line.code.push(c);
            (State::Code, 1)
        }
    }
}

/// Marks the items behind `#[cfg(test)]`: to the brace that closes them, or to their semicolon.
fn mark_tests(lines: &mut [Line]) {
    let mut at = 0;
    while at < lines.len() {
        let code = &lines[at].code;
        let Some(column) = code.find("#[cfg(test)]") else {
            at += 1;
            continue;
        };
        let mut from = column + "#[cfg(test)]".len();
        let mut depth = 0_i32;
        let mut opened = false;
        'item: while at < lines.len() {
            lines[at].test = true;
            for c in lines[at].code[from..].chars() {
                match c {
                    '{' | '(' | '[' => depth += 1,
                    '}' | ')' | ']' => depth -= 1,
                    _ => {}
                }
                opened |= c == '{';
                if depth == 0 && (c == ';' || (c == '}' && opened)) {
                    break 'item;
                }
            }
            from = 0;
            at += 1;
        }
        at += 1;
    }
}

#[cfg(test)]
mod tests {
    //! What the scanner must tell apart.
    use super::*;

    fn code(text: &str) -> Vec<String> {
        lines(text).into_iter().map(|l| l.code.trim_end().to_owned()).collect()
    }

    #[test]
    fn strings_and_comments_leave_the_code() {
        let cases = [
            ("let a = \"unsafe // no\"; // unsafe", "let a = \"\";"),
            (r#"let a = "\"unsafe"; b"#, "let a = \"\"; b"),
            ("let a = r#\"x\" unsafe\"#; b", "let a = \"\"; b"),
            ("let a = br\"\\\"; b", "let a = b\"\"; b"),
            ("a /* one /* two */ unsafe */ b", "a  b"),
            ("match c { '\"' => 1, '\\'' => 2, '\\u{7f}' => 3 }", "match c { '' => 1, '' => 2, '' => 3 }"),
            ("fn f<'a>(x: &'a str) { r#type }", "fn f<'a>(x: &'a str) { r#type }"),
        ];
        for (text, expected) in cases {
            assert_eq!(code(text), [expected], "{text}");
        }
    }

    #[test]
    fn a_string_may_cross_lines_and_keeps_their_number() {
        assert_eq!(code("let a = \"one \\\n  unsafe\n\"; b\nc"), ["let a = \"", "", "\"; b", "c"]);
    }

    #[test]
    fn comments_are_kept_apart() {
        let all = lines("x(); // SAFETY: why\n/* a\n b */ y");
        assert_eq!(all[0].comment, "// SAFETY: why");
        assert_eq!(all[2], Line { code: " y".into(), comment: " b */".into(), test: false });
    }

    #[test]
    fn test_items_end_with_their_brace_or_semicolon() {
        let text = "a\n#[cfg(test)]\nmod t {\n  fn f() { x }\n}\nb\n#[cfg(test)]\nuse x::{a, b};\nc\n";
        let marks: Vec<bool> = lines(text).iter().map(|l| l.test).collect();
        assert_eq!(marks, [false, true, true, true, true, false, true, true, false, false]);
    }

    #[test]
    fn a_word_is_not_a_part_of_a_longer_one() {
        let line = |text| lines(text).remove(0);
        assert!(line("unsafe { f() }").has_word("unsafe"));
        assert!(!line("#![deny(unsafe_code)]").has_word("unsafe"));
    }
}
