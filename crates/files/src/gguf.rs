//! GGUF files, as llama.cpp reads them: metadata, then tensors in blocks, little endian, contiguous.
//!
//! Source: `docs/gguf.md` of ggml, versions 2 and 3, which differ in nothing that is read here. A header with two
//! counts, then keys with typed values, then names, shapes, formats and offsets of tensors, then their data, each
//! from a multiple of the alignment on. Numbers of the header are compared with the bytes that are left before
//! anything is sized by them; values are read from the file when they are asked for, by getters that insist on
//! the type.

mod value;
mod writer;

use std::collections::BTreeMap;
use std::ops::{Range, RangeInclusive};
use std::path::{Path, PathBuf};

use tritrain_trit::blocks;

pub use tritrain_trit::blocks::Block;

pub use value::{Array, Kind, Value};
pub use writer::{Spec, Writer};

use crate::{Bytes, Error, Result, Storage, valid_name};
use value::Cursor;

const MAGIC: &[u8; 4] = b"GGUF";
/// The version that is written.
const VERSION: u32 = 3;
/// Where tensors begin when the file does not say it.
const ALIGNMENT: usize = 32;
const ALIGNMENT_KEY: &str = "general.alignment";
/// More keys and tensors than any model has: the tables stay small beside the file.
const MOST_KEYS: u64 = 4096;
const MOST_TENSORS: u64 = 16_384;
/// Bytes of a key, and of a text value.
const LONGEST_KEY: usize = 64 << 10;
const LONGEST_TEXT: usize = 1 << 20;
const MOST_DIMS: u32 = 4;
/// Bytes of the shortest key with its value, and of the shortest entry of a tensor.
const SHORTEST_ENTRY: usize = 8 + 1 + 4 + 1;
const SHORTEST_TENSOR: usize = 8 + 1 + 4 + 8 + 4 + 8;

pub(crate) fn broken(
    what: impl Into<String>,
    path: &Path,
    expected: impl ToString,
    found: impl ToString,
) -> Error {
    match Error::broken(what, path, expected, found) {
        Error::Broken { what, path, expected, found, .. } => {
            let hint =
                "the file is damaged, or no model in GGUF that is read here; convert or download it anew";
            Error::Broken { what, path, expected, found, hint }
        }
        other => other,
    }
}

#[derive(Clone, Debug)]
struct Entry {
    block: Block,
    /// Outermost dimension first.
    shape: Vec<usize>,
    /// Place of the data in the file.
    data: Range<usize>,
}

/// A tensor as it lies in the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor<'a> {
    /// Its name.
    pub name: &'a str,
    /// The format of its data.
    pub block: Block,
    /// Extent of each dimension, outermost first: the reverse of the order in the file. Rows, the last
    /// dimension, are a whole number of blocks.
    pub shape: Vec<usize>,
    /// Its blocks.
    pub data: &'a [u8],
    path: &'a Path,
}

impl Tensor<'_> {
    /// Number of weights.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Never: a tensor has weights.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All weights, row major.
    ///
    /// # Errors
    /// [`Error::Broken`] for data that stand for no weights.
    pub fn floats(&self) -> Result<Vec<f32>> {
        let mut weights = vec![0.0; self.len()];
        blocks::decode(self.block, self.data, &mut weights).map_err(|error| self.wrong(&error))?;
        Ok(weights)
    }

    /// The codes, and the scale of every block, of a ternary format.
    ///
    /// # Errors
    /// [`Error::Broken`] for another format, and for data that stand for no codes.
    pub fn codes(&self) -> Result<(Vec<i8>, Vec<half::f16>)> {
        let mut codes = Vec::new();
        let scales = self.append_codes(&mut codes)?;
        Ok((codes, scales))
    }

    /// Appends the codes of a ternary format, and gives the scale of every block.
    ///
    /// # Errors
    /// As [`Tensor::codes`].
    pub fn append_codes(&self, to: &mut Vec<i8>) -> Result<Vec<half::f16>> {
        let start = to.len();
        to.resize(start + self.len(), 0);
        let mut scales = vec![half::f16::ZERO; self.len() / self.block.weights()];
        blocks::decode_codes(self.block, self.data, &mut to[start..], &mut scales)
            .map_err(|error| self.wrong(&error))?;
        Ok(scales)
    }

    fn wrong(&self, error: &tritrain_trit::Error) -> Error {
        let expected = format!("blocks of {}", self.block.name());
        broken(format!("data of tensor {}", self.name), self.path, expected, error)
    }
}

