//! A test double: a file system in memory that forgets what was not synced, runs full and breaks.
//!
//! It models the page cache more strictly than real file systems behave. What a program sees
//! (`volatile`) and what survives a power loss (`durable`) are separate:
//! - bytes of a file become durable by [`Sink::sync`]; until then each 512-byte sector, and the
//!   length, may be old or new;
//! - entries of a directory become durable by [`Storage::sync_dir`]; until then each creation, rename
//!   and removal may have happened or not, in any combination (a rename is one entry change);
//! - a failed sync marks pages clean that are not on disk, as Linux does: a second sync would succeed
//!   and lose them.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::{Bytes, Error, Result, Sink, Storage};

const SECTOR: usize = 512;
const ROOT: u64 = 0;

/// What survives when the power goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerLoss {
    /// Nothing that was not synced.
    DropAll,
    /// Everything.
    KeepAll,
    /// A random part of it, by seed.
    Random(u64),
}

/// How an operation fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// `ENOSPC`, from operations that need space; a write gets half way.
    NoSpace,
    /// `EIO`, from any operation; a write gets half way.
    Io,
    /// The process is gone: this operation and all later ones do nothing.
    PowerOff,
}

#[derive(Debug, Clone, Copy)]
struct Fault {
    at: u64,
    how: Failure,
    lasting: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    Read,
    Change,
    Space,
}

#[derive(Debug, Clone, Default)]
struct FileNode {
    volatile: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors that differ and were not lost by a failed sync.
    dirty: BTreeSet<usize>,
}

#[derive(Debug, Clone, Default)]
struct DirNode {
    volatile: BTreeMap<String, u64>,
    durable: BTreeMap<String, u64>,
}

#[derive(Debug, Clone)]
enum Node {
    File(FileNode),
    Dir(DirNode),
}

/// One change of the name space, atomic: the new value of some directory entries.
type Change = Vec<(u64, String, Option<u64>)>;

#[derive(Debug, Clone)]
struct State {
    nodes: BTreeMap<u64, Node>,
    pending: Vec<Change>,
    operations: u64,
    fault: Option<Fault>,
    short_writes: Option<Random>,
    capacity: u64,
}

/// The file system; clones share it. See the [module](self).
#[derive(Debug, Clone)]
pub struct FaultyStorage(Arc<Mutex<State>>);

impl Default for FaultyStorage {
    fn default() -> Self {
        Self::new()
    }
}

impl FaultyStorage {
    /// An empty one without faults.
    pub fn new() -> Self {
        let nodes = BTreeMap::from([(ROOT, Node::Dir(DirNode::default()))]);
        let (pending, operations, fault) = (Vec::new(), 0, None);
        Self::from_state(State { nodes, pending, operations, fault, short_writes: None, capacity: u64::MAX })
    }

    fn from_state(state: State) -> Self {
        FaultyStorage(Arc::new(Mutex::new(state)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Operations so far, failed ones included. Each write, sync, entry change and read is one.
    pub fn operations(&self) -> u64 {
        self.state().operations
    }

    /// Makes the operation with index `at`, counted from [`FaultyStorage::operations`] `== 0`, fail,
    /// and every later one too if `lasting` (always for [`Failure::PowerOff`]).
    pub fn fail_at(&self, at: u64, how: Failure, lasting: bool) {
        let lasting = lasting || how == Failure::PowerOff;
        self.state().fault = Some(Fault { at, how, lasting });
    }

    /// Repairs what [`FaultyStorage::fail_at`] broke.
    pub fn heal(&self) {
        self.state().fault = None;
    }

    /// From now on a write takes a random part of what it is given.
    pub fn short_writes(&self, seed: u64) {
        self.state().short_writes = Some(Random(seed));
    }

    /// Limits the sum of all file lengths.
    pub fn set_capacity(&self, bytes: u64) {
        self.state().capacity = bytes;
    }

    /// An independent copy, unsynced changes and faults included.
    pub fn fork(&self) -> FaultyStorage {
        Self::from_state(self.state().clone())
    }

    /// What is on disk when the power goes now: an independent storage without faults, its operations
    /// counted from 0.
    pub fn crash(&self, loss: PowerLoss) -> FaultyStorage {
        let mut state = self.state().clone();
        state.crash(loss);
        Self::from_state(state)
    }

    /// Changes the content of a file behind everyone's back, durably: bit rot.
    ///
    /// # Errors
    /// [`Error::Io`] when there is no such file.
    pub fn damage(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        let mut state = self.state();
        let damaged = state.file(path).map(|file| {
            change(&mut file.volatile);
            file.durable.clone_from(&file.volatile);
            file.dirty.clear();
        });
        damaged.map_err(|e| Error::io("damage", path, e))
    }

    /// Runs one operation: counts it, fails it if planned, names the path in errors.
    fn run<T>(
        &self,
        op: Op,
        what: &'static str,
        path: &Path,
        f: impl FnOnce(&mut State) -> io::Result<T>,
    ) -> Result<T> {
        let mut state = self.state();
        let result = match state.gate(op) {
            Ok(()) => f(&mut state),
            Err(e) => Err(e),
        };
        result.map_err(|e| Error::io(what, path, e))
    }
}

/// SplitMix64.
#[derive(Debug, Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % (n as u64).max(1)) as usize
    }
}

fn err<T>(kind: ErrorKind) -> io::Result<T> {
    Err(kind.into())
}

impl State {
    fn gate(&mut self, op: Op) -> io::Result<()> {
        let now = self.operations;
        self.operations += 1;
        match self.fault {
            Some(fault) if now == fault.at || (fault.lasting && now > fault.at) => match fault.how {
                Failure::NoSpace if op == Op::Space => err(ErrorKind::StorageFull),
                Failure::NoSpace => Ok(()),
                Failure::Io => Err(io::Error::other("input/output error (injected)")),
                Failure::PowerOff => Err(io::Error::other("power off (injected)")),
            },
            _ => Ok(()),
        }
    }

