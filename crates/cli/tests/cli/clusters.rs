//! Clusters of text: found, and trained by.

use super::*;

/// Two files about two things, 40 documents each.
fn two_topics(program: &Program) {
    for (file, words) in [
        ("law.jsonl", ["court", "judge", "appeal", "verdict"]),
        ("cells.jsonl", ["cell", "tissue", "enzyme", "gene"]),
    ] {
        let text =
            |i: usize| (0..40).map(|j| format!("{} ", words[(i + j * j) % (2 + i % 3)])).collect::<String>();
        let lines: Vec<String> = (0..40)
            .map(|i| format!("{{\"title\": \"{file} {i}\", \"text\": \"{}of the {i}\"}}", text(i)))
            .collect();
        program.write(file, lines.join("\n"));
    }
}

#[test]
fn text_is_clustered_described_and_saved() {
    let program = Program::new();
    two_topics(&program);
    let command =
        ["cluster", "law.jsonl", "cells.jsonl", "-k", "2", "--out", "c", "--duplicates", "0.9999", "--json"];
    let output = program.run(&command);
    let result = json(&output);
    assert_eq!((&result["passages"], &result["k"], &result["dim"]), (&80.into(), &2.into(), &64.into()));
    assert_eq!((&result["nmi"], &result["purity"]), (&1.0.into(), &1.0.into()), "{result}");
    assert!(result["seconds"]["embed"].as_f64().unwrap() > 0.0);
    let shown = stdout(&output);
    for part in ["80 passages of 80 documents", "law 100 %", "cells 100 %", "NMI 1.000", "near-duplicates: "]
    {
        assert!(shown.contains(part), "{part:?} in {shown}");
    }
    let names: Vec<&str> =
        result["clusters"].as_array().unwrap().iter().map(|c| c["name"].as_str().unwrap()).collect();
    assert!(
        names.iter().any(|name| name.contains("court")) && names.iter().any(|name| name.contains("cell"))
    );

    let read = |name: &str| fs::read(program.path().join("c").join(name)).unwrap();
    let text = String::from_utf8(read("passages.jsonl")).unwrap();
    let passages: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(passages.len(), 80);
    let cluster = &passages[0]["cluster"];
    for (index, passage) in passages.iter().enumerate() {
        assert_eq!(passage["document"], index);
        assert_eq!(passage["start"], 0);
        assert_eq!(passage["cluster"] == *cluster, passage["domain"] == "law", "{passage}");
    }
    let dropped = passages.iter().filter(|passage| passage["dropped"] == true).count();
    assert_eq!(result["duplicates"]["dropped"], dropped);
    assert_eq!((read("vectors.npy").len(), read("labels.npy").len()), (128 + 80 * 64 * 4, 128 + 80 * 4));
    assert!(String::from_utf8(read("map.svg")).unwrap().starts_with("<svg"));
    let saved: serde_json::Value = serde_json::from_slice(&read("clusters.json")).unwrap();
    assert_eq!(saved["clusters"], result["clusters"]);
    let inspected = json(&program.run(&["inspect", "c/clusters.safetensors", "--json"]));
    assert_eq!(inspected["tensors"].as_array().unwrap().len(), 3);

    // Without a folder nothing is written, and the result is the same, on another number of threads too.
    let before = tree(program.path());
    let again = ["cluster", "law.jsonl", "cells.jsonl", "-k", "2", "--threads", "1", "--json"];
    assert_eq!(json(&program.run(&again))["clusters"], result["clusters"]);
    assert_eq!(tree(program.path()), before);
    // The vectors are a matrix like any other.
    assert_eq!(
        json(&program.run(&["cluster", "c/vectors.npy", "-k", "2", "--json"]))["sizes"],
        serde_json::json!([40, 40])
    );
}

#[test]
fn text_is_clustered_by_the_tokens_of_a_model() {
    let program = Program::new();
    two_topics(&program);
    let trained = program.tiny(&["train", "--data", "law.jsonl", "cells.jsonl", "--out", "run"]);
    assert!(trained.status.success(), "{}", stderr(&trained));
    let command =
        ["cluster", "law.jsonl", "cells.jsonl", "-k", "2", "--embedding", "run", "--out", "c", "--json"];
    let result = json(&program.run(&command));
    assert_eq!((&result["passages"], &result["dim"]), (&80.into(), &256.into()));
    assert!(result["nmi"].as_f64().unwrap() > 0.9, "{result}");
}