/// A GGUF file, all of whose lengths and offsets were checked.
#[derive(Clone, Debug)]
pub struct GgufFile {
    path: PathBuf,
    bytes: Bytes,
    /// In the order of the file.
    keys: Vec<(String, Kind, Range<usize>)>,
    key_index: BTreeMap<String, usize>,
    tensors: BTreeMap<String, Entry>,
    /// Names in the order of the file.
    order: Vec<String>,
}

impl GgufFile {
    /// Maps and checks a file.
    ///
    /// # Errors
    /// [`Error::Io`], and those of [`GgufFile::parse`].
    pub fn open(storage: &dyn Storage, path: &Path) -> Result<GgufFile> {
        GgufFile::parse(path, storage.map(path)?)
    }

    /// Checks the header: counts, types, keys once each, names allowed and once each, shapes against formats,
    /// tensors one after the other from the first aligned byte to the end of the file. `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Broken`] names the rule, and the key or tensor.
    pub fn parse(path: &Path, bytes: Bytes) -> Result<GgufFile> {
        let mut at = Cursor::new(path, &bytes);
        let (tensor_count, key_count) = head(&mut at)?;
        let keys = read_keys(&mut at, key_count)?;
        let key_index = index(path, "key", keys.iter().map(|(key, ..)| key))?;
        let mut file = GgufFile {
            path: path.to_path_buf(),
            bytes: bytes.clone(),
            keys,
            key_index,
            tensors: BTreeMap::new(),
            order: Vec::new(),
        };
        let alignment = file.alignment()?;
        at.expect_room("number of tensors", tensor_count, SHORTEST_TENSOR, MOST_TENSORS)?;
        let mut end = 0usize;
        for _ in 0..tensor_count {
            let (name, entry) = read_tensor(&mut at, end)?;
            let size = entry.data.len();
            let padded = size.checked_next_multiple_of(alignment).and_then(|size| end.checked_add(size));
            end = padded.ok_or_else(|| too_large(path, &name, &entry.shape))?;
            if file.tensors.insert(name.clone(), entry).is_some() {
                return Err(broken("tensor name", path, "each once", format!("{name} twice")));
            }
            file.order.push(name);
        }
        file.place(at.at(), alignment)?;
        Ok(file)
    }

    fn alignment(&self) -> Result<usize> {
        if !self.key_index.contains_key(ALIGNMENT_KEY) {
            return Ok(ALIGNMENT);
        }
        let rule = "a u32, a power of two from 8 to 4096";
        let wrong = |found: String| broken(ALIGNMENT_KEY, &self.path, rule, found);
        match self.value(ALIGNMENT_KEY) {
            Some(Value::U32(n)) if n.is_power_of_two() && (8..=4096).contains(&n) => Ok(n as usize),
            Some(Value::U32(n)) => Err(wrong(n.to_string())),
            other => Err(wrong(other.map_or("none", |value| value.kind().name()).to_owned())),
        }
    }

    /// Moves the tensors behind the header, which ends at `header`, and compares their end with that of the file.
    fn place(&mut self, header: usize, alignment: usize) -> Result<()> {
        let len = self.bytes.len();
        let start = header.next_multiple_of(alignment);
        let mut end = header;
        for name in &self.order {
            let Some(entry) = self.tensors.get_mut(name) else { continue };
            let moved = entry.data.start.checked_add(start).zip(entry.data.end.checked_add(start));
            let (from, to) = moved.filter(|(_, to)| *to <= len).ok_or_else(|| {
                let expected = format!("{} bytes from byte {} on", entry.data.len(), entry.data.start);
                let there = len.saturating_sub(start);
                broken(
                    format!("data of tensor {name}"),
                    &self.path,
                    expected,
                    format!("{there} bytes in all"),
                )
            })?;
            entry.data = from..to;
            end = to;
        }
        // Writers fill up the last tensor, or do not.
        if len != end && len != end.next_multiple_of(alignment) {
            let expected = format!("{end} bytes, or {}", end.next_multiple_of(alignment));
            return Err(broken("length of the file", &self.path, expected, format!("{len} bytes")));
        }
        Ok(())
    }

