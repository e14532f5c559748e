//! Values of GGUF metadata, and the cursor that reads them.

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

use super::{LONGEST_TEXT, broken};
use crate::Result;

/// Type of a value, numbered as in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// u8.
    U8,
    /// i8.
    I8,
    /// u16.
    U16,
    /// i16.
    I16,
    /// u32.
    U32,
    /// i32.
    I32,
    /// f32.
    F32,
    /// One byte, 0 or 1.
    Bool,
    /// A length and UTF-8.
    Text,
    /// A type, a number and that many values without types.
    Array,
    /// u64.
    U64,
    /// i64.
    I64,
    /// f64.
    F64,
}

const KINDS: [Kind; 13] = [
    Kind::U8,
    Kind::I8,
    Kind::U16,
    Kind::I16,
    Kind::U32,
    Kind::I32,
    Kind::F32,
    Kind::Bool,
    Kind::Text,
    Kind::Array,
    Kind::U64,
    Kind::I64,
    Kind::F64,
];

impl Kind {
    pub(super) fn id(self) -> u32 {
        self as u32
    }

    /// As messages call it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::U8 => "u8",
            Kind::I8 => "i8",
            Kind::U16 => "u16",
            Kind::I16 => "i16",
            Kind::U32 => "u32",
            Kind::I32 => "i32",
            Kind::F32 => "f32",
            Kind::Bool => "bool",
            Kind::Text => "text",
            Kind::Array => "array",
            Kind::U64 => "u64",
            Kind::I64 => "i64",
            Kind::F64 => "f64",
        }
    }

    /// Bytes of the shortest value.
    fn least(self) -> usize {
        match self {
            Kind::U8 | Kind::I8 | Kind::Bool => 1,
            Kind::U16 | Kind::I16 => 2,
            Kind::U32 | Kind::I32 | Kind::F32 => 4,
            Kind::U64 | Kind::I64 | Kind::F64 | Kind::Text => 8,
            Kind::Array => 12,
        }
    }
}

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// A number.
    U8(u8),
    /// A number.
    I8(i8),
    /// A number.
    U16(u16),
    /// A number.
    I16(i16),
    /// A number.
    U32(u32),
    /// A number.
    I32(i32),
    /// A number.
    U64(u64),
    /// A number.
    I64(i64),
    /// A number.
    F32(f32),
    /// A number.
    F64(f64),
    /// True or false.
    Bool(bool),
    /// A text.
    Text(Cow<'a, str>),
    /// Values of one type.
    Array(Array<'a>),
}

/// Numbers and texts as they are; of an array how long it is.
impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::U8(n) => n.fmt(f),
            Value::I8(n) => n.fmt(f),
            Value::U16(n) => n.fmt(f),
            Value::I16(n) => n.fmt(f),
            Value::U32(n) => n.fmt(f),
            Value::I32(n) => n.fmt(f),
            Value::U64(n) => n.fmt(f),
            Value::I64(n) => n.fmt(f),
            Value::F32(x) => x.fmt(f),
            Value::F64(x) => x.fmt(f),
            Value::Bool(flag) => flag.fmt(f),
            Value::Text(text) => text.fmt(f),
            Value::Array(array) => write!(f, "{} values", array.len()),
        }
    }
}

impl<'a> Value<'a> {
    /// Its type.
    pub fn kind(&self) -> Kind {
        match self {
            Value::U8(_) => Kind::U8,
            Value::I8(_) => Kind::I8,
            Value::U16(_) => Kind::U16,
            Value::I16(_) => Kind::I16,
            Value::U32(_) => Kind::U32,
            Value::I32(_) => Kind::I32,
            Value::U64(_) => Kind::U64,
            Value::I64(_) => Kind::I64,
            Value::F32(_) => Kind::F32,
            Value::F64(_) => Kind::F64,
            Value::Bool(_) => Kind::Bool,
            Value::Text(_) => Kind::Text,
            Value::Array(_) => Kind::Array,
        }
    }

