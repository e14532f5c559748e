//! The one error type of the crate, and the exit code each error asks for.

use std::io;
use std::path::{Path, PathBuf};

/// `Result` with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One field in which two identities differ.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Name of the field: `config`, `tokenizer`, `data` or `version`.
    pub field: &'static str,
    /// What this process has.
    pub expected: String,
    /// What the file says.
    pub found: String,
}

/// Everything that can go wrong with a file. Each message is one line with a hint in brackets.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused an operation.
    #[error("cannot {what} {}: {source} ({hint})", path.display())]
    Io {
        /// The operation, as a verb: `write`, `rename`.
        what: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
        /// What to do about it.
        hint: &'static str,
    },
    /// There is, or was while writing, not enough free space.
    #[error(
        "not enough space to {what} {}: expected {needed} bytes free, found {free} \
         (free some space, or keep fewer checkpoints)", path.display()
    )]
    NoSpace {
        /// What was being written.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// Bytes wanted, with the reserve of a tenth.
        needed: u64,
        /// Bytes available.
        free: u64,
    },
    /// A file is not what it should be: damaged, cut short, hostile or not one of ours.
    #[error("{what} in {}: expected {expected}, found {found} ({hint})", path.display())]
    Broken {
        /// Which rule is broken.
        what: String,
        /// The file.
        path: PathBuf,
        /// What the rule asks for.
        expected: String,
        /// What the file holds.
        found: String,
        /// What to do about it.
        hint: &'static str,
    },
    /// The file was written by a newer version of the program.
    #[error(
        "{} was written by a newer version: expected format {expected} or older, found {found} \
         (update tritrain)", path.display()
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// The newest format this version reads.
        expected: u32,
        /// The format of the file.
        found: u32,
    },
    /// Checkpoints exist and none can be used. Starting from step 0 would hide the loss.
    #[error(
        "no checkpoint in {} loads: expected 1 of {tried} to be whole and healthy, found none; newest: {newest} \
         (restore one from a copy, or move the step-* directories away to start again)", path.display()
    )]
    NoneLoads {
        /// The run directory.
        path: PathBuf,
        /// How many were tried.
        tried: usize,
        /// Why the newest was refused.
        newest: Box<Error>,
    },
    /// Another process trains in this run directory.
    #[error(
        "{} is locked: expected no other trainer, found process {holder} (stop it, or use another run directory)",
        path.display()
    )]
    Locked {
        /// The lock file.
        path: PathBuf,
        /// Process id of the holder as it wrote it, `unknown` if it had not yet.
        holder: String,
    },
    /// Something that must not be overwritten is in the way.
    #[error("{what} {} exists: expected {expected} ({hint})", path.display())]
    Exists {
        /// What it is.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// What should be there instead.
        expected: &'static str,
        /// What to do about it.
        hint: &'static str,
    },
    /// Configuration, tokenizer, data or program changed under a run.
    #[error("{} belongs to another run: {} (undo the change, allow it by field name, or start a new run)",
        path.display(), describe(differences))]
    Identity {
        /// The checkpoint or corpus.
        path: PathBuf,
        /// The fields that differ.
        differences: Vec<Difference>,
    },
    /// The caller asked for something no file can hold.
    #[error("{what} for {}: expected {expected}, found {found} ({hint})", path.display())]
    Invalid {
        /// Which argument.
        what: &'static str,
        /// The file it was meant for.
        path: PathBuf,
        /// What is allowed.
        expected: String,
        /// What was given.
        found: String,
        /// What to do about it.
        hint: &'static str,
    },
}

fn describe(differences: &[Difference]) -> String {
    let one = |d: &Difference| format!("{}: expected {}, found {}", d.field, d.expected, d.found);
    differences.iter().map(one).collect::<Vec<_>>().join("; ")
}

impl Error {
    /// The exit code of a program that stops on this error: 2 for [`Error::Invalid`] (a usage error),
    /// 5 for [`Error::Identity`], 4 for everything else.
    pub fn exit_code(&self) -> i32 {
        match self {
            Error::Invalid { .. } => 2,
            Error::Identity { .. } => 5,
            _ => 4,
        }
    }

    /// Wraps an error of the operating system.
    pub fn io(what: &'static str, path: &Path, source: io::Error) -> Error {
        let hint = io_hint(source.kind());
        Error::Io { what, path: path.to_path_buf(), source, hint }
    }

    /// A file that breaks a rule of its format.
    pub(crate) fn broken(
        what: impl Into<String>,
        path: &Path,
        expected: impl ToString,
        found: impl ToString,
    ) -> Error {
        Error::Broken {
            what: what.into(),
            path: path.to_path_buf(),
            expected: expected.to_string(),
            found: short(&found.to_string()),
            hint: "the file is damaged or was not written by tritrain; use a copy",
        }
    }

    /// An argument that breaks a rule.
    pub(crate) fn invalid(
        what: &'static str,
        path: &Path,
        expected: impl ToString,
        found: impl ToString,
        hint: &'static str,
    ) -> Error {
        Error::Invalid {
            what,
            path: path.to_path_buf(),
            expected: expected.to_string(),
            found: short(&found.to_string()),
            hint,
        }
    }
}

/// At most 120 characters, control characters escaped: messages quote hostile files.
fn short(text: &str) -> String {
    let mut out: String = text.chars().take(120).flat_map(char::escape_debug).collect();
    if text.chars().nth(120).is_some() {
        out.push('…');
    }
    out
}

fn io_hint(kind: io::ErrorKind) -> &'static str {
    use io::ErrorKind as K;
    match kind {
        K::NotFound => "check the path",
        K::PermissionDenied => "check the owner and mode of the file and its directory",
        K::AlreadyExists => "something else writes here; move it away",
        K::StorageFull | K::QuotaExceeded => "free some space or raise the quota",
        K::FileTooLarge => "raise the limit on file sizes (ulimit -f)",
        K::ReadOnlyFilesystem => "the file system is mounted read-only",
        K::CrossesDevices => "a run directory must lie on one file system",
        K::InvalidFilename => "use shorter names",
        K::DirectoryNotEmpty => "something else writes here; use one trainer per run directory",
        _ => "check the disk and the system log",
    }
}
