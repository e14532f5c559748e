//! The fused head and cross entropy against plain f64 loops, and against itself on other threads and
//! tiers.

use tritrain_kernels::loss::{
    Gradients, Products, Scratch, head_cross_entropy, head_logits, head_logits_int8,
};
use tritrain_kernels::{Context, Tier, rows::quantize};
use tritrain_trit::NO_TARGET;

/// Error allowed in losses and logits, relative to the tensor's largest entry.
const FORWARD: f64 = 1e-5;
/// Error allowed in gradients, likewise. The f32 GEMM adds up a million products in fewer parts on aarch64.
const GRADIENT: f64 = if cfg!(target_arch = "aarch64") { 3e-4 } else { 1e-4 };

/// (n, vocab, dim): single entries, odd sizes, borders of the chunk of 512 tokens, and vocabularies
/// whose chunks hold fewer tokens (2²¹ logits).
const SIZES: [(usize, usize, usize); 10] = [
    (1, 1, 1),
    (3, 2, 5),
    (7, 300, 16),
    (64, 17, 3),
    (511, 30, 8),
    (512, 64, 12),
    (513, 65, 4),
    (1100, 9, 20),
    (65, 40_000, 2),
    (3, 1_100_000, 1),
];

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

struct Case {
    hidden: Vec<f32>,
    head: Vec<f32>,
    targets: Vec<u32>,
    dim: usize,
}

impl Case {
    fn new((n, vocab, dim): (usize, usize, usize), seed: u64) -> Case {
        let targets = (0..n as u64).map(|i| ((i + seed) * 7919 % vocab as u64) as u32).collect();
        let (hidden, head) = (numbers(n * dim, seed, 2.0), numbers(vocab * dim, seed + 50, 1.0));
        Case { hidden, head, targets, dim }
    }

    fn run(&self, cx: &Context, products: Products) -> Results<f32> {
        let d_head = vec![0.0; self.head.len()];
        self.run_with(cx, products, &mut Scratch::default(), d_head)
    }

    fn run_with(
        &self,
        cx: &Context,
        products: Products,
        scratch: &mut Scratch,
        mut d_head: Vec<f32>,
    ) -> Results<f32> {
        let mut losses = vec![f32::NAN; self.targets.len()];
        let mut d_hidden = vec![f32::NAN; self.hidden.len()];
        let targets = self.targets.iter().filter(|target| **target != NO_TARGET).count();
        let weight = 1.0 / targets as f32;
        let gradients = Some(Gradients { weight, d_hidden: &mut d_hidden, d_head: Some(&mut d_head) });
        let (hidden, head, with) = (&self.hidden, &self.head, (self.dim, products));
        head_cross_entropy(cx, hidden, head, &self.targets, with, &mut losses, gradients, scratch);
        // Without the gradient of the head the other one is the same.
        let (mut alone, mut again) = (vec![f32::NAN; d_hidden.len()], losses.clone());
        let gradients = Some(Gradients { weight, d_hidden: &mut alone, d_head: None });
        head_cross_entropy(cx, hidden, head, &self.targets, with, &mut again, gradients, scratch);
        assert!(bits(&alone) == bits(&d_hidden) && bits(&again) == bits(&losses));
        Results { losses, d_hidden, d_head }
    }

    fn run_forward(&self, cx: &Context, products: Products) -> Vec<f32> {
        let mut losses = vec![f32::NAN; self.targets.len()];
        let (hidden, head, with) = (&self.hidden, &self.head, (self.dim, products));
        let scratch = &mut Scratch::default();
        head_cross_entropy(cx, hidden, head, &self.targets, with, &mut losses, None, scratch);
        losses
    }

    fn naive(&self) -> Results<f64> {
        naive(&wide(&self.hidden), &wide(&self.head), &self.targets, self.dim)
    }
}

struct Results<T> {
    losses: Vec<T>,
    d_hidden: Vec<T>,
    d_head: Vec<T>,
}

