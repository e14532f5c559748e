//! Long documents cut into passages, so that a novel is many vectors and a tweet is one.

use std::ops::Range;

/// The longest passage, in bytes.
pub(crate) const LONGEST: usize = 8 << 10;

/// The passages of a text: byte ranges that join to it, each of 1 to [`LONGEST`] bytes and, unless the
/// text is shorter, of at least 1 KiB or so.
///
/// A passage ends at the last blank line in the second half of what it may hold, else at the last line
/// break there, else between two characters. The last cut leaves a quarter of the rest behind it at
/// least: no crumbs.
pub(crate) struct Passages<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Passages<'t> {
    pub(crate) fn new(text: &'t str) -> Self {
        Passages { text, at: 0 }
    }
}

impl Iterator for Passages<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        let rest = self.text.get(self.at..).filter(|rest| !rest.is_empty())?;
        let from = self.at;
        self.at += first(rest);
        Some(from..self.at)
    }
}

/// Length of the first passage of a text that is not empty.
fn first(text: &str) -> usize {
    if text.len() <= LONGEST {
        return text.len();
    }
    let most = LONGEST.min(text.len() / 4 * 3);
    let half = most / 2;
    let window = text.as_bytes().get(half..most).unwrap_or_default();
    let blank = window.windows(2).rposition(|pair| pair == b"\n\n").map(|at| half + at + 2);
    let line = || window.iter().rposition(|&byte| byte == b'\n').map(|at| half + at + 1);
    let end = blank.or_else(line).or_else(|| (half..=most).rev().find(|&at| text.is_char_boundary(at)));
    end.unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lens(text: &str) -> Vec<usize> {
        let ranges: Vec<_> = Passages::new(text).collect();
        let joined: String = ranges.iter().map(|range| &text[range.clone()]).collect();
        assert_eq!(joined, text);
        ranges.iter().map(Range::len).collect()
    }

    #[test]
    fn passages_end_where_paragraphs_do() {
        assert_eq!(lens(""), [0; 0]);
        assert_eq!(lens("short"), [5]);
        assert_eq!(lens(&"x".repeat(LONGEST)), [LONGEST]);
        // One byte too many: three quarters of 8193 / 4 * 4.
        assert_eq!(lens(&"x".repeat(LONGEST + 1)), [6144, 2049]);
        // A blank line at 5000 beats a line break at 6000.
        let text = format!("{}\n\n{}\n{}", "a".repeat(4998), "b".repeat(999), "c".repeat(20_000));
        assert_eq!(lens(&text)[0], 5000);
        // Without a blank line in the second half the line break counts.
        let text = format!("{}\n\n{}\n{}", "a".repeat(998), "b".repeat(5_999), "c".repeat(20_000));
        assert_eq!(lens(&text)[0], 7000);
    }

    #[test]
    fn passages_are_neither_long_nor_crumbs() {
        for unit in ["x", "é", "🙂", "word word\n", "a paragraph\n\n", "\n"] {
            for bytes in [LONGEST + 4, 10_000, 16_380, 16_400, 24_600, 100_000] {
                let text = unit.repeat(bytes / unit.len());
                let lens = lens(&text);
                assert!(lens.iter().all(|len| (1024..=LONGEST).contains(len)), "{unit:?} {bytes} {lens:?}");
            }
        }
    }
}
