//! Short runs in memory, without a directory, of which only the loss at the end counts.

use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use tritrain_backend::{Backend, Values};
use tritrain_data::{BatchPlan, Corpus, ValidationSet};
use tritrain_files::Disk;
use tritrain_model::{Layout, initial_tensor};
use tritrain_optim::{Controller, ControllerKind, Guard, Network, Verdict};

use crate::{
    Config, Learner, Part, Result, Setup, Single, audit::plan_options, evaluate, evaluate::only, steering,
};

/// A short run.
#[derive(Clone, Debug)]
pub struct Proxy<'a> {
    /// Its text.
    pub corpus: &'a Corpus,
    /// Its model, optimizer and length.
    pub config: Config,
    /// Decides in place of `optim.controller`.
    pub network: Option<Network>,
}

impl Proxy<'_> {
    /// The validation loss at the end in nats per token; that of guessing, doubled, where it is larger or the
    /// run breaks off.
    ///
    /// # Errors
    /// The corpus is too short or cannot be read; the configuration has no end or no weights.
    pub fn loss<B: Backend>(&self, backend: &B) -> Result<f64> {
        let Proxy { corpus, config, network } = self;
        let (batch, context, seed) = (config.run.batch, config.model.context, config.run.seed);
        let part = Part::whole(config)?;
        let mut plan = BatchPlan::new(corpus, &plan_options(config, &part))?;
        let mut mixer = plan.mixer();
        let validation = ValidationSet::new(corpus, context, config.run.eval_tokens)?;
        let vocab = corpus.tokenizer().vocab_size() as usize;
        let worst = 2.0 * (vocab as f64).ln();
        let layout = Layout::new(&config.model, vocab);
        let weights = |id: usize| Values::Floats(initial_tensor(&config.model, &layout, seed, id).into());
        let setup =
            Setup { vocab, batch, passes: config.run.passes(), recompute: config.run.recompute, seed };
        let mut learner = Learner::new(backend, &config.model, &config.optim, setup, &weights);
        let mut controller = match network {
            Some(network) => {
                let network = || Ok(network.clone());
                let clusters = config.optim.clusters;
                Controller::new::<crate::Error>(ControllerKind::Learned, seed, clusters, network)?
            }
            None => steering::controller(&Disk, &config.optim, seed)?,
        };
        let (mut inputs, mut targets) = (vec![0; batch * context], vec![0; batch * context]);
        let (mut guard, steps) = (Guard::default(), part.last);
        for step in 0..steps {
            let at = (step, steps);
            let (optim, steered) = (&config.optim, controller.as_ref());
            let rates = steering::steer(optim, layout.ternary, at, 1.0, steered, &mut learner.optimizer);
            let windows = plan.windows_of(step, mixer.as_mut())?;
            plan.read(corpus, &windows, &mut inputs, &mut targets)?;
            if optim.feedback > 0 && step.is_multiple_of(optim.feedback) {
                learner.watch();
            }
            learner.round_by(config.run.lambda(at));
            match learner.step(backend, &inputs, &targets, rates) {
                Ok(measured) => {
                    guard.taken();
                    if let Some(controller) = &mut controller {
                        steering::observe(controller, optim, at, 1.0, rates, &measured, &learner.optimizer);
                    }
                }
                Err(what) => {
                    if let Verdict::Stop(_) = guard.skipped(what, step) {
                        return Ok(worst);
                    }
                }
            }
        }
        learner.rest(backend);
        let Learner { model, activations, .. } = &mut learner;
        let mut single = Single::new(backend, model, activations);
        let loss = evaluate(&mut single, corpus, &validation).map(only)?.loss;
        Ok(if loss < worst { loss } else { worst })
    }
}

/// The losses of some proxies, computed side by side, one thread for each of `backends`. They do not depend on
/// how many there are.
///
/// # Errors
/// As [`Proxy::loss`].
pub fn losses<B: Backend + Sync>(backends: &[B], proxies: &[Proxy<'_>]) -> Result<Vec<f64>> {
    let next = AtomicUsize::new(0);
    let found = Mutex::new(vec![None; proxies.len()]);
    let work = |backend: &B| -> Result<()> {
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(proxy) = proxies.get(index) else { return Ok(()) };
            let loss = backend.run(|| proxy.loss(backend))?;
            if let Some(place) = found.lock().unwrap_or_else(|poison| poison.into_inner()).get_mut(index) {
                *place = Some(loss);
            }
        }
    };
    let outcomes = std::thread::scope(|scope| {
        let threads: Vec<_> = backends.iter().map(|backend| scope.spawn(|| work(backend))).collect();
        let joined = threads.into_iter().map(|thread| match thread.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        joined.collect::<Vec<_>>()
    });
    outcomes.into_iter().collect::<Result<()>>()?;
    let found = found.into_inner().unwrap_or_else(|poison| poison.into_inner());
    Ok(found.into_iter().flatten().collect())
}
