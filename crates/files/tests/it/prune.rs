//! Pruning never loses the last checkpoint that is known to be good (FAULTS.md A10).

use proptest::prelude::*;
use tritrain_files::checkpoint::{before, discard_after, newest, open, prune, save};
use tritrain_files::faulty::{Failure, PowerLoss};
use tritrain_files::{FaultyStorage, Storage, write_atomic};

use crate::common::{content, dir, identity, parts, put, run};

fn steps(storage: &FaultyStorage) -> Vec<u64> {
    let names = storage.list(run()).unwrap();
    let mut steps: Vec<u64> =
        names.iter().filter_map(|p| p.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()).collect();
    steps.sort_unstable();
    steps
}

#[test]
fn keeps_the_newest_and_the_protected() {
    let storage = FaultyStorage::new();
    for step in 1..=6 {
        put(&storage, step, step, 300).unwrap();
    }
    prune(&storage, run(), 3, &[2]).unwrap();
    assert_eq!(steps(&storage), [2, 4, 5, 6]);
    prune(&storage, run(), 0, &[]).unwrap();
    assert_eq!(steps(&storage), [6]);
    prune(&storage, std::path::Path::new("/none"), 1, &[]).unwrap();
}

#[test]
fn looks_behind_broken_and_unhealthy_ones() {
    let storage = FaultyStorage::new();
    for step in 1..=4 {
        put(&storage, step, step, 300).unwrap();
    }
    let bad = content(5, 300);
    save(&storage, run(), 5, &parts(&bad), &identity(), false).unwrap();
    for step in [3, 4] {
        storage.damage(&dir(step).join("state.json"), |bytes| bytes[0] ^= 1).unwrap();
    }
    prune(&storage, run(), 1, &[]).unwrap();
    assert_eq!(steps(&storage), [2, 3, 4, 5]);
    // None good: nothing goes.
    storage.damage(&dir(2).join("state.json"), |bytes| bytes[0] ^= 1).unwrap();
    prune(&storage, run(), 1, &[]).unwrap();
    assert_eq!(steps(&storage), [2, 3, 4, 5]);
}

#[test]
fn removes_what_interrupted_writes_left() {
    let storage = FaultyStorage::new();
    put(&storage, 1, 1, 300).unwrap();
    storage.create_dir_all(&run().join("step-2.tmp-17-0")).unwrap();
    write_atomic(&storage, &run().join("step-2.tmp-17-0/model.safetensors"), b"half").unwrap();
    write_atomic(&storage, &run().join("best.tmp-17-1"), b"half").unwrap();
    for stays in ["config.toml", "notes.tmp-mine", "step-notes.txt"] {
        write_atomic(&storage, &run().join(stays), b"mine").unwrap();
    }
    prune(&storage, run(), 1, &[]).unwrap();
    let left: Vec<_> = storage.list(run()).unwrap();
    let names: Vec<_> = left.iter().filter_map(|p| p.file_name()?.to_str()).collect();
    assert_eq!(names, ["config.toml", "notes.tmp-mine", "step-1", "step-notes.txt"]);
}

#[test]
fn what_comes_after_a_step_is_discarded_newest_first() {
    for fail_after in 0..40 {
        for how in [Failure::Io, Failure::PowerOff] {
            let mut storage = FaultyStorage::new();
            for step in 1..=5 {
                put(&storage, step, step, 300).unwrap();
            }
            storage.damage(&dir(3).join("state.json"), |bytes| bytes[0] ^= 1).unwrap();
            // The newest sound one that is old enough, else the oldest sound one.
            let found = |step: u64| before(&storage, run(), step).unwrap().map(|checkpoint| checkpoint.step);
            assert_eq!([9, 5, 4, 3, 2, 1, 0].map(found), [5, 5, 4, 2, 2, 1, 1].map(Some));
            storage.fail_at(storage.operations() + fail_after, how, false);
            let discarded = discard_after(&storage, run(), 2);
            storage.heal();
            if discarded.is_err() && how == Failure::PowerOff {
                storage = storage.crash(PowerLoss::Random(fail_after));
            }
            let left = steps(&storage);
            assert_eq!(left, (1..=left.len() as u64).collect::<Vec<_>>(), "{how:?} after {fail_after}");
            assert!(left.len() >= 2 && (discarded.is_err() || left == [1, 2]), "{left:?}");
            discard_after(&storage, run(), 2).unwrap();
            assert_eq!(steps(&storage), [1, 2]);
        }
    }
    let none = FaultyStorage::new();
    assert!(before(&none, run(), 5).unwrap().is_none());
    discard_after(&none, run(), 5).unwrap();
}

#[derive(Debug, Clone)]
enum Act {
    Save { step: u64, healthy: bool },
    Damage(u64),
    Prune { keep: usize, protect: Option<u64>, fail_after: Option<(u64, Failure)> },
    PowerLoss(u64),
}

fn act() -> impl Strategy<Value = Act> {
    let failure = prop_oneof![Just(Failure::Io), Just(Failure::PowerOff)];
    prop_oneof![
        4 => (0..12u64, prop::bool::weighted(0.7)).prop_map(|(step, healthy)| Act::Save { step, healthy }),
        2 => (0..12u64).prop_map(Act::Damage),
        3 => (0..4usize, prop::option::of(0..12u64), prop::option::of((0..40u64, failure)))
            .prop_map(|(keep, protect, fail_after)| Act::Prune { keep, protect, fail_after }),
        1 => any::<u64>().prop_map(Act::PowerLoss),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_keeps_what_would_be_resumed(acts in prop::collection::vec(act(), 1..14)) {
        let mut storage = FaultyStorage::new();
        for (turn, act) in acts.into_iter().enumerate() {
            match act {
                Act::Save { step, healthy } => {
                    let content = content(turn as u64, 90);
                    // Refused when it would replace a healthy one by an unhealthy one.
                    let _ = save(&storage, run(), step, &parts(&content), &identity(), healthy);
                }
                Act::Damage(step) => {
                    let _ = storage.damage(&dir(step).join("state.json"), |bytes| bytes[0] ^= 1);
                }
                Act::PowerLoss(seed) => storage = storage.crash(PowerLoss::Random(seed)),
                Act::Prune { keep, protect, fail_after } => {
                    let before = newest(&storage, run()).ok().flatten();
                    let protected = protect.filter(|&step| open(&storage, &dir(step)).is_ok());
                    if let Some((after, how)) = fail_after {
                        storage.fail_at(storage.operations() + after, how, false);
                    }
                    let pruned = prune(&storage, run(), keep, protect.as_slice());
                    let power = fail_after.is_some_and(|(_, how)| how == Failure::PowerOff) && pruned.is_err();
                    storage.heal();
                    if power {
                        storage = storage.crash(PowerLoss::Random(turn as u64));
                    }
                    let after = newest(&storage, run()).ok().flatten();
                    prop_assert_eq!(&before, &after);
                    if let Some(step) = protected {
                        prop_assert!(open(&storage, &dir(step)).is_ok());
                    }
                }
            }
        }
    }
}
