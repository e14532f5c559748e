//! Archives: a model file in which ternary matrices lie at their entropy.
//!
//! A matrix is a U8 tensor as [`tritrain_trit::archive`] makes it, its fp16 scale a tensor `NAME.scale`; metadata
//! `tritrain.format.NAME` says `archive`. Everything else is as in any model file, without loss. Latent weights, which
//! only training needs, are not in it: a model read from an archive has others with the same codes and scales.

use std::{path::Path, time::Instant};

use half::f16;
use serde::Serialize;
use tritrain_backend::{Backend, Values};
use tritrain_files::{
    Storage,
    tensors::{self, Dtype, TensorFile, TensorView},
};
use tritrain_trit::archive;

use crate::{
    Error, Loaded, Result,
    export::weights::{Rows, Weights},
    save::{TOKENIZER, format_key, metadata},
};

/// The format's name in metadata.
pub(crate) const ARCHIVE: &str = "archive";

/// What an archive takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Archived {
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes of the same model in f32.
    pub bytes_in_f32: u64,
    /// Weights in ternary matrices.
    pub ternary_weights: u64,
    /// Bits that one of them takes, scales included, over all matrices.
    pub bits_per_weight: f64,
    /// The same of the matrix that takes most.
    pub largest_bits_per_weight: f64,
    /// Ternary weights a second that one thread reads back.
    pub weights_per_s: f64,
}

/// Weights for each byte of the whole file: more than any model has, embedding included.
const MOST: usize = 64;

/// Name of the scale of a matrix.
fn scale_name(name: &str) -> String {
    format!("{name}.scale")
}

/// Writes an archive of a ternary model to `out`, where nothing may lie yet, and reads it back.
///
/// # Errors
/// [`Error::Archive`] for a model without ternary matrices, or where something lies there; [`Error::Files`].
pub fn archive<B: Backend>(
    backend: &B,
    storage: &dyn Storage,
    loaded: &Loaded,
    out: &Path,
) -> Result<Archived> {
    let refused = |what: &str| Error::Archive { path: out.to_path_buf(), what: what.to_owned() };
    let weights = Weights::of(backend, loaded)?;
    if !weights.layout.ternary {
        return Err(refused("the model has no ternary matrices: there is nothing to gain"));
    }
    if storage.exists(out)? {
        return Err(refused("something lies there; choose another name"));
    }
    let mut entries = metadata(&loaded.config, loaded.vocab, 0)?;
    entries.insert(TOKENIZER.to_owned(), loaded.tokenizer.hash().to_owned());
    let (mut coded, mut report) = (Vec::new(), Bits::default());
    for (spec, rows) in weights.layout.specs.iter().zip(&weights.tensors) {
        if let Rows::Codes(codes, scale) = rows {
            let bytes =
                archive::encode(codes).map_err(|error| refused(&format!("{}: {error}", spec.name)))?;
            report.add(codes.len(), bytes.len() + 2);
            entries.insert(format_key(&spec.name), ARCHIVE.to_owned());
            coded.push((scale_name(&spec.name), bytes, [f16::from_f32(*scale).to_bits()]));
        }
    }
    let mut next = coded.iter();
    let mut views = Vec::new();
    for (spec, rows) in weights.layout.specs.iter().zip(&weights.tensors) {
        match rows {
            Rows::Floats(values) => views.push(TensorView::f32(&*spec.name, &spec.shape(), values)),
            Rows::Codes(..) => {
                if let Some((name, bytes, scale)) = next.next() {
                    views.push(TensorView::u8(&*spec.name, &[bytes.len()], bytes));
                    views.push(TensorView::f16(&**name, &[1], scale));
                }
            }
        }
    }
    tensors::save(storage, out, views, &entries)?;
    let file = TensorFile::parse(out, storage.map(out)?)?;
    let mut seconds = 0.0;
    for (spec, rows) in weights.layout.specs.iter().zip(&weights.tensors) {
        if let Rows::Codes(codes, scale) = rows {
            let started = Instant::now();
            let (back, its) = read_codes(&file, out, &spec.name, codes.len())?;
            seconds += started.elapsed().as_secs_f64();
            if back != *codes || its != *scale {
                return Err(refused(&format!("{} did not come back as it was", spec.name)));
            }
        }
    }
    Ok(Archived {
        bytes: storage.len(out)?,
        bytes_in_f32: 4 * weights.layout.parameters() as u64,
        ternary_weights: report.weights,
        bits_per_weight: 8.0 * report.bytes as f64 / report.weights.max(1) as f64,
        largest_bits_per_weight: report.largest,
        weights_per_s: report.weights as f64 / seconds,
    })
}

#[derive(Default)]
struct Bits {
    weights: u64,
    bytes: u64,
    largest: f64,
}

impl Bits {
    fn add(&mut self, weights: usize, bytes: usize) {
        self.weights += weights as u64;
        self.bytes += bytes as u64;
        self.largest = self.largest.max(8.0 * bytes as f64 / weights.max(1) as f64);
    }
}

/// Codes and scale of a matrix of `len` weights, which are compared with the bytes of the file.
fn read_codes(file: &TensorFile, path: &Path, name: &str, len: usize) -> Result<(Vec<i8>, f32)> {
    let view = file.get(name)?;
    let content =
        |expected: String, found: String| Error::Content { path: path.to_path_buf(), expected, found };
    // Codes may take next to nothing where all are equal; a model of such matrices alone is no model.
    let all: usize = file.names().filter_map(|name| file.get(name).ok()).map(|view| view.data.len()).sum();
    if len > all.saturating_mul(MOST) {
        return Err(content(
            format!("{name} of at most {MOST} weights for each byte of the file"),
            len.to_string(),
        ));
    }
    let bytes = file.typed(name, Dtype::U8, &[view.data.len()])?;
    let scale = file.floats(&scale_name(name), &[1])?.first().copied().unwrap_or_default();
    if !(scale.is_finite() && scale >= 0.0) {
        return Err(content(format!("a scale of {name}"), scale.to_string()));
    }
    let mut codes = vec![0; len];
    archive::decode(bytes, &mut codes)
        .map_err(|error| content(format!("{name} as {len} entropy-coded weights"), error.to_string()))?;
    Ok((codes, scale))
}

/// Codes and scale of a matrix `[rows, cols]`.
pub(crate) fn read(
    file: &TensorFile,
    path: &Path,
    name: &str,
    [rows, cols]: [usize; 2],
) -> Result<Values<'static>> {
    let (codes, scale) = read_codes(file, path, name, rows.saturating_mul(cols))?;
    Ok(Values::Codes(codes.into(), scale))
}
