//! What learns, without the files around it: a model, its optimizer and the buffers of a step.

mod gradients;

use tritrain_backend::{Backend, Values};
use tritrain_model::{Activations, Keep, Layout, Model, ModelConfig, Relations, TensorKind, Use, counted};
use tritrain_optim::{GradientKind, OptimConfig, Optimizer, Parameter, Rates, Reduction, Report, Role, Skip};

use gradients::Gathering;
pub(crate) use gradients::{Gradients, MOST_PASSES};

/// Sizes of what learns, and where its random numbers come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Tokens in the vocabulary.
    pub vocab: usize,
    /// Sequences of one context in a batch.
    pub batch: usize,
    /// Passes through the model that a batch takes, as many sequences in each; see
    /// [`RunConfig::micro_batch`](crate::RunConfig::micro_batch).
    pub passes: usize,
    /// As [`RunConfig::recompute`](crate::RunConfig::recompute).
    pub recompute: bool,
    /// Of the numbers that rounding draws.
    pub seed: u64,
}

/// A model on a device with everything a training step needs there.
pub struct Learner<B: Backend> {
    pub(crate) model: Model<B>,
    pub(crate) optimizer: Optimizer<B>,
    pub(crate) activations: Activations<B>,
    gradients: Gradients<B>,
    /// Losses of all tokens of the last batch, where they do not stay among the activations or somebody asks for
    /// them every time.
    losses: Vec<f32>,
    /// Whether losses of the only pass are read when the step is done.
    late_losses: bool,
}

/// What a step measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Measured {
    /// Mean loss of the batch in nats per target.
    pub loss: f32,
    /// Norm of the gradient, all tensors together.
    pub gradient_norm: f32,
    /// Norm of the direction, all tensors together, before the learning rate.
    pub direction_norm: f32,
    /// How far relations were from those that are [learnt](Learner::relate), in nats.
    pub relations: Option<f32>,
    /// What became of the matrices.
    pub report: Report,
    /// What became of the loss, where that was [asked](Learner::watch).
    pub reduction: Option<Reduction>,
    /// What rows lost after the step that got other numbers of digits; see [`Optimizer::end`].
    pub rounded: Option<f32>,
}

