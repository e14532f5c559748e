//! `merge`: a model and its adapters as one model.

use std::process::ExitCode;

use tritrain_backend::{Backend, Cpu};
use tritrain_data::Source;
use tritrain_files::Disk;
use tritrain_train::{Evaluation, Way, load, merge};

use crate::{args, error::Result, show};

pub(crate) fn run(args: &args::Merge) -> Result<ExitCode> {
    let loaded = load(&Disk, &args.model)?;
    let source = Source::Paths(args.data.clone());
    let backend = Cpu::new(args.threads)?;
    let text = (&source, args.max_tokens);
    let merged = backend.run(|| merge(&backend, &Disk, &loaded, text, &args.out))?;
    let row = |name: &str, of: &Evaluation| show::line(&format!("  {name:<32}{}", show::evaluation(of)));
    row("without adapters", &merged.base)?;
    row("with adapters", &merged.adapted)?;
    for (way, evaluation) in &merged.merged {
        row(name(*way), evaluation)?;
    }
    let kept = merged.merged.iter().find(|(way, _)| *way == merged.way).map_or(f64::NAN, |(_, of)| of.loss);
    show::line(&format!(
        "{}: {}; {:.2} % of the codes changed, {:+.4} nats per token beside adapters",
        merged.path.display(),
        name(merged.way),
        100.0 * merged.changed,
        kept - merged.adapted.loss
    ))?;
    if args.json {
        show::json(&merged)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn name(way: Way) -> &'static str {
    match way {
        Way::Latent => "merged into latent weights",
        Way::Nearest => "merged to the nearest codes",
    }
}
