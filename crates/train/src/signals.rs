//! SIGINT and SIGTERM: the first asks for a checkpoint and a clean end, the second ends at once.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use signal_hook::consts::{SIGINT, SIGTERM};

use crate::{Error, Result};

/// Exit code of a run that was stopped by a signal and saved.
pub const STOPPED: i32 = 75;

/// Whether a signal asked the program to stop.
#[derive(Clone, Debug)]
pub struct Signals {
    asked: Arc<AtomicBool>,
}

impl Signals {
    /// Watches for SIGINT and SIGTERM from now on.
    ///
    /// # Errors
    /// The system refuses.
    pub fn watch() -> Result<Signals> {
        let asked = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order: a signal that comes when the flag is already set ends the process.
            signal_hook::flag::register_conditional_shutdown(signal, STOPPED, Arc::clone(&asked))
                .map_err(Error::Signals)?;
            signal_hook::flag::register(signal, Arc::clone(&asked)).map_err(Error::Signals)?;
        }
        Ok(Signals { asked })
    }

    /// Whether a signal came.
    pub fn asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }
}