/// One token after the other, in f64.
fn naive(hidden: &[f64], head: &[f64], targets: &[u32], dim: usize) -> Results<f64> {
    let n = targets.iter().filter(|target| **target != NO_TARGET).count() as f64;
    let mut losses = Vec::new();
    let (mut d_hidden, mut d_head) = (vec![0.0; hidden.len()], vec![0.0; head.len()]);
    for (t, (x, target)) in hidden.chunks_exact(dim).zip(targets).enumerate() {
        let logits: Vec<f64> =
            head.chunks_exact(dim).map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum()).collect();
        let max = logits.iter().fold(f64::NEG_INFINITY, |max, l| max.max(*l));
        let sum: f64 = logits.iter().map(|l| (l - max).exp()).sum();
        if *target == NO_TARGET {
            losses.push(0.0);
            continue;
        }
        losses.push(sum.ln() + max - logits[*target as usize]);
        for (v, logit) in logits.iter().enumerate() {
            let hot = if v == *target as usize { 1.0 } else { 0.0 };
            let d = ((logit - max).exp() / sum - hot) / n;
            for i in 0..dim {
                d_hidden[t * dim + i] += d * head[v * dim + i];
                d_head[v * dim + i] += d * x[i];
            }
        }
    }
    Results { losses, d_hidden, d_head }
}

const BOTH: [Products; 2] = [Products::F32, Products::Int16];

/// Errors allowed in losses and in gradients: twelve bits forward; int8 factors and int16 gradients backward.
fn tolerances(products: Products) -> (f64, f64) {
    match products {
        Products::F32 => (FORWARD, GRADIENT),
        Products::Int16 => (1e-3, 1e-2),
    }
}

#[test]
fn losses_and_gradients_equal_plain_loops() {
    let cx = fastest();
    for products in BOTH {
        // Scratch that served other sizes must not show.
        let mut scratch = Scratch::default();
        for (seed, sizes) in SIZES.into_iter().enumerate() {
            let case = Case::new(sizes, 1 + seed as u64);
            let what = |part: &str| format!("{sizes:?} {products:?} {part}");
            let found = case.run_with(&cx, products, &mut scratch, vec![0.0; case.head.len()]);
            let expected = case.naive();
            let (forward, gradient) = tolerances(products);
            close(&what("losses"), &found.losses, &expected.losses, forward);
            close(&what("d_hidden"), &found.d_hidden, &expected.d_hidden, gradient);
            close(&what("d_head"), &found.d_head, &expected.d_head, gradient);
            assert_eq!(bits(&case.run_forward(&cx, products)), bits(&found.losses), "{}", what("forward"));
        }
    }
}

/// Every third position has no target, whole chunks of 512 have none, and the first and the last have none.
#[test]
fn positions_without_a_target_count_for_nothing() {
    for (sizes, seed) in [((40, 300, 9), 1), ((1100, 33, 16), 2), ((5, 70_000, 3), 3)] {
        let mut case = Case::new(sizes, seed);
        let n = case.targets.len();
        for (at, target) in case.targets.iter_mut().enumerate() {
            if at % 3 == 0 || at == n - 1 || (512..1024).contains(&at) {
                *target = NO_TARGET;
            }
        }
        for products in BOTH {
            let what = |part: &str| format!("{sizes:?} {products:?} {part}");
            let (found, expected) = (case.run(&fastest(), products), case.naive());
            let (forward, gradient) = tolerances(products);
            close(&what("losses"), &found.losses, &expected.losses, forward);
            close(&what("d_hidden"), &found.d_hidden, &expected.d_hidden, gradient);
            close(&what("d_head"), &found.d_head, &expected.d_head, gradient);
            for (at, _) in case.targets.iter().enumerate().filter(|(_, target)| **target == NO_TARGET) {
                let row = &found.d_hidden[at * case.dim..][..case.dim];
                assert!(found.losses[at] == 0.0 && row.iter().all(|d| *d == 0.0), "{at}");
            }
            assert_eq!(bits(&case.run_forward(&fastest(), products)), bits(&found.losses));
            for (tier, threads) in Tier::available().into_iter().flat_map(|tier| [(tier, 1), (tier, 3)]) {
                let other = case.run(&context(tier, threads), products);
                assert_eq!(bits(&found.d_head), bits(&other.d_head), "{}, {threads} threads", tier.name());
                assert_eq!(bits(&found.d_hidden), bits(&other.d_hidden));
            }
        }
    }
    // Without any target: losses and gradients are zero, and what is added to stays.
    let mut case = Case::new((9, 20, 4), 4);
    case.targets.fill(NO_TARGET);
    for products in BOTH {
        let found = case.run_with(&fastest(), products, &mut Scratch::default(), vec![3.0; case.head.len()]);
        assert!(found.losses.iter().chain(&found.d_hidden).all(|v| *v == 0.0));
        assert!(found.d_head.iter().all(|v| *v == 3.0), "{products:?}");
    }
}

