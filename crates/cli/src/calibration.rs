//! Where the costs of single operations are kept: in the user's cache, for each machine its own.

use std::path::PathBuf;

use tritrain_dispatch::{Config, Dispatcher};

use crate::{args::Device, cache, devices, error::Result};

const WHAT: &str = "calibration";

/// A dispatcher with the calibration of last time, or a new one, which is then kept; and where it lies.
pub(crate) fn dispatcher(config: Config) -> Result<(Dispatcher, Option<PathBuf>)> {
    let path = cache::path("calibration.json");
    let known = path.as_deref().and_then(|path| cache::read(path, WHAT));
    let engine = devices::engine(&Device::default())?;
    let dispatcher = Dispatcher::new(config, engine, known).map_err(tritrain_bench::BenchError::from)?;
    if let Some(path) = path.as_deref().filter(|_| dispatcher.is_renewed()) {
        cache::write(path, WHAT, &dispatcher.calibration());
    }
    Ok((dispatcher, path))
}
