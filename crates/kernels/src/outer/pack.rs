//! How factors become panels of integers: quantised by columns or by rows, or copied from int8.

use super::{
    BLOCK, Kind, Left, Right,
    form::{Form, Side, TILE, TILE_QUADS, TILE_ROWS},
};
use crate::{Context, Tier, lanes, rows, tile::COLUMNS};

/// Rows of the left factor that one task lays out: whole panels of every form.
const STRIPE: usize = 96;
/// Columns that are quantised side by side.
const UNIT: usize = 48;
const _: () = assert!(STRIPE.is_multiple_of(UNIT));
/// Panels of the right factor that one task lays out: some lines of every row, which are fetched together.
const PANELS: usize = 16;

/// Rows of the left factor in each block, those included that only fill it up.
pub(super) fn padded_rows(rows: usize) -> usize {
    rows.next_multiple_of(STRIPE)
}

/// Panels of the right factor in each block, likewise.
pub(super) fn padded_panels(columns: usize) -> usize {
    columns.div_ceil(COLUMNS).next_multiple_of(PANELS)
}

/// Bytes of a left factor of `rows` by `inner`.
pub(crate) fn left_room(tier: Tier, kind: Kind, rows: usize, inner: usize) -> usize {
    let side = Form::of(tier, kind).left;
    let blocks = inner.div_ceil(BLOCK);
    let (stripes, panel) = (padded_rows(rows) / STRIPE, side.panel(inner.min(BLOCK)));
    blocks * stripes * (STRIPE / side.width() * panel + STRIPE * (size_of::<f32>() + size_of::<i32>()))
}

/// Bytes of a right factor of `inner` by `columns`, `scaled` by blocks or not.
pub(crate) fn right_room(tier: Tier, kind: Kind, inner: usize, columns: usize, scaled: bool) -> usize {
    let panel = Form::of(tier, kind).right.panel(inner.min(BLOCK));
    let scales = if scaled { COLUMNS * size_of::<f32>() } else { 0 };
    inner.div_ceil(BLOCK) * padded_panels(columns) * (panel + scales)
}

/// The scale that maps `largest` to the integer `bound`, and its inverse.
#[inline(always)]
pub(crate) fn scale(largest: f32, bound: i16) -> (f32, f32) {
    let bound = f32::from(bound);
    if !largest.is_finite() {
        // The scale carries it on, and the guard of the optimizer sees it.
        (f32::NAN, 0.0)
    } else if largest > f32::MIN_POSITIVE * 65536.0 {
        (largest / bound, bound / largest)
    } else {
        (0.0, 0.0)
    }
}

/// What a task lays out.
struct Target<'a> {
    side: Side,
    /// Largest magnitude of the integers.
    bound: i16,
    /// Panels, `panel` bytes each.
    values: &'a mut [u8],
    panel: usize,
    scales: &'a mut [f32],
    /// Receives `offset` times the sums of rows; empty where nobody asks for them.
    offsets: &'a mut [i32],
    offset: i32,
}

