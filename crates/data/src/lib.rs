//! Corpora, tokenizer, token shards and the resumable batch plan.
//!
//! | module | owns |
//! |---|---|
//! | `config` | [`DataConfig`], the `[data]` section |
//! | `source` | [`Source`]: files, folders and memory as a stream of [`Document`]s |
//! | `tokenizer` | [`Tokenizer`]: byte-level BPE, trained or read, without loss |
//! | [`chat`] | [`chat::ChatTemplate`]: conversations as prompts |
//! | `scan`, `sample`, `encode`, `prepare` | [`Preparation`]: text to shards in a run directory |
//! | `corpus` | [`Corpus`]: the result |
//! | `labels` | [`Labels`]: which cluster every token belongs to |
//! | [`tasks`] | questions and texts a model is measured on |
//! | `plan` | [`BatchPlan`]: which tokens are in which batch |
//! | [`embed`] | documents as vectors |
//! | [`clusters`] | what clusters of them are, near-duplicates, and the file that finds a text's cluster |
//! | `validation` | [`ValidationSet`]: which tokens a model is measured on |
//!
//! Text streams: memory holds two chunks of about 8 MiB, their tokens, the tokenizer's sample and the
//! largest document, whatever the size of the corpus. Everything made here is a function of text and
//! options: no clock, no thread count, no seed but the plan's.

pub mod chat;
pub mod clusters;
mod config;
mod corpus;
pub mod embed;
mod encode;
mod error;
mod labels;
mod plan;
mod prepare;
mod sample;
mod scan;
mod source;
pub mod tasks;
mod tokenizer;
mod validation;

pub use config::{ConfigError, DataConfig, PlanKind};
pub use corpus::Corpus;
pub use error::{Error, Result};
pub use labels::{Labelling, Labels, LeftOut};
pub use plan::{BatchPlan, Mixer, PlanOptions, Window};
pub use prepare::{Preparation, Progress, Stage};
pub use source::{Document, Documents, Skipped, Source, documents};
pub use tokenizer::{DecodeStream, GgufTokenizer, TokenKind, Tokenizer, Vocabulary};
pub use tritrain_files::tokens::Split;
pub use validation::{Domain, ValidationSet};
