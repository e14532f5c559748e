//! How the integers of a factor lie in memory, for the instructions of a tier.

use super::{BLOCK, scalar};
#[cfg(target_arch = "x86_64")]
use super::{avx_vnni, avx2, avx512};
#[cfg(any(target_arch = "aarch64", test))]
use crate::neon;
use crate::{Tier, tier::Level, tile::COLUMNS};

/// The integers of a product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Int8 by int8: a gradient by an input.
    Int8,
    /// Int16 by int8: probabilities by hidden states or rows of the head.
    Int16,
    /// Twelve bits by twelve bits: logits.
    Twelve,
}

impl Kind {
    /// Largest magnitude of the left factor.
    pub(crate) const fn left_bound(self) -> i16 {
        match self {
            Kind::Int8 => 127,
            Kind::Int16 => 32767,
            Kind::Twelve => 2047,
        }
    }

    /// Largest magnitude of the right factor.
    pub(crate) const fn right_bound(self) -> i16 {
        match self {
            Kind::Int8 | Kind::Int16 => 127,
            Kind::Twelve => 2047,
        }
    }

    /// Whether the sums of a block fit an i32.
    const fn fits(self) -> bool {
        BLOCK * self.left_bound() as usize * self.right_bound() as usize <= i32::MAX as usize
    }
}
const _: () = assert!(Kind::Int8.fits() && Kind::Int16.fits() && Kind::Twelve.fits());

/// What the tiles of a product multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "AMX is there alone"))]
pub(crate) enum Layout {
    /// Int16, two inner indices side by side.
    Pairs,
    /// Bytes, four inner indices side by side; the right factor may have an offset, so that it is unsigned.
    Quads,
    /// Bytes in tiles of AMX: one plane, or two for the upper and the lower byte, of either factor.
    Tiles {
        /// Planes of the left factor.
        left: usize,
        /// Planes of the right factor.
        right: usize,
    },
}

/// How one factor lies in memory: panels of some rows (or columns), lanes of four inner indices or two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "AMX is there alone"))]
pub(crate) enum Side {
    /// `[pair][width][2]` of i16.
    Pairs {
        /// Lanes of a panel.
        width: usize,
    },
    /// `[quad][width][4]` of bytes.
    Quads {
        /// Lanes of a panel.
        width: usize,
    },
    /// `[64 inner indices][plane][16][64]` of bytes.
    Rows {
        /// One byte of each integer, or the upper and then the lower.
        planes: usize,
    },
    /// `[16 quads][plane][quad][16][4]` of bytes.
    Columns {
        /// As above.
        planes: usize,
    },
}

/// Bytes, rows and quads of a tile of AMX; here as well where there is none.
pub(crate) const TILE: usize = 1024;
pub(crate) const TILE_ROWS: usize = 16;
pub(super) const TILE_QUADS: usize = 16;

impl Side {
    /// Lanes of a panel.
    pub(crate) fn width(self) -> usize {
        match self {
            Side::Pairs { width } | Side::Quads { width } => width,
            Side::Rows { .. } | Side::Columns { .. } => TILE_ROWS,
        }
    }

    /// Quads of a panel over `inner` inner indices, those included that only fill it up.
    pub(crate) fn quads(self, inner: usize) -> usize {
        match self {
            Side::Pairs { .. } | Side::Quads { .. } => inner.div_ceil(4),
            Side::Rows { .. } | Side::Columns { .. } => inner.div_ceil(4).next_multiple_of(TILE_QUADS),
        }
    }

    /// Bytes of a panel over `inner` inner indices: whole lines.
    pub(crate) fn panel(self, inner: usize) -> usize {
        let quads = self.quads(inner);
        match self {
            Side::Pairs { width } => (quads * width * 8).next_multiple_of(64),
            Side::Quads { width } => (quads * width * 4).next_multiple_of(64),
            Side::Rows { planes } | Side::Columns { planes } => quads / TILE_QUADS * planes * TILE,
        }
    }