    /// The file it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All keys with their values, in the order of the file.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, Value<'_>)> {
        self.keys.iter().filter_map(|(key, ..)| Some((key.as_str(), self.value(key)?)))
    }

    /// The value of a key, where the file has it.
    pub fn value(&self, key: &str) -> Option<Value<'_>> {
        let (_, kind, range) = self.keys.get(*self.key_index.get(key)?)?;
        // It was read once before.
        Cursor::new(&self.path, self.bytes.get(range.clone())?).value(*kind, key).ok()
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> Result<T> {
        let Some(value) = self.value(key) else {
            return Err(broken(format!("key {key}"), &self.path, expected, "none of this name"));
        };
        let kind = value.kind_of_items();
        read(value).ok_or_else(|| broken(format!("type of key {key}"), &self.path, expected, kind))
    }

    /// A text.
    ///
    /// # Errors
    /// [`Error::Broken`] when the key is missing or has another type; so do all getters.
    pub fn text(&self, key: &str) -> Result<&str> {
        self.typed(key, "a text", Value::into_text)
    }

    /// An integer of any width, from 0 on.
    ///
    /// # Errors
    /// See [`GgufFile::text`].
    pub fn integer(&self, key: &str) -> Result<u64> {
        self.typed(key, "an integer from 0 on", |value| value.integer())
    }

    /// An integer that is a count or an index: within a range that the caller knows.
    ///
    /// # Errors
    /// See [`GgufFile::text`]; also outside the range.
    pub fn integer_in(&self, key: &str, range: RangeInclusive<u64>) -> Result<usize> {
        let found = self.integer(key)?;
        if !range.contains(&found) {
            let expected = format!("{} to {}", range.start(), range.end());
            return Err(broken(format!("value of key {key}"), &self.path, expected, found));
        }
        // A range of more than usize is no bound of anything in memory.
        usize::try_from(found)
            .map_err(|_| broken(format!("value of key {key}"), &self.path, "a usize", found))
    }

    /// A float of either width that is finite.
    ///
    /// # Errors
    /// See [`GgufFile::text`].
    pub fn float(&self, key: &str) -> Result<f64> {
        self.typed(key, "a finite float", |value| value.float().filter(|x| x.is_finite()))
    }

    /// True or false.
    ///
    /// # Errors
    /// See [`GgufFile::text`].
    pub fn flag(&self, key: &str) -> Result<bool> {
        self.typed(key, "true or false", |value| match value {
            Value::Bool(flag) => Some(flag),
            _ => None,
        })
    }

    /// An array of texts.
    ///
    /// # Errors
    /// See [`GgufFile::text`].
    pub fn texts(&self, key: &str) -> Result<Vec<&str>> {
        self.typed(key, "an array of texts", |value| match value {
            Value::Array(array) => array.into_texts(),
            _ => None,
        })
    }

    /// An array of integers of any width.
    ///
    /// # Errors
    /// See [`GgufFile::text`].
    pub fn integers(&self, key: &str) -> Result<Vec<i64>> {
        self.typed(key, "an array of integers", |value| match value {
            Value::Array(array) => array.integers(),
            _ => None,
        })
    }

    /// Names of the tensors, in the order of the file.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.order.iter().map(String::as_str)
    }

    /// One tensor.
    ///
    /// # Errors
    /// [`Error::Broken`] when there is none of this name.
    pub fn tensor(&self, name: &str) -> Result<Tensor<'_>> {
        let found = self.tensors.get_key_value(name).and_then(|(name, entry)| {
            let data = self.bytes.get(entry.data.clone())?;
            Some(Tensor { name, block: entry.block, shape: entry.shape.clone(), data, path: &self.path })
        });
        found.ok_or_else(|| {
            let found = format!("{} other tensors", self.order.len());
            broken("tensors", &self.path, format!("one named {name}"), found)
        })
    }

    /// The bytes of a tensor, to be kept apart from the file.
    pub fn bytes(&self, name: &str) -> Option<Bytes> {
        self.bytes.part(self.tensors.get(name)?.data.clone())
    }

    /// Says that a tensor will not be read soon, see [`Bytes::release`].
    pub fn release(&self, name: &str) {
        if let Some(entry) = self.tensors.get(name) {
            self.bytes.release(entry.data.start, entry.data.len());
        }
    }
}

/// Magic, version, and the numbers of tensors and keys.
fn head(at: &mut Cursor<'_>) -> Result<(u64, u64)> {
    let path = at.path();
    let magic = at.take(4, "magic")?;
    if magic != MAGIC {
        return Err(broken("magic", path, "GGUF", String::from_utf8_lossy(magic)));
    }
    let version = at.u32("version")?;
    if !(2..=VERSION).contains(&version) {
        let swapped = version.swap_bytes();
        let found = match swapped {
            1..=VERSION => format!("version {swapped} in big endian"),
            _ => version.to_string(),
        };
        return Err(broken("version", path, "2 or 3, little endian", found));
    }
    Ok((at.u64("number of tensors")?, at.u64("number of keys")?))
}

