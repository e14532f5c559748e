//! The program as a user calls it.

mod clusters;
mod devices;
mod export;
mod models;

use std::{
    fs,
    path::Path,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

const TINY: [&str; 8] = [
    "model.layers=1",
    "model.ffn=256",
    "model.context=32",
    "data.vocab=300",
    "run.batch=2",
    "run.steps=6",
    "run.eval_tokens=128",
    "run.eval_every=3",
];

struct Program {
    dir: tempfile::TempDir,
}

impl Program {
    fn new() -> Program {
        Program { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path().join(name), content).unwrap();
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tritrain"));
        command.current_dir(self.path()).args(args).env_remove("TRITRAIN_TIER");
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    fn tiny(&self, args: &[&str]) -> Output {
        let sets = TINY.iter().flat_map(|set| ["--set", set]);
        self.run(&args.iter().copied().chain(sets).collect::<Vec<_>>())
    }

    /// The run fails with this exit code and a message that holds all of `parts`.
    fn fails(&self, args: &[&str], code: i32, parts: &[&str]) {
        let output = self.run(args);
        let message = stderr(&output);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
        for part in parts {
            assert!(message.contains(part), "{args:?}: no {part:?} in {message:?}");
        }
        assert!(!message.contains("panicked"), "{message}");
    }
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// The last line of standard output as JSON.
fn json(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", stderr(output));
    let text = stdout(output);
    serde_json::from_str(text.lines().last().unwrap()).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn prose() -> String {
    (0..3000).map(|i: usize| ["the ", "cat ", "sat ", "on a ", "mat. ", "It "][i * i % 6]).collect()
}

#[test]
fn a_model_is_trained_continued_evaluated_and_inspected() {
    let program = Program::new();
    program.write("a.txt", prose());
    let trained = program.tiny(&["train", "--data", "a.txt", "--out", "run", "--json"]);
    let result = json(&trained);
    assert!(result["loss"].as_f64().unwrap() > 0.0 && result["steps"] == 6, "{result}");
    let shown = stdout(&trained);
    for part in ["validation loss:", "a sample:", "generate run", "inspect run"] {
        assert!(shown.contains(part), "{part:?} in {shown}");
    }
    assert!(program.path().join("run/step-6/model.safetensors").exists());

    let evaluated = json(&program.run(&["eval", "run", "--data", "a.txt", "--json"]));
    assert!(evaluated["loss"].as_f64().unwrap() > 0.0, "{evaluated}");
    assert!(evaluated["tokens"].as_u64().unwrap() > 1000, "{evaluated}");
    let bits = evaluated["bits_per_byte"].as_f64().unwrap();
    let nats = evaluated["loss"].as_f64().unwrap() * evaluated["tokens"].as_f64().unwrap();
    let bytes = prose().len() as f64;
    assert!((bits - nats / std::f64::consts::LN_2 / bytes).abs() < 1e-9, "{bits} over {bytes} bytes");

    let generate = ["generate", "run", "--prompt", "the cat", "--max-tokens", "8", "--seed", "3", "--json"];
    let (one, two) = (json(&program.run(&generate)), json(&program.run(&generate)));
    assert_eq!(one["text"], two["text"]);
    assert!(stdout(&program.run(&generate)).starts_with("the cat"));
    let greedy = ["generate", "run", "--temperature", "0", "--max-tokens", "40", "--json"];
    let weakened = [&greedy[..], &["--repetition-penalty", "2"]].concat();
    assert_ne!(json(&program.run(&greedy))["text"], json(&program.run(&weakened))["text"]);

    let inspected = json(&program.run(&["inspect", "run", "--json"]));
    let tensors = inspected["tensors"].as_array().unwrap();
    let down = tensors.iter().find(|tensor| tensor["name"] == "layers.0.down").unwrap();
    let histogram: u64 = down["histogram"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(histogram, 256 * 256);
    for path in [
        "run/step-6",
        "run/step-6/optimizer.safetensors",
        "run/tokens",
        "run/tokenizer.json",
        "run/metrics.jsonl",
        "run/config.toml",
    ] {
        assert!(program.run(&["inspect", path]).status.success(), "inspect {path}");
    }

    program.fails(&["train", "--data", "a.txt", "--out", "run"], 2, &["already holds a run", "--resume"]);
    let again = program.run(&["train", "--out", "run", "--resume"]);
    assert!(again.status.success() && stderr(&again).contains("complete already"), "{}", stderr(&again));
    program.fails(
        &["train", "--out", "run", "--resume", "--set", "optim.rate=0.1"],
        5,
        &["optim.rate is 0.1"],
    );
}

#[test]
fn compare_reports_the_gap() {
    let program = Program::new();
    program.write("a.txt", prose());
    let output = program.tiny(&["compare", "--data", "a.txt", "--out", "pair", "--json"]);
    let result = json(&output);
    let value = |key: &str| result[key].as_f64().unwrap_or_else(|| panic!("{key} in {result}"));
    let gap = (value("ternary_loss") / value("f32_loss") - 1.0) * 100.0;
    assert!((value("gap_percent") - gap).abs() < 1e-9);
    assert!(value("pearson_r") > 0.5);
    let svg = fs::read_to_string(program.path().join("pair/compare.svg")).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("validation"));
}

#[test]
fn the_default_configuration_can_be_used_as_a_file() {
    let program = Program::new();
    program.write("default.toml", program.run(&["config"]).stdout);
    program.write("a.txt", prose());
    let output = program.tiny(&["train", "default.toml", "--data", "a.txt", "--out", "run"]);
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn memory_is_told_before_a_run_and_what_bits_keep_after_it() {
    let program = Program::new();
    program.write("a.txt", prose());
    let low = ["--set", "optim.latent=trits4", "--set", "optim.gradient=none", "--set", "optim.momentum=0"];
    let ledger = json(&program.tiny(&[&["memory", "--json"], &low[..]].concat()));
    let bits = ledger["ternary_bits_per_parameter"].as_f64().unwrap();
    assert!((6.4..6.7).contains(&bits), "{ledger}");
    let classes = ledger["classes"].as_array().unwrap();
    let sum: u64 = classes.iter().map(|class| class["bytes"].as_u64().unwrap()).sum();
    assert_eq!(ledger["bytes"].as_u64(), Some(sum), "{ledger}");
    program.fails(&["memory", "none.toml"], 2, &["none.toml"]);

    let output = program.tiny(&["train", "--data", "a.txt", "--out", "run"]);
    assert!(stderr(&output).contains("MiB at most"), "{}", stderr(&output));
    let signal = ["bench", "signal", "run", "--data", "a.txt", "--batch", "1", "--json"];
    let layers = json(&program.run(&signal))["layers"].as_array().unwrap().clone();
    let names: Vec<&str> = layers.iter().map(|layer| layer["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["qkv", "o", "gate_up", "down"]);
    for layer in &layers {
        assert!((50.0..80.0).contains(&layer["codes"].as_f64().unwrap()), "{layer}");
        let draws = layer["gradient"].as_array().unwrap();
        let cosine = |at: usize| draws[at]["cosine"].as_f64().unwrap();
        assert!(cosine(0) < cosine(3) && cosine(3) < cosine(draws.len() - 1), "{layer}");
    }
    program.fails(&["bench", "signal", "run", "--data", "a.txt", "--batch", "9999"], 2, &["as many tokens"]);
}

#[test]
fn ways_to_store_a_model_are_compared_and_not_trained_twice() {
    let program = Program::new();
    program.write("a.txt", prose());
    let quality = ["bench", "quality", "--data", "a.txt", "--out", "quality", "--seeds", "1", "--json"];
    let result = json(&program.tiny(&quality));
    let rows = result["rows"].as_array().unwrap();
    assert_eq!((rows.len(), rows[0]["over_twin_percent"].as_f64()), (8, Some(0.0)), "{result}");
    let last = rows[7]["losses"][0].as_f64().unwrap();
    let over = 100.0 * (last / rows[1]["losses"][0].as_f64().unwrap() - 1.0);
    assert!((rows[7]["over_adamw_percent"].as_f64().unwrap() - over).abs() < 1e-9, "{result}");
    assert!(rows[7]["bits_per_parameter"].as_f64().unwrap() < 7.0, "{result}");
    let log = fs::read(program.path().join("quality/f32-twin-Muon-1/metrics.jsonl")).unwrap();
    assert_eq!(json(&program.tiny(&quality)), result);
    assert_eq!(fs::read(program.path().join("quality/f32-twin-Muon-1/metrics.jsonl")).unwrap(), log);
    assert!(
        fs::read_to_string(program.path().join("quality/quality.svg")).unwrap().contains("1 of momentum")
    );
}

#[test]
fn faults_are_put_into_runs_with_and_without_guard() {
    let program = Program::new();
    program.write("a.txt", prose());
    let spikes = ["bench", "spikes", "--data", "a.txt", "--out", "spikes", "--seeds", "1", "--json"];
    let long = ["--set", "run.steps=150", "--set", "run.eval_every=100", "--set", "run.sample_every=0"];
    let sets = TINY.iter().filter(|set| !set.starts_with("run.steps") && !set.starts_with("run.eval_every"));
    let sets = sets.flat_map(|set| ["--set", set]);
    let all: Vec<&str> = spikes.into_iter().chain(sets).chain(long).collect();
    let output = program.run(&all);
    let result = json(&output);
    let rows = result["rows"].as_array().unwrap();
    assert_eq!((rows.len(), rows[0]["over_undisturbed_percent"][0].as_f64()), (12, Some(0.0)), "{result}");
    for rows in rows.chunks(6) {
        let of = |at: usize, key: &str| rows[at][key][0].as_u64().unwrap();
        let faults = [0, 1, 2, 3, 4, 5].map(|at| of(at, "faults"));
        assert_eq!(faults[..2], [0, 0], "{result}");
        assert!(faults[2] > 0 && faults[2..5] == [faults[2]; 3] && faults[5] > faults[2], "{result}");
        assert_eq!((of(0, "tensors_clipped"), of(2, "tensors_clipped")), (0, 0), "no guard: {result}");
        assert!(of(3, "tensors_clipped") > 0 && of(4, "tensors_clipped") > 0, "{result}");
        assert_eq!((of(3, "steps_skipped"), of(5, "steps_skipped")), (0, faults[5] - faults[3]), "{result}");
        assert!(rows.iter().all(|row| row["finite"][0] == true && row["setbacks"][0] == 0), "{result}");
        let loss = |at: usize| rows[at]["losses"][0].as_f64().unwrap();
        let over = 100.0 * (loss(3) / loss(0) - 1.0);
        assert!((rows[3]["over_undisturbed_percent"][0].as_f64().unwrap() - over).abs() < 1e-9, "{result}");
        assert_ne!(loss(2), loss(3), "the guard changes what becomes of a fault");
    }
    let shown = stdout(&output);
    assert!(shown.contains("disturbed and NaN, clip") && shown.contains("setbacks"), "{shown}");
    let log = |way: &str| program.path().join(format!("spikes/f32-latent-factored-{way}-1/metrics.jsonl"));
    let before = fs::read(log("disturbed-clip")).unwrap();
    assert!(String::from_utf8_lossy(&before).contains("\"fault\":\"noise\""));
    assert!(!String::from_utf8_lossy(&fs::read(log("undisturbed-clip")).unwrap()).contains("fault"));
    assert_eq!(json(&program.run(&all)), result);
    assert_eq!(fs::read(log("disturbed-clip")).unwrap(), before, "complete runs are not made again");
    for name in ["f32", "trits"] {
        assert!(program.path().join(format!("spikes/spikes-{name}.svg")).exists(), "{name}");
    }
}

#[test]
fn a_controller_is_trained_and_steers() {
    let program = Program::new();
    program.write("a.txt", (0..9).map(|n| format!("{n} {}", prose())).collect::<String>());
    let few = ["--generations", "1", "--pairs", "1", "--tasks", "1", "--steps", "1"];
    let output = program.run(&[&["meta-train", "--data", "a.txt", "--out", "meta"], &few[..]].concat());
    assert!(output.status.success() && stdout(&output).contains("best"), "{}", stderr(&output));
    let weights = "optim.controller_weights=meta/controller.json";
    let steered = ["--set", "optim.controller=learned", "--set", weights];
    let output = program.tiny(&[&["train", "--data", "a.txt", "--out", "run"], &steered[..]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    let log = fs::read_to_string(program.path().join("run/metrics.jsonl")).unwrap();
    assert!(log.contains("log_multiplier"), "{log}");
    let compared = ["bench", "controller", "--data", "a.txt", "--out", "bench", "--seeds", "1", "--json"];
    let result = json(&program.tiny(&[&compared[..], &["--controllers", "off", "rule"]].concat()));
    let (fixed, rows) = (&result["fixed_losses"][0], result["rows"].as_array().unwrap());
    assert_eq!((fixed.as_array().unwrap().len(), rows.len()), (9, 10), "{result}");
    let losses = fixed.as_array().unwrap().iter().map(|loss| loss.as_f64().unwrap());
    let best = losses.fold(f64::INFINITY, f64::min);
    let expected = 100.0 * (fixed[0].as_f64().unwrap() / best - 1.0);
    assert_eq!(rows[0]["over_best_percent"][0].as_f64(), Some(expected), "off with the base rate x 1/16");
}

#[test]
fn bad_input_is_a_clear_error_and_starts_no_run() {
    let program = Program::new();
    program.write("a.txt", prose());
    program.write("empty.txt", "");
    program.write("short.txt", "too short");
    program.write("latin1.txt", b"caf\xe9 au lait".repeat(100));
    program.write("bad.toml", "[model]\ndims = 3\n");
    program.write("range.toml", "[model]\nlayers = 0\n[optim]\nrate = \"fast\"\n");
    program.write("no.json", "{}");
    let train = |extra: &[&'static str]| [&["train", "--out", "run"], extra].concat();
    program.fails(&train(&["--data", "missing.txt"]), 2, &["missing.txt", "cannot find"]);
    program.fails(&train(&["--data", "empty.txt"]), 2, &["no text", "empty.txt"]);
    program.fails(&train(&["--data", "short.txt"]), 2, &["split holds", "context"]);
    program.fails(&train(&["--data", "latin1.txt"]), 2, &["latin1.txt:1", "UTF-8", "0xe9"]);
    program.fails(&train(&["bad.toml"]), 2, &["bad.toml:2", "model.dims", "did you mean model.dim?"]);
    program.fails(&train(&["range.toml"]), 2, &["range.toml:2", "model.layers = 0", "optim.rate"]);
    program.fails(&train(&["missing.toml"]), 2, &["cannot read missing.toml"]);
    program.fails(&train(&["--set", "model.dim=100"]), 2, &["model.heads = 4", "model.dim = 100"]);
    program.fails(&train(&["--set", "model.dim=96"]), 2, &["model.dim = 96", "try 128"]);
    program.fails(&train(&["--set", "nonsense"]), 2, &["nonsense"]);
    program.fails(
        &train(&["--data", "a.txt", "--set", "data.tokenizer=no.json"]),
        2,
        &["no.json", "tokenizer"],
    );
    program.fails(&["generate", "missing"], 2, &["missing", "no model"]);
    program.fails(&["eval", "missing", "--data", "a.txt"], 2, &["missing"]);
    program.fails(&["inspect", "a.txt"], 2, &["a.txt"]);
    program.fails(&["generate", "run", "--temperature=-1"], 2, &["--temperature"]);
    program.fails(&["generate", "run", "--repetition-penalty=0"], 2, &["--repetition-penalty 0"]);
    assert!(
        !program.path().join("run/step-1").exists() && !program.path().join("run/metrics.jsonl").exists()
    );
}

#[test]
fn a_damaged_model_is_refused() {
    let program = Program::new();
    program.write("a.txt", prose());
    assert!(program.tiny(&["train", "--data", "a.txt", "--out", "run"]).status.success());
    let file = program.path().join("run/step-6/model.safetensors");
    let sound = fs::read(&file).unwrap();
    for cut in [0, 7, 100, sound.len() / 2, sound.len() - 1] {
        fs::write(&file, &sound[..cut]).unwrap();
        program.fails(&["generate", "run/step-6"], 4, &["model.safetensors"]);
    }
    for at in [3, 50, sound.len() / 3, sound.len() - 1] {
        let mut flipped = sound.clone();
        flipped[at] ^= 4;
        fs::write(&file, flipped).unwrap();
        program.fails(&["generate", "run/step-6"], 4, &["model.safetensors"]);
        program.fails(&["train", "--out", "run", "--resume"], 4, &["step-6"]);
    }
    fs::write(&file, sound).unwrap();
    assert!(program.run(&["generate", "run", "--max-tokens", "2"]).status.success());
    fs::write(program.path().join("run/tokenizer.json"), "{").unwrap();
    program.fails(&["generate", "run"], 2, &["tokenizer.json"]);
}

/// Everything below a folder but the lock, as (path, content).
fn tree(dir: &Path) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(tree(&path));
        } else if !path.ends_with(".lock") {
            files.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    files.sort();
    files
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let program = Program::new();
    program.write("a.txt", prose());
    program.write("b.txt", prose().replace("cat", "weasel"));
    assert!(program.tiny(&["train", "--data", "a.txt", "--out", "run"]).status.success());
    assert!(program.tiny(&["train", "--data", "b.txt", "--out", "other"]).status.success());
    let (ours, theirs) = ("run/tokenizer.json", program.path().join("other/tokenizer.json"));
    let own = fs::read(program.path().join(ours)).unwrap();
    fs::copy(&theirs, program.path().join(ours)).unwrap();
    program.fails(&["generate", "run"], 5, &["tokenizer"]);
    program.fails(&["eval", "run", "--data", "a.txt"], 5, &["tokenizer"]);
    program.fails(&["train", "--out", "run", "--resume"], 5, &["tokenizer"]);
    // A model file away from its checkpoint has its number of tokens to go by.
    fs::create_dir(program.path().join("alone")).unwrap();
    fs::copy(
        program.path().join("run/step-6/model.safetensors"),
        program.path().join("alone/model.safetensors"),
    )
    .unwrap();
    fs::copy(&theirs, program.path().join("alone/tokenizer.json")).unwrap();
    program.fails(&["generate", "alone"], 4, &["alone/tokenizer.json", "another model"]);
    program.write("alone/tokenizer.json", &own);
    assert!(program.run(&["generate", "alone", "--max-tokens", "2"]).status.success());
}

#[test]
fn nothing_replaces_the_files_of_a_run() {
    let program = Program::new();
    program.write("a.txt", prose());
    program.write("b.txt", prose().replace("cat", "weasel"));
    assert!(program.tiny(&["train", "--data", "a.txt", "--out", "run"]).status.success());
    let before = tree(&program.path().join("run"));
    program.fails(&["compare", "--data", "b.txt", "--out", "run"], 2, &["already holds a run"]);
    program.fails(&["train", "--data", "b.txt", "--out", "run"], 2, &["already holds a run"]);
    assert!(before == tree(&program.path().join("run")), "a refused command changed the run");
    // Without its tokens the run could be prepared again, but not from other text.
    fs::remove_dir_all(program.path().join("run/tokens")).unwrap();
    program.write("a.txt", prose().replace("cat", "weasel"));
    let tokenizer = fs::read(program.path().join("run/tokenizer.json")).unwrap();
    assert!(!program.run(&["train", "--out", "run", "--resume"]).status.success());
    assert!(tokenizer == fs::read(program.path().join("run/tokenizer.json")).unwrap());
}

#[cfg(unix)]
#[test]
fn a_signal_saves_and_the_run_goes_on() {
    let program = Program::new();
    program.write("a.txt", prose());
    for signal in ["INT", "TERM"] {
        let out = format!("run-{signal}");
        let sets = TINY.iter().filter(|set| !set.starts_with("run.steps")).flat_map(|set| ["--set", set]);
        let mut args = vec!["train", "--data", "a.txt", "--out", &out, "--set", "run.steps=100000"];
        args.extend(sets);
        let mut child = program.command(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let metrics = program.path().join(&out).join("metrics.jsonl");
        let started = Instant::now();
        while fs::metadata(&metrics).map_or(0, |data| data.len()) == 0 {
            assert!(started.elapsed() < Duration::from_secs(60), "no step in a minute");
            std::thread::sleep(Duration::from_millis(20));
        }
        let killed =
            Command::new("kill").args([format!("-{signal}"), child.id().to_string()]).status().unwrap();
        assert!(killed.success());
        assert_eq!(child.wait().unwrap().code(), Some(75));
        let steps: Vec<_> = fs::read_dir(program.path().join(&out))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name.starts_with("step-"))
            .collect();
        assert_eq!(steps.len(), 1, "{steps:?}");
        let last = fs::read_to_string(&metrics).unwrap().lines().last().unwrap().to_owned();
        let last: serde_json::Value = serde_json::from_str(&last).unwrap();
        assert_eq!(steps[0], format!("step-{}", last["step"]), "the interrupted step is the one saved");
    }
}

#[test]
fn a_reader_that_goes_away_does_not_stop_training() {
    let program = Program::new();
    program.write("a.txt", prose());
    let sets = TINY.iter().flat_map(|set| ["--set", set]);
    let args: Vec<_> = ["train", "--data", "a.txt", "--out", "run"].into_iter().chain(sets).collect();
    let mut child = program.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    drop(child.stderr.take());
    assert!(child.wait().unwrap().success());
    assert!(program.path().join("run/step-6/manifest.json").exists());
}

/// A matrix as `numpy.save` writes it.
fn npy(columns: usize, values: &[f32]) -> Vec<u8> {
    let rows = values.len() / columns;
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({rows}, {columns}), }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.bytes());
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    bytes
}

#[test]
fn rows_of_a_matrix_are_clustered() {
    let program = Program::new();
    let x: Vec<f32> = (0..300).map(|i| (i / 2 % 3 * 100 + i % 7) as f32).collect();
    program.write("x.npy", npy(2, &x));
    program.write("c.npy", npy(2, &[0.0, 0.0, 100.0, 100.0, 200.0, 200.0]));
    let with = |more: &[&str]| {
        let args = [&["cluster", "x.npy", "--json"], more].concat();
        let output = program.run(&args);
        assert!(output.status.success(), "{}", stderr(&output));
        json(&output)
    };
    let given = with(&["--init", "c.npy", "-k", "3", "--out", "found", "--tolerance", "0"]);
    assert_eq!(given["sizes"], serde_json::json!([50, 50, 50]));
    let labels = fs::read(program.path().join("found/labels.npy")).unwrap();
    let expected: Vec<u8> = (0..150u32).flat_map(|row| (row % 3).to_le_bytes()).collect();
    assert!(labels.ends_with(&expected));
    let centroids = fs::read(program.path().join("found/centroids.npy")).unwrap();
    assert!(String::from_utf8_lossy(&centroids).contains("'shape': (3, 2)"));
    for more in [&["-k", "3"][..], &["--method", "lloyd", "-k", "3", "--seed", "5"], &[], &["--threads", "1"]]
    {
        assert_eq!(with(more)["inertia"], given["inertia"], "{more:?}");
    }
    assert_eq!(with(&[])["k"], 3);
    let near = with(&["-k", "3", "--batch", "30"]);
    assert!(near["inertia"].as_f64() < given["inertia"].as_f64().map(|inertia| inertia * 1.1));
    let directions = with(&["-k", "2", "--spherical"]);
    let near = with(&["-k", "2", "--spherical", "--batch", "30"]);
    assert!(near["inertia"].as_f64() < directions["inertia"].as_f64().map(|inertia| inertia * 1.1));
    program.fails(&["cluster", "x.npy", "-k", "0"], 2, &["x.npy", "k is 0"]);
    program.fails(&["cluster", "x.npy", "-k", "151"], 2, &["151", "at most 150"]);
    program.fails(&["cluster", "x.npy", "-k", "many"], 2, &["--k many", "auto"]);
    program.fails(&["cluster", "x.npy", "-k", "2", "--init", "c.npy"], 2, &["c.npy", "2 × 2", "3 × 2"]);
    program.fails(&["cluster", "x.npy", "-k", "3", "--batch", "0"], 2, &["--batch 0"]);
    program.fails(&["cluster", "text", "-k", "3"], 2, &["cannot find text"]);
    program.fails(&["cluster", "none.npy", "-k", "3"], 4, &["none.npy"]);
    program.write("bad.npy", &npy(2, &x)[..200]);
    program.fails(&["cluster", "bad.npy", "-k", "3"], 4, &["bad.npy", "length of the array"]);
    program.write("nan.npy", npy(2, &[1.0, f32::NAN]));
    program.fails(&["cluster", "nan.npy", "-k", "1"], 2, &["nan.npy", "row 0, column 1"]);
}

#[test]
fn bench_reports_what_scripts_read() {
    let program = Program::new();
    let positive = |output: &Output, keys: &[&str]| {
        let report = json(output);
        for key in keys {
            assert!(report[key].as_f64().is_some_and(|value| value > 0.0), "{key} in {report}");
        }
    };
    let gemm = ["bench", "gemm", "--m=12", "--n=20", "--k=33", "--threads=1", "--pairs=1", "--json"];
    let keys = ["ternary_gmacs", "f32_gmacs", "ternary_over_f32", "dx_over_f32", "dw_over_f32"];
    positive(&program.run(&gemm), &keys);
    let shape = ["--dim=256", "--layers=1", "--heads=2", "--ffn=256", "--vocab=50", "--ctx=8", "--batch=2"];
    let with = |start: &[&str]| program.run(&[start, &shape, &["--threads=2", "--json"]].concat());
    let step = with(&["bench", "step", "--steps=1", "--profile"]);
    positive(&step, &["tokens_per_s", "step_s"]);
    let report = json(&step);
    let names: Vec<&str> =
        report["profile"].as_array().unwrap().iter().filter_map(|op| op["name"].as_str()).collect();
    assert!(names.contains(&"ternary_weight_gradient") && names.contains(&"head_loss_backward"), "{names:?}");
    positive(&with(&["bench", "step", "--steps=1", "--f32"]), &["tokens_per_s", "step_s"]);
    let keys = ["tokens_per_s", "prefill_tokens_per_s", "read_gb_per_s", "share_of_bandwidth"];
    positive(&with(&["bench", "generate", "--tokens=3"]), &keys);
    program.fails(&["bench", "step", "--dim=100", "--heads=2"], 2, &["model.dim = 100", "try 128"]);
    program.fails(&["bench", "gemm", "--k=0"], 2, &["k is 0"]);
}

#[test]
fn bench_measures_operations_and_draws_them() {
    let program = Program::new();
    let shape = ["--dim=256", "--heads=2", "--ffn=256", "--vocab=50", "--ctx=8", "--batch=2", "--threads=2"];
    let output = program.run(&[&["bench", "operations", "--plot=bars.svg", "--json"], &shape[..]].concat());
    let report = json(&output);
    let positive = |value: &serde_json::Value| value.as_f64().is_some_and(|value| value > 0.0);
    assert!(positive(&report["limits"]["read_gb_per_s"]), "{report}");
    let (shown, svg) = (stdout(&output), fs::read_to_string(program.path().join("bars.svg")).unwrap());
    assert!(svg.starts_with("<svg") && svg.contains("vocab 50"), "{svg}");
    let operations = report["operations"].as_array().unwrap();
    let names: Vec<&str> = operations.iter().filter_map(|operation| operation["name"].as_str()).collect();
    for name in ["ternary product, dW", "attention, backward", "factored update", "whole step, one block"] {
        assert!(names.contains(&name), "{name} in {names:?}");
    }
    for (operation, name) in operations.iter().zip(names) {
        let given = |key: &str| positive(&operation[key]);
        let always = ["ms", "bytes", "gb_per_s", "share_of_bandwidth"];
        assert!(always.into_iter().all(given), "{operation}");
        for key in ["gmacs", "share_of_limit", "over_scalar"] {
            assert!(given(key) || operation[key].is_null(), "{key} in {operation}");
        }
        assert!(given("over_scalar") != (name == "f32 product"), "{operation}");
        assert!(shown.lines().any(|line| line.starts_with(name)), "{name} in {shown}");
        assert!(svg.lines().any(|line| line.trim() == name), "{name} in the picture");
    }
    let plain = program.run(&[&["bench"], &shape[..]].concat());
    assert!(plain.status.success() && stdout(&plain).contains("of limit"), "{}", stderr(&plain));
    program.fails(&["bench", "--dim=100", "--heads=2"], 2, &["model.dim = 100", "try 128"]);
    program.fails(&["bench", "operations", "--batch=0"], 2, &["batch is 0"]);
}

#[test]
fn doctor_compares_every_tier_with_the_portable_one() {
    let output = Program::new().run(&["doctor", "--self-test", "--cases=500", "--json"]);
    let report = json(&output);
    let tiers = report["tiers"].as_array().unwrap();
    assert!(tiers[0] == "scalar" && tiers.contains(&report["tier"]), "{report}");
    let checks = report["checks"].as_array().unwrap();
    assert_eq!(checks.is_empty(), tiers.len() == 1, "{report}");
    assert!(checks.iter().all(|check| check["wrong"] == 0 && check["cases"].as_u64() > Some(0)), "{report}");
}
