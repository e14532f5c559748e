//! From a source to a corpus in a run directory: scan, tokenizer, encode, each a chunk at a time.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tritrain_files::tokens::CorpusWriter;
use tritrain_files::{Storage, write_atomic};

use crate::chat::ChatTemplate;
use crate::corpus::{Corpus, TOKENIZER, TOKENS};
use crate::encode::{Chats, Encode};
use crate::sample::Sample;
use crate::scan::{Scan, Scanned};
use crate::source::{Skipped, Source};
use crate::tokenizer::EOS;
use crate::{DataConfig, Error, Result, Tokenizer};

/// MiB of text that a tokenizer is trained on, at most: drawn evenly from all of it.
const SAMPLE: u64 = 32;
/// What the shards were made from, beside them.
const RECORD: &str = "source.json";

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Reading all of the text once. Counted in bytes on disk.
    Scan,
    /// Training a tokenizer, in one go. Counted in bytes of text.
    Tokenizer,
    /// Turning text into tokens. Counted in bytes of text.
    Encode,
}

/// How far a preparation is: what the next [`Preparation::advance`] will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub stage: Stage,
    /// Bytes behind it in this stage.
    pub done: u64,
    /// Bytes of this stage.
    pub total: u64,
}

/// `source.json`: when all of it agrees, the shards are used again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// [`Source::stamp`]. When only this differs the text is read again and its hash decides.
    stamp: String,
    /// Hash of all documents, the manifest's `source_hash`.
    content: String,
    /// How the tokenizer came about.
    tokenizer: String,
    /// Share held out.
    validation: f32,
    /// Where there are conversations, how they became tokens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    chats: Option<ChatRecord>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ChatRecord {
    /// Hash of the template.
    template: String,
    /// Where they are cut.
    context: usize,
}

/// The making of a corpus: call [`advance`](Self::advance) until it returns `None`, then
/// [`finish`](Self::finish).
///
/// In the run directory it writes `tokenizer.json` and `tokens/`. The same text and options give the
/// same bytes, on any number of threads; the seed of a run plays no part, so that runs with different
/// seeds are measured on the same validation text.
pub struct Preparation<'a> {
    storage: &'a dyn Storage,
    source: &'a Source,
    config: DataConfig,
    dir: PathBuf,
    /// Whether a corpus that does not agree is an error instead of being made again.
    strict: bool,
    record: Record,
    old: Option<(Record, Box<Corpus>)>,
    given: Option<Tokenizer>,
    /// For conversations: only they need one that can be used.
    template: Option<Result<ChatTemplate>>,
    context: usize,
    skipped: Skipped,
    state: State<'a>,
}

enum State<'a> {
    Scan(Box<Scan>),
    Train(Scanned),
    Encode(Box<Encode<'a>>, u64),
    Done(Box<Corpus>),
    /// After an error.
    Failed,
}

impl Record {
    /// Whether other text would be all that differs.
    fn same_options(&self, new: &Record) -> bool {
        let chats = self.chats.is_none() || self.chats == new.chats;
        self.tokenizer == new.tokenizer && self.validation == new.validation && chats
    }

    /// In words.
    fn options(&self) -> String {
        let chats = self.chats.as_ref().map(|ChatRecord { template, context }| {
            format!(", chat template {template}, conversations cut at {context}")
        });
        format!("tokenizer {}, validation {}{}", self.tokenizer, self.validation, chats.unwrap_or_default())
    }
}

impl std::fmt::Debug for Preparation<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Preparation")
            .field("dir", &self.dir)
            .field("progress", &self.progress())
            .finish_non_exhaustive()
    }
}

impl<'a> Preparation<'a> {
    /// Starts to prepare `source` in the run directory `dir`, whose lock the caller holds. A corpus that
    /// is there and agrees is used again; any other is replaced. Conversations are cut at `context` tokens; their
    /// template is the one beside the tokenizer that is given, else a [plain one](ChatTemplate::plain).
    ///
    /// # Errors
    /// [`Error::Config`], those of [`Source::open`] and of [`Tokenizer::from_file`].
    pub fn start(
        storage: &'a dyn Storage,
        source: &'a Source,
        (config, context): (&DataConfig, usize),
        dir: &Path,
    ) -> Result<Self> {
        Self::new(storage, source, (config, context), dir, false)
    }

