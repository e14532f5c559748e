//! JSON manifests that carry the BLAKE3 of their own text, so that any changed byte shows.
//!
//! The last entry of the object is `"blake3"`: the hash of every byte before its value. A manifest
//! stays readable JSON, and the check needs no canonical form.

use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, Storage};

const MARK: &str = ",\n  \"blake3\": \"";
const END: &str = "\"\n}\n";
const HASH: usize = 64;

/// A manifest longer than this is refused unread. 64 MiB describe 7 TiB of files.
const LONGEST: u64 = 64 << 20;

/// Renders `value`, which must serialise as an object with at least one field; also returns the hash.
pub(crate) fn seal<T: Serialize>(value: &T, path: &Path) -> Result<(Vec<u8>, String)> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Error::io("write", path, e.into()))?;
    let mut text = text.strip_suffix("\n}").unwrap_or(&text).to_owned();
    text.push_str(MARK);
    let hash = blake3::hash(text.as_bytes()).to_hex().to_string();
    text.push_str(&hash);
    text.push_str(END);
    Ok((text.into_bytes(), hash))
}

#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// Reads what [`seal`] wrote, with its hash. `format` is the newest format the caller reads.
pub(crate) fn unseal<T: DeserializeOwned>(
    storage: &dyn Storage,
    path: &Path,
    format: u32,
) -> Result<(T, String)> {
    let len = storage.len(path)?;
    if len > LONGEST {
        return Err(Error::broken("manifest length", path, format!("at most {LONGEST} bytes"), len));
    }
    let bytes = storage.read(path)?;
    let text = std::str::from_utf8(&bytes).map_err(|e| Error::broken("manifest", path, "UTF-8", e))?;
    let (body, hash) = split(text)
        .ok_or_else(|| Error::broken("manifest", path, "a BLAKE3 of the text at its end", "another end"))?;
    let found = blake3::hash(text.get(..body.len() + MARK.len()).unwrap_or_default().as_bytes()).to_hex();
    if found.as_str() != hash {
        return Err(Error::broken("BLAKE3 of the manifest", path, hash, found));
    }
    let json = format!("{body}\n}}");
    let parse = |e: serde_json::Error| Error::broken("manifest", path, "the fields of this format", e);
    let Format { format: found } = serde_json::from_str(&json).map_err(parse)?;
    if found > format {
        return Err(Error::Newer { path: path.to_path_buf(), expected: format, found });
    }
    Ok((serde_json::from_str(&json).map_err(parse)?, hash.to_owned()))
}

/// The text before the mark and the hash after it.
fn split(text: &str) -> Option<(&str, &str)> {
    let rest = text.strip_suffix(END)?;
    let at = rest.len().checked_sub(HASH)?;
    let (front, hash) = rest.split_at_checked(at)?;
    Some((front.strip_suffix(MARK)?, hash))
}
