//! The `tritrain` program: reads arguments, calls the library, prints, exits.

mod args;
mod backends;
mod bars;
mod bench;
mod cache;
mod calibration;
mod cluster;
mod clusters;
mod commands;
mod controller;
mod devices;
mod error;
mod experts;
mod export;
mod generate;
mod inspect;
mod map;
mod memory;
mod merge;
mod plot;
mod prepare;
mod proxy;
mod quality;
mod runs;
mod show;
mod spikes;
#[cfg(feature = "gpu")]
mod tiles;

use std::{io::IsTerminal, process::ExitCode};

use clap::Parser;

fn main() -> ExitCode {
    tritrain_files::keep_little_memory();
    let args = args::Args::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("TRITRAIN_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .init();
    match commands::run(args) {
        Ok(code) => code,
        Err(error) => {
            show::error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}
