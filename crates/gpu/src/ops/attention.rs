//! Causal attention with grouped queries and rotary positions, in tiles: no matrix of time by time exists
//! (Dao, FlashAttention-2, 2307.08691).
//!
//! A cube has a tile of queries (or, for the gradients of keys and values, of keys) of one head of one sequence, and
//! goes through the tiles of the other side. It has a row of units for each row of its tile: the first of them compute
//! a score each, and all of them a share of the columns of a head.

mod decode;
mod relations;

pub(crate) use decode::{Cache, attention_decode, cache, forget, remember};
pub(crate) use relations::relate;

use cubecl::prelude::*;
use tritrain_backend::Shape;

use crate::{
    Floats, Gpu,
    blocks::UNITS,
    launch::{arg, cubes_for, launch, units},
};

/// Rows of a tile for heads of some width: four tiles of floats fit 16 KiB of shared memory. Widths that are no multiples
/// of sixteen have one tile alone: of others CUDA's compiler spills registers.
fn tile_of(gpu: &Gpu, head_dim: usize) -> usize {
    let most = match head_dim {
        0..=64 => 16,
        65..=128 => 8,
        _ => 4,
    };
    if head_dim.is_multiple_of(16) { most.min(gpu.tiles.attention) } else { most }
}

/// Column `col` of a head from column `start` of a buffer on, rotated by a row of the table, forward or back.
#[cube]
fn rotated(
    x: &[f32],
    start: usize,
    table: &[f32],
    position: usize,
    col: usize,
    sign: f32,
    #[comptime] head_dim: usize,
) -> f32 {
    let half = comptime![head_dim / 2];
    let row = position * head_dim;
    if col < half {
        x[start + col] * table[row + col] - sign * x[start + col + half] * table[row + half + col]
    } else {
        x[start + col] * table[row + col - half] + sign * x[start + col - half] * table[row + col]
    }
}

/// Rows `first..` of a head into a tile, rotated and scaled, or as they are; zeros beyond the last.
#[cube]
fn load(
    x: &[f32],
    table: &[f32],
    to: &mut Shared<[f32]>,
    start: usize,
    width: usize,
    first: usize,
    time: usize,
    factor: f32,
    #[comptime] turn: bool,
    #[comptime] tile: usize,
    #[comptime] head_dim: usize,
) {
    let mut at = UNIT_POS as usize;
    while at < comptime![tile * head_dim] {
        let position = first + at / head_dim;
        let col = at % head_dim;
        let mut value = 0.0f32;
        if position < time {
            let row = start + position * width;
            value = if comptime![turn] {
                rotated(x, row, table, position, col, 1.0f32, head_dim)
            } else {
                x[row + col]
            };
        }
        to[at] = value * factor;
        at += UNITS;
    }
}

/// Dot product of two rows of tiles. The width is no constant, or compilers unroll the loop until registers run out.
#[cube]
fn dot_rows(a: &Shared<[f32]>, i: usize, b: &Shared<[f32]>, j: usize, dim: usize) -> f32 {
    let mut sum = 0.0f32;
    for col in 0..dim {
        sum += a[i * dim + col] * b[j * dim + col];
    }
    sum
}

/// Sizes of a head in a buffer of q, k and v.
#[derive(CubeType, Clone, Copy)]
struct Head {
    /// Where the head's first row begins, for queries, keys and values.
    q: usize,
    k: usize,
    v: usize,
}

#[cube]
fn head_at(
    sequence: usize,
    head: usize,
    time: usize,
    width: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
) -> Head {
    let row = sequence * time * width;
    let kv_head = head / (heads / kv_heads);
    Head {
        q: row + head * head_dim,
        k: row + (heads + kv_head) * head_dim,
        v: row + (heads + kv_heads + kv_head) * head_dim,
    }
}

