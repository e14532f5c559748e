//! Matrices in few bits: rows of bf16, int8 or balanced ternary levels, read and written a row at a time.

mod convert;
mod levels;
mod places;

use tritrain_trit::{
    digits::{self, PER_BYTE},
    format::{Format, step},
};

use crate::{Context, Tier, lanes, lines::Lines, strips::Parts, ternary::Source};

pub(crate) use levels::digits_len;
use levels::{load_levels, pack_levels};
pub(crate) use places::Places;

/// A matrix in a [`Format`]. Rows of digits may have more of them and fewer ([`Packed::set_digits`]), in as many bytes.
#[derive(Clone, Debug)]
pub struct Packed {
    rows: usize,
    places: Places,
    bytes: Lines,
    /// What a level is worth: for every row (int8, moments), or one for all (latent trits); none for bf16.
    steps: Vec<f32>,
    sums: Sums,
}

/// What scales and rates of a matrix are made from.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    /// `Σ |w|`. Of levels: by rows exact, then in f64 in order. Of bf16: as `trit::ternary::absmean` adds.
    pub absolute: f64,
    /// `Σ w²`, by rows, then in f64 in order.
    pub squares: f64,
}

/// Number of steps of a matrix.
fn steps(format: Format, rows: usize, by_row: bool) -> usize {
    match (format.largest(), by_row) {
        (None, _) => 0,
        (Some(_), true) => rows,
        (Some(_), false) => 1,
    }
}

impl Packed {
    /// Zeros. `by_row` gives every row a step of its own.
    ///
    /// # Panics
    /// More than five digits, or none.
    pub fn zeros(format: Format, rows: usize, cols: usize, by_row: bool) -> Packed {
        let steps = steps(format, rows, by_row);
        let mut bytes = Lines::default();
        bytes.sized(rows * format.row_len(cols));
        let places = Places::even(format, cols);
        let mut packed = Packed { rows, places, bytes, steps: vec![0.0; steps], sums: Sums::default() };
        if let Format::Trits(_) = format {
            // Zero is no zero byte there.
            packed.bytes_mut().fill(digits::to_byte([1; PER_BYTE]));
        }
        packed
    }

    /// Bytes that a matrix takes.
    pub fn room(format: Format, rows: usize, cols: usize, by_row: bool) -> usize {
        rows * format.row_len(cols) + steps(format, rows, by_row) * size_of::<f32>()
    }

    /// Bytes that numbers of digits take besides, where rows have different ones.
    pub fn places_room(rows: usize) -> usize {
        Places::room(rows)
    }

    /// How rows are stored, but for numbers of digits that differ.
    pub fn format(&self) -> Format {
        self.places.even_format()
    }

