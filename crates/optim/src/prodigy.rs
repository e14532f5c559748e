//! Steps in proportion to an estimate of how far away the solution is: Prodigy (Mishchenko and Defazio, 2306.06101).
//!
//! The estimate comes of all tensors together. What a step finds counts from the next one on: tensors are updated
//! one by one, some of them while others have no gradient yet.

use tritrain_backend::{Backend, Memory, Prodigy, Weight};

use crate::{OptimConfig, Parameter, Part};

/// The distance that is assumed at the start; it is found in few steps from far below.
const START: f32 = 1e-6;
/// Added to the root of the second moment, times the distance.
const EPS: f32 = 1e-8;
/// Places in the numbers: the distance, the running sum of products of gradients with the way back to the start,
/// then of each tensor that product and the sum of magnitudes.
const DISTANCE: usize = 0;
const PRODUCTS: usize = 1;
const TENSORS: usize = 2;
/// Names of what a tensor keeps.
const KEPT: [&str; 4] = ["m", "v", "s", "start"];

/// What Prodigy keeps.
pub(crate) struct Distances<B: Memory> {
    tensors: Vec<[B::Floats; 4]>,
    numbers: B::Floats,
    here: Vec<f32>,
}

impl<B: Memory> Distances<B> {
    /// Room for `parameters`.
    pub(crate) fn new(backend: &B, parameters: &[Parameter]) -> Distances<B> {
        let count = TENSORS + 2 * parameters.len();
        let room = |of: &Parameter| KEPT.map(|_| backend.floats(of.rows * of.cols));
        Distances {
            tensors: parameters.iter().map(room).collect(),
            numbers: backend.floats(count),
            here: vec![0.0; count],
        }
    }

    /// Parts of a checkpoint.
    pub(crate) fn parts(&self, parameters: &[Parameter]) -> Vec<(String, [usize; 2], Part<'_, B>)> {
        let tensors = parameters.iter().zip(&self.tensors).flat_map(|(of, kept)| {
            let named = KEPT.iter().zip(kept);
            named.map(|(name, kept)| (format!("{}.{name}", of.name), [of.rows, of.cols], Part::Floats(kept)))
        });
        let numbers = ("prodigy.numbers".into(), [1, self.here.len()], Part::Floats(&self.numbers));
        tensors.chain([numbers]).collect()
    }

    /// The places of [`Distances::parts`], in the same order, to be restored.
    pub(crate) fn places(&mut self) -> impl Iterator<Item = &mut B::Floats> {
        self.tensors.iter_mut().flatten().chain([&mut self.numbers])
    }
}

impl<B: Backend> Distances<B> {
    /// Estimates the distance anew from what the update before found; of the first one, from nothing.
    pub(crate) fn begin(&mut self, backend: &B, config: &OptimConfig, first: bool) {
        backend.download(&self.numbers, &mut self.here);
        let here = &mut self.here;
        if first {
            here[DISTANCE] = START;
        } else {
            let sum =
                |at: usize| here[TENSORS + at..].iter().step_by(2).map(|sum| f64::from(*sum)).sum::<f64>();
            let (products, magnitudes) = (sum(0), sum(1));
            let products = f64::from(config.beta2.sqrt() * here[PRODUCTS]) + products;
            here[PRODUCTS] = products as f32;
            let found = (products / magnitudes) as f32;
            if found.is_finite() {
                here[DISTANCE] = here[DISTANCE].max(found);
            }
            // A tensor that is left out in this update has no product; its sum of magnitudes stays.
            here[TENSORS..].iter_mut().step_by(2).for_each(|product| *product = 0.0);
        }
        backend.upload(&self.here, &mut self.numbers);
    }

    /// Keeps the weights of tensor `id` as those that it starts from.
    pub(crate) fn start(&mut self, backend: &B, id: usize, weight: &Weight<B>) {
        backend.copy(weight.floats(), &mut self.tensors[id][3]);
    }

    /// Turns the gradient of tensor `id` at `weight` into its direction, in place; the step will be `rate` times it.
    pub(crate) fn direct(
        &mut self,
        backend: &B,
        config: &OptimConfig,
        (id, weight): (usize, &Weight<B>),
        rate: f32,
        grad: &mut B::Floats,
    ) {
        let (kept, weight) = (&mut self.tensors[id], weight.floats());
        let OptimConfig { beta1, beta2, .. } = *config;
        let distance = self.here[DISTANCE];
        // In units of the first distance, as in the authors' program: its square alone would be very small.
        let counts = rate * distance * (distance / START);
        let with = Prodigy { beta1, beta2, distance, weight: counts, eps: EPS };
        backend.prodigy(grad, weight, kept, with, (&mut self.numbers, TENSORS + 2 * id));
    }
}
