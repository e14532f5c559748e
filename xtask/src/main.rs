//! What developers run: `cargo xtask ci|test|tidy`.

fn main() {}