/// One cube a tile of queries of a head: `x` counts tiles, `y` heads of all sequences.
#[cube(launch, create_dummy_kernel)]
fn forward_kernel(
    qkv: &[f32],
    table: &[f32],
    out: &mut [f32],
    lse: &mut [f32],
    time: usize,
    heads: usize,
    kv_heads: usize,
    scale: f32,
    dim: usize,
    #[comptime] tile: usize,
    #[comptime] head_dim: usize,
) {
    let mut q = Shared::<[f32]>::new_slice(comptime![tile * head_dim]);
    let mut k = Shared::<[f32]>::new_slice(comptime![tile * head_dim]);
    let mut v = Shared::<[f32]>::new_slice(comptime![tile * head_dim]);
    let mut scores = Shared::<[f32]>::new_slice(comptime![tile * tile]);
    let unit = UNIT_POS as usize;
    let i = unit / comptime![UNITS / tile];
    let j = unit % comptime![UNITS / tile];
    let first = CUBE_POS_X as usize * tile;
    let sequence = CUBE_POS_Y as usize / heads;
    let head = CUBE_POS_Y as usize % heads;
    let width = (heads + 2 * kv_heads) * head_dim;
    let of = head_at(sequence, head, time, width, heads, kv_heads, head_dim);
    load(qkv, table, &mut q, of.q, width, first, time, scale, true, tile, head_dim);
    let own = comptime![head_dim.div_ceil(UNITS / tile)];
    let mut sums = Array::<f32>::new(own);
    #[unroll]
    for c in 0..own {
        sums[c] = 0.0f32;
    }
    let mut largest = f32::reinterpret(0xff80_0000u32.runtime());
    let mut total = 0.0f32;
    let position = first + i;
    for step in 0..CUBE_POS_X as usize + 1 {
        let from = step * tile;
        load(qkv, table, &mut k, of.k, width, from, time, 1.0f32, true, tile, head_dim);
        load(qkv, table, &mut v, of.v, width, from, time, 1.0f32, false, tile, head_dim);
        sync_cube();
        if j < tile {
            scores[i * tile + j] = dot_rows(&q, i, &k, j, dim);
        }
        sync_cube();
        let mut peak = largest;
        for key in 0..tile {
            if from + key <= position {
                peak = max(peak, scores[i * tile + key]);
            }
        }
        let fade = (largest - peak).exp();
        total *= fade;
        #[unroll]
        for c in 0..own {
            sums[c] *= fade;
        }
        for key in 0..tile {
            if from + key <= position {
                let p = (scores[i * tile + key] - peak).exp();
                total += p;
                #[unroll]
                for c in 0..own {
                    let col = j + c * comptime![UNITS / tile];
                    if col < head_dim {
                        sums[c] += p * v[key * head_dim + col];
                    }
                }
            }
        }
        largest = peak;
        sync_cube();
    }
    if position < time {
        let row = sequence * time + position;
        #[unroll]
        for c in 0..own {
            let col = j + c * comptime![UNITS / tile];
            if col < head_dim {
                out[(row * heads + head) * head_dim + col] = sums[c] / total;
            }
        }
        if j == 0 {
            lse[row * heads + head] = largest + total.ln();
        }
    }
}

/// One unit a row and head: `Σ d_out · out`.
#[cube(launch, create_dummy_kernel)]
fn delta_kernel(out: &[f32], d_out: &[f32], deltas: &mut [f32], #[comptime] head_dim: usize) {
    if ABSOLUTE_POS < deltas.len() {
        let mut sum = 0.0f32;
        for col in 0..head_dim {
            sum += out[ABSOLUTE_POS * head_dim + col] * d_out[ABSOLUTE_POS * head_dim + col];
        }
        deltas[ABSOLUTE_POS] = sum;
    }
}