    fn dir(&mut self, id: u64) -> io::Result<&mut DirNode> {
        match self.nodes.get_mut(&id) {
            Some(Node::Dir(dir)) => Ok(dir),
            Some(Node::File(_)) => err(ErrorKind::NotADirectory),
            None => err(ErrorKind::NotFound),
        }
    }

    fn find(&mut self, path: &Path) -> io::Result<u64> {
        let mut id = ROOT;
        for name in names(path)? {
            id = *self.dir(id)?.volatile.get(name).ok_or(ErrorKind::NotFound)?;
        }
        Ok(id)
    }

    fn file(&mut self, path: &Path) -> io::Result<&mut FileNode> {
        let id = self.find(path)?;
        self.file_node(id)
    }

    fn file_node(&mut self, id: u64) -> io::Result<&mut FileNode> {
        match self.nodes.get_mut(&id) {
            Some(Node::File(file)) => Ok(file),
            Some(Node::Dir(_)) => err(ErrorKind::IsADirectory),
            None => err(ErrorKind::NotFound),
        }
    }

    /// The directory a path lies in, and the last name.
    fn locate(&mut self, path: &Path) -> io::Result<(u64, String)> {
        let names = names(path)?;
        let (last, parents) = names.split_last().ok_or(ErrorKind::InvalidInput)?;
        let mut id = ROOT;
        for name in parents {
            id = *self.dir(id)?.volatile.get(*name).ok_or(ErrorKind::NotFound)?;
        }
        self.dir(id)?;
        Ok((id, (*last).to_owned()))
    }

    fn entry(&mut self, dir: u64, name: &str) -> io::Result<Option<u64>> {
        Ok(self.dir(dir)?.volatile.get(name).copied())
    }

    fn apply(&mut self, change: Change) -> io::Result<()> {
        for (dir, name, node) in &change {
            let entries = &mut self.dir(*dir)?.volatile;
            set(entries, name, *node);
        }
        self.pending.push(change);
        Ok(())
    }

    fn add(&mut self, dir: u64, name: String, node: Node) -> io::Result<u64> {
        let id = self.nodes.last_key_value().map_or(ROOT, |(id, _)| id + 1);
        self.nodes.insert(id, node);
        self.apply(vec![(dir, name, Some(id))])?;
        Ok(id)
    }

    fn sync_dir(&mut self, id: u64) -> io::Result<()> {
        let (now, later) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|change: &Change| change.iter().any(|(dir, ..)| *dir == id));
        self.pending = later;
        for (dir, name, node) in now.into_iter().flatten() {
            set(&mut self.dir(dir)?.durable, &name, node);
        }
        Ok(())
    }

    fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let (from_dir, from_name) = self.locate(from)?;
        let (to_dir, to_name) = self.locate(to)?;
        let node = self.entry(from_dir, &from_name)?.ok_or(ErrorKind::NotFound)?;
        let is_dir = matches!(self.nodes.get(&node), Some(Node::Dir(_)));
        match self.entry(to_dir, &to_name)?.and_then(|id| self.nodes.get(&id)) {
            Some(Node::Dir(dir)) if is_dir && !dir.volatile.is_empty() => {
                return err(ErrorKind::DirectoryNotEmpty);
            }
            Some(Node::Dir(_)) if !is_dir => return err(ErrorKind::IsADirectory),
            Some(Node::File(_)) if is_dir => return err(ErrorKind::NotADirectory),
            _ => {}
        }
        self.apply(vec![(from_dir, from_name, None), (to_dir, to_name, Some(node))])
    }

    /// Removes what lies in a directory, the deepest first, one operation each.
    fn empty_dir(&mut self, id: u64) -> io::Result<()> {
        let entries: Vec<_> = self.dir(id)?.volatile.clone().into_iter().collect();
        for (name, node) in entries {
            if matches!(self.nodes.get(&node), Some(Node::Dir(_))) {
                self.empty_dir(node)?;
            }
            self.gate(Op::Change)?;
            self.apply(vec![(id, name, None)])?;
        }
        Ok(())
    }

    /// Bytes of all files that can be reached.
    fn used(&self) -> u64 {
        let mut stack = vec![ROOT];
        let mut used = 0;
        while let Some(id) = stack.pop() {
            match self.nodes.get(&id) {
                Some(Node::File(file)) => used += file.volatile.len() as u64,
                Some(Node::Dir(dir)) => stack.extend(dir.volatile.values()),
                None => {}
            }
        }
        used
    }

    fn free(&self) -> u64 {
        if self.capacity == u64::MAX { u64::MAX } else { self.capacity.saturating_sub(self.used()) }
    }

    fn write(&mut self, id: u64, bytes: &[u8]) -> io::Result<usize> {
        let gate = self.gate(Op::Space);
        let free = usize::try_from(self.free()).unwrap_or(usize::MAX);
        let part = match (&gate, &mut self.short_writes) {
            (Err(_), _) if self.fault.is_some_and(|fault| fault.how == Failure::PowerOff) => 0,
            (Err(_), _) => bytes.len() / 2,
            (Ok(()), Some(random)) => 1 + random.below(bytes.len()),
            (Ok(()), None) => bytes.len(),
        };
        let taken = part.min(free).min(bytes.len());
        let file = self.file_node(id)?;
        let start = file.volatile.len();
        file.volatile.extend(bytes.iter().take(taken));
        file.dirty.extend(start / SECTOR..file.volatile.len().div_ceil(SECTOR));
        gate?;
        if taken == 0 && !bytes.is_empty() { err(ErrorKind::StorageFull) } else { Ok(taken) }
    }

    fn sync_file(&mut self, id: u64) -> io::Result<()> {
        let gate = self.gate(Op::Space);
        let file = self.file_node(id)?;
        let dirty = std::mem::take(&mut file.dirty);
        gate?;
        file.durable.resize(file.volatile.len(), 0);
        for sector in dirty {
            copy_sector(&file.volatile, &mut file.durable, sector);
        }
        Ok(())
    }

    fn crash(&mut self, loss: PowerLoss) {
        let mut random = Random(if let PowerLoss::Random(seed) = loss { seed } else { 0 });
        let odds = 1 + random.below(9);
        let mut keep = |random: &mut Random| match loss {
            PowerLoss::DropAll => false,
            PowerLoss::KeepAll => true,
            PowerLoss::Random(_) => random.below(10) < odds,
        };
        for change in std::mem::take(&mut self.pending) {
            if keep(&mut random) {
                for (dir, name, node) in change {
                    if let Some(Node::Dir(dir)) = self.nodes.get_mut(&dir) {
                        set(&mut dir.durable, &name, node);
                    }
                }
            }
        }
        for node in self.nodes.values_mut() {
            match node {
                Node::Dir(dir) => dir.volatile.clone_from(&dir.durable),
                Node::File(file) => file.crash(loss, &mut random, &mut keep),
            }
        }
        (self.operations, self.fault, self.short_writes) = (0, None, None);
    }
}

impl FileNode {
    fn crash(&mut self, loss: PowerLoss, random: &mut Random, keep: &mut impl FnMut(&mut Random) -> bool) {
        let (old, new) = (self.durable.len(), self.volatile.len());
        let len = match loss {
            PowerLoss::DropAll => old,
            _ if old == new || self.dirty.is_empty() => old,
            PowerLoss::KeepAll => new,
            PowerLoss::Random(_) => match random.below(3) {
                0 => old,
                1 => new,
                _ => old.min(new) + random.below(old.abs_diff(new).div_ceil(SECTOR)) * SECTOR,
            },
        };
        self.durable.resize(len, 0);
        for sector in std::mem::take(&mut self.dirty) {
            if keep(random) {
                copy_sector(&self.volatile, &mut self.durable, sector);
            }
        }
        self.volatile.clone_from(&self.durable);
    }
}

fn copy_sector(from: &[u8], to: &mut [u8], sector: usize) {
    let start = sector * SECTOR;
    let end = (start + SECTOR).min(from.len()).min(to.len());
    if let (Some(from), Some(to)) = (from.get(start..end), to.get_mut(start..end)) {
        to.copy_from_slice(from);
    }
}

fn set(entries: &mut BTreeMap<String, u64>, name: &str, node: Option<u64>) {
    match node {
        Some(node) => entries.insert(name.to_owned(), node),
        None => entries.remove(name),
    };
}

