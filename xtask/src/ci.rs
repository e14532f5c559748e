//! The steps a change must pass, run in order; the first failure ends the run with its exit code.

use crate::{aarch64, tidy};
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Instant;

/// One cargo call: its name, arguments and environment.
pub(crate) struct Step {
    pub(crate) name: &'static str,
    pub(crate) args: &'static [&'static str],
    pub(crate) env: &'static [(&'static str, &'static str)],
}

const CHECKS: [Step; 3] = [
    Step { name: "fmt", args: &["fmt", "--all", "--check"], env: &[] },
    Step {
        name: "clippy",
        args: &[
            "clippy",
            "--workspace",
            "--all-targets",
            "--release",
            "--locked",
            "--quiet",
            "--",
            "-D",
            "warnings",
        ],
        env: &[],
    },
    Step {
        name: "doc",
        // In release as well: it shares the dependencies that clippy has checked.
        args: &["doc", "--workspace", "--no-deps", "--release", "--locked", "--quiet"],
        env: &[("RUSTDOCFLAGS", "-D warnings")],
    },
];

const TEST: Step = Step { name: "test", args: &["test", "--release", "--workspace", "--locked"], env: &[] };

/// tidy, fmt, clippy, doc, test, aarch64.
pub(crate) fn all(root: &Path) -> ExitCode {
    finish(run_checks(root).and_then(|()| run(root, &TEST)).and_then(|()| aarch64::check(root)))
}

/// Everything but tests.
pub(crate) fn check(root: &Path) -> ExitCode {
    finish(run_checks(root))
}

/// The tests alone.
pub(crate) fn test(root: &Path) -> ExitCode {
    finish(run(root, &TEST))
}

/// The kernels of aarch64, as far as this machine can.
pub(crate) fn aarch64(root: &Path) -> ExitCode {
    finish(aarch64::check(root))
}

/// The rules of `tidy` alone.
pub(crate) fn tidy(root: &Path) -> ExitCode {
    finish(run_tidy(root))
}

fn finish(result: Result<(), u8>) -> ExitCode {
    result.map_or_else(ExitCode::from, |()| ExitCode::SUCCESS)
}

fn run_checks(root: &Path) -> Result<(), u8> {
    run_tidy(root)?;
    CHECKS.iter().try_for_each(|step| run(root, step))
}

fn run_tidy(root: &Path) -> Result<(), u8> {
    let start = Instant::now();
    let problems = tidy::check(root);
    for problem in &problems {
        eprintln!("{problem}");
    }
    let ok = problems.is_empty();
    announce("tidy", start, ok);
    if ok { Ok(()) } else { Err(1) }
}

pub(crate) fn run(root: &Path, step: &Step) -> Result<(), u8> {
    let start = Instant::now();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let status = Command::new(cargo)
        .args(step.args)
        .envs(step.env.iter().copied())
        // Set by the outer `cargo run`; it would tie the inner crates to xtask's own folder.
        .env_remove("CARGO_MANIFEST_DIR")
        .current_dir(root)
        .status();
    let code = match status {
        Ok(status) if status.success() => 0,
        // Killed by a signal: no code of its own.
        Ok(status) => status.code().and_then(|c| u8::try_from(c).ok()).unwrap_or(1).max(1),
        Err(error) => {
            eprintln!("xtask: cannot start cargo: {error}");
            1
        }
    };
    announce(step.name, start, code == 0);
    if code == 0 { Ok(()) } else { Err(code) }
}

fn announce(name: &str, start: Instant, ok: bool) {
    let verdict = if ok { "ok" } else { "FAILED" };
    eprintln!("xtask: {name} {verdict} ({:.1} s)", start.elapsed().as_secs_f64());
}
