//! Operations of the optimizer: matrices in few bits, updates, and the step of a row.

use tritrain_backend::{
    ADAM_BLOCK, Adam, Admission, Apply, Average, Backend, Descent, Factored, Format, Memory, Momentum, Pace,
    Prodigy, REPORT, Sides, Stored, Stream, Weight, by_row,
};
use tritrain_gpu::{Choice, Gpu};

use crate::{Case, Found, Random, compare, get, put};

pub(crate) const FORMATS: [Format; 7] = [
    Format::Trits(1),
    Format::Trits(2),
    Format::Trits(3),
    Format::Trits(4),
    Format::Trits(5),
    Format::Int8,
    Format::Bf16,
];

/// What a matrix is stored as.
pub(crate) fn stored<B: Backend>(b: &B, packed: &B::Packed, what: &'static str) -> [Found; 2] {
    let stored = b.stored(packed);
    let bytes = stored.digits.iter().chain(&*stored.bytes).map(|byte| f32::from(*byte)).collect();
    [Found::Exact(what, bytes), Found::Exact("its steps", stored.steps.into_owned())]
}

/// The numbers of a packed matrix.
pub(crate) fn numbers<B: Backend>(b: &B, packed: &B::Packed, len: usize) -> Vec<f32> {
    let mut floats = b.floats(len);
    b.unpack(packed, &mut floats);
    get(b, &floats)
}

/// Weights of a matrix in a format, or in f32.
pub(crate) fn weight<B: Backend>(
    b: &B,
    format: Option<Format>,
    host: &[f32],
    (rows, cols): (usize, usize),
) -> Weight<B> {
    match format {
        None => Weight::Floats(put(b, host)),
        Some(format) => {
            let mut packed = b.packed(format, rows, cols, by_row(format));
            b.upload_packed(host, 2.0, &mut packed);
            Weight::Packed(packed)
        }
    }
}

/// Gradients rounded by chance, and counted.
#[derive(Debug)]
struct Rounds {
    format: Format,
    rows: usize,
    cols: usize,
    seed: u64,
}

impl Case for Rounds {
    fn run<B: Backend>(&self, b: &B) -> Vec<Found> {
        let Rounds { format, rows, cols, seed } = *self;
        let mut random = Random::new(seed);
        let mut host = random.normal(rows * cols);
        // A row of zeros, which has no step at first.
        host[..cols].fill(0.0);
        let (zero, first) = (put(b, &host), put(b, &random.normal(rows * cols)));
        let mut to = b.packed(format, rows, cols, true);
        let mut found = Vec::from(stored(b, &to, "zeros"));
        b.round(&zero, &Stream::new(seed, 1, 1 << 35), &mut to);
        found.extend(stored(b, &to, "rounded"));
        found.push(Found::Exact("numbers", numbers(b, &to, rows * cols)));
        if format != Format::Bf16 {
            for (pass, from) in [&zero, &first, &first].into_iter().enumerate() {
                b.accumulate(from, &Stream::new(seed, 2, pass as u64), pass == 0, &mut to);
                // More passes than one digit counts.
                if pass > 0 && format == Format::Trits(1) {
                    break;
                }
                found.extend(stored(b, &to, "counted"));
            }
        }
        let mut latent = b.packed(format, rows, cols, by_row(format));
        b.upload_packed(&host, 3.0, &mut latent);
        found.extend(stored(b, &latent, "uploaded"));
        let mut back = vec![0.0; rows * cols];
        b.download_packed(&latent, &mut back);
        found.push(Found::Exact("downloaded", back));
        found
    }
}

#[test]
fn rounding_is_the_same() {
    for format in FORMATS {
        compare(&Rounds { format, rows: 1, cols: 1, seed: 1 });
        for seed in 0..40 {
            let mut random = Random::new(seed);
            compare(&Rounds { format, rows: random.size(9), cols: random.size(900), seed });
        }
        compare(&Rounds { format, rows: 3, cols: 4100, seed: 20 });
    }
}

/// Steps of a matrix.
#[derive(Debug)]
struct Step {
    /// None is f32.
    format: Option<Format>,
    moment: Option<Format>,
    rows: usize,
    cols: usize,
    radius: f32,
    decay: f32,
    momentum: f32,
    /// Whether rows have numbers of digits of their own.
    digits: bool,
    seed: u64,
}

impl Step {
    fn new(format: Option<Format>, seed: u64) -> Step {
        let mut random = Random::new(seed);
        let (rows, cols) = (random.size(12), random.size(700));
        Step {
            format,
            moment: None,
            rows,
            cols,
            radius: f32::INFINITY,
            decay: 0.1,
            momentum: 0.9,
            digits: false,
            seed,
        }
    }
}

