//! Which files are text, by their names.

/// How a file holds its documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The file is one document (or, above 8 MiB, many).
    Text,
    /// One JSON object a line.
    Jsonl,
}

/// How a file is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// Endings of plain text and of source code. `.json` and `.csv` are absent on purpose: they are rarely
/// text, and what part of them is a document, their names do not say.
const TEXT: &[&str] = &[
    // Prose and markup.
    "txt", "text", "md", "markdown", "rst", "adoc", "org", "tex", "html", "htm", "xhtml", "xml", "srt",
    // Source code.
    "rs", "py", "pyi", "c", "h", "cc", "cpp", "cxx", "hh", "hpp", "hxx", "cu", "cuh", "m", "mm", "java", "kt",
    "kts", "scala", "groovy", "js", "mjs", "cjs", "jsx", "ts", "mts", "tsx", "vue", "svelte", "go", "rb",
    "php", "pl", "pm", "lua", "sh", "bash", "zsh", "fish", "ps1", "bat", "sql", "swift", "cs", "fs", "fsx",
    "vb", "ml", "mli", "hs", "elm", "ex", "exs", "erl", "hrl", "clj", "cljs", "lisp", "el", "scm", "rkt",
    "jl", "r", "f", "f90", "f95", "pas", "ada", "adb", "ads", "asm", "s", "zig", "nim", "d", "dart", "v",
    "sv", "vhd", "vhdl", "glsl", "hlsl", "wgsl", "cl", "proto", "graphql", "css", "scss", "less", "toml",
    "yaml", "yml", "ini", "cfg", "conf", "cmake", "mk", "nix", "tf", "awk", "sed", "vim", "diff", "patch",
];

/// Kind and packing by file name, and the name without these endings. `None` for an unknown kind.
pub(crate) fn kind_of(name: &str) -> Option<(Kind, Packing, &str)> {
    let (rest, packing) = match name.rsplit_once('.') {
        Some((rest, end)) if end.eq_ignore_ascii_case("gz") => (rest, Packing::Gzip),
        Some((rest, end)) if end.eq_ignore_ascii_case("zst") => (rest, Packing::Zstd),
        _ => (name, Packing::Plain),
    };
    let (stem, end) = rest.rsplit_once('.').filter(|(stem, _)| !stem.is_empty())?;
    let end = end.to_ascii_lowercase();
    if end == "jsonl" || end == "ndjson" {
        return Some((Kind::Jsonl, packing, stem));
    }
    TEXT.contains(&end.as_str()).then_some((Kind::Text, packing, stem))
}
