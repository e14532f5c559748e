//! Logits of token ids, for `interop/`:
//! `cargo run --release --example logits -- MODEL OUT.npy [floats] < ids`, a row for each id in order.
//!
//! Standard input has a JSON array of ids on each line, none longer than the context. With `floats`, activations
//! are not rounded to int8. With the model alone it prints such lines: validation text of the run.

use std::io::BufRead;
use std::path::Path;

use tritrain_backend::Cpu;
use tritrain_files::{Disk, npy};
use tritrain_train::{load, logits, text_of_run};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, rest @ ..] = &args[..] else { return Err("usage: logits MODEL [OUT.npy [floats]]".into()) };
    let loaded = load(&Disk, Path::new(model))?;
    let [out, rest @ ..] = rest else {
        let text = text_of_run(&Disk, &loaded)?.ok_or("no validation text beside the model")?;
        for window in text.chunks(loaded.config.context) {
            println!("{}", serde_json::to_string(window)?);
        }
        return Ok(());
    };
    let backend = Cpu::new(0)?;
    let model = match rest {
        [mode] if mode == "floats" => loaded.in_floats(&backend)?,
        [] => loaded.model(&backend)?,
        _ => return Err(format!("expected floats or nothing, found {rest:?}").into()),
    };
    let mut all = Vec::new();
    for line in std::io::stdin().lock().lines() {
        let ids: Vec<u32> = serde_json::from_str(&line?)?;
        all.extend(logits(&backend, &model, &ids));
    }
    Ok(npy::write(&Disk, Path::new(out), &all, loaded.vocab)?)
}
