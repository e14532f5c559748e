//! Building blocks of float kernels: eight virtual lanes, in the same order on every tier.

/// Virtual lane width. Fixed: it decides the order of every float reduction.
pub const LANES: usize = 8;

/// Eight lanes of f32.
pub type Lanes = [f32; LANES];

/// Sum of the lanes, as a tree.
#[inline(always)]
pub fn total(l: Lanes) -> f32 {
    ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]))
}

/// Dot product of two slices of equal length.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    debug_assert_eq!(a.len(), b.len());
    let mut acc = [0.0; LANES];
    let (chunks_a, tail_a) = a.as_chunks::<LANES>();
    let (chunks_b, tail_b) = b.as_chunks::<LANES>();
    for (x, y) in chunks_a.iter().zip(chunks_b) {
        for l in 0..LANES {
            acc[l] = x[l].mul_add(y[l], acc[l]);
        }
    }
    for (l, (x, y)) in tail_a.iter().zip(tail_b).enumerate() {
        acc[l] = x.mul_add(*y, acc[l]);
    }
    total(acc)
}

/// Sum of `map` over a slice, lane by lane.
#[inline(always)]
pub fn sum_of(a: &[f32], map: impl Fn(f32) -> f32) -> f32 {
    let mut acc = [0.0; LANES];
    let (chunks, tail) = a.as_chunks::<LANES>();
    for x in chunks {
        for l in 0..LANES {
            acc[l] += map(x[l]);
        }
    }
    for (l, x) in tail.iter().enumerate() {
        acc[l] += map(*x);
    }
    total(acc)
}

/// Largest absolute value; NaN if any element is NaN.
#[inline(always)]
pub fn max_abs(a: &[f32]) -> f32 {
    // The bits of |x| order like the numbers, and every NaN orders above infinity.
    let mut acc = [0u32; LANES];
    let (chunks, tail) = a.as_chunks::<LANES>();
    for x in chunks {
        for l in 0..LANES {
            acc[l] = acc[l].max(x[l].to_bits() & 0x7fff_ffff);
        }
    }
    for (l, x) in tail.iter().enumerate() {
        acc[l] = acc[l].max(x.to_bits() & 0x7fff_ffff);
    }
    let mut best = 0;
    for bits in acc {
        best = best.max(bits);
    }
    f32::from_bits(best)
}

/// Largest element, or negative infinity; NaN is not looked for.
#[inline(always)]
pub fn max(a: &[f32]) -> f32 {
    let mut acc = [f32::NEG_INFINITY; LANES];
    let (chunks, tail) = a.as_chunks::<LANES>();
    for x in chunks {
        for l in 0..LANES {
            acc[l] = if x[l] > acc[l] { x[l] } else { acc[l] };
        }
    }
    for (l, x) in tail.iter().enumerate() {
        acc[l] = if *x > acc[l] { *x } else { acc[l] };
    }
    let mut best = f32::NEG_INFINITY;
    for x in acc {
        best = if x > best { x } else { best };
    }
    best
}

/// `e^x`, within 2 ulp on [-87, 88]; 0 below and infinity above, NaN for NaN.
///
/// Cody and Waite reduction to |r| ≤ ln2/2, then a degree-6 polynomial (coefficients of Cephes
/// `expf`), all in `mul_add`, so that eight of them make one vector.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5·2^23: adding it rounds to an integer, held in the low bits
    let clamped = if x < -88.0 { -88.0 } else { x };
    let clamped = if clamped > 88.9 { 88.9 } else { clamped };
    let shifted = clamped.mul_add(std::f32::consts::LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    let r = n.mul_add(-0.693_359_4, clamped);
    let r = n.mul_add(2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4f32;
    p = p.mul_add(r, 1.398_2e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 0.5);
    let y = p.mul_add(r * r, r) + 1.0;
    // 2^n in two halves: n reaches 128, whose exponent alone would overflow.
    let half = shifted.to_bits().wrapping_sub(MAGIC.to_bits()) as i32 >> 1;
    let rest = (shifted.to_bits().wrapping_sub(MAGIC.to_bits()) as i32).wrapping_sub(half);
    let power = |k: i32| f32::from_bits((k.wrapping_add(127) as u32) << 23);
    let result = y * power(half) * power(rest);
    let result = if x < -87.4 { 0.0 } else { result };
    let result = if x > 88.73 { f32::INFINITY } else { result };
    if x.is_nan() { x } else { result }
}

/// Logistic function `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// Nearest integer, ties to even, for |x| < 2^22.
#[inline(always)]
pub fn round(x: f32) -> i32 {
    const MAGIC: f32 = 12_582_912.0; // 1.5·2^23: the integer is left in the low bits
    (x + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()) as i32
}
