//! `tritrain memory`: what a run will take. `train` says at its end what it took.

use std::process::ExitCode;

use tritrain_backend::{Cpu, Tier};
use tritrain_data::Tokenizer;
use tritrain_files::Disk;
use tritrain_train::{Class, Config, Ledger, options};

use crate::{args, error::Result, prepare, show};

pub(crate) fn run(args: &args::Memory) -> Result<ExitCode> {
    let config = prepare::configured(args.config.as_deref(), &args.set)?;
    let backend = Cpu::new(config.run.threads)?;
    let vocab = match &config.data.tokenizer[..] {
        "" => config.data.vocab as usize,
        path => Tokenizer::from_file(path.as_ref())?.vocab_size() as usize,
    };
    let ledger = ledger(&config, vocab, (backend.tier(), backend.threads()))?;
    for line in table(&ledger) {
        show::line(&line)?;
    }
    if args.json {
        show::json(&ledger)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The ledger of a run with some instructions on some threads.
pub(crate) fn ledger(config: &Config, vocab: usize, processor: (Tier, usize)) -> Result<Ledger> {
    let teacher = match config.run.has_teacher() {
        true => Some(options(&Disk, config.run.from.as_ref())?),
        false => None,
    };
    Ok(Ledger::new(config, vocab, processor, teacher.as_ref()))
}

/// Bytes in MiB.
pub(crate) fn mib(bytes: usize) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

fn table(ledger: &Ledger) -> Vec<String> {
    let width = ledger.classes.iter().map(|class| class.name.len()).max().unwrap_or(0);
    let row = |name: &str, bytes: usize, bits: Option<f64>| {
        let bits = bits.map_or(String::new(), |bits| format!("{bits:.2}"));
        format!("{name:width$}  {:>9}  {bits:>14}", mib(bytes)).trim_end().to_owned()
    };
    let mut lines = vec![
        format!(
            "{} parameters in matrices, {} in embedding, head and gains",
            show::short(ledger.matrix_parameters as u64),
            show::short(ledger.other_parameters as u64)
        ),
        format!("{:width$}  {:>9}  {:>14}", "", "MiB", "bits/parameter"),
    ];
    let class = |class: &Class| row(class.name, class.bytes, class.bits_per_parameter);
    lines.extend(ledger.classes.iter().map(class));
    lines.push(row("all", ledger.bytes, None));
    lines.push(format!(
        "weights, codes, kept gradients and optimizer state of matrices: {:.2} bits per parameter",
        ledger.ternary_bits_per_parameter
    ));
    lines
}
