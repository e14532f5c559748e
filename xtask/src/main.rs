//! What developers run: `cargo xtask ci|check|test|aarch64|tidy|record|roofline|interop`.

mod aarch64;
mod ci;
mod interop;
mod record;
mod roofline;
mod tidy;

use std::path::Path;
use std::process::ExitCode;

const HELP: &str = "\
usage: cargo xtask COMMAND

  ci      everything a change must pass: tidy, fmt, clippy, doc, test, aarch64
  check   the same without the last two
  test    cargo test --release --workspace
  aarch64 the kernels of aarch64, compiled and emulated where the tools are there
  tidy    the rules of ARCHITECTURE.md and CONTRIBUTING.md
  record  renew the tables of docs/speed.md from the newest files in bench/record
  roofline
          write docs/gpu-roofline.md anew (needs software Vulkan)
  interop DATA
          export models trained on DATA and compare them in llama.cpp and transformers (from PyPI, 6 GB)";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some(root) = Path::new(env!("CARGO_MANIFEST_DIR")).parent() else {
        eprintln!("xtask: {} has no parent folder", env!("CARGO_MANIFEST_DIR"));
        return ExitCode::from(2);
    };
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["ci"] => ci::all(root),
        ["check"] => ci::check(root),
        ["test"] => ci::test(root),
        ["aarch64"] => ci::aarch64(root),
        ["tidy"] => ci::tidy(root),
        ["interop", data] => interop::run(root, data),
        ["roofline"] => roofline::write(root),
        ["record"] => record::renew(root),
        ["help" | "--help" | "-h"] => {
            println!("{HELP}");
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("{HELP}");
            ExitCode::from(2)
        }
    }
}