/// The proxy is a run like any other; without a folder it leaves nothing behind.
#[test]
fn text_is_clustered_by_the_tokens_of_a_proxy() {
    let program = Program::new();
    two_topics(&program);
    let command = ["cluster", "law.jsonl", "cells.jsonl", "-k", "2", "--embedding", "proxy", "--json"];
    let command = [&command[..], &["--proxy-tokens", "1024", "--seed", "7"]].concat();
    let kept = program.run(&[&command[..], &["--out", "c"]].concat());
    let result = json(&kept);
    assert_eq!((&result["passages"], &result["dim"]), (&80.into(), &256.into()));
    assert!(result["nmi"].as_f64().unwrap() > 0.9, "{result}");
    let by_model =
        ["cluster", "law.jsonl", "cells.jsonl", "-k", "2", "--embedding", "c/proxy", "--seed", "7", "--json"];
    assert_eq!(json(&program.run(&by_model))["clusters"], result["clusters"]);
    let config = fs::read_to_string(program.path().join("c/proxy/config.toml")).unwrap();
    assert!(config.contains("tokens = 1024") && config.contains("seed = 7"), "{config}");
    let again = program.run(&[&command[..], &["--out", "c"]].concat());
    assert!(stderr(&again).contains("the run was complete already"), "{}", stderr(&again));
    assert_eq!(json(&again)["clusters"], result["clusters"]);
    let before = tree(program.path());
    assert_eq!(json(&program.run(&command))["clusters"], result["clusters"]);
    assert_eq!(tree(program.path()), before);
    let tokens = ["cluster", "law.jsonl", "--embedding", "proxy", "--proxy-tokens", "0"];
    program.fails(&tokens, 2, &["run.tokens"]);
}

#[test]
fn text_that_cannot_be_clustered_is_a_clear_error() {
    let program = Program::new();
    two_topics(&program);
    program.write("empty.txt", "");
    program.write("x.npy", "no matrix");
    for (args, parts) in [
        (&["cluster", "nowhere"][..], &["cannot find nowhere"][..]),
        (&["cluster", "empty.txt"], &["no text in"]),
        (&["cluster", "law.jsonl", "-k", "0"], &["law.jsonl"]),
        (&["cluster", "law.jsonl", "-k", "many"], &["--k many", "a number of clusters, or auto"]),
        (&["cluster", "law.jsonl", "-k", "41"], &["law.jsonl", "41", "40"]),
        (&["cluster", "law.jsonl", "--init", "x.npy"], &["--init x.npy", "nothing for text"]),
        (&["cluster", "law.jsonl", "--duplicates", "2"], &["--duplicates 2", "up to 1"]),
        (&["cluster", "law.jsonl", "--embedding", "nowhere"], &["nowhere"]),
        (&["cluster", "x.npy"], &["x.npy", "those of an .npy file"]),
        (&["cluster"], &["<DATA>"]),
    ] {
        let code = if parts.contains(&"those of an .npy file") { 4 } else { 2 };
        program.fails(args, code, parts);
    }
}

/// From text to a run that trains by its clusters, its audit, and the cluster of a prompt.
#[test]
fn a_run_by_clusters_can_be_audited() {
    let program = Program::new();
    let topics = ["bread flour oven yeast crust dough", "sail mast harbour tide anchor deck"];
    let text = |n: usize| [topics[n % 2]; 40].join(&format!(" {n} "));
    let line = |n: usize| format!("{}\n", serde_json::json!({ "text": text(n) }));
    program.write("text.jsonl", (0..40).map(line).collect::<String>());
    let found = program.run(&["cluster", "text.jsonl", "-k", "2", "--out", "topics"]);
    assert!(found.status.success(), "{}", stderr(&found));
    for (plan, of) in [("adaptive", "clusters_k=2"), ("ordered", "clusters=topics/clusters.safetensors")] {
        let (plan_is, of) = (format!("data.plan={plan}"), format!("data.{of}"));
        let train = ["train", "--data", "text.jsonl", "--out", plan, "--set", &plan_is, "--set", &of];
        let output = program.tiny(&train);
        assert!(stderr(&output).contains("2 clusters: "), "{}", stderr(&output));
        let audit = json(&program.run(&["audit", plan, "--json"]));
        assert_eq!((audit["steps"].as_u64(), audit["differing"].as_u64()), (Some(6), Some(0)), "{plan}");
    }
    let prompt = ["generate", "adaptive", "--prompt", "the tide at anchor", "--max-tokens", "2", "--json"];
    assert!(json(&program.run(&prompt))["cluster"]["index"].is_u64());
    let evaluated = json(&program.run(&["eval", "adaptive", "--data", "text.jsonl", "--json"]));
    assert_eq!(evaluated["clusters"].as_array().map(Vec::len), Some(2));
    program.fails(&["audit", "nothing"], 4, &["nothing"]);
    program.fails(&["train", "--out", "no", "--set", "data.plan=sorted"], 2, &["sorted", "stratified"]);
}

