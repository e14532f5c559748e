//! What `export` and `verify` are told.

use std::path::PathBuf;

use clap::{Args as ClapArgs, ValueEnum};

#[derive(Debug, ClapArgs)]
pub(crate) struct Export {
    /// Run folder, step folder or model.safetensors.
    pub(crate) model: PathBuf,
    /// The kind of output.
    #[arg(long, value_enum)]
    pub(crate) to: ExportTo,
    /// How numbers are stored; without it, tq2_0 for ternary models in GGUF, f16 for others there, f32 in hf.
    #[arg(long, value_enum)]
    pub(crate) r#type: Option<ExportType>,
    /// With --to hf, the layers that multiply packed matrices; autobitlinear without it.
    #[arg(long, value_enum)]
    pub(crate) linear_class: Option<ExportClass>,
    /// With --to hf, packed codes or master weights; offline without it.
    #[arg(long, value_enum)]
    pub(crate) mode: Option<ExportMode>,
    /// The file or folder to be made; nothing may lie there.
    #[arg(long, value_name = "PATH")]
    pub(crate) out: PathBuf,
    #[command(flatten)]
    pub(crate) with: Comparing,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct Verify {
    /// Run folder, step folder or model.safetensors.
    pub(crate) model: PathBuf,
    /// What was exported of it.
    pub(crate) exported: PathBuf,
    #[command(flatten)]
    pub(crate) with: Comparing,
}

/// What `export` and `verify` share.
#[derive(Debug, ClapArgs)]
pub(crate) struct Comparing {
    /// Files or folders of text on which logits are compared; without it, validation text of the run.
    #[arg(long, num_args = 1.., value_name = "PATH")]
    pub(crate) text: Vec<PathBuf>,
    /// Threads; 0 takes every core.
    #[arg(long, default_value_t = 0)]
    pub(crate) threads: usize,
    /// Print one JSON object as the last line of standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum ExportTo {
    /// One file for llama.cpp and what is built on it.
    Gguf,
    /// A folder for transformers.
    Hf,
}

#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub(crate) enum ExportType {
    /// Ternary, 1.69 bits a weight.
    #[value(name = "tq1_0")]
    Tq1_0,
    /// Ternary, 2.06 bits a weight.
    #[value(name = "tq2_0")]
    Tq2_0,
    /// Ternary, 2.25 bits a weight; also on GPUs, and slow on x86.
    #[value(name = "q2_0")]
    Q2_0,
    /// fp16.
    F16,
    /// bfloat16, for f32 models.
    Bf16,
    /// Without loss.
    F32,
}

#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub(crate) enum ExportClass {
    /// Unpacks matrices when it loads.
    Autobitlinear,
    /// Keeps matrices packed.
    Bitlinear,
}

#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
pub(crate) enum ExportMode {
    /// Packed codes.
    Offline,
    /// Master weights, quantised whenever they are used; they can be trained on.
    Online,
}
