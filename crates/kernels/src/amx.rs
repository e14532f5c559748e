//! Products of bytes by the tile registers of AMX: 16 rows by 16 columns by 64 inner indices at a time.
//!
//! Rust has no stable intrinsics for AMX, so each product is one block of assembly that clears its sums,
//! runs over the inner index and stores the sums. Tiles of the left factor hold 16 rows of 64 bytes; tiles
//! of the right factor hold, for each of 16 groups of four inner indices, 16 columns of four bytes (Intel
//! SDM, volume 1, chapter 18). Both lie in memory as they are loaded, 1 KiB each.

use std::{arch::asm, marker::PhantomData, sync::OnceLock};

use crate::tile::COLUMNS;

/// Rows of a tile, and columns.
pub(crate) const ROWS: usize = 16;
const _: () = assert!(ROWS == COLUMNS);
/// Inner indices of a tile.
pub(crate) const DEPTH: usize = 64;
/// Bytes of a tile.
pub(crate) const TILE: usize = ROWS * DEPTH;
/// Multiply-adds of an instruction.
pub(crate) const MULTIPLY_ADDS: u64 = (ROWS * COLUMNS * DEPTH) as u64;

/// Whether a processor with AVX-512 has AMX for bytes, and the system lets this process use it.
pub(crate) fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| {
        const TILES_AND_INT8: u32 = 1 << 24 | 1 << 25;
        let features: u32;
        // SAFETY: every x86-64 processor has CPUID, and it touches no memory. The compiler keeps rbx.
        unsafe {
            asm!("mov {keep:r}, rbx", "cpuid", "mov rbx, {keep:r}", keep = out(reg) _,
                 inlateout("eax") 7 => _, inlateout("ecx") 0 => _, out("edx") features,
                 options(nomem, nostack));
        }
        features & TILES_AND_INT8 == TILES_AND_INT8 && permitted()
    })
}

/// Asks Linux for the state of the tile registers, for all threads of the process.
#[cfg(target_os = "linux")]
fn permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XTILEDATA: i64 = 18;
    let mut result = ARCH_PRCTL;
    // SAFETY: arch_prctl with this code reads and writes no memory of the process.
    unsafe {
        asm!("syscall", inlateout("rax") result, in("rdi") ARCH_REQ_XCOMP_PERM, in("rsi") XTILEDATA,
             out("rcx") _, out("r11") _, options(nostack));
    }
    result == 0
}

/// Other systems have ways of their own, which are not written here.
#[cfg(not(target_os = "linux"))]
fn permitted() -> bool {
    false
}

/// Tile registers of this thread, configured as whole tiles; released when dropped.
pub(crate) struct Tiles(PhantomData<*mut ()>);

#[repr(C, align(64))]
struct Config {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    rows: [u8; 16],
}

impl Tiles {
    /// Configures this thread.
    ///
    /// # Panics
    /// There is no AMX.
    pub(crate) fn new() -> Tiles {
        assert!(available(), "AMX");
        let mut config =
            Config { palette: 1, start_row: 0, reserved: [0; 14], bytes: [0; 16], rows: [0; 16] };
        config.bytes[..8].fill(DEPTH as u16);
        config.rows[..8].fill(ROWS as u8);
        // SAFETY: AMX is there, and the configuration is 64 bytes that palette 1 allows.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) };
        Tiles(PhantomData)
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: AMX is there, or `new` had panicked.
        unsafe { asm!("tilerelease", options(nomem, nostack)) };
    }
}

