//! What learns, without the files around it: a model, its optimizer and the buffers of a step.

use tritrain_backend::Backend;
use tritrain_model::{Activations, Keep, Layout, Model, ModelConfig, TensorKind};
use tritrain_optim::{OptimConfig, Optimizer, Parameter, Rates, Role, Skip};

/// A model on a device with everything a training step needs there.
pub struct Learner<B: Backend> {
    pub(crate) model: Model<B>,
    pub(crate) optimizer: Optimizer<B>,
    pub(crate) activations: Activations<B>,
    gradients: Vec<B::Floats>,
    statistics: B::Floats,
}

/// What a step measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Mean loss of the batch in nats per token.
    pub loss: f32,
    /// Norm of the gradient, all tensors together.
    pub gradient_norm: f32,
    /// Norm of the direction, all tensors together, before the learning rate.
    pub direction_norm: f32,
}

/// Places in the buffer that a step reads back.
const LOSS: usize = 0;
const GRADIENT: usize = 1;
const DIRECTION: usize = 2;

impl<B: Backend> Learner<B> {
    /// A model of `vocab` tokens with the given weights, to be trained on batches of `batch` sequences of
    /// one context. `recompute` as [`RunConfig::recompute`](crate::RunConfig::recompute).
    ///
    /// # Panics
    /// The weights do not have the layout's shapes.
    pub fn new(
        backend: &B,
        config: &ModelConfig,
        optim: &OptimConfig,
        (vocab, batch): (usize, usize),
        recompute: bool,
        weights: &[Vec<f32>],
    ) -> Learner<B> {
        let model = Model::new(backend, config, vocab, weights, true);
        let layout = model.layout();
        let keep = if recompute { Keep::Inputs } else { Keep::Everything };
        Learner {
            optimizer: Optimizer::new(backend, optim, parameters(layout)),
            activations: Activations::new(backend, config, batch, config.context, keep),
            gradients: layout.specs.iter().map(|spec| backend.floats(spec.len())).collect(),
            statistics: backend.floats(3),
            model,
        }
    }

    /// The model as it stands.
    pub fn model(&self) -> &Model<B> {
        &self.model
    }

    /// One step on `inputs` and `targets`, `[batch][context]` each. A quantity that is not finite ends it
    /// before any weight changes.
    ///
    /// After the first one, a step of a ternary model allocates nothing where the loop of steps is inside
    /// [`Backend::run`].
    ///
    /// # Errors
    /// Names that quantity.
    ///
    /// # Panics
    /// The tokens are not as many as a batch holds, or outside the vocabulary.
    pub fn step(
        &mut self,
        backend: &B,
        inputs: &[u32],
        targets: &[u32],
        rates: Rates,
    ) -> Result<Measured, Skip> {
        backend.run(|| self.learn(backend, inputs, targets, rates))
    }

    fn learn(
        &mut self,
        backend: &B,
        inputs: &[u32],
        targets: &[u32],
        rates: Rates,
    ) -> Result<Measured, Skip> {
        self.model.gradients(backend, &mut self.activations, inputs, targets, &mut self.gradients);
        backend.clear(&mut self.statistics);
        backend.sum(self.activations.losses(), &mut self.statistics, LOSS);
        self.add_norms(backend, GRADIENT);
        let read = self.statistics(backend);
        let (loss, gradient_norm) = (read[LOSS] / inputs.len() as f32, read[GRADIENT].sqrt());
        finite(loss, Skip::Loss)?;
        finite(gradient_norm, Skip::GradientNorm)?;
        self.optimizer.direct(backend, &mut self.gradients);
        self.add_norms(backend, DIRECTION);
        let direction_norm = self.statistics(backend)[DIRECTION].sqrt();
        finite(direction_norm * rates.matrices.max(rates.embedding), Skip::UpdateNorm)?;
        self.optimizer.apply(backend, self.model.weights_mut(), &self.gradients, rates);
        self.model.refresh(backend);
        Ok(Measured { loss, gradient_norm, direction_norm })
    }

    /// Losses of every token of the last batch, `[batch][context]`, in nats.
    ///
    /// # Panics
    /// `losses` has another length.
    pub fn losses(&self, backend: &B, losses: &mut [f32]) {
        backend.download(self.activations.losses(), losses);
    }

    fn add_norms(&mut self, backend: &B, at: usize) {
        for gradient in &self.gradients {
            backend.add_sum_squares(gradient, &mut self.statistics, at);
        }
    }

    fn statistics(&self, backend: &B) -> [f32; 3] {
        let mut read = [0.0; 3];
        backend.download(&self.statistics, &mut read);
        read
    }
}

fn finite(value: f32, what: Skip) -> Result<(), Skip> {
    if value.is_finite() { Ok(()) } else { Err(what) }
}

fn parameters(layout: &Layout) -> Vec<Parameter> {
    let role = |kind| match kind {
        TensorKind::Matrix => Role::Matrix,
        TensorKind::Embedding => Role::Embedding,
        TensorKind::Norm => Role::Gain,
    };
    let specs = layout.specs.iter();
    specs
        .map(|spec| Parameter {
            name: spec.name.clone(),
            rows: spec.rows,
            cols: spec.cols,
            role: role(spec.kind),
        })
        .collect()
}
