//! The output head and its cross entropy, in chunks of tokens as on a processor: the logits of a chunk exist, never
//! those of a batch.

use cubecl::{prelude::*, server::Handle};
use tritrain_backend::{NO_TARGET, Products};

use super::{
    embed::link_targets,
    matmul::{View, gemm},
    norm::quantize_rows,
    products::{BLOCK, Factor, Kind, Onto, Place, Scales, product},
    ternary::{turned, weight_gradient},
};
use crate::{
    Floats, Gpu, Rows, Tokens,
    blocks::{
        UNITS, as_byte, cube_max, cube_sum, desk, inverse_scale_of, magnitude, nearest, ordered, scale_of,
        unordered, word_desk,
    },
    launch::{arg, cubes, cubes_for, launch, units},
};

/// Most tokens in a chunk, and most logits (`kernels::loss`).
const CHUNK: usize = 512;
const SCRATCH: usize = 1 << 23;

/// Units that make the words of a block.
const BLOCK_WORDS: usize = BLOCK / 4;

/// One cube a row and block: the numbers of a row, times those of `by`, as integers of two planes or one.
#[cube(launch, create_dummy_kernel)]
fn row_blocks(
    x: &[f32],
    by: &[f32],
    words: &mut [u32],
    scales: &mut [f32],
    x_from: usize,
    rows: usize,
    cols: usize,
    bound: f32,
    #[comptime] shift: u32,
    #[comptime] scaled: bool,
) {
    let mut desk = word_desk();
    if CUBE_POS < scales.len() {
        let row = CUBE_POS % rows;
        let block = CUBE_POS / rows;
        let start = x_from + row * cols;
        let first = block * BLOCK;
        let last = min(first + BLOCK, cols);
        let unit = UNIT_POS as usize;
        let mut largest = 0u32;
        let mut i = first + unit;
        while i < last {
            let factor = if comptime![scaled] { by[i] } else { 1.0f32.runtime() };
            largest = max(largest, magnitude(x[start + i] * factor));
            i += UNITS;
        }
        let largest = cube_max(largest, &mut desk);
        if unit == 0 {
            scales[CUBE_POS] = scale_of(largest, bound);
        }
        let inverse = inverse_scale_of(largest, bound);
        let row_words = cols.div_ceil(4);
        let word = first / 4 + unit;
        if unit < BLOCK_WORDS && word < row_words {
            let mut high = 0u32;
            let mut low = 0u32;
            #[unroll]
            for at in 0..4usize {
                let i = 4 * word + at;
                let mut code = 0i32;
                if i < cols && inverse != 0.0f32 {
                    let factor = if comptime![scaled] { by[i] } else { 1.0f32.runtime() };
                    code = nearest(x[start + i] * factor * inverse);
                }
                if comptime![shift == 6] {
                    high |= as_byte(code >> 6i32, comptime![at as u32]);
                    low |= as_byte(code & 63i32, comptime![at as u32]);
                } else {
                    high |= as_byte(code >> 8i32, comptime![at as u32]);
                    low |= as_byte((code & 0xffi32) - 128i32, comptime![at as u32]);
                }
            }
            words[2 * row * row_words + word] = high;
            words[(2 * row + 1) * row_words + word] = low;
        }
    }
}

/// One cube a row of logits: its loss, and `scale · softmax` in its place; 0 for both without a target.
#[cube(launch, create_dummy_kernel)]
fn entropy(
    logits: &mut [f32],
    targets: &[u32],
    losses: &mut [f32],
    first: usize,
    rows: usize,
    vocab: usize,
    scale: f32,
) {
    let mut words = word_desk();
    let mut desk = desk();
    if CUBE_POS < rows {
        let start = CUBE_POS * vocab;
        let unit = UNIT_POS as usize;
        let mut largest = 0u32;
        let mut i = unit;
        while i < vocab {
            largest = max(largest, ordered(logits[start + i]));
            i += UNITS;
        }
        let largest = unordered(cube_max(largest, &mut words));
        let target = targets[first + CUBE_POS];
        let counts = target != NO_TARGET;
        let at = if counts { target as usize } else { 0usize.runtime() };
        let gap = largest - logits[start + at];
        sync_cube();
        let mut sum = 0.0f32;
        let mut i = unit;
        while i < vocab {
            let p = (logits[start + i] - largest).exp();
            logits[start + i] = p;
            sum += p;
            i += UNITS;
        }
        let sum = cube_sum(sum, &mut desk);
        if unit == 0 {
            losses[first + CUBE_POS] = if counts { sum.ln() + gap } else { 0.0f32.runtime() };
        }
        let factor = if counts { scale / sum } else { 0.0f32.runtime() };
        let mut i = unit;
        while i < vocab {
            logits[start + i] *= factor;
            i += UNITS;
        }
    }
}

