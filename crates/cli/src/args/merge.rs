//! Arguments of `merge`.

use std::path::PathBuf;

use clap::Args as ClapArgs;

#[derive(Debug, ClapArgs)]
pub(crate) struct Merge {
    /// Run folder, step folder or model.safetensors of adapters.
    pub(crate) model: PathBuf,
    /// Folder for the merged model.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: PathBuf,
    /// Text or conversations on which losses are compared, by which one of the ways to merge is chosen as well: some
    /// that nothing was trained on.
    #[arg(long, required = true, num_args = 1.., value_name = "PATH")]
    pub(crate) data: Vec<PathBuf>,
    /// Tokens of it to look at, at most; 0 looks at all.
    #[arg(long, default_value_t = 65_536)]
    pub(crate) max_tokens: u64,
    /// Threads; 0 takes every core.
    #[arg(long, default_value_t = 0)]
    pub(crate) threads: usize,
    /// Print one JSON object as the last line of standard output.
    #[arg(long)]
    pub(crate) json: bool,
}