impl<B: Backend> Learner<B> {
    /// A model with the given weights, one tensor of the layout at a time.
    ///
    /// # Panics
    /// The weights do not have the layout's shapes; later, where passes do not divide the batch, or are several and
    /// gradients of matrices are kept nowhere.
    pub fn new<'a>(
        backend: &B,
        config: &ModelConfig,
        optim: &OptimConfig,
        setup: Setup,
        weights: &dyn Fn(usize) -> Values<'a>,
    ) -> Learner<B> {
        let purpose = match optim.latent.format() {
            Some(format) => Use::Packed(format, optim.range),
            None if config.lora > 0 => Use::Adapters,
            None => Use::Training,
        };
        let model = Model::new(backend, config, setup.vocab, weights, purpose);
        let layout = model.layout();
        let keep = if setup.recompute { Keep::Inputs } else { Keep::Everything };
        let (parameters, passes, watches) = (parameters(layout), setup.passes.max(1), optim.feedback > 0);
        Learner {
            optimizer: Optimizer::new(backend, optim, parameters, layout.ternary, setup.seed),
            activations: Activations::new(backend, config, setup.batch / passes, config.context, keep),
            gradients: Gradients::new(backend, layout, optim.gradient, (passes, watches)),
            losses: vec![0.0; if passes > 1 || watches { setup.batch * config.context } else { 0 }],
            late_losses: false,
            model,
        }
    }

    /// Reads the losses of every batch together with the rest of what a step measures: [`Learner::losses`] waits for
    /// nothing then.
    pub(crate) fn read_losses(&mut self) {
        if self.losses.is_empty() {
            self.losses = vec![0.0; self.activations.tokens()];
            self.late_losses = true;
        }
    }

    /// The model as it stands.
    pub fn model(&self) -> &Model<B> {
        &self.model
    }

    /// One step on `inputs` and `targets`, `[batch][context]` each, some of which may be
    /// [`NO_TARGET`](tritrain_backend::NO_TARGET); without any target the gradient is zero. A quantity that is not finite ends it
    /// before any weight changes; where matrices are updated during the backward pass, those behind the first
    /// gradient that is not finite have changed by then. With a spike guard, a gradient that is not finite only
    /// leaves its tensor as it is, unless all of them are.
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
        let outcome = backend.run(|| {
            let outcome = self.learn(backend, inputs, targets, rates);
            // Also where the step was left: it may have begun.
            let rounded = self.optimizer.end(backend, self.model.weights_mut());
            outcome.map(|measured| Measured { rounded, ..measured })
        });
        self.gradients.watched = false;
        self.gradients.fault = 1.0;
        self.model.set_rounding(1.0);
        outcome
    }

    fn learn(
        &mut self,
        backend: &B,
        inputs: &[u32],
        targets: &[u32],
        rates: Rates,
    ) -> Result<Measured, Skip> {
        let Learner { model, optimizer, activations, gradients, losses, late_losses } = self;
        let gradients_watched = gradients.watched;
        if optimizer.wake(backend, model.weights_mut()) {
            model.refresh(backend);
        }
        gradients.begin(backend);
        let tokens = activations.tokens();
        assert_eq!(inputs.len(), tokens * gradients.passes, "tokens of a batch");
        let passes = || inputs.chunks_exact(tokens).zip(targets.chunks_exact(tokens));
        // The mean over all targets of the batch, wherever they are, as the mean over passes.
        let counted = counted(targets).max(1) as f32;
        let weight = gradients.passes as f32 / counted;
        for (pass, (inputs, targets)) in passes().enumerate() {
            if let Some(relations) = &mut activations.relations {
                relations.begin(backend, pass);
            }
            let mut gathering =
                Gathering { gradients: &mut *gradients, optimizer: &mut *optimizer, rates, pass };
            model.head_gradients(backend, activations, inputs, (targets, weight), &mut gathering);
            gathering.gradients.add_losses(backend, activations.losses());
            let now = !*late_losses || gradients_watched;
            if let (true, Some(losses)) = (now, losses.chunks_exact_mut(tokens).nth(pass)) {
                backend.download(activations.losses(), losses);
            }
            if gathering.gradients.kind == GradientKind::None {
                // The first matrix moves as soon as its gradient is there.
                gathering.optimizer.begin(backend);
            }
            model.block_gradients(backend, activations, &mut gathering);
            gradients.gather(backend, pass);
        }
        if let Some(relations) = &activations.relations {
            gradients.add_relations(backend, relations.sum());
        }
        self.gradients.finish(backend, &mut self.optimizer, self.model.weights_mut(), rates);
        // Also where the step is left: some matrices may have moved.
        self.model.refresh(backend);
        let late = self.late_losses && !self.gradients.watched;
        let losses = late.then(|| (self.activations.losses(), &mut self.losses[..]));
        self.optimizer.settle(backend, [self.gradients.reading()].into_iter().chain(losses));
        self.gradients.take();
        self.gradients.judge(&mut self.optimizer, rates)?;
        let loss = self.gradients.loss() / counted;
        let gradient_norm = self.gradients.norm(self.optimizer.guards());
        let direction_norm = self.gradients.direction_norm();
        let predicted = self.gradients.predicted();
        let reduction = self.gradients.watched.then(|| {
            self.gradients.begin(backend);
            for (inputs, targets) in passes() {
                self.model.evaluate(backend, &mut self.activations, inputs, targets);
                self.gradients.add_losses(backend, self.activations.losses());
            }
            self.gradients.read(backend);
            let after = self.gradients.loss() / counted;
            Reduction { predicted, actual: f64::from(loss) - f64::from(after) }
        });
        let relations = self.activations.relations.is_some().then(|| self.gradients.relations());
        let report = self.optimizer.report();
        Ok(Measured { loss, gradient_norm, direction_norm, relations, report, reduction, rounded: None })
    }

    /// Makes the weights those that are to be used and saved, until the next step.
    pub fn rest(&mut self, backend: &B) {
        if self.optimizer.rest(backend, self.model.weights_mut()) {
            self.model.refresh(backend);
        }
    }

    /// Lets the next step compare what it takes off the loss of its batch with what its gradient predicts, which
    /// costs a forward pass.
    ///
    /// # Panics
    /// That step does, where `optim.feedback` is 0: there is no room for it.
    pub fn watch(&mut self) {
        self.gradients.watched = true;
    }

    /// Lets ternary matrices multiply by their codes in part alone in the next step; see [`Model::set_rounding`].
    ///
    /// # Panics
    /// `lambda` is not from 0 to 1; that step does, where there are no latent weights.
    pub fn round_by(&mut self, lambda: f32) {
        self.model.set_rounding(lambda);
    }

    /// Lets block `layer` learn relations within queries, keys and values from now on, with some weight in the loss.
    pub fn relate(&mut self, backend: &B, layer: usize, weight: f32) {
        let len = self.activations.tokens() * self.model.config().qkv_rows();
        let passes = self.gradients.passes;
        self.activations.relations = Some(Relations::new(backend, (layer, weight), (passes, len)));
    }

    /// Where those that the next step has to learn are written.
    pub fn relations(&mut self) -> Option<&mut Relations<B>> {
        self.activations.relations.as_mut()
    }

    /// Multiplies the gradients of the next step, on purpose; NaN breaks them.
    pub(crate) fn disturb(&mut self, factor: f32) {
        self.gradients.fault = factor;
    }

    /// Whether every weight is finite, as it is stored.
    pub(crate) fn finite(&self, backend: &B) -> bool {
        let mut specs = self.model.layout().specs.iter().enumerate();
        specs.all(|(id, spec)| {
            let values = self.model.values(backend, id);
            values.numbers(backend, spec.rows, spec.cols).iter().all(|weight| weight.is_finite())
        })
    }

    /// Losses of every token of the last batch, `[batch][context]`, in nats.
    ///
    /// # Panics
    /// `losses` has another length.
    pub fn losses(&self, backend: &B, losses: &mut [f32]) {
        match self.losses.is_empty() {
            true => backend.download(self.activations.losses(), losses),
            false => losses.copy_from_slice(&self.losses),
        }
    }
}

