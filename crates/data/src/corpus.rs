//! A prepared corpus: tokens on disk and the tokenizer that made them.

use std::path::Path;
use std::sync::Arc;

use tritrain_files::Storage;
use tritrain_files::tokens::{Split, TokenCorpus};

use crate::{Error, Labels, Result, Tokenizer};

/// Shards below a run directory.
pub(crate) const TOKENS: &str = "tokens";
/// The tokenizer in a run directory.
pub(crate) const TOKENIZER: &str = "tokenizer.json";

/// Tokens and tokenizer of a run, and the clusters of its text where they were asked for.
#[derive(Debug)]
pub struct Corpus {
    tokens: TokenCorpus,
    tokenizer: Tokenizer,
    labels: Option<Arc<Labels>>,
}

impl Corpus {
    /// Opens what a [`Preparation`](crate::Preparation) left in a run directory. Needs no source text.
    ///
    /// # Errors
    /// [`Error::Files`]; [`Error::Tokenizer`]; [`Error::Identity`] when `tokenizer.json` is not the one
    /// that made the tokens.
    pub fn open(storage: &dyn Storage, dir: &Path) -> Result<Self> {
        let path = dir.join(TOKENIZER);
        let tokenizer = Tokenizer::from_bytes(&storage.read(&path)?, &path)?;
        let tokens = TokenCorpus::open(storage, &dir.join(TOKENS))?;
        let expected = &tokens.manifest().tokenizer_hash;
        if expected != tokenizer.hash() {
            let (expected, found) = (expected.clone(), tokenizer.hash().to_owned());
            return Err(Error::Identity { what: "the tokenizer", path: dir.to_path_buf(), expected, found });
        }
        Ok(Corpus { tokens, tokenizer, labels: None })
    }

    /// The token shards.
    pub fn tokens(&self) -> &TokenCorpus {
        &self.tokens
    }

    /// The tokenizer that made them.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The same corpus with clusters.
    #[must_use]
    pub(crate) fn labelled(self, labels: Labels) -> Corpus {
        Corpus { labels: Some(Arc::new(labels)), ..self }
    }

    /// Which cluster every token belongs to.
    pub fn labels(&self) -> Option<&Arc<Labels>> {
        self.labels.as_ref()
    }

    /// Identity of the tokens, their split and their tokenizer, and of their clusters.
    pub fn hash(&self) -> &str {
        self.labels.as_ref().map_or(self.tokens.content_hash(), |labels| labels.hash())
    }

    /// Tokens of a split, the end of text behind each document included.
    pub fn len(&self, split: Split) -> u64 {
        self.tokens.len(split)
    }

    /// Whether a split has no token.
    pub fn is_empty(&self, split: Split) -> bool {
        self.tokens.is_empty(split)
    }

    /// Whether both splits hold a window of `context + 1` tokens.
    ///
    /// # Errors
    /// [`Error::Short`].
    pub fn check(&self, context: usize) -> Result<()> {
        let hints =
            ["add text or lower model.context", "add text, raise data.validation or lower model.context"];
        for ((split, name), hint) in
            [(Split::Train, "training"), (Split::Validation, "validation")].into_iter().zip(hints)
        {
            let tokens = self.len(split);
            if tokens <= context as u64 {
                return Err(Error::Short { split: name, tokens, context, hint });
            }
        }
        Ok(())
    }
}
