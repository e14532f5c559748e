//! The speed table of README.md, from the newest file in bench/record.

use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;

use serde_json::Value;

const START: &str = "<!-- record -->";
const END: &str = "<!-- /record -->";

/// Renews the table in README.md.
pub(crate) fn renew(root: &Path) -> ExitCode {
    let readme = root.join("README.md");
    let renewed = newest(root).and_then(|record| {
        let page = std::fs::read_to_string(&readme).map_err(|error| error.to_string())?;
        let page = with_table(&page, &table(&record)).ok_or(format!("README.md lacks {START} … {END}"))?;
        std::fs::write(&readme, page).map_err(|error| error.to_string())
    });
    match renewed {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether README.md shows what the newest record says; `true` where there is neither.
pub(crate) fn is_current(root: &Path) -> bool {
    let Ok(page) = std::fs::read_to_string(root.join("README.md")) else { return false };
    match newest(root) {
        Ok(record) => with_table(&page, &table(&record)).is_some_and(|renewed| renewed == page),
        Err(_) => !page.contains(START),
    }
}

/// The record with the last name among those that are dates.
fn newest(root: &Path) -> Result<Value, String> {
    let folder = root.join("bench/record");
    let entries = std::fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| {
        let name =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".json"));
        name.is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit() || b == b'-'))
    });
    let path = paths.into_iter().max().ok_or(format!("{} holds no record", folder.display()))?;
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
}

fn with_table(page: &str, table: &str) -> Option<String> {
    let (before, rest) = page.split_once(START)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{START}\n{table}{END}{after}"))
}

fn table(record: &Value) -> String {
    let mut out = String::new();
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    let ratio = |value: &Value| {
        format!(
            "{:.2}x ({:.2}–{:.2})",
            number(&value["ratio"]),
            number(&value["lowest"]),
            number(&value["highest"])
        )
    };
    let list = |key: &str| record[key].as_array().cloned().unwrap_or_default();
    let tier = list("step").first().map_or("?".into(), |row| text(&row["tier"]));
    let _ = writeln!(
        out,
        "Measured {} on {} ({tier}), {} cores, medians of {} alternating pairs (lowest–highest):\n",
        text(&record["date"]),
        text(&record["processor"]),
        record["cores"],
        record["pairs"],
    );
    let _ = writeln!(out, "| work | tritrain | peer | ratio |\n|---|---|---|---|");
    for row in list("gemm") {
        let shape = &row["shape"];
        let what = format!("{}×{}×{}, 1 thread", shape["m"], shape["n"], shape["k"]);
        let ours = format!("{:.0} GMAC/s", number(&row["ternary_gmacs"]));
        let peer = number(&row["torch_gmacs"]);
        let against = ratio(&row["ternary_over_torch"]);
        let _ = writeln!(out, "| ternary product, {what} | {ours} | torch.mm f32, {peer:.0} | {against} |");
        let peer = format!("`gemm` crate f32, {:.0}", number(&row["f32_gmacs"]));
        let _ = writeln!(
            out,
            "| the same; dX; dW | | {peer} | {:.2}x; {:.2}x; {:.2}x |",
            number(&row["ternary_over_f32"]),
            number(&row["dx_over_f32"]),
            number(&row["dw_over_f32"])
        );
    }
    for row in list("step") {
        let what = format!(
            "training step, {} M parameters, {} × {} tokens, {} threads",
            (number(&row["peer_parameters"]) / 1e6).round(),
            row["shape"]["batch"],
            row["shape"]["ctx"],
            row["threads"]
        );
        let ours = format!("{:.0} tokens/s", number(&row["tokens_per_s"]));
        let peer = format!("{}, {:.0}", text(&row["peer"]), number(&row["peer_tokens_per_s"]));
        let _ = writeln!(
            out,
            "| {what} | {ours} | {peer} | {}, memory {} |",
            ratio(&row["speed"]),
            ratio(&row["memory"])
        );
    }
    for row in list("threads") {
        let what = format!("training step, width {}, two threads against one", row["shape"]["dim"]);
        let _ = writeln!(out, "| {what} | | | {} |", ratio(&row["two_over_one"]));
    }
    for row in list("generate") {
        let what = format!(
            "tokens one by one, width {}, {} layers, {} threads",
            row["shape"]["dim"], row["shape"]["layers"], row["threads"]
        );
        let ours = format!("{:.0} tokens/s", number(&row["tokens_per_s"]));
        let peer = format!("reading the weights alone, {:.0} GB/s", number(&row["read_gb_per_s"]));
        let _ = writeln!(out, "| {what} | {ours} | {peer} | {:.2}x |", number(&row["share_of_bandwidth"]));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_shows_what_was_recorded() {
        let record = serde_json::json!({
            "date": "2026-01-02", "processor": "Abacus", "cores": 2, "pairs": 5,
            "step": [{
                "shape": {"dim": 512, "batch": 8, "ctx": 256}, "threads": 2, "peer": "torch fp32",
                "tier": "avx2", "tokens_per_s": 1200.4, "peer_tokens_per_s": 400.2, "peer_parameters": 35_660_288,
                "speed": {"ratio": 3.0, "lowest": 2.9, "highest": 3.1},
                "memory": {"ratio": 0.5, "lowest": 0.5, "highest": 0.5},
            }],
        });
        let table = table(&record);
        assert!(table.contains("on Abacus (avx2), 2 cores, medians of 5"), "{table}");
        let row = "| training step, 36 M parameters, 8 × 256 tokens, 2 threads | 1200 tokens/s | torch fp32, 400 \
                   | 3.00x (2.90–3.10), memory 0.50x (0.50–0.50) |";
        assert!(table.contains(row), "{table}");
        let page = format!("a\n{START}\nold\n{END}\nb\n");
        assert_eq!(with_table(&page, "new\n").unwrap(), format!("a\n{START}\nnew\n{END}\nb\n"));
        assert!(with_table("no marks", "new").is_none());
    }
}
