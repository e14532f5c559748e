//! Devices and single operations.

use std::fs;

use crate::{Program, json, stderr, stdout};

#[test]
fn a_device_that_is_not_there_is_an_error_before_anything_else() {
    let program = Program::new();
    let wanted = [
        ("gpu", "gpu"),
        ("cuda", "cuda"),
        ("hip", "hip"),
        ("vulkan", "gpu"),
        ("metal", "gpu"),
        ("software", "gpu"),
    ];
    for (device, feature) in wanted {
        let feature = format!("--features {feature}");
        let parts = [device, "built without GPUs", &feature, "--device cpu"];
        program.fails(&["train", "--data", "absent", "--device", device], 2, &parts);
        program.fails(&["generate", "absent", "--device", device], 2, &parts);
        program.fails(&["eval", "absent", "--data", "absent", "--device", device], 2, &parts);
        program.fails(&["bench", "backends", "--device", device], 2, &parts);
        program.fails(&["bench", "dispatcher", "--device", device], 2, &parts);
    }
    for device in ["auto", "cpu"] {
        program.fails(&["train", "--data", "absent.txt", "--device", device], 2, &["absent.txt"]);
    }
    program.fails(&["train", "--device", "abacus"], 2, &["abacus", "auto", "cpu", "software"]);
    assert!(!program.path().join("runs").exists());
}

#[test]
fn devices_says_what_there_is_and_keeps_what_it_measured() {
    let program = Program::new();
    let cache = program.path().join("cache");
    let devices = || {
        let output = program.command(&["devices", "--json"]).env("XDG_CACHE_HOME", &cache).output().unwrap();
        (json(&output), stdout(&output), stderr(&output))
    };
    let file = cache.join("tritrain/calibration.json");
    let (report, text, _) = devices();
    let tiers = report["processor"]["tiers"].as_array().unwrap();
    assert_eq!(tiers[0]["name"], "scalar");
    for tier in tiers {
        let usable = report["tiers"].as_array().unwrap().contains(&tier["name"]);
        assert_eq!(usable, tier["unusable"].is_null(), "{tier}");
        assert_eq!(usable, tier["speed"][0]["ternary_gmacs"].as_f64() > Some(0.0), "{tier}");
    }
    assert!(report["auto"].as_str().unwrap().starts_with("cpu, "), "{report}");
    for decision in report["single_operations"].as_array().unwrap() {
        assert_ne!(decision["chosen"], "gpu");
        let weighed = decision["weighed"].as_array().unwrap();
        assert!(
            weighed.iter().all(|of| of["predicted_s"].is_null() != of["excluded"].is_null()),
            "{decision}"
        );
    }
    assert!(text.contains("not usable: this program was built without GPUs"), "{text}");

    let kept = fs::read_to_string(&file).unwrap();
    assert!(devices().2.is_empty());
    assert_eq!(fs::read_to_string(&file).unwrap(), kept, "nothing was measured anew");
    fs::write(&file, "{").unwrap();
    assert!(devices().2.contains("is not used and replaced"));
    let mended: serde_json::Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert!(mended["costs"]["quantize"]["scalar"]["by_work"].as_f64() > Some(0.0));
}

#[test]
fn single_operations_are_measured_on_every_engine() {
    let program = Program::new();
    let report = json(&program.run(&["bench", "backends", "--runs=1", "--threads=2", "--json"]));
    let rows = report["backends"].as_array().unwrap();
    for operation in ["quantize", "dequantize", "kmeans", "matmul", "ternary_matmul"] {
        let of: Vec<_> = rows.iter().filter(|row| row["operation"] == operation).collect();
        assert!(of.len() >= 2 && of.iter().all(|row| row["ms"].as_f64() > Some(0.0)), "{operation}: {of:?}");
        assert_eq!(of[0]["over_scalar"], 1.0);
        assert_eq!(of.iter().filter(|row| row["chosen"] == true).count(), 1, "{of:?}");
        let inertia: Vec<_> = of.iter().map(|row| &row["inertia"]).collect();
        assert!(inertia.iter().all(|of| *of == inertia[0] && of.is_number() == (operation == "kmeans")));
    }
    assert!(report["absent"].as_array().unwrap().iter().any(|of| of[0] == "gpu"), "{report}");
    program.fails(&["bench", "backends", "--arrays", "absent"], 4, &["absent/numbers.npy"]);

    let report = json(&program.run(&["bench", "dispatcher", "--count=5", "--threads=2", "--json"]));
    assert_eq!(report["choices"].as_array().unwrap().len(), 5);
}