impl Left {
    /// Room for `rows` × `inner`, laid out by tasks with the number of their block and first row.
    fn lay_out(
        &mut self,
        cx: &Context,
        kind: Kind,
        (rows, inner): (usize, usize),
        work: impl Fn(usize, usize, Target<'_>) + Sync + Send,
    ) {
        let form = Form::of(cx.tier(), kind);
        let (side, bound, offset) = (form.left, kind.left_bound(), form.offset);
        let (blocks, stripes) = (inner.div_ceil(BLOCK), padded_rows(rows) / STRIPE);
        let panel = side.panel(inner.min(BLOCK));
        let stripe = STRIPE / side.width() * panel;
        (self.rows, self.inner) = (rows, inner);
        self.scales.resize(blocks * stripes * STRIPE, 0.0);
        self.offsets.resize(blocks * stripes * STRIPE, 0);
        let values = self.values.sized(blocks * stripes * stripe);
        let (scales, offsets) = (&mut self.scales[..], &mut self.offsets[..]);
        cx.chunks3(
            (values, stripe),
            (scales, STRIPE),
            (offsets, STRIPE),
            |index, values, scales, offsets| {
                let target = Target { side, bound, values, panel, scales, offsets, offset };
                work(index / stripes, index % stripes * STRIPE, target);
            },
        );
    }
}

/// Folds the token scales `a` into `dy` `[tokens][outputs]` and quantises every output column, which
/// becomes a row of the result.
pub(crate) fn quantise_columns(
    cx: &Context,
    kind: Kind,
    dy: &[f32],
    a: &[f32],
    outputs: usize,
    left: &mut Left,
) {
    left.lay_out(cx, kind, (outputs, a.len()), |block, first, target| {
        let tokens = block * BLOCK..a.len().min((block + 1) * BLOCK);
        let dy = &dy[tokens.start * outputs..tokens.end * outputs];
        quantise_stripe(cx.tier(), dy, &a[tokens], outputs, first, target);
    });
}

tiered! {
    /// Up to [`STRIPE`] output columns of a block of [`quantise_columns`], from column `first` on.
    fn quantise_stripe(dy: &[f32], a: &[f32], outputs: usize, first: usize, target: Target<'_>) {
        for unit in (0..STRIPE.min(outputs - first)).step_by(UNIT) {
            quantise_unit(dy, a, outputs, first + unit, unit, &mut Target {
                values: &mut *target.values,
                scales: &mut *target.scales,
                offsets: &mut *target.offsets,
                ..target
            });
        }
    }
}

/// Up to [`UNIT`] columns from `column` on, which are the rows from `row` on of the target.
#[inline(always)]
fn quantise_unit(dy: &[f32], a: &[f32], outputs: usize, column: usize, row: usize, to: &mut Target<'_>) {
    let count = UNIT.min(outputs - column);
    let mut largest = [0u32; UNIT];
    for (dy, a) in dy.chunks_exact(outputs).zip(a) {
        let dy = fold(&dy[column..][..count], *a);
        for c in 0..UNIT {
            largest[c] = largest[c].max(dy[c].to_bits() & 0x7fff_ffff);
        }
    }
    let mut inverse = [0.0; UNIT];
    for c in 0..UNIT {
        (to.scales[row + c], inverse[c]) = scale(f32::from_bits(largest[c]), to.bound);
    }
    let mut sums = [0i32; UNIT];
    let values = &mut to.values[row / to.side.width() * to.panel..];
    // The lower bytes of sixteen quads, and the upper ones: rows of a tile, where there are tiles.
    let mut words = [[[0; UNIT]; TILE_QUADS]; 2];
    for quad in 0..to.side.quads(a.len()) {
        let mut q = [[0i32; UNIT]; 4];
        for (t, q) in (4 * quad..a.len()).zip(&mut q) {
            let dy = fold(&dy[t * outputs + column..][..count], a[t]);
            for c in 0..UNIT {
                // |dy·a·inverse| ≤ bound·(1 + 2^-22), which rounds to at most the bound.
                q[c] = lanes::round(dy[c] * inverse[c]);
                sums[c] += q[c];
            }
        }
        match to.side {
            Side::Pairs { width } => {
                for (half, pair) in q.as_chunks::<2>().0.iter().enumerate() {
                    let mut words = [0; UNIT];
                    for c in 0..UNIT {
                        words[c] = (pair[0][c] & 0xffff | pair[1][c] << 16).cast_unsigned();
                    }
                    put_words(&words, width, (2 * quad + half) * width * 4, to.panel, values);
                }
            }
            Side::Quads { width } => {
                put_words(&bytes_of(&q, 0), width, quad * width * 4, to.panel, values);
            }
            Side::Rows { planes } => {
                words[0][quad % TILE_QUADS] = bytes_of(&q, 0);
                if planes == 2 {
                    words[1][quad % TILE_QUADS] = bytes_of(&q, 8);
                }
                if quad % TILE_QUADS == TILE_QUADS - 1 {
                    let at = quad / TILE_QUADS * planes * TILE;
                    put_tile_rows(&words[0], at + (planes - 1) * TILE, to.panel, values);
                    if planes == 2 {
                        put_tile_rows(&words[1], at, to.panel, values);
                    }
                }
            }
            Side::Columns { .. } => unreachable!("tiles of the right factor are packed from rows"),
        }
    }
    for c in 0..UNIT {
        to.offsets[row + c] = to.offset * sums[c];
    }
}

/// A byte of each of four integers side by side.
#[inline(always)]
fn bytes_of(quad: &[[i32; UNIT]; 4], shift: u32) -> [u32; UNIT] {
    let mut words = [0; UNIT];
    for c in 0..UNIT {
        let byte = |i: usize| (quad[i][c] >> shift).cast_unsigned() & 0xff;
        words[c] = byte(0) | byte(1) << 8 | byte(2) << 16 | byte(3) << 24;
    }
    words
}

/// Words of sixteen quads as rows of tiles, at byte `at` of each panel.
#[inline(always)]
fn put_tile_rows(words: &[[u32; UNIT]; TILE_QUADS], at: usize, panel: usize, values: &mut [u8]) {
    for lane in 0..UNIT {
        let mut row = [[0; 4]; TILE_QUADS];
        for i in 0..TILE_QUADS {
            row[i] = words[i][lane].to_le_bytes();
        }
        let to = lane / TILE_ROWS * panel + at + lane % TILE_ROWS * (4 * TILE_QUADS);
        values[to..to + 4 * TILE_QUADS].copy_from_slice(row.as_flattened());
    }
}

/// Words of [`UNIT`] lanes to panels of `width`, at byte `at` of each.
#[inline(always)]
fn put_words(words: &[u32; UNIT], width: usize, at: usize, panel: usize, values: &mut [u8]) {
    let bytes: &[u8] = bytemuck::cast_slice(words);
    for (bytes, values) in bytes.chunks_exact(4 * width).zip(values.chunks_exact_mut(panel)) {
        values[at..at + 4 * width].copy_from_slice(bytes);
    }
}

/// A row times `a`, the missing columns zero: full lanes wherever the row lies.
#[inline(always)]
fn fold(row: &[f32], a: f32) -> [f32; UNIT] {
    let mut folded = [0.0; UNIT];
    if let Ok(row) = <&[f32; UNIT]>::try_from(row) {
        for c in 0..UNIT {
            folded[c] = row[c] * a;
        }
    } else {
        for (folded, value) in folded.iter_mut().zip(row) {
            *folded = value * a;
        }
    }
    folded
}

/// Quantises the rows of `x` `[rows][inner]`, times `fold` `[inner]` where that is not empty, which become
/// rows of the result.
pub(crate) fn quantise_left_rows(
    cx: &Context,
    kind: Kind,
    x: &[f32],
    fold: &[f32],
    inner: usize,
    left: &mut Left,
) {
    let rows = x.len() / inner;
    left.lay_out(cx, kind, (rows, inner), |block, first, target| {
        let part = block * BLOCK..inner.min((block + 1) * BLOCK);
        let fold = fold.get(part.clone()).unwrap_or_default();
        let x = &x[first * inner..rows.min(first + STRIPE) * inner];
        quantise_rows(cx.tier(), x, inner, part.start, fold, part.len(), target);
    });
}

/// Quantises the rows of `x` `[columns][inner]`, which become columns of the result.
pub(crate) fn quantise_right_rows(cx: &Context, kind: Kind, x: &[f32], inner: usize, right: &mut Right) {
    let columns = x.len() / inner;
    let side = Form::of(cx.tier(), kind).right;
    let panel = side.panel(inner.min(BLOCK));
    let (blocks, panels) = (inner.div_ceil(BLOCK), padded_panels(columns));
    (right.columns, right.inner) = (columns, inner);
    right.scales.resize(blocks * panels * COLUMNS, 0.0);
    let values = right.values.sized(blocks * panels * panel);
    let groups = panels / PANELS;
    cx.chunks2((values, PANELS * panel), (&mut right.scales, PANELS * COLUMNS), |index, values, scales| {
        let (block, first) = (index / groups, index % groups * PANELS * COLUMNS);
        let part = block * BLOCK..inner.min((block + 1) * BLOCK);
        let x = &x[first * inner..columns.min(first + PANELS * COLUMNS) * inner];
        let target =
            Target { side, bound: kind.right_bound(), values, panel, scales, offsets: &mut [], offset: 0 };
        quantise_rows(cx.tier(), x, inner, part.start, &[], part.len(), target);
    });
}

tiered! {
    /// The entries `start..start + len` of rows of `x`, `inner` apart, as lanes of the target.
    fn quantise_rows(
        x: &[f32],
        inner: usize,
        start: usize,
        fold: &[f32],
        len: usize,
        target: Target<'_>,
    ) {
        let Target { side, bound, values, panel, scales, offsets, offset } = target;
        let (width, quads) = (side.width(), side.quads(len));
        for (row, x) in x.chunks_exact(inner).enumerate() {
            let x = &x[start..start + len];
            let mut folded = [0.0f32; BLOCK];
            if fold.is_empty() {
                folded[..len].copy_from_slice(x);
            } else {
                for ((to, x), f) in folded.iter_mut().zip(x).zip(fold) {
                    *to = x * f;
                }
            }
            let (scale, inverse) = scale(lanes::max_abs(&folded[..len]), bound);
            scales[row] = scale;
            let mut q = [0i16; BLOCK];
            for (q, x) in q.iter_mut().zip(&folded) {
                *q = lanes::round(x * inverse) as i16;
            }
            if let Some(to) = offsets.get_mut(row) {
                *to = offset * q.iter().map(|q| i32::from(*q)).sum::<i32>();
            }
            let values = &mut values[row / width * panel..][..panel];
            for (quad, four) in q.as_chunks::<4>().0[..quads].iter().enumerate() {
                side.put(values, row % width, quad, *four);
            }
        }
    }
}

/// Lays int8 rows `x` `[inner][columns]` out as columns of the result.
pub(crate) fn pack_columns(cx: &Context, kind: Kind, x: &[i8], columns: usize, right: &mut Right) {
    let blocks = Columns::new(cx, kind, x.len() / columns, columns, right);
    cx.chunks(blocks.values, PANELS * blocks.panel, |index, values| {
        let (block, first) = (index / blocks.groups, index % blocks.groups * PANELS * COLUMNS);
        let x = &x[block * BLOCK * columns..x.len().min((block + 1) * BLOCK * columns)];
        pack_panels(cx.tier(), x, columns, first, blocks.side, blocks.offset, blocks.panel, values);
    });
}

/// [`rows::quantize`] of `x` `[inner][columns]`, whose scales are written, and [`pack_columns`] of the codes, of
/// which `codes` holds a block of the inner index at a time.
pub(crate) fn round_columns(
    cx: &Context,
    kind: Kind,
    x: &[f32],
    columns: usize,
    codes: &mut Vec<i8>,
    scales: &mut [f32],
    right: &mut Right,
) {
    let blocks = Columns::new(cx, kind, x.len() / columns, columns, right);
    codes.resize((BLOCK * columns).min(x.len()), 0);
    let parts = blocks.values.chunks_mut(blocks.groups * PANELS * blocks.panel);
    for ((x, scales), values) in x.chunks(BLOCK * columns).zip(scales.chunks_mut(BLOCK)).zip(parts) {
        let codes = &mut codes[..x.len()];
        rows::quantize(cx, x, codes, scales);
        let codes = &*codes;
        cx.chunks(values, PANELS * blocks.panel, |group, values| {
            let first = group * PANELS * COLUMNS;
            pack_panels(cx.tier(), codes, columns, first, blocks.side, blocks.offset, blocks.panel, values);
        });
    }
}

/// Room for columns of a result, by blocks of the inner index.
struct Columns<'a> {
    values: &'a mut [u8],
    panel: usize,
    /// Groups of panels in a block.
    groups: usize,
    side: Side,
    offset: u8,
}

