//! What can do single operations.

use serde::{Deserialize, Serialize};
use tritrain_cluster::{Fit, Options, Start};

use crate::{Result, Task, TernaryWeights};

/// The engines a dispatcher chooses from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineKind {
    /// Plain loops on the calling thread.
    Scalar,
    /// The best instructions of the processor, on the calling thread.
    Simd,
    /// The same on a pool of threads.
    Parallel,
    /// A device of its own.
    Gpu,
}

impl EngineKind {
    /// All of them, in the order of [`crate::Dispatcher::engines`].
    pub const ALL: [EngineKind; 4] =
        [EngineKind::Scalar, EngineKind::Simd, EngineKind::Parallel, EngineKind::Gpu];

    /// Name in tables and files.
    pub fn name(self) -> &'static str {
        match self {
            EngineKind::Scalar => "scalar",
            EngineKind::Simd => "simd",
            EngineKind::Parallel => "parallel",
            EngineKind::Gpu => "gpu",
        }
    }

    pub(crate) fn index(self) -> usize {
        self as usize
    }
}

/// Does single operations on what lies in the memory of the host, and leaves results there; transfers are part of an
/// operation. Lengths have been checked when it is called, calls come from any thread.
pub trait Engine: Send + Sync {
    /// What it runs on, in a few words; another text means another machine to a calibration.
    fn describe(&self) -> String;

    /// Why it cannot do a task of such sizes, if it cannot: it is not asked to then.
    fn refuses(&self, _task: &Task) -> Option<String> {
        None
    }

    /// Packs the codes of `x` `[n]` into `codes` `[n/4, rounded up]` (`trit::pack::pack2`); returns their scale.
    ///
    /// # Errors
    /// A number is not finite, or the mean magnitude beyond fp16.
    fn quantize(&self, x: &[f32], codes: &mut [u8]) -> Result<f32>;

    /// Writes `code · scale` into `out` `[n]`; `codes` `[n/4, rounded up]`.
    ///
    /// # Errors
    /// A field is no code.
    fn dequantize(&self, codes: &[u8], scale: f32, out: &mut [f32]) -> Result<()>;

    /// Clusters the rows of `x` `[rows][dim]`. Labels are those of `tritrain_cluster::fit`.
    ///
    /// # Errors
    /// What makes clustering impossible.
    fn kmeans(&self, x: &[f32], shape: (usize, usize), start: Start<'_>, options: &Options) -> Result<Fit>;

    /// `y = x·wᵀ`; `sizes` are rows, outputs, inputs. The order of sums, so the last bits, are the engine's.
    ///
    /// # Errors
    /// The device failed.
    fn matmul(&self, x: &[f32], w: &[f32], sizes: [usize; 3], y: &mut [f32]) -> Result<()>;

    /// `y = q(x)·wᵀ`, with each row of `x` rounded to int8; exact in i32 before the scales.
    ///
    /// # Errors
    /// The device failed.
    fn ternary_matmul(&self, x: &[f32], w: &TernaryWeights, y: &mut [f32]) -> Result<()>;
}
