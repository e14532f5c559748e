//! `export` and `verify`: models for other programs.

use std::{path::Path, process::ExitCode};

use serde_json::json;
use tritrain_backend::Cpu;
use tritrain_data::Source;
use tritrain_files::{Disk, Storage, gguf::Block};
use tritrain_model::{ModelConfig, Precision};
use tritrain_train::{
    Floats, Hf, LinearClass, Loaded, Mixture, Target, Verified, export, load, text_of_run, tokens_of,
};

use crate::{
    args::{self, Comparing, ExportClass, ExportMode, ExportTo, ExportType},
    error::{Error, Result},
    prepare, show,
};

pub(crate) fn run(args: &args::Export) -> Result<ExitCode> {
    let loaded = one(&args.model)?;
    let target = target(args, &loaded.config)?;
    target.check(&loaded.config)?;
    let tokens = tokens(&loaded, &args.with)?;
    let backend = Cpu::new(args.with.threads)?;
    let verified = export(&backend, &Disk, &loaded, target, &args.out, &tokens)?;
    let (from, out) = (loaded.path.display(), args.out.display());
    let bytes = size(&args.out)?;
    show::line(&format!("{from} exported to {out}: {} bytes", show::thousands(bytes)))?;
    report(&verified)?;
    let next = match target {
        Target::Gguf(_) => {
            format!("  llama-cli -m {out} -p \"Once\" -no-cnv    # or any other program on llama.cpp")
        }
        Target::Hf(_) => format!("  AutoModelForCausalLM.from_pretrained(\"{out}\")    # transformers"),
    };
    show::note(&next);
    if args.with.json {
        show::json(&json!({ "out": args.out, "bytes": bytes, "verified": verified }))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn verify(args: &args::Verify) -> Result<ExitCode> {
    let loaded = one(&args.model)?;
    let tokens = tokens(&loaded, &args.with)?;
    let backend = Cpu::new(args.with.threads)?;
    let verified = tritrain_train::verify(&backend, &Disk, &loaded, &args.exported, &tokens)?;
    show::line(&format!("{} is {}", args.exported.display(), loaded.path.display()))?;
    report(&verified)?;
    if args.with.json {
        show::json(&verified)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A model that is no mixture.
fn one(path: &Path) -> Result<Loaded> {
    if Mixture::load(&Disk, path)?.is_some() {
        return Err(Error::Train(tritrain_train::Error::Target {
            target: "other programs",
            reason: format!("{} is a mixture of experts, which they do not have", path.display()),
            hint: "export one of its parts: its folder shared, expert-0 and so on",
        }));
    }
    Ok(load(&Disk, path)?)
}

fn target(args: &args::Export, config: &ModelConfig) -> Result<Target> {
    let usage = |option, found: String, expected| Err(Error::Usage { option, found, expected });
    let ternary = config.precision == Precision::Ternary;
    let packs = matches!(args.to, ExportTo::Hf) && ternary;
    if let (Some(class), false) = (args.linear_class, packs) {
        return usage("linear-class", format!("{class:?}"), "nothing: it is for ternary models with --to hf");
    }
    if let (Some(mode), false) = (args.mode, packs) {
        return usage("mode", format!("{mode:?}"), "nothing: it is for ternary models with --to hf");
    }
    if matches!(args.to, ExportTo::Gguf) {
        let default = if ternary { ExportType::Tq2_0 } else { ExportType::F16 };
        return Ok(Target::Gguf(match args.r#type.unwrap_or(default) {
            ExportType::Tq1_0 => Block::Tq1_0,
            ExportType::Tq2_0 => Block::Tq2_0,
            ExportType::Q2_0 => Block::Q2_0,
            ExportType::F16 => Block::F16,
            ExportType::Bf16 => Block::Bf16,
            ExportType::F32 => Block::F32,
        }));
    }
    let plain = match args.r#type {
        None if ternary => None,
        None | Some(ExportType::F32) => Some(Floats::F32),
        Some(ExportType::F16) => Some(Floats::F16),
        Some(ExportType::Bf16) => Some(Floats::Bf16),
        Some(other) => {
            return usage(
                "type",
                format!("{other:?}"),
                "f32, f16 or bf16 with --to hf; ternary models are packed",
            );
        }
    };
    Ok(Target::Hf(match (plain, args.mode, args.linear_class) {
        (Some(floats), ..) => Hf::Plain(floats),
        (None, Some(ExportMode::Online), Some(ExportClass::Bitlinear)) => {
            return usage("linear-class", "bitlinear".into(), "autobitlinear with --mode online");
        }
        (None, Some(ExportMode::Online), _) => Hf::Online,
        (None, _, Some(ExportClass::Bitlinear)) => Hf::Packed(LinearClass::BitLinear),
        (None, ..) => Hf::Packed(LinearClass::AutoBitLinear),
    }))
}

/// The text on which logits are compared.
fn tokens(loaded: &Loaded, args: &Comparing) -> Result<Vec<u32>> {
    if !args.text.is_empty() {
        return Ok(tokens_of(loaded, &Source::Paths(args.text.clone()))?);
    }
    if let Some(tokens) = text_of_run(&Disk, loaded)? {
        return Ok(tokens);
    }
    show::note("no validation text beside the model: comparing on the text inside the program (see --text)");
    Ok(tokens_of(loaded, &Source::Embedded(prepare::EMBEDDED))?)
}

fn report(of: &Verified) -> Result<()> {
    let rounded = match of.rounded {
        0 => "exactly".to_owned(),
        1 => "1 of them rounded to its format".to_owned(),
        n => format!("{n} of them rounded to their formats"),
    };
    show::line(&format!("weights: {} tensors equal, {rounded}", of.tensors))?;
    show::line(&format!(
        "on {} tokens of text: loss {:.4}, exported {:.4}; logits differ by {:.2e} at most, divergence {:.1e} nats",
        show::thousands(of.tokens as u64),
        of.loss,
        of.exported_loss,
        of.largest_difference,
        of.divergence
    ))?;
    show::line(&format!(
        "with activations in floats, as where nothing is int8: loss {:.4}",
        of.loss_in_floats
    ))
}

/// Bytes of a file, or of the files in a folder.
fn size(path: &Path) -> Result<u64> {
    if !path.is_dir() {
        return Ok(Disk.len(path)?);
    }
    let mut sum = 0;
    for file in Disk.list(path)? {
        sum += Disk.len(&file)?;
    }
    Ok(sum)
}
