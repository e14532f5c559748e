//! Token ids of texts: `cargo run --release --example tokens -- tokenizer.json`, for `interop/`.
//!
//! Standard input has a JSON string on each line, standard output the ids of each as a JSON array.

use std::io::BufRead;
use std::path::Path;

use tritrain_data::Tokenizer;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: tokens tokenizer.json")?;
    let tokenizer = Tokenizer::from_file(Path::new(&path))?;
    for line in std::io::stdin().lock().lines() {
        let text: String = serde_json::from_str(&line?)?;
        println!("{}", serde_json::to_string(&tokenizer.encode(&text)?)?);
    }
    Ok(())
}