impl Case for Step {
    fn run<B: Backend>(&self, b: &B) -> Vec<Found> {
        let Step { format, moment, rows, cols, radius, decay, momentum, digits, seed } = *self;
        let mut random = Random::new(seed);
        let len = rows * cols;
        let host: Vec<f32> = random.normal(len).iter().map(|w| w * 0.05).collect();
        let mut w = weight(b, format, &host, (rows, cols));
        let mut found = Vec::new();
        if let (true, Weight::Packed(w)) = (digits, &mut w) {
            // Three on average, as the format has.
            let digits: Vec<u8> = (0..rows).map(|row| [2, 3, 1][row % 3]).collect();
            found.push(Found::Close("moved", vec![b.set_digits(w, &digits) as f32]));
            found.extend(stored(b, w, "with digits of their own"));
        }
        let mut moment = moment.map(|format| b.packed(format, rows, cols, true));
        let paces = [Pace { rate: 0.05, radius }, Pace { rate: 0.01, radius: radius * 2.0 }];
        let clusters: Vec<u8> = (0..rows).map(|row| (row % 2) as u8).collect();
        let mut reports = b.floats(rows * REPORT);
        for step in 0..3 {
            let u = put(b, &random.normal(len));
            let noise = (Stream::new(seed, 0, step), Stream::new(seed, 1, step));
            let clusters = if step == 1 { &clusters[..] } else { &[] };
            let with = Descent { paces: &paces, clusters, decay, momentum, noise };
            b.descend(&mut w, &u, moment.as_mut(), &with, &mut reports);
            let host = get(b, &reports);
            let column = |at: usize| host.iter().skip(at).step_by(REPORT).copied().collect();
            for (at, what) in ["applied", "direction", "weights"].into_iter().enumerate() {
                found.push(Found::Close(what, column(at)));
            }
            for (at, what) in ["flips", "zeros", "bounded", "digits"].into_iter().enumerate() {
                found.push(Found::Exact(what, column(3 + at)));
            }
            if let Some(moment) = &moment {
                found.extend(stored(b, moment, "momentum"));
            }
        }
        match &w {
            Weight::Floats(w) => found.push(Found::Close("weights", get(b, w))),
            Weight::Packed(w) => {
                found.push(Found::Close("numbers", numbers(b, w, len)));
                if format != Some(Format::Bf16) {
                    found.extend(stored(b, w, "weights"));
                }
                let mut codes = b.ternary(rows, cols, true);
                b.ternarize_packed(w, &mut codes, Sides::Forward);
                let (forward, scale) = b.download_ternary(&codes);
                found.push(Found::Exact("codes", forward.iter().map(|code| f32::from(*code)).collect()));
                found.push(Found::Exact("scale", vec![scale]));
                b.ternarize_packed(w, &mut codes, Sides::Backward);
                let (dy, mut dy_rows) = (put(b, &random.normal(3 * rows)), b.rows(3, rows));
                b.quantize_rows(&dy, &mut dy_rows);
                let mut dx = b.floats(3 * cols);
                b.ternary_input_gradient(&dy_rows, &codes, &mut dx);
                found.push(Found::Exact("gradient of the input", get(b, &dx)));
            }
        }
        found
    }
}

#[test]
fn steps_are_the_same() {
    for format in FORMATS.map(Some).into_iter().chain([None]) {
        compare(&Step { rows: 1, cols: 1, ..Step::new(format, 1) });
        for seed in 100..130 {
            compare(&Step::new(format, seed));
        }
        compare(&Step { rows: 3, cols: 4100, ..Step::new(format, 9) });
        // More blocks of sums than a cube has, and more rows than it has units.
        compare(&Step { rows: 140, cols: 1000, ..Step::new(format, 10) });
    }
}

#[test]
fn bounded_steps_are_the_same() {
    for format in FORMATS.map(Some).into_iter().chain([None]) {
        for (at, radius) in [0.02, 0.005, 1e-4, 0.0].into_iter().cycle().take(24).enumerate() {
            compare(&Step { radius, ..Step::new(format, 200 + at as u64) });
        }
    }
}

#[test]
fn momentum_of_steps_is_the_same() {
    for format in [Some(Format::Trits(3)), Some(Format::Int8), Some(Format::Bf16), None] {
        for (seed, moment) in FORMATS.into_iter().enumerate() {
            let step = Step::new(format, 20 + seed as u64);
            compare(&Step { moment: Some(moment), radius: 0.1, ..step });
            let step = Step::new(format, 30 + seed as u64);
            compare(&Step { moment: Some(moment), momentum: 0.0, ..step });
        }
    }
}