    pub(super) fn kind_of_items(&self) -> String {
        match self {
            Value::Array(array) => format!("an array of {}", array.kind.name()),
            other => other.kind().name().to_owned(),
        }
    }

    pub(super) fn integer(&self) -> Option<u64> {
        match *self {
            Value::U8(n) => Some(n.into()),
            Value::U16(n) => Some(n.into()),
            Value::U32(n) => Some(n.into()),
            Value::U64(n) => Some(n),
            Value::I8(n) => n.try_into().ok(),
            Value::I16(n) => n.try_into().ok(),
            Value::I32(n) => n.try_into().ok(),
            Value::I64(n) => n.try_into().ok(),
            _ => None,
        }
    }

    pub(super) fn float(&self) -> Option<f64> {
        match *self {
            Value::F32(x) => Some(x.into()),
            Value::F64(x) => Some(x),
            _ => None,
        }
    }

    pub(super) fn into_text(self) -> Option<&'a str> {
        match self {
            Value::Text(Cow::Borrowed(text)) => Some(text),
            _ => None,
        }
    }

    /// Appends the value as it is in a file, without its type.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        match self {
            Value::U8(n) => out.push(*n),
            Value::I8(n) => out.extend(n.to_le_bytes()),
            Value::U16(n) => out.extend(n.to_le_bytes()),
            Value::I16(n) => out.extend(n.to_le_bytes()),
            Value::U32(n) => out.extend(n.to_le_bytes()),
            Value::I32(n) => out.extend(n.to_le_bytes()),
            Value::U64(n) => out.extend(n.to_le_bytes()),
            Value::I64(n) => out.extend(n.to_le_bytes()),
            Value::F32(x) => out.extend(x.to_le_bytes()),
            Value::F64(x) => out.extend(x.to_le_bytes()),
            Value::Bool(flag) => out.push(u8::from(*flag)),
            Value::Text(text) => write_text(text, out),
            Value::Array(array) => {
                out.extend(array.kind.id().to_le_bytes());
                out.extend((array.len as u64).to_le_bytes());
                out.extend_from_slice(&array.bytes);
            }
        }
    }
}

impl<'a> From<&'a str> for Value<'a> {
    fn from(text: &'a str) -> Self {
        Value::Text(Cow::Borrowed(text))
    }
}

/// Appends a length and a text.
pub(super) fn write_text(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// Values of one type, as they are in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Array<'a> {
    kind: Kind,
    len: usize,
    bytes: Cow<'a, [u8]>,
}

impl<'a> Array<'a> {
    /// An array of texts.
    pub fn texts<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Array<'static> {
        let (mut bytes, mut len) = (Vec::new(), 0);
        for text in texts {
            write_text(text.as_ref(), &mut bytes);
            len += 1;
        }
        Array { kind: Kind::Text, len, bytes: bytes.into() }
    }

    /// An array of i32.
    pub fn i32(values: &[i32]) -> Array<'static> {
        Array { kind: Kind::I32, len: values.len(), bytes: bytemuck::cast_slice(values).to_vec().into() }
    }

    /// Type of its values.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn into_texts(self) -> Option<Vec<&'a str>> {
        let Cow::Borrowed(bytes) = self.bytes else { return None };
        let mut at = Cursor::new(Path::new(""), bytes);
        let texts = (0..self.len).map(|_| at.text("", LONGEST_TEXT).ok());
        if self.kind == Kind::Text { texts.collect() } else { None }
    }

    pub(super) fn integers(&self) -> Option<Vec<i64>> {
        let mut at = Cursor::new(Path::new(""), &self.bytes);
        let integer = |_| match at.value(self.kind, "").ok()? {
            Value::I8(n) => Some(n.into()),
            Value::I16(n) => Some(n.into()),
            Value::I32(n) => Some(n.into()),
            Value::I64(n) => Some(n),
            other => other.integer().and_then(|n| n.try_into().ok()),
        };
        (0..self.len).map(integer).collect()
    }
}

