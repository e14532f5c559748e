//! Writing a corpus, one document at a time, in bounded memory.

use std::collections::HashMap;
use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::{
    DOCUMENTS, FORMAT, Manifest, NAMES, NO_TARGET_MARK, Record, Shard, Split, TokenType, Totals, shard_name,
};
use crate::checkpoint::{remove_if_there, write_synced};
use crate::seal::seal;
use crate::storage::{fresh, make_dir, parent};
use crate::sums::{MANIFEST, Summing};
use crate::{Error, FileSum, Result, Sink, Storage};

/// A new shard begins after this many bytes.
const SHARD: u64 = 256 << 20;
const HINT: &str = "this is a bug in the caller";

type Out = Summing<Box<dyn Sink>>;

/// Writes a corpus into `DIR.tmp-<pid>-<n>`; [`CorpusWriter::finish`] renames it to `DIR`. Dropped
/// unfinished, it removes what it wrote.
pub struct CorpusWriter<'s> {
    storage: &'s dyn Storage,
    dir: PathBuf,
    temp: PathBuf,
    shard_bytes: u64,
    /// The manifest so far; `documents` and `names` are placeholders until the end.
    manifest: Manifest,
    domains: HashMap<String, u32>,
    open: [Option<Out>; 2],
    documents: Option<Out>,
    names: Option<Out>,
    done: bool,
}

