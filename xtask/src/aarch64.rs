//! The kernels of aarch64 on a machine that is none: compiled, and run in an emulator, as far as the tools
//! are there. What is left out is said.

use crate::ci::{Step, run};
use std::path::Path;
use std::process::Command;

const TARGET: &str = "aarch64-unknown-linux-gnu";
const LINKER: &str = "aarch64-linux-gnu-gcc";
const EMULATOR: &str = "qemu-aarch64";

const LINT: Step = Step {
    name: "aarch64 clippy",
    args: &[
        "clippy",
        "--package",
        "tritrain-kernels",
        "--all-targets",
        "--release",
        "--locked",
        "--quiet",
        "--target",
        TARGET,
        "--",
        "-D",
        "warnings",
    ],
    env: &[],
};

/// A library needs no linker, and clippy does not assemble.
const BUILD: Step = Step {
    name: "aarch64 build",
    args: &["build", "--package", "tritrain-kernels", "--release", "--locked", "--quiet", "--target", TARGET],
    env: &[],
};

const TEST: Step = Step {
    name: "aarch64 test",
    args: &["test", "--package", "tritrain-kernels", "--release", "--locked", "--target", TARGET],
    env: &[
        ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", LINKER),
        // Every feature that the emulator knows, and the C library of Debian's cross compiler.
        ("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER", "qemu-aarch64 -cpu max -L /usr/aarch64-linux-gnu"),
    ],
};

/// What there is to run, and what is left out and why.
fn steps(native: bool, target: bool, tools: bool) -> (&'static [Step], Option<String>) {
    if native {
        (&[], Some("aarch64 skipped: `cargo xtask test` covers this machine".to_owned()))
    } else if !target {
        let how = format!("rustc has no {TARGET}; `rustup target add {TARGET}` installs it");
        (&[], Some(format!("aarch64 skipped: {how}")))
    } else if !tools {
        let what = format!("no {LINKER} or no {EMULATOR} (Debian: gcc-aarch64-linux-gnu, qemu-user)");
        (&[LINT, BUILD], Some(format!("aarch64 test skipped: {what}")))
    } else {
        (&[LINT, TEST], None)
    }
}

pub(crate) fn check(root: &Path) -> Result<(), u8> {
    let tools = [LINKER, EMULATOR].into_iter().all(starts);
    let (steps, left_out) = steps(cfg!(target_arch = "aarch64"), has_target(), tools);
    steps.iter().try_for_each(|step| run(root, step))?;
    if let Some(left_out) = left_out {
        eprintln!("xtask: {left_out}");
    }
    Ok(())
}

/// Whether a program is there.
fn starts(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Whether rustc has the core library of the target.
fn has_target() -> bool {
    let output = Command::new("rustc").args(["--print", "target-libdir", "--target", TARGET]).output();
    let folder = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    let core = |entry: std::io::Result<std::fs::DirEntry>| {
        entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("libcore-"))
    };
    folder.and_then(std::fs::read_dir).is_ok_and(|mut entries| entries.any(core))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_said() {
        let names = |native, target, tools| {
            let (steps, left_out) = steps(native, target, tools);
            (steps.iter().map(|step| step.name).collect::<Vec<_>>(), left_out.unwrap_or_default())
        };
        assert_eq!(names(false, true, true), (vec!["aarch64 clippy", "aarch64 test"], String::new()));
        let (compiled, why) = names(false, true, false);
        assert_eq!(compiled, ["aarch64 clippy", "aarch64 build"]);
        assert!(why.contains("test skipped") && why.contains(EMULATOR), "{why}");
        for (native, reason) in [(false, "rustup target add"), (true, "this machine")] {
            let (none, why) = names(native, false, true);
            assert!(none.is_empty() && why.contains("skipped") && why.contains(reason), "{why}");
        }
    }
}
