//! NumPy files (.npy) of f32 matrices: streamed out, mapped in.
//!
//! Format: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>. Written is version
//! 1.0, little endian, C order; read is exactly that, of any writer.

use std::path::{Path, PathBuf};

use crate::{Bytes, Error, NewFile, Result, Storage};

const MAGIC: &[u8] = b"\x93NUMPY\x01\x00";
/// Values begin at a multiple of this.
const ALIGN: usize = 64;

fn header(rows: usize, columns: usize) -> Vec<u8> {
    let mut dict = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {columns}), }}");
    let front = MAGIC.len() + 2;
    while !(front + dict.len() + 1).is_multiple_of(ALIGN) {
        dict.push(' ');
    }
    dict.push('\n');
    [MAGIC, &(dict.len() as u16).to_le_bytes(), dict.as_bytes()].concat()
}

/// A matrix being written, row after row. The file appears, whole, when it is finished.
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
        file.write(&header(rows, columns))?;
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

/// A matrix that lies in a file.
#[derive(Clone, Debug)]
pub struct Matrix {
    bytes: Bytes,
    from: usize,
    rows: usize,
    columns: usize,
}

impl Matrix {
    /// Maps a file. Its values may be anything, NaN too.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Broken`] for what is no matrix of little-endian f32 in C order, or is
    /// not as long as its shape says.
    pub fn open(storage: &dyn Storage, path: &Path) -> Result<Matrix> {
        let bytes = storage.map(path)?;
        let broken = |what: &str, expected: &str, found: String| Error::broken(what, path, expected, found);
        let rest = bytes.strip_prefix(MAGIC);
        let Some((len, rest)) = rest.and_then(|rest| rest.split_first_chunk::<2>()) else {
            return Err(broken("start", "the magic of .npy version 1.0", "something else".into()));
        };
        let len = usize::from(u16::from_le_bytes(*len));
        let Some((dict, values)) = rest.split_at_checked(len) else {
            return Err(broken("header length", &format!("at most {}", rest.len()), len.to_string()));
        };
        let dict = String::from_utf8_lossy(dict);
        let Some((rows, columns)) = shape(&dict) else {
            let expected = "'<f4' in C order with two dimensions";
            return Err(broken("header", expected, dict.trim_end().to_owned()));
        };
        let expected = rows.checked_mul(columns).and_then(|n| n.checked_mul(4));
        if expected != Some(values.len()) {
            let expected = format!("{rows} × {columns} values of 4 bytes");
            return Err(broken("length", &expected, format!("{} bytes", values.len())));
        }
        let from = bytes.len() - values.len();
        let matrix = Matrix { bytes, from, rows, columns };
        if bytemuck::try_cast_slice::<u8, f32>(matrix.raw()).is_err() {
            return Err(broken("header length", "values at a multiple of 4 bytes", from.to_string()));
        }
        Ok(matrix)
    }

    fn raw(&self) -> &[u8] {
        self.bytes.get(self.from..).unwrap_or_default()
    }

    /// The values, row after row.
    pub fn values(&self) -> &[f32] {
        bytemuck::try_cast_slice(self.raw()).unwrap_or_default()
    }

    /// Rows and columns.
    pub fn shape(&self) -> (usize, usize) {
        (self.rows, self.columns)
    }
}

/// Rows and columns of a header of the kind that is read.
fn shape(dict: &str) -> Option<(usize, usize)> {
    let field = |name: &str| {
        let (_, rest) = dict.split_once(&format!("'{name}'"))?;
        Some(rest.trim_start().strip_prefix(':')?.trim_start())
    };
    if !field("descr")?.starts_with("'<f4'") || !field("fortran_order")?.starts_with("False") {
        return None;
    }
    let (dims, _) = field("shape")?.strip_prefix('(')?.split_once(')')?;
    let mut dims = dims.split(',').map(str::trim);
    let (rows, columns) = (dims.next()?.parse().ok()?, dims.next()?.parse().ok()?);
    dims.all(str::is_empty).then_some((rows, columns))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Disk;

    #[test]
    fn the_bytes_are_those_of_numpy() {
        // numpy.save of numpy.arange(6, dtype="f4").reshape(3, 2), header: numpy 2.4.
        let numpy = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }";
        let written = header(3, 2);
        assert_eq!(written[..numpy.len()], numpy[..]);
        assert_eq!((written.len(), written.last()), (128, Some(&b'\n')));
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npy");
        let mut writer = Writer::create(&Disk, &path, 3, 2).unwrap();
        writer.push(&[0.0, 1.0, 2.0]).unwrap();
        assert!(!path.exists());
        writer.push(&[3.0, 4.0, f32::NEG_INFINITY]).unwrap();
        assert!(writer.push(&[5.0]).is_err());
        drop(writer);
        let mut writer = Writer::create(&Disk, &path, 3, 2).unwrap();
        writer.push(&[0.0, 1.0, 2.0, 3.0, 4.0, f32::NEG_INFINITY]).unwrap();
        writer.finish().unwrap();
        let matrix = Matrix::open(&Disk, &path).unwrap();
        assert_eq!(matrix.shape(), (3, 2));
        assert_eq!(matrix.values(), [0.0, 1.0, 2.0, 3.0, 4.0, f32::NEG_INFINITY]);
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().collect();
        assert_eq!(left.len(), 1, "no temporary file remains: {left:?}");
        assert!(Writer::create(&Disk, &path, 1, 2).unwrap().finish().is_err());
        assert!(Writer::create(&Disk, &path, usize::MAX, 2).is_err());
    }

    #[test]
    fn other_files_are_refused() {
        let good = [header(1, 2), vec![0; 8]].concat();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npy");
        let open = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            Matrix::open(&Disk, &path).map(|matrix| matrix.shape()).map_err(|e| e.to_string())
        };
        assert_eq!(open(&good), Ok((1, 2)));
        for cut in [0, 5, 9, 60, good.len() - 1] {
            open(&good[..cut]).unwrap_err();
        }
        let text = String::from_utf8_lossy(&good[10..128]).into_owned();
        for (from, to) in [
            ("<f4", "<f8"),
            ("False", "True "),
            ("(1, 2)", "(2, 2)"),
            ("(1, 2)", "(1,2,)x"),
            ("(1, 2)", "(2,)  "),
            ("(1, 2)", "(-1,2)"),
            ("(1, 2)", "(99999999999999999999, 2)"),
            ("(1, 2)", "(9999999999999999999, 9999999999999999999)"),
        ] {
            let mut dict = text.replace(from, to);
            dict.truncate(118);
            let result = open(&[&good[..10], dict.as_bytes(), &[0; 8]].concat());
            assert_eq!(result.is_ok(), to == "(1,2,)x", "{to}: {result:?}");
        }
    }
}
