//! Checkpoints: directories `step-N` that are complete and verified, or do not exist for the loader.
//!
//! Saving: preflight for free space; write every file in `step-N.tmp-<pid>-<n>`, new, and sync it;
//! the manifest last; sync the directory; rename it to `step-N`; sync the run directory; read
//! everything back. A crash at any point leaves the old checkpoints and, beside them, the new one or
//! a temporary directory that no reader looks at.
//!
//! Saving a step that exists: when `step-N` verifies and holds exactly the same identity and bytes it
//! is left alone, without a write. Otherwise it is renamed to `step-N.old-<pid>-<n>` once the new one
//! is complete, and removed after the new one was read back. Readers look at `.old-` directories
//! after `step-N`, so there is no moment without a checkpoint for the step.

mod prune;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::seal::{seal, unseal};
use crate::storage::{file_name, fresh, is_temporary, make_dir, parent};
use crate::sums::{MANIFEST, Summing};
use crate::tensors::{Encoder, TensorView};
use crate::{Bytes, Difference, Error, FileSum, Result, Storage, valid_name};

pub use crate::lock::{RunLock, lock};
pub use prune::{discard_after, prune};

/// The newest manifest format this version reads, and the one it writes.
pub const FORMAT: u32 = 1;

/// What a run is: a checkpoint of one identity must not be resumed under another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Hash of the configuration.
    pub config: String,
    /// Hash of the tokenizer.
    pub tokenizer: String,
    /// Content hash of the token corpus.
    pub data: String,
    /// Version of the program.
    pub version: String,
}

impl Identity {
    /// The fields in which a file (`found`) differs from this process (`self`).
    pub fn differences(&self, found: &Identity) -> Vec<Difference> {
        let fields = [
            ("config", &self.config, &found.config),
            ("tokenizer", &self.tokenizer, &found.tokenizer),
            ("data", &self.data, &found.data),
            ("version", &self.version, &found.version),
        ];
        let differ = fields.into_iter().filter(|(_, expected, found)| expected != found);
        differ
            .map(|(field, expected, found)| Difference {
                field,
                expected: expected.clone(),
                found: found.clone(),
            })
            .collect()
    }
}

/// The bytes of a part, or how to write them.
type WritePart<'a> = Box<dyn Fn(&mut dyn Write) -> io::Result<()> + Send + Sync + 'a>;

/// One file of a checkpoint to be saved.
pub struct Part<'a> {
    /// File name: [`valid_name`], no leading dot, not `manifest.json`.
    pub name: &'a str,
    /// Length, for the preflight.
    pub bytes: u64,
    /// Writes the content; called at most twice and must write the same bytes each time.
    pub write: WritePart<'a>,
}

impl fmt::Debug for Part<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Part").field("name", &self.name).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}

impl<'a> Part<'a> {
    /// A part that lies in memory.
    pub fn bytes(name: &'a str, content: &'a [u8]) -> Part<'a> {
        Part { name, bytes: content.len() as u64, write: Box::new(move |out| out.write_all(content)) }
    }

    /// A safetensors file, streamed from the tensors.
    ///
    /// # Errors
    /// [`Error::Invalid`] as [`Encoder::new`].
    pub fn tensors(
        name: &'a str,
        tensors: impl IntoIterator<Item = TensorView<'a>>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Part<'a>> {
        let encoder = Encoder::new(Path::new(name), tensors, metadata)?;
        Ok(Part { name, bytes: encoder.len(), write: Box::new(move |out| encoder.write(out)) })
    }
}

/// `manifest.json`: what a checkpoint holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this format.
    pub format: u32,
    /// Optimizer steps done.
    pub step: u64,
    /// Every number in it is finite.
    pub healthy: bool,
    /// The run it belongs to.
    pub identity: Identity,
    /// Its files, in the order they were written.
    pub files: Vec<FileSum>,
}

/// A checkpoint whose every byte was verified by [`open`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Optimizer steps done.
    pub step: u64,
    /// Its directory.
    pub dir: PathBuf,
    /// What it holds.
    pub manifest: Manifest,
}

impl Checkpoint {
    /// The bytes of one file.
    ///
    /// # Errors
    /// [`Error::Broken`] when the checkpoint has no such file or its length has changed.
    pub fn read(&self, storage: &dyn Storage, name: &str) -> Result<Bytes> {
        let Some(file) = self.manifest.files.iter().find(|file| file.name == name) else {
            let names: Vec<_> = self.manifest.files.iter().map(|file| file.name.as_str()).collect();
            return Err(Error::broken("checkpoint", &self.dir, format!("a file {name}"), names.join(", ")));
        };
        let path = self.dir.join(name);
        let bytes = storage.map(&path)?;
        if bytes.len() as u64 != file.bytes {
            return Err(Error::broken("length", &path, format!("{} bytes", file.bytes), bytes.len()));
        }
        Ok(bytes)
    }