/// Turns a tile of gradients of rotated rows back, and stores it: unit `(i, j)` has the columns `j`, `j + lanes` and so on.
#[cube]
fn store(
    sums: &Array<f32>,
    desk: &mut Shared<[f32]>,
    table: &[f32],
    to: &mut [f32],
    start: usize,
    width: usize,
    first: usize,
    time: usize,
    factor: f32,
    #[comptime] turn: bool,
    #[comptime] tile: usize,
    #[comptime] head_dim: usize,
) {
    let unit = UNIT_POS as usize;
    let i = unit / comptime![UNITS / tile];
    let j = unit % comptime![UNITS / tile];
    #[unroll]
    for c in 0..comptime![head_dim.div_ceil(UNITS / tile)] {
        let col = j + c * comptime![UNITS / tile];
        if col < head_dim {
            desk[i * head_dim + col] = sums[c] * factor;
        }
    }
    sync_cube();
    let position = first + i;
    if position < time {
        let half = comptime![head_dim / 2];
        let row = position * head_dim;
        #[unroll]
        for c in 0..comptime![head_dim.div_ceil(UNITS / tile)] {
            let col = j + c * comptime![UNITS / tile];
            if col < head_dim {
                let own = desk[i * head_dim + col];
                let value = if comptime![turn] {
                    // By the negative angle.
                    if col < half {
                        own * table[row + col] + desk[i * head_dim + col + half] * table[row + half + col]
                    } else {
                        own * table[row + col - half] - desk[i * head_dim + col - half] * table[row + col]
                    }
                } else {
                    own
                };
                to[start + position * width + col] = value;
            }
        }
    }
    sync_cube();
}

/// One cube a tile of queries of a head: their gradient.
#[cube(launch, create_dummy_kernel)]
fn query_kernel(
    qkv: &[f32],
    lse: &[f32],
    deltas: &[f32],
    d_out: &[f32],
    table: &[f32],
    d_qkv: &mut [f32],
    time: usize,
    heads: usize,
    kv_heads: usize,
    scale: f32,
    dim: usize,
    #[comptime] tile: usize,
    #[comptime] head_dim: usize,
) {
    let mut q = Shared::<[f32]>::new_slice(comptime![tile * head_dim]);
    let mut k = Shared::<[f32]>::new_slice(comptime![tile * head_dim]);
    let mut v = Shared::<[f32]>::new_slice(comptime![tile * head_dim]);
    let mut slopes = Shared::<[f32]>::new_slice(comptime![tile * head_dim]);
    let mut scores = Shared::<[f32]>::new_slice(comptime![tile * tile]);
    let unit = UNIT_POS as usize;
    let i = unit / comptime![UNITS / tile];
    let j = unit % comptime![UNITS / tile];
    let first = CUBE_POS_X as usize * tile;
    let sequence = CUBE_POS_Y as usize / heads;
    let head = CUBE_POS_Y as usize % heads;
    let width = (heads + 2 * kv_heads) * head_dim;
    let out_width = heads * head_dim;
    let of = head_at(sequence, head, time, width, heads, kv_heads, head_dim);
    let out_start = sequence * time * out_width + head * head_dim;
    load(qkv, table, &mut q, of.q, width, first, time, scale, true, tile, head_dim);
    load(d_out, table, &mut slopes, out_start, out_width, first, time, 1.0f32, false, tile, head_dim);
    let own = comptime![head_dim.div_ceil(UNITS / tile)];
    let mut sums = Array::<f32>::new(own);
    #[unroll]
    for c in 0..own {
        sums[c] = 0.0f32;
    }
    let position = first + i;
    let row = (sequence * time + min(position, time - 1)) * heads + head;
    let own_lse = lse[row];
    let own_delta = deltas[row];
    for step in 0..CUBE_POS_X as usize + 1 {
        let from = step * tile;
        load(qkv, table, &mut k, of.k, width, from, time, 1.0f32, true, tile, head_dim);
        load(qkv, table, &mut v, of.v, width, from, time, 1.0f32, false, tile, head_dim);
        sync_cube();
        let mut slope = 0.0f32;
        if j < tile && from + j <= position && position < time {
            let p = (dot_rows(&q, i, &k, j, dim) - own_lse).exp();
            slope = p * (dot_rows(&slopes, i, &v, j, dim) - own_delta);
        }
        if j < tile {
            scores[i * tile + j] = slope;
        }
        sync_cube();
        for key in 0..tile {
            let slope = scores[i * tile + key];
            #[unroll]
            for c in 0..own {
                let col = j + c * comptime![UNITS / tile];
                if col < head_dim {
                    sums[c] += slope * k[key * head_dim + col];
                }
            }
        }
        sync_cube();
    }
    store(&sums, &mut k, table, d_qkv, of.q, width, first, time, scale, true, tile, head_dim);
}

