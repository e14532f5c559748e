//! Token shards: a corpus as flat files of token ids, with an index of its documents.
//!
//! Files of a corpus directory, all little endian:
//! - `train-00000.tok`, `validation-00000.tok`, …: token ids, u16 when the vocabulary has at most
//!   65,536 entries, else u32, and where some tokens are no targets always u32, with the highest bit for those;
//!   documents follow each other, each ended by the eos token, and run on from shard to shard;
//! - `documents.bin`: one 40-byte record per document, in the order written;
//! - `names.bin`: the names of the documents, one behind the other;
//! - `manifest.json`: sizes and checksums of the above, sealed with its own hash, which is the
//!   [content hash](TokenCorpus::content_hash) of the corpus.

mod writer;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::seal::unseal;
use crate::sums::MANIFEST;
use crate::{Bytes, Error, FileSum, Result, Storage};

pub use writer::CorpusWriter;

/// The newest format this version reads, and the one it writes.
pub const FORMAT: u32 = 1;
const DOCUMENTS: &str = "documents.bin";
const NAMES: &str = "names.bin";
const RECORD: usize = 40;

/// Which half of a corpus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// What the model learns from.
    Train,
    /// What it never sees, to measure it.
    Validation,
}

impl Split {
    /// Both, in order.
    pub const ALL: [Split; 2] = [Split::Train, Split::Validation];

    /// `train` or `validation`, as in file names.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Validation => "validation",
        }
    }
}

/// How a token is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TokenType {
    /// Two bytes.
    U16,
    /// Four bytes.
    U32,
    /// Four bytes, of which the highest bit may be [`NO_TARGET_MARK`].
    Marked,
}

/// Set in a token that a model is given and does not learn to predict.
pub const NO_TARGET_MARK: u32 = 1 << 31;

impl TokenType {
    fn of(vocab: u32) -> Self {
        if vocab <= 1 << 16 { TokenType::U16 } else { TokenType::U32 }
    }

    /// Bytes per token.
    pub fn width(self) -> usize {
        match self {
            TokenType::U16 => 2,
            TokenType::U32 | TokenType::Marked => 4,
        }
    }
}

/// Sums over one split.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Totals {
    /// Tokens, with the eos of every document.
    pub tokens: u64,
    /// Bytes of source text.
    pub bytes: u64,
    /// Documents.
    pub documents: u64,
}

/// One file of tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shard {
    /// Which split it belongs to.
    pub split: Split,
    /// How many tokens it holds.
    pub tokens: u64,
    /// Its name, length and checksums.
    pub file: FileSum,
}

/// `manifest.json` of a corpus.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this format.
    pub format: u32,
    /// Tokens are smaller than this.
    pub vocab: u32,
    /// The token behind each document.
    pub eos: u32,
    /// How tokens are stored.
    pub dtype: TokenType,
    /// Hash of the tokenizer that made the tokens.
    pub tokenizer_hash: String,
    /// Hash of the text they were made from.
    pub source_hash: String,
    /// Names of the domains; documents refer to them by index.
    pub domains: Vec<String>,
    /// Token files, those of each split in order.
    pub shards: Vec<Shard>,
    /// `documents.bin`.
    pub documents: FileSum,
    /// `names.bin`.
    pub names: FileSum,
    /// Sums over the training split.
    pub train: Totals,
    /// Sums over the validation split.
    pub validation: Totals,
}

impl Manifest {
    /// Sums over a split.
    pub fn totals(&self, split: Split) -> Totals {
        match split {
            Split::Train => self.train,
            Split::Validation => self.validation,
        }
    }

    fn files(&self) -> impl Iterator<Item = &FileSum> {
        self.shards.iter().map(|shard| &shard.file).chain([&self.documents, &self.names])
    }
}

/// One document of a corpus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Document {
    /// Index into [`Manifest::domains`].
    pub domain: usize,
    /// What it was called when written.
    pub name: String,
    /// Its first token, counted from the start of the split.
    pub start: u64,
    /// Its tokens, with the eos at the end.
    pub tokens: u64,
    /// Bytes of source text.
    pub bytes: u64,
}

