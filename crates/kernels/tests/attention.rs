//! Attention against plain f64 loops with the whole matrix, and against itself: threads, tiers, batch
//! places, generation step by step.

use tritrain_kernels::attention::{Cache, Shape, backward, decode, forward, remember, rope_table};
use tritrain_kernels::{Context, Tier};

/// Error allowed in `out` and `lse`, relative to the tensor's largest entry.
const FORWARD: f64 = 1e-5;
/// Error allowed in gradients, likewise.
const GRADIENT: f64 = 1e-4;

/// Base of the rotations.
const THETA: f32 = 10_000.0;

/// (batch, time, heads, kv_heads, head_dim): one token, borders of the block of 48 and of tiles of 6 and 16,
/// groups, widths beside panels of 16.
const SHAPES: [(usize, usize, usize, usize, usize); 17] = [
    (1, 1, 1, 1, 2),
    (3, 1, 4, 2, 8),
    (2, 2, 2, 1, 4),
    (2, 7, 3, 3, 6),
    (1, 13, 4, 2, 10),
    (3, 31, 2, 2, 16),
    (1, 47, 6, 2, 12),
    (2, 48, 2, 1, 32),
    (1, 49, 4, 4, 14),
    (1, 95, 2, 2, 18),
    (2, 96, 1, 1, 30),
    (1, 97, 3, 1, 16),
    (3, 100, 4, 1, 10),
    (1, 127, 2, 2, 64),
    (2, 128, 3, 1, 2),
    (1, 130, 8, 2, 20),
    (1, 200, 2, 1, 64),
];

fn shape((batch, time, heads, kv_heads, head_dim): (usize, usize, usize, usize, usize)) -> Shape {
    Shape { batch, time, heads, kv_heads, head_dim }
}

/// Uniform numbers in [-size, size].
fn numbers(len: usize, seed: u64, size: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..len).map(|_| size * next()).collect()
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(*v)).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|v| v.to_bits()).collect()
}

fn context(tier: Tier, threads: usize) -> Context {
    Context::new(tier, threads).unwrap()
}

fn fastest() -> Context {
    context(*Tier::available().last().unwrap(), 2)
}

/// Asserts `max|found − expected| ≤ tolerance·max|expected|`.
fn close(what: &str, found: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(found.len(), expected.len());
    let size = expected.iter().fold(0.0, |max: f64, v| max.max(v.abs()));
    for (i, (a, b)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(*a) - b).abs();
        assert!(error <= tolerance * size + 1e-30, "{what}[{i}]: found {a}, expected {b}, largest {size}");
    }
}

struct Results<T> {
    out: Vec<T>,
    lse: Vec<T>,
    d_qkv: Vec<T>,
}

fn run(cx: &Context, qkv: &[f32], d_out: &[f32], shape: Shape) -> Results<f32> {
    run_with(cx, qkv, d_out, &rope_table(shape.time, shape.head_dim, THETA), shape)
}

fn run_with(cx: &Context, qkv: &[f32], d_out: &[f32], table: &[f32], shape: Shape) -> Results<f32> {
    // NaN shows whatever is not written.
    let mut out = vec![f32::NAN; shape.rows() * shape.out_width()];
    let mut lse = vec![f32::NAN; shape.rows() * shape.heads];
    let mut d_qkv = vec![f32::NAN; qkv.len()];
    forward(cx, qkv, table, shape, &mut out, &mut lse);
    backward(cx, qkv, (&out, &lse), d_out, table, shape, &mut d_qkv);
    Results { out, lse, d_qkv }
}

/// Rotates queries and keys by their positions, or back.
fn rotate(qkv: &mut [f64], shape: Shape, sign: f64) {
    let Shape { time, heads, kv_heads, head_dim, .. } = shape;
    for (row, line) in qkv.chunks_exact_mut(shape.qkv_width()).enumerate() {
        for head in line.chunks_exact_mut(head_dim).take(heads + kv_heads) {
            for i in 0..head_dim / 2 {
                let frequency = f64::from(THETA).powf(-2.0 * i as f64 / head_dim as f64);
                let (sin, cos) = (sign * (row % time) as f64 * frequency).sin_cos();
                let (x, y) = (head[i], head[i + head_dim / 2]);
                head[i] = x * cos - y * sin;
                head[i + head_dim / 2] = x * sin + y * cos;
            }
        }
    }
}

/// [`still`] with rotations.
fn naive(qkv: &[f64], d_out: &[f64], shape: Shape) -> Results<f64> {
    let mut rotated = qkv.to_vec();
    rotate(&mut rotated, shape, 1.0);
    let mut results = still(&rotated, d_out, shape);
    rotate(&mut results.d_qkv, shape, -1.0);
    results
}

