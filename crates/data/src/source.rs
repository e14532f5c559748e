//! Text as a stream of documents, whatever it is stored in.
//!
//! Files are read in an order that depends on names only, one at a time and piece by piece; the largest
//! thing in memory is one document. Text is never repaired: what is not UTF-8 is an error.

mod find;
mod jsonl;
mod kinds;
mod text;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use find::{FoundFile, find};
use jsonl::JsonlReader;
use kinds::{Kind, Packing};
use text::TextReader;

pub use find::Skipped;

use crate::chat::Message;
use crate::{Error, Result};

const EMBEDDED: &str = "the text inside the program";

/// One text, with the domain it is counted under.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Document {
    /// The stem of a .jsonl file (or the line's field `domain`); for other files the first folder below
    /// the given path, else the last component of that path.
    pub domain: String,
    /// Title, file name or position. Need not be unique.
    pub name: String,
    /// The text as it is, not empty; of a conversation, what was said, with blank lines between.
    pub text: String,
    /// The turns of a conversation, in order; none for a text.
    pub messages: Vec<Message>,
}

/// Where text comes from.
#[derive(Clone, Debug)]
pub enum Source {
    /// Files and folders.
    Paths(Vec<PathBuf>),
    /// A .jsonl.zst file that is part of the program.
    Embedded(&'static [u8]),
    /// Documents in memory.
    Memory {
        /// What to call them in messages.
        name: String,
        /// The documents; empty ones are left out.
        documents: Vec<Document>,
    },
}

impl Source {
    /// The source a configuration names: its paths, or the given text when it has none.
    pub fn new(config: &crate::DataConfig, embedded: &'static [u8]) -> Self {
        if config.paths.is_empty() {
            return Source::Embedded(embedded);
        }
        Source::Paths(config.paths.iter().map(PathBuf::from).collect())
    }

    /// Opens the stream of documents from its start.
    ///
    /// # Errors
    /// [`Error::Missing`], [`Error::Kind`] for a named file of unknown kind, [`Error::Read`].
    pub fn open(&self) -> Result<Documents> {
        let (queue, skipped) = match self {
            Source::Paths(paths) => {
                let (files, skipped) = find(paths)?;
                (Queue::Files(files.into_iter()), skipped)
            }
            Source::Embedded(bytes) => (Queue::Embedded(Some(bytes)), Skipped::default()),
            Source::Memory { documents, .. } => {
                (Queue::Memory(documents.clone().into_iter()), Skipped::default())
            }
        };
        let total = match &queue {
            Queue::Files(files) => files.as_slice().iter().map(|file| file.bytes).sum(),
            Queue::Embedded(bytes) => bytes.map_or(0, |bytes| bytes.len() as u64),
            Queue::Memory(documents) => documents.as_slice().iter().map(|d| d.text.len() as u64).sum(),
        };
        Ok(Documents {
            queue,
            current: None,
            read: Arc::default(),
            total,
            skipped,
            damaged: Vec::new(),
            failed: false,
        })
    }

    /// A hash that changes when the text is likely to have changed, without reading it: of every file's
    /// path, size and time of last change. Equal stamps mean equal text unless somebody set the clock;
    /// different stamps mean that the text must be read to know.
    ///
    /// # Errors
    /// Those of [`Source::open`].
    pub fn stamp(&self) -> Result<String> {
        let mut hash = blake3::Hasher::new();
        match self {
            Source::Paths(paths) => {
                for file in find(paths)?.0 {
                    let path = file.path.canonicalize().map_err(|e| Error::read(&file.path, e))?;
                    hash_parts(&mut hash, &[path.as_os_str().as_encoded_bytes(), file.name.as_bytes()]);
                    hash_parts(&mut hash, &[file.domain.as_bytes(), &file.bytes.to_le_bytes()]);
                    hash.update(&file.modified.to_le_bytes());
                }
            }
            Source::Embedded(bytes) => {
                hash.update(bytes);
            }
            Source::Memory { documents, .. } => {
                documents.iter().for_each(|document| document.hash(&mut hash))
            }
        }
        Ok(hash.finalize().to_hex().to_string())
    }

    /// In words, for messages.
    pub fn describe(&self) -> String {
        match self {
            Source::Paths(paths) => {
                paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
            }
            Source::Embedded(_) => EMBEDDED.to_owned(),
            Source::Memory { name, .. } => name.clone(),
        }
    }
}

/// The documents of files and folders, as a stream.
///
/// # Errors
/// At once: those of [`Source::open`]. In the stream: [`Error::Read`], [`Error::Utf8`], [`Error::Line`];
/// it ends after the first.
pub fn documents(paths: &[PathBuf]) -> Result<impl Iterator<Item = Result<Document>>> {
    Source::Paths(paths.to_vec()).open()
}

impl Document {
    /// Feeds everything that makes this document to a hash.
    pub(crate) fn hash(&self, hash: &mut blake3::Hasher) {
        hash_parts(hash, &[self.domain.as_bytes(), self.name.as_bytes(), self.text.as_bytes()]);
        for Message { role, content } in &self.messages {
            hash_parts(hash, &[role.as_bytes(), content.as_bytes()]);
        }
    }

