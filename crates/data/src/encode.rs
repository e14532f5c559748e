//! The second pass over the text: documents to tokens, in parallel, in order.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use tritrain_files::tokens::{CorpusWriter, Split};

use crate::scan::{CHUNK, Rule};
use crate::source::{Document, Documents};
use crate::tokenizer::Table;
use crate::{Result, Tokenizer};

/// The longest name that is written, in bytes.
const NAME: usize = 1024;

/// The pass, a chunk at a time. While one chunk is encoded the next is read: two are in memory.
pub(crate) struct Encode<'s> {
    tokenizer: Tokenizer,
    reader: Reader,
    next: Vec<Document>,
    /// Tables that no thread is using.
    tables: Mutex<Vec<Table>>,
    writer: CorpusWriter<'s>,
    rules: BTreeMap<String, Rule>,
    done: u64,
}

/// Documents a chunk at a time, and the hash of what was read.
pub(crate) struct Reader {
    documents: Documents,
    hash: blake3::Hasher,
}

impl Reader {
    pub(crate) fn new(documents: Documents) -> Self {
        Reader { documents, hash: blake3::Hasher::new() }
    }

    pub(crate) fn documents(&self) -> &Documents {
        &self.documents
    }

    /// Hash of all documents read so far, in their order.
    pub(crate) fn content(&self) -> String {
        self.hash.finalize().to_hex().to_string()
    }

    /// About [`CHUNK`] bytes of documents; nothing at the end.
    pub(crate) fn chunk(&mut self) -> Result<Vec<Document>> {
        let (mut chunk, mut left) = (Vec::new(), CHUNK);
        while left > 0 {
            let Some(document) = self.documents.next().transpose()? else { break };
            document.hash(&mut self.hash);
            left = left.saturating_sub(document.text.len());
            chunk.push(document);
        }
        Ok(chunk)
    }
}

impl<'s> Encode<'s> {
    pub(crate) fn new(
        tokenizer: Tokenizer,
        documents: Documents,
        writer: CorpusWriter<'s>,
        rules: BTreeMap<String, Rule>,
    ) -> Result<Self> {
        let mut reader = Reader::new(documents);
        let next = reader.chunk()?;
        Ok(Encode { tokenizer, reader, next, tables: Mutex::default(), writer, rules, done: 0 })
    }

    /// Bytes of text that are encoded and written.
    pub(crate) fn done(&self) -> u64 {
        self.done
    }

    /// Encodes a chunk; whether there are more.
    pub(crate) fn advance(&mut self) -> Result<bool> {
        let chunk = std::mem::take(&mut self.next);
        let Encode { tokenizer, reader, tables, .. } = self;
        let (tokens, next) = rayon::join(|| encode(tokenizer, tables, &chunk), || reader.chunk());
        for (document, tokens) in chunk.iter().zip(tokens?) {
            self.write(document, &tokens)?;
            self.done += document.text.len() as u64;
        }
        self.next = next?;
        Ok(!self.next.is_empty())
    }

    fn write(&mut self, document: &Document, tokens: &[u32]) -> Result<()> {
        let Document { domain, name, text } = document;
        let name = clip(name);
        let bytes = text.len() as u64;
        let share = match self.rules.get(domain) {
            Some(Rule::Below(below)) => {
                let split = if document.number() < *below { Split::Validation } else { Split::Train };
                return Ok(self.writer.document(split, domain, name, bytes, tokens)?);
            }
            Some(Rule::Tail(share)) => *share,
            // A domain the first pass did not see: the text changed, and the hash will say so.
            None => 0.0,
        };
        // Rounded up, but not all of it.
        let held = (tokens.len() as f64 * share).ceil() as usize;
        let (kept, held_out) = tokens.split_at(tokens.len() - held.min(tokens.len().saturating_sub(1)));
        let held_bytes: usize = held_out.iter().map(|&id| self.tokenizer.bytes_of(id).len()).sum();
        let held_bytes = (held_bytes as u64).min(bytes);
        for (split, tokens, bytes) in
            [(Split::Train, kept, bytes - held_bytes), (Split::Validation, held_out, held_bytes)]
        {
            if !tokens.is_empty() {
                self.writer.document(split, domain, name, bytes, tokens)?;
            }
        }
        Ok(())
    }

    /// Finishes the shards, if the text was the one with this hash; else the hash it has.
    pub(crate) fn finish(self, content: &str) -> Result<Result<Tokenizer, String>> {
        let found = self.reader.content();
        if found != content {
            return Ok(Err(found));
        }
        self.writer.finish()?;
        Ok(Ok(self.tokenizer))
    }
}

fn encode(tokenizer: &Tokenizer, tables: &Mutex<Vec<Table>>, chunk: &[Document]) -> Result<Vec<Vec<u32>>> {
    let tables = || tables.lock().unwrap_or_else(PoisonError::into_inner);
    let one = |document: &Document| {
        let free = tables().pop();
        let mut table = free.unwrap_or_else(Table::large);
        let tokens = tokenizer.encode_with(&mut table, &document.text);
        tables().push(table);
        tokens
    };
    chunk.par_iter().with_max_len(1).map(one).collect()
}

fn clip(name: &str) -> &str {
    let end = (0..=NAME.min(name.len())).rev().find(|&at| name.is_char_boundary(at));
    name.get(..end.unwrap_or(0)).unwrap_or_default()
}