impl<'a> Columns<'a> {
    fn new(cx: &Context, kind: Kind, inner: usize, columns: usize, right: &'a mut Right) -> Columns<'a> {
        let form = Form::of(cx.tier(), kind);
        let panel = form.right.panel(inner.min(BLOCK));
        let (blocks, panels) = (inner.div_ceil(BLOCK), padded_panels(columns));
        (right.columns, right.inner) = (columns, inner);
        right.scales.clear();
        let values = right.values.sized(blocks * panels * panel);
        Columns { values, panel, groups: panels / PANELS, side: form.right, offset: form.offset as u8 }
    }
}

tiered! {
    /// Up to [`PANELS`] panels of a block, from column `first` on.
    fn pack_panels(
        x: &[i8],
        columns: usize,
        first: usize,
        side: Side,
        offset: u8,
        panel: usize,
        values: &mut [u8],
    ) {
        let inner = x.len() / columns;
        for quad in 0..side.quads(inner) {
            for (at, values) in values.chunks_exact_mut(panel).enumerate() {
                let column = first + at * COLUMNS;
                if column >= columns {
                    break;
                }
                let mut rows = [[0; COLUMNS]; 4];
                for (i, row) in rows.iter_mut().enumerate() {
                    let t = 4 * quad + i;
                    if t < inner {
                        *row = sixteen(&x[t * columns..][..columns], column);
                    }
                }
                match side {
                    Side::Pairs { .. } => {
                        let mut wide = [[[0; 2]; 2]; 2 * COLUMNS];
                        for i in 0..2 * COLUMNS {
                            let (half, c) = (i / COLUMNS, i % COLUMNS);
                            for j in 0..2 {
                                wide[i][j] = i16::from(rows[2 * half + j][c]).to_le_bytes();
                            }
                        }
                        values[quad * 8 * COLUMNS..][..8 * COLUMNS]
                            .copy_from_slice(wide.as_flattened().as_flattened());
                    }
                    _ => {
                        let mut quads = [[0; 4]; COLUMNS];
                        for c in 0..COLUMNS {
                            for i in 0..4 {
                                quads[c][i] = rows[i][c].cast_unsigned() ^ offset;
                            }
                        }
                        values[quad * 4 * COLUMNS..][..4 * COLUMNS].copy_from_slice(quads.as_flattened());
                    }
                }
            }
        }
    }
}

/// Sixteen columns of a row, those beyond its end zero.
#[inline(always)]
fn sixteen(row: &[i8], column: usize) -> [i8; COLUMNS] {
    let row = &row[column..row.len().min(column + COLUMNS)];
    <[i8; COLUMNS]>::try_from(row).unwrap_or_else(|_| {
        let mut padded = [0; COLUMNS];
        padded[..row.len()].copy_from_slice(row);
        padded
    })
}