    /// The same for a run that goes on: the corpus must be there and agree.
    ///
    /// # Errors
    /// As [`Preparation::start`]; [`Error::Identity`] here or in [`advance`](Self::advance) when text,
    /// tokenizer or options changed; [`Error::Files`] when the corpus is missing or damaged.
    pub fn resume(
        storage: &'a dyn Storage,
        source: &'a Source,
        (config, context): (&DataConfig, usize),
        dir: &Path,
    ) -> Result<Self> {
        Self::new(storage, source, (config, context), dir, true)
    }

    fn new(
        storage: &'a dyn Storage,
        source: &'a Source,
        (config, context): (&DataConfig, usize),
        dir: &Path,
        strict: bool,
    ) -> Result<Self> {
        config.check()?;
        let given = match config.tokenizer.as_str() {
            "" => None,
            path => Some(Tokenizer::from_file(Path::new(path))?),
        };
        let tokenizer = match &given {
            Some(tokenizer) => format!("file {}", tokenizer.hash()),
            None => format!("trained, vocab {}, sample {SAMPLE} MiB", config.vocab),
        };
        let template = match &given {
            None => ChatTemplate::plain_with(EOS),
            Some(tokenizer) => match ChatTemplate::find(storage, Path::new(&config.tokenizer)).transpose() {
                Some(template) => template,
                None => ChatTemplate::plain(tokenizer),
            },
        };
        let hash = template.as_ref().ok().map(|template| template.hash().to_owned());
        let chats = hash.map(|template| ChatRecord { template, context });
        let (stamp, content) = (source.stamp()?, String::new());
        let record = Record { stamp, content, tokenizer, validation: config.validation, chats };
        let old = match load(storage, dir) {
            Ok(old) => Some(old),
            Err(error) if strict => return Err(error),
            Err(error) => {
                tracing::debug!(%error, "no corpus to use again");
                None
            }
        };
        let documents = source.open()?;
        let skipped = documents.skipped();
        let sample = given.is_none().then(|| Sample::new(SAMPLE << 20));
        let state = State::Scan(Box::new(Scan::new(documents, sample)));
        let (config, dir) = (config.clone(), dir.to_path_buf());
        let template = Some(template);
        let mut new = Preparation {
            storage,
            source,
            config,
            dir,
            strict,
            record,
            old: None,
            given,
            template,
            context,
            skipped,
            state,
        };
        match old {
            Some((old, corpus)) if old.same_options(&new.record) => {
                if old.stamp == new.record.stamp {
                    new.state = State::Done(corpus);
                } else {
                    new.old = Some((old, corpus));
                }
            }
            Some((old, _)) if strict => {
                return Err(new.changed("the data options", old.options(), new.record.options()));
            }
            _ => {}
        }
        Ok(new)
    }

    fn changed(&self, what: &'static str, expected: String, found: String) -> Error {
        Error::Identity { what, path: self.dir.clone(), expected, found }
    }

    /// Files below the given paths that are not read.
    pub fn skipped(&self) -> Skipped {
        self.skipped
    }

    /// How far it is; `None` when it is done.
    pub fn progress(&self) -> Option<Progress> {
        let (stage, done, total) = match &self.state {
            State::Scan(scan) => {
                let documents = scan.documents();
                (Stage::Scan, documents.bytes_read().min(documents.bytes_total()), documents.bytes_total())
            }
            State::Train(scanned) => (Stage::Tokenizer, 0, scanned.sample.as_ref().map_or(0, Sample::bytes)),
            State::Encode(encode, total) => (Stage::Encode, encode.done().min(*total), *total),
            State::Done(_) | State::Failed => return None,
        };
        Some(Progress { stage, done, total })
    }

    /// Does the next part: reads or encodes a chunk, or trains the tokenizer. `None` when all is done.
    ///
    /// # Errors
    /// Those of the stream of documents; [`Error::Empty`] without any text; [`Error::Changed`];
    /// [`Error::Identity`]; [`Error::Tokenizer`]; [`Error::Chat`]; [`Error::Files`]. Nothing is left half made, and
    /// there is no going on after an error.
    pub fn advance(&mut self) -> Result<Option<Progress>> {
        self.state = match std::mem::replace(&mut self.state, State::Failed) {
            State::Scan(mut scan) => {
                if scan.advance()? {
                    State::Scan(scan)
                } else {
                    self.scanned(scan.finish(self.config.validation))?
                }
            }
            State::Train(mut scanned) => {
                let pieces = scanned.sample.take().map(Sample::pieces).unwrap_or_default();
                let tokenizer = Tokenizer::train(&pieces, self.config.vocab)?;
                drop(pieces);
                self.begin(tokenizer, scanned)?
            }
            State::Encode(mut encode, total) => {
                if encode.advance()? {
                    State::Encode(encode, total)
                } else {
                    self.encoded(*encode)?
                }
            }
            done @ (State::Done(_) | State::Failed) => done,
        };
        Ok(self.progress())
    }

