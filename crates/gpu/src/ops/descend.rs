//! descend.

#![allow(unused)]
use std::borrow::Cow;
use tritrain_backend::*;
use crate::{Floats, Gpu, Packed, Rows, Ternary, Tokens};


pub(crate) fn descend(gpu: &Gpu, w: &mut Weight<Gpu>, u: &Floats, moment: Option<&mut Packed>, with: &Descent<'_>, reports: &mut Floats)  { todo!() }