#[test]
fn rows_of_different_digits_move_the_same() {
    for seed in 40..70 {
        compare(&Step { digits: true, radius: 0.05, ..Step::new(Some(Format::Trits(3)), seed) });
    }
}

/// Updates of a matrix, each twice.
#[derive(Debug)]
struct Updates {
    rows: usize,
    cols: usize,
    seed: u64,
}

impl Updates {
    /// An update with two tensors of state.
    fn with_state<B: Backend>(
        &self,
        b: &B,
        update: impl Fn(&mut B::Floats, &mut B::Floats, &mut B::Floats, u64),
    ) -> [Found; 3] {
        let (mut random, len) = (Random::new(self.seed), self.rows * self.cols);
        let (mut one, mut two) = (b.floats(len), b.floats(len));
        let mut g = b.floats(len);
        for step in 1..3 {
            g = put(b, &random.normal(len));
            update(&mut g, &mut one, &mut two, step);
        }
        [
            Found::Close("update", get(b, &g)),
            Found::Close("first", get(b, &one)),
            Found::Close("second", get(b, &two)),
        ]
    }
}

impl Case for Updates {
    fn run<B: Backend>(&self, b: &B) -> Vec<Found> {
        let Updates { rows, cols, seed } = *self;
        let (mut random, len) = (Random::new(seed + 100), rows * cols);
        let adam = |step| Adam { beta1: 0.9, beta2: 0.98, step, eps: 1e-8 };
        let mut found = Vec::from(self.with_state(b, |g, m, v, step| b.adam(g, m, v, adam(step))));
        for signs in [false, true] {
            let with = Momentum { kept: 0.95, seen: 0.9, signs };
            found.extend(self.with_state(b, |g, m, _, _| b.momentum(g, m, with)));
        }
        found.extend(self.with_state(b, |g, w, x, _| b.average(w, g, x, Average { share: 0.2, kept: 0.9 })));
        found.extend(self.with_state(b, |g, w, _, _| b.apply(w, g, Apply { rate: 0.1, decay: 0.3 })));
        for averaged in [false, true] {
            let (mut row, mut col) = (b.floats(rows), b.floats(cols));
            let mut momentum = b.floats(if averaged { len } else { 0 });
            for _ in 0..2 {
                let mut g = put(b, &random.normal(len));
                let with = Factored { beta2: 0.9, momentum: 0.8 };
                b.factored(&mut g, &mut row, &mut col, &mut momentum, with);
                found.push(Found::Close("factored", get(b, &g)));
            }
            found.push(Found::Close("rows", get(b, &row)));
            found.push(Found::Close("columns", get(b, &col)));
        }
        let mut state = [0; 4].map(|_| b.floats(len));
        state[3] = put(b, &random.normal(len));
        let mut sums = b.floats(4);
        for _ in 0..2 {
            let (mut g, w) = (put(b, &random.normal(len)), put(b, &random.normal(len)));
            let with = Prodigy { beta1: 0.9, beta2: 0.99, distance: 1e-3, weight: 0.5, eps: 1e-8 };
            b.prodigy(&mut g, &w, &mut state, with, (&mut sums, 1));
            found.push(Found::Close("prodigy", get(b, &g)));
            found.push(Found::Close("its sums", get(b, &sums)));
        }
        found.extend(state.iter().map(|state| Found::Close("its state", get(b, state))));
        found
    }
}

#[test]
fn updates_are_the_same() {
    compare(&Updates { rows: 1, cols: 1, seed: 1 });
    for seed in 0..40 {
        let mut random = Random::new(seed);
        compare(&Updates { rows: random.size(80), cols: random.size(300), seed });
    }
}

/// Updates whose moments are in few bits.
#[derive(Debug)]
struct Few {
    rows: usize,
    cols: usize,
    seed: u64,
}

