//! Bytes that begin at a line of the cache: a register of 64 bytes never straddles two.

use std::ops::{Deref, DerefMut};

use bytemuck::{Pod, Zeroable};

/// Bytes of a line.
pub(crate) const LINE: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
struct Line([u8; LINE]);

// SAFETY: bytes without padding, all of whose values are valid.
unsafe impl Zeroable for Line {}
// SAFETY: as above; the alignment equals the size.
unsafe impl Pod for Line {}

/// A growing buffer of whole lines.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lines(Vec<Line>);

impl Lines {
    /// The first `len` bytes, of unknown contents, rounded up to whole lines.
    pub(crate) fn sized(&mut self, len: usize) -> &mut [u8] {
        let lines = len.div_ceil(LINE);
        grow(&mut self.0, lines);
        bytemuck::cast_slice_mut(&mut self.0[..lines])
    }

    /// All bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

/// Makes a buffer at least `len` long, without room for more.
pub(crate) fn grow<T: Clone + Zeroable>(buffer: &mut Vec<T>, len: usize) {
    if buffer.len() < len {
        buffer.reserve_exact(len - buffer.len());
        buffer.resize(len, T::zeroed());
    }
}

/// Asks for the line of memory at an address, which need not exist.
#[inline(always)]
pub(crate) fn prefetch(address: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: an instruction of every x86-64 processor, which reads nothing and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::without_provenance(address)) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// A fixed number of f32, the first of which begins a line.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Floats {
    lines: Vec<Line>,
    len: usize,
}

impl Floats {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Floats {
        Floats { lines: vec![Line([0; LINE]); (len * size_of::<f32>()).div_ceil(LINE)], len }
    }

    /// Makes them `len`, of which new ones have unknown contents; memory is taken where there was less before.
    pub fn resize(&mut self, len: usize) {
        let lines = (len * size_of::<f32>()).div_ceil(LINE);
        grow(&mut self.lines, lines);
        self.len = len;
    }
}

impl Deref for Floats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.lines)[..self.len]
    }
}

impl DerefMut for Floats {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.len]
    }
}

impl From<&[f32]> for Floats {
    fn from(values: &[f32]) -> Floats {
        let mut floats = Floats::zeros(values.len());
        floats.copy_from_slice(values);
        floats
    }
}

impl FromIterator<f32> for Floats {
    fn from_iter<I: IntoIterator<Item = f32>>(values: I) -> Floats {
        Floats::from(&Vec::from_iter(values)[..])
    }
}