/// `x` rounded by rows of `cols` to integers of magnitude at most `bound`, and scaled back.
fn rounded(x: &[f64], cols: usize, bound: f64) -> Vec<f64> {
    let unit = |row: &[f64]| row.iter().fold(0.0, |max: f64, v| max.max(v.abs())) / bound;
    let rows = x.chunks_exact(cols).map(|row| (row, unit(row)));
    rows.flat_map(|(row, unit)| row.iter().map(move |v| (v / unit).round_ties_even() * unit)).collect()
}

/// Probabilities lose what rounds to zero beside the largest of their token (or of their row of the head),
/// and no more: half a unit of 1/32767 of it each.
#[test]
fn small_gradients_are_dropped_within_their_bound() {
    let (n, vocab, dim) = (70, 600, 16);
    let mut case = Case::new((n, vocab, dim), 8);
    // Sharp distributions, as of a trained model: most entries are far below the threshold.
    case.hidden.iter_mut().for_each(|v| *v *= 8.0);
    let found = case.run(&fastest(), Products::Int16);
    let (hidden, head) = (wide(&case.hidden), wide(&case.head));
    // The other roundings are taken as they are: twelve bits forward, int8 backward.
    let (x, w) = (rounded(&hidden, dim, 2047.0), rounded(&head, dim, 2047.0));
    let (x8, w8) = (rounded(&hidden, dim, 127.0), rounded(&head, dim, 127.0));
    let scale_of = |x: &[f64]| x.iter().fold(0.0, |max: f64, v| max.max(v.abs())) / 127.0;
    let mut p = Vec::new();
    for x in x.chunks_exact(dim) {
        let logits: Vec<f64> =
            w.chunks_exact(dim).map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum()).collect();
        let max = logits.iter().fold(f64::NEG_INFINITY, |max, l| max.max(*l));
        let sum: f64 = logits.iter().map(|l| (l - max).exp()).sum();
        p.extend(logits.iter().map(|logit| (logit - max).exp() / sum / n as f64));
    }
    let hot = |t: usize, v: usize| if case.targets[t] as usize == v { 1.0 / n as f64 } else { 0.0 };
    let slack = 1.001 * 0.5 / 32767.0;
    let [w_scales, x_scales] =
        [&head, &hidden].map(|x| x.chunks_exact(dim).map(scale_of).collect::<Vec<f64>>());
    let mut dropped = 0;
    for t in 0..n {
        let folded: Vec<f64> = (0..vocab).map(|v| p[t * vocab + v] * w_scales[v]).collect();
        let largest = folded.iter().fold(0.0, |max: f64, v| max.max(*v));
        dropped += folded.iter().filter(|v| **v < largest / 65534.0).count();
        for i in 0..dim {
            let exact: f64 = (0..vocab).map(|v| (p[t * vocab + v] - hot(t, v)) * w8[v * dim + i]).sum();
            let bound: f64 = (0..vocab).map(|v| (w8[v * dim + i] / w_scales[v]).abs()).sum();
            let (found, bound) = (f64::from(found.d_hidden[t * dim + i]), slack * largest * bound);
            assert!(
                (found - exact).abs() <= bound + 1e-5 * exact.abs(),
                "d_hidden ({t}, {i}): {found}, {exact}"
            );
        }
    }
    assert!(dropped > n * vocab / 2, "the case must drop something: {dropped}");
    for v in 0..vocab {
        let largest = (0..n).fold(0.0, |max: f64, t| max.max(p[t * vocab + v] * x_scales[t]));
        for i in 0..dim {
            let exact: f64 = (0..n).map(|t| (p[t * vocab + v] - hot(t, v)) * x8[t * dim + i]).sum();
            let bound: f64 = (0..n).map(|t| (x8[t * dim + i] / x_scales[t]).abs()).sum();
            let (found, bound) = (f64::from(found.d_head[v * dim + i]), slack * largest * bound);
            assert!(
                (found - exact).abs() <= bound + 1e-5 * exact.abs(),
                "d_head ({v}, {i}): {found}, {exact}"
            );
        }
    }
}