impl Case for Few {
    fn run<B: Backend>(&self, b: &B) -> Vec<Found> {
        let Few { rows, cols, seed } = *self;
        let (mut random, len) = (Random::new(seed), rows * cols);
        let mut found = Vec::new();
        let blocks = len.div_ceil(ADAM_BLOCK);
        let [mut m, mut v] = [0; 2].map(|_| b.packed(Format::Int8, blocks, ADAM_BLOCK, true));
        for step in 1..4 {
            let mut g = put(b, &random.normal(len));
            let with = Adam { beta1: 0.9, beta2: 0.98, step, eps: 1e-8 };
            b.adam8(&mut g, &mut m, &mut v, with, &Stream::new(seed, 3, step));
            found.push(Found::Close("adam8", get(b, &g)));
            found.extend(stored(b, &m, "first moment"));
            found.extend(stored(b, &v, "second moment"));
        }
        for format in FORMATS {
            let mut m = b.packed(format, rows, cols, true);
            for step in 1..3 {
                let mut g = put(b, &random.normal(len));
                let with = Momentum { kept: 0.95, seen: 0.9, signs: step == 2 };
                b.momentum_packed(&mut g, &mut m, with, &Stream::new(seed, 4, step));
                found.push(Found::Close("momentum", get(b, &g)));
                found.extend(stored(b, &m, "mean"));
            }
        }
        found
    }
}

#[test]
fn moments_in_few_bits_are_the_same() {
    compare(&Few { rows: 1, cols: 1, seed: 1 });
    for seed in 0..40 {
        let mut random = Random::new(seed);
        compare(&Few { rows: random.size(9), cols: random.size(600), seed });
    }
}

/// Orthogonal directions.
#[derive(Debug)]
struct Orthogonal {
    rows: usize,
    cols: usize,
    seed: u64,
}

impl Case for Orthogonal {
    fn run<B: Backend>(&self, b: &B) -> Vec<Found> {
        let mut x = put(b, &Random::new(self.seed).normal(self.rows * self.cols));
        b.orthogonalize(&mut x, self.rows, 0.5);
        vec![Found::Close("orthogonal", get(b, &x))]
    }
}

#[test]
fn orthogonal_directions_are_the_same() {
    compare(&Orthogonal { rows: 1, cols: 1, seed: 1 });
    for (rows, cols) in [(1, 40), (40, 1), (20, 33), (70, 35), (33, 130), (192, 50), (150, 70)] {
        compare(&Orthogonal { rows, cols, seed: 2 });
    }
}

/// A matrix with numbers that are not finite: tensors stay as they are, scales are no numbers.
#[derive(Debug)]
struct NotFinite {
    format: Option<Format>,
    bad: f32,
}

impl Case for NotFinite {
    fn run<B: Backend>(&self, b: &B) -> Vec<Found> {
        let NotFinite { format, bad } = *self;
        let (rows, cols) = (4, 300);
        let mut random = Random::new(7);
        let host = random.normal(rows * cols);
        let mut direction = random.normal(rows * cols);
        direction[cols + 5] = bad;
        let u = put(b, &direction);
        let mut w = weight(b, format, &host, (rows, cols));
        let noise = (Stream::new(7, 0, 0), Stream::new(7, 1, 0));
        let paces = [Pace { rate: 0.05, radius: 0.5 }];
        let with = Descent { paces: &paces, clusters: &[], decay: 0.1, momentum: 0.9, noise };
        let mut reports = b.floats(rows * REPORT);
        b.descend(&mut w, &u, None, &with, &mut reports);
        let reports = get(b, &reports);
        let column = |at: usize| reports.iter().skip(at).step_by(REPORT).copied().collect();
        let numbers = match &w {
            Weight::Floats(w) => get(b, w),
            Weight::Packed(w) => numbers(b, w, rows * cols),
        };
        let mut mean = b.packed(Format::Trits(3), rows, cols, true);
        b.round(&u, &noise.0, &mut mean);
        vec![
            Found::Exact("flips", column(3)),
            Found::Exact("zeros", column(4)),
            Found::Exact("bounded", column(5)),
            Found::Close("numbers", numbers),
            Found::Exact("rounded", b.stored(&mean).bytes.iter().map(|byte| f32::from(*byte)).collect()),
        ]
    }
}

#[test]
fn what_is_not_finite_goes_the_same_way() {
    for format in [Some(Format::Trits(3)), Some(Format::Int8), Some(Format::Bf16), None] {
        for bad in [f32::NAN, f32::INFINITY] {
            compare(&NotFinite { format, bad });
        }
    }
}

/// The scale of rows of levels whose sums are far apart: it is rounded up by a ten-millionth of their sum.
#[derive(Debug)]
struct Scale;

