//! The f64 reference against central differences, hand-computed numbers and symmetries of the model.

use tritrain_model::reference::{
    Arithmetic, Matrix, Reference, Rows, Trace, attention, cross_entropy, gated, linear, linear_backward,
    norm, rope,
};
use tritrain_model::{Gate, Layout, ModelConfig, Precision, TensorKind};

const PLAIN_TERNARY: Arithmetic = Arithmetic::Ternary { round_inputs: false, round_gradients: false };
const FORWARD_TERNARY: Arithmetic = Arithmetic::Ternary { round_inputs: true, round_gradients: false };

/// SplitMix64: enough for test points, and independent of the code under test.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `low..=high`.
    fn range(&mut self, low: usize, high: usize) -> usize {
        low + (self.next() % (high - low + 1) as u64) as usize
    }

    fn flip(&mut self) -> bool {
        self.next() & 1 == 1
    }

    fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    fn normal(&mut self) -> f64 {
        (-2.0 * (1.0 - self.uniform()).ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }

    fn normals(&mut self, len: usize) -> Vec<f64> {
        (0..len).map(|_| self.normal()).collect()
    }
}

/// A model, a point in its parameter space and a batch.
struct Case {
    config: ModelConfig,
    layout: Layout,
    vocab: usize,
    batch: usize,
    time: usize,
    tokens: Vec<u32>,
    targets: Vec<u32>,
    params: Vec<Vec<f64>>,
}

impl Case {
    fn new(config: ModelConfig, vocab: usize, batch: usize, time: usize, random: &mut Random) -> Case {
        config.check().expect("a configuration that fits together");
        let layout = Layout::new(&config, vocab);
        let params = layout.specs.iter().map(|spec| {
            let mut values = random.normals(spec.len());
            for v in &mut values {
                *v = match spec.kind {
                    TensorKind::Embedding => *v,
                    TensorKind::Norm => 1.0 + 0.3 * *v,
                    TensorKind::Matrix => *v / (spec.cols as f64).sqrt(),
                };
            }
            values
        });
        let params = params.collect();
        let mut ids = || (0..batch * time).map(|_| random.range(0, vocab - 1) as u32).collect();
        let (tokens, targets) = (ids(), ids());
        Case { layout, vocab, batch, time, tokens, targets, params, config }
    }

    fn random(seed: u64) -> Case {
        let mut random = Random(seed);
        let kv_heads = random.range(1, 2);
        let heads = kv_heads * random.range(1, 3);
        let config = ModelConfig {
            dim: heads * 2 * random.range(1, 3),
            layers: random.range(1, 2),
            heads,
            kv_heads,
            ffn: random.range(2, 9),
            context: 6,
            gate: if random.flip() { Gate::Silu } else { Gate::Relu2 },
            sub_norm: random.flip(),
            tied: random.flip(),
            precision: Precision::F32,
            rope_theta: [10.0, 100.0, 10_000.0][random.range(0, 2)],
            norm_eps: [1e-5, 1e-3, 1e-1][random.range(0, 2)],
        };
        let (vocab, batch, time) = (random.range(3, 11), random.range(1, 2), random.range(1, 6));
        Case::new(config, vocab, batch, time, &mut random)
    }

