//! Removing old checkpoints without ever losing the last one that is known to be good.

use std::path::{Path, PathBuf};

use super::{Named, candidates, named, open_healthy, read_manifest, remove_if_there};
use crate::storage::{file_name, fresh};
use crate::{Result, Storage};

/// Removes checkpoints older than the newest `keep` (at least one), except those of the steps in
/// `protect`, and what interrupted writes left in the run directory. The caller holds the
/// [`lock`](super::lock) and no save is under way.
///
/// Only checkpoints that look whole count towards `keep`, and the window grows until it holds one that
/// verifies to the last byte and is healthy; without such a one nothing is removed. Broken checkpoints
/// inside the window stay, as evidence: a failed read may have been the disk's bad moment. A removal
/// renames first, so a crash in the middle leaves no half checkpoint.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io); what remains is still whole.
pub fn prune(storage: &dyn Storage, run: &Path, keep: usize, protect: &[u64]) -> Result<()> {
    let old = removable(storage, run, keep.max(1), protect)?;
    // Oldest first: whatever stops this, the newest remain.
    old.iter().rev().try_for_each(|dir| remove(storage, run, dir))?;
    remove_temporaries(storage, run)
}

/// Removes the checkpoints of steps after `step`, newest first. The caller holds the [`lock`](super::lock), no
/// save is under way, and the checkpoint of `step` was verified.
///
/// # Errors
/// [`Error::Io`](crate::Error::Io); what remains is still whole.
pub fn discard_after(storage: &dyn Storage, run: &Path, step: u64) -> Result<()> {
    for dir in candidates(storage, run)? {
        match named(&dir) {
            Named::Final(at) | Named::Aside(at) if at > step => remove(storage, run, &dir)?,
            _ => {}
        }
    }
    Ok(())
}

fn remove(storage: &dyn Storage, run: &Path, dir: &Path) -> Result<()> {
    let doomed = fresh(storage, dir, "tmp")?;
    storage.rename(dir, &doomed)?;
    storage.sync_dir(run)?;
    storage.remove_dir_all(&doomed)
}

/// What lies behind the window, newest first: empty as long as nothing newer was verified.
fn removable(storage: &dyn Storage, run: &Path, keep: usize, protect: &[u64]) -> Result<Vec<PathBuf>> {
    let mut kept = 0;
    let mut verified = false;
    let mut old = Vec::new();
    for dir in candidates(storage, run)? {
        let step = match named(&dir) {
            // A save ended before it removed what it replaced.
            Named::Aside(step) if open_healthy(storage, &run.join(format!("step-{step}"))).is_ok() => {
                old.push(dir);
                continue;
            }
            Named::Final(step) | Named::Aside(step) => step,
            Named::Strange | Named::Temporary | Named::Other => continue,
        };
        if protect.contains(&step) {
            verified = verified || open_healthy(storage, &dir).is_ok();
        } else if verified && kept >= keep {
            old.push(dir);
        } else if !verified && open_healthy(storage, &dir).is_ok() {
            verified = true;
            kept += 1;
        } else if read_manifest(storage, &dir).is_ok() {
            kept += 1;
        }
    }
    Ok(old)
}

fn remove_temporaries(storage: &dyn Storage, run: &Path) -> Result<()> {
    if !storage.exists(run)? {
        return Ok(());
    }
    for path in storage.list(run)? {
        if named(&path) != Named::Temporary {
            continue;
        }
        // Directories of tokens and checkpoints, files of `write_atomic`.
        if storage.len(&path).is_ok() {
            storage.remove_file(&path)?;
        } else {
            tracing::debug!("removing {}", file_name(&path));
            remove_if_there(storage, &path)?;
        }
    }
    storage.sync_dir(run)
}
