//! Rows that get more digits, or fewer.

use tritrain_trit::format::Format;

use super::{Packed, Places, digits_len, load, places, store_levels};
use crate::{Context, Tier};

/// What a row is converted with.
struct Desk {
    old: Vec<f32>,
    new: Vec<f32>,
    levels: Vec<i8>,
    digits: Vec<u8>,
}

impl Packed {
    /// Gives every row of balanced ternary levels a number of digits, and rounds its numbers to the nearest of its new
    /// levels, which reach as far as the old ones. Returns `‖Δw‖²`.
    ///
    /// Rows are converted where they are: from the first to the last, those with fewer digits than before make room,
    /// and all move to the front; from the last to the first, they move to their places, and those with more digits
    /// fill them. Neither overwrites a row that is still to be read.
    ///
    /// # Panics
    /// The format is another; there is not a number of digits from one to five for every row; they take more bytes
    /// than rows of the format do.
    pub fn set_digits(&mut self, cx: &Context, digits: &[u8]) -> f64 {
        let ([rows, cols], format) = (self.shape(), self.format());
        assert_eq!(digits.len(), rows, "a number of digits for every row");
        if let Err(error) = places::check(format, [rows, cols], digits) {
            panic!("{error}");
        }
        let before = self.places.clone();
        self.places.set(digits);
        let after = &self.places;
        let bytes = self.bytes.sized(rows * format.row_len(cols));
        let mut desk = Desk {
            old: vec![0.0; cols],
            new: vec![0.0; cols],
            levels: vec![0; cols],
            digits: vec![0; digits_len(cols)],
        };
        let way = |row: usize| [&before, after].map(|p: &Places| (p.format(row), p.step(&self.steps, row)));
        let count = |places: &Places, row: usize| places.format(row).largest();
        let (mut at, mut moved) = (0, 0.0);
        for row in 0..rows {
            let from = before.range(row);
            let len = from.len().min(after.range(row).len());
            if count(after, row) < count(&before, row) {
                moved += desk.convert(cx.tier(), way(row), bytes, from.start, at);
            } else {
                bytes.copy_within(from, at);
            }
            at += len;
        }
        for row in (0..rows).rev() {
            let to = after.range(row);
            at -= to.len().min(before.range(row).len());
            if count(after, row) > count(&before, row) {
                moved += desk.convert(cx.tier(), way(row), bytes, at, to.start);
            } else {
                bytes.copy_within(at..at + to.len(), to.start);
            }
        }
        self.add_up(cx);
        moved
    }
}

impl Desk {
    /// Reads the row at `from` that is stored `before`, and stores it `after` at `to`: formats and what levels are
    /// worth. Returns `‖Δw‖²`.
    fn convert(
        &mut self,
        tier: Tier,
        [before, after]: [(Format, f32); 2],
        bytes: &mut [u8],
        from: usize,
        to: usize,
    ) -> f64 {
        load(tier, before.0, &bytes[from..], &mut self.old, &mut self.levels);
        let share = if after.1 > 0.0 { before.1 / after.1 } else { 0.0 };
        let high = f32::from(after.0.largest().unwrap_or_default());
        let mut moved = 0.0;
        for (new, old) in self.new.iter_mut().zip(&self.old) {
            *new = (old * share).round_ties_even().clamp(-high, high);
            moved += (f64::from(*new) * f64::from(after.1) - f64::from(*old) * f64::from(before.1)).powi(2);
        }
        let to = &mut bytes[to..][..after.0.row_len(self.old.len())];
        store_levels(tier, &self.new, after.0, to, &mut self.levels, &mut self.digits);
        moved
    }
}