    /// A number that stays with the document wherever it stands: of its domain, its name and the first
    /// 4096 bytes of its text.
    pub(crate) fn number(&self) -> u64 {
        let text = self.text.as_bytes();
        let mut hash = blake3::Hasher::new();
        let start = text.get(..4096).unwrap_or(text);
        hash_parts(&mut hash, &[self.domain.as_bytes(), self.name.as_bytes(), start]);
        let hash = hash.finalize();
        hash.as_bytes().first_chunk().map_or(0, |word| u64::from_le_bytes(*word))
    }
}

/// Feeds parts to a hash so that no two lists of parts feed the same bytes.
fn hash_parts(hash: &mut blake3::Hasher, parts: &[&[u8]]) {
    for part in parts {
        hash.update(&(part.len() as u64).to_le_bytes());
        hash.update(part);
    }
}

enum Queue {
    Files(std::vec::IntoIter<FoundFile>),
    Embedded(Option<&'static [u8]>),
    Memory(std::vec::IntoIter<Document>),
}

type Input = Box<dyn BufRead + Send>;

enum Reader {
    Text(TextReader<Input>),
    Jsonl(JsonlReader<Input>),
}

/// A stream of documents. It ends after the first error.
pub struct Documents {
    queue: Queue,
    current: Option<Reader>,
    read: Arc<AtomicU64>,
    total: u64,
    skipped: Skipped,
    damaged: Vec<String>,
    failed: bool,
}

impl std::fmt::Debug for Documents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Documents")
            .field("read", &self.read)
            .field("total", &self.total)
            .finish_non_exhaustive()
    }
}

impl Documents {
    /// Bytes read so far, as they lie on disk.
    pub fn bytes_read(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// Bytes there are to read, as they lie on disk.
    pub fn bytes_total(&self) -> u64 {
        self.total
    }

    /// What was found and is not read.
    pub fn skipped(&self) -> Skipped {
        self.skipped
    }

    /// What was left out of the files read so far because it is damaged, a sentence per file.
    pub fn damaged(&self) -> &[String] {
        &self.damaged
    }

    fn next_document(&mut self) -> Result<Option<Document>> {
        loop {
            let document = match &mut self.current {
                Some(Reader::Text(reader)) => reader.next()?,
                Some(Reader::Jsonl(reader)) => reader.next()?,
                None => None,
            };
            if document.is_some() {
                return Ok(document);
            }
            if let Some(Reader::Jsonl(reader)) = self.current.take() {
                self.damaged.extend(reader.damage());
            }
            match &mut self.queue {
                Queue::Memory(documents) => {
                    let next = documents.find(|document| !document.text.is_empty());
                    let bytes = next.as_ref().map_or(0, |document| document.text.len());
                    self.read.fetch_add(bytes as u64, Ordering::Relaxed);
                    return Ok(next);
                }
                Queue::Files(files) => {
                    let Some(file) = files.next() else { return Ok(None) };
                    self.current = Some(open_file(file, &self.read)?);
                }
                Queue::Embedded(bytes) => {
                    let Some(bytes) = bytes.take() else { return Ok(None) };
                    let counted = Counted { input: bytes, read: Arc::clone(&self.read) };
                    let path = PathBuf::from(EMBEDDED);
                    let input = unpack(counted, Packing::Zstd, &path)?;
                    let reader = JsonlReader::new(input, path, "embedded".into(), "embedded".into());
                    self.current = Some(Reader::Jsonl(reader));
                }
            }
        }
    }
}

impl Iterator for Documents {
    type Item = Result<Document>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let next = self.next_document().transpose();
        self.failed = matches!(next, Some(Err(_)));
        next
    }
}

fn open_file(file: FoundFile, read: &Arc<AtomicU64>) -> Result<Reader> {
    let FoundFile { path, kind, packing, domain, name, .. } = file;
    let input = File::open(&path).map_err(|e| Error::read(&path, e))?;
    let input = unpack(Counted { input, read: Arc::clone(read) }, packing, &path)?;
    Ok(match kind {
        Kind::Text => Reader::Text(TextReader::new(input, path, domain, name)),
        Kind::Jsonl => Reader::Jsonl(JsonlReader::new(input, path, domain, name)),
    })
}

fn unpack(input: impl Read + Send + 'static, packing: Packing, path: &Path) -> Result<Input> {
    const BUFFER: usize = 128 << 10;
    Ok(match packing {
        Packing::Plain => Box::new(BufReader::with_capacity(BUFFER, input)),
        Packing::Gzip => {
            let input = flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(BUFFER, input));
            Box::new(BufReader::with_capacity(BUFFER, input))
        }
        Packing::Zstd => {
            let input = zstd::stream::read::Decoder::new(input).map_err(|e| Error::read(path, e))?;
            Box::new(BufReader::with_capacity(BUFFER, input))
        }
    })
}

/// Counts what is read through it.
struct Counted<R> {
    input: R,
    read: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(out)?;
        self.read.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}
