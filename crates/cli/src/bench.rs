//! `tritrain bench`: measures and shows.

use std::process::ExitCode;

use tritrain_bench::{ModelShape, gemm, generate, step};
use tritrain_model::{ModelConfig, Precision};

use crate::{
    args::{Bench, BenchGemm, BenchGenerate, BenchKind, BenchShape, BenchStep},
    error::Result,
    show,
};

pub(crate) fn run(args: &Bench) -> Result<ExitCode> {
    match &args.what {
        BenchKind::Gemm(args) => bench_gemm(args),
        BenchKind::Step(args) => bench_step(args),
        BenchKind::Generate(args) => bench_generate(args),
    }?;
    Ok(ExitCode::SUCCESS)
}

fn model_shape(args: &BenchShape) -> ModelShape {
    let model = ModelConfig {
        dim: args.dim,
        layers: args.layers,
        heads: args.heads,
        kv_heads: args.heads,
        ffn: args.ffn,
        context: args.ctx,
        precision: if args.f32 { Precision::F32 } else { Precision::Ternary },
        ..ModelConfig::default()
    };
    ModelShape { model, vocab: args.vocab, batch: args.batch, threads: args.threads }
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
    let report = step(&shape, args.steps, args.recompute, args.profile)?;
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
    if args.shape.json { show::json(&report) } else { Ok(()) }
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
        "a token reads {:.1} MB of weights: {:.1} GB/s",
        report.bytes_per_token as f64 / 1e6,
        report.weights_gb_per_s
    ))?;
    if args.shape.json { show::json(&report) } else { Ok(()) }
}
