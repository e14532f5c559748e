//! The only way to disk: a small trait, the real disk behind it, and atomic replacement of one file.

use std::fmt::Debug;
use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Bytes, Error, Result};

/// What the formats need from a file system. Implementations: [`Disk`] and
/// [`FaultyStorage`](crate::FaultyStorage).
pub trait Storage: Send + Sync + Debug {
    /// Creates a file that must not exist (`O_CREAT | O_EXCL`, mode from the umask).
    fn create_new(&self, path: &Path) -> Result<Box<dyn Sink>>;
    /// Opens a file to write at its end, creating it when it is not there.
    fn append(&self, path: &Path) -> Result<Box<dyn Sink>>;
    /// Cuts a file down to `len` bytes and syncs it.
    fn truncate(&self, path: &Path, len: u64) -> Result<()>;
    /// Creates a directory and its parents.
    fn create_dir_all(&self, path: &Path) -> Result<()>;
    /// Makes the entries of a directory durable: new files, renames, removals.
    fn sync_dir(&self, path: &Path) -> Result<()>;
    /// Renames a file (replacing another) or a directory (onto nothing).
    fn rename(&self, from: &Path, to: &Path) -> Result<()>;
    /// Removes a file.
    fn remove_file(&self, path: &Path) -> Result<()>;
    /// Removes a directory and what is in it. Not atomic.
    fn remove_dir_all(&self, path: &Path) -> Result<()>;
    /// Opens a file for reading from its start.
    fn reader(&self, path: &Path) -> Result<Box<dyn Read + Send>>;
    /// Reads a whole file.
    fn read(&self, path: &Path) -> Result<Vec<u8>>;
    /// A read-only view of a whole file: [`Disk`] maps it, the test double copies.
    fn map(&self, path: &Path) -> Result<Bytes>;
    /// Length of a regular file. A symbolic link is refused.
    fn len(&self, path: &Path) -> Result<u64>;
    /// Paths of the entries of a directory, sorted.
    fn list(&self, dir: &Path) -> Result<Vec<PathBuf>>;
    /// Whether anything is there.
    fn exists(&self, path: &Path) -> Result<bool>;
    /// Bytes a process without privileges can still write under `path`.
    fn available_space(&self, path: &Path) -> Result<u64>;
}

/// A file being written. Writes go straight to the system: wrap it in a buffer where they are small.
pub trait Sink: Write + Send {
    /// Makes content and length durable. After an error the pages may be marked clean without being
    /// on disk, so the file must be abandoned: never sync it again, write a new one.
    fn sync(&mut self) -> std::io::Result<()>;
}

impl Sink for File {
    fn sync(&mut self) -> std::io::Result<()> {
        self.sync_all()
    }
}

/// The real disk.
#[derive(Debug, Clone, Copy, Default)]
pub struct Disk;

impl Storage for Disk {
    fn create_new(&self, path: &Path) -> Result<Box<dyn Sink>> {
        let file = OpenOptions::new().write(true).create_new(true).open(path);
        Ok(Box::new(file.map_err(|e| Error::io("create", path, e))?))
    }

    fn append(&self, path: &Path) -> Result<Box<dyn Sink>> {
        let file = OpenOptions::new().append(true).create(true).open(path);
        Ok(Box::new(file.map_err(|e| Error::io("append to", path, e))?))
    }

    fn truncate(&self, path: &Path, len: u64) -> Result<()> {
        let cut = || {
            let file = OpenOptions::new().write(true).open(path)?;
            file.set_len(len)?;
            file.sync_all()
        };
        cut().map_err(|e| Error::io("truncate", path, e))
    }

    fn create_dir_all(&self, path: &Path) -> Result<()> {
        fs::create_dir_all(path).map_err(|e| Error::io("create directory", path, e))
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        // Windows has no handle to a directory that could be synced; its renames are journalled.
        if cfg!(unix) {
            let synced = File::open(here(path)).and_then(|dir| dir.sync_all());
            synced.map_err(|e| Error::io("sync directory", path, e))?;
        }
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        fs::rename(from, to).map_err(|e| Error::io("rename a temporary to", to, e))
    }

