//! Prepares a corpus and says how fast: `cargo run --release --example prepare -- DIR PATH...`
//!
//! Environment: VOCAB, TOKENIZER (a tokenizer.json), RAYON_NUM_THREADS. Run it under
//! `/usr/bin/time -v` for the peak of memory.

use std::path::Path;
use std::time::Instant;

use tritrain_data::{DataConfig, Preparation, Source, Split};
use tritrain_files::Disk;

fn main() -> Result<(), tritrain_data::Error> {
    let mut args = std::env::args().skip(1);
    let dir = args.next().unwrap_or_else(|| "run".into());
    let default = DataConfig::default();
    let config = DataConfig {
        paths: args.collect(),
        vocab: std::env::var("VOCAB").ok().and_then(|vocab| vocab.parse().ok()).unwrap_or(default.vocab),
        tokenizer: std::env::var("TOKENIZER").unwrap_or_default(),
        ..default
    };
    let source = Source::new(&config, &[]);
    let mut work = Preparation::start(&Disk, &source, (&config, 256), Path::new(&dir))?;
    println!("{:?}", work.skipped());
    let (mut since, mut last) = (Instant::now(), work.progress());
    while let Some(before) = last {
        last = work.advance()?;
        if last.is_none_or(|now| now.stage != before.stage) {
            let seconds = since.elapsed().as_secs_f64();
            let megabytes = before.total as f64 / 1e6;
            println!(
                "{:?}: {megabytes:.1} MB, {seconds:.2} s, {:.1} MB/s",
                before.stage,
                megabytes / seconds
            );
            since = Instant::now();
        }
    }
    let corpus = work.finish()?;
    for split in Split::ALL {
        println!("{}: {:?}", split.name(), corpus.tokens().manifest().totals(split));
    }
    println!("vocabulary {}, hash {}", corpus.tokenizer().vocab_size(), corpus.hash());
    Ok(())
}