/// A product over the inner index, as one block of assembly: clears the registers named first, repeats
/// the instructions in the middle, which find the left factor at `a` and the right one at `b`, and stores.
macro_rules! product {
    ([$($zero:expr),*] [$($body:expr),*] [$($store:expr),*]
     $a:expr, $b:expr, $step_a:expr, $step_b:expr, $steps:expr, $sums:expr, { $($more:tt)* }) => {
        asm!(
            $($zero,)*
            "2:",
            $($body,)*
            "add {a}, {step_a}",
            "add {b}, {step_b}",
            "dec {steps}",
            "jnz 2b",
            $($store,)*
            a = inout(reg) $a => _, b = inout(reg) $b => _, steps = inout(reg) $steps => _,
            step_a = const $step_a, step_b = const $step_b, sums = in(reg) $sums, row = in(reg) DEPTH,
            $($more)*
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nostack),
        )
    };
}

/// Sums of a tile of 32 rows by 32 columns.
pub(crate) type Wide = [[[i32; COLUMNS]; 2]; 2 * ROWS];

/// Sums of a tile of 16 rows by 32 columns.
pub(crate) type Half = [[[i32; COLUMNS]; 2]; ROWS];

/// How the bytes of a right factor count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Right {
    Signed,
    Unsigned,
}

impl Tiles {
    /// `sums = Σ a·b`, `a` signed: two panels of 16 rows `next_a` bytes apart by two of 16 columns `next_b`
    /// bytes apart, over `steps` tiles each.
    ///
    /// # Panics
    /// The factors do not hold as much.
    #[inline(always)]
    pub(crate) fn int8(&self, a: [&[u8]; 2], b: [&[u8]; 2], right: Right, steps: usize, sums: &mut Wide) {
        assert!(steps > 0 && a.iter().chain(&b).all(|part| part.len() >= steps * TILE), "factors of tiles");
        let ([a, a1], [b, b1]) = (a.map(<[u8]>::as_ptr), b.map(<[u8]>::as_ptr));
        let (next_a, next_b) = (a1 as usize - a as usize, b1 as usize - b as usize);
        let sums = sums.as_mut_ptr();
        macro_rules! go {
            ($multiply:literal) => {
                product!(
                    ["tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3"]
                    ["tileloadd tmm4, [{a}+{row}*1]", "tileloadd tmm6, [{b}+{row}*1]",
                     concat!($multiply, " tmm0, tmm4, tmm6"),
                     "tileloadd tmm7, [{b1}+{row}*1]",
                     concat!($multiply, " tmm1, tmm4, tmm7"),
                     "tileloadd tmm5, [{a1}+{row}*1]",
                     concat!($multiply, " tmm2, tmm5, tmm6"),
                     concat!($multiply, " tmm3, tmm5, tmm7"),
                     "add {a1}, 1024", "add {b1}, 1024"]
                    ["tilestored [{sums}+{line}*1], tmm0", "tilestored [{sums}+{line}*1+64], tmm1",
                     "tilestored [{sums}+{line}*1+2048], tmm2", "tilestored [{sums}+{line}*1+2112], tmm3"]
                    a, b, TILE, TILE, steps, sums,
                    { a1 = inout(reg) a.wrapping_add(next_a) => _, b1 = inout(reg) b.wrapping_add(next_b) => _,
                      line = in(reg) 2 * DEPTH, }
                )
            };
        }
        // SAFETY: the registers are configured, `steps` tiles are in each part, asserted above, and `sums`
        // is 32 lines of 128 bytes, of which tiles take halves.
        unsafe {
            match right {
                Right::Signed => go!("tdpbssd"),
                Right::Unsigned => go!("tdpbsud"),
            }
        }
    }