#[test]
fn gradients_equal_central_differences_of_the_mean() {
    let cx = fastest();
    let case = Case::new((6, 11, 4), 9);
    let found = case.run(&cx, Products::F32);
    let mean = |hidden: &[f64], head: &[f64]| {
        let losses = naive(hidden, head, &case.targets, case.dim).losses;
        losses.iter().sum::<f64>() / losses.len() as f64
    };
    let (mut hidden, mut head) = (wide(&case.hidden), wide(&case.head));
    let difference = |x: &mut Vec<f64>, i: usize, loss: &dyn Fn(&[f64]) -> f64| {
        let old = x[i];
        x[i] = old + 1e-5;
        let above = loss(x);
        x[i] = old - 1e-5;
        let below = loss(x);
        x[i] = old;
        (above - below) / 2e-5
    };
    let expected: Vec<f64> =
        (0..hidden.len()).map(|i| difference(&mut hidden, i, &|x| mean(x, &head))).collect();
    close("d_hidden", &found.d_hidden, &expected, GRADIENT);
    let expected: Vec<f64> =
        (0..head.len()).map(|i| difference(&mut head, i, &|x| mean(&hidden, x))).collect();
    close("d_head", &found.d_head, &expected, GRADIENT);
}

#[test]
fn d_head_is_added_to() {
    let cx = fastest();
    let case = Case::new((600, 20, 6), 4);
    for products in BOTH {
        let fresh = case.run(&cx, products);
        let found = case.run_with(&cx, products, &mut Scratch::default(), vec![10.0; case.head.len()]);
        let expected: Vec<f64> = fresh.d_head.iter().map(|v| f64::from(*v) + 10.0).collect();
        close("d_head", &found.d_head, &expected, 1e-6);
        assert_eq!(bits(&found.d_hidden), bits(&fresh.d_hidden));
    }
}

#[test]
fn threads_and_tiers_change_no_bit() {
    for (seed, sizes) in [(520, 300, 16), (65, 70_000, 2), (9, 33, 7)].into_iter().enumerate() {
        let case = Case::new(sizes, 30 + seed as u64);
        for products in BOTH {
            let expected = case.run(&context(Tier::SCALAR, 1), products);
            for tier in Tier::available() {
                for threads in [1, 2, 3, 8] {
                    let found = case.run(&context(tier, threads), products);
                    let what = format!("{sizes:?}, {products:?}, {}, {threads} threads", tier.name());
                    assert_eq!(bits(&found.losses), bits(&expected.losses), "losses, {what}");
                    assert_eq!(bits(&found.d_hidden), bits(&expected.d_hidden), "d_hidden, {what}");
                    assert_eq!(bits(&found.d_head), bits(&expected.d_head), "d_head, {what}");
                }
            }
        }
    }
}

/// Logits of ±10⁴: the loss is 0 for the winner and the gap for the loser, the gradient one-hot.
#[test]
fn extreme_logits_stay_exact() {
    let case = Case { hidden: vec![1e4, 1e4], head: vec![1.0, -1.0, 0.5], targets: vec![0, 1], dim: 1 };
    let found = case.run(&fastest(), Products::F32);
    assert_eq!(found.losses, [0.0, 2e4]);
    // d logits are (0, 0, 0) and (½, −½, 0).
    assert_eq!(found.d_hidden, [0.0, 1.0]);
    assert_eq!(found.d_head, [5e3, -5e3, 0.0]);
}

