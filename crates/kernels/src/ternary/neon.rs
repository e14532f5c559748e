//! Tiles with NEON: codes {0, 1, 2} are signed bytes as well, which `sdot` multiplies by the activations.
//!
//! The tile is that of [`crate::neon`]. One row takes, per group of eight inputs, two loads of packed codes,
//! half a load of activations, ten instructions to take the codes apart and eight `sdot`, each to a sum of
//! its own.

use super::{GROUP, STEP};
use crate::{
    Tier,
    neon::{self, ROWS, Register, Words},
    tier::Level,
    tile::{COLUMNS, Out},
};

/// See [`super::tiles`].
pub(super) fn tiles(tier: Tier, x: &[u8], steps: usize, codes: &[u8], out: &mut Out<'_>) {
    let (rows, codes) = (out.rows(), &codes[..steps * STEP * COLUMNS]);
    assert!(x.len() >= rows.next_multiple_of(ROWS) * steps * STEP);
    for (row, x) in (0..rows).step_by(ROWS).zip(x.chunks_exact(ROWS * steps * STEP)) {
        out.finish(row, &neon::bytes(tier, x, codes));
    }
}

/// One row, padded to whole groups, against one panel of packed codes.
pub(super) fn panel(tier: Tier, x: &[u8], packed: &[u8], out: &mut Out<'_>) {
    assert!(tier.level() == Level::Neon && packed.len() * GROUP >= x.len() * 32);
    // SAFETY: the tier proves the features, or these are emulated.
    out.finish(0, &[[unsafe { panel_sums(x, packed) }]]);
}

/// # Safety
/// Needs NEON with dot products.
#[cfg_attr(target_arch = "aarch64", target_feature(enable = "neon,dotprod"))]
unsafe fn panel_sums(x: &[u8], packed: &[u8]) -> [i32; COLUMNS] {
    // For inputs 0..4 of groups and inputs 4..8, four outputs each.
    let mut acc = [[neon::zero(); 4]; 2];
    let (pairs, rest) = x.as_chunks::<{ 2 * GROUP }>();
    let (codes, _) = packed.as_chunks::<64>();
    for (x, codes) in pairs.iter().zip(codes) {
        let (x, (codes, _)) = (neon::load(x), codes.as_chunks::<32>());
        group::<0, 1>(&mut acc, &codes[0], x);
        group::<2, 3>(&mut acc, &codes[1], x);
    }
    if let (Some(rest), Some(codes)) = (rest.first_chunk::<GROUP>(), packed[64 * pairs.len()..].first_chunk())
    {
        let mut x = [0; 2 * GROUP];
        x[..GROUP].copy_from_slice(rest);
        group::<0, 1>(&mut acc, codes, neon::load(&x));
    }
    let mut sums = [[0; 4]; 4];
    for (sums, (near, far)) in sums.iter_mut().zip(acc[0].iter().zip(acc[1])) {
        *sums = neon::store(neon::add(*near, far));
    }
    bytemuck::cast(sums)
}

/// A group of eight inputs, words `NEAR` and `FAR` of `x`, by sixteen outputs.
#[inline]
#[cfg_attr(target_arch = "aarch64", target_feature(enable = "neon,dotprod"))]
fn group<const NEAR: i32, const FAR: i32>(acc: &mut [[Words; 4]; 2], packed: &[u8; 32], x: Register) {
    for (c, bytes) in neon::load_two(packed).into_iter().enumerate() {
        acc[0][c] = neon::dot::<NEAR>(acc[0][c], neon::codes(bytes), x);
        acc[0][2 + c] = neon::dot::<NEAR>(acc[0][2 + c], neon::codes(neon::shifted::<2>(bytes)), x);
        acc[1][c] = neon::dot::<FAR>(acc[1][c], neon::codes(neon::shifted::<4>(bytes)), x);
        acc[1][2 + c] = neon::dot::<FAR>(acc[1][2 + c], neon::shifted::<6>(bytes), x);
    }
}