    /// Sums of products of int16, in two planes each of a signed upper and an unsigned lower byte, with
    /// int8: 16 rows by two panels of columns. `upper` counts 256-fold.
    ///
    /// # Panics
    /// The factors do not hold as much.
    #[inline(always)]
    pub(crate) fn int16(
        &self,
        a: &[u8],
        b: [&[u8]; 2],
        steps: usize,
        (upper, lower): (&mut Half, &mut Half),
    ) {
        assert!(steps > 0 && a.len() >= 2 * steps * TILE, "left factor of tiles");
        assert!(b.iter().all(|part| part.len() >= steps * TILE), "right factor of tiles");
        let [b, b1] = b.map(<[u8]>::as_ptr);
        // SAFETY: the registers are configured, the factors hold `steps` tiles, asserted above, and both
        // results are 16 lines of 128 bytes, of which tiles take halves.
        unsafe {
            product!(
                ["tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3"]
                ["tileloadd tmm4, [{a}+{row}*1]", "tileloadd tmm6, [{b}+{row}*1]",
                 "tdpbssd tmm0, tmm4, tmm6",
                 "tileloadd tmm7, [{b1}+{row}*1]",
                 "tdpbssd tmm1, tmm4, tmm7",
                 "tileloadd tmm5, [{a}+{row}*1+1024]",
                 "tdpbusd tmm2, tmm5, tmm6",
                 "tdpbusd tmm3, tmm5, tmm7",
                 "add {b1}, 1024"]
                ["tilestored [{sums}+{line}*1], tmm0", "tilestored [{sums}+{line}*1+64], tmm1",
                 "tilestored [{lower}+{line}*1], tmm2", "tilestored [{lower}+{line}*1+64], tmm3"]
                a.as_ptr(), b, 2 * TILE, TILE, steps, upper.as_mut_ptr(),
                { b1 = inout(reg) b1 => _, lower = in(reg) lower.as_mut_ptr(), line = in(reg) 2 * DEPTH, }
            );
        }
    }

    /// The same with two planes in both factors: 16 rows by 16 columns. The three sums count 65536-fold,
    /// 256-fold and once.
    ///
    /// # Panics
    /// The factors do not hold as much.
    #[inline(always)]
    pub(crate) fn int16_both(
        &self,
        a: &[u8],
        b: &[u8],
        steps: usize,
        sums: &mut [[[i32; COLUMNS]; ROWS]; 3],
    ) {
        assert!(steps > 0 && a.len() >= 2 * steps * TILE && b.len() >= 2 * steps * TILE, "factors of tiles");
        // SAFETY: the registers are configured, the factors hold `steps` pairs of tiles, asserted above, and
        // the result is three tiles.
        unsafe {
            product!(
                ["tilezero tmm0", "tilezero tmm1", "tilezero tmm2"]
                ["tileloadd tmm4, [{a}+{row}*1]", "tileloadd tmm6, [{b}+{row}*1]",
                 "tdpbssd tmm0, tmm4, tmm6",
                 "tileloadd tmm7, [{b}+{row}*1+1024]",
                 "tdpbsud tmm1, tmm4, tmm7",
                 "tileloadd tmm5, [{a}+{row}*1+1024]",
                 "tdpbuud tmm2, tmm5, tmm7",
                 "tdpbusd tmm1, tmm5, tmm6"]
                ["tilestored [{sums}+{row}*1], tmm0", "tilestored [{sums}+{row}*1+1024], tmm1",
                 "tilestored [{sums}+{row}*1+2048], tmm2"]
                a.as_ptr(), b.as_ptr(), 2 * TILE, 2 * TILE, steps, sums.as_mut_ptr(), {}
            );
        }
    }

    /// Products of registers alone, `count` of them, a multiple of four.
    pub(crate) fn multiply(&self, count: u64) {
        assert!(count > 0 && count.is_multiple_of(4), "four sums in turn");
        // SAFETY: the registers are configured, and the loop counts down to zero.
        unsafe {
            asm!(
                "tilezero tmm4", "tilezero tmm5", "tilezero tmm6", "tilezero tmm7",
                "tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3",
                "2:",
                "tdpbssd tmm0, tmm4, tmm6", "tdpbssd tmm1, tmm4, tmm7",
                "tdpbssd tmm2, tmm5, tmm6", "tdpbssd tmm3, tmm5, tmm7",
                "dec {rounds}",
                "jnz 2b",
                rounds = inout(reg) count / 4 => _,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _, options(nomem, nostack),
            );
        }
    }
}