    fn scanned(&mut self, scanned: Scanned) -> Result<State<'a>> {
        if scanned.bytes == 0 {
            let Skipped { hidden, unknown, .. } = self.skipped;
            let found =
                format!("{} ({hidden} hidden and {unknown} unknown files skipped)", self.source.describe());
            return Err(Error::Empty {
                found,
                hint: "point data.paths at text, for example .txt, .md or .jsonl files",
            });
        }
        self.record.content.clone_from(&scanned.content);
        if scanned.conversations == 0 {
            self.record.chats = None;
        }
        if let Some((old, corpus)) = self.old.take() {
            if old.content == scanned.content {
                self.save_record()?;
                return Ok(State::Done(corpus));
            }
            if self.strict {
                return Err(self.changed("the text", old.content, scanned.content));
            }
        }
        match self.given.take() {
            Some(tokenizer) => self.begin(tokenizer, scanned),
            None => Ok(State::Train(scanned)),
        }
    }

    fn begin(&mut self, tokenizer: Tokenizer, scanned: Scanned) -> Result<State<'a>> {
        let template = self.template.take().filter(|_| scanned.conversations > 0).transpose()?;
        let storage = self.storage;
        let tokens = self.dir.join(TOKENS);
        storage.create_dir_all(&self.dir)?;
        // The shards and their record first: a record beside another tokenizer must never be seen.
        if storage.exists(&tokens)? {
            storage.remove_dir_all(&tokens)?;
        }
        self.remove_leftovers()?;
        tokenizer.save(storage, &self.dir.join(TOKENIZER))?;
        let (vocab, eos) = (tokenizer.vocab_size(), tokenizer.eos());
        let mut writer =
            CorpusWriter::create(storage, &tokens, vocab, eos, tokenizer.hash(), &scanned.content)?;
        let chats = match template {
            None => None,
            Some(template) => {
                writer = writer.with_marks();
                template.save(storage, &self.dir)?;
                Some(Chats { template, context: self.context })
            }
        };
        let encode = Encode::new((tokenizer, chats), self.source.open()?, writer, scanned.rules)?;
        Ok(State::Encode(Box::new(encode), scanned.bytes))
    }

    /// Removes what a preparation that was killed left behind; it can be as large as the corpus.
    fn remove_leftovers(&self) -> Result<()> {
        for path in self.storage.list(&self.dir)? {
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if name.starts_with("tokens.tmp-") {
                self.storage.remove_dir_all(&path)?;
            }
        }
        Ok(())
    }

    fn encoded(&mut self, encode: Encode<'a>) -> Result<State<'a>> {
        let expected = self.record.content.clone();
        if let Err(found) = encode.finish(&expected)? {
            let expected = format!("the text with the hash {expected}, found {found}");
            return Err(Error::Changed { found: self.source.describe(), expected });
        }
        self.save_record()?;
        Ok(State::Done(Box::new(Corpus::open(self.storage, &self.dir)?)))
    }

    fn save_record(&self) -> Result<()> {
        let path = self.dir.join(TOKENS).join(RECORD);
        let text = serde_json::to_string_pretty(&self.record).unwrap_or_default();
        Ok(write_atomic(self.storage, &path, text.as_bytes())?)
    }

    /// Does what is left and opens the corpus.
    ///
    /// # Errors
    /// Those of [`advance`](Self::advance).
    pub fn finish(mut self) -> Result<Corpus> {
        while self.advance()?.is_some() {}
        match self.state {
            State::Done(corpus) => Ok(*corpus),
            _ => Corpus::open(self.storage, &self.dir),
        }
    }
}

fn load(storage: &dyn Storage, dir: &Path) -> Result<(Record, Box<Corpus>)> {
    let corpus = Corpus::open(storage, dir)?;
    let path = dir.join(TOKENS).join(RECORD);
    let record: Record = serde_json::from_slice(&storage.read(&path)?).map_err(|error| Error::Identity {
        what: "the record source.json",
        path: dir.to_path_buf(),
        expected: "the one written with the tokens".into(),
        found: error.to_string(),
    })?;
    if record.content != corpus.tokens().manifest().source_hash {
        let (expected, found) = (corpus.tokens().manifest().source_hash.clone(), record.content);
        return Err(Error::Identity {
            what: "the record source.json",
            path: dir.to_path_buf(),
            expected,
            found,
        });
    }
    Ok((record, Box::new(corpus)))
}
