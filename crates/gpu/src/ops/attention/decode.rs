//! Attention of one new token after another: keys and values of one sequence as int8 rows by head.

use cubecl::{prelude::*, server::Handle};
use tritrain_backend::Shape;

use super::{check, rotated, scale_of};
use crate::{
    Floats, Gpu,
    blocks::{
        UNITS, as_byte, byte, cube_max, cube_sum, desk, inverse_scale, inverse_scale_of, magnitude, nearest,
        ordered, row_scale, scale_of as integer_scale, unordered, word_desk,
    },
    launch::{Buffer, arg, cubes, cubes_for, launch, units},
};

/// Positions that a cache has room for at first; the room doubles when it is full.
const ROOM: usize = 64;

/// Rotated keys, and values, of the positions of one sequence so far.
#[derive(Debug, Default)]
pub struct Cache {
    /// Int8 rows `[2][kv_heads][room][words]`: keys, then values.
    codes: Option<Handle>,
    /// Their scales, `[2][kv_heads][room]`.
    scales: Option<Handle>,
    kv_heads: usize,
    head_dim: usize,
    room: usize,
    len: usize,
}

impl Cache {
    fn words(&self) -> usize {
        self.head_dim.div_ceil(4)
    }

    fn rows(&self) -> usize {
        2 * self.kv_heads * self.room
    }

    /// Codes and scales as arguments.
    fn args(&self) -> [Buffer; 2] {
        let (Some(codes), Some(scales)) = (&self.codes, &self.scales) else {
            panic!("a cache without room");
        };
        [arg(codes, self.rows() * self.words()), arg(scales, self.rows())]
    }
}

/// One unit a word of the smaller cache.
#[cube(launch, create_dummy_kernel)]
fn move_kernel(from: &[u32], to: &mut [u32], before: usize, after: usize) {
    if ABSOLUTE_POS < from.len() {
        let head = ABSOLUTE_POS / before;
        to[head * after + ABSOLUTE_POS % before] = from[ABSOLUTE_POS];
    }
}

/// One cube a new row: position, then key head, then key or value.
#[cube(launch, create_dummy_kernel)]
fn put_kernel(
    qkv: &[f32],
    table: &[f32],
    codes: &mut [u32],
    scales: &mut [f32],
    start: usize,
    time: usize,
    heads: usize,
    kv_heads: usize,
    room: usize,
    row: usize,
    #[comptime] head_dim: usize,
) {
    let mut desk = word_desk();
    if CUBE_POS < 2 * kv_heads * time {
        let position = CUBE_POS % time;
        let head = CUBE_POS / time % kv_heads;
        let is_value = CUBE_POS / time / kv_heads;
        let width = (heads + 2 * kv_heads) * head_dim;
        let from = (row + position) * width + (heads + is_value * kv_heads + head) * head_dim;
        let unit = UNIT_POS as usize;
        let mut largest = 0u32;
        let mut col = unit;
        while col < head_dim {
            let value = value_of(qkv, table, from, start + position, col, is_value, head_dim);
            largest = max(largest, magnitude(value));
            col += UNITS;
        }
        let largest = cube_max(largest, &mut desk);
        let place = (is_value * kv_heads + head) * room + start + position;
        if unit == 0 {
            scales[place] = row_scale(largest, 127.0f32);
        }
        let inverse = inverse_scale(largest, 127.0f32);
        let words = comptime![head_dim.div_ceil(4)];
        let mut w = unit;
        while w < words {
            let mut word = 0u32;
            #[unroll]
            for at in 0..4usize {
                let col = 4 * w + at;
                if col < head_dim && inverse != 0.0f32 {
                    let value = value_of(qkv, table, from, start + position, col, is_value, head_dim);
                    word |= as_byte(nearest(value * inverse), comptime![at as u32]);
                }
            }
            codes[place * words + w] = word;
            w += UNITS;
        }
    }
}

#[cube]
fn value_of(
    qkv: &[f32],
    table: &[f32],
    from: usize,
    position: usize,
    col: usize,
    is_value: usize,
    #[comptime] head_dim: usize,
) -> f32 {
    if is_value == 1 { qkv[from + col] } else { rotated(qkv, from, table, position, col, 1.0f32, head_dim) }
}

