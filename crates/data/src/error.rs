//! The one error type of the crate, and the exit code each error asks for.

use std::io;
use std::path::{Path, PathBuf};

use crate::config::ConfigError;

/// `Result` with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that can go wrong between text and batches. Each message is one line with a hint in
/// brackets.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An option of the `[data]` section has no meaning.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A path that was asked for is not there.
    #[error("cannot find {}: expected a file or a folder (check the path; it is read from the current directory)", path.display())]
    Missing {
        /// As given.
        path: PathBuf,
    },
    /// A file was named whose kind the readers do not know.
    #[error(
        "cannot read {} as text: expected .jsonl or a text or source file such as .txt, .md, .html, .rs, .py, \
         each also with .gz or .zst behind, found {found} (rename it, or convert it to .jsonl with a field \"text\")",
        path.display()
    )]
    Kind {
        /// The file.
        path: PathBuf,
        /// Its extension, in words.
        found: String,
    },
    /// The operating system or a decompressor refused to go on.
    #[error("cannot read {}: {source} ({hint})", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// What was said.
        source: io::Error,
        /// What to do about it.
        hint: &'static str,
    },
    /// Text that is not UTF-8.
    #[error(
        "{}:{line}: expected UTF-8, found byte 0x{byte:02x} at offset {offset} of the text \
         (convert the file, for example with iconv -f latin1 -t utf8)", path.display()
    )]
    Utf8 {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: u64,
        /// Bytes before the bad one, after decompression.
        offset: u64,
        /// The first byte that does not fit.
        byte: u8,
    },
    /// A line of a .jsonl file that is not what it should be.
    #[error("{}:{line}: expected {expected}, found {found} ({hint})", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Its line, from 1.
        line: u64,
        /// The rule.
        expected: String,
        /// What the line holds.
        found: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// No text at all.
    #[error("no text in {found}: expected at least one document that is not empty ({hint})")]
    Empty {
        /// Where it was looked for, and what was skipped.
        found: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// The text is not the one that was read a moment before.
    #[error(
        "the text in {found} changed while it was being read: expected {expected} (start again when nothing writes there)"
    )]
    Changed {
        /// Where.
        found: String,
        /// What the first pass saw.
        expected: String,
    },
    /// A tokenizer that cannot be used.
    #[error("tokenizer {}: expected {expected}, found {found} ({hint})", path.display())]
    Tokenizer {
        /// The file, or where the tokenizer came from.
        path: PathBuf,
        /// The rule.
        expected: String,
        /// What it is.
        found: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// A chat template that is missing or cannot be used.
    #[error("chat template {}: expected {expected}, found {found} ({hint})", path.display())]
    Chat {
        /// The file.
        path: PathBuf,
        /// The rule.
        expected: String,
        /// What there is.
        found: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// Conversations without an answer to learn or to measure.
    #[error(
        "no answer in the {split} split: expected conversations whose first answer begins within one context ({hint})"
    )]
    NoAnswer {
        /// `training` or `validation`.
        split: &'static str,
        /// What to do about it.
        hint: &'static str,
    },
    /// Too little text for the context.
    #[error("the {split} split holds {tokens} tokens, fewer than one context of {context}: {hint}")]
    Short {
        /// `training` or `validation`.
        split: &'static str,
        /// What there is.
        tokens: u64,
        /// What one window needs, less one.
        context: usize,
        /// What to do about it.
        hint: &'static str,
    },
    /// A cluster that has too little text to train or be measured on.
    #[error("cluster {cluster} has no {split} window ({hint})")]
    NoWindow {
        /// Its number.
        cluster: u32,
        /// `training` or `validation`.
        split: &'static str,
        /// What to do about it.
        hint: &'static str,
    },
    /// A size that no batch or evaluation can have.
    #[error("{what}: expected {expected}, found {found} (this is a bug in the caller)")]
    Shape {
        /// Which argument.
        what: &'static str,
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The data or the tokenizer is not the one a run was started with.
    #[error("{what} of {} changed: expected {expected}, found {found} (undo the change, or start a new run)", path.display())]
    Identity {
        /// `tokenizer`, `text` or `data options`.
        what: &'static str,
        /// The run directory.
        path: PathBuf,
        /// What the run was started with.
        expected: String,
        /// What there is now.
        found: String,
    },
    /// A file of clusters that cannot be used.
    #[error("clusters {}: expected {expected}, found {found} (make them again with tritrain cluster)", path.display())]
    Clusters {
        /// The file.
        path: PathBuf,
        /// The rule.
        expected: String,
        /// What the file holds.
        found: String,
    },
    /// Reading or writing the run directory failed.
    #[error(transparent)]
    Files(#[from] tritrain_files::Error),
}

impl Error {
    /// The exit code of a program that stops on this error: 2 for usage and bad input, 4 for storage,
    /// 5 for an identity that changed.
    pub fn exit_code(&self) -> i32 {
        match self {
            Error::Read { .. } => 4,
            Error::Identity { .. } => 5,
            Error::Files(error) => error.exit_code(),
            _ => 2,
        }
    }

    /// Wraps an error of the operating system or of a decompressor.
    pub(crate) fn read(path: &Path, source: io::Error) -> Error {
        use io::ErrorKind as K;
        let hint = match source.kind() {
            K::NotFound => return Error::Missing { path: path.to_path_buf() },
            K::PermissionDenied => "check the owner and mode of the file",
            K::UnexpectedEof => "the compressed file is cut short; fetch or pack it again",
            K::InvalidInput | K::InvalidData | K::Other => {
                "if it is compressed, it is damaged or not what its ending says"
            }
            _ => "check the disk and the system log",
        };
        Error::Read { path: path.to_path_buf(), source, hint }
    }

    pub(crate) fn tokenizer(
        path: &Path,
        expected: impl Into<String>,
        found: impl ToString,
        hint: &'static str,
    ) -> Error {
        let found = short(&found.to_string());
        Error::Tokenizer { path: path.to_path_buf(), expected: expected.into(), found, hint }
    }
}

/// At most 120 characters, control characters escaped: messages quote foreign files.
pub(crate) fn short(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().take(120) {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    if text.chars().nth(120).is_some() {
        out.push('…');
    }
    out
}
