//! Where rows lie, and what their levels are worth, also where some have more digits than others.

use std::ops::Range;

use tritrain_trit::{
    digits,
    format::{Format, step},
};

use super::step_of;

/// Rows from one start that is kept to the next: others are counted from there.
const EVERY: usize = 16;

/// How each row of a matrix is stored, and where.
#[derive(Clone, Debug)]
pub(crate) struct Places {
    format: Format,
    cols: usize,
    /// By row; empty where all are of the format.
    digits: Vec<u8>,
    /// Where every sixteenth row begins; empty as `digits`.
    starts: Vec<usize>,
}

impl Places {
    /// All rows in one format.
    pub(crate) fn even(format: Format, cols: usize) -> Places {
        Places { format, cols, digits: Vec::new(), starts: Vec::new() }
    }

    /// Bytes that numbers of digits take where they differ.
    pub(crate) fn room(rows: usize) -> usize {
        rows + rows.div_ceil(EVERY) * size_of::<usize>()
    }

    /// Gives each row a number of digits; none for all that of the format.
    pub(crate) fn set(&mut self, digits: &[u8]) {
        self.digits.clear();
        self.starts.clear();
        if digits.iter().all(|digits| Format::Trits(*digits) == self.format) {
            return;
        }
        self.digits.reserve_exact(digits.len());
        self.digits.extend_from_slice(digits);
        self.starts.reserve_exact(digits.len().div_ceil(EVERY));
        let mut start = 0;
        for rows in digits.chunks(EVERY) {
            self.starts.push(start);
            start += total(rows, self.cols);
        }
    }

    pub(crate) fn digits(&self) -> &[u8] {
        &self.digits
    }

    pub(crate) fn cols(&self) -> usize {
        self.cols
    }

    /// The format of rows whose numbers of digits do not differ.
    pub(crate) fn even_format(&self) -> Format {
        self.format
    }

    /// How a row is stored.
    pub(crate) fn format(&self, row: usize) -> Format {
        self.digits.get(row).map_or(self.format, |digits| Format::Trits(*digits))
    }

    /// Where a row lies.
    pub(crate) fn range(&self, row: usize) -> Range<usize> {
        let len = self.format(row).row_len(self.cols);
        let start = match self.starts.get(row / EVERY) {
            Some(start) => start + total(&self.digits[row / EVERY * EVERY..row], self.cols),
            None => row * len,
        };
        start..start + len
    }

    /// Where the last of `rows` ends.
    pub(crate) fn end(&self, rows: usize) -> usize {
        rows.checked_sub(1).map_or(0, |last| self.range(last).end)
    }

    /// What a level of a row is worth, `steps` being those of the format: the largest level of any number of digits
    /// is worth the same, but for rounding to bf16. One where levels are numbers.
    pub(crate) fn step(&self, steps: &[f32], row: usize) -> f32 {
        let Some(largest) = self.format.largest() else { return 1.0 };
        let even = step_of(steps, row);
        match self.digits.get(row) {
            None => even,
            Some(digits) => {
                step(even * f32::from(largest) / f32::from(digits::largest(usize::from(*digits))))
            }
        }
    }
}

/// Bytes of rows.
fn total(rows: &[u8], cols: usize) -> usize {
    rows.iter().map(|digits| digits::row_len(usize::from(*digits), cols)).sum()
}

/// Whether rows of a matrix can have these numbers of digits, or none for that of the format.
///
/// # Errors
/// Their number, one that there is not, more bytes than rows of the format take.
pub(super) fn check(format: Format, [rows, cols]: [usize; 2], found: &[u8]) -> Result<(), String> {
    if found.is_empty() {
        return Ok(());
    }
    if !matches!(format, Format::Trits(_)) || found.len() != rows {
        return Err(format!("{} numbers of digits for {rows} rows of {format:?}", found.len()));
    }
    if let Some(row) = found.iter().position(|n| !(1..=digits::MOST).contains(&usize::from(*n))) {
        return Err(format!("row {row}: {} digits, expected 1 to {}", found[row], digits::MOST));
    }
    let (room, taken) = (rows * format.row_len(cols), total(found, cols));
    if taken > room { Err(format!("rows of {taken} bytes, expected {room} at most")) } else { Ok(()) }
}
