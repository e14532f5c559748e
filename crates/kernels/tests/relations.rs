//! Relations within queries, keys and values against plain f64 loops and against differences of their divergence.

use tritrain_kernels::{
    Context, Tier,
    attention::{Shape, relate},
};
use tritrain_trit::rng::Stream;

/// (batch, time, heads, kv_heads, head_dim): one token, borders of the block of 48 and of tiles of 6 and 16, groups.
const SHAPES: [(usize, usize, usize, usize, usize); 9] = [
    (1, 1, 1, 1, 2),
    (3, 2, 4, 2, 8),
    (2, 7, 3, 3, 6),
    (1, 31, 4, 2, 10),
    (2, 48, 2, 1, 32),
    (1, 49, 4, 4, 14),
    (2, 97, 1, 1, 30),
    (1, 130, 3, 1, 16),
    (1, 200, 2, 1, 64),
];

fn shape((batch, time, heads, kv_heads, head_dim): (usize, usize, usize, usize, usize)) -> Shape {
    Shape { batch, time, heads, kv_heads, head_dim }
}

fn noise(seed: u64, len: usize) -> Vec<f32> {
    let stream = Stream::new(seed, 3, 0);
    (0..len as u64).map(|i| stream.normal(i)).collect()
}

fn contexts() -> Vec<Context> {
    let tiers = Tier::available().into_iter().flat_map(|tier| [(tier, 1), (tier, 3)]);
    tiers.map(|(tier, threads)| Context::new(tier, threads).unwrap()).collect()
}

/// Rows of `softmax(A·Aᵀ/√head_dim)` of one head of a sequence, `[time][time]`.
fn relations(qkv: &[f64], shape: Shape, sequence: usize, head: usize) -> Vec<Vec<f64>> {
    let row = |t: usize| {
        &qkv[(sequence * shape.time + t) * shape.qkv_width() + head * shape.head_dim..][..shape.head_dim]
    };
    let of = |i: usize| {
        let scores: Vec<f64> = (0..shape.time)
            .map(|j| {
                row(i).iter().zip(row(j)).map(|(a, b)| a * b).sum::<f64>() / (shape.head_dim as f64).sqrt()
            })
            .collect();
        let most = scores.iter().fold(f64::NEG_INFINITY, |most, s| most.max(*s));
        let total: f64 = scores.iter().map(|s| (s - most).exp()).sum();
        scores.iter().map(|s| (s - most).exp() / total).collect()
    };
    (0..shape.time).map(of).collect()
}

/// The mean divergence, and its gradient.
fn naive(qkv: &[f64], of: &[f64], shape: Shape) -> (f64, Vec<f64>) {
    let (mut mean, mut gradient) = (0.0, vec![0.0; qkv.len()]);
    let (width, dim) = (shape.qkv_width(), shape.head_dim);
    for sequence in 0..shape.batch {
        for head in 0..shape.heads + 2 * shape.kv_heads {
            let kind = if head < shape.heads { shape.heads } else { shape.kv_heads };
            let share = 1.0 / (3 * kind * shape.rows()) as f64;
            let [mine, theirs] = [qkv, of].map(|of| relations(of, shape, sequence, head));
            let place = |t: usize| (sequence * shape.time + t) * width + head * dim;
            for i in 0..shape.time {
                for j in 0..shape.time {
                    let (s, r) = (mine[i][j], theirs[i][j]);
                    mean += share * if r > 0.0 { r * (r / s).ln() } else { 0.0 };
                    let slope = share * (s - r) / (dim as f64).sqrt();
                    for c in 0..dim {
                        gradient[place(i) + c] += slope * qkv[place(j) + c];
                        gradient[place(j) + c] += slope * qkv[place(i) + c];
                    }
                }
            }
        }
    }
    (mean, gradient)
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|x| f64::from(*x)).collect()
}

#[test]
fn divergences_and_gradients_equal_plain_loops_on_all_tiers_and_threads() {
    for (n, shape) in SHAPES.map(shape).into_iter().enumerate() {
        let len = shape.rows() * shape.qkv_width();
        let (qkv, of, before) = (noise(n as u64, len), noise(100 + n as u64, len), noise(200, len));
        let (mean, gradient) = naive(&wide(&qkv), &wide(&of), shape);
        let size = gradient.iter().fold(0.0, |most: f64, g| most.max(g.abs()));
        let mut first: Option<(f64, Vec<f32>)> = None;
        for cx in contexts() {
            let mut d_qkv = before.clone();
            let found = relate(&cx, &qkv, &of, shape, 1000.0, &mut d_qkv);
            // In f32 the divergence of a row is a difference of numbers as large as its scores.
            assert!((found - mean).abs() <= 1e-5 * mean + 3e-7, "{found} for {mean} of {shape:?}");
            for (at, (d, g)) in d_qkv.iter().zip(&gradient).enumerate() {
                let error = (f64::from(*d) - f64::from(before[at]) - 1000.0 * g).abs();
                assert!(error <= 1e-4 * 1000.0 * size + 1e-6, "{at} of {shape:?}: {error}");
            }
            match &first {
                None => first = Some((found, d_qkv)),
                Some(first) => assert!(*first == (found, d_qkv), "{shape:?}"),
            }
        }
    }
}

#[test]
fn the_plain_gradient_equals_central_differences() {
    let shape = shape((2, 5, 2, 1, 4));
    let len = shape.rows() * shape.qkv_width();
    let (mut qkv, of) = (wide(&noise(1, len)), wide(&noise(2, len)));
    let (_, gradient) = naive(&qkv, &of, shape);
    for at in 0..len {
        let here = qkv[at];
        let [more, less] = [1e-5, -1e-5].map(|step| {
            qkv[at] = here + step;
            naive(&qkv, &of, shape).0
        });
        qkv[at] = here;
        let found = (more - less) / 2e-5;
        assert!((found - gradient[at]).abs() < 1e-8, "{at}: {found} for {}", gradient[at]);
    }
}

#[test]
fn equal_relations_have_nothing_to_learn() {
    let shape = shape((2, 33, 2, 1, 16));
    let len = shape.rows() * shape.qkv_width();
    let qkv = noise(5, len);
    let mut d_qkv = vec![0.0; len];
    let cx = Context::new(*Tier::available().last().unwrap(), 2).unwrap();
    assert!(relate(&cx, &qkv, &qkv, shape, 1.0, &mut d_qkv).abs() < 1e-6);
    assert!(d_qkv.iter().all(|d| *d == 0.0));
}