    /// Rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        [self.rows, self.places.cols()]
    }

    /// The number of digits of each row; empty where all are of the format.
    pub fn digits(&self) -> &[u8] {
        self.places.digits()
    }

    /// `Σ |w|` and `Σ w²` of latent weights.
    pub fn sums(&self) -> Sums {
        self.sums
    }

    /// The stored rows.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes.bytes()[..self.places.end(self.rows)]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        self.parts().0
    }

    /// What levels are worth, by row or one for all; with numbers of digits that differ, those of the format.
    pub fn steps(&self) -> &[f32] {
        &self.steps
    }

    /// Stored rows and steps, to be changed together.
    pub(crate) fn parts(&mut self) -> (&mut [u8], &mut [f32]) {
        let (bytes, steps, _) = self.placed_parts();
        (bytes, steps)
    }

    /// The same, and where rows lie.
    pub(crate) fn placed_parts(&mut self) -> (&mut [u8], &mut [f32], &Places) {
        let len = self.places.end(self.rows);
        (&mut self.bytes.sized(len)[..len], &mut self.steps, &self.places)
    }

    /// Bytes of a row with the digits of the format.
    pub(crate) fn row_len(&self) -> usize {
        self.format().row_len(self.places.cols())
    }

    /// What a level of a row is worth.
    pub(crate) fn step(&self, row: usize) -> f32 {
        self.places.step(&self.steps, row)
    }

    /// Takes stored rows, numbers of digits and steps as they were given out.
    ///
    /// # Errors
    /// As [`check`]; the matrix is then as it was.
    pub fn restore(
        &mut self,
        cx: &Context,
        bytes: &[u8],
        digits: &[u8],
        steps: &[f32],
    ) -> Result<(), String> {
        check(self.format(), self.shape(), bytes, digits, steps)?;
        if steps.len() != self.steps.len() {
            return Err(format!("{} steps, expected {}", steps.len(), self.steps.len()));
        }
        self.places.set(digits);
        self.bytes_mut().copy_from_slice(bytes);
        self.steps.copy_from_slice(steps);
        self.add_up(cx);
        Ok(())
    }

    /// Rounds latent weights `[rows][cols]` to the nearest levels. Trits and int8 reach from `-range` to
    /// `range` times the mean magnitude of the matrix (of the row, for int8 with a step for each). All rows have the
    /// digits of the format afterwards.
    ///
    /// # Panics
    /// The lengths do not fit together.
    pub fn set(&mut self, cx: &Context, from: &[f32], range: f32) {
        let [_, cols] = self.shape();
        assert_eq!(from.len(), self.rows * cols);
        self.places.set(&[]);
        let (len, format) = (self.row_len(), self.format());
        if let Some(largest) = format.largest() {
            let each = if self.steps.len() == 1 { from.len() } else { cols };
            for (to, from) in self.steps.iter_mut().zip(from.chunks(each.max(1))) {
                let mean = tritrain_trit::ternary::abs_total(from) / from.len().max(1) as f64;
                *to = step(mean as f32 * range / f32::from(largest));
            }
        }
        let steps = &self.steps;
        let bytes = &mut self.bytes.sized(self.rows * len)[..self.rows * len];
        cx.chunks(bytes, len, |row, bytes| {
            let from = &from[row * cols..][..cols];
            match format.largest() {
                None => {
                    for (to, from) in bytes.chunks_exact_mut(2).zip(from) {
                        let upper = (tritrain_trit::format::round_bf16(*from).to_bits() >> 16) as u16;
                        to.copy_from_slice(&upper.to_le_bytes());
                    }
                }
                Some(largest) => {
                    let (inverse, high) = (1.0 / step_of(steps, row), f32::from(largest));
                    let level = |w: f32| (w * inverse).clamp(-high, high).round_ties_even();
                    let levels: Vec<f32> =
                        from.iter().map(|w| if inverse.is_finite() { level(*w) } else { 0.0 }).collect();
                    let mut room = vec![0; digits_len(cols)];
                    store_levels(cx.tier(), &levels, format, bytes, &mut vec![0; cols], &mut room);
                }
            }
        });
        self.add_up(cx);
    }

    /// The weights, `[rows][cols]`.
    ///
    /// # Panics
    /// `to` has another length.
    pub fn get(&self, cx: &Context, to: &mut [f32]) {
        let [_, cols] = self.shape();
        assert_eq!(to.len(), self.rows * cols);
        let to = Parts::new(to, cols);
        cx.each(to.count(), cols.div_ceil(4), |row, desk| {
            // SAFETY: every part goes to one task.
            let to = unsafe { to.get(row) };
            let bytes = &self.bytes()[self.places.range(row)];
            let levels = &mut bytemuck::cast_slice_mut::<f32, i8>(desk)[..cols];
            load(cx.tier(), self.places.format(row), bytes, to, levels);
            if !self.steps.is_empty() {
                let step = self.step(row);
                to.iter_mut().for_each(|x| *x *= step);
            }
        });
    }

    /// Makes the sums anew.
    fn add_up(&mut self, cx: &Context) {
        let mut by_row = vec![[0.0; 2]; self.rows];
        {
            let this = &*self;
            let [_, cols] = this.shape();
            cx.chunks(&mut by_row, 1, |row, sums| {
                let mut values = vec![0.0; cols];
                let bytes = &this.bytes()[this.places.range(row)];
                load(cx.tier(), this.places.format(row), bytes, &mut values, &mut vec![0; cols]);
                sums[0] = row_sums(cx.tier(), &values);
            });
        }
        let by_row = &by_row;
        self.total(cx, by_row);
    }

    /// The sums of the matrix from those of its rows, in level units.
    pub(crate) fn total(&mut self, cx: &Context, by_row: &[[f64; 2]]) {
        let mut sums = Sums::default();
        for (row, [absolute, squares]) in by_row.iter().enumerate() {
            let step = if self.steps.is_empty() { 1.0 } else { f64::from(self.step(row)) };
            sums.absolute += step * absolute;
            sums.squares += step * step * squares;
        }
        if self.format() == Format::Bf16 {
            sums.absolute = bf16_total(cx, self.bytes());
        }
        self.sums = sums;
    }
}

