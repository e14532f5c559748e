//! Arrays of NumPy (`.npy`): matrices of f32 or f64 to read, f32 and u32 to write, f32 also as a stream.
//!
//! Source: NumPy Enhancement Proposal 1. A magic string, a version, the length of a header, the header (a Python
//! literal with three keys), then the bytes of the array. Headers are read for these keys alone, without
//! recursion, and the shape is compared with the bytes that are there.

use std::{
    ops::Range,
    path::{Path, PathBuf},
};

use crate::{Bytes, Error, NewFile, Result, Storage, write_atomic};

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// Bytes of a header at most; what NumPy writes for a matrix is 118 or less.
const LONGEST: usize = 4096;
/// Data begin at a multiple of this.
const ALIGN: usize = 64;

/// A matrix in a file, of which rows are read when they are asked for.
#[derive(Clone, Debug)]
pub struct Matrix {
    bytes: Bytes,
    /// Where the values begin.
    start: usize,
    /// Bytes of a value: f32 or f64.
    size: usize,
    rows: usize,
    columns: usize,
}

fn broken(what: &str, path: &Path, expected: impl ToString, found: impl ToString) -> Error {
    Error::Broken {
        what: what.into(),
        path: path.to_path_buf(),
        expected: expected.to_string(),
        found: found.to_string().chars().take(120).flat_map(char::escape_debug).collect(),
        hint: "write it with numpy.save(path, numpy.ascontiguousarray(x, dtype='float32'))",
    }
}

/// Opens a matrix: two dimensions, C order, f32 or f64, little endian.
///
/// # Errors
/// [`Error::Io`], or [`Error::Broken`] where the file is no such matrix.
pub fn open(storage: &dyn Storage, path: &Path) -> Result<Matrix> {
    let bytes = storage.map(path)?;
    let (header, data) = split(&bytes, path)?;
    let missing = |key: &str| broken(key, path, "a header with this key", header);
    let descr = value(header, "descr").ok_or_else(|| missing("descr"))?;
    let size = match descr.get(..5) {
        Some("'<f4'") => 4,
        Some("'<f8'") => 8,
        _ => {
            let found = descr.split(',').next().unwrap_or_default();
            return Err(broken("type of the array", path, "'<f4' or '<f8' (float32 or float64)", found));
        }
    };
    let order = value(header, "fortran_order").ok_or_else(|| missing("fortran_order"))?;
    if !order.starts_with("False") {
        return Err(broken("order of the array", path, "C (rows)", "Fortran (columns)"));
    }
    let shape = value(header, "shape").ok_or_else(|| missing("shape"))?;
    let (rows, columns) = matrix(shape).ok_or_else(|| {
        let end = shape.find(')').map_or(shape.len(), |end| end + 1);
        broken("shape of the array", path, "(rows, columns)", &shape[..end])
    })?;
    let expected = rows.checked_mul(columns).and_then(|count| count.checked_mul(size));
    if expected != Some(data.len()) {
        let expected = format!("({rows}, {columns}) values of {size} bytes");
        return Err(broken("length of the array", path, expected, format!("{} bytes", data.len())));
    }
    let start = bytes.len() - data.len();
    Ok(Matrix { start, size, rows, columns, bytes })
}

impl Matrix {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// All values as they lie in the file, without a copy: of f32 that begin at a multiple of 4 bytes, as
    /// those of every usual writer do.
    pub fn floats(&self) -> Option<&[f32]> {
        let data = self.bytes.get(self.start..).filter(|_| self.size == 4)?;
        bytemuck::try_cast_slice(data).ok()
    }

    /// Some rows `[rows][columns]`, those that there are; f64 is rounded to f32.
    pub fn read(&self, rows: Range<usize>) -> Vec<f32> {
        let end = rows.end.min(self.rows);
        let width = self.columns * self.size;
        let data = &self.bytes[self.start..][rows.start.min(end) * width..end * width];
        match self.size {
            4 => data.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            _ => data.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b) as f32).collect(),
        }
    }
}

