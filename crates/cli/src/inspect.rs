//! `inspect`: what a file or folder of a run holds.

use std::{fs, path::Path, process::ExitCode};

use serde_json::{Value, json};
use tritrain_backend::Cpu;
use tritrain_data::Tokenizer;
use tritrain_files::{
    Disk, Storage,
    checkpoint::{self, Checkpoint},
    gguf::GgufFile,
    tensors::TensorFile,
    tokens::{Split, TokenCorpus},
};
use tritrain_model::{ModelConfig, Precision};
use tritrain_train::{Loaded, load};

use crate::{
    args,
    error::{Error, Result},
    show,
};

/// Lines for people and the same as JSON.
struct Report {
    lines: Vec<String>,
    json: Value,
}

pub(crate) fn run(args: &args::Inspect) -> Result<ExitCode> {
    let report = report(&args.path)?;
    for line in &report.lines {
        show::line(line)?;
    }
    if args.json {
        show::json(&report.json)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn report(path: &Path) -> Result<Report> {
    let unknown = |found: String| Error::Unknown { path: path.to_path_buf(), found };
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    if !Disk.exists(path)? {
        return Err(unknown("nothing is there".into()));
    }
    if path.is_dir() {
        return folder(path);
    }
    match name {
        "manifest.json" | "state.json" | "documents.bin" | "names.bin" | "source.json" => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            folder(parent.unwrap_or(Path::new(".")))
        }
        "tokenizer.json" => tokenizer(path),
        "config.toml" | "best" => text(path),
        _ if name.ends_with(".safetensors") => tensors(path),
        _ if name.ends_with(".gguf") => gguf(path),
        _ if name.ends_with(".jsonl") => log(path),
        _ if name.ends_with(".tok") => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            corpus(parent.unwrap_or(Path::new(".")))
        }
        _ => Err(unknown("a file of an unknown kind".into())),
    }
}

fn folder(path: &Path) -> Result<Report> {
    let has = |name: &str| Disk.exists(&path.join(name));
    if has("documents.bin")? {
        return corpus(path);
    }
    if has("model.safetensors")? {
        let mut report = tensors(&path.join("model.safetensors"))?;
        if has("manifest.json")? {
            let checkpoint = checkpoint::open(&Disk, path)?;
            report.lines.insert(0, verified(&checkpoint));
        }
        return Ok(report);
    }
    if has("config.toml")? {
        let mut report = match checkpoint::newest(&Disk, path)? {
            Some(newest) => {
                let mut report = tensors(&newest.dir.join("model.safetensors"))?;
                report.lines.insert(0, verified(&newest));
                report
            }
            None => Report { lines: vec!["no checkpoint yet".into()], json: json!({}) },
        };
        report.lines.insert(0, format!("run {}", path.display()));
        return Ok(report);
    }
    Err(Error::Unknown {
        path: path.to_path_buf(),
        found: "a folder without a run, checkpoint or corpus".into(),
    })
}

fn verified(checkpoint: &Checkpoint) -> String {
    let bytes: u64 = checkpoint.manifest.files.iter().map(|file| file.bytes).sum();
    let (files, healthy) = (checkpoint.manifest.files.len(), checkpoint.manifest.healthy);
    let numbers = if healthy { "all numbers finite" } else { "NOT all numbers finite" };
    format!(
        "checkpoint of step {}: {files} files, {} bytes, every checksum holds, {numbers}",
        checkpoint.step,
        show::thousands(bytes)
    )
}

fn tensors(path: &Path) -> Result<Report> {
    let file = TensorFile::parse(path, Disk.map(path)?)?;
    let config: Option<ModelConfig> =
        file.metadata().get("tritrain.model").and_then(|text| serde_json::from_str(text).ok());
    let ternary = match config {
        Some(config) if config.precision == Precision::Ternary => {
            let loaded = load(&Disk, path)?;
            codes_of(&loaded)?
        }
        _ => Vec::new(),
    };
    let mut names: Vec<String> = file.names().map(str::to_owned).collect();
    names.sort();
    let width = names.iter().map(String::len).max().unwrap_or(0);
    let mut lines = vec![format!("{}: {} tensors", path.display(), names.len())];
    lines.push(format!(
        "  {:width$}  {:>14}  {:>5}  {:>10}  {:>9}  {:>7}  {:>21}",
        "tensor", "shape", "type", "bits/weight", "scale", "zeros", "codes -1 / 0 / +1"
    ));
    let (mut json_tensors, mut ternary_weights, mut entropy_bits) = (Vec::new(), 0u64, 0.0);
    for name in &names {
        let tensor = file.get(name)?;
        let count: usize = tensor.shape.iter().product();
        let shape = tensor.shape.iter().map(ToString::to_string).collect::<Vec<_>>().join("×");
        let dtype = format!("{:?}", tensor.dtype).to_lowercase();
        let codes = ternary.iter().find(|(matrix, ..)| matrix == name);
        // Of latent weights in few bits the file holds rows of bytes.
        let weights = codes.map_or(count, |(_, codes, _)| codes.len());
        let stored = if weights == 0 { 0.0 } else { tensor.data.len() as f64 * 8.0 / weights as f64 };
        let mut line = format!("  {name:width$}  {shape:>14}  {dtype:>5}  {stored:>10.2}");
        let mut entry =
            json!({ "name": name, "shape": tensor.shape, "dtype": dtype, "bits_per_weight": stored });
        if let Some((_, codes, scale)) = codes {
            let mut histogram = [0u64; 3];
            codes.iter().for_each(|code| histogram[(code + 1) as usize] += 1);
            let share = histogram.map(|n| n as f64 / codes.len().max(1) as f64);
            let entropy: f64 = share.iter().filter(|p| **p > 0.0).map(|p| -p * p.log2()).sum();
            ternary_weights += codes.len() as u64;
            entropy_bits += entropy * codes.len() as f64;
            let percent = share.map(|p| 100.0 * p);
            line += &format!(
                "  {scale:>9.6}  {:>6.1}%  {:>5.1} / {:>4.1} / {:>4.1} %",
                percent[1], percent[0], percent[1], percent[2]
            );
            entry["scale"] = json!(scale);
            entry["histogram"] = json!(histogram);
            entry["zero_fraction"] = json!(share[1]);
            entry["entropy_bits"] = json!(entropy);
        }
        lines.push(line);
        json_tensors.push(entry);
    }
    if ternary_weights > 0 {
        let mean = entropy_bits / ternary_weights as f64;
        lines.push(format!(
            "ternary codes of {} weights: entropy {mean:.3} bits per weight; the file holds the latent weights they come from",
            show::thousands(ternary_weights)
        ));
    }
    Ok(Report { lines, json: json!({ "tensors": json_tensors, "metadata": file.metadata() }) })
}

