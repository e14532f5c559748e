//! packed.

#![allow(unused)]
use crate::{Floats, Gpu, Packed, Rows, Ternary, Tokens};
use std::borrow::Cow;
use tritrain_backend::*;

pub(crate) fn upload_packed(gpu: &Gpu, from: &[f32], range: f32, to: &mut Packed) {
    todo!()
}

pub(crate) fn round(gpu: &Gpu, from: &Floats, noise: &Stream, to: &mut Packed) {
    todo!()
}

pub(crate) fn accumulate(gpu: &Gpu, from: &Floats, noise: &Stream, first: bool, to: &mut Packed) {
    todo!()
}

pub(crate) fn unpack(gpu: &Gpu, from: &Packed, to: &mut Floats) {
    todo!()
}

pub(crate) fn download_packed(gpu: &Gpu, from: &Packed, to: &mut [f32]) {
    todo!()
}

pub(crate) fn stored<'a>(gpu: &Gpu, from: &'a Packed) -> Stored<'a> {
    todo!()
}

pub(crate) fn set_digits(gpu: &Gpu, w: &mut Packed, digits: &[u8]) -> f64 {
    todo!()
}

pub(crate) fn restore(gpu: &Gpu, from: &Stored<'_>, to: &mut Packed) -> Result<(), String> {
    todo!()
}

pub(crate) fn ternarize_packed(gpu: &Gpu, latent: &Packed, w: &mut Ternary, sides: Sides) {
    todo!()
}