/// `d_hidden[t] -= factor · head[target]`, with the row of the head in int8.
#[cube(launch, create_dummy_kernel)]
fn subtract_words(
    codes: &[u32],
    scales: &[f32],
    targets: &[u32],
    d_hidden: &mut [f32],
    first: usize,
    rows: usize,
    dim: usize,
    factor: f32,
) {
    if ABSOLUTE_POS < rows * dim {
        let target = targets[first + ABSOLUTE_POS / dim];
        if target != NO_TARGET {
            let target = target as usize;
            let col = ABSOLUTE_POS % dim;
            let code = crate::blocks::byte(codes[target * dim.div_ceil(4) + col / 4], (col % 4) as u32);
            d_hidden[first * dim + ABSOLUTE_POS] -= f32::cast_from(code) * (factor * scales[target]);
        }
    }
}

/// `d_head[target] -= factor · hidden[t]`, tokens with the same target in order, by the cube of the first of them.
#[cube(launch, create_dummy_kernel)]
fn subtract_hidden(
    codes: &[u32],
    scales: &[f32],
    targets: &[u32],
    links: &[u32],
    d_head: &mut [f32],
    first: usize,
    rows: usize,
    dim: usize,
    factor: f32,
) {
    if CUBE_POS < rows && links[2 * CUBE_POS] == 0u32 && targets[first + CUBE_POS] != NO_TARGET {
        let row = targets[first + CUBE_POS] as usize * dim;
        let mut col = UNIT_POS as usize;
        while col < dim {
            let mut sum = d_head[row + col];
            let mut at = CUBE_POS as u32;
            while at != u32::MAX {
                let t = at as usize;
                let code = crate::blocks::byte(codes[t * dim.div_ceil(4) + col / 4], (col % 4) as u32);
                sum -= f32::cast_from(code) * (factor * scales[t]);
                at = links[2 * t + 1];
            }
            d_head[row + col] = sum;
            col += UNITS;
        }
    }
}

/// `x[t][target] -= factor`.
#[cube(launch, create_dummy_kernel)]
fn subtract_targets(x: &mut [f32], targets: &[u32], first: usize, rows: usize, vocab: usize, factor: f32) {
    if ABSOLUTE_POS < rows && targets[first + ABSOLUTE_POS] != NO_TARGET {
        x[ABSOLUTE_POS * vocab + targets[first + ABSOLUTE_POS] as usize] -= factor;
    }
}

/// Rows in integers with scales by row and block: words `[rows][2][⌈cols/4⌉]`, scales `[blocks][rows]`.
struct Rounded {
    words: Handle,
    scales: Handle,
    rows: usize,
}

impl Rounded {
    /// Rounds the rows `x[from..]`, each number times the one of its column in `by`, if there are any.
    fn new(
        gpu: &Gpu,
        kind: Kind,
        (x, from): (&Floats, usize),
        by: Option<&Handle>,
        rows: usize,
        cols: usize,
    ) -> Rounded {
        let (bound, shift) = if kind == Kind::Twelve { (2047.0, 6_u32) } else { (32767.0, 8) };
        let count = rows * cols.div_ceil(BLOCK);
        let (words, scales) = (gpu.room(2 * rows * cols.div_ceil(4)), gpu.room(count));
        let spare = gpu.room(1);
        launch!(
            gpu,
            row_blocks,
            cubes(count),
            units(),
            x.arg(),
            by.map_or_else(|| arg(&spare, 1), |by| arg(by, cols)),
            arg(&words, 2 * rows * cols.div_ceil(4)),
            arg(&scales, count),
            from,
            rows,
            cols,
            bound,
            shift,
            by.is_some(),
        );
        Rounded { words, scales, rows }
    }

    fn factor(&self) -> Factor<'_> {
        Factor { words: &self.words, scales: Scales::Rows(&self.scales), rows: self.rows }
    }
}

/// Int8 rows of `x[from..]`.
fn int8_rows(gpu: &Gpu, (x, from): (&Floats, usize), rows: usize, cols: usize) -> Rows {
    use tritrain_backend::Memory;
    let mut to = gpu.rows(rows, cols);
    if from == 0 && x.len == rows * cols {
        quantize_rows(gpu, x, &mut to);
    } else {
        let part = slice(gpu, x, from, rows * cols);
        quantize_rows(gpu, &part, &mut to);
    }
    to
}