fn corpus(path: &Path) -> Result<Report> {
    let corpus = TokenCorpus::open(&Disk, path)?;
    corpus.verify(&Disk)?;
    let manifest = corpus.manifest();
    let mut lines = vec![format!(
        "corpus {}: vocabulary {}, {} domains, every checksum holds",
        path.display(),
        manifest.vocab,
        manifest.domains.len()
    )];
    let mut splits = serde_json::Map::new();
    for split in Split::ALL {
        let totals = manifest.totals(split);
        lines.push(format!(
            "  {}: {} documents, {} tokens, {} bytes of text",
            split.name(),
            show::thousands(totals.documents),
            show::thousands(totals.tokens),
            show::thousands(totals.bytes)
        ));
        splits.insert(split.name().to_owned(), json!(totals));
    }
    lines.push(format!("  domains: {}", manifest.domains.join(", ")));
    Ok(Report {
        lines,
        json: json!({ "vocab": manifest.vocab, "domains": manifest.domains, "splits": splits }),
    })
}

fn tokenizer(path: &Path) -> Result<Report> {
    let tokenizer = Tokenizer::from_file(path)?;
    let line = format!(
        "tokenizer {}: byte-level BPE, {} tokens, end of text is token {}, hash {}",
        path.display(),
        tokenizer.vocab_size(),
        tokenizer.eos(),
        tokenizer.hash()
    );
    let json = json!({ "vocab": tokenizer.vocab_size(), "eos": tokenizer.eos(), "hash": tokenizer.hash() });
    Ok(Report { lines: vec![line], json })
}

fn text(path: &Path) -> Result<Report> {
    let read = fs::read_to_string(path);
    let text = read.map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
    Ok(Report { lines: text.trim_end().lines().map(str::to_owned).collect(), json: json!({ "text": text }) })
}

fn gguf(path: &Path) -> Result<Report> {
    let file = GgufFile::open(&Disk, path)?;
    let names: Vec<&str> = file.names().collect();
    let width = names.iter().map(|name| name.len()).max().unwrap_or(0);
    let mut lines = vec![format!("{}: {} tensors", path.display(), names.len())];
    lines.push(format!("  {:width$}  {:>14}  {:>5}  {:>11}", "tensor", "shape", "type", "bits/weight"));
    let mut entries = Vec::new();
    for name in names {
        let tensor = file.tensor(name)?;
        let shape = tensor.shape.iter().map(ToString::to_string).collect::<Vec<_>>().join("×");
        let (dtype, bits) =
            (tensor.block.name(), tensor.data.len() as f64 * 8.0 / tensor.len().max(1) as f64);
        lines.push(format!("  {name:width$}  {shape:>14}  {dtype:>5}  {bits:>11.2}"));
        entries.push(json!({ "name": name, "shape": tensor.shape, "dtype": dtype, "bits_per_weight": bits }));
    }
    let mut metadata = serde_json::Map::new();
    for (key, value) in file.metadata() {
        let text = value.to_string();
        lines.push(format!("  {key} = {}", text.lines().next().unwrap_or_default()));
        metadata.insert(key.to_owned(), text.into());
    }
    Ok(Report { lines, json: json!({ "tensors": entries, "metadata": metadata }) })
}

fn log(path: &Path) -> Result<Report> {
    let read = fs::read_to_string(path);
    let text = read.map_err(|source| Error::Read { path: path.to_path_buf(), source })?;
    let records: Vec<Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let last_with = |key: &str| records.iter().rev().find(|record| record.get(key).is_some());
    let mut lines = vec![format!("log {}: {} records", path.display(), records.len())];
    for key in ["loss", "validation_loss", "tokens_per_s"] {
        if let Some(record) = last_with(key) {
            lines.push(format!("  last {key}: {} at step {}", record[key], record["step"]));
        }
    }
    let json = json!({ "records": records.len(), "last_step": last_with("loss"), "last_evaluation": last_with("validation_loss") });
    Ok(Report { lines, json })
}

/// Weights of a loaded model as they compute: codes and scale of each ternary matrix.
fn codes_of(loaded: &Loaded) -> Result<Vec<(String, Vec<i8>, f32)>> {
    let backend = Cpu::new(0)?;
    let model = loaded.model(&backend)?;
    let codes = model.layout().specs.iter().enumerate().filter_map(|(id, spec)| {
        model.codes(&backend, id).map(|(codes, scale)| (spec.name.clone(), codes, scale))
    });
    Ok(codes.collect())
}
