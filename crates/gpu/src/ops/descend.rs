//! descend.

#![allow(unused)]
use crate::{Floats, Gpu, Packed, Rows, Ternary, Tokens};
use std::borrow::Cow;
use tritrain_backend::*;

pub(crate) fn descend(
    gpu: &Gpu,
    w: &mut Weight<Gpu>,
    u: &Floats,
    moment: Option<&mut Packed>,
    with: &Descent<'_>,
    reports: &mut Floats,
) {
    todo!()
}
