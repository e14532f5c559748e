//! Which tokens are in which batch: a pure function of the step.

use tritrain_files::tokens::Split;
use tritrain_trit::rng::{Permutation, Stream};

use crate::{Corpus, Error, Result};

/// The purpose of the random numbers drawn here, apart from those of tensors.
const SHIFT: u32 = u32::from_be_bytes(*b"shft");

/// The order of training: windows of `context + 1` tokens that overlap by one, so that every token but
/// the first is predicted once, in a new random order each epoch. Windows run across documents.
///
/// Each epoch lays its windows from another offset below `context`, so that no two epochs see the same
/// windows; for that, up to `2·context` tokens are left out at the ends. Nothing here changes from step
/// to step: a run that goes on needs the step and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchPlan {
    seed: u64,
    batch: usize,
    context: usize,
    windows: u64,
    shifts: u64,
}

impl BatchPlan {
    /// The plan of a corpus.
    ///
    /// # Errors
    /// [`Error::Short`] when the training split holds no window; [`Error::Shape`] when `batch` or
    /// `context` is zero.
    pub fn new(corpus: &Corpus, seed: u64, batch: usize, context: usize) -> Result<Self> {
        for (what, value) in [("sequences in a batch", batch), ("context", context)] {
            if value == 0 {
                return Err(Error::Shape { what, expected: "at least 1".into(), found: "0".into() });
            }
        }
        corpus.check(context)?;
        let (len, step) = (corpus.len(Split::Train), context as u64);
        // The last window of an epoch ends at shift + windows·context + 1 <= len.
        let windows = ((len - step) / step).max(1);
        let shifts = (len - windows * step).min(step);
        Ok(BatchPlan { seed, batch, context, windows, shifts })
    }

    /// Windows in an epoch.
    pub fn windows(&self) -> u64 {
        self.windows
    }

    /// Epochs behind after this many steps.
    pub fn epoch(&self, step: u64) -> f64 {
        step as f64 * self.batch as f64 / self.windows as f64
    }

    /// Where the `k`-th window of training begins.
    fn start(&self, k: u64) -> u64 {
        let (epoch, index) = (k / self.windows, k % self.windows);
        let random = u64::from(Stream::new(self.seed, SHIFT, epoch).bits(0));
        let shift = (random * self.shifts) >> 32;
        shift + Permutation::new(self.seed, epoch, self.windows).at(index) * self.context as u64
    }

    /// Fills in the batch of a step: `inputs` and `targets`, both `[batch, context]`, targets one token
    /// ahead.
    ///
    /// # Errors
    /// [`Error::Shape`] when a slice has another length; [`Error::Files`] for a damaged shard.
    pub fn batch(&self, corpus: &Corpus, step: u64, inputs: &mut [u32], targets: &mut [u32]) -> Result<()> {
        check_len("inputs", inputs, self.batch * self.context)?;
        check_len("targets", targets, self.batch * self.context)?;
        let first = step.checked_mul(self.batch as u64).and_then(|k| k.checked_add(self.batch as u64));
        let first = first.ok_or_else(|| Error::Shape {
            what: "step",
            expected: "fewer than 2^64 windows".into(),
            found: step.to_string(),
        })? - self.batch as u64;
        let mut window = vec![0; self.context + 1];
        let rows = inputs.chunks_exact_mut(self.context).zip(targets.chunks_exact_mut(self.context));
        for (k, (input, target)) in (first..).zip(rows) {
            corpus.tokens().read(Split::Train, self.start(k), &mut window)?;
            copy_window(&window, input, target);
        }
        Ok(())
    }
}

/// A window of `context + 1` tokens as inputs and targets.
pub(crate) fn copy_window(window: &[u32], input: &mut [u32], target: &mut [u32]) {
    input.iter_mut().zip(window).for_each(|(to, from)| *to = *from);
    target.iter_mut().zip(window.iter().skip(1)).for_each(|(to, from)| *to = *from);
}

pub(crate) fn check_len(what: &'static str, slice: &[u32], expected: usize) -> Result<()> {
    if slice.len() == expected {
        return Ok(());
    }
    Err(Error::Shape { what, expected: format!("{expected} tokens"), found: slice.len().to_string() })
}
