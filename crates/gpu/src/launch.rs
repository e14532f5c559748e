//! How kernels are given buffers, and over how many units they run.
#![expect(unsafe_code, reason = "CubeCL takes it on trust that a buffer has the length it is said to have")]

use cubecl::{prelude::*, server::Handle};

use crate::{Floats, Gpu, Tokens};

/// Units of a cube in one dimension.
pub(crate) const UNITS: u32 = 256;

/// A buffer as an argument of kernels.
#[derive(Clone)]
pub(crate) struct Buffer {
    handle: Handle,
    len: usize,
}

/// A buffer of `len` elements as an argument.
pub(crate) fn arg(handle: &Handle, len: usize) -> Buffer {
    Buffer { handle: handle.clone(), len: len.max(1) }
}

/// What kernels are given.
pub(crate) trait Argument {
    /// As CubeCL takes it.
    type Given;
    /// Gives it.
    fn give(&self) -> Self::Given;

    /// Says what it is, where launches are noted.
    #[cfg(feature = "emit")]
    fn tell(&self, _launch: &mut crate::record::Launch) {}
}

impl Argument for Buffer {
    type Given = BufferArg;

    fn give(&self) -> BufferArg {
        // SAFETY: every buffer of this crate is made with the length its owner keeps.
        unsafe { BufferArg::from_raw_parts(self.handle.clone(), self.len) }
    }

    #[cfg(feature = "emit")]
    fn tell(&self, launch: &mut crate::record::Launch) {
        launch.bytes.push(4 * self.len as u64);
    }
}

macro_rules! numbers {
    ($($number:ty as $step:ty)*) => {$(
        impl Argument for $number {
            type Given = $number;

            fn give(&self) -> $number {
                *self
            }

            #[cfg(feature = "emit")]
            fn tell(&self, launch: &mut crate::record::Launch) {
                launch.numbers.push(<$step>::from(*self) as f64);
            }
        }
    )*};
}
numbers!(bool as u32 u32 as u32 usize as usize f32 as f32);

impl Floats {
    /// The numbers as an argument.
    pub(crate) fn arg(&self) -> Buffer {
        arg(&self.handle, self.len)
    }
}

impl Tokens {
    /// The ids as an argument.
    pub(crate) fn arg(&self) -> Buffer {
        arg(&self.handle, self.len)
    }
}

/// Cubes of [`UNITS`] units for `units` of them: in two dimensions, because one holds 65535 cubes.
pub(crate) fn cubes_for(units: usize) -> CubeCount {
    cubes(units.div_ceil(UNITS as usize))
}

/// A given number of cubes, or a few more.
pub(crate) fn cubes(count: usize) -> CubeCount {
    const MOST: usize = 32_768;
    let across = count.clamp(1, MOST);
    CubeCount::Static(across as u32, count.div_ceil(across).max(1) as u32, 1)
}

/// The usual cube.
pub(crate) fn units() -> CubeDim {
    CubeDim::new_1d(UNITS)
}

impl Gpu {
    /// New memory for `words` words, whose contents are unknown.
    pub(crate) fn room(&self, words: usize) -> Handle {
        self.holds(words);
        self.client.empty(4 * if self.is_noting() { 1 } else { words.max(1) })
    }

    /// New memory with these bytes, whole words of them.
    pub(crate) fn put(&self, bytes: &[u8]) -> Handle {
        self.holds(bytes.len() / 4);
        self.client.create_from_slice(if self.is_noting() { &[0; 4] } else { bytes })
    }
}

/// Queues a kernel: `launch!(gpu, kernel, cubes, units, arguments..)`. Where launches are watched, the watcher is
/// given the kernel as well.
macro_rules! launch {
    ($gpu:expr, $kernel:ident, $count:expr, $dim:expr $(, $argument:expr)* $(,)?) => {{
        use $crate::launch::Argument as _;
        let count = $count;
        #[cfg(feature = "emit")]
        if let Some(watch) = &$gpu.watch {
            let (properties, target) = watch.properties();
            let count = count.clone();
            let kernel = $kernel::create_dummy_kernel(properties, target, count, $dim $(, $argument.give())*);
            watch.launched(stringify!($kernel), &kernel);
        }
        #[cfg(feature = "emit")]
        let noted = $gpu.note_launch(stringify!($kernel), &count, |_launch| { $($argument.tell(_launch);)* });
        #[cfg(not(feature = "emit"))]
        let noted = false;
        if !noted {
            $kernel::launch(&$gpu.client, count, $dim $(, $argument.give())*);
        }
    }};
}
pub(crate) use launch;