/// Whether stored rows, numbers of digits and steps are those of a matrix of some shape.
///
/// # Errors
/// What is wrong with them: a length, numbers of digits that there are not or for which there is no room, bytes that
/// stand for no levels, a step that is no positive bf16.
pub fn check(
    format: Format,
    [rows, cols]: [usize; 2],
    bytes: &[u8],
    digits: &[u8],
    steps: &[f32],
) -> Result<(), String> {
    places::check(format, [rows, cols], digits)?;
    let mut places = Places::even(format, cols);
    places.set(digits);
    let (expected, found) = (places.end(rows), bytes.len());
    if expected != found {
        return Err(format!("{found} bytes, expected {expected}"));
    }
    if let Some(bad) = steps.iter().find(|s| !s.is_finite() || **s < 0.0 || step(**s) != **s) {
        return Err(format!("a step of {bad}, expected a bf16 number that is not negative"));
    }
    let mut levels = vec![0; cols];
    for row in 0..rows {
        let bytes = &bytes[places.range(row)];
        match places.format(row) {
            Format::Trits(n) => digits::unpack_row(bytes, usize::from(n), &mut levels)
                .map_err(|error| format!("row {row}: {error}"))?,
            Format::Int8 if bytes.contains(&0x80) => {
                return Err(format!("row {row}: the level -128, expected -127 to 127"));
            }
            Format::Int8 => {}
            Format::Bf16 => {
                if bytes.chunks_exact(2).any(|pair| pair[1] & 0x7f == 0x7f && pair[0] & 0x80 != 0) {
                    return Err(format!("row {row}: a number that is not finite"));
                }
            }
        }
    }
    Ok(())
}

pub(crate) fn step_of(steps: &[f32], row: usize) -> f32 {
    steps[if steps.len() == 1 { 0 } else { row }]
}

/// `Σ |w|` in the blocks and lanes that `trit::ternary::absmean` defines.
fn bf16_total(cx: &Context, bytes: &[u8]) -> f64 {
    use tritrain_trit::ternary::SUM_BLOCK;
    cx.with_floats((bytes.len() / 2).div_ceil(SUM_BLOCK), |sums| {
        cx.chunks(sums, 1, |block, sum| {
            let bytes = &bytes[block * 2 * SUM_BLOCK..];
            let bytes = &bytes[..bytes.len().min(2 * SUM_BLOCK)];
            let mut values = [0.0; SUM_BLOCK];
            let values = &mut values[..bytes.len() / 2];
            load_bf16(cx.tier(), bytes, values);
            sum[0] = sum_abs(cx.tier(), values);
        });
        sums.iter().copied().map(f64::from).sum()
    })
}

tiered! {
    fn sum_abs(x: &[f32]) -> f32 {
        lanes::sum_of(x, f32::abs)
    }
}

/// Columns up to which sums of squares of levels, or of their differences, are exact in f32.
pub(crate) const EXACT: usize = 256;
const _: () = assert!(EXACT * 254 * 254 <= 1 << 24);

/// `Σ |x|` and `Σ x²` of a row, exact for levels.
pub(crate) fn row_sums(tier: Tier, x: &[f32]) -> [f64; 2] {
    let mut sums = [0.0; 2];
    for x in x.chunks(EXACT) {
        let [absolute, squares] = short_sums(tier, x);
        sums[0] += f64::from(absolute);
        sums[1] += f64::from(squares);
    }
    sums
}

tiered! {
    fn short_sums(x: &[f32]) -> [f32; 2] {
        [lanes::sum_of(x, f32::abs), lanes::dot(x, x)]
    }
}

/// Reads a stored row: levels, or bf16 numbers. `levels` is room for as many.
///
/// `bytes` may go on behind the row, which spares copies.
pub(crate) fn load(tier: Tier, format: Format, bytes: &[u8], to: &mut [f32], levels: &mut [i8]) {
    let len = format.row_len(to.len());
    match format {
        Format::Bf16 => load_bf16(tier, &bytes[..len], to),
        Format::Int8 => widen(tier, bytemuck::cast_slice(&bytes[..len]), to),
        Format::Trits(n) => {
            let levels = &mut levels[..to.len()];
            load_levels(tier, bytes, len, usize::from(n), to.len(), 0, levels);
            widen(tier, levels, to);
        }
    }
}

