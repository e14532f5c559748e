//! Every kernel of every tier of this machine against the scalar one, on random cases.

use std::time::Instant;

use serde::Serialize;
use tritrain_kernels::{
    Context, ContextError, Store, Tier, attention, elementwise, gate, kmeans, loss, norm, outer,
    packed::Packed, rows, ternary, update,
};
use tritrain_trit::{NO_TARGET, format::Format, rng::Stream};

/// How one kernel of one tier did.
#[derive(Clone, Debug, Serialize)]
pub struct KernelCheck {
    /// The tier.
    pub tier: &'static str,
    /// The kernel.
    pub kernel: &'static str,
    /// Random cases compared with the scalar tier, bit for bit.
    pub cases: u64,
    /// Cases that differed.
    pub wrong: u64,
    /// The first case that differed, which is also its seed.
    pub first_wrong: Option<u64>,
    /// Seconds of both tiers together.
    pub seconds: f64,
}

/// A kernel on a case made from a seed: the bits of everything that it wrote.
type Case = fn(&Context, &Random) -> Vec<u32>;

const KERNELS: [(&str, Case); 19] = [
    ("ternary product", |cx, random| ternary_product(cx, random, 2 + random.below(0, 20))),
    ("ternary product, one row", |cx, random| ternary_product(cx, random, 1)),
    ("weight gradient", weight_gradient),
    ("int8 rows", int8_rows),
    ("RMSNorm and int8 rows", norm_forward),
    ("RMSNorm backward", norm_backward),
    ("gated activation", gated),
    ("ternary codes", codes),
    ("attention", attention),
    ("attention of new tokens", attention_decode),
    ("output head", head),
    ("output head, some rows", head_rows),
    ("factored update", factored),
    ("AdamW update", adam),
    ("AdamW update in 8 bits", adam8),
    ("Prodigy and averaged weights", averaged),
    ("momentum in few bits", momentum),
    ("applied update", applied),
    ("nearest centroids and sums", centroids),
];

/// Random numbers of one case.
struct Random(Stream);

impl Random {
    /// The `at`-th size, below `limit`.
    fn below(&self, at: u64, limit: usize) -> usize {
        (self.0.uniform(at) * limit as f32) as usize % limit
    }

    /// `len` normal numbers, the `block`-th such list; now and then a zero, a tie or a large one.
    fn floats(&self, block: u64, len: usize) -> Vec<f32> {
        let normal = |i: u64| {
            let value = self.0.normal((block + 1) << 32 | i);
            match i % 11 {
                0 => 0.0,
                1 => (value * 4.0).round() / 4.0,
                2 => value * 1e4,
                _ => value,
            }
        };
        (0..len as u64).map(normal).collect()
    }

    /// `len` activations.
    fn int8(&self, block: u64, len: usize) -> Vec<i8> {
        self.floats(block, len).into_iter().map(|v| (v * 60.0).clamp(-127.0, 127.0) as i8).collect()
    }
}

/// Compares `cases` random cases in all, spread over kernels and tiers.
///
/// # Errors
/// Threads cannot be started.
pub fn self_test(cases: u64, mut done: impl FnMut(&KernelCheck)) -> Result<Vec<KernelCheck>, ContextError> {
    let scalar = Context::new(Tier::SCALAR, 1)?;
    let tiers: Vec<Tier> = Tier::available().into_iter().filter(|tier| *tier != Tier::SCALAR).collect();
    let each = cases.div_ceil((tiers.len().max(1) * KERNELS.len()) as u64);
    let mut checks = Vec::new();
    for tier in tiers {
        let cx = Context::new(tier, 1)?;
        for (kernel, case) in KERNELS {
            let started = Instant::now();
            let differs = |seed: &u64| {
                let random = Random(Stream::new(*seed, 0, 0));
                case(&cx, &random) != case(&scalar, &random)
            };
            let wrong: Vec<u64> = (0..each).filter(differs).collect();
            let check = KernelCheck {
                tier: tier.name(),
                kernel,
                cases: each,
                wrong: wrong.len() as u64,
                first_wrong: wrong.first().copied(),
                seconds: started.elapsed().as_secs_f64(),
            };
            done(&check);
            checks.push(check);
        }
    }
    Ok(checks)
}