    fn reference(&self) -> Reference<'_> {
        Reference { config: &self.config, layout: &self.layout, vocab: self.vocab }
    }

    fn trace(&self, params: &[Vec<f64>], arithmetic: Arithmetic) -> Trace {
        self.reference().forward(params, &self.tokens, self.batch, self.time, arithmetic)
    }

    fn logits(&self, tokens: &[u32], arithmetic: Arithmetic) -> Vec<f64> {
        self.reference().logits(&self.params, tokens, self.batch, self.time, arithmetic)
    }

    fn gradients(&self, arithmetic: Arithmetic) -> Vec<Vec<f64>> {
        let (tokens, targets) = (&self.tokens, &self.targets);
        self.reference()
            .loss_and_gradients(&self.params, tokens, targets, self.batch, self.time, arithmetic)
            .1
    }

    /// The loss at `params + distance·direction` (in one tensor) and which relu² gates are open there.
    fn probe(&self, tensor: usize, direction: &[f64], distance: f64) -> (f64, Vec<bool>) {
        let mut params = self.params.clone();
        for (p, d) in params[tensor].iter_mut().zip(direction) {
            *p += distance * d;
        }
        let trace = self.trace(&params, Arithmetic::Exact);
        let mut open = Vec::new();
        if self.config.gate == Gate::Relu2 {
            for block in &trace.blocks {
                for row in block.gate_up.chunks(2 * self.config.ffn) {
                    open.extend(row[..self.config.ffn].iter().map(|&g| g > 0.0));
                }
            }
        }
        (cross_entropy(&trace.logits, &self.targets), open)
    }

    /// Sixth-order central difference of the loss along `direction`, or nothing when a relu² gate opens
    /// or closes between its six points: relu² has one continuous derivative, not seven.
    fn difference_at(&self, tensor: usize, direction: &[f64], step: f64) -> Option<f64> {
        let (mut sum, mut open) = (0.0, None);
        for (point, weight) in [(1.0, 45.0), (2.0, -9.0), (3.0, 1.0)] {
            let (above, open_above) = self.probe(tensor, direction, point * step);
            let (below, open_below) = self.probe(tensor, direction, -point * step);
            if open_above != open_below || *open.get_or_insert(open_above.clone()) != open_above {
                return None;
            }
            sum += weight * (above - below);
        }
        Some(sum / (60.0 * step))
    }

    /// The difference at the step where two neighbouring steps agree best. A norm of a vector as small
    /// as `sqrt(eps)` bends within 1e-3, most of the loss within 1; the gradient under test has no say.
    fn difference(&self, tensor: usize, direction: &[f64]) -> Option<f64> {
        let steps = [8e-3, 2e-3, 5e-4, 1e-4, 2e-5];
        let all = steps.map(|step| self.difference_at(tensor, direction, step));
        let pairs = all.windows(2).filter_map(|pair| Some(((pair[0]? - pair[1]?).abs(), pair[1]?)));
        pairs.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, difference)| difference)
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn length(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

fn unit(mut a: Vec<f64>) -> Vec<f64> {
    let length = length(&a);
    for v in &mut a {
        *v /= length;
    }
    a
}

/// What the checker found.
#[derive(Default)]
struct Findings {
    /// Largest relative error and where.
    worst: (f64, String),
    /// Comparisons made, and given up at a kink of relu².
    compared: usize,
    kinks: usize,
}

impl Findings {
    /// Compares `gradient·direction` with the difference quotient along the unit vector `direction`.
    ///
    /// Relative error: `|g - fd| / max(|g|, |fd|, 1e-3·‖gradient of the tensor‖)`, 0 where both are 0.
    fn compare(&mut self, case: &Case, tensor: usize, gradient: &[f64], direction: &[f64]) {
        let Some(difference) = case.difference(tensor, direction) else {
            self.kinks += 1;
            return;
        };
        let derivative = dot(gradient, direction);
        let size = derivative.abs().max(difference.abs()).max(1e-3 * length(gradient));
        let error = if derivative == difference { 0.0 } else { (derivative - difference).abs() / size };
        let error = if error.is_nan() { f64::INFINITY } else { error };
        self.compared += 1;
        if error > self.worst.0 {
            let name = &case.layout.specs[tensor].name;
            self.worst = (error, format!("{name}: {derivative:e} against {difference:e}, {:?}", case.config));
        }
    }

    /// Along the gradient, along `count` random directions and along `count` random axes of a tensor.
    fn sample(&mut self, case: &Case, tensor: usize, gradient: &[f64], count: usize, random: &mut Random) {
        let len = gradient.len();
        if length(gradient) > 0.0 {
            self.compare(case, tensor, gradient, &unit(gradient.to_vec()));
        }
        for _ in 0..count {
            self.compare(case, tensor, gradient, &unit(random.normals(len)));
            self.compare(case, tensor, gradient, &axis(len, random.range(0, len - 1)));
        }
    }
}

fn axis(len: usize, at: usize) -> Vec<f64> {
    let mut direction = vec![0.0; len];
    direction[at] = 1.0;
    direction
}

const BOUND: f64 = 1e-6;

#[test]
fn gradients_are_central_differences_over_100_shapes() {
    let mut found = Findings::default();
    let mut random = Random(1);
    for seed in 0..100 {
        let case = Case::random(seed);
        for (tensor, gradient) in case.gradients(Arithmetic::Exact).iter().enumerate() {
            let before = found.compared;
            found.sample(&case, tensor, gradient, 2, &mut random);
            assert!(
                found.compared > before,
                "{}: every direction met a kink",
                case.layout.specs[tensor].name
            );
        }
    }
    println!("{} comparisons, {} at kinks, worst {:?}", found.compared, found.kinks, found.worst);
    assert!(found.worst.0 <= BOUND, "{:?}", found.worst);
    assert!(found.compared > 5000 && found.kinks * 10 < found.compared);
}

#[test]
fn every_entry_of_small_models_is_a_central_difference() {
    let mut found = Findings::default();
    for case in (1000..1100).map(Case::random).filter(|case| case.layout.parameters() < 250) {
        for (tensor, gradient) in case.gradients(Arithmetic::Exact).iter().enumerate() {
            for at in 0..gradient.len() {
                found.compare(&case, tensor, gradient, &axis(gradient.len(), at));
            }
        }
    }
    println!("{} comparisons, {} at kinks, worst {:?}", found.compared, found.kinks, found.worst);
    assert!(found.worst.0 <= BOUND, "{:?}", found.worst);
    assert!(found.compared > 2000 && found.kinks * 10 < found.compared);
}

/// The checker must be able to fail: every tensor's gradient, wrong in one way, is found out.
#[test]
fn checker_finds_wrong_gradients() {
    type Mutation = (&'static str, fn(&mut [f64]));
    let mutations: [Mutation; 5] = [
        ("scaled by 1.001", |g| g.iter_mut().for_each(|v| *v *= 1.001)),
        ("scaled by 1.00001", |g| g.iter_mut().for_each(|v| *v *= 1.00001)),
        ("sign turned", |g| g.iter_mut().for_each(|v| *v = -*v)),
        ("largest entry dropped", |g| {
            *g.iter_mut().max_by(|a, b| a.abs().total_cmp(&b.abs())).unwrap() = 0.0
        }),
        ("not a number", |g| g[0] = f64::NAN),
    ];
    for seed in [3, 4, 5] {
        let case = Case::random(seed);
        for (tensor, gradient) in case.gradients(Arithmetic::Exact).iter().enumerate() {
            for (name, mutate) in mutations {
                let mut wrong = gradient.clone();
                mutate(&mut wrong);
                let mut found = Findings::default();
                found.sample(&case, tensor, &wrong, 3, &mut Random(seed));
                let passed = found.worst.0 <= BOUND;
                assert!(!passed, "{} {name}: {:?}", case.layout.specs[tensor].name, found.worst);
            }
            let mut found = Findings::default();
            found.sample(&case, tensor, gradient, 3, &mut Random(seed));
            assert!(found.worst.0 <= BOUND, "{:?}", found.worst);
        }
    }
}

fn close(found: &[f64], expected: &[f64], bound: f64) {
    assert_eq!(found.len(), expected.len());
    for (at, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= bound * e.abs().max(1.0), "entry {at}: found {f}, expected {e}");
    }
}

/// One block, one token, numbers chosen so that each norm divides by a whole number.
fn tiny() -> Case {
    let config = ModelConfig {
        dim: 2,
        layers: 1,
        heads: 1,
        kv_heads: 1,
        ffn: 1,
        context: 1,
        gate: Gate::Relu2,
        sub_norm: false,
        tied: false,
        precision: Precision::F32,
        rope_theta: 10_000.0,
        norm_eps: 0.0,
    };
    let mut case = Case::new(config, 3, 1, 1, &mut Random(0));
    (case.tokens, case.targets) = (vec![1], vec![0]);
    for (spec, values) in case.layout.specs.iter().zip(&mut case.params) {
        *values = match spec.name.as_str() {
            "embedding" => vec![9.0, 9.0, 1.0, 1.0, 9.0, 9.0],
            "layers.0.qkv" => vec![0.3, -0.7, 2.0, 5.0, -1.1, 0.4, 0.6, 0.9, 1.0, 0.0, 0.0, -2.0],
            "layers.0.o" => vec![2.0, -2.0, 4.0, 2.0],
            "layers.0.gate_up" => vec![1.0, 3.0, 5.0, -10.0],
            "layers.0.down" => vec![-0.4, 0.3],
            "head" => vec![0.0, 0.0, 5.0, 0.0, 0.0, 5.0],
            _ => vec![1.0, 1.0],
        };
    }
    case
}

#[test]
fn one_token_by_hand() {
    let case = tiny();
    let trace = case.trace(&case.params, Arithmetic::Exact);
    let block = &trace.blocks[0];
    close(&block.probabilities, &[1.0], 0.0);
    close(&block.attention, &[1.0, -2.0], 1e-15); // one token attends to itself: v
    close(&block.middle, &[7.0, 1.0], 1e-15); // (1, 1) + (6, 0), rms 5
    close(&block.gate_up, &[2.0, 5.0], 1e-15); // from (1.4, 0.2)
    close(&block.gated, &[20.0], 1e-15); // 2²·5
    close(&trace.x, &[-1.0, 7.0], 1e-14); // (7, 1) + 20·(-0.4, 0.3), rms 5
    close(&trace.logits, &[0.0, -1.0, 7.0], 1e-14);

    let (one, two) = ((-1.0f64).exp(), 7.0f64.exp());
    let all = 1.0 + one + two;
    let reference = case.reference();
    let (loss, gradients) =
        reference.loss_and_gradients(&case.params, &case.tokens, &case.targets, 1, 1, Arithmetic::Exact);
    close(&[loss], &[all.ln()], 1e-14);
    // Head: (p - target)·yᵀ with y = (-0.2, 1.4). Final gain: yᵀ·headᵀ·(p - target).
    let d = [1.0 / all - 1.0, one / all, two / all];
    let head: Vec<f64> = d.iter().flat_map(|d| [-0.2 * d, 1.4 * d]).collect();
    close(&gradients[case.layout.head], &head, 1e-14);
    close(&gradients[case.layout.norm], &[-0.2 * 5.0 * d[1], 1.4 * 5.0 * d[2]], 1e-14);
    // Through the last norm, r = 1/5: dx = (gain·dy - y·mean(gain·dy·y))/5, and down sees 20·dx.
    let dy = [5.0 * d[1], 5.0 * d[2]];
    let mean = (dy[0] * -0.2 + dy[1] * 1.4) / 2.0;
    let dx = [(dy[0] + 0.2 * mean) / 5.0, (dy[1] - 1.4 * mean) / 5.0];
    let down = case.layout.specs.iter().position(|spec| spec.name == "layers.0.down").unwrap();
    close(&gradients[down], &[20.0 * dx[0], 20.0 * dx[1]], 1e-13);
}

#[test]
fn uniform_logits_cost_ln_vocab() {
    for seed in 0..10 {
        let mut case = Case::random(seed);
        case.params[case.layout.norm].fill(0.0);
        for arithmetic in [Arithmetic::Exact, Arithmetic::TERNARY] {
            let (params, tokens, targets) = (&case.params, &case.tokens, &case.targets);
            let loss = case.reference().loss(params, tokens, targets, case.batch, case.time, arithmetic);
            close(&[loss], &[(case.vocab as f64).ln()], 1e-14);
        }
    }
}

#[test]
fn norm_gate_and_attention_by_hand() {
    // Mean square 17, with eps 25; the second row is eps alone.
    close(&norm(&[3.0, 5.0, 0.0, 0.0], &[10.0, -1.0], 8.0), &[6.0, -1.0, 0.0, 0.0], 1e-15);

    let ln3 = 3.0f64.ln(); // sigmoid(ln 3) = 3/4
    close(&gated(&[ln3, -ln3, 2.0, 8.0], Gate::Silu, 2), &[1.5 * ln3, -2.0 * ln3], 1e-15);
    close(&gated(&[3.0, -3.0, 2.0, 8.0], Gate::Relu2, 2), &[18.0, 0.0], 0.0);

    // One head of width 2, two tokens; the scores of the second are 0 and ln 3 after the 1/sqrt(2).
    let config = ModelConfig { heads: 1, kv_heads: 1, dim: 2, ..ModelConfig::default() };
    let qkv = [5.0, 5.0, 0.0, 4.0, 1.0, 2.0, 2f64.sqrt(), 0.0, ln3, 0.0, 5.0, -2.0];
    let (p, out) = attention(&qkv, &config, 1, 2);
    close(&p, &[1.0, 0.0, 0.25, 0.75], 1e-15);
    close(&out, &[1.0, 2.0, 4.0, -1.0], 1e-15);
}

/// Both arithmetics round per token, so earlier logits keep every bit.
#[test]
fn later_tokens_and_other_sequences_do_not_change_earlier_logits() {
    for seed in 0..40 {
        let case = Case::random(seed);
        for arithmetic in [Arithmetic::Exact, Arithmetic::TERNARY] {
            let logits = case.logits(&case.tokens, arithmetic);
            for changed in 0..case.tokens.len() {
                let mut tokens = case.tokens.clone();
                tokens[changed] = (tokens[changed] + 1) % case.vocab as u32;
                let other = case.logits(&tokens, arithmetic);
                for t in 0..tokens.len() {
                    let row = t * case.vocab..(t + 1) * case.vocab;
                    let same_sequence = t / case.time == changed / case.time;
                    if !same_sequence || t < changed {
                        assert_eq!(logits[row.clone()], other[row], "token {t} saw token {changed}");
                    } else if t == changed && arithmetic == Arithmetic::Exact {
                        assert_ne!(logits[row.clone()], other[row], "token {t} did not see itself");
                    }
                }
            }
        }
    }
}

#[test]
fn sequences_of_a_batch_equal_the_sequences_alone() {
    for seed in 0..40 {
        let case = Case::random(seed);
        let together = case.logits(&case.tokens, Arithmetic::TERNARY);
        let mut alone = Vec::new();
        for tokens in case.tokens.chunks(case.time) {
            alone.extend(case.reference().logits(&case.params, tokens, 1, case.time, Arithmetic::TERNARY));
        }
        assert_eq!(together, alone);
    }
}

/// Scores depend on the distance between positions, values do not turn, and the pairs are the halves.
#[test]
fn rope_is_relative() {
    let mut random = Random(7);
    let config = ModelConfig { dim: 12, heads: 2, kv_heads: 1, rope_theta: 100.0, ..ModelConfig::default() };
    let (time, hd, row) = (9, config.head_dim(), config.qkv_rows());
    let token = random.normals(row);
    let mut qkv = token.repeat(2 * time); // two sequences of the same token
    rope(&mut qkv, &config, time);
    let q = |t: usize, h: usize| &qkv[t * row + h * hd..][..hd];
    let k = |t: usize| &qkv[t * row + 2 * hd..][..hd];
    for h in 0..2 {
        for t in 0..time {
            for s in 0..time {
                let (later, earlier) = if t >= s { (t - s, 0) } else { (0, s - t) };
                let (found, expected) = (dot(q(t, h), k(s)), dot(q(later, h), k(earlier)));
                close(&[found], &[expected], 1e-13);
            }
        }
        assert!((dot(q(1, h), k(0)) - dot(q(0, h), k(0))).abs() > 1e-3);
    }
    assert_eq!(qkv[..row], token, "position 0 does not turn");
    assert_eq!(qkv[time * row..][..row], token, "each sequence starts at position 0");
    for t in 0..2 * time {
        assert_eq!(qkv[t * row + 3 * hd..][..hd], token[3 * hd..]);
    }
    // Position 2, pair i = 1 of a head of 6: entries 1 and 4 turn by 2·100^(-2/6).
    let (sin, cos) = (2.0 * 100f64.powf(-1.0 / 3.0)).sin_cos();
    close(&[q(2, 1)[1]], &[token[hd + 1] * cos - token[hd + 4] * sin], 1e-14);
    close(&[q(2, 1)[4]], &[token[hd + 1] * sin + token[hd + 4] * cos], 1e-14);
}

/// Grouped queries are plain attention whose key and value rows are repeated.
#[test]
fn grouped_heads_equal_repeated_heads() {
    let mut random = Random(11);
    let grouped = ModelConfig {
        dim: 24,
        heads: 6,
        kv_heads: 2,
        precision: Precision::F32,
        ffn: 5,
        layers: 2,
        ..ModelConfig::default()
    };
    let full = ModelConfig { kv_heads: 6, ..grouped.clone() };
    let case = Case::new(grouped, 7, 2, 4, &mut random);
    let mut twin = Case::new(full, 7, 2, 4, &mut random);
    twin.params.clone_from(&case.params);
    let (dim, hd) = (24, 4);
    for (spec, values) in case.layout.specs.iter().zip(&mut twin.params) {
        if spec.name.ends_with(".qkv") {
            let q = values[..6 * hd * dim].to_vec();
            let kv = values[6 * hd * dim..].chunks(hd * dim).flat_map(|head| head.repeat(3));
            *values = q.into_iter().chain(kv).collect();
        }
    }
    let expected = case.logits(&case.tokens, Arithmetic::Exact);
    assert_eq!(twin.logits(&case.tokens, Arithmetic::Exact), expected);
}

#[test]
fn tied_gradient_is_the_sum_of_embedding_and_head() {
    for arithmetic in [Arithmetic::Exact, Arithmetic::TERNARY] {
        for seed in 0..40 {
            let tied = Case::random(seed);
            if !tied.config.tied {
                continue;
            }
            let config = ModelConfig { tied: false, ..tied.config.clone() };
            let mut untied = Case::new(config, tied.vocab, tied.batch, tied.time, &mut Random(seed));
            untied.params = tied.params.clone();
            untied.params.push(tied.params[tied.layout.embedding].clone());
            (untied.tokens, untied.targets) = (tied.tokens.clone(), tied.targets.clone());
            let (together, mut apart) = (tied.gradients(arithmetic), untied.gradients(arithmetic));
            let head = apart.pop().unwrap();
            for (e, h) in apart[untied.layout.embedding].iter_mut().zip(head) {
                *e += h;
            }
            for (t, a) in together.iter().zip(&apart) {
                close(t, a, 1e-13);
            }
        }
    }
}

#[test]
fn rounding_by_hand() {
    // Mean |w| = 1.15625, a number of f16; the dead zone ends at exactly 0.578125.
    let w = [0.578125, -0.578126, 2.0, -1.468749];
    let matrix = Matrix::new(&w, Arithmetic::TERNARY);
    assert_eq!((matrix.scale, matrix.codes), (1.15625, vec![0.0, -1.0, 1.0, -1.0]));
    // Mean 0.1 is rounded to the nearest f16, 1638·2⁻¹⁴.
    assert_eq!(Matrix::new(&[0.1], Arithmetic::TERNARY).scale, 1638.0 / 16384.0);
    let zero = Matrix::new(&[0.0, -0.0], Arithmetic::TERNARY);
    assert_eq!((zero.scale, zero.codes), (0.0, vec![0.0, 0.0]));

    // Half to even, a scale per row, zeros stay zeros.
    let x = [254.0, 1.0, 3.0, -5.0, 0.0, 0.0, 0.0, 0.0];
    let rows = Rows::rounded(&x, 2, 127.0);
    assert_eq!(rows.scales, [2.0, 0.0]);
    assert_eq!(rows.codes, [127.0, 0.0, 2.0, -2.0, 0.0, 0.0, 0.0, 0.0]);
}

/// What each linear layer is given: int8 rows of the norm in front of it, or of its raw input without
/// sub-norms.
#[test]
fn layers_see_rounded_norms() {
    for seed in 0..40 {
        let case = Case::random(seed);
        let n = case.tokens.len();
        let normed = |x: &[f64], name: &str| {
            let gain = case.layout.specs.iter().position(|spec| spec.name == name);
            gain.map_or(x.to_vec(), |id| norm(x, &case.params[id], f64::from(case.config.norm_eps)))
        };
        let trace = case.trace(&case.params, Arithmetic::TERNARY);
        for (i, block) in trace.blocks.iter().enumerate() {
            for (input, x, name) in [
                (&block.qkv_in, &block.x, "attn_norm"),
                (&block.o_in, &block.attention, "attn_sub_norm"),
                (&block.gate_up_in, &block.middle, "ffn_norm"),
                (&block.down_in, &block.gated, "ffn_sub_norm"),
            ] {
                let expected = Rows::rounded(&normed(x, &format!("layers.{i}.{name}")), n, 127.0);
                assert_eq!(*input, expected, "input behind layers.{i}.{name}");
            }
        }
        assert_eq!(trace.y, normed(&trace.x, "norm"));
    }
}

/// Backward roundings of one layer with two tokens, three inputs and two outputs, number by number.
#[test]
fn rounded_gradients_by_hand() {
    let x = Rows { codes: vec![127.0, 3.0, -2.0, 1.0, -127.0, 5.0], scales: vec![0.5, 0.25] };
    let w = Matrix { codes: vec![1.0, 0.0, -1.0, 1.0, 1.0, 0.0], scale: 0.75 };
    // Token 0: scale 2, codes (127, 1). Token 1: scale 1, codes (0, -127): 0.4 is rounded away.
    let dy = [254.0, 2.9, 0.4, -127.0];
    let mut dw = vec![100.0; 6];
    let dx = linear_backward(&dy, &x, &w, Arithmetic::TERNARY, &mut dw);
    close(
        &dx,
        &[0.75 * 2.0 * 128.0, 0.75 * 2.0, 0.75 * 2.0 * -127.0, 0.75 * -127.0, 0.75 * -127.0, 0.0],
        1e-14,
    );
    // Output 0: dy·a = (127, 0.1), scale 127/32767, codes (32767, round(25.8) = 26).
    // Output 1: dy·a = (1.45, -31.75), scale 31.75/32767, codes (round(1496.4) = 1496, -32767).
    let (s0, s1) = (127.0 / 32767.0, 31.75 / 32767.0);
    let mut expected = Vec::new();
    for c in 0..3 {
        expected.push(100.0 + s0 * (32767.0 * x.codes[c] + 26.0 * x.codes[3 + c]));
    }
    for c in 0..3 {
        expected.push(100.0 + s1 * (1496.0 * x.codes[c] - 32767.0 * x.codes[3 + c]));
    }
    close(&dw, &expected, 1e-13);
}

/// Straight through: with codes and rounding offsets held constant a layer is
/// `y(x, w) = (x + δx)·(w + δw)ᵀ`, and without backward rounding its gradients are the derivatives of that.
#[test]
fn layer_gradients_are_differences_of_the_surrogate() {
    let mut random = Random(13);
    let mut worst = 0.0f64;
    for _ in 0..50 {
        let (n, cols, rows) = (random.range(1, 5), random.range(1, 9), random.range(1, 9));
        let (x, w, dy) = (random.normals(n * cols), random.normals(rows * cols), random.normals(n * rows));
        let (input, matrix) = (Rows::input(&x, n, FORWARD_TERNARY), Matrix::new(&w, FORWARD_TERNARY));
        let offset_x: Vec<f64> =
            (0..n * cols).map(|i| input.scales[i / cols] * input.codes[i] - x[i]).collect();
        let offset_w: Vec<f64> = matrix.codes.iter().zip(&w).map(|(q, w)| matrix.scale * q - w).collect();
        let functional = |x: &[f64], w: &[f64]| {
            let x: Vec<f64> = x.iter().zip(&offset_x).map(|(x, o)| x + o).collect();
            let w: Vec<f64> = w.iter().zip(&offset_w).map(|(w, o)| w + o).collect();
            dot(&linear(&Rows::plain(&x, n), &Matrix::new(&w, Arithmetic::Exact)), &dy)
        };
        let value = dot(&linear(&input, &matrix), &dy);
        assert!((value - functional(&x, &w)).abs() <= 1e-12 * length(&dy));

        let mut dw = vec![0.0; w.len()];
        let dx = linear_backward(&dy, &input, &matrix, FORWARD_TERNARY, &mut dw);
        for (gradient, of_w) in [(&dw, true), (&dx, false)] {
            for at in 0..gradient.len() {
                let moved = |step: f64| {
                    let (mut x, mut w) = (x.clone(), w.clone());
                    *(if of_w { &mut w[at] } else { &mut x[at] }) += step;
                    functional(&x, &w)
                };
                // Linear in each, so one wide step has no truncation error.
                let difference = (moved(1.0) - moved(-1.0)) / 2.0;
                let size = gradient[at].abs().max(difference.abs()).max(1e-3 * length(gradient));
                if size > 0.0 {
                    worst = worst.max((gradient[at] - difference).abs() / size);
                }
            }
        }
    }
    assert!(worst <= 1e-11, "{worst:e}");
}

/// Without roundings a ternary model is the exact model at the weights `s·q`, gradients included.
#[test]
fn ternary_without_roundings_is_exact_at_the_ternary_weights() {
    for seed in 0..40 {
        let mut case = Case::random(seed);
        let ternary = case.gradients(PLAIN_TERNARY);
        for (spec, values) in case.layout.specs.iter().zip(&mut case.params) {
            if spec.kind == TensorKind::Matrix {
                let matrix = Matrix::new(values, PLAIN_TERNARY);
                *values = matrix.codes.iter().map(|q| matrix.scale * q).collect();
            }
        }
        for (exact, ternary) in case.gradients(Arithmetic::Exact).iter().zip(&ternary) {
            let difference: Vec<f64> = exact.iter().zip(ternary).map(|(e, t)| e - t).collect();
            assert!(
                length(&difference) <= 1e-10 * length(exact),
                "{} {}",
                length(&difference),
                length(exact)
            );
        }
    }
}

/// Each rounding moves a layer by at most half a step per number, and moves it at all.
#[test]
fn roundings_stay_within_half_a_step() {
    let mut random = Random(17);
    let (n, cols, rows) = (6, 16, 12);
    for _ in 0..20 {
        let (x, w, dy) = (random.normals(n * cols), random.normals(rows * cols), random.normals(n * rows));
        let input = Rows::input(&x, n, Arithmetic::TERNARY);
        for i in 0..n * cols {
            let (code, scale) = (input.codes[i], input.scales[i / cols]);
            assert!(code.fract() == 0.0 && code.abs() <= 127.0);
            assert!((scale * code - x[i]).abs() <= scale * 0.5000001);
        }
        let matrix = Matrix::new(&w, Arithmetic::TERNARY);
        let (mut plain_dw, mut dw) = (vec![0.0; w.len()], vec![0.0; w.len()]);
        let plain_dx = linear_backward(&dy, &input, &matrix, FORWARD_TERNARY, &mut plain_dw);
        let dx = linear_backward(&dy, &input, &matrix, Arithmetic::TERNARY, &mut dw);
        assert!(dx != plain_dx && dw != plain_dw);
        for t in 0..n {
            let step = dy[t * rows..][..rows].iter().fold(0.0, |m: f64, v| m.max(v.abs())) / 127.0;
            for c in 0..cols {
                let codes: f64 = (0..rows).map(|r| matrix.codes[r * cols + c].abs()).sum();
                let moved = (dx[t * cols + c] - plain_dx[t * cols + c]).abs();
                assert!(moved <= 0.5000001 * step * matrix.scale * codes);
            }
        }
        for r in 0..rows {
            let step =
                (0..n).fold(0.0, |m: f64, t| m.max((dy[t * rows + r] * input.scales[t]).abs())) / 32767.0;
            for c in 0..cols {
                let codes: f64 = (0..n).map(|t| input.codes[t * cols + c].abs()).sum();
                assert!((dw[r * cols + c] - plain_dw[r * cols + c]).abs() <= 0.5000001 * step * codes);
            }
        }
    }
}

/// At a width that trains, int8 inputs and rounded gradients leave the gradients where they were.
#[test]
fn rounded_model_stays_near_the_unrounded_one() {
    for (gate, sub_norm) in [(Gate::Silu, true), (Gate::Relu2, true), (Gate::Silu, false)] {
        let config = ModelConfig {
            dim: 256,
            layers: 2,
            ffn: 256,
            kv_heads: 2,
            gate,
            sub_norm,
            ..ModelConfig::default()
        };
        let case = Case::new(config, 50, 2, 8, &mut Random(19));
        let plain = case.gradients(PLAIN_TERNARY);
        for arithmetic in [FORWARD_TERNARY, Arithmetic::TERNARY] {
            for ((spec, plain), rounded) in
                case.layout.specs.iter().zip(&plain).zip(case.gradients(arithmetic))
            {
                let cosine = dot(plain, &rounded) / length(plain) / length(&rounded);
                let ratio = length(&rounded) / length(plain);
                assert!(cosine > 0.99 && (ratio - 1.0).abs() < 0.02, "{}: {cosine} {ratio}", spec.name);
            }
        }
    }
}
