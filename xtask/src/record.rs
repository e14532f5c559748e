//! The tables of docs/speed.md, from the newest files in bench/record.

use std::fmt::Write;
use std::path::Path;
use std::process::ExitCode;

use serde_json::Value;

/// A table: what stands around it, how its records are named, and what it shows of one.
struct Shown {
    start: &'static str,
    end: &'static str,
    prefix: &'static str,
    table: fn(&Value) -> String,
}

/// Where they stand.
pub(crate) const PAGE: &str = "docs/speed.md";

const SHOWN: [Shown; 3] = [
    Shown { start: "<!-- record -->", end: "<!-- /record -->", prefix: "", table },
    Shown {
        start: "<!-- record: backends -->",
        end: "<!-- /record: backends -->",
        prefix: "backends-",
        table: backends,
    },
    Shown { start: "<!-- record: llama -->", end: "<!-- /record: llama -->", prefix: "llama-", table: llama },
];

/// Renews the tables in docs/speed.md.
pub(crate) fn renew(root: &Path) -> ExitCode {
    let place = root.join(PAGE);
    let renewed = SHOWN.iter().try_for_each(|shown| {
        let record = newest(root, shown.prefix)?;
        let page = std::fs::read_to_string(&place).map_err(|error| error.to_string())?;
        let page = with_table(&page, shown, &(shown.table)(&record))
            .ok_or(format!("{PAGE} lacks {} … {}", shown.start, shown.end))?;
        std::fs::write(&place, page).map_err(|error| error.to_string())
    });
    match renewed {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whether the page shows what the newest records say; `true` where there is neither.
pub(crate) fn is_current(root: &Path) -> bool {
    let Ok(page) = std::fs::read_to_string(root.join(PAGE)) else { return false };
    SHOWN.iter().all(|shown| match newest(root, shown.prefix) {
        Ok(record) => {
            with_table(&page, shown, &(shown.table)(&record)).is_some_and(|renewed| renewed == page)
        }
        Err(_) => !page.contains(shown.start),
    })
}

/// The record with the last name among those that are dates behind a prefix.
fn newest(root: &Path, prefix: &str) -> Result<Value, String> {
    let folder = root.join("bench/record");
    let entries = std::fs::read_dir(&folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.retain(|path| {
        let name = path.file_name().and_then(|name| name.to_str());
        let name = name.and_then(|name| name.strip_prefix(prefix)?.strip_suffix(".json"));
        name.is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit() || b == b'-'))
    });
    let path = paths.into_iter().max().ok_or(format!("{} holds no record", folder.display()))?;
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    serde_json::from_str(&text).map_err(|error| format!("{}: {error}", path.display()))
}

fn with_table(page: &str, shown: &Shown, table: &str) -> Option<String> {
    let Shown { start, end, .. } = shown;
    let (before, rest) = page.split_once(start)?;
    let (_, after) = rest.split_once(end)?;
    Some(format!("{before}{start}\n{table}{end}{after}"))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("?").to_owned()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(f64::NAN)
}

/// A median with its lowest and highest.
fn ratio(value: &Value) -> String {
    let [median, lowest, highest] = ["ratio", "lowest", "highest"].map(|key| number(&value[key]));
    format!("{median:.2}x ({lowest:.2}–{highest:.2})")
}

/// When, on what and how often a record was measured.
fn measured(record: &Value) -> String {
    format!(
        "Measured {} on {}, {} cores, medians of {} alternating pairs (lowest–highest):\n",
        text(&record["date"]),
        text(&record["processor"]),
        record["cores"],
        record["pairs"],
    )
}

/// Generation beside llama.cpp.
fn llama(record: &Value) -> String {
    let mut out = measured(record);
    let _ = writeln!(
        out,
        "\n| model, file | making, tokens/s | llama.cpp | ratio | reading, tokens/s | llama.cpp | ratio | load, s | llama.cpp | memory, MiB | llama.cpp |"
    );
    let _ = writeln!(out, "|---|---|---|---|---|---|---|---|---|---|---|");
    for row in record["rows"].as_array().into_iter().flatten() {
        let of = |whose: &str, key: &str| number(&row[whose][key]);
        let _ = write!(out, "| {} {} ", text(&row["size"]), text(&row["type"]));
        for key in ["tokens_per_s", "prompt_tokens_per_s"] {
            let ratio = ratio(&row[format!("{key}_ratio")]);
            let _ = write!(out, "| {:.0} | {:.0} | {ratio} ", of("ours", key), of("llama", key));
        }
        for (key, digits) in [("load_seconds", 2), ("peak_mib", 0)] {
            let _ = write!(out, "| {:.digits$} | {:.digits$} ", of("ours", key), of("llama", key));
        }
        let _ = writeln!(out, "|");
    }
    out
}

/// Single operations beside NumPy.
fn backends(record: &Value) -> String {
    let mut out = measured(record) + "\n";
    let rows = record["backends"].as_array().cloned().unwrap_or_default();
    let _ = writeln!(
        out,
        "| operation | engine | ms | over scalar | memory, MB | NumPy, ms | speed over NumPy |"
    );
    let _ = writeln!(out, "|---|---|---|---|---|---|---|");
    for row in rows {
        let task = &row["task"][text(&row["operation"])];
        let sizes = task.as_object().into_iter().flatten().filter(|(name, _)| *name != "iterations");
        let sizes: Vec<String> = sizes.map(|(name, size)| format!("{name} {size}")).collect();
        let memory = |key: &str| row[key].as_f64().map_or("?".into(), |mb| format!("{:.1}", mb.max(0.0)));
        let _ = writeln!(
            out,
            "| {}, {} | {} ({}) | {:.3} | {:.1}x | {} (NumPy {}) | {:.3} | {} |",
            text(&row["operation"]),
            sizes.join(", "),
            text(&row["engine"]),
            text(&row["runs_on"]),
            number(&row["ms"]),
            number(&row["over_scalar"]),
            memory("memory_mb"),
            memory("peer_memory_mb"),
            number(&row["peer_ms"]),
            ratio(&row["speed"]),
        );
    }
    let dispatcher = &record["dispatcher"];
    let _ = writeln!(
        out,
        "\nOf {} random operations {:.1} % went to an engine that took at most 1.1 times as long as the fastest \
         ({:.3} times on average), with a calibration of {:.2} s and {:.2} µs for each choice.",
        dispatcher["count"],
        number(&dispatcher["within_tenth"]) * 100.0,
        number(&dispatcher["mean_over_fastest"]),
        number(&dispatcher["calibration_s"]),
        number(&dispatcher["overhead_us"]),
    );
    out
}

fn table(record: &Value) -> String {
    let mut out = String::new();
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
        for shown in &SHOWN {
            let Shown { start, end, .. } = shown;
            let page = format!("a\n{start}\nold\n{end}\nb\n");
            assert_eq!(with_table(&page, shown, "new\n").unwrap(), format!("a\n{start}\nnew\n{end}\nb\n"));
            assert!(with_table("no marks", shown, "new").is_none());
        }
    }

    #[test]
    fn the_table_of_llama_shows_what_was_recorded() {
        let ratio = |ratio: f64| serde_json::json!({"ratio": ratio, "lowest": 1.0, "highest": 9.0});
        let run = |rate: f64| {
            serde_json::json!({
                "tokens_per_s": rate, "prompt_tokens_per_s": 10.0 * rate, "load_seconds": 0.125, "peak_mib": 61.6,
            })
        };
        let record = serde_json::json!({
            "date": "2026-01-02", "processor": "Abacus", "cores": 2, "pairs": 5,
            "rows": [{
                "size": "20M", "type": "tq2_0", "ours": run(300.4), "llama": run(100.0),
                "tokens_per_s_ratio": ratio(3.004), "prompt_tokens_per_s_ratio": ratio(2.5),
            }],
        });
        let row = "| 20M tq2_0 | 300 | 100 | 3.00x (1.00–9.00) | 3004 | 1000 | 2.50x (1.00–9.00) | 0.12 | 0.12 | 62 | 62 |";
        let table = llama(&record);
        assert!(table.contains(row) && table.contains("2026-01-02 on Abacus"), "{table}");
    }

    #[test]
    fn the_table_of_backends_shows_what_was_recorded() {
        let record = serde_json::json!({
            "date": "2026-01-02", "processor": "Abacus", "cores": 2, "pairs": 5,
            "backends": [{
                "operation": "kmeans", "engine": "simd", "runs_on": "avx2, 1 thread", "ms": 2.0, "over_scalar": 8.0,
                "task": {"kmeans": {"rows": 10, "dim": 3, "k": 2, "iterations": 7}},
                "memory_mb": 0.25, "peer_memory_mb": null, "peer_ms": 30.5,
                "speed": {"ratio": 15.25, "lowest": 14.0, "highest": 16.0},
            }],
            "dispatcher": {"count": 200, "within_tenth": 0.97, "mean_over_fastest": 1.01, "calibration_s": 0.4, "overhead_us": 0.2},
        });
        let table = backends(&record);
        let row = "| kmeans, rows 10, dim 3, k 2 | simd (avx2, 1 thread) | 2.000 | 8.0x | 0.2 (NumPy ?) | 30.500 \
                   | 15.25x (14.00–16.00) |";
        assert!(table.contains(row), "{table}");
        assert!(
            table.contains("Of 200 random operations 97.0 %") && table.contains("on Abacus, 2 cores"),
            "{table}"
        );
    }
}