fn bits(values: &[f32]) -> impl Iterator<Item = u32> {
    values.iter().map(|v| v.to_bits())
}

fn ternary_product(cx: &Context, random: &Random, rows: usize) -> Vec<u32> {
    let (outputs, inputs) = (1 + random.below(1, 50), 1 + random.below(2, 90));
    let codes: Vec<i8> =
        random.int8(0, outputs * inputs).into_iter().map(|v| (v / 43).clamp(-1, 1)).collect();
    let mut panels = ternary::Panels::zeros(outputs, inputs);
    let source = ternary::Rows { elements: &codes[..], cols: inputs };
    ternary::pack(cx, source, (outputs, inputs), Some(&mut panels), None);
    let (x, scales) = (random.int8(1, rows * inputs), random.floats(2, rows));
    let residual = random.floats(3, rows * outputs);
    let mut y = vec![0.0; residual.len()];
    let mut scratch = ternary::Scratch::default();
    ternary::matmul(cx, &x, &scales, &panels, 0.5, Some(&residual), &mut scratch, &mut y);
    bits(&y).collect()
}

fn weight_gradient(cx: &Context, random: &Random) -> Vec<u32> {
    let (tokens, outputs, inputs) =
        (1 + random.below(0, 40), 1 + random.below(1, 60), 1 + random.below(2, 50));
    let (dy, scales) = (random.floats(0, tokens * outputs), random.floats(1, tokens));
    let (x, mut dw) = (random.int8(2, tokens * inputs), random.floats(3, outputs * inputs));
    let mut scratch = outer::Scratch::default();
    outer::weight_gradient(cx, &dy, &scales, &x, Store::Add, &mut scratch, &mut dw);
    bits(&dw).collect()
}

fn int8_rows(cx: &Context, random: &Random) -> Vec<u32> {
    let (count, cols) = (1 + random.below(0, 5), 1 + random.below(1, 200));
    let x = random.floats(0, count * cols);
    let (mut codes, mut scales) = (vec![0; x.len()], vec![0.0; count]);
    rows::quantize(cx, &x, &mut codes, &mut scales);
    bits(&scales).chain(codes.iter().map(|c| *c as u32)).collect()
}

fn norm_forward(cx: &Context, random: &Random) -> Vec<u32> {
    let (count, cols) = (1 + random.below(0, 5), 1 + random.below(1, 200));
    let (x, gain) = (random.floats(0, count * cols), random.floats(1, cols));
    let (mut codes, mut scales, mut rstd) = (vec![0; x.len()], vec![0.0; count], vec![0.0; count]);
    norm::forward_quantize(cx, &x, &gain, 1e-5, &mut codes, &mut scales, &mut rstd);
    bits(&scales).chain(bits(&rstd)).chain(codes.iter().map(|c| *c as u32)).collect()
}

fn norm_backward(cx: &Context, random: &Random) -> Vec<u32> {
    let (count, cols) = (1 + random.below(0, 5), 1 + random.below(1, 200));
    let (dh, x) = (random.floats(0, count * cols), random.floats(1, count * cols));
    let (gain, rstd) = (random.floats(2, cols), random.floats(3, count));
    let (mut dx, mut d_gain) = (random.floats(4, count * cols), vec![0.0; cols]);
    let (mut codes, mut scales) = (vec![0; x.len()], vec![0.0; count]);
    let rows = Some((&mut codes[..], &mut scales[..]));
    norm::backward(cx, &dh, &x, &gain, &rstd, true, &mut dx, &mut d_gain, rows);
    bits(&dx).chain(bits(&d_gain)).chain(bits(&scales)).chain(codes.iter().map(|c| *c as u32)).collect()
}