    fn remove_file(&self, path: &Path) -> Result<()> {
        fs::remove_file(path).map_err(|e| Error::io("remove", path, e))
    }

    fn remove_dir_all(&self, path: &Path) -> Result<()> {
        fs::remove_dir_all(path).map_err(|e| Error::io("remove directory", path, e))
    }

    fn reader(&self, path: &Path) -> Result<Box<dyn Read + Send>> {
        Ok(Box::new(File::open(path).map_err(|e| Error::io("open", path, e))?))
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>> {
        fs::read(path).map_err(|e| Error::io("read", path, e))
    }

    fn map(&self, path: &Path) -> Result<Bytes> {
        File::open(path).and_then(|file| Bytes::map(&file)).map_err(|e| Error::io("map", path, e))
    }

    fn len(&self, path: &Path) -> Result<u64> {
        let meta = fs::symlink_metadata(path).map_err(|e| Error::io("look at", path, e))?;
        if !meta.is_file() {
            return Err(Error::broken(
                "kind of entry",
                path,
                "a regular file",
                format!("{:?}", meta.file_type()),
            ));
        }
        Ok(meta.len())
    }

    fn list(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(here(dir)).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
        let entries = entries.map_err(|e| Error::io("list", dir, e))?;
        let mut paths: Vec<_> = entries.iter().map(|entry| dir.join(entry.file_name())).collect();
        paths.sort();
        Ok(paths)
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        match fs::symlink_metadata(path) {
            Ok(_) => Ok(true),
            // Below a file there is nothing either.
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
            Err(e) => Err(Error::io("look at", path, e)),
        }
    }

    fn available_space(&self, path: &Path) -> Result<u64> {
        fs4::available_space(here(path)).map_err(|e| Error::io("measure the free space of", path, e))
    }
}

/// The parent of `a` is the empty path, which no system call takes.
fn here(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

/// The directory a path lies in; the working directory for a bare name.
pub(crate) fn parent(path: &Path) -> &Path {
    here(path.parent().unwrap_or(path))
}

/// The last component as text, empty when there is none or it is not UTF-8.
pub(crate) fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// Creates a directory and makes its entry, and those of every parent it had to create, durable.
pub(crate) fn make_dir(storage: &dyn Storage, path: &Path) -> Result<()> {
    if storage.exists(here(path))? {
        return Ok(());
    }
    make_dir(storage, parent(path))?;
    storage.create_dir_all(path)?;
    storage.sync_dir(parent(path))
}

/// A sibling of `path` that does not exist: `NAME.KIND-<pid>-<n>`.
pub(crate) fn fresh(storage: &dyn Storage, path: &Path, kind: &str) -> Result<PathBuf> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    loop {
        let n = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}.{kind}-{}-{n}", file_name(path), std::process::id());
        let candidate = parent(path).join(name);
        if !storage.exists(&candidate)? {
            return Ok(candidate);
        }
    }
}

/// Whether a name was made by [`fresh`] for a file or directory that never became final.
pub(crate) fn is_temporary(name: &str) -> bool {
    let Some((_, tail)) = name.rsplit_once(".tmp-") else { return false };
    let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
    tail.split_once('-').is_some_and(|(pid, n)| digits(pid) && digits(n))
}

/// Replaces the file at `path` by `bytes`, or creates it: afterwards, and after any crash on the way,
/// the file is the old one or the new one, whole.
///
/// Temporary file beside it, fsync, rename, fsync of the directory. On an error the temporary file is
/// removed where possible.
///
/// # Errors
/// [`Error::Io`] from any of these steps. If only the last one failed, the new file is in place but
/// may be lost with the power.
pub fn write_atomic(storage: &dyn Storage, path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = NewFile::create(storage, path)?;
    file.write(bytes)?;
    file.finish()
}