/// A record of `documents.bin`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Record {
    split: Split,
    name_len: u16,
    domain: u32,
    start: u64,
    tokens: u64,
    bytes: u64,
    name_at: u64,
}

impl Record {
    fn encode(&self) -> [u8; RECORD] {
        let mut out = [0; RECORD];
        let fields = [
            u64::from(self.split as u16) | u64::from(self.name_len) << 16 | u64::from(self.domain) << 32,
            self.start,
            self.tokens,
            self.bytes,
            self.name_at,
        ];
        for (to, field) in out.chunks_exact_mut(8).zip(fields) {
            to.copy_from_slice(&field.to_le_bytes());
        }
        out
    }

    /// `None` when the split is neither.
    fn decode(bytes: &[u8; RECORD]) -> Option<Record> {
        let mut words = bytes.chunks_exact(8).map(bytemuck::pod_read_unaligned::<u64>);
        let [head, start, tokens, bytes, name_at] = std::array::from_fn(|_| words.next().unwrap_or_default());
        let split = *Split::ALL.get((head & 0xffff) as usize)?;
        let (name_len, domain) = ((head >> 16) as u16, (head >> 32) as u32);
        Some(Record { split, name_len, domain, start, tokens, bytes, name_at })
    }
}

#[derive(Debug, Clone)]
struct OpenShard {
    /// Tokens of the split before this shard.
    before: u64,
    tokens: u64,
    path: PathBuf,
    bytes: Bytes,
}

/// A corpus opened for reading. Cheap to clone; threads may share it.
#[derive(Debug, Clone)]
pub struct TokenCorpus {
    dir: PathBuf,
    manifest: Manifest,
    hash: String,
    shards: [Vec<OpenShard>; 2],
    documents: Bytes,
    names: Bytes,
}

impl TokenCorpus {
    /// Opens a corpus: checks the manifest against its hash and every file against its length.
    /// [`TokenCorpus::verify`] checks the content.
    ///
    /// # Errors
    /// [`Error::Broken`], [`Error::Newer`] or [`Error::Io`].
    pub fn open(storage: &dyn Storage, dir: &Path) -> Result<Self> {
        let path = dir.join(MANIFEST);
        let (manifest, hash): (Manifest, _) = unseal(storage, &path, FORMAT)?;
        check_manifest(&manifest, &path)?;
        for file in manifest.files() {
            file.check_len(storage, dir)?;
        }
        let mut shards = [Vec::new(), Vec::new()];
        for (split, open) in Split::ALL.into_iter().zip(&mut shards) {
            let mut before = 0u64;
            for shard in manifest.shards.iter().filter(|shard| shard.split == split) {
                let path = dir.join(&shard.file.name);
                let bytes = storage.map(&path)?;
                bytes.advise_random();
                open.push(OpenShard { before, tokens: shard.tokens, path, bytes });
                before += shard.tokens;
            }
        }
        let documents = storage.map(&dir.join(DOCUMENTS))?;
        let names = storage.map(&dir.join(NAMES))?;
        Ok(TokenCorpus { dir: dir.to_path_buf(), manifest, hash, shards, documents, names })
    }

    /// Reads every file and compares every checksum.
    ///
    /// # Errors
    /// [`Error::Broken`] names the file and the block.
    pub fn verify(&self, storage: &dyn Storage) -> Result<()> {
        self.manifest.files().try_for_each(|file| file.verify(storage, &self.dir))
    }

    /// What the corpus holds.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The BLAKE3 of the manifest, which holds the BLAKE3 of every file.
    pub fn content_hash(&self) -> &str {
        &self.hash
    }

    /// Tokens of a split.
    pub fn len(&self, split: Split) -> u64 {
        self.manifest.totals(split).tokens
    }

    /// Whether a split has no token.
    pub fn is_empty(&self, split: Split) -> bool {
        self.len(split) == 0
    }

    fn shards(&self, split: Split) -> &[OpenShard] {
        let [train, validation] = &self.shards;
        match split {
            Split::Train => train,
            Split::Validation => validation,
        }
    }

    /// Whether some tokens may be no targets.
    pub fn is_marked(&self) -> bool {
        self.manifest.dtype == TokenType::Marked
    }