fn gated(cx: &Context, random: &Random) -> Vec<u32> {
    let (count, width) = (1 + random.below(0, 4), 1 + random.below(1, 120));
    let kind = [gate::Gate::Silu, gate::Gate::Relu2][random.below(2, 2)];
    let (gate_up, dh) = (random.floats(0, 2 * count * width), random.floats(1, count * width));
    let (gain, mut d_gain, mut rstd) = (random.floats(3, width), vec![0.0; width], vec![0.0; count]);
    let (mut codes, mut scales) = (vec![0; dh.len()], vec![0.0; count]);
    let norm = Some((&gain[..], 1e-5));
    gate::forward_quantize(cx, kind, &gate_up, norm, &mut codes, &mut scales, &mut rstd);
    let forward: Vec<u32> = bits(&scales).chain(bits(&rstd)).chain(codes.iter().map(|c| *c as u32)).collect();
    let (mut d_gate_up, mut codes) = (vec![0.0; gate_up.len()], vec![0; gate_up.len()]);
    let norm = Some(gate::NormBackward { gain: &gain, rstd: &rstd, d_gain: &mut d_gain });
    gate::backward_quantize(cx, kind, &gate_up, &dh, norm, &mut d_gate_up, &mut codes, &mut scales);
    let backward = bits(&d_gate_up).chain(bits(&d_gain)).chain(bits(&scales));
    forward.into_iter().chain(backward).chain(codes.iter().map(|c| *c as u32)).collect()
}

fn codes(cx: &Context, random: &Random) -> Vec<u32> {
    let (outputs, inputs) = (1 + random.below(0, 30), 1 + random.below(1, 50));
    let latent = random.floats(2, outputs * inputs);
    let scale = (elementwise::sum_abs(cx, &latent) / latent.len() as f64) as f32;
    let mut panels = [ternary::Panels::zeros(outputs, inputs), ternary::Panels::zeros(inputs, outputs)];
    let [forward, transposed] = &mut panels;
    let source = ternary::Latent { weights: ternary::Rows { elements: &latent, cols: inputs }, scale };
    ternary::pack(cx, source, (outputs, inputs), Some(forward), Some(transposed));
    let codes = panels.iter().flat_map(ternary::Panels::codes).map(|code| code as u32);
    std::iter::once(scale.to_bits()).chain(codes).collect()
}

fn attention(cx: &Context, random: &Random) -> Vec<u32> {
    let head_dim = 2 * (1 + random.below(0, 20));
    let (kv_heads, time) = (1 + random.below(1, 3), 1 + random.below(2, 70));
    let heads = kv_heads * (1 + random.below(3, 3));
    let shape = attention::Shape { batch: 1, time, heads, kv_heads, head_dim };
    let table = attention::rope_table(time, head_dim, 10_000.0);
    let qkv = random.floats(0, time * shape.qkv_width());
    let d_out = random.floats(1, time * shape.out_width());
    let (mut out, mut lse) = (vec![0.0; d_out.len()], vec![0.0; time * heads]);
    let mut d_qkv = vec![0.0; qkv.len()];
    attention::forward(cx, &qkv, &table, shape, &mut out, &mut lse);
    attention::backward(cx, &qkv, (&out, &lse), &d_out, &table, shape, &mut d_qkv);
    bits(&out).chain(bits(&lse)).chain(bits(&d_qkv)).collect()
}

fn attention_decode(cx: &Context, random: &Random) -> Vec<u32> {
    let head_dim = 2 * (1 + random.below(0, 40));
    let (kv_heads, time) = (1 + random.below(1, 3), random.below(2, 60));
    let heads = kv_heads * (1 + random.below(3, 3));
    let shape = attention::Shape { batch: 1, time: 1, heads, kv_heads, head_dim };
    let table = attention::rope_table(time + 1, head_dim, 10_000.0);
    let (qkv, before) = (random.floats(0, shape.qkv_width()), random.floats(1, time * shape.qkv_width()));
    let mut cache = attention::Cache::default();
    attention::remember(cx, &before, &table, attention::Shape { time, ..shape }, &mut cache);
    let mut out = vec![0.0; shape.out_width()];
    attention::decode(cx, &qkv, &table, shape, &mut cache, &mut out);
    bits(&out).collect()
}

/// Hidden states, a head and targets, of sizes that `random` chooses.
fn head_operands(random: &Random, most: usize) -> (usize, Vec<f32>, Vec<f32>, Vec<u32>) {
    let (tokens, dim, vocab) = (1 + random.below(0, most), 1 + random.below(1, 70), 1 + random.below(2, 90));
    let small = |block, len| random.floats(block, len).into_iter().map(|v| v.clamp(-9.0, 9.0) * 0.1);
    let (hidden, head) = (small(0, tokens * dim).collect(), small(1, vocab * dim).collect());
    let target = |t: usize| random.below(100 + t as u64, vocab) as u32;
    (dim, hidden, head, (0..tokens).map(target).collect())
}