/// One head after the other, one query after the other, in f64; the derivative of `Σ d_out·out`.
fn still(qkv: &[f64], d_out: &[f64], shape: Shape) -> Results<f64> {
    let Shape { batch, time, heads, kv_heads, head_dim } = shape;
    let (width, scale) = (shape.qkv_width(), 1.0 / (head_dim as f64).sqrt());
    let mut out = vec![0.0; batch * time * heads * head_dim];
    let mut lse = vec![0.0; batch * time * heads];
    let mut d_qkv = vec![0.0; qkv.len()];
    for b in 0..batch {
        for h in 0..heads {
            let kv = h / (heads / kv_heads);
            let q_at = |t: usize| (b * time + t) * width + h * head_dim;
            let k_at = |t: usize| (b * time + t) * width + (heads + kv) * head_dim;
            let v_at = |t: usize| (b * time + t) * width + (heads + kv_heads + kv) * head_dim;
            let dot = |i: usize, j: usize| (0..head_dim).map(|c| qkv[i + c] * qkv[j + c]).sum::<f64>();
            for t in 0..time {
                let o_at = (b * time + t) * heads * head_dim + h * head_dim;
                let scores: Vec<f64> = (0..=t).map(|j| dot(q_at(t), k_at(j)) * scale).collect();
                let max = scores.iter().fold(f64::NEG_INFINITY, |max, s| max.max(*s));
                let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                lse[(b * time + t) * heads + h] = max + sum.ln();
                let p: Vec<f64> = scores.iter().map(|s| (s - max).exp() / sum).collect();
                let dp = |j: usize| (0..head_dim).map(|c| d_out[o_at + c] * qkv[v_at(j) + c]).sum::<f64>();
                let mean: f64 = (0..=t).map(|j| p[j] * dp(j)).sum();
                for j in 0..=t {
                    let ds = p[j] * (dp(j) - mean) * scale;
                    for c in 0..head_dim {
                        out[o_at + c] += p[j] * qkv[v_at(j) + c];
                        d_qkv[v_at(j) + c] += p[j] * d_out[o_at + c];
                        d_qkv[q_at(t) + c] += ds * qkv[k_at(j) + c];
                        d_qkv[k_at(j) + c] += ds * qkv[q_at(t) + c];
                    }
                }
            }
        }
    }
    Results { out, lse, d_qkv }
}

#[test]
fn forward_and_backward_equal_plain_loops() {
    let cx = fastest();
    for (seed, sizes) in SHAPES.into_iter().enumerate() {
        let shape = shape(sizes);
        let qkv = numbers(shape.rows() * shape.qkv_width(), 1 + seed as u64, 2.0);
        let d_out = numbers(shape.rows() * shape.out_width(), 100 + seed as u64, 1.0);
        let found = run(&cx, &qkv, &d_out, shape);
        let expected = naive(&wide(&qkv), &wide(&d_out), shape);
        close(&format!("{shape:?} out"), &found.out, &expected.out, FORWARD);
        close(&format!("{shape:?} lse"), &found.lse, &expected.lse, FORWARD);
        close(&format!("{shape:?} d_qkv"), &found.d_qkv, &expected.d_qkv, GRADIENT);
    }
}

#[test]
fn backward_equals_central_differences() {
    let cx = fastest();
    for (seed, sizes) in [(1, 5, 4, 2, 4), (2, 9, 2, 1, 6), (1, 66, 2, 1, 2)].into_iter().enumerate() {
        let shape = shape(sizes);
        let qkv = numbers(shape.rows() * shape.qkv_width(), 7 + seed as u64, 1.5);
        let d_out = numbers(shape.rows() * shape.out_width(), 70 + seed as u64, 1.0);
        let found = run(&cx, &qkv, &d_out, shape).d_qkv;
        let d_out = wide(&d_out);
        let loss = |qkv: &[f64]| -> f64 {
            naive(qkv, &d_out, shape).out.iter().zip(&d_out).map(|(o, d)| o * d).sum()
        };
        let mut point = wide(&qkv);
        // Every entry of small tensors, some two hundred of larger ones, evenly spread.
        let picked: Vec<usize> = (0..qkv.len()).step_by((qkv.len() / 200).max(1)).collect();
        let mut expected = Vec::new();
        for i in &picked {
            let x = point[*i];
            point[*i] = x + 1e-5;
            let above = loss(&point);
            point[*i] = x - 1e-5;
            expected.push((above - loss(&point)) / 2e-5);
            point[*i] = x;
        }
        let found: Vec<f32> = picked.iter().map(|i| found[*i]).collect();
        close(&format!("{shape:?}"), &found, &expected, GRADIENT);
    }
}