    /// Reads `out.len()` tokens of a split, from token `start` on, without marks.
    ///
    /// # Errors
    /// As [`TokenCorpus::read_marked`].
    pub fn read(&self, split: Split, start: u64, out: &mut [u32]) -> Result<()> {
        self.read_marked(split, start, out)?;
        if self.is_marked() {
            out.iter_mut().for_each(|token| *token &= !NO_TARGET_MARK);
        }
        Ok(())
    }

    /// Reads `out.len()` tokens of a split, from token `start` on; those that are no targets have [`NO_TARGET_MARK`].
    ///
    /// # Errors
    /// [`Error::Invalid`] past the end of the split; [`Error::Broken`] for a token outside the
    /// vocabulary.
    pub fn read_marked(&self, split: Split, start: u64, out: &mut [u32]) -> Result<()> {
        let end = start.checked_add(out.len() as u64).filter(|&end| end <= self.len(split));
        if end.is_none() {
            let expected = format!("within {} tokens of {}", self.len(split), split.name());
            let found = format!("{} tokens from {start}", out.len());
            return Err(Error::invalid(
                "token range",
                &self.dir,
                expected,
                found,
                "this is a bug in the caller",
            ));
        }
        let shards = self.shards(split);
        let first = shards.partition_point(|shard| shard.before + shard.tokens <= start);
        let (mut at, mut rest) = (start, out);
        for shard in shards.iter().skip(first) {
            if rest.is_empty() {
                return Ok(());
            }
            let take = (shard.before + shard.tokens - at).min(rest.len() as u64) as usize;
            let (now, later) = rest.split_at_mut(take);
            self.read_shard(shard, at - shard.before, now)?;
            at += take as u64;
            rest = later;
        }
        if rest.is_empty() { Ok(()) } else { Err(self.broken(DOCUMENTS, "tokens", "more shards", at)) }
    }

    fn read_shard(&self, shard: &OpenShard, at: u64, out: &mut [u32]) -> Result<()> {
        let width = self.manifest.dtype.width();
        let start = at as usize * width;
        let Some(bytes) = shard.bytes.get(start..start + out.len() * width) else {
            return Err(Error::broken("length", &shard.path, start + out.len() * width, shard.bytes.len()));
        };
        match self.manifest.dtype {
            TokenType::U16 => {
                for (to, from) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                    *to = u32::from(bytemuck::pod_read_unaligned::<u16>(from));
                }
            }
            TokenType::U32 | TokenType::Marked => {
                for (to, from) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                    *to = bytemuck::pod_read_unaligned(from);
                }
            }
        }
        // A window is read once in a long time, and with it the system maps what lies around it.
        let from = start.saturating_sub(AROUND);
        shard.bytes.release(from, (start - from + bytes.len() + AROUND).min(shard.bytes.len() - from));
        let mark = if self.is_marked() { NO_TARGET_MARK } else { 0 };
        match out.iter().position(|&token| token & !mark >= self.manifest.vocab) {
            None => Ok(()),
            Some(index) => {
                let what = format!("token {}", at + index as u64);
                let found = out.get(index).copied().unwrap_or_default();
                Err(Error::broken(what, &shard.path, format!("less than {}", self.manifest.vocab), found))
            }
        }
    }

    /// The documents of a split, in order. Each record is checked against the one before it, the
    /// domains and the names; after the first error the iterator ends.
    pub fn documents(&self, split: Split) -> impl Iterator<Item = Result<Document>> {
        let (records, _) = self.documents.as_chunks::<RECORD>();
        let (mut next, mut failed) = (0u64, false);
        let mut records = records.iter();
        std::iter::from_fn(move || {
            if failed {
                return None;
            }
            for bytes in records.by_ref() {
                let result = match Record::decode(bytes) {
                    Some(record) if record.split != split => continue,
                    Some(record) => self.document(&record, next),
                    None => Err(self.broken(DOCUMENTS, "split", "0 or 1", "another number")),
                };
                match &result {
                    Ok(document) => next += document.tokens,
                    Err(_) => failed = true,
                }
                return Some(result);
            }
            if next == self.len(split) {
                return None;
            }
            failed = true;
            Some(Err(self.broken(DOCUMENTS, "sum of tokens", self.len(split), next)))
        })
    }

    fn document(&self, record: &Record, next: u64) -> Result<Document> {
        let fail = |what, expected: String, found: u64| Err(self.broken(DOCUMENTS, what, expected, found));
        let left = self.len(record.split) - next;
        if record.start != next {
            return fail("first token", next.to_string(), record.start);
        }
        if record.tokens == 0 || record.tokens > left {
            return fail("number of tokens", format!("1 to {left}"), record.tokens);
        }
        let domains = self.manifest.domains.len();
        if record.domain as usize >= domains {
            return fail("domain", format!("less than {domains}"), u64::from(record.domain));
        }
        let range = usize::try_from(record.name_at)
            .ok()
            .and_then(|at| self.names.get(at..at.checked_add(usize::from(record.name_len))?))
            .and_then(|name| std::str::from_utf8(name).ok());
        let Some(name) = range else {
            return fail("name", format!("UTF-8 within {} bytes", self.names.len()), record.name_at);
        };
        let (domain, name) = (record.domain as usize, name.to_owned());
        Ok(Document { domain, name, start: record.start, tokens: record.tokens, bytes: record.bytes })
    }

    fn broken(&self, file: &str, what: &str, expected: impl ToString, found: impl ToString) -> Error {
        Error::broken(what, &self.dir.join(file), expected, found)
    }
}