fn head(cx: &Context, random: &Random) -> Vec<u32> {
    let (dim, hidden, head, mut targets) = head_operands(random, 30);
    targets[0] = NO_TARGET;
    let (mut losses, mut d_hidden) = (vec![0.0; targets.len()], vec![0.0; hidden.len()]);
    let mut d_head = random.floats(5, head.len());
    let with = (dim, loss::Products::Int16);
    let weight = 1.0 / targets.len() as f32;
    let gradients = Some(loss::Gradients { weight, d_hidden: &mut d_hidden, d_head: Some(&mut d_head) });
    let mut scratch = loss::Scratch::default();
    loss::head_cross_entropy(cx, &hidden, &head, &targets, with, &mut losses, gradients, &mut scratch);
    bits(&losses).chain(bits(&d_hidden)).chain(bits(&d_head)).collect()
}

fn head_rows(cx: &Context, random: &Random) -> Vec<u32> {
    let (dim, hidden, head, targets) = head_operands(random, 3);
    let vocab = head.len() / dim;
    let (mut codes, mut scales) = (vec![0; head.len()], vec![0.0; vocab]);
    rows::quantize(cx, &head, &mut codes, &mut scales);
    let mut logits = vec![0.0; targets.len() * vocab];
    let mut scratch = loss::Scratch::default();
    loss::head_logits_int8(cx, &hidden, (&codes, &scales), &mut scratch, &mut logits);
    bits(&logits).collect()
}

fn adam(cx: &Context, random: &Random) -> Vec<u32> {
    let len = 1 + random.below(0, 300);
    let (mut g, mut m) = (random.floats(0, len), random.floats(1, len));
    let mut v: Vec<f32> = random.floats(2, len).into_iter().map(|v| v * v).collect();
    let with = update::Adam { beta1: 0.9, beta2: 0.99, step: 1 + random.below(3, 50) as u64, eps: 1e-8 };
    update::adam(cx, &mut g, &mut m, &mut v, with);
    bits(&g).chain(bits(&m)).chain(bits(&v)).collect()
}

/// What a matrix in few bits holds, as words.
fn stored(packed: &Packed) -> impl Iterator<Item = u32> {
    packed.bytes().iter().map(|byte| u32::from(*byte)).chain(bits(packed.steps()))
}

fn adam8(cx: &Context, random: &Random) -> Vec<u32> {
    let len = 1 + random.below(0, 900);
    let zeros = || Packed::zeros(Format::Int8, len.div_ceil(update::BLOCK), update::BLOCK, true);
    let (mut m, mut v, mut seen) = (zeros(), zeros(), Vec::new());
    for step in 1..=3 {
        let mut g = random.floats(step, len);
        let with = update::Adam { beta1: 0.9, beta2: 0.99, step, eps: 1e-8 };
        update::adam8(cx, &mut g, &mut m, &mut v, with, &random.0);
        seen.extend(bits(&g));
    }
    seen.into_iter().chain(stored(&m)).chain(stored(&v)).collect()
}

fn averaged(cx: &Context, random: &Random) -> Vec<u32> {
    let len = 1 + random.below(0, 300);
    let [mut g, w, start, mut x] = [0, 1, 2, 3].map(|block| random.floats(block, len));
    let (mut m, mut v, mut s) = (vec![0.0; len], vec![0.0; len], vec![0.0; len]);
    let with = update::Prodigy { beta1: 0.9, beta2: 0.99, distance: 0.3, weight: 1.5, eps: 1e-8 };
    let state = update::Prodigal { m: &mut m, v: &mut v, s: &mut s, start: &start };
    let sums = update::prodigy(cx, &mut g, &w, state, with);
    let mut between = vec![0.0; len];
    update::average(cx, &mut between, &g, &mut x, update::Average { share: 0.3, kept: 0.9 });
    let seen = [g, m, v, s, between, x].concat();
    seen.iter().map(|x| x.to_bits()).chain(sums.map(|sum| (sum as f32).to_bits())).collect()
}

