//! safetensors files: a JSON header and the tensors behind it, contiguous and little endian.
//!
//! Types come from the `safetensors` crate, which also reads in the tests what is written here. Its
//! own writer needs a path or a whole copy in memory and orders metadata by chance; its reader (0.8)
//! merges duplicate names, and adds up the lengths without a check for overflow. So header and
//! validation are here.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorInfo;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use safetensors::Dtype;
use tritrain_trit::blocks::{self, Block};

use crate::{Bytes, Error, NewFile, Result, Storage, valid_name};

/// A longer header is refused: the limit of the reference implementation.
const LONGEST_HEADER: u64 = 100_000_000;
/// More dimensions than any tensor here has.
const MOST_DIMS: usize = 8;
const METADATA: &str = "__metadata__";

/// One tensor: to be written, or as it lies in a [`TensorFile`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorView<'a> {
    /// 1 to 63 characters of `[A-Za-z0-9._-]`.
    pub name: Cow<'a, str>,
    /// F32, F16, BF16, I8, U8 or U32.
    pub dtype: Dtype,
    /// Extent of each dimension, outermost first.
    pub shape: Vec<usize>,
    /// The elements, little endian, row major.
    pub data: &'a [u8],
}

impl<'a> TensorView<'a> {
    /// A view of f32 values.
    pub fn f32(name: impl Into<Cow<'a, str>>, shape: &[usize], values: &'a [f32]) -> Self {
        Self::raw(name, Dtype::F32, shape, bytemuck::cast_slice(values))
    }

    /// A view of u32 values.
    pub fn u32(name: impl Into<Cow<'a, str>>, shape: &[usize], values: &'a [u32]) -> Self {
        Self::raw(name, Dtype::U32, shape, bytemuck::cast_slice(values))
    }

    /// A view of u8 values.
    pub fn u8(name: impl Into<Cow<'a, str>>, shape: &[usize], values: &'a [u8]) -> Self {
        Self::raw(name, Dtype::U8, shape, values)
    }

    /// A view of i8 values.
    pub fn i8(name: impl Into<Cow<'a, str>>, shape: &[usize], values: &'a [i8]) -> Self {
        Self::raw(name, Dtype::I8, shape, bytemuck::cast_slice(values))
    }

    /// A view of f16 values, given as their bits.
    pub fn f16(name: impl Into<Cow<'a, str>>, shape: &[usize], bits: &'a [u16]) -> Self {
        Self::raw(name, Dtype::F16, shape, bytemuck::cast_slice(bits))
    }

    /// A view of bytes of any type.
    pub fn raw(name: impl Into<Cow<'a, str>>, dtype: Dtype, shape: &[usize], data: &'a [u8]) -> Self {
        TensorView { name: name.into(), dtype, shape: shape.to_vec(), data }
    }
}

/// Bytes per element of the types these files may hold.
fn width(dtype: Dtype) -> Option<u64> {
    match dtype {
        Dtype::U8 | Dtype::I8 => Some(1),
        Dtype::F16 | Dtype::BF16 => Some(2),
        Dtype::F32 | Dtype::U32 => Some(4),
        _ => None,
    }
}

/// Length in bytes, or which rule is broken: (rule, expected, found).
fn check_tensor(name: &str, dtype: Dtype, shape: &[usize]) -> Result<u64, (String, &'static str, String)> {
    if !valid_name(name) {
        return Err(("tensor name".into(), "1 to 63 characters of [A-Za-z0-9._-]", format!("{name:?}")));
    }
    let width = width(dtype).ok_or_else(|| {
        (format!("type of tensor {name}"), "F32, F16, BF16, I8, U8 or U32", dtype.to_string())
    })?;
    if shape.len() > MOST_DIMS {
        return Err((format!("shape of tensor {name}"), "at most 8 dimensions", shape.len().to_string()));
    }
    let size = shape.iter().try_fold(width, |size, &dim| size.checked_mul(dim as u64));
    size.ok_or_else(|| (format!("shape of tensor {name}"), "fewer than 2^64 bytes", format!("{shape:?}")))
}

