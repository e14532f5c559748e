//! AdamW with both moments in 8 bits, in blocks with a step each.

use cubecl::prelude::*;
use tritrain_backend::{ADAM_BLOCK, Adam, Format, Stream};

use super::corrections;
use crate::{
    Floats, Gpu, Packed,
    blocks::{UNITS, as_byte, byte, cube_max, is_open, magnitude, nearest, word_desk},
    launch::{cubes, launch, units},
    ops::packed::{RUN, SIDE, random_words, step, words_of},
};

// One unit a number of a block.
const _: () = assert!(UNITS == ADAM_BLOCK);
/// Words of a block of levels.
const WORDS: usize = ADAM_BLOCK / 4;
/// Random words of a block.
const RANDOM: usize = ADAM_BLOCK / 2;
/// Blocks of random bits that they are.
const BLOCKS: usize = RANDOM / 4;
const LARGEST: f32 = 127.0;

/// The level of a number in levels, with a random byte, from `least` on.
#[cube]
fn level(x: f32, random: u32, least: f32) -> i32 {
    let chance = (f32::cast_from(random) + 0.5f32) * comptime![1.0f32 / 256.0];
    let mut level = (x + chance).floor();
    if level > LARGEST {
        level = LARGEST;
    }
    if level < least {
        level = least;
    }
    nearest(level)
}

/// A step that reaches to a magnitude, and its inverse, 0 where all levels are.
#[cube]
fn step_to(most: u32) -> (f32, f32) {
    let step = step(f32::reinterpret(most) / LARGEST);
    let mut inverse = 0.0f32;
    if step > 0.0f32 {
        inverse = 1.0f32 / step;
    }
    (step, inverse)
}

/// One cube a block.
#[cube(launch, create_dummy_kernel)]
fn adam8_kernel(
    g: &mut [f32],
    m: &mut [u32],
    m_steps: &mut [f32],
    v: &mut [u32],
    v_steps: &mut [f32],
    gates: &[f32],
    gate: usize,
    beta1: f32,
    beta2: f32,
    new1: f32,
    new2: f32,
    c1: f32,
    root2: f32,
    eps: f32,
    key_low: u32,
    key_high: u32,
    tensor: u32,
    time: u32,
) {
    let mut desk = word_desk();
    let mut random = Shared::<[u32]>::new_slice(RANDOM);
    let mut means = Shared::<[u32]>::new_slice(ADAM_BLOCK);
    let mut roots = Shared::<[u32]>::new_slice(ADAM_BLOCK);
    let block = CUBE_POS;
    if block < m_steps.len() && is_open(gates, gate) {
        let unit = UNIT_POS as usize;
        if unit < BLOCKS {
            let words = random_words(block, ADAM_BLOCK, unit, key_low, key_high, tensor, time);
            #[unroll]
            for at in 0..4usize {
                random[4 * unit + at] = words[at];
            }
        }
        let i = block * ADAM_BLOCK + unit;
        let mut mean = 0.0f32;
        let mut root = 0.0f32;
        if i < g.len() {
            let x = gates[gate] * g[i];
            let shift = 8u32 * (unit % 4) as u32;
            let old = f32::cast_from((v[block * WORDS + unit / 4] >> shift) & 0xffu32) * v_steps[block];
            let before =
                f32::cast_from(byte(m[block * WORDS + unit / 4], (unit % 4) as u32)) * m_steps[block];
            mean = beta1 * before + new1 * x;
            root = (beta2 * (old * old) + new2 * (x * x)).sqrt();
            g[i] = mean * c1 / (root * root2 + eps);
        }
        let (m_step, m_inverse) = step_to(cube_max(magnitude(mean), &mut desk));
        let (v_step, v_inverse) = step_to(cube_max(magnitude(root), &mut desk));
        // Column `unit` of a row of random halves.
        let place = unit / RUN * SIDE + unit % SIDE;
        let h = unit % RUN / SIDE;
        let half = random[4 * place + h / 2] >> (16u32 * (h % 2) as u32);
        let mut least = 0.0f32;
        if root > 0.0f32 {
            least = 1.0f32;
        }
        means[unit] = u32::reinterpret(level(mean * m_inverse, half & 0xffu32, -LARGEST));
        roots[unit] = u32::reinterpret(level(root * v_inverse, (half >> 8u32) & 0xffu32, least));
        sync_storage();
        if unit == 0 {
            m_steps[block] = m_step;
            v_steps[block] = v_step;
        }
        if unit < WORDS {
            let mut m_word = 0u32;
            let mut v_word = 0u32;
            #[unroll]
            for at in 0..4usize {
                if block * ADAM_BLOCK + 4 * unit + at < g.len() {
                    m_word |= as_byte(i32::reinterpret(means[4 * unit + at]), comptime![at as u32]);
                    v_word |= as_byte(i32::reinterpret(roots[4 * unit + at]), comptime![at as u32]);
                }
            }
            m[block * WORDS + unit] = m_word;
            v[block * WORDS + unit] = v_word;
        }
    }
}

pub(crate) fn adam8(gpu: &Gpu, g: &mut Floats, m: &mut Packed, v: &mut Packed, with: Adam, noise: &Stream) {
    let blocks = g.len.div_ceil(ADAM_BLOCK);
    for moment in [&*m, &*v] {
        assert!(
            moment.format == Format::Int8
                && [moment.rows, moment.cols] == [blocks, ADAM_BLOCK]
                && moment.by_row,
            "moments in blocks with a step each"
        );
    }
    if blocks == 0 {
        return;
    }
    let ([c1, c2], Adam { beta1, beta2, eps, .. }) = (corrections(with), with);
    let [low, high, tensor, time] = words_of(noise);
    let (m, v) = (m.layout(), v.layout());
    let (gates, gate) = gpu.gate();
    launch!(
        gpu,
        adam8_kernel,
        cubes(blocks),
        units(),
        g.arg(),
        m.words,
        m.steps,
        v.words,
        v.steps,
        gates,
        gate,
        beta1,
        beta2,
        1.0 - beta1,
        1.0 - beta2,
        c1,
        c2.sqrt(),
        eps,
        low,
        high,
        tensor,
        time,
    );
}
