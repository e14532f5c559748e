//! The engines on the processor.

use std::sync::{Mutex, PoisonError};

use tritrain_backend::{Backend, Cpu, Memory, Tier};
use tritrain_cluster::{Fit, Options, Points, Start, fit};

use crate::{Engine, Result, TernaryWeights};

/// Kernels of one tier, on the calling thread or on a pool.
pub(crate) struct Host {
    cpu: Cpu,
    /// Taken before the pool is entered: a thread of it that waits may take up another operation, which must not
    /// wait for working memory that this very thread has lent.
    busy: Mutex<()>,
}

impl Host {
    pub(crate) fn new(tier: Tier, threads: usize) -> Result<Host> {
        Ok(Host { cpu: Cpu::with_tier(tier, threads)?, busy: Mutex::default() })
    }

    pub(crate) fn threads(&self) -> usize {
        self.cpu.threads()
    }

    fn alone<R>(&self, work: impl FnOnce() -> R) -> R {
        let _busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        work()
    }
}

impl Engine for Host {
    fn describe(&self) -> String {
        let threads = self.cpu.threads();
        format!("{}, {threads} thread{}", self.cpu.tier().name(), if threads == 1 { "" } else { "s" })
    }

    fn quantize(&self, x: &[f32], codes: &mut [u8]) -> Result<f32> {
        Ok(self.alone(|| self.cpu.quantize(x, codes))?)
    }

    fn dequantize(&self, codes: &[u8], scale: f32, out: &mut [f32]) -> Result<()> {
        Ok(self.alone(|| self.cpu.dequantize(codes, scale, out))?)
    }

    fn kmeans(&self, x: &[f32], shape: (usize, usize), start: Start<'_>, options: &Options) -> Result<Fit> {
        let work = || {
            let mut floats = self.cpu.floats(x.len());
            self.cpu.upload(x, &mut floats);
            fit(&mut Points::new(&self.cpu, floats, shape, false)?, start, options)
        };
        Ok(self.alone(|| self.cpu.run(work))?)
    }

    fn matmul(&self, x: &[f32], w: &[f32], sizes: [usize; 3], y: &mut [f32]) -> Result<()> {
        match self.cpu.tier() {
            Tier::SCALAR => plain(x, w, sizes, y),
            _ => self.alone(|| self.cpu.product(x, w, sizes, y)),
        }
        Ok(())
    }

    fn ternary_matmul(&self, x: &[f32], w: &TernaryWeights, y: &mut [f32]) -> Result<()> {
        self.alone(|| {
            let panels = w.panels(&self.cpu)?;
            self.cpu.ternary_product(x, panels, y);
            Ok(())
        })
    }
}

/// `y = x·wᵀ`, one multiply-add after the other. The GEMM of other tiers would take whatever instructions it finds.
fn plain(x: &[f32], w: &[f32], [_, outputs, inputs]: [usize; 3], y: &mut [f32]) {
    if inputs == 0 {
        return y.fill(0.0);
    }
    for (x, y) in x.chunks_exact(inputs).zip(y.chunks_exact_mut(outputs.max(1))) {
        for (w, y) in w.chunks_exact(inputs).zip(y) {
            *y = x.iter().zip(w).map(|(x, w)| x * w).sum();
        }
    }
}
