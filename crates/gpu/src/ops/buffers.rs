//! Buffers between host and device, and whole buffers on the device.

use std::borrow::Cow;

use cubecl::prelude::*;

use crate::{
    Floats, Gpu, Ternary, Tokens,
    blocks::{UNITS, cube_max, magnitude, word_desk},
    launch::{arg, cubes, cubes_for, launch, units},
};

/// Elements that one cube looks through in a reduction.
pub(super) const SHARE: usize = 4096;

#[cube(launch, create_dummy_kernel)]
fn copy_kernel(from: &[f32], to: &mut [f32]) {
    if ABSOLUTE_POS < min(from.len(), to.len()) {
        to[ABSOLUTE_POS] = from[ABSOLUTE_POS];
    }
}

#[cube(launch, create_dummy_kernel)]
fn clear_kernel(to: &mut [f32]) {
    if ABSOLUTE_POS < to.len() {
        to[ABSOLUTE_POS] = 0.0f32;
    }
}

#[cube(launch, create_dummy_kernel)]
fn scale_kernel(x: &mut [f32], factor: f32) {
    if ABSOLUTE_POS < x.len() {
        x[ABSOLUTE_POS] *= factor;
    }
}

/// One cube a share: the largest magnitude, as its bits.
#[cube(launch, create_dummy_kernel)]
fn largest_kernel(x: &[f32], out: &mut [u32]) {
    let mut desk = word_desk();
    if CUBE_POS < out.len() {
        let first = CUBE_POS * SHARE;
        let last = min(first + SHARE, x.len());
        let mut largest = 0u32;
        let mut i = first + UNIT_POS as usize;
        while i < last {
            largest = max(largest, magnitude(x[i]));
            i += UNITS;
        }
        let largest = cube_max(largest, &mut desk);
        if UNIT_POS == 0 {
            out[CUBE_POS] = largest;
        }
    }
}

pub(crate) fn resize(gpu: &Gpu, buffer: &mut Floats, len: usize) {
    if len > buffer.room {
        let mut larger = Floats { handle: gpu.room(len), len, room: len };
        launch!(gpu, copy_kernel, cubes_for(buffer.len), units(), buffer.arg(), larger.arg());
        std::mem::swap(buffer, &mut larger);
    }
    buffer.len = len;
}

pub(crate) fn upload(gpu: &Gpu, from: &[f32], to: &mut Floats) {
    assert_eq!(from.len(), to.len, "lengths of host and device");
    if !from.is_empty() {
        to.handle = gpu.put(bytemuck::cast_slice(from));
        to.room = from.len();
    }
}

pub(crate) fn upload_tokens(gpu: &Gpu, from: &[u32], to: &mut Tokens) {
    assert_eq!(from.len(), to.len, "lengths of host and device");
    if !from.is_empty() {
        to.handle = gpu.put(bytemuck::cast_slice(from));
    }
}

pub(crate) fn host<'a>(gpu: &Gpu, from: &'a Floats) -> Cow<'a, [f32]> {
    let mut host = vec![0.0; from.len];
    download(gpu, from, &mut host);
    host.into()
}

pub(crate) fn download(gpu: &Gpu, from: &Floats, to: &mut [f32]) {
    assert_eq!(from.len, to.len(), "lengths of host and device");
    bytemuck::cast_slice_mut(to).copy_from_slice(&gpu.read(&from.handle, 4 * from.len));
}

pub(crate) fn download_each<'a>(gpu: &Gpu, each: impl Iterator<Item = (&'a Floats, &'a mut [f32])>) {
    let each: Vec<_> = each.filter(|(from, _)| from.len > 0).collect();
    let read = gpu.read_all(each.iter().map(|(from, _)| from.handle.clone()).collect());
    for (at, (from, to)) in each.into_iter().enumerate() {
        assert_eq!(from.len, to.len(), "lengths of host and device");
        match read.get(at) {
            Some(bytes) => bytemuck::cast_slice_mut(to).copy_from_slice(&bytes[..4 * from.len]),
            None => to.fill(0.0),
        }
    }
}

pub(crate) fn download_ternary(gpu: &Gpu, from: &Ternary) -> (Vec<i8>, f32) {
    let words_of_row = from.inputs.div_ceil(16);
    let bytes = gpu.read(&from.forward, 4 * from.outputs * words_of_row);
    let scale = gpu.read(&from.scale, 4);
    let mut codes = Vec::with_capacity(from.outputs * from.inputs);
    for row in bytes.chunks_exact(4 * words_of_row) {
        codes.extend((0..from.inputs).map(|i| (row[i / 4] >> (2 * (i % 4)) & 3) as i8 - 1));
    }
    (codes, f32::from_le_bytes([scale[0], scale[1], scale[2], scale[3]]))
}

pub(crate) fn copy(gpu: &Gpu, from: &Floats, to: &mut Floats) {
    assert_eq!(from.len, to.len, "lengths of a copy");
    launch!(gpu, copy_kernel, cubes_for(to.len), units(), from.arg(), to.arg());
}

pub(crate) fn clear(gpu: &Gpu, to: &mut Floats) {
    launch!(gpu, clear_kernel, cubes_for(to.len), units(), to.arg());
}

pub(crate) fn scale(gpu: &Gpu, x: &mut Floats, factor: f32) {
    launch!(gpu, scale_kernel, cubes_for(x.len), units(), x.arg(), factor);
}

pub(crate) fn max_abs(gpu: &Gpu, x: &Floats) -> f32 {
    let shares = x.len.div_ceil(SHARE);
    let out = gpu.room(shares);
    launch!(gpu, largest_kernel, cubes(shares), units(), x.arg(), arg(&out, shares));
    let bytes = gpu.read(&out, 4 * shares);
    let largest = bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes)).max();
    f32::from_bits(largest.unwrap_or(0))
}
