//! The page of what limits kernels of GPUs, which a test of that crate writes and otherwise compares.

use std::path::Path;
use std::process::{Command, ExitCode};

/// Tells the test to write.
const WRITE: &str = "TRITRAIN_WRITE_ROOFLINE";

pub(crate) fn write(root: &Path) -> ExitCode {
    let args =
        ["test", "--release", "--locked", "-p", "tritrain-gpu", "--features", "emit", "--test", "roofline"];
    let status = Command::new("cargo").args(args).env(WRITE, "1").current_dir(root).status();
    match status {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: cargo: {error}");
            ExitCode::FAILURE
        }
    }
}
