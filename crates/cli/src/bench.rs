//! `tritrain bench`: measures and shows.

use std::{path::PathBuf, process::ExitCode};

use tritrain_backend::Cpu;
use tritrain_bench::{
    LayerSignal, Limits, ModelShape, OperationReport, gemm, generate, operation_names, operations, signal,
    step,
};
use tritrain_data::Source;
use tritrain_files::Disk;
use tritrain_model::{ModelConfig, Precision};
use tritrain_train::{Config, Loaded, load};

use crate::{
    args::{
        Bench, BenchGemm, BenchGenerate, BenchKind, BenchOperations, BenchShape, BenchSignal, BenchSizes,
        BenchStep,
    },
    backends, bars, controller,
    error::{Error, Result},
    quality, show, spikes,
};

pub(crate) fn run(args: &Bench) -> Result<ExitCode> {
    match &args.what {
        None => bench_operations(&args.operations),
        Some(BenchKind::Operations(args)) => bench_operations(args),
        Some(BenchKind::Gemm(args)) => bench_gemm(args),
        Some(BenchKind::Step(args)) => bench_step(args),
        Some(BenchKind::Generate(args)) => bench_generate(args),
        Some(BenchKind::Backends(args)) => backends::bench(args),
        Some(BenchKind::Dispatcher(args)) => backends::dispatcher(args),
        Some(BenchKind::Quality(args)) => quality::bench(args),
        Some(BenchKind::Spikes(args)) => spikes::bench(args),
        Some(BenchKind::Signal(args)) => bench_signal(args),
        Some(BenchKind::Controller(args)) => controller::bench(args),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn bench_signal(args: &BenchSignal) -> Result<()> {
    let loaded = load(&Disk, &args.model)?;
    let backend = Cpu::new(args.threads)?;
    let tokens = first_tokens(&loaded, &args.data, args.batch.max(1) * loaded.config.context + 1)?;
    let layers = signal(&backend, &loaded, &tokens, args.range)?;
    show::line("magnitude kept, ‖Q(x)‖/‖x‖ in percent, of weights")?;
    let latent = |layer: &LayerSignal| {
        let parts: Vec<String> =
            layer.latent.iter().map(|(name, kept)| format!("{name} {kept:.2}")).collect();
        format!("  {:8} ternary codes {:.2}, latent: {}", layer.name, layer.codes, parts.join(", "))
    };
    for layer in &layers {
        show::line(&latent(layer))?;
    }
    show::line("gradients in one digit, rounded by chance, mean of n draws: magnitude in percent, cosine")?;
    for layer in &layers {
        let part = layer.gradient.iter().step_by(2);
        let draws: Vec<String> =
            part.map(|of| format!("{}: {:.1}, {:.4}", of.draws, of.magnitude, of.cosine)).collect();
        show::line(&format!("  {:8} {}", layer.name, draws.join("; ")))?;
        let clipped = match layer.draws_to_keep {
            Some(draws) => format!("from {draws} draws"),
            None => "not with what lies beyond 2.5 standard deviations cut off".into(),
        };
        let without = layer.draws_unclipped;
        show::line(&format!("  {:8} cosine 0.99 {clipped}; from {without} draws without the cut", ""))?;
    }
    if args.json {
        show::json(&serde_json::json!({ "layers": layers }))?;
    }
    Ok(())
}

/// The first tokens of some text.
fn first_tokens(loaded: &Loaded, paths: &[PathBuf], count: usize) -> Result<Vec<u32>> {
    let mut tokens = vec![loaded.tokenizer.eos()];
    let mut documents = Source::Paths(paths.to_vec()).open()?;
    while tokens.len() < count
        && let Some(document) = documents.next().transpose()?
    {
        tokens.extend(loaded.tokenizer.encode(&document.text)?);
        tokens.push(loaded.tokenizer.eos());
    }
    if tokens.len() < count {
        let expected = "text of at least as many tokens as a batch (--batch times the context)";
        return Err(Error::Usage { option: "data", found: format!("{} tokens", tokens.len()), expected });
    }
    tokens.truncate(count);
    Ok(tokens)
}

fn model_shape(args: &BenchShape) -> ModelShape {
    let precision = if args.f32 { Precision::F32 } else { Precision::Ternary };
    sized(&args.sizes, args.layers, precision)
}

fn sized(sizes: &BenchSizes, layers: usize, precision: Precision) -> ModelShape {
    let model = ModelConfig {
        dim: sizes.dim,
        layers,
        heads: sizes.heads,
        kv_heads: sizes.heads,
        ffn: sizes.ffn,
        context: sizes.ctx,
        precision,
        ..ModelConfig::default()
    };
    ModelShape { model, vocab: sizes.vocab, batch: sizes.batch, threads: sizes.threads }
}

fn bench_operations(args: &BenchOperations) -> Result<()> {
    let sizes = &args.sizes;
    let shape = sized(sizes, 1, Precision::Ternary);
    let title = format!(
        "dim {}, ffn {}, heads {}, vocab {}, batches of {} × {} tokens",
        sizes.dim, sizes.ffn, sizes.heads, sizes.vocab, sizes.batch, sizes.ctx
    );
    shape.check()?;
    show::line(&title)?;
    show::line(&row("operation", COLUMNS.map(String::from)))?;
    let mut shown = Ok(());
    let report = operations(&shape, |operation| {
        if shown.is_ok() {
            shown = show::line(&row(operation.name, cells(operation)));
        }
    })?;
    shown?;
    let limits = format!("{} thread(s), {}: {}", report.threads, report.tier, limits(&report.limits));
    show::line(&limits)?;
    if let Some(path) = &args.plot {
        bars::draw(path, [&title, &limits], &report)?;
        show::line(&format!("plot: {}", path.display()))?;
    }
    if sizes.json { show::json(&report) } else { Ok(()) }
}

/// The limits in one line.
fn limits(of: &Limits) -> String {
    let kinds = [("int8", of.int8_gmacs), ("int16", of.int16_gmacs), ("f32", of.f32_gmacs)];
    let kinds = kinds.map(|(kind, limit)| limit.map(|limit| format!("{kind} {limit:.0} GMAC/s, ")));
    let kinds: String = kinds.into_iter().flatten().collect();
    format!("at most {kinds}{:.1} GB/s from memory", of.read_gb_per_s)
}

const COLUMNS: [&str; 7] = ["ms", "GMAC/s", "of limit", "MB", "GB/s", "of bandwidth", "over scalar"];

/// A line of the table of operations.
fn row(name: &str, cells: [String; 7]) -> String {
    let width = operation_names().map(str::len).max().unwrap_or(0);
    let [ms, gmacs, limit, mb, gb, bandwidth, scalar] = cells;
    format!("{name:width$}  {ms:>9}  {gmacs:>7}  {limit:>8}  {mb:>8}  {gb:>6}  {bandwidth:>12}  {scalar:>11}")
}

/// What an operation has in [`COLUMNS`].
fn cells(of: &OperationReport) -> [String; 7] {
    let or_dash = |cell: Option<String>| cell.unwrap_or_else(|| "-".into());
    let percent = |share: f64| format!("{:.0} %", share * 100.0);
    [
        format!("{:.3}", of.ms),
        or_dash(of.gmacs.map(|gmacs| format!("{gmacs:.1}"))),
        or_dash(of.share_of_limit.map(percent)),
        format!("{:.2}", of.bytes as f64 / 1e6),
        format!("{:.1}", of.gb_per_s),
        percent(of.share_of_bandwidth),
        or_dash(of.over_scalar.map(|over| format!("{over:.1}x"))),
    ]
}

fn bench_gemm(args: &BenchGemm) -> Result<()> {
    let report = gemm(args.m, args.n, args.k, args.threads, args.pairs)?;
    show::line(&format!(
        "{} tokens, {} outputs, {} inputs, {} thread(s), {}",
        args.m, args.n, args.k, report.threads, report.tier
    ))?;
    show::line(&format!("f32      {:8.1} GMAC/s", report.f32_gmacs))?;
    show::line(&format!("ternary  {:8.1} GMAC/s", report.ternary_gmacs))?;
    show::line(&format!(
        "ternary over f32: forward {:.2}x, dX {:.2}x, dW {:.2}x (medians of {} alternating pairs)",
        report.ternary_over_f32, report.dx_over_f32, report.dw_over_f32, args.pairs
    ))?;
    if args.json { show::json(&report) } else { Ok(()) }
}

fn bench_step(args: &BenchStep) -> Result<()> {
    let shape = model_shape(&args.shape);
    let optim = Config::resolve(None, &args.set)?.optim;
    let report = step(&shape, &optim, args.steps, args.recompute, args.profile)?;
    show::line(&format!(
        "{} parameters, batches of {} × {} tokens, {} thread(s), {}",
        show::short(report.parameters as u64),
        shape.batch,
        shape.model.context,
        report.threads,
        report.tier
    ))?;
    show::line(&format!(
        "{:.0} tokens/s, {:.1} ms a step (median of {})",
        report.tokens_per_s,
        report.step_s * 1e3,
        args.steps
    ))?;
    if let Some(mib) = report.peak_rss_mb {
        show::line(&format!("peak memory {mib:.0} MiB"))?;
    }
    for operation in &report.profile {
        show::line(&format!(
            "{:>6.1} %  {:9.2} ms  {:4} × {}",
            operation.share * 100.0,
            operation.ms,
            operation.calls,
            operation.name
        ))?;
    }
    if args.shape.sizes.json { show::json(&report) } else { Ok(()) }
}

fn bench_generate(args: &BenchGenerate) -> Result<()> {
    let shape = model_shape(&args.shape);
    let report = generate(&shape, args.tokens)?;
    show::line(&format!(
        "{} parameters, one sequence, {} thread(s), {}",
        show::short(shape.parameters() as u64),
        report.threads,
        report.tier
    ))?;
    show::line(&format!("making  {:9.1} tokens/s", report.tokens_per_s))?;
    show::line(&format!("reading {:9.1} tokens/s", report.prefill_tokens_per_s))?;
    show::line(&format!(
        "a token reads {:.1} MB of weights: {:.1} GB/s, {:.0} % of {:.1} GB/s for reading alone",
        report.bytes_per_token as f64 / 1e6,
        report.weights_gb_per_s,
        report.share_of_bandwidth * 100.0,
        report.read_gb_per_s
    ))?;
    if args.shape.sizes.json { show::json(&report) } else { Ok(()) }
}
