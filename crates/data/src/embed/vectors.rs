//! The second pass: a vector for each passage. And a third, to look at some of them again.

use std::collections::HashMap;

use super::embedder::normalise;
use super::features::Counter;
use super::fit::{Counters, Fitted, over_passages};
use super::passage::Passages;
use crate::encode::Reader;
use crate::source::{Document, Documents};
use crate::{Error, Result};

/// Where a passage lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passage {
    /// Its document: the how manieth of the source, from 0.
    pub document: u32,
    /// Index of its document's domain, in the order in which domains first appear.
    pub domain: u32,
    /// Its first byte in the document's text.
    pub start: u32,
    /// Its length in bytes.
    pub bytes: u32,
}

/// A second pass over the same text, a chunk at a time: [`advance`](Self::advance) until it returns
/// `false`, then [`finish`](Self::finish). Memory grows by 16 bytes per passage; the vectors go to `out`.
pub struct Vectors<'f> {
    fitted: &'f Fitted<'f>,
    reader: Reader,
    next: Vec<Document>,
    counters: Counters,
    passages: Vec<Passage>,
    domains: Domains,
    documents: u32,
}

#[derive(Default)]
struct Domains {
    names: Vec<String>,
    index: HashMap<String, u32>,
}

impl Domains {
    fn index(&mut self, name: &str) -> u32 {
        if let Some(&index) = self.index.get(name) {
            return index;
        }
        let index = self.names.len() as u32;
        self.names.push(name.to_owned());
        self.index.insert(name.to_owned(), index);
        index
    }
}

impl std::fmt::Debug for Vectors<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vectors").field("passages", &self.passages.len()).finish_non_exhaustive()
    }
}

impl<'f> Vectors<'f> {
    /// Starts to read the text that `fitted` was made from.
    ///
    /// # Errors
    /// Those of the stream of documents.
    pub fn new(fitted: &'f Fitted<'f>, documents: Documents) -> Result<Self> {
        let mut reader = Reader::new(documents);
        let next = reader.chunk()?;
        let (counters, domains) = (Counters::default(), Domains::default());
        Ok(Vectors { fitted, reader, next, counters, passages: Vec::new(), domains, documents: 0 })
    }

    /// The text that is read.
    pub fn documents(&self) -> &Documents {
        self.reader.documents()
    }

    /// Embeds a chunk: hands its vectors, `[passages][dim]`, to `out`. Whether there are more.
    ///
    /// # Errors
    /// Those of the stream of documents; [`Error::Tokenizer`]; [`Error::Shape`] from 2³² documents on;
    /// those of `out`.
    pub fn advance(&mut self, mut out: impl FnMut(&[f32]) -> Result<()>) -> Result<bool> {
        let chunk = std::mem::take(&mut self.next);
        let Vectors { fitted, counters, reader, .. } = self;
        let embedder = &fitted.embedder;
        let embed = |counter: &mut Counter, text: &str| {
            let counts = embedder.features.count(counter, text)?;
            let mut vector = vec![0.0; embedder.dim];
            embedder.project(&counts, &mut vector);
            normalise(&mut vector);
            Ok(vector)
        };
        let (vectors, next) =
            rayon::join(|| over_passages(&embedder.features, counters, &chunk, embed), || reader.chunk());
        out(&vectors?.concat())?;
        for document in &chunk {
            self.place(document)?;
        }
        self.next = next?;
        Ok(!self.next.is_empty())
    }

    fn place(&mut self, document: &Document) -> Result<()> {
        let domain = self.domains.index(&document.domain);
        let index = self.documents;
        self.documents = index.checked_add(1).filter(|_| u32::try_from(document.text.len()).is_ok()).ok_or(
            Error::Shape {
                what: "documents to embed",
                expected: "fewer than 2^32, each of fewer than 2^32 bytes".into(),
                found: "more".into(),
            },
        )?;
        self.passages.extend(Passages::new(&document.text).map(|range| Passage {
            document: index,
            domain,
            start: range.start as u32,
            bytes: range.len() as u32,
        }));
        Ok(())
    }

    /// Where the passages lie, in the order of their vectors, and the names of the domains.
    ///
    /// # Errors
    /// [`Error::Changed`] when the text was not the one of the first pass.
    pub fn finish(self) -> Result<(Vec<Passage>, Vec<String>)> {
        let (expected, found) = (&self.fitted.content, self.reader.content());
        if *expected != found {
            let expected = format!("the text with the hash {expected}, found {found}");
            return Err(Error::Changed { found: "what is embedded".into(), expected });
        }
        Ok((self.passages, self.domains.names))
    }
}

/// A passage that is read again.
#[derive(Clone, Copy, Debug)]
pub struct PassageText<'d> {
    /// Index of the passage.
    pub index: usize,
    /// Its document.
    pub document: &'d Document,
    /// Its text.
    pub text: &'d str,
}

/// Reads the text once more and hands every passage to `each`, in order.
///
/// # Errors
/// Those of the stream of documents and of `each`.
pub fn visit(documents: Documents, mut each: impl FnMut(PassageText<'_>) -> Result<()>) -> Result<()> {
    let mut index = 0;
    for document in documents {
        let document = document?;
        for range in Passages::new(&document.text) {
            let text = document.text.get(range).unwrap_or_default();
            each(PassageText { index, document: &document, text })?;
            index += 1;
        }
    }
    Ok(())
}