    /// Whether this checkpoint belongs to the run of this process. Fields named in `allow` may differ.
    ///
    /// # Errors
    /// [`Error::Identity`] lists every other field that differs.
    pub fn require(&self, expected: &Identity, allow: &[&str]) -> Result<()> {
        let mut differences = expected.differences(&self.manifest.identity);
        differences.retain(|difference| !allow.contains(&difference.field));
        if differences.is_empty() {
            return Ok(());
        }
        Err(Error::Identity { path: self.dir.clone(), differences })
    }
}

/// What the name of an entry of a run directory says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Named {
    /// `step-N`.
    Final(u64),
    /// `step-N.old-<pid>-<n>`: set aside while step N is replaced.
    Aside(u64),
    /// Left by a write that did not end.
    Temporary,
    /// Starts with `step-` and is none of ours: a checkpoint someone renamed.
    Strange,
    /// Not about checkpoints.
    Other,
}

fn named(path: &Path) -> Named {
    let name = file_name(path);
    if is_temporary(name) {
        return Named::Temporary;
    }
    let Some(rest) = name.strip_prefix("step-") else { return Named::Other };
    let (digits, aside) = match rest.split_once(".old-") {
        Some((digits, _)) => (digits, true),
        None => (rest, false),
    };
    match digits.parse::<u64>() {
        Ok(step) if step.to_string() == digits && aside => Named::Aside(step),
        Ok(step) if step.to_string() == digits => Named::Final(step),
        _ => Named::Strange,
    }
}

/// Verifies a checkpoint directory: its name against the manifest, the manifest against its own hash,
/// the set of files, and every byte of every file.
///
/// # Errors
/// [`Error::Broken`] names the file and, for damage, the block; [`Error::Newer`]; [`Error::Io`].
pub fn open(storage: &dyn Storage, dir: &Path) -> Result<Checkpoint> {
    let manifest = read_manifest(storage, dir)?;
    for file in &manifest.files {
        file.verify(storage, dir)?;
    }
    Ok(Checkpoint { step: manifest.step, dir: dir.to_path_buf(), manifest })
}

/// All of [`open`] but the content of the files.
fn read_manifest(storage: &dyn Storage, dir: &Path) -> Result<Manifest> {
    let path = dir.join(MANIFEST);
    let (manifest, _): (Manifest, _) = unseal(storage, &path, FORMAT)?;
    match named(dir) {
        Named::Final(step) | Named::Aside(step) if step == manifest.step => {}
        _ => return Err(Error::broken("name", dir, format!("step-{}", manifest.step), file_name(dir))),
    }
    let mut expected = BTreeSet::from([MANIFEST.to_owned()]);
    for file in &manifest.files {
        file.check(&path)?;
        if !expected.insert(file.name.to_ascii_lowercase()) {
            return Err(Error::broken("file names", &path, "each name once", &file.name));
        }
        file.check_len(storage, dir)?;
    }
    let known = |name: &str| name == MANIFEST || manifest.files.iter().any(|file| file.name == name);
    if let Some(extra) = storage.list(dir)?.iter().find(|path| !known(file_name(path))) {
        return Err(Error::broken("files", dir, "those of the manifest", extra.display()));
    }
    Ok(manifest)
}

/// The checkpoint directories of a run, newest step first, those set aside behind the final one.
/// Misnamed ones come last.
fn candidates(storage: &dyn Storage, run: &Path) -> Result<Vec<PathBuf>> {
    if !storage.exists(run)? {
        return Ok(Vec::new());
    }
    let rank = |path: &Path| match named(path) {
        Named::Final(step) => Some((1, step, 1)),
        Named::Aside(step) => Some((1, step, 0)),
        Named::Strange => Some((0, 0, 0)),
        Named::Temporary | Named::Other => None,
    };
    let mut ranked: Vec<_> =
        storage.list(run)?.into_iter().filter_map(|path| Some((rank(&path)?, path))).collect();
    ranked.sort_by(|a, b| b.cmp(a));
    Ok(ranked.into_iter().map(|(_, path)| path).collect())
}