/// A shared start and two experts: trained, evaluated, continued, audited; and gone on with after a signal.
#[test]
fn experts_are_trained_and_mixed() {
    let program = Program::new();
    two_topics(&program);
    let data = ["--data", "law.jsonl", "cells.jsonl"];
    let sets = ["--set", "run.shared=0.5", "--set", "data.validation=0.2", "--set", "run.eval_tokens=1024"];
    let tiny = TINY.iter().filter(|set| !set.contains("eval_tokens")).flat_map(|set| ["--set", set]);
    let tiny: Vec<&str> = tiny.chain(sets).collect();
    let train = [&["train", "--experts", "2", "--out", "mix", "--json"][..], &data, &tiny].concat();
    let output = program.run(&train);
    let result = json(&output);
    let shown = stdout(&output);
    for part in ["mixture: ", "nearest expert: ", "shared start: ", "generate mix"] {
        assert!(shown.contains(part), "{part:?} in {shown}");
    }
    let loss = |of: &serde_json::Value| of["loss"].as_f64().unwrap();
    assert!(loss(&result) > 0.0 && loss(&result["nearest_expert"]) > 0.0, "{result}");
    for path in ["mix/shared/step-3", "mix/expert-0", "mix/expert-1", "mix/mixture.json"] {
        assert!(program.path().join(path).exists(), "{path}");
    }
    program.fails(&train, 2, &["already holds a run"]);
    // Going on where all is done changes no part, and finds the same losses.
    let before = tree(&program.path().join("mix"));
    let again = json(&program.run(&["train", "--out", "mix", "--resume", "--json"]));
    assert_eq!((&again["loss"], before), (&result["loss"], tree(&program.path().join("mix"))));

    let evaluate = [&["eval", "mix", "--json"][..], &data].concat();
    let evaluated = json(&program.run(&evaluate));
    assert!(loss(&evaluated["shared_start"]) > 0.0 && evaluated["clusters"].as_array().unwrap().len() == 2);
    let nearest = json(&program.run(&[&evaluate[..], &["--nearest", "1"]].concat()));
    assert!((loss(&nearest) - loss(&evaluated["nearest_expert"])).abs() < 1e-5);
    assert_eq!(loss(&nearest["nearest_expert"]), loss(&evaluated["nearest_expert"]));
    let smooth = json(&program.run(&[&evaluate[..], &["--expert-temperature", "100"]].concat()));
    assert!(loss(&smooth) != loss(&evaluated));
    program.fails(&[&evaluate[..], &["--expert-temperature", "0"]].concat(), 2, &["--expert-temperature 0"]);
    // A part is a run like any other.
    assert!(json(&program.run(&[&["eval", "mix/expert-0", "--json"][..], &data].concat()))["loss"].is_f64());
    let generate = ["generate", "mix", "--prompt", "the court", "--max-tokens", "8", "--seed", "3", "--json"];
    let (one, two) = (json(&program.run(&generate)), json(&program.run(&generate)));
    assert!(one["text"] == two["text"] && one["cluster"]["index"].is_u64());
    let audit = json(&program.run(&["audit", "mix", "--json"]));
    for part in ["shared", "expert-0", "expert-1"] {
        assert_eq!(audit[part]["differing"], 0, "{audit}");
    }
    program.fails(
        &[&["train", "--experts", "2", "--out", "no", "--set", "data.clusters_k=3"][..], &data].concat(),
        2,
        &["run.experts = 2: data.clusters_k = 3 must be the same"],
    );
}

/// Copies are found by `cluster`, left out of training, and the audit says so.
#[test]
fn near_duplicates_are_left_out() {
    let program = Program::new();
    let word = |n: u64, i: u64| ((i * 1000 + n).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) % 97;
    let text = |n: u64| (0..100).map(|i| format!("word{} ", word(n, i))).collect::<String>();
    let line = |n: u64| format!("{}\n", serde_json::json!({ "text": text(n % 30) }));
    // Ten of the thirty come twice.
    program.write("text.jsonl", (0..40).map(line).collect::<String>());
    let found = json(&program.run(&["cluster", "text.jsonl", "-k", "1", "--duplicates", "0.9", "--json"]));
    assert_eq!(found["duplicates"]["dropped"], 10, "{found}");
    assert_eq!(found["duplicates"]["clusters"][0]["pairs"][0]["resemblance"], 1.0);
    let train = ["train", "--data", "text.jsonl", "--out", "run", "--set", "data.duplicates=0.9"];
    let output = program.tiny(&[&train[..], &["--set", "data.clusters_k=1"]].concat());
    let said = stderr(&output);
    assert!(output.status.success() && said.contains("documents are left out"), "{said}");
    let audit = json(&program.run(&["audit", "run", "--json"]));
    let left_out = audit["left_out"][0].as_u64().unwrap();
    assert!((5..=10).contains(&left_out) && audit["differing"] == 0, "{audit}");
    assert!(audit["documents"][2].as_u64() >= Some(left_out), "not seen at all: {audit}");
    let resumed = program.run(&["train", "--out", "run", "--resume", "--set", "data.duplicates=0.5"]);
    assert!(resumed.status.code() == Some(5) && stderr(&resumed).contains("data.duplicates is 0.5"));
    assert!(program.run(&["train", "--out", "run", "--resume"]).status.success());
}
