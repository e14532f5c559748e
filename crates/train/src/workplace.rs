//! The directory of a run: claimed for one process, empty or with something to go on from.

use std::path::{Path, PathBuf};

use tritrain_files::{
    Storage,
    checkpoint::{self, Checkpoint, RunLock},
    write_atomic,
};

use crate::{Config, Error, Result, part::SHARED};

/// A run directory that this process holds.
#[derive(Debug)]
pub struct Workplace {
    pub(crate) dir: PathBuf,
    pub(crate) checkpoint: Option<Checkpoint>,
    config: Config,
    _lock: RunLock,
}

impl Workplace {
    /// Claims `dir` for a new run and writes its `config.toml`.
    ///
    /// # Errors
    /// [`Error::Exists`] when a checkpoint lies there; another process holds the directory; the disk.
    pub fn start(storage: &dyn Storage, dir: &Path, config: Config) -> Result<Workplace> {
        let lock = checkpoint::lock(dir)?;
        // A run of experts begins with its shared start.
        for at in [dir, &dir.join(SHARED)] {
            if storage.exists(at)?
                && let Some(found) = checkpoint::newest(storage, at)?
            {
                return Err(Error::Exists { path: dir.to_path_buf(), step: found.step });
            }
        }
        write_atomic(storage, &dir.join("config.toml"), config.to_toml().as_bytes())?;
        Ok(Workplace { dir: dir.to_path_buf(), checkpoint: None, config, _lock: lock })
    }

    /// Claims `dir` to go on with its run from the newest sound checkpoint, or from step 0 when it has
    /// none yet. `config` must be the one the run was started with, but for [`crate::FREE`].
    ///
    /// # Errors
    /// [`Error::Changed`]; checkpoints exist and none is sound; another process holds the directory.
    pub fn resume(storage: &dyn Storage, dir: &Path, config: Config) -> Result<Workplace> {
        let lock = checkpoint::lock(dir)?;
        let path = dir.join("config.toml");
        if storage.exists(&path)? {
            let saved = storage.read(&path)?;
            let saved = Config::parse(&String::from_utf8_lossy(&saved), &path.display().to_string())?;
            let differences = config.differences(&saved);
            if !differences.is_empty() {
                return Err(Error::Changed { path: dir.to_path_buf(), differences });
            }
        } else {
            write_atomic(storage, &path, config.to_toml().as_bytes())?;
        }
        let checkpoint = checkpoint::newest(storage, dir)?;
        Ok(Workplace { dir: dir.to_path_buf(), checkpoint, config, _lock: lock })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The run's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The checkpoint to go on from.
    pub fn checkpoint(&self) -> Option<&Checkpoint> {
        self.checkpoint.as_ref()
    }

    /// Step of the checkpoint to go on from.
    pub fn step(&self) -> Option<u64> {
        self.checkpoint.as_ref().map(|checkpoint| checkpoint.step)
    }
}