struct Header<'a> {
    metadata: &'a BTreeMap<String, String>,
    tensors: &'a [(&'a str, TensorInfo)],
}

impl Serialize for Header<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.metadata.is_empty() {
            map.serialize_entry(METADATA, self.metadata)?;
        }
        for (name, info) in self.tensors {
            map.serialize_entry(name, info)?;
        }
        map.end()
    }
}

/// A safetensors file about to be written: checked, ordered, its length known.
///
/// The order is that of the reference implementation, widest type first and then by name, so every
/// tensor is aligned to its element and the same tensors give the same bytes.
#[derive(Debug, Clone)]
pub struct Encoder<'a> {
    header: Vec<u8>,
    tensors: Vec<TensorView<'a>>,
    len: u64,
}

impl<'a> Encoder<'a> {
    /// Checks names (allowed, unique), types and lengths, and builds the header.
    ///
    /// # Errors
    /// [`Error::Invalid`] with the tensor; `path` is where the file will be, for the message.
    pub fn new(
        path: &Path,
        tensors: impl IntoIterator<Item = TensorView<'a>>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let invalid = |expected: &str, found: &str| {
            Error::invalid("tensor", path, expected, found, "this is a bug in the caller")
        };
        let mut tensors: Vec<_> = tensors.into_iter().collect();
        tensors.sort_by(|a, b| width(b.dtype).cmp(&width(a.dtype)).then_with(|| a.name.cmp(&b.name)));
        let mut names: Vec<&str> = tensors.iter().map(|t| &*t.name).collect();
        names.sort_unstable();
        if let Some((twice, _)) = names.iter().zip(names.iter().skip(1)).find(|(a, b)| a == b) {
            return Err(invalid("unique names", twice));
        }
        let mut end = 0usize;
        let mut infos = Vec::with_capacity(tensors.len());
        for tensor in &tensors {
            let size = check_tensor(&tensor.name, tensor.dtype, &tensor.shape)
                .map_err(|(rule, expected, found)| invalid(expected, &format!("{rule}: {found}")))?;
            if size != tensor.data.len() as u64 {
                let found = format!("{}: {} bytes", tensor.name, tensor.data.len());
                return Err(invalid(&format!("{size} bytes for shape {:?}", tensor.shape), &found));
            }
            let start = end;
            end += tensor.data.len();
            let shape = tensor.shape.clone();
            let info = TensorInfo { dtype: tensor.dtype, shape, data_offsets: (start, end) };
            infos.push((&*tensor.name, info));
        }
        let json = serde_json::to_vec(&Header { metadata, tensors: &infos });
        let mut json = json.map_err(|e| Error::io("encode", path, e.into()))?;
        json.resize(json.len().next_multiple_of(8), b' ');
        if json.len() as u64 > LONGEST_HEADER {
            return Err(invalid("a header of at most 100 MB", &json.len().to_string()));
        }
        let mut header = (json.len() as u64).to_le_bytes().to_vec();
        header.append(&mut json);
        let len = header.len() as u64 + end as u64;
        Ok(Encoder { header, tensors, len })
    }

    /// Length of the file.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Never: a file has a header.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The file in pieces, without a copy of the tensors.
    fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        std::iter::once(&self.header[..]).chain(self.tensors.iter().map(|tensor| tensor.data))
    }

    /// Streams the file without a copy of the tensors.
    ///
    /// # Errors
    /// Those of `out`.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        self.pieces().try_for_each(|piece| out.write_all(piece))
    }
}