/// The components of a path; relative and absolute ones start at the same root.
fn names(path: &Path) -> io::Result<Vec<&str>> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name.to_str().ok_or(ErrorKind::InvalidFilename)?),
            Component::ParentDir => return err(ErrorKind::Unsupported),
            _ => {}
        }
    }
    Ok(names)
}

impl Storage for FaultyStorage {
    fn create_new(&self, path: &Path) -> Result<Box<dyn Sink>> {
        let id = self.run(Op::Space, "create", path, |state| {
            let (dir, name) = state.locate(path)?;
            match state.entry(dir, &name)? {
                Some(_) => err(ErrorKind::AlreadyExists),
                None => state.add(dir, name, Node::File(FileNode::default())),
            }
        })?;
        Ok(Box::new(FaultySink { storage: self.clone(), id }))
    }

    fn append(&self, path: &Path) -> Result<Box<dyn Sink>> {
        let id = self.run(Op::Space, "append to", path, |state| {
            let (dir, name) = state.locate(path)?;
            match state.entry(dir, &name)? {
                Some(id) => state.file_node(id).map(|_| id),
                None => state.add(dir, name, Node::File(FileNode::default())),
            }
        })?;
        Ok(Box::new(FaultySink { storage: self.clone(), id }))
    }

    fn truncate(&self, path: &Path, len: u64) -> Result<()> {
        let id = self.run(Op::Change, "truncate", path, |state| {
            let id = state.find(path)?;
            let file = state.file_node(id)?;
            let old = file.volatile.len();
            file.volatile.resize(usize::try_from(len).map_err(|_| ErrorKind::FileTooLarge)?, 0);
            file.dirty.insert(old.min(file.volatile.len()) / SECTOR);
            Ok(id)
        })?;
        self.state().sync_file(id).map_err(|e| Error::io("truncate", path, e))
    }

    fn create_dir_all(&self, path: &Path) -> Result<()> {
        let mut prefix = PathBuf::new();
        for component in path.components() {
            prefix.push(component);
            let known = self.state().find(&prefix).is_ok();
            if !known {
                self.run(Op::Space, "create directory", &prefix, |state| {
                    let (dir, name) = state.locate(&prefix)?;
                    state.add(dir, name, Node::Dir(DirNode::default()))
                })?;
            }
        }
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> Result<()> {
        self.run(Op::Change, "sync directory", path, |state| {
            let id = state.find(path)?;
            state.dir(id)?;
            state.sync_dir(id)
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.run(Op::Space, "rename a temporary to", to, |state| state.rename(from, to))
    }

    fn remove_file(&self, path: &Path) -> Result<()> {
        self.run(Op::Change, "remove", path, |state| {
            state.file(path)?;
            let (dir, name) = state.locate(path)?;
            state.apply(vec![(dir, name, None)])
        })
    }

    fn remove_dir_all(&self, path: &Path) -> Result<()> {
        self.run(Op::Change, "remove directory", path, |state| {
            let id = state.find(path)?;
            state.empty_dir(id)?;
            let (dir, name) = state.locate(path)?;
            state.gate(Op::Change)?;
            state.apply(vec![(dir, name, None)])
        })
    }

    fn reader(&self, path: &Path) -> Result<Box<dyn Read + Send>> {
        let content = self.run(Op::Read, "open", path, |state| Ok(state.file(path)?.volatile.clone()))?;
        Ok(Box::new(io::Cursor::new(content)))
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>> {
        self.run(Op::Read, "read", path, |state| Ok(state.file(path)?.volatile.clone()))
    }

    fn map(&self, path: &Path) -> Result<Bytes> {
        self.run(Op::Read, "map", path, |state| Ok(Bytes::from(state.file(path)?.volatile.clone())))
    }

    fn len(&self, path: &Path) -> Result<u64> {
        self.run(Op::Read, "look at", path, |state| Ok(state.file(path)?.volatile.len() as u64))
    }

    fn list(&self, dir: &Path) -> Result<Vec<PathBuf>> {
        self.run(Op::Read, "list", dir, |state| {
            let id = state.find(dir)?;
            Ok(state.dir(id)?.volatile.keys().map(|name| dir.join(name)).collect())
        })
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        self.run(Op::Read, "look at", path, |state| match state.find(path) {
            Ok(_) => Ok(true),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        })
    }

    fn available_space(&self, path: &Path) -> Result<u64> {
        self.run(Op::Read, "measure the free space of", path, |state| Ok(state.free()))
    }
}

struct FaultySink {
    storage: FaultyStorage,
    id: u64,
}

impl Write for FaultySink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.storage.state().write(self.id, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink for FaultySink {
    fn sync(&mut self) -> io::Result<()> {
        self.storage.state().sync_file(self.id)
    }
}
