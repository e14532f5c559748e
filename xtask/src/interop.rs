//! Exported models in the programs that they are exported for: builds ours, installs theirs, trains three models, and
//! calls `interop/run.py`. Whatever is there already is not made again.

use std::path::Path;
use std::process::{Command, ExitCode};

/// Where the Python packages go instead of `target/interop/venv`.
const VENV: &str = "TRITRAIN_INTEROP_VENV";

pub(crate) fn run(root: &Path, data: &str) -> ExitCode {
    match steps(root, data) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

fn steps(root: &Path, data: &str) -> Result<(), String> {
    let work = root.join("target/interop");
    let venv = std::env::var_os(VENV).map_or_else(|| work.join("venv"), Into::into);
    let python = venv.join("bin/python");
    let call = |program: &Path, args: &[&str]| {
        let status = Command::new(program).args(args).current_dir(root).status();
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("{} {}: {status}", program.display(), args.join(" "))),
            Err(error) => Err(format!("{}: {error}", program.display())),
        }
    };
    let packages = ["-p", "tritrain-cli", "-p", "tritrain-train", "-p", "tritrain-data"];
    let targets = ["--bin", "tritrain", "--example", "logits", "--example", "tokens"];
    call(Path::new("cargo"), &[&["build", "--release"], &packages[..], &targets].concat())?;
    if !python.exists() {
        call(Path::new("python3"), &["-m", "venv", &text(&venv)])?;
    }
    let install = ["-m", "pip", "install", "-q", "--only-binary", ":all:", "-r", "interop/requirements.txt"];
    call(&python, &install)?;
    let exports = text(&work.join("exports"));
    let mut compare = vec!["interop/run.py".to_owned(), "--work".to_owned(), exports];
    for (name, sub_norm, bias) in [("bitnet", true, false), ("llama", false, false), ("qwen2", false, true)] {
        let run = text(&work.join(name));
        if !work.join(name).join("best").exists() {
            let [sub_norm, bias] = [format!("model.sub_norm={sub_norm}"), format!("model.qkv_bias={bias}")];
            let options = ["--set", "run.tokens=1000000", "--set", &sub_norm, "--set", &bias];
            let run = ["train", "--data", data, "--out", &run];
            call(&root.join("target/release/tritrain"), &[&run[..], &options].concat())?;
        }
        compare.extend([format!("--{name}"), run]);
    }
    call(&python, &compare.iter().map(String::as_str).collect::<Vec<_>>())
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}