/// [`open`], and an error when the checkpoint is flagged as not healthy.
fn open_healthy(storage: &dyn Storage, dir: &Path) -> Result<Checkpoint> {
    let checkpoint = open(storage, dir)?;
    if !checkpoint.manifest.healthy {
        return Err(Error::broken("numbers", dir, "all finite", "some that are not"));
    }
    Ok(checkpoint)
}

/// The newest checkpoint of a run that verifies and is healthy; others are skipped with one warning
/// each. `Ok(None)` only when there is no candidate at all.
///
/// # Errors
/// [`Error::NoneLoads`] when there are candidates and none can be used; [`Error::Io`] when the run
/// directory cannot be listed.
pub fn newest(storage: &dyn Storage, run: &Path) -> Result<Option<Checkpoint>> {
    let candidates = candidates(storage, run)?;
    let mut first = None;
    for dir in &candidates {
        match open_healthy(storage, dir) {
            Ok(checkpoint) => return Ok(Some(checkpoint)),
            Err(error) => {
                tracing::warn!(%error, "skipped checkpoint {}", dir.display());
                first.get_or_insert(error);
            }
        }
    }
    match first {
        None => Ok(None),
        Some(newest) => {
            let (path, tried) = (run.to_path_buf(), candidates.len());
            Err(Error::NoneLoads { path, tried, newest: Box::new(newest) })
        }
    }
}

/// The newest checkpoint of step `step` or earlier that verifies and is healthy, else the oldest such of all.
/// None if no checkpoint is.
///
/// # Errors
/// [`Error::Io`] when the directory cannot be listed.
pub fn before(storage: &dyn Storage, run: &Path, step: u64) -> Result<Option<Checkpoint>> {
    let mut oldest = None;
    for dir in candidates(storage, run)? {
        match open_healthy(storage, &dir) {
            Ok(checkpoint) if checkpoint.step <= step => return Ok(Some(checkpoint)),
            Ok(checkpoint) => oldest = Some(checkpoint),
            Err(error) => tracing::warn!(%error, "skipped checkpoint {}", dir.display()),
        }
    }
    Ok(oldest)
}