fn read_keys(at: &mut Cursor<'_>, count: u64) -> Result<Vec<(String, Kind, Range<usize>)>> {
    at.expect_room("number of keys", count, SHORTEST_ENTRY, MOST_KEYS)?;
    let mut keys = Vec::new();
    for number in 0..count {
        let key = at.text(&format!("key {number}"), LONGEST_KEY)?;
        if !valid_key(key) {
            let expected = "characters of ASCII that can be seen";
            return Err(broken(format!("key {number}"), at.path(), expected, key));
        }
        let kind = at.kind(key)?;
        let start = at.at();
        at.value(kind, key)?;
        keys.push((key.to_owned(), kind, start..at.at()));
    }
    Ok(keys)
}

fn valid_key(key: &str) -> bool {
    !key.is_empty() && key.len() <= LONGEST_KEY && key.bytes().all(|byte| byte.is_ascii_graphic())
}

fn index<'a>(
    path: &Path,
    what: &str,
    names: impl Iterator<Item = &'a String>,
) -> Result<BTreeMap<String, usize>> {
    let mut index = BTreeMap::new();
    for (at, name) in names.enumerate() {
        if index.insert(name.clone(), at).is_some() {
            return Err(broken(what, path, "each once", format!("{name} twice")));
        }
    }
    Ok(index)
}

fn too_large(path: &Path, name: &str, shape: &[usize]) -> Error {
    broken(format!("shape of tensor {name}"), path, "fewer than 2^64 bytes", format!("{shape:?}"))
}

/// Name and entry of the next tensor, whose data must begin `end` bytes behind those of the first.
fn read_tensor(at: &mut Cursor<'_>, end: usize) -> Result<(String, Entry)> {
    let path = at.path();
    let name = at.text("tensor name", LONGEST_KEY)?;
    if !valid_name(name) {
        return Err(broken("tensor name", path, "1 to 63 characters of [A-Za-z0-9._-]", format!("{name:?}")));
    }
    let rule = |what: &str| format!("{what} of tensor {name}");
    let dims = at.u32(&rule("dimensions"))?;
    if !(1..=MOST_DIMS).contains(&dims) {
        return Err(broken(rule("number of dimensions"), path, "1 to 4", dims));
    }
    let mut shape = Vec::new();
    for _ in 0..dims {
        let dim = at.u64(&rule("dimensions"))?;
        let dim = usize::try_from(dim).ok().filter(|dim| *dim > 0);
        shape.insert(0, dim.ok_or_else(|| broken(rule("dimension"), path, "1 or more", "0"))?);
    }
    let id = at.u32(&rule("format"))?;
    let block = Block::from_id(id).ok_or_else(|| {
        let names: Vec<_> = Block::all().map(Block::name).collect();
        broken(rule("format"), path, names.join(", "), format!("{} (number {id})", other_format(id)))
    })?;
    let row = shape.last().copied().unwrap_or_default();
    if !row.is_multiple_of(block.weights()) {
        let expected = format!("a multiple of {}, for {}", block.weights(), block.name());
        return Err(broken(rule("row length"), path, expected, row));
    }
    let count = shape.iter().try_fold(1usize, |count, dim| count.checked_mul(*dim));
    let size = count.and_then(|count| block.len(count)).ok_or_else(|| too_large(path, name, &shape))?;
    let offset = at.u64(&rule("offset"))?;
    if offset != end as u64 {
        return Err(broken(rule("offset"), path, format!("{end}, behind the tensor before"), offset));
    }
    let to = end.checked_add(size).ok_or_else(|| too_large(path, name, &shape))?;
    Ok((name.to_owned(), Entry { block, shape, data: end..to }))
}

/// ggml's names of formats that are not read.
fn other_format(id: u32) -> &'static str {
    match id {
        4 | 5 | 31..=33 | 36..=38 => "a format that ggml has removed",
        9 => "Q8_1",
        10 => "Q2_K",
        11 => "Q3_K",
        15 => "Q8_K",
        16..=23 | 29 => "an IQ format",
        24..=27 => "integers",
        28 => "F64",
        39 => "MXFP4",
        40 => "NVFP4",
        _ => "unknown",
    }
}
