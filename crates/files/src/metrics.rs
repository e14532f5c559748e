//! Append-only JSON lines, one record each, and cutting them back when a run resumes.

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::{Error, Result, Sink, Storage, write_atomic};

/// An open log.
pub struct Log {
    sink: Box<dyn Sink>,
    path: PathBuf,
    /// The last line lacks its end: an earlier write was cut short.
    torn: bool,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("path", &self.path).field("torn", &self.torn).finish_non_exhaustive()
    }
}

impl Log {
    /// Opens a log to write at its end, creating it when it is not there.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(storage: &dyn Storage, path: &Path) -> Result<Log> {
        let torn = storage.exists(path)? && !matches!(storage.map(path)?.last(), None | Some(b'\n'));
        Ok(Log { sink: storage.append(path)?, path: path.to_path_buf(), torn })
    }

    /// Writes one record as one line, in one write to the system. It survives the end of the process
    /// at once and a power loss after [`Log::sync`].
    ///
    /// # Errors
    /// [`Error::Io`]. The next record then starts on a line of its own, and readers skip the torn one.
    pub fn append(&mut self, record: &impl Serialize) -> Result<()> {
        let mut line = if self.torn { vec![b'\n'] } else { Vec::new() };
        serde_json::to_writer(&mut line, record).map_err(|e| Error::io("append to", &self.path, e.into()))?;
        line.push(b'\n');
        self.torn = true;
        self.sink.write_all(&line).map_err(|e| Error::io("append to", &self.path, e))?;
        self.torn = false;
        Ok(())
    }

    /// Makes the records durable.
    ///
    /// # Errors
    /// [`Error::Io`]; open the log anew after it.
    pub fn sync(&mut self) -> Result<()> {
        self.sink.sync().map_err(|e| Error::io("sync", &self.path, e))
    }
}

/// Keeps the records `keep` says yes to, and drops the others, a torn last line and any line that is
/// not JSON. Returns how many records remain. No file counts as an empty one.
///
/// Records that go are normally the tail, which is cut off in place; otherwise the file is replaced
/// as a whole. Close the [`Log`] first.
///
/// # Errors
/// [`Error::Io`]; the old records are then still there.
pub fn truncate_after(
    storage: &dyn Storage,
    path: &Path,
    mut keep: impl FnMut(&serde_json::Value) -> bool,
) -> Result<u64> {
    if !storage.exists(path)? {
        return Ok(0);
    }
    let old = storage.read(path)?;
    let mut new = Vec::new();
    let mut records = 0;
    for line in old.split_inclusive(|&b| b == b'\n') {
        let value = match serde_json::from_slice::<serde_json::Value>(line) {
            Ok(value) if line.ends_with(b"\n") => value,
            _ => {
                if line != b"\n" {
                    tracing::warn!(path = %path.display(), "dropped a torn line of {} bytes", line.len());
                }
                continue;
            }
        };
        if keep(&value) {
            new.extend_from_slice(line);
            records += 1;
        }
    }
    if old.starts_with(&new) {
        if old.len() != new.len() {
            storage.truncate(path, new.len() as u64)?;
        }
    } else {
        write_atomic(storage, path, &new)?;
    }
    Ok(records)
}