impl fmt::Debug for CorpusWriter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CorpusWriter").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl<'s> CorpusWriter<'s> {
    /// Starts a corpus that will be at `dir`, which must not exist.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::Io`], or [`Error::Invalid`] when `eos` is not below `vocab`.
    pub fn create(
        storage: &'s dyn Storage,
        dir: &Path,
        vocab: u32,
        eos: u32,
        tokenizer_hash: &str,
        source_hash: &str,
    ) -> Result<Self> {
        if eos >= vocab {
            return Err(Error::invalid("eos token", dir, format!("less than {vocab}"), eos, HINT));
        }
        absent(storage, dir)?;
        make_dir(storage, parent(dir))?;
        let temp = fresh(storage, dir, "tmp")?;
        storage.create_dir_all(&temp)?;
        let nothing = |name: &str| FileSum {
            name: name.to_owned(),
            bytes: 0,
            blake3: String::new(),
            crc32c: String::new(),
        };
        let manifest = Manifest {
            format: FORMAT,
            vocab,
            eos,
            dtype: TokenType::of(vocab),
            tokenizer_hash: tokenizer_hash.to_owned(),
            source_hash: source_hash.to_owned(),
            domains: Vec::new(),
            shards: Vec::new(),
            documents: nothing(DOCUMENTS),
            names: nothing(NAMES),
            train: Totals::default(),
            validation: Totals::default(),
        };
        let mut writer = CorpusWriter {
            storage,
            dir: dir.to_path_buf(),
            temp,
            shard_bytes: SHARD,
            manifest,
            domains: HashMap::new(),
            open: [None, None],
            documents: None,
            names: None,
            done: false,
        };
        writer.documents = Some(writer.create_file(DOCUMENTS)?);
        writer.names = Some(writer.create_file(NAMES)?);
        Ok(writer)
    }

    /// Begins a new shard after this many bytes instead of 256 MiB, rounded down to whole tokens, at
    /// least one. Call it before the first document.
    #[must_use]
    pub fn with_shard_bytes(mut self, bytes: u64) -> Self {
        let width = self.manifest.dtype.width() as u64;
        self.shard_bytes = (bytes / width).max(1) * width;
        self
    }

    /// Takes tokens that are no targets, with [`NO_TARGET_MARK`]. Call it before the first document.
    #[must_use]
    pub fn with_marks(mut self) -> Self {
        self.manifest.dtype = TokenType::Marked;
        let bytes = self.shard_bytes;
        self.with_shard_bytes(bytes)
    }

    fn create_file(&self, name: &str) -> Result<Out> {
        Ok(Summing::new(self.storage.create_new(&self.temp.join(name))?))
    }

    /// Adds a document of `bytes` source bytes, and the eos token behind it, which is a target where the token before
    /// it is one. Names need not be unique.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a token outside the vocabulary or a name of more than 65,535 bytes (the
    /// writer is unchanged); [`Error::Io`], after which the writer can only be dropped.
    pub fn document(
        &mut self,
        split: Split,
        domain: &str,
        name: &str,
        bytes: u64,
        tokens: &[u32],
    ) -> Result<()> {
        let vocab = self.manifest.vocab;
        let mark = if self.manifest.dtype == TokenType::Marked { NO_TARGET_MARK } else { 0 };
        if let Some(token) = tokens.iter().find(|&&token| token & !mark >= vocab) {
            return Err(Error::invalid("token", &self.dir, format!("less than {vocab}"), token, HINT));
        }
        let name_len = u16::try_from(name.len()).map_err(|_| {
            let hint = "shorten the name of the document";
            Error::invalid("document name", &self.dir, "at most 65535 bytes", name.len(), hint)
        })?;
        let domain = self.domain(domain);
        let name_at = put(&mut self.names, &self.temp.join(NAMES), name.as_bytes())?;
        let count = tokens.len() as u64 + 1;
        let start = self.manifest.totals(split).tokens;
        let record = Record { split, name_len, domain, start, tokens: count, bytes, name_at };
        put(&mut self.documents, &self.temp.join(DOCUMENTS), &record.encode())?;
        self.tokens(split, tokens)?;
        let last = tokens.last().map_or(0, |token| token & mark);
        self.tokens(split, &[self.manifest.eos | last])?;
        let totals = match split {
            Split::Train => &mut self.manifest.train,
            Split::Validation => &mut self.manifest.validation,
        };
        totals.tokens += count;
        totals.bytes += bytes;
        totals.documents += 1;
        Ok(())
    }

    fn domain(&mut self, name: &str) -> u32 {
        if let Some(&index) = self.domains.get(name) {
            return index;
        }
        let index = self.domains.len() as u32;
        self.domains.insert(name.to_owned(), index);
        self.manifest.domains.push(name.to_owned());
        index
    }

    /// Appends tokens to the shards of a split, through a buffer of 4,096.
    fn tokens(&mut self, split: Split, mut tokens: &[u32]) -> Result<()> {
        let width = self.manifest.dtype.width();
        let mut buffer = Vec::with_capacity(tokens.len().min(4096) * width);
        while !tokens.is_empty() {
            let written = self.open_shard(split)?.bytes();
            let room = (self.shard_bytes - written) / width as u64;
            let take = room.min(4096).min(tokens.len() as u64) as usize;
            let (now, later) = tokens.split_at(take);
            tokens = later;
            buffer.clear();
            match self.manifest.dtype {
                TokenType::U16 => {
                    now.iter().for_each(|&t| buffer.extend_from_slice(&(t as u16).to_le_bytes()))
                }
                TokenType::U32 | TokenType::Marked => buffer.extend_from_slice(bytemuck::cast_slice(now)),
            }
            let path = self.temp.join(shard_name(split, self.finished(split)));
            self.open_shard(split)?.write_all(&buffer).map_err(|e| Error::io("write", &path, e))?;
            if self.open_shard(split)?.bytes() >= self.shard_bytes {
                self.close_shard(split)?;
            }
        }
        Ok(())
    }

    fn finished(&self, split: Split) -> usize {
        self.manifest.shards.iter().filter(|shard| shard.split == split).count()
    }

    fn slot(&mut self, split: Split) -> &mut Option<Out> {
        let [train, validation] = &mut self.open;
        match split {
            Split::Train => train,
            Split::Validation => validation,
        }
    }

    fn open_shard(&mut self, split: Split) -> Result<&mut Out> {
        if self.slot(split).is_none() {
            let out = self.create_file(&shard_name(split, self.finished(split)))?;
            return Ok(self.slot(split).insert(out));
        }
        self.slot(split).as_mut().ok_or_else(|| finished(Path::new(split.name())))
    }

    fn close_shard(&mut self, split: Split) -> Result<()> {
        let name = shard_name(split, self.finished(split));
        if let Some(out) = self.slot(split).take() {
            let file = self.close(out, &name)?;
            let tokens = file.bytes / self.manifest.dtype.width() as u64;
            self.manifest.shards.push(Shard { split, tokens, file });
        }
        Ok(())
    }

    fn close(&self, out: Out, name: &str) -> Result<FileSum> {
        let path = self.temp.join(name);
        let (mut sink, sum) = out.finish(name).map_err(|e| Error::io("write", &path, e))?;
        sink.sync().map_err(|e| Error::io("sync", &path, e))?;
        Ok(sum)
    }

    /// Writes what is left, the manifest last, syncs everything and renames the directory into place.
    ///
    /// # Errors
    /// [`Error::Exists`] when something took the place meanwhile; [`Error::Io`]. The corpus then does
    /// not exist; if only the very last sync failed it does, whole, but may be lost with the power.
    pub fn finish(mut self) -> Result<Manifest> {
        for split in Split::ALL {
            self.close_shard(split)?;
        }
        // Shards in the order of splits, whichever filled first.
        self.manifest.shards.sort_by(|a, b| (a.split, &a.file.name).cmp(&(b.split, &b.file.name)));
        if let (Some(documents), Some(names)) = (self.documents.take(), self.names.take()) {
            self.manifest.documents = self.close(documents, DOCUMENTS)?;
            self.manifest.names = self.close(names, NAMES)?;
        }
        let path = self.temp.join(MANIFEST);
        let (text, _) = seal(&self.manifest, &path)?;
        write_synced(self.storage, &path, &text)?;
        self.storage.sync_dir(&self.temp)?;
        absent(self.storage, &self.dir)?;
        self.storage.rename(&self.temp, &self.dir)?;
        self.done = true;
        self.storage.sync_dir(parent(&self.dir))?;
        Ok(self.manifest.clone())
    }
}

impl Drop for CorpusWriter<'_> {
    fn drop(&mut self) {
        if !self.done
            && let Err(error) = remove_if_there(self.storage, &self.temp)
        {
            tracing::debug!(%error, "temporary directory left behind");
        }
    }
}

/// Appends to a file and returns where.
fn put(out: &mut Option<Out>, path: &Path, bytes: &[u8]) -> Result<u64> {
    let out = out.as_mut().ok_or_else(|| finished(path))?;
    let at = out.bytes();
    out.write_all(bytes).map_err(|e| Error::io("write", path, e))?;
    Ok(at)
}

fn finished(path: &Path) -> Error {
    Error::invalid("document", path, "a corpus being written", "a finished one", HINT)
}

fn absent(storage: &dyn Storage, dir: &Path) -> Result<()> {
    if !storage.exists(dir)? {
        return Ok(());
    }
    let (what, path) = ("corpus", dir.to_path_buf());
    Err(Error::Exists { what, path, expected: "nothing there", hint: "remove it to tokenize again" })
}