#[test]
fn threads_and_tiers_change_no_bit() {
    for (seed, sizes) in
        [(3, 70, 4, 2, 16), (1, 150, 4, 1, 24), (2, 9, 3, 3, 6), (5, 1, 2, 2, 8)].into_iter().enumerate()
    {
        let shape = shape(sizes);
        let qkv = numbers(shape.rows() * shape.qkv_width(), 20 + seed as u64, 3.0);
        let d_out = numbers(shape.rows() * shape.out_width(), 40 + seed as u64, 1.0);
        let expected = run(&context(Tier::SCALAR, 1), &qkv, &d_out, shape);
        for tier in Tier::available() {
            for threads in [1, 2, 3, 8] {
                let found = run(&context(tier, threads), &qkv, &d_out, shape);
                let what = format!("{shape:?}, {}, {threads} threads", tier.name());
                assert_eq!(bits(&found.out), bits(&expected.out), "out, {what}");
                assert_eq!(bits(&found.lse), bits(&expected.lse), "lse, {what}");
                assert_eq!(bits(&found.d_qkv), bits(&expected.d_qkv), "d_qkv, {what}");
            }
        }
    }
}

#[test]
fn the_place_in_the_batch_changes_no_bit() {
    let cx = fastest();
    let shape = shape((3, 75, 4, 2, 8));
    let alone = Shape { batch: 1, ..shape };
    let qkv = numbers(shape.rows() * shape.qkv_width(), 5, 2.0);
    let d_out = numbers(shape.rows() * shape.out_width(), 6, 1.0);
    let together = run(&cx, &qkv, &d_out, shape);
    for b in 0..3 {
        let of = |x: &[f32], width: usize| x[b * 75 * width..(b + 1) * 75 * width].to_vec();
        let one = run(&cx, &of(&qkv, shape.qkv_width()), &of(&d_out, shape.out_width()), alone);
        assert_eq!(bits(&one.out), bits(&of(&together.out, shape.out_width())));
        assert_eq!(bits(&one.d_qkv), bits(&of(&together.d_qkv, shape.qkv_width())));
    }
}

#[test]
fn later_tokens_change_no_bit_of_earlier_ones() {
    let cx = fastest();
    let shape = shape((2, 130, 4, 2, 8));
    let (width, out_width) = (shape.qkv_width(), shape.out_width());
    let qkv = numbers(shape.rows() * width, 11, 2.0);
    let d_out = numbers(shape.rows() * out_width, 12, 1.0);
    let before = run(&cx, &qkv, &d_out, shape);
    for cut in [1, 40, 48, 49, 129] {
        let mut changed = qkv.clone();
        for b in 0..shape.batch {
            let later = &mut changed[(b * shape.time + cut) * width..(b + 1) * shape.time * width];
            let other = numbers(later.len(), 13 + cut as u64, 50.0);
            later.copy_from_slice(&other);
        }
        let after = run(&cx, &changed, &d_out, shape);
        for b in 0..shape.batch {
            let early = b * shape.time * out_width..(b * shape.time + cut) * out_width;
            assert_eq!(bits(&after.out[early.clone()]), bits(&before.out[early]), "cut {cut}");
            let early = b * shape.time * shape.heads..(b * shape.time + cut) * shape.heads;
            assert_eq!(bits(&after.lse[early.clone()]), bits(&before.lse[early]), "cut {cut}");
        }
        assert_ne!(bits(&after.out), bits(&before.out), "cut {cut}");
    }
}

