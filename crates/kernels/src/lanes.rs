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

/// Chains of a product of slices, of [`LANES`] each: together they hide the latency of multiply-adds.
const CHAINS: usize = 4;

/// Sum of chains, then of their lanes as a tree.
#[inline(always)]
fn total_chains(acc: [Lanes; CHAINS]) -> f32 {
    let mut lanes = [0.0; LANES];
    for l in 0..LANES {
        lanes[l] = (acc[0][l] + acc[1][l]) + (acc[2][l] + acc[3][l]);
    }
    total(lanes)
}

/// Dot product of two slices of equal length.
#[inline(always)]
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    sum_products(a, b, |x, y, sum| x.mul_add(y, sum))
}

/// Squared distance of two slices of equal length.
#[inline(always)]
pub fn square_distance(a: &[f32], b: &[f32]) -> f32 {
    sum_products(a, b, |x, y, sum| {
        let difference = x - y;
        difference.mul_add(difference, sum)
    })
}

/// `add(x, y, sum)` over the elements of two slices of equal length, in chains.
#[inline(always)]
fn sum_products(a: &[f32], b: &[f32], add: impl Fn(f32, f32, f32) -> f32) -> f32 {
    debug_assert_eq!(a.len(), b.len());
    let mut acc = [[0.0; LANES]; CHAINS];
    let (lanes_a, tail_a) = a.as_chunks::<LANES>();
    let (lanes_b, tail_b) = b.as_chunks::<LANES>();
    let (chunks_a, rest_a) = lanes_a.as_chunks::<CHAINS>();
    let (chunks_b, rest_b) = lanes_b.as_chunks::<CHAINS>();
    for (x, y) in chunks_a.iter().zip(chunks_b) {
        for c in 0..CHAINS {
            for l in 0..LANES {
                acc[c][l] = add(x[c][l], y[c][l], acc[c][l]);
            }
        }
    }
    for (acc, (x, y)) in acc.iter_mut().zip(rest_a.iter().zip(rest_b)) {
        for l in 0..LANES {
            acc[l] = add(x[l], y[l], acc[l]);
        }
    }
    for (acc, (x, y)) in acc[0].iter_mut().zip(tail_a.iter().zip(tail_b)) {
        *acc = add(*x, *y, *acc);
    }
    total_chains(acc)
}

/// Products of twelve-bit and eight-bit integers whose sum fits an i32.
pub(crate) const EXACT: usize = 8192;
const _: () = assert!(EXACT * 2048 * 128 <= i32::MAX as usize + 1);

/// Dot product of integers below 2^11 and int8 in magnitude, exact in blocks, which are added in f32.
#[inline(always)]
pub fn dot_integers(a: &[i16], b: &[i8]) -> f32 {
    debug_assert_eq!(a.len(), b.len());
    let mut total = 0.0;
    for (a, b) in a.chunks(EXACT).zip(b.chunks(EXACT)) {
        let mut sum = 0i32;
        for (x, y) in a.iter().zip(b) {
            sum = sum.wrapping_add(i32::from(*x) * i32::from(*y));
        }
        total += sum as f32;
    }
    total
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
    // The bits of |x| order like the numbers, and every NaN orders above infinity. A largest integer is the
    // same in any order, which lets the compiler choose one.
    f32::from_bits(a.iter().fold(0, |largest, x| largest.max(x.to_bits() & 0x7fff_ffff)))
}

/// Largest element, or negative infinity; a NaN whose sign is not set orders above all.
#[inline(always)]
pub fn max(a: &[f32]) -> f32 {
    // Magnitudes of negative numbers order the other way round.
    let turn = |bits: i32| bits ^ ((bits >> 31).cast_unsigned() >> 1).cast_signed();
    let least = turn(f32::NEG_INFINITY.to_bits().cast_signed());
    let largest = a.iter().fold(least, |largest, x| largest.max(turn(x.to_bits().cast_signed())));
    f32::from_bits(turn(largest).cast_unsigned())
}

/// 1.5·2^23: adding it to |x| < 2^22 rounds to an integer, held in the low bits.
const MAGIC: f32 = 12_582_912.0;