/// A file that is written piece by piece and takes the place of `path` when it is
/// [finished](Self::finish), as [`write_atomic`] does. Dropped before, it leaves nothing behind.
pub struct NewFile<'s> {
    storage: &'s dyn Storage,
    sink: Option<Box<dyn Sink>>,
    path: PathBuf,
    temp: PathBuf,
}

impl Debug for NewFile<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl<'s> NewFile<'s> {
    /// Creates the temporary file beside `path`.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(storage: &'s dyn Storage, path: &Path) -> Result<Self> {
        let temp = fresh(storage, path, "tmp")?;
        let sink = Some(storage.create_new(&temp)?);
        Ok(NewFile { storage, sink, path: path.to_path_buf(), temp })
    }

    /// Writes the next bytes, in large pieces: they go straight to the system.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let sink = self.sink.as_mut();
        sink.map_or(Ok(()), |sink| sink.write_all(bytes)).map_err(|e| Error::io("write", &self.temp, e))
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    /// [`Error::Io`]. If only the last step failed, the new file is in place but may be lost with the power.
    pub fn finish(mut self) -> Result<()> {
        // What `drop` removes is the temporary file: gone after the rename, still there before.
        if let Some(mut sink) = self.sink.take() {
            let synced = sink.sync().map_err(|e| Error::io("sync", &self.temp, e));
            drop(sink);
            synced?;
            self.storage.rename(&self.temp, &self.path)?;
            self.storage.sync_dir(parent(&self.path))?;
        }
        Ok(())
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        drop(self.sink.take());
        if self.storage.exists(&self.temp).unwrap_or(false)
            && let Err(error) = self.storage.remove_file(&self.temp)
        {
            tracing::debug!(%error, "temporary file left behind");
        }
    }
}

/// A file or folder that is made under another name and put in its place as a whole, or not at all. Dropped before
/// it is [finished](Self::finish), it leaves nothing behind.
#[derive(Debug)]
pub struct Draft<'s> {
    storage: &'s dyn Storage,
    place: PathBuf,
    temp: PathBuf,
    folder: bool,
}

impl<'s> Draft<'s> {
    /// For a file at `path`, which the caller creates at [`Draft::path`].
    ///
    /// # Errors
    /// [`Error::Exists`] where something lies at `path` already; [`Error::Io`].
    pub fn file(storage: &'s dyn Storage, path: &Path) -> Result<Self> {
        Self::new(storage, path, false)
    }

    /// For a folder at `path`: [`Draft::path`] is an empty one.
    ///
    /// # Errors
    /// As [`Draft::file`].
    pub fn folder(storage: &'s dyn Storage, path: &Path) -> Result<Self> {
        let draft = Self::new(storage, path, true)?;
        storage.create_dir_all(&draft.temp)?;
        Ok(draft)
    }

    fn new(storage: &'s dyn Storage, path: &Path, folder: bool) -> Result<Self> {
        if storage.exists(path)? {
            let (expected, hint) = ("nothing there", "choose another name, or move it away");
            return Err(Error::Exists { what: "the output", path: path.to_path_buf(), expected, hint });
        }
        make_dir(storage, parent(path))?;
        let temp = fresh(storage, path, "tmp")?;
        Ok(Draft { storage, place: path.to_path_buf(), temp, folder })
    }

    /// Where it is made.
    pub fn path(&self) -> &Path {
        &self.temp
    }

    /// Puts it in its place.
    ///
    /// # Errors
    /// [`Error::Io`]. If only the last step failed, it is in place but may be lost with the power.
    pub fn finish(self) -> Result<()> {
        if self.folder {
            self.storage.sync_dir(&self.temp)?;
        }
        self.storage.rename(&self.temp, &self.place)?;
        self.storage.sync_dir(parent(&self.place))
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if self.storage.exists(&self.temp).unwrap_or(false) {
            let removed = match self.folder {
                true => self.storage.remove_dir_all(&self.temp),
                false => self.storage.remove_file(&self.temp),
            };
            if let Err(error) = removed {
                tracing::debug!(%error, "temporary output left behind");
            }
        }
    }
}
