//! What ends the program early.

use std::path::PathBuf;

use tritrain_bench::BenchError;

/// Any error of a command.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Train(#[from] tritrain_train::Error),
    #[error(transparent)]
    Cpu(#[from] tritrain_backend::CpuError),
    #[error(transparent)]
    Bench(#[from] BenchError),
    #[error("{}: {source}", path.display())]
    Cluster { path: PathBuf, source: tritrain_cluster::Error },
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{0} cases of the self-test are wrong: these kernels cannot be trusted on this machine")]
    SelfTest(u64),
    #[error("cannot write to standard output: {0}")]
    Output(std::io::Error),
    #[error("cannot make a temporary folder: {0}")]
    Temporary(std::io::Error),
    #[error("cannot draw {}: {reason}", path.display())]
    Plot { path: PathBuf, reason: String },
    #[error("--device {name}: {why}, or take --device cpu")]
    Device { name: &'static str, why: String },
    #[error("--{option} {found}: expected {expected}")]
    Usage { option: &'static str, found: String, expected: &'static str },
    #[error("{} is nothing that tritrain writes: {found}", path.display())]
    Unknown { path: PathBuf, found: String },
}

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Error::Train(error) => u8::try_from(error.exit_code()).unwrap_or(1),
            Error::Bench(BenchError::Dispatch(tritrain_dispatch::Error::Engine { .. })) => 6,
            Error::Bench(BenchError::Step { .. }) | Error::SelfTest(_) => 3,
            Error::Cpu(_)
            | Error::Bench(_)
            | Error::Cluster { .. }
            | Error::Device { .. }
            | Error::Usage { .. }
            | Error::Unknown { .. }
            | Error::Read { .. } => 2,
            Error::Output(_) | Error::Temporary(_) | Error::Plot { .. } => 4,
        }
    }
}

impl From<tritrain_data::Error> for Error {
    fn from(error: tritrain_data::Error) -> Self {
        Error::Train(error.into())
    }
}

impl From<tritrain_files::Error> for Error {
    fn from(error: tritrain_files::Error) -> Self {
        Error::Train(error.into())
    }
}

impl From<tritrain_train::ConfigError> for Error {
    fn from(error: tritrain_train::ConfigError) -> Self {
        Error::Train(error.into())
    }
}
