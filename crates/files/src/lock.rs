//! One trainer per run directory.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::{Disk, Error, Result, storage::make_dir};

/// Held while a process trains in a run directory; dropping it, or the end of the process by any
/// cause, releases it.
#[derive(Debug)]
pub struct RunLock {
    _file: File,
    path: PathBuf,
}

impl RunLock {
    /// The lock file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Locks a run directory, creating it when needed, and writes this process's id into `run/.lock`.
///
/// The lock belongs to the operating system, not to the file's existence, so it needs no cleaning up.
/// It is the one write that does not go through [`Storage`](crate::Storage): only a real file locks.
///
/// # Errors
/// [`Error::Locked`] names the holder; [`Error::Io`] when the file cannot be opened or locked.
pub fn lock(run: &Path) -> Result<RunLock> {
    make_dir(&Disk, run)?;
    let path = run.join(".lock");
    let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    let mut file = opened.map_err(|e| Error::io("open", &path, e))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            let read = (&file).take(20).read_to_string(&mut holder);
            let holder = match holder.trim() {
                pid if read.is_ok() && !pid.is_empty() => pid.escape_debug().to_string(),
                _ => "unknown".to_owned(),
            };
            return Err(Error::Locked { path, holder });
        }
        Err(TryLockError::Error(e)) => return Err(Error::io("lock", &path, e)),
    }
    let mut write = || {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    write().map_err(|e| Error::io("write", &path, e))?;
    Ok(RunLock { _file: file, path })
}
