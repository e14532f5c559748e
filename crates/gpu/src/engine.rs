//! Single operations on a device, for whoever has numbers in the memory of the host: transfers both ways are part of
//! each.

use std::sync::{Mutex, PoisonError};

use tritrain_cluster::{Fit, Options, Points, Start, fit};
use tritrain_dispatch::{Engine, Error, Result, Task, TernaryWeights};

use crate::{Gpu, ops::single};

/// Rows, or columns, of the result of a product: 65535 cubes in each dimension, with the smallest tile of 32.
const MOST_LINES: usize = 65_535 * 32;

/// A device that does single operations, one after the other.
pub struct GpuEngine {
    gpu: Gpu,
    /// Held by an operation, so that what goes wrong is told to the one it belongs to.
    busy: Mutex<()>,
}

impl GpuEngine {
    /// An engine on a device.
    pub fn new(gpu: Gpu) -> GpuEngine {
        GpuEngine { gpu, busy: Mutex::default() }
    }

    /// What an operation gives, if nothing went wrong on the device.
    fn alone<R>(&self, work: impl FnOnce(&Gpu) -> Result<R>) -> Result<R> {
        let _busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        let result = work(&self.gpu);
        match self.gpu.take_fault() {
            Some(reason) => Err(Error::Engine { engine: self.describe(), reason }),
            None => result,
        }
    }
}

impl Engine for GpuEngine {
    fn describe(&self) -> String {
        self.gpu.adapter().to_string()
    }

    fn refuses(&self, task: &Task) -> Option<String> {
        let product = |rows: usize, outputs: usize, inputs: usize| {
            [rows.saturating_mul(inputs), outputs.saturating_mul(inputs), rows.saturating_mul(outputs)]
        };
        let buffers = match *task {
            Task::Quantize { len } | Task::Dequantize { len } => [len; 3],
            // Sums are pairs of words.
            Task::Kmeans { rows, dim, k, .. } => {
                [rows.saturating_mul(dim), k.saturating_mul(dim).saturating_mul(2), rows]
            }
            Task::Matmul { rows, outputs, inputs } => product(rows, outputs, inputs),
            // Codes are sixteen to a number.
            Task::TernaryMatmul { rows, outputs, inputs } => {
                product(rows, outputs.div_ceil(16), inputs).map(|len| len.max(rows.saturating_mul(outputs)))
            }
        };
        if let Task::Matmul { rows, outputs, .. } | Task::TernaryMatmul { rows, outputs, .. } = *task
            && rows.max(outputs) > MOST_LINES
        {
            return Some(format!("{} rows, of which kernels take at most {MOST_LINES}", rows.max(outputs)));
        }
        let largest = buffers.into_iter().max().unwrap_or(0).saturating_mul(4);
        let most = self.gpu.largest_buffer();
        (largest as u64 > most)
            .then(|| format!("a buffer of {largest} bytes, of which the device takes at most {most}"))
    }

    fn quantize(&self, x: &[f32], codes: &mut [u8]) -> Result<f32> {
        self.alone(|gpu| match single::quantize(gpu, x, codes) {
            Some(scale) => Ok(scale),
            // The host says what is wrong with these numbers.
            None => Ok(gpu.host.quantize(x, codes)?),
        })
    }

    fn dequantize(&self, codes: &[u8], scale: f32, out: &mut [f32]) -> Result<()> {
        self.alone(|gpu| match single::dequantize(gpu, codes, scale, out) {
            true => Ok(()),
            // Likewise.
            false => Ok(gpu.host.dequantize(codes, scale, out)?),
        })
    }

    fn kmeans(&self, x: &[f32], shape: (usize, usize), start: Start<'_>, options: &Options) -> Result<Fit> {
        self.alone(|gpu| Ok(fit(&mut Points::new(gpu, gpu.given(x), shape, false)?, start, options)?))
    }

    fn matmul(&self, x: &[f32], w: &[f32], [_, _, inputs]: [usize; 3], y: &mut [f32]) -> Result<()> {
        self.alone(|gpu| {
            if inputs == 0 {
                y.fill(0.0);
            } else if !y.is_empty() {
                single::matmul(gpu, x, w, inputs, y);
            }
            Ok(())
        })
    }

    fn ternary_matmul(&self, x: &[f32], w: &TernaryWeights, y: &mut [f32]) -> Result<()> {
        self.alone(|gpu| {
            let quantized = w.quantized();
            if quantized.is_empty() {
                y.fill(0.0);
            } else if !y.is_empty() {
                single::ternary_matmul(gpu, x, (quantized.codes(), quantized.scale()), w.shape(), y);
            }
            Ok(())
        })
    }
}