/// The whole file in memory, for small ones. Checkpoints stream through
/// [`Part::tensors`](crate::checkpoint::Part::tensors) instead.
///
/// # Errors
/// [`Error::Invalid`] as [`Encoder::new`].
pub fn encode<'a>(
    path: &Path,
    tensors: impl IntoIterator<Item = TensorView<'a>>,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>> {
    let encoder = Encoder::new(path, tensors, metadata)?;
    let mut bytes = Vec::new();
    encoder.write(&mut bytes).map_err(|e| Error::io("encode", path, e))?;
    Ok(bytes)
}

/// Writes a file of tensors, whole or not at all.
///
/// # Errors
/// [`Error::Invalid`] as [`Encoder::new`]; [`Error::Io`].
pub fn save<'a>(
    storage: &dyn Storage,
    path: &Path,
    tensors: impl IntoIterator<Item = TensorView<'a>>,
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    let encoder = Encoder::new(path, tensors, metadata)?;
    let mut file = NewFile::create(storage, path)?;
    encoder.pieces().try_for_each(|piece| file.write(piece))?;
    file.finish()
}

/// The header as it is in the file: order kept, duplicates an error.
struct RawHeader {
    metadata: BTreeMap<String, String>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut metadata = None;
                let mut tensors = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    let twice = if name == METADATA {
                        metadata.replace(map.next_value()?).is_some()
                    } else {
                        let info = map.next_value()?;
                        tensors.insert(name.clone(), info).is_some()
                    };
                    if twice {
                        return Err(A::Error::custom(format_args!("two entries named {name:?}")));
                    }
                }
                Ok(RawHeader { metadata: metadata.unwrap_or_default(), tensors })
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

#[derive(Debug, Clone)]
struct Entry {
    name: String,
    info: TensorInfo,
}

/// A safetensors file whose every offset was checked.
#[derive(Debug, Clone)]
pub struct TensorFile {
    path: PathBuf,
    bytes: Bytes,
    data: usize,
    metadata: BTreeMap<String, String>,
    /// Sorted by name.
    entries: Vec<Entry>,
}

impl TensorFile {
    /// Checks the header: names, types, shapes against lengths, tensors contiguous from the first byte
    /// behind the header to the end of the file, without overlap. `path` is for messages.
    ///
    /// # Errors
    /// [`Error::Broken`] names the rule and the tensor.
    pub fn parse(path: &Path, bytes: Bytes) -> Result<TensorFile> {
        let broken = |what: &str, expected: &str, found: String| Error::broken(what, path, expected, found);
        let Some((prefix, rest)) = bytes.split_first_chunk::<8>() else {
            return Err(broken("header", "8 bytes of header length", format!("{} bytes", bytes.len())));
        };
        let claimed = u64::from_le_bytes(*prefix);
        let limit = LONGEST_HEADER.min(rest.len() as u64);
        if claimed > limit {
            return Err(broken("header length", &format!("at most {limit}"), claimed.to_string()));
        }
        let Some((json, data)) = rest.split_at_checked(claimed as usize) else {
            return Err(broken("header length", &format!("at most {limit}"), claimed.to_string()));
        };
        let raw: RawHeader = serde_json::from_slice(json)
            .map_err(|e| broken("header", "a JSON object of tensors, each name once", e.to_string()))?;
        check_layout(path, &raw.tensors, data.len())?;
        let data = bytes.len() - data.len();
        let entries = raw.tensors.into_iter().map(|(name, info)| Entry { name, info }).collect();
        Ok(TensorFile { path: path.to_path_buf(), bytes, data, metadata: raw.metadata, entries })
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().map(|entry| entry.name.as_str())
    }

