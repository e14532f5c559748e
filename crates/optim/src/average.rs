//! Weights that are averaged instead of a rate that falls: Schedule-Free (Defazio et al., 2405.15682).
//!
//! Steps move points; the model is trained between these and their mean, and used at the mean. Between steps the
//! weights are either those to train with or, at rest, the mean: checkpoints are made at rest, and keep the points.

use tritrain_backend::{Average, Backend, Memory, Weight};

use crate::{Parameter, Part};

/// Points and means of all tensors.
pub(crate) struct Averages<B: Memory> {
    points: Vec<B::Floats>,
    means: Vec<B::Floats>,
    /// Share of the mean in the weights that are trained.
    kept: f32,
    /// Sum of the squares of all rates, as checkpoints keep it and as it counts.
    total: B::Floats,
    here: [f32; 1],
    /// Share of the newest point in the mean, in update `update`.
    share: f32,
    update: u64,
    /// Whether the weights are the means, which are nowhere else then.
    resting: bool,
}

impl<B: Memory> Averages<B> {
    /// Room for `parameters`; the mean has a share of `kept` in the weights.
    pub(crate) fn new(backend: &B, parameters: &[Parameter], kept: f32) -> Averages<B> {
        let room = || parameters.iter().map(|of| backend.floats(of.rows * of.cols)).collect();
        Averages {
            points: room(),
            means: room(),
            kept,
            total: backend.floats(1),
            here: [0.0],
            share: 0.0,
            update: 0,
            resting: true,
        }
    }

    /// Parts of a checkpoint at rest.
    pub(crate) fn parts(&self, parameters: &[Parameter]) -> Vec<(String, [usize; 2], Part<'_, B>)> {
        let points = parameters.iter().zip(&self.points);
        let points =
            points.map(|(of, point)| (format!("{}.point", of.name), [of.rows, of.cols], Part::Floats(point)));
        points.chain([("average.total".into(), [1, 1], Part::Floats(&self.total))]).collect()
    }

    /// The places of [`Averages::parts`], in the same order, to be restored: at rest from then on.
    pub(crate) fn places(&mut self) -> impl Iterator<Item = &mut B::Floats> {
        self.resting = true;
        self.points.iter_mut().chain([&mut self.total])
    }
}

impl<B: Backend> Averages<B> {
    /// Takes the weights to train with out of the means, and tells whether anything changed. Before the first
    /// update all three are the same.
    pub(crate) fn wake(&mut self, backend: &B, first: bool, weights: &mut [Weight<B>]) -> bool {
        if !self.resting {
            return false;
        }
        self.resting = false;
        backend.download(&self.total, &mut self.here);
        for (weight, (point, mean)) in weights.iter_mut().zip(self.points.iter_mut().zip(&mut self.means)) {
            let weight = weight.floats_mut();
            backend.copy(weight, mean);
            if first {
                backend.copy(weight, point);
            }
            backend.average(weight, point, mean, Average { share: 0.0, kept: self.kept });
        }
        true
    }

    /// Leaves the means in the weights, and tells whether anything changed.
    pub(crate) fn rest(&mut self, backend: &B, weights: &mut [Weight<B>]) -> bool {
        if self.resting {
            return false;
        }
        self.resting = true;
        backend.upload(&self.here, &mut self.total);
        for (weight, mean) in weights.iter_mut().zip(&self.means) {
            backend.copy(mean, weight.floats_mut());
        }
        true
    }

    /// Lets `step` move the point of tensor `id` in the place of its weights, in update `update` at `rate`. A point counts
    /// by the square of its rate.
    pub(crate) fn follow(
        &mut self,
        id: usize,
        weight: &mut Weight<B>,
        (update, rate): (u64, f32),
        step: impl FnOnce(&mut Weight<B>),
    ) {
        if self.update != update {
            self.update = update;
            self.here[0] += rate * rate;
            self.share = if self.here[0] > 0.0 { rate * rate / self.here[0] } else { 1.0 };
        }
        let point = &mut self.points[id];
        std::mem::swap(weight.floats_mut(), point);
        step(weight);
        std::mem::swap(weight.floats_mut(), point);
    }

    /// Lets the mean and the weights of tensor `id` follow its point.
    pub(crate) fn average(&mut self, backend: &B, id: usize, weight: &mut Weight<B>) {
        let with = Average { share: self.share, kept: self.kept };
        backend.average(weight.floats_mut(), &self.points[id], &mut self.means[id], with);
    }
}
