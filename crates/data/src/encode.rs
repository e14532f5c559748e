//! The second pass over the text: documents to tokens, in parallel, in order.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use rayon::prelude::*;
use tritrain_files::tokens::{CorpusWriter, NO_TARGET_MARK, Split};

use crate::chat::ChatTemplate;
use crate::scan::{CHUNK, Rule};
use crate::source::{Document, Documents};
use crate::tokenizer::Table;
use crate::{Error, Result, Tokenizer};

/// The longest name that is written, in bytes.
const NAME: usize = 1024;

/// The template is refused when it takes fewer of the conversations than all but one in this many.
const ONE_IN: u64 = 20;

/// How conversations become tokens.
pub(crate) struct Chats {
    pub(crate) template: ChatTemplate,
    /// Tokens of a conversation, at most.
    pub(crate) context: usize,
}

/// Conversations that are not as they were.
#[derive(Default)]
struct Counts {
    all: u64,
    /// Longer than the context.
    cut: u64,
    /// Those whose answers are all behind it.
    unanswered: u64,
    refused: u64,
    /// What is wrong with the first that was refused.
    first: Option<Error>,
}

/// The pass, a chunk at a time. While one chunk is encoded the next is read: two are in memory.
pub(crate) struct Encode<'s> {
    tokenizer: Tokenizer,
    chats: Option<Chats>,
    counts: Counts,
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
        (tokenizer, chats): (Tokenizer, Option<Chats>),
        documents: Documents,
        writer: CorpusWriter<'s>,
        rules: BTreeMap<String, Rule>,
    ) -> Result<Self> {
        let mut reader = Reader::new(documents);
        let next = reader.chunk()?;
        let (tables, counts) = (Mutex::default(), Counts::default());
        Ok(Encode { tokenizer, chats, counts, reader, next, tables, writer, rules, done: 0 })
    }

    /// Bytes of text that are encoded and written.
    pub(crate) fn done(&self) -> u64 {
        self.done
    }

    /// Encodes a chunk; whether there are more.
    pub(crate) fn advance(&mut self) -> Result<bool> {
        let chunk = std::mem::take(&mut self.next);
        let Encode { tokenizer, chats, reader, tables, .. } = self;
        let of = (&*tokenizer, chats.as_ref());
        let (tokens, next) = rayon::join(|| encode(of, tables, &chunk), || reader.chunk());
        for (document, tokens) in chunk.iter().zip(tokens) {
            if document.messages.is_empty() {
                self.write(document, document.text.len() as u64, &tokens?)?;
            } else if let Some(tokens) = self.within(document, tokens)? {
                let learnt = tokens.iter().filter(|token| **token < NO_TARGET_MARK);
                let bytes = learnt.map(|token| self.tokenizer.bytes_of(*token).len() as u64).sum();
                self.write(document, bytes, &tokens)?;
            }
            self.done += document.text.len() as u64;
        }
        self.next = next?;
        Ok(!self.next.is_empty())
    }

    /// A conversation within the context, its loss ending with it; `None` where it is left out.
    fn within(&mut self, document: &Document, tokens: Result<Vec<u32>>) -> Result<Option<Vec<u32>>> {
        self.counts.all += 1;
        let context = self.chats.as_ref().map_or(usize::MAX, |chats| chats.context);
        let mut tokens = match tokens {
            Ok(tokens) => tokens,
            Err(Error::Chat { path, expected, found, hint }) => {
                let found = format!("{found}, for {}", document.name);
                self.counts.refused += 1;
                self.counts.first.get_or_insert(Error::Chat { path, expected, found, hint });
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        if tokens.len() > context {
            self.counts.cut += 1;
            tokens.truncate(context);
            // It goes on here: there is no end of text to learn.
            tokens.last_mut().into_iter().for_each(|token| *token |= NO_TARGET_MARK);
        }
        if tokens.iter().all(|token| *token >= NO_TARGET_MARK) {
            self.counts.unanswered += 1;
            return Ok(None);
        }
        Ok(Some(tokens))
    }

    fn write(&mut self, document: &Document, bytes: u64, tokens: &[u32]) -> Result<()> {
        let Document { domain, name, .. } = document;
        let name = clip(name);
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
        let Counts { all, cut, unanswered, refused, first } = self.counts;
        if let Some(first) = first {
            if refused * ONE_IN > all {
                return Err(first);
            }
            tracing::warn!("left out {refused} of {all} conversations, the first: {first}");
        }
        if cut > 0 {
            let hint = "raise model.context to learn them whole";
            tracing::warn!(
                "{cut} of {all} conversations are longer than the context: cut there, {unanswered} of them left out \
                 because no answer begins before ({hint})"
            );
        }
        let found = self.reader.content();
        if found != content {
            return Ok(Err(found));
        }
        self.writer.finish()?;
        Ok(Ok(self.tokenizer))
    }
}

/// Tokens by document.
fn encode(
    (tokenizer, chats): (&Tokenizer, Option<&Chats>),
    tables: &Mutex<Vec<Table>>,
    chunk: &[Document],
) -> Vec<Result<Vec<u32>>> {
    let tables = || tables.lock().unwrap_or_else(PoisonError::into_inner);
    let one = |document: &Document| {
        if let Some(chats) = chats.filter(|_| !document.messages.is_empty()) {
            return chats.template.conversation(tokenizer, &document.messages);
        }
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
