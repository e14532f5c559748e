//! The log of a run, torn and cut.

use std::path::Path;

use serde_json::{Value, json};
use tritrain_files::faulty::Failure;
use tritrain_files::metrics::{Log, truncate_after};
use tritrain_files::{Disk, FaultyStorage, Storage};

fn path() -> &'static Path {
    Path::new("/metrics.jsonl")
}

fn written(steps: std::ops::Range<u64>) -> FaultyStorage {
    let storage = FaultyStorage::new();
    let mut log = Log::open(&storage, path()).unwrap();
    for step in steps {
        log.append(&json!({"step": step, "loss": 1.5 / step as f64})).unwrap();
    }
    log.sync().unwrap();
    storage
}

fn up_to(step: u64) -> impl FnMut(&Value) -> bool {
    move |value| value.get("step").and_then(Value::as_u64).is_some_and(|s| s <= step)
}

#[test]
fn a_resumed_log_equals_an_uninterrupted_one() {
    let whole = written(1..20).read(path()).unwrap();
    for cut in 0..=whole.len() {
        let storage = written(1..20);
        storage.damage(path(), |bytes| bytes.truncate(cut)).unwrap();
        let lines = whole[..cut].iter().filter(|&&b| b == b'\n').count() as u64;
        let kept = truncate_after(&storage, path(), up_to(12)).unwrap();
        assert_eq!(kept, lines.min(12), "cut at {cut}");
        let mut log = Log::open(&storage, path()).unwrap();
        for step in kept + 1..20 {
            log.append(&json!({"step": step, "loss": 1.5 / step as f64})).unwrap();
        }
        assert_eq!(storage.read(path()).unwrap(), whole, "cut at {cut}");
    }
}

#[test]
fn a_failed_append_spoils_its_own_line_only() {
    let storage = written(1..3);
    let mut log = Log::open(&storage, path()).unwrap();
    storage.fail_at(storage.operations(), Failure::NoSpace, false);
    log.append(&json!({"step": 3})).unwrap_err();
    log.append(&json!({"step": 4})).unwrap();
    drop(log);
    storage.damage(path(), |bytes| bytes.extend(b"{\"step\": 5")).unwrap();
    let mut log = Log::open(&storage, path()).unwrap();
    log.append(&json!({"step": 6})).unwrap();
    let mut seen = Vec::new();
    let keep = |value: &Value| {
        seen.push(value["step"].as_u64().unwrap());
        true
    };
    assert_eq!(truncate_after(&storage, path(), keep).unwrap(), 4);
    assert_eq!(seen, [1, 2, 4, 6]);
    assert_eq!(storage.read(path()).unwrap().iter().filter(|&&b| b == b'\n').count(), 4);
}

#[test]
fn no_log_is_an_empty_log() {
    assert_eq!(truncate_after(&FaultyStorage::new(), path(), |_| true).unwrap(), 0);
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("metrics.jsonl");
    Log::open(&Disk, &path).unwrap().append(&json!({"step": 1})).unwrap();
    Log::open(&Disk, &path).unwrap().append(&json!({"step": 2})).unwrap();
    assert_eq!(truncate_after(&Disk, &path, up_to(1)).unwrap(), 1);
    assert_eq!(Disk.read(&path).unwrap(), b"{\"step\":1}\n");
}