/// Whether the numbers of a manifest fit together.
fn check_manifest(manifest: &Manifest, path: &Path) -> Result<()> {
    let fail = |what: &str, expected: String, found: String| Err(Error::broken(what, path, expected, found));
    if manifest.eos >= manifest.vocab {
        return fail("eos", format!("less than {}", manifest.vocab), manifest.eos.to_string());
    }
    if manifest.dtype == TokenType::Marked && manifest.vocab > NO_TARGET_MARK {
        return fail("vocab", format!("at most {NO_TARGET_MARK}"), manifest.vocab.to_string());
    }
    if manifest.dtype != TokenType::Marked && manifest.dtype != TokenType::of(manifest.vocab) {
        return fail(
            "dtype",
            format!("{:?}", TokenType::of(manifest.vocab)),
            format!("{:?}", manifest.dtype),
        );
    }
    for file in manifest.files() {
        file.check(path)?;
    }
    for (file, name) in [(&manifest.documents, DOCUMENTS), (&manifest.names, NAMES)] {
        if file.name != name {
            return fail("file name", name.to_owned(), file.name.clone());
        }
    }
    for split in Split::ALL {
        let mut tokens = 0u64;
        for (index, shard) in manifest.shards.iter().filter(|shard| shard.split == split).enumerate() {
            if shard.file.name != shard_name(split, index) {
                return fail("shard", shard_name(split, index), shard.file.name.clone());
            }
            let bytes = shard.tokens.checked_mul(manifest.dtype.width() as u64);
            if bytes != Some(shard.file.bytes) || shard.tokens == 0 {
                let expected = format!("{} tokens", shard.file.bytes / manifest.dtype.width() as u64);
                return fail(&shard.file.name, expected, shard.tokens.to_string());
            }
            tokens = tokens.saturating_add(shard.tokens);
        }
        if tokens != manifest.totals(split).tokens {
            return fail("sum of tokens", manifest.totals(split).tokens.to_string(), tokens.to_string());
        }
    }
    let documents = manifest.train.documents.checked_add(manifest.validation.documents);
    if documents.and_then(|n| n.checked_mul(RECORD as u64)) != Some(manifest.documents.bytes) {
        let expected = format!("{} documents", manifest.documents.bytes / RECORD as u64);
        return fail("sum of documents", expected, format!("{documents:?}"));
    }
    Ok(())
}

/// Bytes on each side of a read that Linux may map as well where they are in its cache: a huge page.
const AROUND: usize = 1 << 21;

fn shard_name(split: Split, index: usize) -> String {
    format!("{}-{index:05}.tok", split.name())
}
