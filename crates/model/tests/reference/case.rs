//! Random models and the measures the tests share.

use tritrain_model::reference::{Arithmetic, Reference, Trace, cross_entropy};
use tritrain_model::{Gate, Layout, ModelConfig, Precision, TensorKind};

pub(crate) const PLAIN_TERNARY: Arithmetic =
    Arithmetic::Ternary { round_inputs: false, round_gradients: false };
pub(crate) const FORWARD_TERNARY: Arithmetic =
    Arithmetic::Ternary { round_inputs: true, round_gradients: false };

/// SplitMix64: enough for test points, and independent of the code under test.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From `low..=high`.
    pub(crate) fn range(&mut self, low: usize, high: usize) -> usize {
        low + (self.next() % (high - low + 1) as u64) as usize
    }

    pub(crate) fn flip(&mut self) -> bool {
        self.next() & 1 == 1
    }

    pub(crate) fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    pub(crate) fn normal(&mut self) -> f64 {
        (-2.0 * (1.0 - self.uniform()).ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }

    pub(crate) fn normals(&mut self, len: usize) -> Vec<f64> {
        (0..len).map(|_| self.normal()).collect()
    }
}

/// A model, a point in its parameter space and a batch.
pub(crate) struct Case {
    pub(crate) config: ModelConfig,
    pub(crate) layout: Layout,
    pub(crate) vocab: usize,
    pub(crate) batch: usize,
    pub(crate) time: usize,
    pub(crate) tokens: Vec<u32>,
    pub(crate) targets: Vec<u32>,
    pub(crate) params: Vec<Vec<f64>>,
}

impl Case {
    pub(crate) fn new(
        config: ModelConfig,
        vocab: usize,
        batch: usize,
        time: usize,
        random: &mut Random,
    ) -> Case {
        // The reference computes adapters beside exact matrices as well.
        ModelConfig { lora: 0, ..config.clone() }.check().expect("a configuration that fits together");
        let layout = Layout::new(&config, vocab);
        let params = layout.specs.iter().map(|spec| {
            let mut values = random.normals(spec.len());
            for v in &mut values {
                *v = match spec.kind {
                    TensorKind::Embedding => *v,
                    TensorKind::Norm => 1.0 + 0.3 * *v,
                    TensorKind::Bias => 0.3 * *v,
                    TensorKind::Matrix | TensorKind::Adapter => *v / (spec.cols as f64).sqrt(),
                };
            }
            values
        });
        let params = params.collect();
        let mut ids = || (0..batch * time).map(|_| random.range(0, vocab - 1) as u32).collect();
        let (tokens, targets) = (ids(), ids());
        Case { layout, vocab, batch, time, tokens, targets, params, config }
    }

    pub(crate) fn random(seed: u64) -> Case {
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
            qkv_bias: random.flip(),
            tied: random.flip(),
            precision: Precision::F32,
            lora: random.range(0, 2),
            rope_theta: [10.0, 100.0, 10_000.0][random.range(0, 2)],
            norm_eps: [1e-5, 1e-3, 1e-1][random.range(0, 2)],
        };
        let (vocab, batch, time) = (random.range(3, 11), random.range(1, 2), random.range(1, 6));
        Case::new(config, vocab, batch, time, &mut random)
    }

    pub(crate) fn reference(&self) -> Reference<'_> {
        Reference { config: &self.config, layout: &self.layout, vocab: self.vocab, rounding: 1.0 }
    }

    pub(crate) fn trace(&self, params: &[Vec<f64>], arithmetic: Arithmetic) -> Trace {
        self.reference().forward(params, &self.tokens, self.batch, self.time, arithmetic)
    }

    pub(crate) fn logits(&self, tokens: &[u32], arithmetic: Arithmetic) -> Vec<f64> {
        self.reference().logits(&self.params, tokens, self.batch, self.time, arithmetic)
    }

    pub(crate) fn gradients(&self, arithmetic: Arithmetic) -> Vec<Vec<f64>> {
        let (tokens, targets) = (&self.tokens, &self.targets);
        self.reference()
            .loss_and_gradients(&self.params, tokens, targets, self.batch, self.time, arithmetic)
            .1
    }

    /// The loss at `params + distance·direction` (in one tensor) and which relu² gates are open there.
    pub(crate) fn probe(&self, tensor: usize, direction: &[f64], distance: f64) -> (f64, Vec<bool>) {
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
    pub(crate) fn difference_at(&self, tensor: usize, direction: &[f64], step: f64) -> Option<f64> {
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
    pub(crate) fn difference(&self, tensor: usize, direction: &[f64]) -> Option<f64> {
        let steps = [8e-3, 2e-3, 5e-4, 1e-4, 2e-5];
        let all = steps.map(|step| self.difference_at(tensor, direction, step));
        let pairs = all.windows(2).filter_map(|pair| Some(((pair[0]? - pair[1]?).abs(), pair[1]?)));
        pairs.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, difference)| difference)
    }
}

pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub(crate) fn length(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

pub(crate) fn unit(mut a: Vec<f64>) -> Vec<f64> {
    let length = length(&a);
    for v in &mut a {
        *v /= length;
    }
    a
}

pub(crate) fn close(found: &[f64], expected: &[f64], bound: f64) {
    assert_eq!(found.len(), expected.len());
    for (at, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!((f - e).abs() <= bound * e.abs().max(1.0), "entry {at}: found {f}, expected {e}");
    }
}
