//! The rates of a step: the schedule, and the controller on top of it.

use tritrain_backend::Backend;
use tritrain_files::Storage;
use tritrain_optim::{
    Controller, Decision, Network, OptimConfig, Optimizer, Rates, Report, Signals, Steer, rate_at,
};

use crate::{Error, Measured, Result};

/// The controller of a run at its start, where it has one.
///
/// # Errors
/// The file of weights cannot be read, or holds something else.
pub(crate) fn controller(
    storage: &dyn Storage,
    optim: &OptimConfig,
    seed: u64,
) -> Result<Option<Controller>> {
    Controller::new(optim.controller, seed, optim.clusters, || {
        let path = std::path::PathBuf::from(&optim.controller_weights);
        let network = match path.as_os_str().is_empty() {
            true => Network::shipped(),
            false => Network::parse(&String::from_utf8_lossy(&storage.read(&path)?)),
        };
        let expected = "the weights of a controller, as meta-train writes them".into();
        network.map_err(|error| Error::Content { path, expected, found: error.to_string() })
    })
}

/// Rates of `step` (from 0) of `steps`, all of them times `slower`, with the mean decision of the controller;
/// clusters of rows have their own relative to it. Gains follow the matrices.
pub(crate) fn steer<B: Backend>(
    optim: &OptimConfig,
    ternary: bool,
    (step, steps): (u64, u64),
    slower: f32,
    controller: Option<&Controller>,
    optimizer: &mut Optimizer<B>,
) -> Rates {
    let peak = if ternary { optim.rate } else { optim.rate_f32 };
    let mean = controller.map_or(Decision::default(), Controller::mean);
    if let Some(controller) = controller {
        let steers: Vec<Steer> = controller.decisions().map(|decision| decision.beside(&mean)).collect();
        optimizer.steer(&steers);
    }
    let share = rate_at(optim, step, steps) * slower * mean.multiplier();
    Rates {
        matrices: peak * share,
        embedding: optim.embedding_rate * share,
        radius: optim.bound() * slower * mean.radius(),
    }
}

/// Lets the controller see what a step with `rates` measured. That all rates are `slower` is part of the schedule:
/// a controller does not make up for it.
pub(crate) fn observe<B: Backend>(
    controller: &mut Controller,
    optim: &OptimConfig,
    (step, steps): (u64, u64),
    slower: f32,
    rates: Rates,
    measured: &Measured,
    optimizer: &Optimizer<B>,
) {
    let signals = Signals {
        loss: f64::from(measured.loss),
        gradient_norm: f64::from(measured.gradient_norm),
        share: f64::from(rate_at(optim, step, steps) * slower),
        done: step as f64 / steps.max(1) as f64,
    };
    let ratio = |(report, steer): (&Report, &Steer)| {
        // A cluster that has no rows goes with all of them.
        let of = if report.rows > 0.0 { report } else { &measured.report };
        of.intended(rates.matrices * steer.rate)
    };
    let ratios: Vec<f64> = optimizer.reports().iter().zip(optimizer.steers()).map(ratio).collect();
    if let Some(reduction) = &measured.reduction {
        controller.hear(reduction);
    }
    controller.decide(&signals, &ratios);
}