    /// Bytes of one lane of a panel over `inner` inner indices.
    pub(crate) fn lane(self, inner: usize) -> usize {
        let quads = self.quads(inner);
        match self {
            Side::Pairs { .. } => 8 * quads,
            Side::Quads { .. } => 4 * quads,
            Side::Rows { planes } | Side::Columns { planes } => 4 * quads * planes,
        }
    }

    /// Puts four values of a lane at their place in a panel.
    #[inline(always)]
    pub(crate) fn put(self, panel: &mut [u8], lane: usize, quad: usize, values: [i16; 4]) {
        let upper = || values.map(|v| (v >> 8) as u8);
        let lower = values.map(|v| v as u8);
        match self {
            Side::Pairs { width } => {
                for (half, pair) in values.as_chunks::<2>().0.iter().enumerate() {
                    let bytes = pair.map(i16::to_le_bytes);
                    let at = ((2 * quad + half) * width + lane) * 4;
                    panel[at..at + 4].copy_from_slice(bytes.as_flattened());
                }
            }
            Side::Quads { width } => panel[(quad * width + lane) * 4..][..4].copy_from_slice(&lower),
            Side::Rows { planes } => {
                let at = quad / TILE_QUADS * planes * TILE + lane * 64 + quad % TILE_QUADS * 4;
                put_planes(panel, at, planes, upper(), lower);
            }
            Side::Columns { planes } => {
                let at = quad / TILE_QUADS * planes * TILE + quad % TILE_QUADS * 64 + lane * 4;
                put_planes(panel, at, planes, upper(), lower);
            }
        }
    }
}

#[inline(always)]
fn put_planes(panel: &mut [u8], at: usize, planes: usize, upper: [u8; 4], lower: [u8; 4]) {
    if planes == 2 {
        panel[at..at + 4].copy_from_slice(&upper);
        panel[at + TILE..at + TILE + 4].copy_from_slice(&lower);
    } else {
        panel[at..at + 4].copy_from_slice(&lower);
    }
}

/// The form of a product on a tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    pub(crate) layout: Layout,
    pub(crate) left: Side,
    pub(crate) right: Side,
    /// Panels of the right factor in a tile.
    pub(crate) panels: usize,
    /// What every value of the right factor is offset by.
    pub(crate) offset: i32,
}

/// The offset that makes int8 unsigned.
#[cfg(target_arch = "x86_64")]
const UNSIGNED: i32 = 128;

impl Form {
    /// What `tier` multiplies in a product of `kind`.
    pub(crate) fn of(tier: Tier, kind: Kind) -> Form {
        let pairs = |width, panels| Form {
            layout: Layout::Pairs,
            left: Side::Pairs { width },
            right: Side::Pairs { width: COLUMNS },
            panels,
            offset: 0,
        };
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        let quads = |width, panels, offset| Form {
            layout: Layout::Quads,
            left: Side::Quads { width },
            right: Side::Quads { width: COLUMNS },
            panels,
            offset,
        };
        match (tier.level(), kind) {
            (Level::Scalar, _) => pairs(scalar::ROWS, 1),
            #[cfg(any(target_arch = "aarch64", test))]
            (Level::Neon, Kind::Int8) => quads(neon::ROWS, 1, 0),
            #[cfg(any(target_arch = "aarch64", test))]
            (Level::Neon, _) => pairs(neon::ROWS, 1),
            #[cfg(target_arch = "x86_64")]
            (Level::AvxVnni, Kind::Int8) => quads(avx_vnni::ROWS, 1, UNSIGNED),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx2 | Level::AvxVnni, _) => pairs(avx2::ROWS, 1),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, Kind::Int8) => quads(avx512::ROWS, 2, UNSIGNED),
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512, _) => pairs(avx512::ROWS, 2),
            #[cfg(target_arch = "x86_64")]
            (Level::Amx, _) => {
                let planes = |bound: i16| if bound <= 127 { 1 } else { 2 };
                let (left, right) = (planes(kind.left_bound()), planes(kind.right_bound()));
                Form {
                    layout: Layout::Tiles { left, right },
                    left: Side::Rows { planes: left },
                    right: Side::Columns { planes: right },
                    panels: if right == 1 { 2 } else { 1 },
                    offset: 0,
                }
            }
        }
    }
}
