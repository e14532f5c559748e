//! What few bits keep of weights and gradients.

use serde::Serialize;
use tritrain_backend::{Backend, Cpu, Format, Memory, Stream, by_row};
use tritrain_model::{Activations, Keep, Layout, Model, TensorKind};
use tritrain_train::Loaded;

use crate::{BenchError, shape::SEED};

/// Cosine that counts as the signal being kept.
const KEPT: f64 = 0.99;
/// Draws that are averaged, at most.
const MOST: usize = 1024;
/// Formats of latent weights.
const LATENTS: [(&str, Format); 5] = [
    ("bf16", Format::Bf16),
    ("int8", Format::Int8),
    ("trits3", Format::Trits(3)),
    ("trits4", Format::Trits(4)),
    ("trits5", Format::Trits(5)),
];

/// What is kept of one kind of matrix, all layers together.
#[derive(Clone, Debug, Serialize)]
pub struct LayerSignal {
    /// Part of the tensors' names: `qkv`, `o`, `gate_up` or `down`.
    pub name: String,
    /// `‖s·q‖/‖w‖` of the ternary codes that multiply, in percent.
    pub codes: f64,
    /// `‖Q(w)‖/‖w‖` of latent weights by format, rounded to nearest, in percent.
    pub latent: Vec<(&'static str, f64)>,
    /// Gradients in one digit, rounded by chance, averaged over 1, 2, 4.. draws.
    pub gradient: Vec<Draws>,
    /// The least number of draws, a power of two, whose mean has a cosine of 0.99 with the gradient.
    pub draws_to_keep: Option<usize>,
    /// The same for levels that reach to the largest number of a row instead of 2.5 standard deviations: nothing is
    /// cut off, and the cosine of n draws is `1/√(1 + v/n)`, with the variance v of one draw.
    pub draws_unclipped: usize,
}

/// The mean of some draws beside what was rounded.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Draws {
    /// Draws.
    pub draws: usize,
    /// `‖mean‖/‖g‖` in percent.
    pub magnitude: f64,
    /// Cosine of mean and gradient.
    pub cosine: f64,
}

/// Sums over tensors that belong together.
#[derive(Clone, Copy, Debug, Default)]
struct Beside {
    exact: f64,
    found: f64,
    both: f64,
}

impl Beside {
    fn add(&mut self, exact: &[f32], found: impl Iterator<Item = f64>) {
        for (exact, found) in exact.iter().copied().map(f64::from).zip(found) {
            self.exact += exact * exact;
            self.found += found * found;
            self.both += exact * found;
        }
    }

    fn magnitude(&self) -> f64 {
        100.0 * (self.found / self.exact).sqrt()
    }

    fn cosine(&self) -> f64 {
        self.both / (self.exact * self.found).sqrt()
    }
}