/// Reads a header piece by piece; `what` names a piece in messages.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Cursor { path, bytes, at: 0 }
    }

    pub(super) fn path(&self) -> &'a Path {
        self.path
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    pub(super) fn take(&mut self, len: usize, what: &str) -> Result<&'a [u8]> {
        let end = self.at.checked_add(len);
        let Some(part) = end.and_then(|end| self.bytes.get(self.at..end)) else {
            let found = format!("{} bytes to the end of the file", self.left());
            return Err(broken(what, self.path, format!("{len} bytes"), found));
        };
        self.at += len;
        Ok(part)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let part = self.take(N, what)?;
        let mut array = [0; N];
        array.copy_from_slice(part);
        Ok(array)
    }

    pub(super) fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// Refuses a count of things of which the shortest has `least` bytes where there is no room for them.
    pub(super) fn expect_room(&self, what: &str, count: u64, least: usize, most: u64) -> Result<()> {
        let most = most.min((self.left() / least) as u64);
        match count <= most {
            true => Ok(()),
            false => Err(broken(what, self.path, format!("at most {most}"), count)),
        }
    }

    pub(super) fn text(&mut self, what: &str, longest: usize) -> Result<&'a str> {
        let claimed = self.u64(what)?;
        let most = longest.min(self.left());
        let len = usize::try_from(claimed).ok().filter(|len| *len <= most).ok_or_else(|| {
            broken(format!("length of {what}"), self.path, format!("at most {most} bytes"), claimed)
        })?;
        let bytes = self.take(len, what)?;
        std::str::from_utf8(bytes).map_err(|error| broken(what, self.path, "UTF-8", error))
    }

    pub(super) fn kind(&mut self, what: &str) -> Result<Kind> {
        let id = self.u32(what)?;
        let known = KINDS.get(id as usize).copied();
        known.ok_or_else(|| broken(format!("type of {what}"), self.path, "a number from 0 to 12", id))
    }

    /// A value of key `what`. Of an array all values are looked at.
    pub(super) fn value(&mut self, kind: Kind, what: &str) -> Result<Value<'a>> {
        Ok(match kind {
            Kind::U8 => Value::U8(u8::from_le_bytes(self.array(what)?)),
            Kind::I8 => Value::I8(i8::from_le_bytes(self.array(what)?)),
            Kind::U16 => Value::U16(u16::from_le_bytes(self.array(what)?)),
            Kind::I16 => Value::I16(i16::from_le_bytes(self.array(what)?)),
            Kind::U32 => Value::U32(self.u32(what)?),
            Kind::I32 => Value::I32(i32::from_le_bytes(self.array(what)?)),
            Kind::U64 => Value::U64(self.u64(what)?),
            Kind::I64 => Value::I64(i64::from_le_bytes(self.array(what)?)),
            Kind::F32 => Value::F32(f32::from_le_bytes(self.array(what)?)),
            Kind::F64 => Value::F64(f64::from_le_bytes(self.array(what)?)),
            Kind::Bool => match self.array(what)? {
                [flag @ (0 | 1)] => Value::Bool(flag == 1),
                [other] => return Err(broken(format!("truth value of {what}"), self.path, "0 or 1", other)),
            },
            Kind::Text => Value::Text(self.text(what, LONGEST_TEXT)?.into()),
            Kind::Array => {
                let kind = self.kind(what)?;
                if kind == Kind::Array {
                    return Err(broken(
                        format!("type of {what}"),
                        self.path,
                        "an array of values",
                        "of arrays",
                    ));
                }
                let count = self.u64(what)?;
                self.expect_room(&format!("length of {what}"), count, kind.least(), u64::MAX)?;
                let start = self.at;
                match kind {
                    Kind::Text | Kind::Bool => {
                        for _ in 0..count {
                            self.value(kind, what)?;
                        }
                    }
                    // There is room for as many bytes, so the product is no more than they are.
                    _ => drop(self.take(count as usize * kind.least(), what)?),
                }
                let bytes = self.bytes.get(start..self.at).unwrap_or_default();
                Value::Array(Array { kind, len: count as usize, bytes: bytes.into() })
            }
        })
    }
}
