//! Writing a GGUF file, tensor by tensor.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use tritrain_trit::blocks::Block;

use super::value::write_text;
use super::{
    ALIGNMENT, ALIGNMENT_KEY, LONGEST_TEXT, MAGIC, MOST_DIMS, MOST_KEYS, MOST_TENSORS, VERSION, Value,
    valid_key,
};
use crate::{Error, NewFile, Result, Storage, valid_name};

const HINT: &str = "this is a bug in the caller";

/// What a tensor to be written is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spec {
    /// 1 to 63 characters of `[A-Za-z0-9._-]`.
    pub name: String,
    /// The format of its data.
    pub block: Block,
    /// One to four dimensions, outermost first; the last a multiple of the block.
    pub shape: Vec<usize>,
}

impl Spec {
    /// Bytes of the data, or what is wrong.
    fn size(&self) -> Result<usize, String> {
        let Spec { name, block, shape } = self;
        if !valid_name(name) {
            return Err(format!("tensor name {name:?}"));
        }
        let row = shape.last().copied().unwrap_or_default();
        if shape.is_empty() || shape.len() > MOST_DIMS as usize || shape.contains(&0) {
            return Err(format!("{name}: dimensions {shape:?}"));
        }
        let count = shape.iter().try_fold(1usize, |count, dim| count.checked_mul(*dim));
        let whole = row.is_multiple_of(block.weights());
        let size = count.filter(|_| whole).and_then(|count| block.len(count));
        size.ok_or_else(|| format!("{name}: {} of {shape:?}", block.name()))
    }
}

/// A file being written: the header is there, tensors come one after the other. The file appears, whole, when it
/// is finished.
#[derive(Debug)]
pub struct Writer<'s> {
    file: NewFile<'s>,
    path: PathBuf,
    /// Bytes of the tensors, in order.
    sizes: Vec<usize>,
    written: usize,
    alignment: usize,
}

impl<'s> Writer<'s> {
    /// Begins a file at `path`, which it will replace, with all its metadata and the list of its tensors.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Invalid`] for what would not be read.
    pub fn create(
        storage: &'s dyn Storage,
        path: &Path,
        metadata: &[(String, Value<'_>)],
        tensors: &[Spec],
    ) -> Result<Self> {
        let invalid =
            |found: &str| Error::invalid("GGUF header", path, "what the reader accepts", found, HINT);
        check_keys(metadata).map_err(|found| invalid(&found))?;
        if tensors.len() as u64 > MOST_TENSORS {
            return Err(invalid(&format!("{} tensors", tensors.len())));
        }
        let mut alignment = ALIGNMENT;
        let mut header = MAGIC.to_vec();
        header.extend(VERSION.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata {
            write_text(key, &mut header);
            header.extend(value.kind().id().to_le_bytes());
            value.write(&mut header);
            if let (ALIGNMENT_KEY, Value::U32(n)) = (key.as_str(), value) {
                alignment = *n as usize;
            }
        }
        let (mut sizes, mut offset, mut names) = (Vec::new(), 0usize, BTreeSet::new());
        for spec in tensors {
            let size = spec.size().map_err(|found| invalid(&found))?;
            if !names.insert(&spec.name) {
                return Err(invalid(&format!("{} twice", spec.name)));
            }
            write_text(&spec.name, &mut header);
            header.extend((spec.shape.len() as u32).to_le_bytes());
            spec.shape.iter().rev().for_each(|dim| header.extend((*dim as u64).to_le_bytes()));
            header.extend(spec.block.id().to_le_bytes());
            header.extend((offset as u64).to_le_bytes());
            let padded = size.checked_next_multiple_of(alignment).and_then(|size| offset.checked_add(size));
            offset = padded.ok_or_else(|| invalid(&format!("{}: too many bytes", spec.name)))?;
            sizes.push(size);
        }
        header.resize(header.len().next_multiple_of(alignment), 0);
        let mut file = NewFile::create(storage, path)?;
        file.write(&header)?;
        Ok(Writer { file, path: path.to_path_buf(), sizes, written: 0, alignment })
    }

    /// Writes the data of the next tensor.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Invalid`] for another number of bytes than it has, and behind the last tensor.
    pub fn push(&mut self, data: &[u8]) -> Result<()> {
        let size = self.sizes.get(self.written).copied();
        if size != Some(data.len()) {
            let expected = size.map_or("no more tensors".to_owned(), |size| format!("{size} bytes"));
            let found = format!("{} bytes", data.len());
            return Err(Error::invalid("data of a tensor", &self.path, expected, found, HINT));
        }
        self.file.write(data)?;
        self.written += 1;
        let padding = data.len().next_multiple_of(self.alignment) - data.len();
        self.file.write(&[0; 4096][..padding])
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Invalid`] when tensors are missing.
    pub fn finish(self) -> Result<()> {
        if self.written < self.sizes.len() {
            let expected = format!("{} tensors", self.sizes.len());
            return Err(Error::invalid("GGUF file", &self.path, expected, self.written, HINT));
        }
        self.file.finish()
    }
}

/// What is wrong with the metadata, if anything is.
fn check_keys(metadata: &[(String, Value<'_>)]) -> Result<(), String> {
    if metadata.len() as u64 > MOST_KEYS {
        return Err(format!("{} keys", metadata.len()));
    }
    let mut keys = BTreeSet::new();
    for (key, value) in metadata {
        if !valid_key(key) || !keys.insert(key) {
            return Err(format!("key {key:?}, or twice"));
        }
        if let Value::Text(text) = value
            && text.len() > LONGEST_TEXT
        {
            return Err(format!("key {key}: a text of {} bytes", text.len()));
        }
        if key == ALIGNMENT_KEY
            && !matches!(value, Value::U32(n) if n.is_power_of_two() && (8..=4096).contains(n))
        {
            return Err(format!("{ALIGNMENT_KEY} = {value:?}"));
        }
    }
    Ok(())
}