    /// Free text that came with the tensors.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// One tensor as it lies in the file. Its bytes are not aligned to its elements.
    ///
    /// # Errors
    /// [`Error::Broken`] when there is none of this name.
    pub fn get(&self, name: &str) -> Result<TensorView<'_>> {
        let found = self.entries.binary_search_by(|entry| entry.name.as_str().cmp(name)).ok();
        let view = found.and_then(|index| {
            let Entry { name, info } = self.entries.get(index)?;
            let (start, end) = info.data_offsets;
            let data = self.bytes.get(self.data..)?.get(start..end)?;
            let name = Cow::Borrowed(name.as_str());
            Some(TensorView { name, dtype: info.dtype, shape: info.shape.clone(), data })
        });
        view.ok_or_else(|| {
            let found = format!("{} other tensors", self.entries.len());
            Error::broken("tensors", &self.path, format!("one named {name}"), found)
        })
    }

    /// Says that a tensor will not be read soon, see [`Bytes::release`].
    pub fn release(&self, name: &str) {
        if let Ok(index) = self.entries.binary_search_by(|entry| entry.name.as_str().cmp(name))
            && let Some(entry) = self.entries.get(index)
        {
            let (start, end) = entry.info.data_offsets;
            self.bytes.release(self.data + start, end - start);
        }
    }

    /// The values of an F32 tensor of exactly this shape.
    ///
    /// # Errors
    /// [`Error::Broken`] when it is missing, has another type or another shape.
    pub fn f32(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.values(name, Dtype::F32, shape)
    }

    /// The values of an F32, F16 or BF16 tensor of exactly this shape, as f32.
    ///
    /// # Errors
    /// See [`TensorFile::f32`].
    pub fn floats(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let view = self.get(name)?;
        let block = match view.dtype {
            Dtype::F16 => Block::F16,
            Dtype::BF16 => Block::Bf16,
            // Any other type is refused there.
            _ => return self.f32(name, shape),
        };
        let data = self.typed(name, view.dtype, shape)?;
        let mut values = vec![0.0; data.len() / 2];
        blocks::decode(block, data, &mut values).map_err(|error| {
            Error::broken(format!("tensor {name}"), &self.path, "two bytes a value", error)
        })?;
        Ok(values)
    }

    /// The values of a U32 tensor of exactly this shape. Errors as [`TensorFile::f32`].
    ///
    /// # Errors
    /// See [`TensorFile::f32`].
    pub fn u32(&self, name: &str, shape: &[usize]) -> Result<Vec<u32>> {
        self.values(name, Dtype::U32, shape)
    }

    /// The bytes of a tensor of exactly this type and shape.
    ///
    /// # Errors
    /// See [`TensorFile::f32`].
    pub fn typed(&self, name: &str, dtype: Dtype, shape: &[usize]) -> Result<&[u8]> {
        let view = self.get(name)?;
        if view.dtype != dtype || view.shape != shape {
            let what = format!("tensor {name}");
            let found = format!("{} {:?}", view.dtype, view.shape);
            return Err(Error::broken(what, &self.path, format!("{dtype} {shape:?}"), found));
        }
        Ok(view.data)
    }

    fn values<T: bytemuck::AnyBitPattern>(
        &self,
        name: &str,
        dtype: Dtype,
        shape: &[usize],
    ) -> Result<Vec<T>> {
        let data = self.typed(name, dtype, shape)?;
        Ok(data.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect())
    }
}

/// Every tensor allowed and as long as its shape says; together they fill `len` bytes, in a row.
fn check_layout(path: &Path, tensors: &BTreeMap<String, TensorInfo>, len: usize) -> Result<()> {
    let mut order: Vec<_> = tensors.iter().collect();
    order.sort_by_key(|(_, info)| info.data_offsets);
    let mut at = 0;
    for (name, info) in order {
        let size = check_tensor(name, info.dtype, &info.shape)
            .map_err(|(rule, expected, found)| Error::broken(rule, path, expected, found))?;
        let (start, end) = info.data_offsets;
        if start != at || end > len || end.checked_sub(start).map(|n| n as u64) != Some(size) {
            let what = format!("offsets of tensor {name}");
            let expected = format!("{size} bytes from {at}, within {len}");
            return Err(Error::broken(what, path, expected, format!("{start}..{end}")));
        }
        at = end;
    }
    if at != len {
        return Err(Error::broken("length", path, format!("{at} bytes of tensors"), len));
    }
    Ok(())
}
