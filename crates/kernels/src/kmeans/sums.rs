//! Sums of rows by label, exact in f64.

use super::NONE;
use crate::{Context, strips::Strips};

/// Rows whose columns are measured together.
const BLOCK: usize = 2048;
/// Columns of a task: a line of the cache of each row.
const COLUMNS: usize = 16;
/// Entries below which other threads would wake up too late.
const FEW: usize = 1 << 14;

/// What is known of the columns of all rows.
#[derive(Debug)]
pub(super) struct Columns {
    rows: usize,
    sums: Vec<f64>,
    /// Largest magnitudes.
    largest: Vec<f32>,
}

impl Columns {
    /// Measures `x` `[rows][dim]`.
    pub(super) fn measure(cx: &Context, x: &[f32], dim: usize) -> Columns {
        let rows = x.len() / dim;
        let mut columns = Columns { rows, sums: vec![0.0; dim], largest: vec![0.0; dim] };
        let mut parts = vec![0.0; rows.div_ceil(BLOCK) * 2 * dim];
        cx.chunks(&mut parts, 2 * dim, |block, part| {
            let x = &x[block * BLOCK * dim..x.len().min((block + 1) * BLOCK * dim)];
            let (sums, largest) = part.split_at_mut(dim);
            measure_block(cx.tier(), x, sums, largest);
        });
        for part in parts.chunks_exact(2 * dim) {
            let (sums, largest) = part.split_at(dim);
            for j in 0..dim {
                columns.sums[j] += f64::from(sums[j]);
                columns.largest[j] = columns.largest[j].max(largest[j]);
            }
        }
        columns
    }

    /// Means, of finite values: it is only near them that they matter.
    pub(super) fn mean(&self) -> Vec<f32> {
        let rows = self.rows.max(1) as f64;
        self.sums.iter().map(|sum| (sum / rows) as f32).map(|m| if m.is_finite() { m } else { 0.0 }).collect()
    }
}

tiered! {
    fn measure_block(x: &[f32], sums: &mut [f32], largest: &mut [f32]) {
        for x in x.chunks_exact(sums.len()) {
            for ((x, sum), largest) in x.iter().zip(&mut *sums).zip(&mut *largest) {
                *sum += x;
                *largest = if x.abs() > *largest { x.abs() } else { *largest };
            }
        }
    }
}

/// Which label each row is counted under in the sums.
#[derive(Debug)]
pub(super) struct Sums {
    counted: Vec<u32>,
    /// Rows to move.
    moved: Vec<u32>,
    /// Adding and subtracting these rounds an entry to the grid of its column.
    rounders: Vec<f64>,
}

impl Sums {
    /// Nothing is counted yet.
    ///
    /// Entries of a column are at most 2^E in magnitude, and there are less than 2^L of them: sums of multiples
    /// of 2^(E+L-53) are exact. Adding 1.5·2^52 such units leaves no finer bits.
    pub(super) fn new(columns: &Columns, rows: usize) -> Sums {
        // At least 2: then an entry is at most a third of what is added to it.
        let log_rows = ((usize::BITS - rows.leading_zeros()) as i32).max(2);
        let rounder = |largest: &f32| {
            // The power of two above; bits of f64 exponents.
            let above = (f64::from(*largest).to_bits() >> 52) as i32 - 1022;
            1.5 * 2f64.powi(above + log_rows - 53) * 2f64.powi(52)
        };
        let rounders = columns.largest.iter().map(|m| if *m > 0.0 { rounder(m) } else { 0.0 }).collect();
        Sums { counted: vec![NONE; rows], moved: vec![0; rows], rounders }
    }

    pub(super) fn reset(&mut self) {
        self.counted.fill(NONE);
    }

    /// Moves rows whose label changed. `sums` and `counts` are those of the last call, or zeros at first.
    pub(super) fn update(
        &mut self,
        cx: &Context,
        x: &[f32],
        labels: &[u32],
        sums: &mut [f64],
        counts: &mut [u64],
    ) {
        let dim = self.rounders.len();
        let mut moved = 0;
        for (row, (new, old)) in labels.iter().zip(&self.counted).enumerate() {
            self.moved[moved] = row as u32;
            moved += usize::from(new != old);
        }
        let moved = &self.moved[..moved];
        let count = |counts: &mut [u64], label: u32, by: u64| {
            if label != NONE {
                counts[label as usize] = counts[label as usize].wrapping_add(by);
            }
        };
        for row in moved {
            count(counts, labels[*row as usize], 1);
            count(counts, self.counted[*row as usize], u64::MAX);
        }
        let strips = Strips::new(sums, dim);
        let columns = |index: usize| {
            let first = index * COLUMNS;
            let rounders = &self.rounders[first..dim.min(first + COLUMNS)];
            move_rows(cx.tier(), x, dim, first, rounders, moved, labels, &self.counted, strips);
        };
        if moved.len() * dim < FEW {
            (0..dim.div_ceil(COLUMNS)).for_each(columns);
        } else {
            cx.tasks(dim.div_ceil(COLUMNS), columns);
        }
        for row in moved {
            self.counted[*row as usize] = labels[*row as usize];
        }
    }
}

tiered! {
    /// Moves the columns from `first` on of some rows from the label that they are counted under. No other task
    /// has these columns.
    fn move_rows(
        x: &[f32],
        dim: usize,
        first: usize,
        rounders: &[f64],
        moved: &[u32],
        labels: &[u32],
        counted: &[u32],
        sums: Strips<'_, f64>,
    ) {
        // SAFETY: the columns are this task's, and one slice of them is in use at a time.
        let columns = |label: u32| unsafe { sums.slice(label as usize, first, rounders.len()) };
        for row in moved {
            let row = *row as usize;
            let x = &x[row * dim + first..][..rounders.len()];
            if labels[row] != NONE {
                add(x, rounders, 1.0, columns(labels[row]));
            }
            if counted[row] != NONE {
                add(x, rounders, -1.0, columns(counted[row]));
            }
        }
    }
}

#[inline(always)]
fn add(x: &[f32], rounders: &[f64], sign: f64, sum: &mut [f64]) {
    if let (Ok(x), Ok(rounders), Ok(sum)) = (
        <&[f32; COLUMNS]>::try_from(x),
        <&[f64; COLUMNS]>::try_from(rounders),
        <&mut [f64; COLUMNS]>::try_from(&mut *sum),
    ) {
        for c in 0..COLUMNS {
            sum[c] += sign * (f64::from(x[c]) + rounders[c] - rounders[c]);
        }
    } else {
        for ((x, rounder), sum) in x.iter().zip(rounders).zip(sum) {
            *sum += sign * (f64::from(*x) + rounder - rounder);
        }
    }
}