impl Case for Scale {
    fn run<B: Backend>(&self, b: &B) -> Vec<Found> {
        let (rows, cols) = (102, 4096);
        // The mean 40.515625 is halfway between two fp16 numbers, the lower one even: 1 more in the sum decides.
        let total = (rows * cols) as f64 * 40.515_625 + 1.0;
        let of_others = 0.5 * (rows - 2) as f64;
        let mut bytes = vec![0u8; rows * cols];
        let (first, rest) = bytes.split_at_mut(cols);
        let (second, rest) = rest.split_at_mut(cols);
        first[..165].fill(100);
        let mut left = (total - of_others - 16_500.0 * 1024.0) as usize;
        for byte in second {
            *byte = left.min(127) as u8;
            left -= left.min(127);
        }
        assert_eq!(left, 0);
        for row in rest.chunks_exact_mut(cols) {
            row[..4].fill(64);
        }
        let mut steps = vec![1.0 / 512.0; rows];
        (steps[0], steps[1]) = (1024.0, 1.0);
        let from =
            Stored { format: Format::Int8, bytes: bytes.into(), digits: [][..].into(), steps: steps.into() };
        let mut latent = b.packed(Format::Int8, rows, cols, true);
        b.restore(&from, &mut latent).unwrap();
        let mut codes = b.ternary(rows, cols, false);
        b.ternarize_packed(&latent, &mut codes, Sides::Forward);
        let (_, scale) = b.download_ternary(&codes);
        assert_eq!(scale, 40.531_25);
        vec![Found::Exact("scale", vec![scale])]
    }
}

#[test]
fn scales_of_packed_matrices_are_exact() {
    compare(&Scale);
}

#[test]
fn what_cannot_be_restored_is_refused_in_the_same_words() {
    fn refused<B: Backend>(b: &B) -> [String; 3] {
        let mut to = b.packed(Format::Trits(2), 3, 10, false);
        let Stored { format, bytes, digits, steps } = b.stored(&to);
        let (bytes, digits, steps) = (bytes.into_owned(), digits.into_owned(), steps.into_owned());
        let whole = Stored { format, bytes: bytes.into(), digits: digits.into(), steps: steps.into() };
        let short = Stored { bytes: whole.bytes[1..].to_vec().into(), ..whole.clone() };
        let mut bytes = whole.bytes.to_vec();
        bytes[2] = 1;
        let wrong = Stored { bytes: bytes.into(), ..whole.clone() };
        let other = Stored { format: Format::Int8, ..whole.clone() };
        let errors = [short, wrong, other].map(|stored| b.restore(&stored, &mut to).unwrap_err());
        assert_eq!(b.stored(&to), whole, "it is as it was");
        errors
    }
    assert_eq!(refused(crate::gpu()), refused(crate::cpu()));
}

#[test]
fn a_step_of_the_optimizer_waits_for_nothing() {
    let gpu = Gpu::new(Choice::Software).unwrap();
    let (rows, cols) = (5, 300);
    let host = Random::new(1).normal(rows * cols);
    let noise = Stream::new(1, 2, 3);
    for format in FORMATS.map(Some).into_iter().chain([None]) {
        let mut w = weight(&gpu, format, &host, (rows, cols));
        let [mut mean, mut kept] = [0; 2].map(|_| gpu.packed(Format::Trits(2), rows, cols, true));
        let (mut g, mut reports) = (put(&gpu, &host), gpu.floats(rows * REPORT));
        let (statistics, mut gates) = (gpu.floats(3), gpu.floats(2));
        let before = gpu.waits();
        let with = Admission { loss: 0, squares: 2, share: 1.0, alone: true, tensors: 0..1 };
        gpu.admit(&statistics, &gates.clone(), &with, &mut gates);
        gpu.approve((&statistics, 1), 1.0, 0..1, &mut gates);
        gpu.accumulate(&g, &noise, true, &mut kept);
        gpu.round(&g, &noise, &mut kept);
        gpu.unpack(&kept, &mut g);
        gpu.momentum_packed(&mut g, &mut mean, Momentum { kept: 0.9, seen: 0.8, signs: false }, &noise);
        gpu.orthogonalize(&mut g, rows, 0.5);
        let paces = [Pace { rate: 0.01, radius: 0.1 }];
        let noise = (noise, noise);
        let with = Descent { paces: &paces, clusters: &[], decay: 0.1, momentum: 0.9, noise };
        gpu.when(&gates, 1, |gpu| gpu.descend(&mut w, &g, Some(&mut mean), &with, &mut reports));
        if let Weight::Packed(w) = &w {
            let mut codes = gpu.ternary(rows, cols, true);
            gpu.ternarize_packed(w, &mut codes, Sides::Forward);
            gpu.ternarize_packed(w, &mut codes, Sides::Backward);
        }
        assert_eq!(gpu.waits(), before, "{format:?}");
    }
}
