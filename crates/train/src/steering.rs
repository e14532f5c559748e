//! The rates of a step: the schedule, and the controller on top of it.

use tritrain_files::Storage;
use tritrain_optim::{Controller, Decision, Network, OptimConfig, Rates, Signals, rate_at};

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
    Controller::new(optim.controller, seed, 1, || {
        let path = std::path::PathBuf::from(&optim.controller_weights);
        let network = match path.as_os_str().is_empty() {
            true => Network::shipped(),
            false => Network::parse(&String::from_utf8_lossy(&storage.read(&path)?)),
        };
        let expected = "the weights of a controller, as meta-train writes them".into();
        network.map_err(|error| Error::Content { path, expected, found: error.to_string() })
    })
}

/// Rates of `step` (from 0) of `steps`. The multiplier is for all rates alike; gains follow the matrices.
pub(crate) fn rates(
    optim: &OptimConfig,
    ternary: bool,
    (step, steps): (u64, u64),
    controller: Option<&Controller>,
) -> Rates {
    let peak = if ternary { optim.rate } else { optim.rate_f32 };
    let decision = controller.map_or(Decision::default(), Controller::mean);
    let share = rate_at(optim, step, steps) * decision.multiplier();
    Rates {
        matrices: peak * share,
        embedding: optim.embedding_rate * share,
        radius: optim.bound() * decision.radius(),
    }
}

/// Lets the controller see what a step with `rates` measured.
pub(crate) fn observe(
    controller: &mut Controller,
    optim: &OptimConfig,
    (step, steps): (u64, u64),
    rates: Rates,
    measured: &Measured,
) {
    let signals = Signals {
        loss: f64::from(measured.loss),
        gradient_norm: f64::from(measured.gradient_norm),
        share: f64::from(rate_at(optim, step, steps)),
        done: step as f64 / steps.max(1) as f64,
    };
    controller.decide(&signals, &[measured.report.intended(rates.matrices)]);
}
