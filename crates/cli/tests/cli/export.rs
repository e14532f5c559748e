//! Models for other programs.

use super::*;

#[test]
fn a_run_is_exported_verified_and_told_apart_from_another() {
    let program = Program::new();
    program.write("a.txt", prose());
    for (run, seed) in [("run", "run.seed=1"), ("other", "run.seed=2")] {
        assert!(program.tiny(&["train", "--data", "a.txt", "--out", run, "--set", seed]).status.success());
    }
    let export = ["export", "run", "--to", "gguf", "--type", "tq1_0", "--out", "new/a.gguf", "--json"];
    let exported = json(&program.run(&export));
    let length = fs::metadata(program.path().join("new/a.gguf")).unwrap().len();
    assert_eq!(exported["bytes"], length);
    assert_eq!((&exported["verified"]["tensors"], &exported["verified"]["rounded"]), (&13.into(), &1.into()));
    assert_eq!(exported["verified"]["tokens"], 1024, "validation text of the run");
    // Where it lies: the same words as the model's, whose embedding is not rounded to fp16.
    let inspected = json(&program.run(&["inspect", "new/a.gguf", "--json"]));
    assert_eq!(inspected["metadata"]["general.architecture"], "bitnet");
    assert!(inspected["tensors"].as_array().unwrap().iter().any(|tensor| tensor["dtype"] == "TQ1_0"));
    let said = |model| {
        let options = ["--prompt", "the", "--max-tokens", "4", "--temperature", "0", "--json"];
        json(&program.run(&[&["generate", model][..], &options].concat()))
    };
    let found = said("new/a.gguf");
    assert_eq!(found["text"], said("run")["text"]);
    assert!(found["load_seconds"].as_f64().unwrap() > 0.0 && found["prompt_tokens"].as_u64().unwrap() > 1);
    let from = ["train", "--from", "new/a.gguf", "--out", "on"];
    program.fails(&from, 2, &["new/a.gguf", "tritrain import"]);
    let verified = json(&program.run(&["verify", "run", "new/a.gguf", "--json"]));
    assert_eq!(verified, exported["verified"]);
    program.fails(&["verify", "other", "new/a.gguf"], 5, &["new/a.gguf", "differs"]);
    program.fails(&export, 4, &["new/a.gguf exists", "choose another name"]);

    let shown = stdout(&program.run(&["export", "run", "--to", "hf", "--out", "hf", "--text", "a.txt"]));
    for part in ["exported to hf", "tensors equal, exactly", "logits differ by 0", "activations in floats"] {
        assert!(shown.contains(part), "{part:?} in {shown}");
    }
    assert!(program.run(&["verify", "run", "hf"]).status.success());
    program.write("hf/model.safetensors", "x");
    program.fails(&["verify", "run", "hf"], 4, &["model.safetensors", "header"]);
    program.fails(&["verify", "run", "a.txt"], 4, &["magic", "GGUF"]);
}

#[test]
fn what_cannot_be_exported_is_refused_with_the_reason() {
    let program = Program::new();
    program.write("a.txt", prose());
    let gate = ["train", "--data", "a.txt", "--out", "run", "--set", "model.gate=relu2"];
    assert!(program.tiny(&gate).status.success());
    let export = |rest: &'static [&'static str]| [&["export", "run", "--out", "o"], rest].concat();
    program.fails(&export(&["--to", "gguf"]), 2, &["relu²", "--to hf"]);
    program.fails(&export(&["--to", "hf", "--type", "tq2_0"]), 2, &["--type", "f32, f16 or bf16"]);
    program.fails(&export(&["--to", "hf", "--type", "f16"]), 2, &["round activations"]);
    program.fails(&export(&["--to", "gguf", "--mode", "online"]), 2, &["--mode", "--to hf"]);
    let both = ["--to", "hf", "--mode", "online", "--linear-class", "bitlinear"];
    program.fails(&[&["export", "run", "--out", "o"], &both[..]].concat(), 2, &["autobitlinear with"]);
    assert!(!program.path().join("o").exists());
}