/// The header and the data of a file.
fn split<'a>(bytes: &'a [u8], path: &Path) -> Result<(&'a str, &'a [u8])> {
    let first = bytes.get(..8).unwrap_or(bytes);
    if !first.starts_with(MAGIC) || first.len() < 8 {
        let found = format!("{:02x?}", &first[..first.len().min(6)]);
        return Err(broken("first bytes", path, "those of an .npy file", found));
    }
    // Versions 2 and 3 have longer lengths, and version 3 headers in UTF-8.
    let (len, start) = match (first[6], bytes) {
        (1, [_, _, _, _, _, _, _, _, a, b, ..]) => (usize::from(u16::from_le_bytes([*a, *b])), 10),
        (2 | 3, [_, _, _, _, _, _, _, _, a, b, c, d, ..]) => {
            (u32::from_le_bytes([*a, *b, *c, *d]) as usize, 12)
        }
        (version, _) => return Err(broken("version", path, "1, 2 or 3, and a header", version)),
    };
    let rest = &bytes[start..];
    if len > LONGEST || len > rest.len() {
        let expected = format!("at most {} bytes", LONGEST.min(rest.len()));
        return Err(broken("length of the header", path, expected, len));
    }
    let (header, data) = rest.split_at(len);
    let text = std::str::from_utf8(header);
    let header = text.map_err(|error| broken("header", path, "text", error))?;
    Ok((header, data))
}

/// What follows a key.
fn value<'a>(header: &'a str, key: &str) -> Option<&'a str> {
    let (_, after) = header.split_once(&format!("'{key}'"))?;
    Some(after.trim_start().strip_prefix(':')?.trim_start())
}

/// Two numbers in parentheses.
fn matrix(shape: &str) -> Option<(usize, usize)> {
    let (inside, _) = shape.strip_prefix('(')?.split_once(')')?;
    let (rows, columns) = inside.split_once(',')?;
    let columns = columns.trim().trim_end_matches(',');
    Some((rows.trim().parse().ok()?, columns.trim_end().parse().ok()?))
}

/// Writes a matrix `[rows][columns]` of f32, replacing a file of this name as a whole.
///
/// # Errors
/// [`Error::Io`]
pub fn write(storage: &dyn Storage, path: &Path, values: &[f32], columns: usize) -> Result<()> {
    let shape = format!("({}, {columns})", values.len() / columns.max(1));
    write_array(storage, path, "<f4", &shape, values.iter().map(|value| value.to_le_bytes()))
}

/// Writes a list of u32 likewise.
///
/// # Errors
/// [`Error::Io`]
pub fn write_labels(storage: &dyn Storage, path: &Path, labels: &[u32]) -> Result<()> {
    let shape = format!("({},)", labels.len());
    write_array(storage, path, "<u4", &shape, labels.iter().map(|label| label.to_le_bytes()))
}

fn write_array(
    storage: &dyn Storage,
    path: &Path,
    descr: &str,
    shape: &str,
    values: impl Iterator<Item = [u8; 4]>,
) -> Result<()> {
    let mut bytes = head(descr, shape);
    for value in values {
        bytes.extend(value);
    }
    write_atomic(storage, path, &bytes)
}

/// What comes before the values.
fn head(descr: &str, shape: &str) -> Vec<u8> {
    let mut header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    while !(MAGIC.len() + 4 + header.len() + 1).is_multiple_of(ALIGN) {
        header.push(' ');
    }
    header.push('\n');
    let mut bytes = MAGIC.to_vec();
    bytes.extend([1, 0]);
    // Less than 200 bytes: three short texts.
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.bytes());
    bytes
}

/// A matrix of f32 being written, row after row. The file appears, whole, when it is finished.
#[derive(Debug)]
pub struct Writer<'s> {
    file: NewFile<'s>,
    path: PathBuf,
    /// Values that are still to come.
    left: usize,
}

impl<'s> Writer<'s> {
    /// Begins the matrix `[rows][columns]` at `path`, which it will replace.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Invalid`] for more values than there can be.
    pub fn create(storage: &'s dyn Storage, path: &Path, rows: usize, columns: usize) -> Result<Self> {
        let left = rows.checked_mul(columns).filter(|n| n.checked_mul(4).is_some()).ok_or_else(|| {
            let found = format!("{rows} × {columns}");
            Error::invalid("shape", path, "fewer than 2^64 bytes", &found, "this is a bug in the caller")
        })?;
        let mut file = NewFile::create(storage, path)?;
        file.write(&head("<f4", &format!("({rows}, {columns})")))?;
        Ok(Writer { file, path: path.to_path_buf(), left })
    }

    /// Writes the next values, in large pieces: they go straight to the system.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Invalid`] for more than there is room for.
    pub fn push(&mut self, values: &[f32]) -> Result<()> {
        self.left = self.left.checked_sub(values.len()).ok_or_else(|| self.wrong(values.len()))?;
        self.file.write(bytemuck::cast_slice(values))
    }

    fn wrong(&self, found: usize) -> Error {
        let (expected, found) = (format!("{} more values", self.left), found.to_string());
        Error::invalid("matrix", &self.path, &expected, &found, "this is a bug in the caller")
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Invalid`] when values are missing.
    pub fn finish(self) -> Result<()> {
        if self.left > 0 {
            return Err(self.wrong(0));
        }
        self.file.finish()
    }
}