/// Saves a checkpoint by the protocol in the [module](self) text and returns its directory, verified.
///
/// `healthy` says that every number in it is finite. The caller holds the [`lock`]; saves of different
/// steps may run at once.
///
/// # Errors
/// [`Error::NoSpace`] before or while writing; [`Error::Io`]; [`Error::Broken`] when reading back finds
/// other bytes than were written; [`Error::Exists`] when an unhealthy checkpoint would replace a
/// healthy one; [`Error::Invalid`] for part names. Older checkpoints are untouched in every case.
pub fn save(
    storage: &dyn Storage,
    run: &Path,
    step: u64,
    parts: &[Part<'_>],
    identity: &Identity,
    healthy: bool,
) -> Result<PathBuf> {
    let target = run.join(format!("step-{step}"));
    check_names(&target, parts)?;
    make_dir(storage, run)?;
    let draft = Manifest { format: FORMAT, step, healthy, identity: identity.clone(), files: Vec::new() };
    if storage.exists(&target)? && is_saved(storage, &target, parts, &draft)? {
        // An earlier save may have failed at just this.
        storage.sync_dir(run)?;
        return Ok(target);
    }
    let needed = preflight(storage, &target, parts)?;
    let temp = fresh(storage, &target, "tmp")?;
    let result = write_all(storage, &temp, parts, draft)
        .and_then(|manifest| publish(storage, &temp, &target, &manifest));
    match result {
        Ok(()) => Ok(target),
        Err(error) => {
            if let Err(error) = remove_if_there(storage, &temp) {
                tracing::debug!(%error, "temporary directory left behind");
            }
            Err(with_space(storage, run, needed, error))
        }
    }
}

fn check_names(target: &Path, parts: &[Part<'_>]) -> Result<()> {
    let mut seen = BTreeSet::from([MANIFEST.to_owned()]);
    for part in parts {
        let new = seen.insert(part.name.to_ascii_lowercase());
        if !new || !valid_name(part.name) || part.name.starts_with('.') {
            let expected = "unique plain names of [A-Za-z0-9._-], not manifest.json";
            return Err(Error::invalid("file name", target, expected, part.name, "rename the part"));
        }
    }
    Ok(())
}

/// Whether `target` already holds exactly this checkpoint.
fn is_saved(storage: &dyn Storage, target: &Path, parts: &[Part<'_>], draft: &Manifest) -> Result<bool> {
    let old = match open(storage, target) {
        Ok(old) => old.manifest,
        Err(error) => {
            tracing::warn!(%error, "replacing checkpoint {}", target.display());
            return Ok(false);
        }
    };
    let mut new = draft.clone();
    for part in parts {
        let mut sums = Summing::new(io::sink());
        let summed = (part.write)(&mut sums).and_then(|()| sums.finish(part.name));
        new.files.push(summed.map_err(|e| Error::io("encode", &target.join(part.name), e))?.1);
    }
    if old.healthy && !new.healthy {
        let (what, path) = ("checkpoint", target.to_path_buf());
        let expected = "no healthy checkpoint where an unhealthy one is saved";
        return Err(Error::Exists { what, path, expected, hint: "resume from it" });
    }
    Ok(old == new)
}

/// Free space for the parts, the manifest and a tenth more; returns what is needed.
fn preflight(storage: &dyn Storage, target: &Path, parts: &[Part<'_>]) -> Result<u64> {
    let bytes = parts.iter().fold(4096u64, |sum, part| sum.saturating_add(part.bytes));
    let needed = bytes.saturating_add(bytes / 10);
    let free = storage.available_space(parent(target))?;
    if free < needed {
        return Err(Error::NoSpace { what: "save checkpoint", path: target.to_path_buf(), needed, free });
    }
    Ok(needed)
}

/// Gives an `ENOSPC` the numbers a user needs.
fn with_space(storage: &dyn Storage, run: &Path, needed: u64, error: Error) -> Error {
    match error {
        Error::Io { path, source, .. } if source.kind() == io::ErrorKind::StorageFull => {
            let free = storage.available_space(run).unwrap_or(0);
            Error::NoSpace { what: "write", path, needed, free }
        }
        error => error,
    }
}

/// Writes and syncs every part, then the manifest, then the directory.
fn write_all(
    storage: &dyn Storage,
    temp: &Path,
    parts: &[Part<'_>],
    mut manifest: Manifest,
) -> Result<Manifest> {
    storage.create_dir_all(temp)?;
    for part in parts {
        let path = temp.join(part.name);
        let mut sums = Summing::new(storage.create_new(&path)?);
        let summed = (part.write)(&mut sums).and_then(|()| sums.finish(part.name));
        let (mut sink, sum) = summed.map_err(|e| Error::io("write", &path, e))?;
        sink.sync().map_err(|e| Error::io("sync", &path, e))?;
        manifest.files.push(sum);
    }
    let path = temp.join(MANIFEST);
    let (text, _) = seal(&manifest, &path)?;
    write_synced(storage, &path, &text)?;
    storage.sync_dir(temp)?;
    Ok(manifest)
}

/// Writes one new file and syncs it.
pub(crate) fn write_synced(storage: &dyn Storage, path: &Path, bytes: &[u8]) -> Result<()> {
    let mut sink = storage.create_new(path)?;
    sink.write_all(bytes).map_err(|e| Error::io("write", path, e))?;
    sink.sync().map_err(|e| Error::io("sync", path, e))
}

/// Renames a complete directory into place, reads it back, and only then lets go of its predecessor.
fn publish(storage: &dyn Storage, temp: &Path, target: &Path, manifest: &Manifest) -> Result<()> {
    let run = parent(target);
    let mut aside = None;
    if storage.exists(target)? {
        let old = fresh(storage, target, "old")?;
        storage.rename(target, &old)?;
        aside = Some(old);
    }
    let place = || {
        storage.rename(temp, target)?;
        storage.sync_dir(run)?;
        let found = open(storage, target)?.manifest;
        if found != *manifest {
            return Err(Error::broken(
                "checkpoint read back",
                target,
                "what was written",
                "another manifest",
            ));
        }
        Ok(())
    };
    let placed = place();
    match (placed, aside) {
        (Ok(()), Some(old)) => {
            if let Err(error) = storage.remove_dir_all(&old).and_then(|()| storage.sync_dir(run)) {
                tracing::warn!(%error, "replaced checkpoint left behind");
            }
            Ok(())
        }
        (Err(error), Some(old)) if !storage.exists(target).unwrap_or(true) => {
            if let Err(error) = storage.rename(&old, target) {
                tracing::warn!(%error, "replaced checkpoint stays at {}", old.display());
            }
            Err(error)
        }
        (placed, _) => placed,
    }
}

/// Removes a directory if it exists.
pub(crate) fn remove_if_there(storage: &dyn Storage, dir: &Path) -> Result<()> {
    if storage.exists(dir)? { storage.remove_dir_all(dir) } else { Ok(()) }
}