/// One cube a tile of keys of a key head: the gradients of keys and values, from all queries of the group.
#[cube(launch, create_dummy_kernel)]
fn key_kernel(
    qkv: &[f32],
    lse: &[f32],
    deltas: &[f32],
    d_out: &[f32],
    table: &[f32],
    d_qkv: &mut [f32],
    time: usize,
    heads: usize,
    kv_heads: usize,
    scale: f32,
    dim: usize,
    #[comptime] tile: usize,
    #[comptime] head_dim: usize,
) {
    let mut q = Shared::<[f32]>::new_slice(comptime![tile * head_dim]);
    let mut k = Shared::<[f32]>::new_slice(comptime![tile * head_dim]);
    let mut v = Shared::<[f32]>::new_slice(comptime![tile * head_dim]);
    let mut slopes = Shared::<[f32]>::new_slice(comptime![tile * head_dim]);
    let mut weights = Shared::<[f32]>::new_slice(comptime![tile * tile]);
    let mut scores = Shared::<[f32]>::new_slice(comptime![tile * tile]);
    let unit = UNIT_POS as usize;
    let i = unit / comptime![UNITS / tile];
    let j = unit % comptime![UNITS / tile];
    let first = CUBE_POS_X as usize * tile;
    let sequence = CUBE_POS_Y as usize / kv_heads;
    let kv_head = CUBE_POS_Y as usize % kv_heads;
    let group = heads / kv_heads;
    let width = (heads + 2 * kv_heads) * head_dim;
    let out_width = heads * head_dim;
    let keys = head_at(sequence, kv_head * group, time, width, heads, kv_heads, head_dim);
    load(qkv, table, &mut k, keys.k, width, first, time, 1.0f32, true, tile, head_dim);
    load(qkv, table, &mut v, keys.v, width, first, time, 1.0f32, false, tile, head_dim);
    let own = comptime![head_dim.div_ceil(UNITS / tile)];
    let mut key_sums = Array::<f32>::new(own);
    let mut value_sums = Array::<f32>::new(own);
    #[unroll]
    for c in 0..own {
        key_sums[c] = 0.0f32;
        value_sums[c] = 0.0f32;
    }
    for member in 0..group {
        let head = kv_head * group + member;
        let of = head_at(sequence, head, time, width, heads, kv_heads, head_dim);
        let out_start = sequence * time * out_width + head * head_dim;
        for step in CUBE_POS_X as usize..time.div_ceil(tile) {
            let from = step * tile;
            load(qkv, table, &mut q, of.q, width, from, time, scale, true, tile, head_dim);
            load(d_out, table, &mut slopes, out_start, out_width, from, time, 1.0f32, false, tile, head_dim);
            sync_cube();
            // Unit (i, j): query i of this tile, key j of the cube's.
            let position = from + i;
            let mut weight = 0.0f32;
            let mut slope = 0.0f32;
            if j < tile && first + j <= position && position < time {
                let row = (sequence * time + position) * heads + head;
                weight = (dot_rows(&q, i, &k, j, dim) - lse[row]).exp();
                slope = weight * (dot_rows(&slopes, i, &v, j, dim) - deltas[row]);
            }
            if j < tile {
                weights[i * tile + j] = weight;
                scores[i * tile + j] = slope;
            }
            sync_cube();
            // Unit (i, j): key i, its columns.
            for query in 0..tile {
                let weight = weights[query * tile + i];
                let slope = scores[query * tile + i];
                #[unroll]
                for c in 0..own {
                    let col = j + c * comptime![UNITS / tile];
                    if col < head_dim {
                        key_sums[c] += slope * q[query * head_dim + col];
                        value_sums[c] += weight * slopes[query * head_dim + col];
                    }
                }
            }
            sync_cube();
        }
    }
    // Queries were scaled already.
    store(&key_sums, &mut q, table, d_qkv, keys.k, width, first, time, 1.0f32, true, tile, head_dim);
    store(&value_sums, &mut q, table, d_qkv, keys.v, width, first, time, 1.0f32, false, tile, head_dim);
}

