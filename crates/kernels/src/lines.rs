//! Bytes that begin at a line of the cache: a register of 64 bytes never straddles two.

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
        if self.0.len() < lines {
            self.0.resize(lines, Line([0; LINE]));
        }
        bytemuck::cast_slice_mut(&mut self.0[..lines])
    }

    /// All bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}
