//! The one error type of the crate, and the exit code of each error.

use std::path::PathBuf;

use tritrain_optim::{Skip, StateError};

use crate::{ConfigError, Difference};

/// `Result` with this crate's [`enum@Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a run cannot start, go on or be read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration does not hold.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Text, tokenizer or shards.
    #[error(transparent)]
    Data(#[from] tritrain_data::Error),
    /// Checkpoints, logs and the disk.
    #[error(transparent)]
    Files(#[from] tritrain_files::Error),
    /// The optimizer state of a checkpoint does not fit the configuration.
    #[error("{}: {source}", path.display())]
    State {
        /// The checkpoint.
        path: PathBuf,
        /// What does not fit.
        source: StateError,
    },
    /// A file of a checkpoint that is sound and holds something else than expected.
    #[error("{}: expected {expected}, found {found}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// The rule.
        expected: String,
        /// What it holds.
        found: String,
    },
    /// The device that computes failed.
    #[error(
        "the device failed at step {step}: {reason}; what was saved before is sound: go on with --resume"
    )]
    Device {
        /// Steps behind when it was noticed.
        step: u64,
        /// What the device said.
        reason: String,
    },
    /// The run directory is in use already.
    #[error(
        "{} already holds a run (at step {step}); add --resume to go on with it, or choose another --out",
        path.display()
    )]
    Exists {
        /// The run directory.
        path: PathBuf,
        /// Its newest step.
        step: u64,
    },
    /// The configuration of a run changed under it.
    #[error(
        "{} was started with another configuration: {}; undo that, or start a new run with another --out",
        path.display(),
        differences.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    )]
    Changed {
        /// The run directory.
        path: PathBuf,
        /// Every option that differs and may not.
        differences: Vec<Difference>,
    },
    /// Not a model.
    #[error("{} is no model: {found}; expected a run folder, one of its step-N folders, or a model.safetensors", path.display())]
    NoModel {
        /// What was given.
        path: PathBuf,
        /// What is there.
        found: String,
    },
    /// Adapters where a whole model is needed.
    #[error(
        "{} holds adapters, which belong to another model: make one of both first, by tritrain merge",
        path.display()
    )]
    Adapters {
        /// The model file.
        path: PathBuf,
    },
    /// A model that no archive can be made of.
    #[error("cannot archive to {}: {what}", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// The reason.
        what: String,
    },
    /// A model of another program that cannot be one here.
    #[error("cannot import {}: {what}", path.display())]
    Import {
        /// The file or folder.
        path: PathBuf,
        /// The reason, a whole sentence.
        what: String,
    },
    /// Steps are skipped without end.
    #[error(
        "stopped at step {step}: {what} was not finite in too many steps ({skipped} skipped, {in_a_row} in a row); \
         the last checkpoint is sound: lower optim.rate and start again from it"
    )]
    Numeric {
        /// The step.
        step: u64,
        /// The quantity.
        what: &'static str,
        /// Steps skipped in all.
        skipped: u64,
        /// Skipped one after the other.
        in_a_row: u64,
    },
    /// Text that cannot be clustered.
    #[error("cannot cluster {found}: {source}")]
    Clusters {
        /// The text.
        found: String,
        /// Why not.
        source: tritrain_cluster::Error,
    },
    /// Experts that cannot be trained.
    #[error("experts: expected {expected}, found {found}; lower run.experts or raise run.tokens")]
    Experts {
        /// The rule.
        expected: String,
        /// What there is.
        found: String,
    },
    /// A target that cannot hold a model.
    #[error("cannot export to {target}: {reason}; {hint}")]
    Target {
        /// The kind of output.
        target: &'static str,
        /// Why not.
        reason: String,
        /// What to do instead.
        hint: &'static str,
    },
    /// An exported model that is not the one it should be.
    #[error("{}: {what} differs: expected {expected}, found {found}; export the model again", path.display())]
    Differs {
        /// The exported file or folder.
        path: PathBuf,
        /// The key, tensor or figure.
        what: String,
        /// What the model has.
        expected: String,
        /// What the export has.
        found: String,
    },
    /// The prompt cannot be continued.
    #[error(transparent)]
    Prompt(#[from] tritrain_model::PromptError),
    /// Signal handlers could not be set.
    #[error("cannot watch for signals: {0}")]
    Signals(std::io::Error),
}

impl Error {
    /// Exit code of a program that stops on this error: 2 usage and configuration, 3 numeric stop,
    /// 4 storage, 5 identity mismatch, 6 device failure.
    pub fn exit_code(&self) -> i32 {
        match self {
            Error::Data(error) => error.exit_code(),
            Error::Files(error) => error.exit_code(),
            Error::State { .. } | Error::Content { .. } | Error::Signals(_) => 4,
            Error::Numeric { .. } => 3,
            Error::Changed { .. } | Error::Differs { .. } => 5,
            Error::Device { .. } => 6,
            Error::Clusters { .. }
            | Error::Config(_)
            | Error::Exists { .. }
            | Error::Experts { .. }
            | Error::Import { .. }
            | Error::Adapters { .. }
            | Error::Archive { .. }
            | Error::NoModel { .. }
            | Error::Prompt(_)
            | Error::Target { .. } => 2,
        }
    }
}

/// How a skipped quantity is called in logs and messages.
pub(crate) fn skip_name(skip: Skip) -> &'static str {
    match skip {
        Skip::Loss => "the loss",
        Skip::GradientNorm => "the gradient norm",
        Skip::UpdateNorm => "the update norm",
    }
}
