//! How the backend starts, and what it tells of itself.

use std::{collections::BTreeMap, sync::Mutex};

use tritrain_kernels::{Context, ContextError, Tier, descent, loss, outer, ternary};

use crate::{
    Spent,
    profile::{Profile, Span},
};

/// Why the CPU backend cannot start.
pub type CpuError = ContextError;

/// CPU kernels of one tier on one pool of threads.
#[derive(Debug)]
pub struct Cpu {
    pub(super) cx: Context,
    pub(super) profile: Option<Profile>,
    pub(super) ternary: Mutex<ternary::Scratch>,
    pub(super) outer: Mutex<outer::Scratch>,
    pub(super) loss: Mutex<loss::Scratch>,
    pub(super) descent: Mutex<descent::Scratch>,
}

impl Cpu {
    /// The fastest tier of this machine (or the one `TRITRAIN_TIER` names) on `threads` threads, 0 for
    /// one per core. The number of threads changes no result.
    ///
    /// # Errors
    /// The tier is not available, or the threads cannot be started.
    pub fn new(threads: usize) -> Result<Cpu, CpuError> {
        Cpu::with_tier(Tier::detect()?, threads)
    }

    /// A given tier.
    ///
    /// # Errors
    /// The threads cannot be started.
    pub fn with_tier(tier: Tier, threads: usize) -> Result<Cpu, CpuError> {
        Ok(Cpu {
            cx: Context::new(tier, threads)?,
            profile: None,
            ternary: Mutex::default(),
            outer: Mutex::default(),
            loss: Mutex::default(),
            descent: Mutex::default(),
        })
    }

    /// The same backend, counting the time of every operation from now on.
    #[must_use]
    pub fn profiled(self) -> Cpu {
        Cpu { profile: Some(Profile::default()), ..self }
    }

    /// Time by operation since the last call of this function; nothing without [`Cpu::profiled`].
    pub fn spent(&self) -> BTreeMap<&'static str, Spent> {
        self.profile.as_ref().map(Profile::take).unwrap_or_default()
    }

    pub(super) fn span(&self, name: &'static str) -> Option<Span<'_>> {
        self.profile.as_ref().map(|profile| profile.span(name))
    }

    /// The instructions in use.
    pub fn tier(&self) -> Tier {
        self.cx.tier()
    }

    /// The threads in use.
    pub fn threads(&self) -> usize {
        self.cx.threads()
    }
}