#[cube(launch, create_dummy_kernel)]
fn slice_kernel(from: &[f32], to: &mut [f32], first: usize) {
    if ABSOLUTE_POS < to.len() {
        to[ABSOLUTE_POS] = from[first + ABSOLUTE_POS];
    }
}

/// A copy of some numbers of a buffer.
pub(super) fn slice(gpu: &Gpu, x: &Floats, from: usize, len: usize) -> Floats {
    let to = Floats { handle: gpu.room(len), len, room: len };
    launch!(gpu, slice_kernel, cubes_for(len), units(), x.arg(), to.arg(), from);
    to
}

pub(crate) fn head_loss(
    gpu: &Gpu,
    hidden: &Floats,
    head: &Floats,
    targets: &Tokens,
    with: (usize, Products),
    losses: &mut Floats,
) {
    cross_entropy(gpu, hidden, head, targets, with, losses, None);
}

pub(crate) fn head_loss_backward(
    gpu: &Gpu,
    hidden: &Floats,
    head: &Floats,
    targets: &Tokens,
    with: (usize, Products),
    weight: f32,
    losses: &mut Floats,
    d_hidden: &mut Floats,
    d_head: Option<&mut Floats>,
) {
    cross_entropy(gpu, hidden, head, targets, with, losses, Some((weight, d_hidden, d_head)));
}

fn cross_entropy(
    gpu: &Gpu,
    hidden: &Floats,
    head: &Floats,
    targets: &Tokens,
    (dim, products): (usize, Products),
    losses: &mut Floats,
    mut gradients: Option<(f32, &mut Floats, Option<&mut Floats>)>,
) {
    let (n, vocab) = (targets.len, head.len / dim);
    assert!(head.len == vocab * dim && hidden.len == n * dim && losses.len == n, "sizes of a head");
    if n == 0 {
        return;
    }
    let integers = products == Products::Int16;
    let columns = integers.then(|| Rounded::new(gpu, Kind::Twelve, (head, 0), None, vocab, dim));
    let head_rows = (integers && gradients.is_some()).then(|| {
        let rows = int8_rows(gpu, (head, 0), vocab, dim);
        let turned = turned(gpu, &rows);
        (rows, turned)
    });
    let rows = (SCRATCH / vocab).clamp(1, CHUNK).min(n);
    let mut logits = Floats { handle: gpu.room(rows * vocab), len: rows * vocab, room: rows * vocab };
    for first in (0..n).step_by(rows) {
        let rows = rows.min(n - first);
        logits.len = rows * vocab;
        let x = View::at(hidden, first * dim, rows, dim);
        match &columns {
            Some(columns) => {
                let left = Rounded::new(gpu, Kind::Twelve, (hidden, first * dim), None, rows, dim);
                let inner = (dim.div_ceil(4), BLOCK / 4);
                let y = Place::from(&mut logits);
                product(gpu, Kind::Twelve, left.factor(), columns.factor(), inner, Onto::Replace, y);
            }
            None => gemm(gpu, x, View::new(head, vocab, dim).t(), Onto::Replace, (&mut logits).into()),
        }
        let scale = gradients.as_ref().map_or(1.0, |(weight, ..)| *weight);
        launch!(
            gpu,
            entropy,
            cubes(rows),
            units(),
            logits.arg(),
            targets.arg(),
            losses.arg(),
            first,
            rows,
            vocab,
            scale,
        );
        let Some((weight, d_hidden, d_head)) = &mut gradients else {
            continue;
        };
        let place = Place { of: d_hidden, from: first * dim };
        let Some((head_rows, turned)) = &head_rows else {
            launch!(
                gpu,
                subtract_targets,
                cubes_for(rows),
                units(),
                logits.arg(),
                targets.arg(),
                first,
                rows,
                vocab,
                *weight,
            );
            let d_logits = View::new(&logits, rows, vocab);
            gemm(gpu, d_logits, View::new(head, vocab, dim), Onto::Replace, place);
            if let Some(d_head) = d_head {
                gemm(gpu, d_logits.t(), x, Onto::Add, Place { of: d_head, from: 0 });
            }
            continue;
        };
        let by_token = Rounded::new(gpu, Kind::Int16, (&logits, 0), Some(&head_rows.scales), rows, vocab);
        let right = Factor { words: turned, scales: Scales::None, rows: dim };
        let inner = (vocab.div_ceil(4), BLOCK / 4);
        product(gpu, Kind::Int16, by_token.factor(), right, inner, Onto::Replace, place);
        launch!(
            gpu,
            subtract_words,
            cubes_for(rows * dim),
            units(),
            arg(&head_rows.codes, vocab * head_rows.words()),
            arg(&head_rows.scales, vocab),
            targets.arg(),
            d_hidden.arg(),
            first,
            rows,
            dim,
            *weight,
        );
        let Some(d_head) = d_head else { continue };
        let x = int8_rows(gpu, (hidden, first * dim), rows, dim);
        let place = Place { of: d_head, from: 0 };
        weight_gradient(gpu, Kind::Int16, &logits, &x.scales, &x, Onto::Add, place);
        let links = link_targets(gpu, targets, first, rows);
        launch!(
            gpu,
            subtract_hidden,
            cubes(rows),
            units(),
            arg(&x.codes, rows * x.words()),
            arg(&x.scales, rows),
            targets.arg(),
            arg(&links, 2 * rows),
            d_head.arg(),
            first,
            rows,
            dim,
            *weight,
        );
    }
}