pub(crate) fn parameters(layout: &Layout) -> Vec<Parameter> {
    let role = |id: usize| match layout.specs[id].kind {
        _ if !layout.trains(id) => Role::Frozen,
        TensorKind::Matrix => Role::Matrix,
        TensorKind::Embedding | TensorKind::Adapter => Role::Embedding,
        TensorKind::Norm | TensorKind::Bias => Role::Gain,
    };
    let specs = layout.specs.iter().enumerate();
    specs
        .map(|(id, spec)| Parameter {
            name: spec.name.clone(),
            rows: spec.rows,
            cols: spec.cols,
            role: role(id),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    //! The spike guard, on faults that are put into the gradients.
    use tritrain_backend::{Cpu, Stream};
    use tritrain_model::initial_tensor;
    use tritrain_optim::{SpikeKind, StorageKind};

    use super::*;
    use crate::{Fault, run::fill_with_noise};

    const VOCAB: usize = 64;
    const BATCH: usize = 4;
    const STEPS: u64 = 400;

    fn learner(backend: &Cpu, config: &ModelConfig, optim: &OptimConfig) -> Learner<Cpu> {
        let layout = Layout::new(config, VOCAB);
        let weights = |id: usize| Values::Floats(initial_tensor(config, &layout, 1, id).into());
        let setup = Setup { vocab: VOCAB, batch: BATCH, passes: 1, recompute: false, seed: 1 };
        Learner::new(backend, config, optim, setup, &weights)
    }

    /// A chain of tokens, each the next of the one before in four of five cases.
    fn tokens(step: u64, count: usize) -> Vec<u32> {
        let random = Stream::new(7, 1, step);
        let mut last = 0;
        let next = (0..count as u64).map(|at| {
            let [draw, free, ..] = random.block(at);
            last = if draw % 5 == 0 { free % VOCAB as u32 } else { (last * 5 + 3) % VOCAB as u32 };
            last
        });
        next.collect()
    }

    /// Mean loss of the last steps, and the largest share of tensors that was clipped.
    fn run(optim: &OptimConfig, fault: impl Fn(u64) -> Option<Fault>) -> (f64, f64) {
        let config =
            ModelConfig { layers: 1, heads: 4, kv_heads: 4, ffn: 256, context: 32, ..ModelConfig::default() };
        let backend = Cpu::new(1).unwrap();
        let mut learner = learner(&backend, &config, optim);
        let (mut last, mut clipped) = (0.0, 0.0f64);
        const LAST: u64 = 40;
        for step in 0..STEPS {
            let fault = fault(step);
            let all = tokens(step, BATCH * config.context + 1);
            let (mut inputs, mut targets) = (all[..all.len() - 1].to_vec(), all[1..].to_vec());
            match fault {
                Some(Fault::Gradient(factor)) => learner.disturb(factor),
                Some(Fault::Noise) => {
                    fill_with_noise((7, step), VOCAB, config.context, &mut inputs, &mut targets);
                }
                None => (),
            }
            let share = 1.0 - step as f32 / STEPS as f32;
            let rates =
                Rates { matrices: optim.rate * share, embedding: 4e-3 * share, radius: f32::INFINITY };
            match learner.step(&backend, &inputs, &targets, rates) {
                Ok(measured) => {
                    clipped = clipped.max(measured.report.clipped_share());
                    last += if step >= STEPS - LAST { f64::from(measured.loss) / LAST as f64 } else { 0.0 };
                }
                Err(skip) => assert!(skip == Skip::GradientNorm && fault.is_some()),
            }
        }
        assert!(learner.finite(&backend));
        (last, clipped)
    }

    /// One batch of a hundred is noise, and as many gradients are a thousand times too large.
    fn faults(step: u64) -> Option<Fault> {
        match step {
            60 | 150 | 230 | 310 => Some(Fault::Noise),
            45 | 120 | 200 | 330 => Some(Fault::Gradient(1e3)),
            _ => None,
        }
    }

    #[test]
    fn clipped_spikes_cost_less_than_a_hundredth_of_the_loss() {
        let low = OptimConfig {
            latent: StorageKind::Trits4,
            gradient: GradientKind::None,
            ..OptimConfig::default()
        };
        for optim in [OptimConfig::default(), low] {
            let of = |spike| OptimConfig { spike, ..optim.clone() };
            let (undisturbed, _) = run(&of(SpikeKind::Off), |_| None);
            let (unguarded, _) = run(&of(SpikeKind::Off), faults);
            for spike in [SpikeKind::Clip, SpikeKind::Skip] {
                let (loss, clipped) = run(&of(spike), faults);
                println!("{spike:?}: {undisturbed} undisturbed, {loss} guarded, {unguarded} unguarded");
                assert!(loss < 1.01 * undisturbed, "{spike:?}: {loss}, undisturbed {undisturbed}");
                assert!(loss < unguarded, "{spike:?}: {loss}, unguarded {unguarded}");
                assert!(clipped > 0.9, "{clipped} of the tensors at most");
            }
        }
    }

    #[test]
    fn large_gradients_among_the_first_steps_cost_as_little() {
        let of = |spike| OptimConfig { spike, ..OptimConfig::default() };
        let early = |step| matches!(step, 8 | 20).then_some(Fault::Gradient(1e3));
        let (undisturbed, _) = run(&of(SpikeKind::Off), |_| None);
        let (unguarded, _) = run(&of(SpikeKind::Off), early);
        for spike in [SpikeKind::Clip, SpikeKind::Skip] {
            let (loss, clipped) = run(&of(spike), early);
            println!("{spike:?}: {undisturbed} undisturbed, {loss} guarded, {unguarded} unguarded");
            assert!(loss < 1.01 * undisturbed, "{spike:?}: {loss}, undisturbed {undisturbed}");
            assert!(loss < unguarded, "{spike:?}: {loss}, unguarded {unguarded}");
            assert!(clipped == 1.0, "{clipped} of the tensors at most");
        }
    }

    #[test]
    fn gradients_that_are_not_finite_move_nothing() {
        for gradient in [GradientKind::F32, GradientKind::Trits, GradientKind::None] {
            let optim = OptimConfig { gradient, ..OptimConfig::default() };
            let broken = |step| (step % 50 == 30).then_some(Fault::Gradient(f32::NAN));
            let (loss, _) = run(&optim, broken);
            let (undisturbed, _) = run(&optim, |_| None);
            assert!(loss < 1.01 * undisturbed, "{gradient:?}: {loss}, undisturbed {undisturbed}");
        }
    }
}
