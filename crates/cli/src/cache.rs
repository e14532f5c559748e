//! What was measured once on a machine and is kept in the user's cache.

use std::path::{Path, PathBuf};

use serde::{Serialize, de::DeserializeOwned};
use tritrain_files::{Disk, Storage, write_atomic};

use crate::show;

/// Bytes of a file at most.
const MOST: u64 = 1 << 20;

/// A file in the folder for caches that the system or the user names.
pub(crate) fn path(name: &str) -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let caches = folder("XDG_CACHE_HOME")
        .or_else(|| folder("LOCALAPPDATA"))
        .or_else(|| Some(folder("HOME")?.join(".cache")))?;
    Some(caches.join("tritrain").join(name))
}

/// What was kept, if it was; of what cannot be read, says so.
pub(crate) fn read<T: DeserializeOwned>(path: &Path, what: &str) -> Option<T> {
    try_read(path, what).unwrap_or_else(|why| {
        show::note(&format!("{} is not used and replaced: {why}", path.display()));
        None
    })
}

fn try_read<T: DeserializeOwned>(path: &Path, what: &str) -> Result<Option<T>, String> {
    let told = |error: tritrain_files::Error| error.to_string();
    if !Disk.exists(path).map_err(told)? {
        return Ok(None);
    }
    let len = Disk.len(path).map_err(told)?;
    if len > MOST {
        return Err(format!("it has {len} bytes, expected at most {MOST}"));
    }
    let bytes = Disk.read(path).map_err(told)?;
    serde_json::from_slice(&bytes).map(Some).map_err(|error| format!("it is no {what}: {error}"))
}

/// Keeps something; where that fails, says so.
pub(crate) fn write(path: &Path, what: &str, kept: &impl Serialize) {
    if let Err(error) = try_write(path, kept) {
        show::note(&format!("the {what} is not kept: {error}"));
    }
}

fn try_write(path: &Path, kept: &impl Serialize) -> Result<(), String> {
    let text = serde_json::to_string_pretty(kept).map_err(|error| error.to_string())?;
    let folder = path.parent().unwrap_or(path);
    Disk.create_dir_all(folder)
        .and_then(|()| write_atomic(&Disk, path, text.as_bytes()))
        .map_err(|error| error.to_string())
}