/// Measures a trained ternary model on the gradient of one batch of `tokens`, of which there are one more than
/// a whole number of contexts; latent weights reach to `range` times their mean magnitude.
///
/// # Errors
/// The model is not ternary.
///
/// # Panics
/// The number of tokens is another.
pub fn signal(
    backend: &Cpu,
    loaded: &Loaded,
    tokens: &[u32],
    range: f32,
) -> Result<Vec<LayerSignal>, BenchError> {
    let mut model = loaded.trainable(backend)?;
    if !model.layout().ternary {
        return Err(BenchError::NotTernary);
    }
    let (context, layout) = (loaded.config.context, model.layout().clone());
    let mut a =
        Activations::new(backend, &loaded.config, (tokens.len() - 1) / context, context, Keep::Everything);
    let mut gradients: Vec<_> = layout.specs.iter().map(|spec| backend.floats(spec.len())).collect();
    let (inputs, targets) = (&tokens[..tokens.len() - 1], &tokens[1..]);
    let weight = 1.0 / targets.len() as f32;
    backend.run(|| {
        model.head_gradients(backend, &mut a, inputs, (targets, weight), &mut gradients[..]);
        model.block_gradients(backend, &mut a, &mut gradients[..]);
    });
    let mut names: Vec<&str> = Vec::new();
    for spec in layout.specs.iter().filter(|spec| spec.kind == TensorKind::Matrix) {
        let name = part(&spec.name);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    let layer = |name: &&str| {
        let of = |id: &usize| {
            part(&layout.specs[*id].name) == *name && layout.specs[*id].kind == TensorKind::Matrix
        };
        let ids: Vec<usize> = (0..layout.specs.len()).filter(of).collect();
        let gradient = gradient_draws(backend, &model, &gradients, &ids);
        LayerSignal {
            name: (*name).to_owned(),
            codes: codes(backend, &model, &ids),
            latent: LATENTS.map(|(name, format)| (name, latent(backend, &model, &ids, format, range))).into(),
            draws_unclipped: draws_unclipped(backend, &layout, &gradients, &ids),
            draws_to_keep: gradient.iter().find(|draws| draws.cosine >= KEPT).map(|draws| draws.draws),
            gradient,
        }
    };
    Ok(names.iter().map(layer).collect())
}

/// The last part of a tensor's name.
fn part(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

fn weights(backend: &Cpu, model: &Model<Cpu>, id: usize) -> Vec<f32> {
    let spec = &model.layout().specs[id];
    model.values(backend, id).numbers(backend, spec.rows, spec.cols).into_owned()
}

fn codes(backend: &Cpu, model: &Model<Cpu>, ids: &[usize]) -> f64 {
    let mut beside = Beside::default();
    for &id in ids {
        let Some((codes, scale)) = model.codes(backend, id) else { continue };
        let found = codes.iter().map(|code| f64::from(*code) * f64::from(scale));
        beside.add(&weights(backend, model, id), found);
    }
    beside.magnitude()
}

fn latent(backend: &Cpu, model: &Model<Cpu>, ids: &[usize], format: Format, range: f32) -> f64 {
    let mut beside = Beside::default();
    for &id in ids {
        let (spec, exact) = (&model.layout().specs[id], weights(backend, model, id));
        let mut packed = backend.packed(format, spec.rows, spec.cols, by_row(format));
        backend.upload_packed(&exact, range, &mut packed);
        let mut found = vec![0.0; exact.len()];
        backend.download_packed(&packed, &mut found);
        beside.add(&exact, found.into_iter().map(f64::from));
    }
    beside.magnitude()
}

/// See [`LayerSignal::draws_unclipped`]. A number g is ±m, the largest of its row, with chance |g|/m, else 0: its
/// variance is `m·|g| − g²`.
fn draws_unclipped(
    backend: &Cpu,
    layout: &Layout,
    gradients: &[<Cpu as Memory>::Floats],
    ids: &[usize],
) -> usize {
    let (mut variance, mut squares) = (0.0, 0.0);
    for &id in ids {
        let gradient = backend.host(&gradients[id]);
        for row in gradient.chunks_exact(layout.specs[id].cols) {
            let sums = |of: fn(f64) -> f64| row.iter().map(|g| of(f64::from(*g))).sum::<f64>();
            let largest = row.iter().fold(0.0f32, |largest, g| largest.max(g.abs()));
            let square = sums(|g| g * g);
            variance += f64::from(largest) * sums(f64::abs) - square;
            squares += square;
        }
    }
    (variance / squares / (1.0 / (KEPT * KEPT) - 1.0)).ceil() as usize
}

fn gradient_draws(
    backend: &Cpu,
    model: &Model<Cpu>,
    gradients: &[<Cpu as Memory>::Floats],
    ids: &[usize],
) -> Vec<Draws> {
    let counts: Vec<usize> = (0..).map(|n| 1 << n).take_while(|draws| *draws <= MOST).collect();
    let mut besides = vec![Beside::default(); counts.len()];
    for &id in ids {
        let (spec, exact) = (&model.layout().specs[id], backend.host(&gradients[id]));
        let mut packed = backend.packed(Format::Trits(1), spec.rows, spec.cols, true);
        let mut drawn = backend.floats(exact.len());
        let mut sums = vec![0.0f32; exact.len()];
        for draw in 1..=MOST {
            backend.round(&gradients[id], &Stream::new(SEED, id as u32, draw as u64), &mut packed);
            backend.unpack(&packed, &mut drawn);
            for (sum, drawn) in sums.iter_mut().zip(&*backend.host(&drawn)) {
                *sum += drawn;
            }
            if let Some(at) = counts.iter().position(|count| *count == draw) {
                besides[at].add(&exact, sums.iter().map(|sum| f64::from(*sum) / draw as f64));
            }
        }
    }
    let draws = counts.into_iter().zip(besides);
    draws.map(|(draws, of)| Draws { draws, magnitude: of.magnitude(), cosine: of.cosine() }).collect()
}
