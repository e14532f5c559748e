//! Guards that decide on the device, and what is done behind a gate.

use tritrain_backend::{
    ADAM_BLOCK, Adam, Admission, Apply, Average, Backend, Descent, Factored, Format, Momentum, Pace, Prodigy,
    REPORT, Stream, Weight,
};

use crate::{
    Case, Found, Random, compare, get,
    optimizer::{FORMATS, numbers, stored, weight},
    put,
};

/// What guards make of the statistics of a step.
#[derive(Debug)]
struct Guards {
    tensors: usize,
    alone: bool,
    seed: u64,
}

impl Case for Guards {
    fn run<B: Backend>(&self, b: &B) -> Vec<Found> {
        let Guards { tensors, alone, seed } = *self;
        let mut random = Random::new(seed);
        let mut statistics = random.normal(2 + tensors);
        statistics.iter_mut().for_each(|square| *square *= *square);
        if seed % 4 == 1 {
            statistics[2 + random.size(tensors) - 1] = if seed % 8 == 1 { f32::NAN } else { f32::INFINITY };
        }
        if seed % 8 == 2 {
            statistics[0] = f32::NAN;
        }
        let limits: Vec<f32> = random.normal(2 * tensors).iter().map(|limit| limit.abs()).collect();
        let (given, limits) = (put(b, &statistics), put(b, &limits));
        let mut gates = put(b, &vec![0.5; 2 * tensors]);
        let with = Admission { loss: 0, squares: 2, share: 0.5, alone, tensors: 0..tensors };
        b.admit(&given, &limits, &with, &mut gates);
        let with = Admission { share: 2.0, tensors: tensors / 2..tensors, ..with };
        b.admit(&given, &limits, &with, &mut gates);
        b.approve((&given, 1), 0.5, 0..tensors / 2, &mut gates);
        let mut found = vec![Found::Close("gates", get(b, &gates))];
        for (factor, broken) in [(0.1, f32::NAN), (0.1, f32::INFINITY), (f32::MAX, 9.0)] {
            statistics[1] = broken;
            b.approve((&put(b, &statistics), 1), factor, 0..tensors, &mut gates);
            found.push(Found::Exact("of nothing", get(b, &gates)[tensors..].to_vec()));
        }
        found
    }
}

#[test]
fn guards_decide_the_same() {
    for alone in [false, true] {
        compare(&Guards { tensors: 1, alone, seed: 3 });
        compare(&Guards { tensors: 300, alone, seed: 4 });
        for seed in 0..32 {
            compare(&Guards { tensors: Random::new(seed).size(20), alone, seed });
        }
    }
}

/// Everything that an optimizer keeps, after every operation that moves it, behind a gate that is open or closed: the
/// processor then does none of them.
#[derive(Debug)]
struct Gated {
    open: bool,
}

impl Case for Gated {
    fn run<B: Backend>(&self, b: &B) -> Vec<Found> {
        let (rows, cols) = (3, 300);
        let (len, blocks): (usize, usize) = (rows * cols, usize::div_ceil(rows * cols, ADAM_BLOCK));
        let some = |seed: u64, len: usize| -> Vec<f32> {
            Random::new(seed).normal(len).iter().map(|x| x.abs()).collect()
        };
        let new = |seed: u64| put(b, &some(seed, len));
        let noise = Stream::new(1, 2, 3);
        let mut floats: Vec<B::Floats> = (0..8).map(new).collect();
        let mut factors = [put(b, &some(10, rows)), put(b, &some(11, cols))];
        let mut prodigal = [12, 13, 14, 15].map(new);
        let mut sums = put(b, &some(16, 5));
        let mut packed = [17, 18].map(|seed| {
            let mut levels = b.packed(Format::Int8, blocks, ADAM_BLOCK, true);
            let mut padded = some(seed, len);
            padded.resize(blocks * ADAM_BLOCK, 0.0);
            b.round(&put(b, &padded), &noise, &mut levels);
            levels
        });
        let mut moments: Vec<_> = FORMATS
            .iter()
            .map(|format| {
                let mut moment = b.packed(*format, rows, cols, true);
                b.round(&new(19), &noise, &mut moment);
                moment
            })
            .collect();
        let mut weights: Vec<_> = FORMATS
            .map(Some)
            .into_iter()
            .chain([None])
            .map(|format| weight(b, format, &some(20, len), (rows, cols)))
            .collect();
        let gates = put(b, &[0.0, 0.5]);
        let at = usize::from(self.open);
        let adam = Adam { beta1: 0.9, beta2: 0.98, step: 2, eps: 1e-8 };
        let [m, v, mean, average, point, free, kept, moved] = &mut floats[..] else { unreachable!() };
        b.when_scaled(&gates, at, &mut new(30), |b, g| b.adam(g, m, v, adam));
        let with = Momentum { kept: 0.95, seen: 0.9, signs: false };
        b.when_scaled(&gates, at, &mut new(31), |b, g| b.momentum(g, mean, with));
        let [row, col] = &mut factors;
        let factored = Factored { beta2: 0.9, momentum: 0.8 };
        b.when_scaled(&gates, at, &mut new(32), |b, g| b.factored(g, row, col, kept, factored));
        let prodigy = Prodigy { beta1: 0.9, beta2: 0.99, distance: 1e-3, weight: 0.5, eps: 1e-8 };
        b.when_scaled(&gates, at, &mut new(33), |b, g| {
            b.prodigy(g, &new(34), &mut prodigal, prodigy, (&mut sums, 0));
        });
        let [m, v] = &mut packed;
        b.when_scaled(&gates, at, &mut new(35), |b, g| b.adam8(g, m, v, adam, &noise));
        for moment in &mut moments {
            b.when_scaled(&gates, at, &mut new(36), |b, g| b.momentum_packed(g, moment, with, &noise));
        }
        // Of steps, gates are nothing but open or closed.
        let gates = put(b, &[0.0, 1.0]);
        b.when(&gates, at, |b| {
            let g = new(37);
            b.average(average, point, free, Average { share: 0.2, kept: 0.9 });
            b.apply(moved, &g, Apply { rate: 0.1, decay: 0.3 });
            b.add_sum(&g, &mut sums, 2);
            b.add_sum_squares(&g, &mut sums, 3);
            b.add_dot(&g, &new(38), &mut sums, 4);
            let paces = [Pace { rate: 0.05, radius: 0.5 }];
            for (weight, moment) in weights.iter_mut().zip(moments.iter_mut().map(Some).chain([None])) {
                let noise = (noise, noise);
                let with = Descent { paces: &paces, clusters: &[], decay: 0.1, momentum: 0.9, noise };
                b.descend(weight, &g, moment, &with, &mut b.floats(rows * REPORT));
            }
        });
        let kept = floats.iter().chain(&factors).chain(&prodigal).chain([&sums]).map(|kept| get(b, kept));
        let kept = kept.chain(weights.iter().map(|weight| match weight {
            Weight::Floats(weight) => get(b, weight),
            Weight::Packed(weight) => numbers(b, weight, len),
        }));
        let found = |kept| if self.open { Found::Close("kept", kept) } else { Found::Exact("kept", kept) };
        let mut found: Vec<Found> = kept.map(found).collect();
        found.extend(packed.iter().chain(&moments).flat_map(|levels| stored(b, levels, "levels")));
        found
    }
}

#[test]
fn a_gate_that_is_closed_keeps_everything() {
    compare(&Gated { open: false });
    compare(&Gated { open: true });
}