fn momentum(cx: &Context, random: &Random) -> Vec<u32> {
    let (count, cols) = (1 + random.below(0, 20), 1 + random.below(1, 90));
    let format = [Format::Bf16, Format::Int8, Format::Trits(2)][random.below(2, 3)];
    let (mut m, mut seen) = (Packed::zeros(format, count, cols, true), Vec::new());
    let with = update::Momentum { kept: 0.99, seen: 0.9, signs: random.below(3, 2) == 1 };
    for block in 1..=3 {
        let mut g = random.floats(block, count * cols);
        update::momentum_packed(cx, &mut g, &mut m, with, &random.0);
        seen.extend(bits(&g));
    }
    seen.into_iter().chain(stored(&m)).collect()
}

fn applied(cx: &Context, random: &Random) -> Vec<u32> {
    let len = 1 + random.below(0, 500);
    let (mut w, u) = (random.floats(0, len), random.floats(1, len));
    update::apply(cx, &mut w, &u, update::Apply { rate: 0.01, decay: 0.1 });
    bits(&w).collect()
}

fn centroids(cx: &Context, random: &Random) -> Vec<u32> {
    let (count, dim, k) = (1 + random.below(0, 60), 1 + random.below(1, 90), 1 + random.below(2, 50));
    let (x, mut centroids) = (random.floats(0, count * dim), random.floats(1, k * dim));
    let mut clusters = kmeans::Clusters::new(cx, &x, dim);
    let (mut sums, mut counts, mut distances) = (vec![0.0; k * dim], vec![0; k], vec![0.0; count]);
    let mut seen = Vec::new();
    // The definition on the portable tier, what is fast on others.
    let search = match cx.tier() {
        Tier::SCALAR => kmeans::Search::Plain,
        _ => kmeans::Search::Bounds { tighten: random.below(3, 2) == 1 },
    };
    for _ in 0..2 {
        kmeans::assign(cx, &x, &centroids, search, &mut clusters);
        kmeans::sum(cx, &x, &mut clusters, &mut sums, &mut counts);
        kmeans::distances(cx, &x, &centroids, &clusters, &mut distances);
        seen.extend(clusters.labels().iter().copied().chain(bits(&distances)));
        seen.extend(sums.iter().flat_map(|sum| [sum.to_bits() as u32, (sum.to_bits() >> 32) as u32]));
        for (i, centroid) in centroids.iter_mut().enumerate().filter(|(i, _)| counts[i / dim] > 0) {
            *centroid = (sums[i] / counts[i / dim] as f64) as f32;
        }
    }
    seen
}

fn factored(cx: &Context, random: &Random) -> Vec<u32> {
    let (count, cols) = (1 + random.below(0, 40), 1 + random.below(1, 60));
    let (mut g, mut momentum) = (random.floats(0, count * cols), random.floats(1, count * cols));
    let squares = |block, len| random.floats(block, len).into_iter().map(|v| v * v).collect::<Vec<f32>>();
    let (mut row, mut col) = (squares(2, count), squares(3, cols));
    let with = update::Factored { beta2: 0.9, momentum: 0.5 };
    update::factored(cx, &mut g, &mut row, &mut col, &mut momentum, with);
    bits(&g).chain(bits(&row)).chain(bits(&col)).chain(bits(&momentum)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_of_every_tier_is_compared() {
        let mut shown = 0;
        let checks = self_test(2_000, |_| shown += 1).unwrap();
        let tiers = Tier::available().len() - 1;
        assert_eq!((checks.len(), shown), (tiers * KERNELS.len(), tiers * KERNELS.len()));
        for check in checks {
            assert!(check.cases > 0 && check.wrong == 0, "{check:?}");
        }
    }

    #[test]
    fn another_result_is_another_case() {
        let cx = Context::new(Tier::SCALAR, 1).unwrap();
        for (kernel, case) in KERNELS {
            let [a, b] = [1, 2].map(|seed| case(&cx, &Random(Stream::new(seed, 0, 0))));
            assert!(!a.is_empty() && a != b, "{kernel} writes nothing that a seed changes");
        }
    }
}