/// One cube a query head: the query, rotated and scaled, in twelve bits, `64 · high + low`, four to a word:
/// `[heads][2][words]`.
#[cube(launch, create_dummy_kernel)]
fn query_codes(
    qkv: &[f32],
    table: &[f32],
    codes: &mut [u32],
    scales: &mut [f32],
    position: usize,
    from: usize,
    scale: f32,
    #[comptime] head_dim: usize,
) {
    let mut words = word_desk();
    let head = CUBE_POS;
    if head < scales.len() {
        let unit = UNIT_POS as usize;
        let start = from + head * head_dim;
        let mut largest = 0u32;
        let mut col = unit;
        while col < head_dim {
            let value = scale * rotated(qkv, start, table, position, col, 1.0f32, head_dim);
            largest = max(largest, magnitude(value));
            col += UNITS;
        }
        let largest = cube_max(largest, &mut words);
        let inverse = inverse_scale_of(largest, 2047.0f32);
        if unit == 0 {
            scales[head] = integer_scale(largest, 2047.0f32);
        }
        let row_words = comptime![head_dim.div_ceil(4)];
        let mut w = unit;
        while w < row_words {
            let mut upper = 0u32;
            let mut lower = 0u32;
            #[unroll]
            for at in 0..4usize {
                let col = 4 * w + at;
                if col < head_dim && inverse != 0.0f32 {
                    let value = scale * rotated(qkv, start, table, position, col, 1.0f32, head_dim);
                    let code = nearest(value * inverse);
                    upper |= as_byte(code >> 6i32, comptime![at as u32]);
                    lower |= as_byte(code & 63i32, comptime![at as u32]);
                }
            }
            codes[2 * head * row_words + w] = upper;
            codes[(2 * head + 1) * row_words + w] = lower;
            w += UNITS;
        }
    }
}

/// One cube a query head: scores with all keys, their softmax, and the sum of values.
#[cube(launch, create_dummy_kernel)]
fn attend_kernel(
    queries: &[u32],
    query_scales: &[f32],
    codes: &[u32],
    scales: &[f32],
    scores: &mut [f32],
    out: &mut [f32],
    len: usize,
    kv_heads: usize,
    room: usize,
    head_dim: usize,
    from: usize,
) {
    let mut words = word_desk();
    let mut desk = desk();
    let head = CUBE_POS;
    if head < query_scales.len() {
        let unit = UNIT_POS as usize;
        let row_words = head_dim.div_ceil(4);
        let kv_head = head / (query_scales.len() / kv_heads);
        let keys = kv_head * room;
        let values = (kv_heads + kv_head) * room;
        let factor = query_scales[head];
        // The largest score, as an integer that orders like it.
        let mut peak = 0u32;
        let mut key = unit;
        while key < len {
            let mut upper = 0i32;
            let mut lower = 0i32;
            for w in 0..row_words {
                let word = i32::reinterpret(codes[(keys + key) * row_words + w]);
                upper = dp4a(i32::reinterpret(queries[2 * head * row_words + w]), word, upper);
                lower = dp4a(i32::reinterpret(queries[(2 * head + 1) * row_words + w]), word, lower);
            }
            let score = f32::cast_from(64i32 * upper + lower) * (scales[keys + key] * factor);
            scores[head * len + key] = score;
            peak = max(peak, ordered(score));
            key += UNITS;
        }
        let peak = unordered(cube_max(peak, &mut words));
        let mut total = 0.0f32;
        let mut key = unit;
        while key < len {
            let p = (scores[head * len + key] - peak).exp();
            total += p;
            scores[head * len + key] = p * scales[values + key];
            key += UNITS;
        }
        let total = cube_sum(total, &mut desk);
        sync_storage();
        let mut col = unit;
        while col < head_dim {
            let mut sum = 0.0f32;
            for key in 0..len {
                let word = codes[(values + key) * row_words + col / 4];
                sum += scores[head * len + key] * f32::cast_from(byte(word, (col % 4) as u32));
            }
            out[from + head * head_dim + col] = sum / total;
            col += UNITS;
        }
    }
}

