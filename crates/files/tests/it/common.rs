//! Small checkpoints to break.

use std::path::{Path, PathBuf};

use tritrain_files::checkpoint::{Checkpoint, Identity, Part, save};
use tritrain_files::{Result, Storage};

pub(crate) const RUN: &str = "/runs/a";

pub(crate) fn run() -> &'static Path {
    Path::new(RUN)
}

pub(crate) fn dir(step: u64) -> PathBuf {
    run().join(format!("step-{step}"))
}

pub(crate) fn identity() -> Identity {
    let text = str::to_owned;
    Identity { config: text("c0ffee"), tokenizer: text("70c3"), data: text("da7a"), version: text("0.1.0") }
}

/// `len` bytes that depend on `seed` and look like noise.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..len).map(|_| next()).collect()
}

/// What a saved checkpoint holds: three files, their content a function of `seed`.
pub(crate) fn content(seed: u64, len: usize) -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("model.safetensors", noise(seed, len)),
        ("optimizer.safetensors", noise(seed + 1000, len / 3)),
        ("state.json", format!("{{\"seed\": {seed}}}").into_bytes()),
    ]
}

pub(crate) fn parts<'a>(content: &'a [(&'static str, Vec<u8>)]) -> Vec<Part<'a>> {
    content.iter().map(|(name, bytes)| Part::bytes(name, bytes)).collect()
}

/// Saves `content(seed, len)` as a healthy checkpoint of `step`.
pub(crate) fn put(storage: &dyn Storage, step: u64, seed: u64, len: usize) -> Result<PathBuf> {
    save(storage, run(), step, &parts(&content(seed, len)), &identity(), true)
}

/// Whether a checkpoint holds `content(seed, len)` and nothing else.
pub(crate) fn holds(storage: &dyn Storage, checkpoint: &Checkpoint, seed: u64, len: usize) -> bool {
    let content = content(seed, len);
    checkpoint.manifest.files.len() == content.len()
        && content.iter().all(|(name, bytes)| checkpoint.read(storage, name).unwrap()[..] == bytes[..])
}