pub(crate) fn head_logits(gpu: &Gpu, hidden: &Floats, head: &Floats, dim: usize, logits: &mut Floats) {
    let (rows, vocab) = (hidden.len / dim, head.len / dim);
    gemm(gpu, View::new(hidden, rows, dim), View::new(head, vocab, dim).t(), Onto::Replace, logits.into());
}

/// One unit a logit: the hidden state in twelve bits against a row of the head in int8, exact in blocks of 8192.
#[cube(launch, create_dummy_kernel)]
fn logits_int8(
    hidden: &[i32],
    hidden_scales: &[f32],
    codes: &[u32],
    scales: &[f32],
    logits: &mut [f32],
    dim: usize,
    vocab: usize,
) {
    if ABSOLUTE_POS < logits.len() {
        let row = ABSOLUTE_POS / vocab;
        let word = ABSOLUTE_POS % vocab;
        let mut total = 0.0f32;
        for block in 0..dim.div_ceil(EXACT) {
            let mut sum = 0i32;
            for i in block * EXACT..min((block + 1) * EXACT, dim) {
                let code = crate::blocks::byte(codes[word * dim.div_ceil(4) + i / 4], (i % 4) as u32);
                sum += hidden[row * dim + i] * code;
            }
            total += f32::cast_from(sum);
        }
        logits[ABSOLUTE_POS] = total * (scales[word] * hidden_scales[row]);
    }
}

/// Products of twelve-bit and eight-bit integers whose sum fits an i32.
const EXACT: usize = 8192;

/// One cube a row: twelve bits with one scale.
#[cube(launch, create_dummy_kernel)]
fn twelve_bits(x: &[f32], to: &mut [i32], scales: &mut [f32], cols: usize) {
    let mut desk = word_desk();
    if CUBE_POS < scales.len() {
        let start = CUBE_POS * cols;
        let mut largest = 0u32;
        let mut i = UNIT_POS as usize;
        while i < cols {
            largest = max(largest, magnitude(x[start + i]));
            i += UNITS;
        }
        let largest = cube_max(largest, &mut desk);
        if UNIT_POS == 0 {
            scales[CUBE_POS] = scale_of(largest, 2047.0f32);
        }
        let inverse = inverse_scale_of(largest, 2047.0f32);
        let mut i = UNIT_POS as usize;
        while i < cols {
            to[start + i] = if inverse == 0.0f32 { 0i32.runtime() } else { nearest(x[start + i] * inverse) };
            i += UNITS;
        }
    }
}

pub(crate) fn head_logits_int8(gpu: &Gpu, hidden: &Floats, head: &Rows, logits: &mut Floats) {
    let (dim, vocab) = (head.cols, head.rows);
    let rows = hidden.len / dim;
    assert!(hidden.len == rows * dim && logits.len == rows * vocab, "sizes of a head");
    let (rounded, scales) = (gpu.room(hidden.len), gpu.room(rows));
    let (rounded, scales) = (|| arg(&rounded, hidden.len), || arg(&scales, rows));
    launch!(gpu, twelve_bits, cubes(rows), units(), hidden.arg(), rounded(), scales(), dim);
    launch!(
        gpu,
        logits_int8,
        cubes_for(logits.len),
        units(),
        rounded(),
        scales(),
        arg(&head.codes, vocab * head.words()),
        arg(&head.scales, vocab),
        logits.arg(),
        dim,
        vocab,
    );
}
