//! A parameter on a device, in f32 or in few bits, and how it moves.

use std::{borrow::Cow, fmt, ops::Deref, sync::Arc};

use half::f16;
use tritrain_kernels::packed::{self, Packed};
use tritrain_trit::{format::Format, ternary::latent};

use crate::Backend;

/// A parameter tensor on a device.
pub enum Weight<B: Backend> {
    /// f32.
    Floats(B::Floats),
    /// A matrix in few bits.
    Packed(B::Packed),
}

impl<B: Backend> Weight<B> {
    /// The f32 numbers.
    ///
    /// # Panics
    /// The tensor is packed, as only latent weights of ternary matrices are.
    pub fn floats(&self) -> &B::Floats {
        match self {
            Weight::Floats(floats) => floats,
            Weight::Packed(_) => panic!("{PACKED}"),
        }
    }

    /// The f32 numbers, to be changed.
    ///
    /// # Panics
    /// As [`Weight::floats`].
    pub fn floats_mut(&mut self) -> &mut B::Floats {
        match self {
            Weight::Floats(floats) => floats,
            Weight::Packed(_) => panic!("{PACKED}"),
        }
    }
}

const PACKED: &str = "only latent weights are packed, and nothing reads them as f32";

/// Which products codes are made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sides {
    /// Forward.
    Forward,
    /// The gradient of the input.
    Backward,
}

/// A packed matrix on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored<'a> {
    /// How its rows are stored.
    pub format: Format,
    /// The rows.
    pub bytes: Cow<'a, [u8]>,
    /// The number of digits of each row; none where all are of the format.
    pub digits: Cow<'a, [u8]>,
    /// What a level is worth, by row or one for all; none for bf16.
    pub steps: Cow<'a, [f32]>,
}

impl Stored<'_> {
    /// Whether it can be a matrix of some shape.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn check(&self, rows: usize, cols: usize) -> Result<(), String> {
        packed::check(self.format, [rows, cols], &self.bytes, &self.digits, &self.steps)
    }
}

/// Bytes that somebody else keeps, such as a part of a file; cheap to clone.
#[derive(Clone)]
pub struct Lent(Arc<dyn AsRef<[u8]> + Send + Sync>);

impl Lent {
    /// These bytes.
    pub fn new(bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> Lent {
        Lent(Arc::new(bytes))
    }

    /// Some rows of a table of fp16 numbers with `cols` columns, as f32.
    ///
    /// # Panics
    /// A row lies outside.
    pub fn rows(&self, rows: &[u32], cols: usize) -> Vec<f32> {
        let row = |row: &u32| halves(&self[2 * cols * *row as usize..][..2 * cols]);
        rows.iter().flat_map(row).collect()
    }
}

impl Deref for Lent {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

impl PartialEq for Lent {
    fn eq(&self, other: &Lent) -> bool {
        self[..] == other[..]
    }
}

impl fmt::Debug for Lent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lent({} bytes)", self.len())
    }
}

/// A parameter tensor on the host.
#[derive(Clone, Debug, PartialEq)]
pub enum Values<'a> {
    /// f32, row-major.
    Floats(Cow<'a, [f32]>),
    /// fp16, row-major, little endian.
    Halves(Lent),
    /// Latent weights in few bits.
    Packed(Stored<'a>),
    /// Ternary codes, row-major, and their scale, an fp16 number: all that computes of a matrix.
    Codes(Cow<'a, [i8]>, f32),
}

impl<'a> From<&'a Vec<f32>> for Values<'a> {
    fn from(values: &'a Vec<f32>) -> Values<'a> {
        Values::Floats(values.as_slice().into())
    }
}

const SHAPE: &str = "whoever reads stored numbers checks them first";

impl<'a> Values<'a> {
    /// On a device as f32.
    ///
    /// # Panics
    /// The shape is another.
    pub fn floats<B: Backend>(&self, backend: &B, rows: usize, cols: usize) -> B::Floats {
        let mut buffer = backend.floats(rows * cols);
        match self {
            Values::Floats(host) => backend.upload(host, &mut buffer),
            Values::Halves(host) => backend.upload_halves(host, &mut buffer),
            Values::Packed(_) | Values::Codes(..) => {
                backend.upload(&self.numbers(backend, rows, cols), &mut buffer);
            }
        }
        buffer
    }

    /// On a device in few bits: as it is in the same format, else rounded to it as [`Backend::upload_packed`]
    /// does.
    ///
    /// # Panics
    /// The shape is another.
    pub fn packed<B: Backend>(
        &self,
        backend: &B,
        (rows, cols): (usize, usize),
        format: Format,
        range: f32,
    ) -> B::Packed {
        let mut packed = backend.packed(format, rows, cols, by_row(format));
        match self {
            Values::Packed(stored) if stored.format == format => {
                backend.restore(stored, &mut packed).expect(SHAPE);
            }
            _ => backend.upload_packed(&self.numbers(backend, rows, cols), range, &mut packed),
        }
        packed
    }

    /// As f32 numbers that the host can tell: of codes latent weights that have them.
    ///
    /// # Panics
    /// Latent weights are packed: their device unpacks them.
    pub fn host(self) -> Cow<'a, [f32]> {
        match self {
            Values::Floats(host) => host,
            Values::Halves(host) => halves(&host).collect(),
            Values::Codes(codes, scale) => latent(&codes, scale).into(),
            Values::Packed(_) => panic!("{PACKED}"),
        }
    }

    /// In the place of a tensor of the same shape and format.
    ///
    /// # Panics
    /// Either is another.
    pub fn restore<B: Backend>(&self, backend: &B, (rows, cols): (usize, usize), to: &mut Weight<B>) {
        match (self, to) {
            (Values::Packed(stored), Weight::Packed(packed)) => {
                backend.restore(stored, packed).expect(SHAPE);
            }
            (_, Weight::Packed(_)) => panic!("{SHAPE}"),
            (_, Weight::Floats(floats)) => backend.upload(&self.numbers(backend, rows, cols), floats),
        }
    }

    /// As f32 numbers; of codes latent weights that have them.
    ///
    /// # Panics
    /// The shape is another.
    pub fn numbers<B: Backend>(&self, backend: &B, rows: usize, cols: usize) -> Cow<'_, [f32]> {
        match self {
            Values::Floats(host) => Cow::Borrowed(host),
            Values::Halves(host) => halves(host).collect(),
            Values::Codes(codes, scale) => latent(codes, *scale).into(),
            Values::Packed(stored) => {
                let packed = self.packed(backend, (rows, cols), stored.format, 1.0);
                let mut host = vec![0.0; rows * cols];
                backend.download_packed(&packed, &mut host);
                host.into()
            }
        }
    }
}

/// Numbers of fp16 in little endian.
pub(crate) fn halves(bytes: &[u8]) -> impl Iterator<Item = f32> {
    bytes.as_chunks().0.iter().map(|half| f16::from_le_bytes(*half).to_f32())
}

/// The same into floats.
pub(crate) fn widen(bytes: &[u8], to: &mut [f32]) {
    assert_eq!(bytes.len(), 2 * to.len(), "bytes of fp16 numbers");
    to.iter_mut().zip(halves(bytes)).for_each(|(to, from)| *to = from);
}

/// Whether latent weights of a format have a step for each row: eight bits do, digits share one.
pub fn by_row(format: Format) -> bool {
    format == Format::Int8
}

/// Bytes that the numbers of digits of a matrix take, where rows have different ones.
pub fn digits_room(rows: usize) -> usize {
    Packed::places_room(rows)
}