/// Asserts that buffers hold what a shape says.
fn check(qkv: &Floats, table: &Floats, shape: Shape, end: usize) {
    assert!(shape.kv_heads > 0 && shape.heads.is_multiple_of(shape.kv_heads), "heads of {shape:?}");
    assert!(shape.head_dim > 0 && shape.head_dim.is_multiple_of(2), "width of heads of {shape:?}");
    assert!(end * shape.head_dim <= table.len, "positions beyond the table: {shape:?}");
    assert_eq!(qkv.len, shape.rows() * shape.qkv_width(), "qkv of {shape:?}");
}

fn scale_of(shape: Shape) -> f32 {
    1.0 / (shape.head_dim as f32).sqrt()
}

pub(crate) fn attention(
    gpu: &Gpu,
    qkv: &Floats,
    table: &Floats,
    shape: Shape,
    out: &mut Floats,
    lse: &mut Floats,
) {
    check(qkv, table, shape, shape.time);
    assert!(out.len == shape.rows() * shape.out_width() && lse.len == shape.rows() * shape.heads);
    if shape.rows() == 0 {
        return;
    }
    let tile = tile_of(gpu, shape.head_dim);
    launch!(
        gpu,
        forward_kernel,
        CubeCount::Static(shape.time.div_ceil(tile) as u32, (shape.batch * shape.heads) as u32, 1),
        units(),
        qkv.arg(),
        table.arg(),
        out.arg(),
        lse.arg(),
        shape.time,
        shape.heads,
        shape.kv_heads,
        scale_of(shape),
        shape.head_dim,
        tile,
        shape.head_dim,
    );
}

pub(crate) fn attention_backward(
    gpu: &Gpu,
    qkv: &Floats,
    (out, lse): (&Floats, &Floats),
    d_out: &Floats,
    table: &Floats,
    shape: Shape,
    d_qkv: &mut Floats,
) {
    check(qkv, table, shape, shape.time);
    assert!(d_qkv.len == qkv.len && d_out.len == out.len && out.len == shape.rows() * shape.out_width());
    if shape.rows() == 0 {
        return;
    }
    let (tile, rows) = (tile_of(gpu, shape.head_dim), shape.rows() * shape.heads);
    let deltas = gpu.room(rows);
    let delta = || arg(&deltas, rows);
    launch!(gpu, delta_kernel, cubes_for(rows), units(), out.arg(), d_out.arg(), delta(), shape.head_dim,);
    let cubes =
        |heads: usize| CubeCount::Static(shape.time.div_ceil(tile) as u32, (shape.batch * heads) as u32, 1);
    let dim = units();
    let (time, heads, kv_heads, scale) = (shape.time, shape.heads, shape.kv_heads, scale_of(shape));
    launch!(
        gpu,
        query_kernel,
        cubes(heads),
        dim,
        qkv.arg(),
        lse.arg(),
        delta(),
        d_out.arg(),
        table.arg(),
        d_qkv.arg(),
        time,
        heads,
        kv_heads,
        scale,
        shape.head_dim,
        tile,
        shape.head_dim,
    );
    launch!(
        gpu,
        key_kernel,
        cubes(kv_heads),
        dim,
        qkv.arg(),
        lse.arg(),
        delta(),
        d_out.arg(),
        table.arg(),
        d_qkv.arg(),
        time,
        heads,
        kv_heads,
        scale,
        shape.head_dim,
        tile,
        shape.head_dim,
    );
}