pub(crate) fn cache(_: &Gpu) -> Cache {
    Cache::default()
}

pub(crate) fn forget(_: &Gpu, cache: &mut Cache) {
    cache.len = 0;
}

/// Counts positions more, and makes room for up to `most`.
fn extend(gpu: &Gpu, cache: &mut Cache, shape: Shape, most: usize) {
    let same = (cache.kv_heads, cache.head_dim) == (shape.kv_heads, shape.head_dim);
    assert!(cache.len == 0 || same, "the cache holds other heads than those of {shape:?}");
    let len = cache.len + shape.time;
    if len > cache.room || !same {
        let room = len.next_power_of_two().max(ROOM).min(most.max(len));
        let mut larger = Cache {
            codes: None,
            scales: None,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            room,
            len: cache.len,
        };
        let (rows, words) = (larger.rows(), larger.words());
        larger.codes = Some(gpu.zeros(rows * words));
        larger.scales = Some(gpu.zeros(rows));
        if cache.len > 0 {
            let sizes = [cache.words(), 1];
            for ((from, to), width) in cache.args().into_iter().zip(larger.args()).zip(sizes) {
                let count = cubes_for(cache.rows() * width);
                launch!(gpu, move_kernel, count, units(), from, to, cache.room * width, room * width);
            }
        }
        *cache = larger;
    }
    cache.len = len;
}

pub(crate) fn remember(gpu: &Gpu, qkv: &Floats, table: &Floats, shape: Shape, cache: &mut Cache) {
    check(qkv, table, shape, cache.len + shape.time);
    assert_eq!(shape.batch, 1, "a cache holds one sequence");
    put(gpu, qkv, table, shape, 0, cache);
}

/// Puts `shape.time` rows of `qkv` from `row` on into a cache.
fn put(gpu: &Gpu, qkv: &Floats, table: &Floats, shape: Shape, row: usize, cache: &mut Cache) {
    let start = cache.len;
    if shape.time == 0 {
        return;
    }
    extend(gpu, cache, shape, table.len / shape.head_dim);
    let [codes, scales] = cache.args();
    launch!(
        gpu,
        put_kernel,
        cubes(2 * shape.kv_heads * shape.time),
        units(),
        qkv.arg(),
        table.arg(),
        codes,
        scales,
        start,
        shape.time,
        shape.heads,
        shape.kv_heads,
        cache.room,
        row,
        shape.head_dim,
    );
}

pub(crate) fn attention_decode(
    gpu: &Gpu,
    qkv: &Floats,
    table: &Floats,
    shape: Shape,
    caches: &mut [Cache],
    out: &mut Floats,
) {
    assert_eq!((shape.batch, shape.time), (caches.len(), 1), "one token of every sequence");
    assert_eq!(out.len, shape.batch * shape.out_width(), "out of {shape:?}");
    for (row, cache) in caches.iter_mut().enumerate() {
        check(qkv, table, shape, cache.len + 1);
        put(gpu, qkv, table, shape, row, cache);
        let scores = gpu.room(shape.heads * cache.len);
        let query_words = 2 * shape.heads * cache.words();
        let (queries, scales) = (gpu.room(query_words), gpu.room(shape.heads));
        let (queries, query_scales) = (arg(&queries, query_words), arg(&scales, shape.heads));
        launch!(
            gpu,
            query_codes,
            cubes(shape.heads),
            units(),
            qkv.arg(),
            table.arg(),
            queries,
            query_scales,
            cache.len - 1,
            row * shape.qkv_width(),
            scale_of(shape),
            shape.head_dim,
        );
        let [codes, scales] = cache.args();
        launch!(
            gpu,
            attend_kernel,
            cubes(shape.heads),
            units(),
            queries,
            query_scales,
            codes,
            scales,
            arg(&scores, shape.heads * cache.len),
            out.arg(),
            cache.len,
            shape.kv_heads,
            cache.room,
            shape.head_dim,
            row * shape.out_width(),
        );
    }
}