/// Stores a row of levels, which are integers up to the largest in magnitude. `levels` is room for as many,
/// `digits` [`digits_len`] bytes.
pub(crate) fn store_levels(
    tier: Tier,
    from: &[f32],
    format: Format,
    bytes: &mut [u8],
    levels: &mut [i8],
    digits: &mut [u8],
) {
    let levels = &mut levels[..from.len()];
    narrow(tier, from, levels);
    match format {
        Format::Bf16 => unreachable!("bf16 has no levels"),
        Format::Int8 => bytes.copy_from_slice(bytemuck::cast_slice(levels)),
        Format::Trits(n) => pack_levels(tier, levels, usize::from(n), bytes, digits),
    }
}

tiered! {
    fn load_bf16(bytes: &[u8], to: &mut [f32]) {
        for (to, pair) in to.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *to = f32::from_bits(u32::from(u16::from_le_bytes(*pair)) << 16);
        }
    }
}

tiered! {
    /// Stores the upper halves of f32 numbers.
    pub(crate) fn store_bf16(from: &[f32], bytes: &mut [u8]) {
        for (pair, from) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(from) {
            *pair = ((from.to_bits() >> 16) as u16).to_le_bytes();
        }
    }
}

tiered! {
    fn widen(from: &[i8], to: &mut [f32]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = f32::from(*from);
        }
    }
}

tiered! {
    fn narrow(from: &[f32], to: &mut [i8]) {
        for (to, from) in to.iter_mut().zip(from) {
            *to = lanes::round(*from) as i8;
        }
    }
}

/// Latent weights and their scale, as ternary codes: the sign where |w| > scale/2, else 0.
#[derive(Clone, Copy, Debug)]
pub struct Codes<'a> {
    /// The weights.
    pub latent: &'a Packed,
    /// Their scale.
    pub scale: f32,
}

impl Source for Codes<'_> {
    fn count(&self) -> usize {
        self.latent.shape().iter().product()
    }

    fn codes(&self, tier: Tier, row: usize, column: usize, to: &mut [i8]) {
        let packed = self.latent;
        let places = packed.places.range(row);
        // To the end of the matrix: see `load`.
        let bytes = &packed.bytes()[places.start..];
        match packed.places.format(row) {
            Format::Bf16 => signs_bf16(tier, &bytes[2 * column..], self.scale, to),
            Format::Int8 => {
                to.copy_from_slice(&bytemuck::cast_slice(bytes)[column..column + to.len()]);
                signs(tier, least_level(self.scale, packed.step(row), 127), to);
            }
            Format::Trits(n) => {
                let (n, [_, cols]) = (usize::from(n), packed.shape());
                load_levels(tier, bytes, places.len(), n, cols, column, to);
                signs(tier, least_level(self.scale, packed.step(row), digits::largest(n)), to);
            }
        }
    }
}

/// The least level that is more than half a scale; one more than the largest if none is.
pub(crate) fn least_level(scale: f32, step: f32, largest: i8) -> i16 {
    let beyond = |level: i16| scale > 0.0 && f32::from(level) * step > scale * 0.5;
    (0..=i16::from(largest)).find(|level| beyond(*level)).unwrap_or(i16::from(largest) + 1)
}

tiered! {
    fn signs(least: i16, levels: &mut [i8]) {
        // 128 is beyond every level.
        let least = if least > 127 { return levels.fill(0) } else { least as i8 };
        for level in levels {
            *level = i8::from(*level >= least) - i8::from(*level <= -least);
        }
    }
}

tiered! {
    fn signs_bf16(bytes: &[u8], scale: f32, to: &mut [i8]) {
        let threshold = if scale > 0.0 { scale * 0.5 } else { f32::INFINITY };
        for (to, pair) in to.iter_mut().zip(bytes.as_chunks::<2>().0) {
            let w = f32::from_bits(u32::from(u16::from_le_bytes(*pair)) << 16);
            *to = i8::from(w > threshold) - i8::from(w < -threshold);
        }
    }
}