/// A numeric fault must reach the guard: NaN in, NaN out.
#[test]
fn nan_is_not_hidden() {
    for tier in Tier::available() {
        let cx = context(tier, 1);
        for (place, products) in (0..20).flat_map(|place| BOTH.map(|products| (place, products))) {
            let mut case = Case::new((2, 20, 1), 3);
            case.head[place] = f32::NAN;
            let losses = case.run_forward(&cx, products);
            assert!(losses.iter().all(|loss| loss.is_nan()), "{products:?} {} at {place}", tier.name());
        }
    }
}

#[test]
fn logits_equal_plain_loops_on_every_tier() {
    for (rows, vocab, dim) in [(1, 1, 1), (1, 3000, 65), (2, 300, 7), (4, 33, 16), (5, 33, 16), (20, 300, 9)]
    {
        let (hidden, head) = (numbers(rows * dim, 61, 1.0), numbers(vocab * dim, 62, 1.0));
        let mut expected = Vec::new();
        for x in wide(&hidden).chunks_exact(dim) {
            expected.extend(
                wide(&head).chunks_exact(dim).map(|w| w.iter().zip(x).map(|(w, x)| w * x).sum::<f64>()),
            );
        }
        let (mut codes, mut scales) = (vec![0; head.len()], vec![0.0; vocab]);
        quantize(&fastest(), &head, &mut codes, &mut scales);
        let mut expected_int8 = Vec::new();
        for x in wide(&hidden).chunks_exact(dim) {
            expected_int8.extend(codes.chunks_exact(dim).zip(&scales).map(|(codes, scale)| {
                codes.iter().zip(x).map(|(c, x)| f64::from(*c) * x).sum::<f64>() * f64::from(*scale)
            }));
        }
        let (mut first, mut first_int8): (Option<Vec<f32>>, Option<Vec<f32>>) = (None, None);
        for tier in Tier::available() {
            for threads in [1, 2, 3, 8] {
                let mut logits = vec![f32::NAN; rows * vocab];
                head_logits(&context(tier, threads), &hidden, &head, dim, &mut logits);
                close(&format!("{rows} × {vocab} × {dim}"), &logits, &expected, FORWARD);
                let first = first.get_or_insert_with(|| logits.clone());
                assert_eq!(bits(first), bits(&logits));

                let cx = context(tier, threads);
                let scratch = &mut Scratch::default();
                head_logits_int8(&cx, &hidden, (&codes, &scales), scratch, &mut logits);
                close(&format!("int8 {rows} × {vocab} × {dim}"), &logits, &expected_int8, 1e-3);
                let first = first_int8.get_or_insert_with(|| logits.clone());
                assert_eq!(bits(first), bits(&logits));
            }
        }
    }
}

#[test]
#[should_panic(expected = "target 20 in a vocabulary of 20")]
fn a_target_outside_the_vocabulary_panics() {
    let mut case = Case::new((5, 20, 3), 1);
    case.targets[4] = 20;
    case.run_forward(&fastest(), Products::F32);
}

#[test]
fn no_tokens_are_nothing_to_do() {
    let case = Case::new((0, 20, 3), 1);
    let found = case.run(&fastest(), Products::Int16);
    assert!(found.losses.is_empty() && found.d_head.iter().all(|v| *v == 0.0));
}

/// Few tokens meet a large head some words at a time, many the whole of it: the same tokens, the same bits.
#[test]
fn a_large_head_in_parts_changes_no_bit() {
    for vocab in [8193, 20_000] {
        let (many, few) = (Case::new((2048, vocab, 6), 3), 8);
        for tier in Tier::available() {
            let cx = context(tier, 2);
            let whole = many.run(&cx, Products::Int16);
            let part = Case {
                hidden: many.hidden[..few * many.dim].to_vec(),
                head: many.head.clone(),
                targets: many.targets[..few].to_vec(),
                dim: many.dim,
            };
            let part = part.run(&cx, Products::Int16);
            assert_eq!(bits(&part.losses), bits(&whole.losses[..few]), "losses, {vocab}, {}", tier.name());
            // Gradients of a mean over 256 times as many tokens.
            let scaled: Vec<f32> = whole.d_hidden[..few * many.dim].iter().map(|d| d * 256.0).collect();
            assert_eq!(bits(&part.d_hidden), bits(&scaled), "d_hidden, {vocab}, {}", tier.name());
        }
    }
}