/// Scores of ±10⁴: one key takes everything. Key `favourite` is along the query, the others against.
#[test]
fn extreme_scores_pick_one_key() {
    let cx = fastest();
    let shape = shape((1, 70, 1, 1, 4));
    let (width, head_dim) = (shape.qkv_width(), shape.head_dim);
    let favourite = |t: usize| if t < 3 { t } else { 3 };
    let mut qkv = numbers(shape.rows() * width, 3, 1.0);
    for (t, row) in qkv.chunks_exact_mut(width).enumerate() {
        // The products are ±2·10⁴, times the scale 1/2.
        row[..2 * head_dim].copy_from_slice(&[200.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
        row[head_dim] = if t == 3 { 100.0 } else { -100.0 };
    }
    let d_out = numbers(shape.rows() * head_dim, 4, 1.0);
    let no_turn = [1.0, 1.0, 0.0, 0.0].repeat(shape.time);
    let found = run_with(&cx, &qkv, &d_out, &no_turn, shape);
    let expected = still(&wide(&qkv), &wide(&d_out), shape);
    close("out", &found.out, &expected.out, FORWARD);
    close("lse", &found.lse, &expected.lse, FORWARD);
    for t in 3..70 {
        let v = &qkv[favourite(t) * width + 2 * head_dim..][..head_dim];
        assert_eq!(&found.out[t * head_dim..][..head_dim], v, "row {t} takes the value of its favourite");
    }
    assert!(found.d_qkv.iter().all(|v| v.is_finite()));
    // Rows 0 to 2 share their probability evenly: lse ≈ -10⁴ is rounded to 1e-3, and P with it.
    close("d_qkv", &found.d_qkv, &expected.d_qkv, 2e-3);
}

/// A numeric fault must reach the guard: NaN in, NaN out, forward and backward.
#[test]
fn nan_is_not_hidden() {
    let shape = shape((1, 67, 1, 1, 4));
    let d_out = numbers(shape.rows() * shape.out_width(), 2, 1.0);
    for tier in Tier::available() {
        for column in [0, 5, 11] {
            let mut qkv = numbers(shape.rows() * shape.qkv_width(), 1, 1.0);
            qkv[65 * shape.qkv_width() + column] = f32::NAN;
            let found = run(&context(tier, 1), &qkv, &d_out, shape);
            let what = format!("{}, column {column}", tier.name());
            assert!(found.out[65 * 4..66 * 4].iter().any(|v| v.is_nan()), "out, {what}");
            assert!(found.d_qkv.iter().any(|v| v.is_nan()), "d_qkv, {what}");
        }
    }
}

/// Rows as a cache holds them: int8 with a scale each.
fn rounded(row: &[f64]) -> Vec<f64> {
    let scale = row.iter().fold(0.0f64, |most, x| most.max(x.abs())) / 127.0;
    row.iter().map(|x| if scale == 0.0 { 0.0 } else { (x / scale).round_ties_even() * scale }).collect()
}

/// Attention of the last of `qkv`'s tokens, in f64, with or without the rounding of a cache.
fn last_token(qkv: &[f32], shape: Shape, round: bool) -> Vec<f64> {
    let Shape { time, heads, kv_heads, head_dim, .. } = shape;
    let mut qkv = wide(qkv);
    rotate(&mut qkv, shape, 1.0);
    let head = |token: usize, head: usize| &qkv[token * shape.qkv_width() + head * head_dim..][..head_dim];
    let kept = |row: &[f64]| if round { rounded(row) } else { row.to_vec() };
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut out = Vec::new();
    for query in 0..heads {
        let kv_head = query / (heads / kv_heads);
        let q = head(time - 1, query);
        let scores: Vec<f64> = (0..time)
            .map(|token| dot(q, &kept(head(token, heads + kv_head))) / (head_dim as f64).sqrt())
            .collect();
        let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let p: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
        let sum: f64 = p.iter().sum();
        let mut row = vec![0.0; head_dim];
        for (token, p) in p.iter().enumerate() {
            for (out, v) in row.iter_mut().zip(kept(head(token, heads + kv_heads + kv_head))) {
                *out += p / sum * v;
            }
        }
        out.extend(row);
    }
    out
}

#[test]
fn decode_is_attention_with_int8_keys_and_values() {
    let cx = fastest();
    // Tokens remembered first, then one by one.
    let plans = [
        (shape((1, 75, 4, 2, 16)), 70),
        (shape((1, 6, 3, 1, 10)), 0),
        (shape((1, 140, 2, 2, 8)), 3),
        (shape((1, 700, 8, 2, 32)), 698),
        (shape((1, 131, 3, 1, 64)), 127),
        (shape((1, 67, 2, 1, 80)), 61),
    ];
    for (shape, before) in plans {
        let width = shape.qkv_width();
        let qkv = numbers(shape.rows() * width, 31, 2.0);
        let table = rope_table(shape.time + 3, shape.head_dim, THETA);
        let contexts = [fastest(), context(Tier::SCALAR, 1), context(Tier::SCALAR, 3)];
        let mut caches = [(); 3].map(|()| Cache::default());
        for (cx, cache) in contexts.iter().zip(&mut caches) {
            remember(cx, &qkv[..before * width], &table, Shape { time: before, ..shape }, cache);
        }
        for position in before..shape.time {
            let row = &qkv[position * width..][..width];
            let mut found = contexts.each_ref().map(|_| vec![f32::NAN; shape.out_width()]);
            for ((cx, cache), found) in contexts.iter().zip(&mut caches).zip(&mut found) {
                assert_eq!(cache.len(), position);
                decode(cx, row, &table, Shape { time: 1, ..shape }, cache, found);
            }
            let [found, scalar, threads] = found;
            assert_eq!(bits(&found), bits(&scalar), "{shape:?} at {position}");
            assert_eq!(bits(&found), bits(&threads), "{shape:?} at {position}");
            let so_far = Shape { time: position + 1, ..shape };
            let seen = &qkv[..(position + 1) * width];
            // The query is rounded to twelve bits, and a key on the border of two codes may get either.
            close(&format!("{so_far:?}, rounded"), &found, &last_token(seen, so_far, true), 2e-3);
            // Half a step of values is 0.4 % of the largest; rounded keys add no more than that again.
            for (found, exact) in found.iter().zip(last_token(seen, so_far, false)) {
                assert!((f64::from(*found) - exact).abs() < 8e-3 * 2.0, "{so_far:?}: {found} for {exact}");
            }
            let mut whole = vec![0.0; so_far.rows() * shape.out_width()];
            forward(&cx, seen, &table, so_far, &mut whole, &mut vec![0.0; so_far.rows() * shape.heads]);
            let last = &whole[position * shape.out_width()..];
            close(&format!("{so_far:?}, forward"), last, &last_token(seen, so_far, false), FORWARD);
        }
    }
}

#[test]
fn a_cache_that_was_cleared_is_empty() {
    let cx = fastest();
    let [first, second] = [shape((1, 90, 4, 2, 16)), shape((1, 1, 6, 3, 8))];
    let mut used = Cache::default();
    remember(
        &cx,
        &numbers(first.rows() * first.qkv_width(), 3, 2.0),
        &rope_table(90, 16, THETA),
        first,
        &mut used,
    );
    used.clear();
    assert!(used.is_empty());
    let (qkv, table) = (numbers(second.qkv_width(), 4, 2.0), rope_table(90, 8, THETA));
    let [from_used, from_new] = [&mut used, &mut Cache::default()].map(|cache| {
        let mut out = vec![f32::NAN; second.out_width()];
        decode(&cx, &qkv, &table, second, cache, &mut out);
        out
    });
    assert_eq!(bits(&from_used), bits(&from_new));
}

#[test]
#[should_panic(expected = "the cache holds other heads")]
fn a_cache_keeps_to_its_heads() {
    let cx = fastest();
    let (first, second) = (shape((1, 3, 4, 2, 16)), shape((1, 1, 4, 2, 8)));
    let mut cache = Cache::default();
    remember(
        &cx,
        &numbers(first.rows() * first.qkv_width(), 3, 2.0),
        &rope_table(9, 16, THETA),
        first,
        &mut cache,
    );
    remember(&cx, &numbers(second.qkv_width(), 4, 2.0), &rope_table(9, 8, THETA), second, &mut cache);
}

/// A number that is none reaches the result: nothing hides it.
#[test]
fn decode_passes_on_what_is_not_finite() {
    let cx = fastest();
    let shape = shape((1, 1, 2, 1, 16));
    let table = rope_table(4, 16, THETA);
    for at in [0, 32, 48] {
        let mut cache = Cache::default();
        let mut qkv = numbers(shape.qkv_width(), 5, 2.0);
        qkv[at] = f32::NAN;
        let mut out = vec![0.0; shape.out_width()];
        decode(&cx, &qkv, &table, shape, &mut cache, &mut out);
        assert!(out.iter().any(|x| x.is_nan()), "{at}");
    }
}

#[test]
fn the_table_holds_cosines_and_sines() {
    let (context, head_dim, theta) = (300, 20, 500.0f32);
    let table = rope_table(context, head_dim, theta);
    for (position, row) in table.chunks_exact(head_dim).enumerate() {
        for i in 0..head_dim / 2 {
            let angle = position as f64 * f64::from(theta).powf(-2.0 * i as f64 / head_dim as f64);
            assert_eq!(row[i], angle.cos() as f32);
            assert_eq!(row[head_dim / 2 + i], angle.sin() as f32);
        }
    }
}

#[test]
fn an_empty_batch_is_nothing_to_do() {
    let cx = fastest();
    for sizes in [(0, 5, 2, 1, 4), (2, 0, 2, 1, 4)] {
        run(&cx, &[], &[], shape(sizes));
    }
}
