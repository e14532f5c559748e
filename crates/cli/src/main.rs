//! The `tritrain` program.

fn main() {}
