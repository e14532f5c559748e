//! Rows that can be clustered: checked, and scaled where squares would overflow or vanish.

use std::collections::HashSet;

use tritrain_backend::Backend;

use crate::{Error, Result};

/// Magnitudes from here down and from there up are brought near 1 by a power of two, which rounds nothing but
/// entries 2^-90 of the largest.
const SMALL: f32 = 1.0 / (1u64 << 32) as f32;
const LARGE: f32 = (1u64 << 32) as f32;

/// Rows on a backend, ready for any number of fits.
#[derive(Debug)]
pub struct Points<'a, B: Backend> {
    pub(crate) backend: &'a B,
    pub(crate) x: B::Floats,
    pub(crate) state: B::Clusters,
    pub(crate) rows: usize,
    pub(crate) dim: usize,
    pub(crate) spherical: bool,
    /// What rows were multiplied by; 1 for most, and for directions.
    pub(crate) scale: f64,
}

impl<'a, B: Backend> Points<'a, B> {
    /// The rows of `x` `[rows][dim]`, `len` floats. `spherical`: their directions, rows of length 1, whose
    /// centroids have length 1 too (Dhillon and Modha, "Concept decompositions", 2001).
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::NotFinite`], and of directions [`Error::ZeroRow`].
    pub fn new(
        backend: &'a B,
        mut x: B::Floats,
        (rows, dim): (usize, usize),
        spherical: bool,
    ) -> Result<Points<'a, B>> {
        if rows == 0 || dim == 0 || u32::try_from(rows).is_err() {
            let expected = format!("1 to {} rows and 1 column or more", u32::MAX);
            return Err(Error::Shape { what: "the rows", expected, found: format!("{rows} × {dim}") });
        }
        let largest = backend.max_abs(&x);
        if !largest.is_finite() {
            return Err(not_finite("the rows", &download::<B>(backend, &x, rows * dim), dim));
        }
        let mut scale = 1.0;
        if spherical {
            if backend.normalize_rows(&mut x, dim) {
                return Err(zero_row("the rows", &download::<B>(backend, &x, rows * dim), dim));
            }
        } else if largest > 0.0 && !(SMALL..LARGE).contains(&largest) {
            // Exact in f32 for any exponent that an f32 can have, in two steps where one would overflow.
            let exponent = -(f64::from(largest).log2().floor() as i32);
            for part in [exponent / 2, exponent - exponent / 2] {
                backend.scale(&mut x, 2f32.powi(part));
            }
            scale = 2f64.powi(exponent);
        }
        let state = backend.clusters(&x, dim);
        Ok(Points { backend, x, state, rows, dim, spherical, scale })
    }

    /// Number of rows and of columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.dim)
    }

    pub(crate) fn check_k(&self, k: usize) -> Result<()> {
        match k {
            0 => Err(Error::NoClusters { rows: self.rows }),
            _ if k > self.rows => Err(Error::TooManyClusters { k, rows: self.rows }),
            _ => Ok(()),
        }
    }

    pub(crate) fn download(&self) -> Vec<f32> {
        download::<B>(self.backend, &self.x, self.rows * self.dim)
    }

    pub(crate) fn upload(&self, from: &[f32]) -> B::Floats {
        let mut to = self.backend.floats(from.len());
        self.backend.upload(from, &mut to);
        to
    }

    /// The rows at these places.
    pub(crate) fn gather(&self, rows: &[u32]) -> B::Floats {
        let mut ids = self.backend.tokens(rows.len());
        self.backend.upload_tokens(rows, &mut ids);
        let mut to = self.backend.floats(rows.len() * self.dim);
        self.backend.embed(&ids, &self.x, self.dim, &mut to);
        to
    }

    /// The error for a `k` that the rows do not have.
    pub(crate) fn too_few(&self, k: usize) -> Error {
        Error::TooFewDistinct { k, distinct: distinct(&self.download(), self.dim) }
    }
}

fn download<B: Backend>(backend: &B, from: &B::Floats, len: usize) -> Vec<f32> {
    let mut to = vec![0.0; len];
    backend.download(from, &mut to);
    to
}

/// Number of different rows; -0 is 0.
pub(crate) fn distinct(x: &[f32], dim: usize) -> usize {
    let bits: Vec<u32> = x.iter().map(|x| (x + 0.0).to_bits()).collect();
    bits.chunks_exact(dim).collect::<HashSet<_>>().len()
}

/// The error for the first entry that is not finite.
pub(crate) fn not_finite(what: &'static str, x: &[f32], dim: usize) -> Error {
    let at = x.iter().position(|x| !x.is_finite()).unwrap_or(0);
    Error::NotFinite { what, row: at / dim, column: at % dim, found: x[at] }
}

/// The error for the first row of zeros.
pub(crate) fn zero_row(what: &'static str, x: &[f32], dim: usize) -> Error {
    let row = x.chunks_exact(dim).position(|row| row.iter().all(|x| *x == 0.0)).unwrap_or(0);
    Error::ZeroRow { what, row }
}