/// `e^x = 2^n · y`: y in [√½, √2] and `n + MAGIC`, for -88 ≤ x < 89.
///
/// Cody and Waite reduction to |r| ≤ ln2/2, then a degree-6 polynomial (coefficients of Cephes
/// `expf`), all in `mul_add`, so that eight of them make one vector.
#[inline(always)]
fn exp_parts(x: f32) -> (f32, f32) {
    let shifted = x.mul_add(std::f32::consts::LOG2_E, MAGIC);
    let n = shifted - MAGIC;
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4f32;
    p = p.mul_add(r, 1.398_2e-3);
    p = p.mul_add(r, 8.333_452e-3);
    p = p.mul_add(r, 4.166_579_6e-2);
    p = p.mul_add(r, 1.666_666_5e-1);
    p = p.mul_add(r, 0.5);
    (p.mul_add(r * r, r) + 1.0, shifted)
}

/// `e^x`, within 2 ulp on [-87, 88]; 0 below and infinity above, NaN for NaN.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let clamped = if x < -88.0 { -88.0 } else { x };
    let clamped = if clamped > 88.9 { 88.9 } else { clamped };
    let (y, shifted) = exp_parts(clamped);
    // 2^n in two halves: n reaches 128, whose exponent alone would overflow.
    let n = shifted.to_bits().wrapping_sub(MAGIC.to_bits()) as i32;
    let half = n >> 1;
    let power = |k: i32| f32::from_bits((k.wrapping_add(127) as u32) << 23);
    let result = y * power(half) * power(n.wrapping_sub(half));
    let result = if x < -87.4 { 0.0 } else { result };
    let result = if x > 88.73 { f32::INFINITY } else { result };
    if x.is_nan() { x } else { result }
}

/// `e^x` within 1 ulp for `x ≤ 88`, 0 from −88 down, NaN for NaN: [`exp`] without what keeps larger
/// numbers right, in 0.6 of its time. The difference to a maximum needs no more.
#[inline(always)]
pub(crate) fn exp_bounded(x: f32) -> f32 {
    let (y, shifted) = exp_parts(if x < -88.0 { -88.0 } else { x });
    // 2^n from its exponent. At −88, n + 127 is 0, and those bits are the number 0.
    y * f32::from_bits(shifted.to_bits().wrapping_add(127) << 23)
}

/// Replaces each `x` by `e^(x − max)` and returns the sum.
#[inline(always)]
pub(crate) fn exp_sum(row: &mut [f32], max: f32) -> f32 {
    // Two loops: as one, the compiler vectorises the lanes of a single step, three times as slow.
    for x in row.iter_mut() {
        *x = exp_bounded(*x - max);
    }
    sum_of(row, |x| x)
}

/// Natural logarithm of a positive normal number, within 1 ulp; NaN and infinity come back as they are.
///
/// `x = m·2^e` with `m` in [√½, √2), then a polynomial in `m − 1` (coefficients of Cephes `logf`): the
/// system's logarithm differs between systems.
#[inline(always)]
pub(crate) fn ln(x: f32) -> f32 {
    const SQRT_HALF: i32 = 0x3f35_04f3; // bits of √½
    let bits = x.to_bits() as i32;
    let exponent = bits.wrapping_sub(SQRT_HALF) >> 23;
    let m = f32::from_bits(bits.wrapping_sub(exponent << 23) as u32) - 1.0;
    let e = exponent as f32;
    let square = m * m;
    let mut p = 7.037_683_6e-2f32;
    p = p.mul_add(m, -1.151_461e-1);
    p = p.mul_add(m, 1.167_699_9e-1);
    p = p.mul_add(m, -1.242_014_1e-1);
    p = p.mul_add(m, 1.424_932_3e-1);
    p = p.mul_add(m, -1.666_805_8e-1);
    p = p.mul_add(m, 2.000_071_5e-1);
    p = p.mul_add(m, -2.499_999_4e-1);
    p = p.mul_add(m, 3.333_333e-1);
    let low = e.mul_add(-2.121_944_4e-4, square * (m * p));
    let result = e.mul_add(0.693_359_4, m + square.mul_add(-0.5, low));
    if x < f32::INFINITY { result } else { x }
}

/// Logistic function `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    // Below −88 the result is less than the smallest normal number either way.
    1.0 / (1.0 + exp_bounded(if x < -88.0 { 88.0 } else { -x }))
}

/// Nearest integer, ties to even, for |x| < 2^22.
#[inline(always)]
pub fn round(x: f32) -> i32 {
    (x + MAGIC).to_bits().wrapping_sub(MAGIC.to_bits()) as i32
}
