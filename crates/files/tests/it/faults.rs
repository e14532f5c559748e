//! Power loss, full disks and broken disks at every operation (FAULTS.md A3, A4, A6).

use std::path::Path;

use tritrain_files::checkpoint::{newest, open, prune};
use tritrain_files::faulty::{Failure, PowerLoss};
use tritrain_files::tokens::{CorpusWriter, Split, TokenCorpus};
use tritrain_files::{Error, FaultyStorage, Result, Storage, write_atomic};

use crate::common::{dir, holds, put, run};

const LEN: usize = 3000;

fn losses(seeds: u64) -> impl Iterator<Item = PowerLoss> {
    [PowerLoss::DropAll, PowerLoss::KeepAll].into_iter().chain((0..seeds).map(PowerLoss::Random))
}

/// A storage with durable checkpoints of these steps, the seed of the content equal to the step.
fn with_steps(steps: &[u64]) -> FaultyStorage {
    let storage = FaultyStorage::new();
    for &step in steps {
        put(&storage, step, step, LEN).unwrap();
    }
    storage.crash(PowerLoss::DropAll)
}

/// Cuts the power at every operation of `act`, and looks at 34 states of the disk for each.
fn power_off_everywhere(
    start: &FaultyStorage,
    act: impl Fn(&FaultyStorage) -> Result<()>,
    check: impl Fn(&FaultyStorage, bool, &str),
) -> u64 {
    let whole = start.fork();
    act(&whole).unwrap();
    let operations = whole.operations() - start.operations();
    let mut states = 0;
    for n in 0..=operations {
        let storage = start.fork();
        storage.fail_at(start.operations() + n, Failure::PowerOff, true);
        let done = act(&storage).is_ok();
        assert!(done || n < operations);
        for loss in losses(32) {
            let left = storage.crash(loss);
            check(&left, done, &format!("operation {n} of {operations}, {loss:?}"));
            states += 1;
        }
    }
    states
}

#[test]
fn power_loss_during_a_save_leaves_old_or_new() {
    let start = with_steps(&[5]);
    let states = power_off_everywhere(
        &start,
        |storage| put(storage, 10, 10, LEN).map(drop),
        |left, done, place| {
            let found = newest(left, run()).expect(place).expect(place);
            assert!(!done || found.step == 10, "{place}: saved, then lost");
            assert!(holds(left, &found, found.step, LEN), "{place}");
            // The run goes on: the same step again, then clean up.
            put(left, 10, 10, LEN).expect(place);
            prune(left, run(), 1, &[]).expect(place);
            assert_eq!(left.list(run()).unwrap().len(), 1, "{place}");
        },
    );
    assert!(states > 500, "{states} states");
}

#[test]
fn power_loss_during_the_first_save_leaves_nothing_or_all() {
    power_off_everywhere(
        &FaultyStorage::new(),
        |storage| put(storage, 1, 1, LEN).map(drop),
        |left, done, place| match newest(left, run()).expect(place) {
            Some(found) => assert!(holds(left, &found, 1, LEN), "{place}"),
            None => assert!(!done, "{place}: saved, then lost"),
        },
    );
}

#[test]
fn power_loss_while_a_step_is_replaced_leaves_one_of_both() {
    power_off_everywhere(
        &with_steps(&[5]),
        |storage| put(storage, 5, 77, LEN).map(drop),
        |left, done, place| {
            let found = newest(left, run()).expect(place).expect(place);
            assert_eq!(found.step, 5);
            let (old, new) = (holds(left, &found, 5, LEN), holds(left, &found, 77, LEN));
            assert!(if done { new } else { old || new }, "{place}");
            prune(left, run(), 1, &[]).expect(place);
            assert_eq!(newest(left, run()).expect(place).expect(place).manifest, found.manifest, "{place}");
        },
    );
}

#[test]
fn power_loss_during_pruning_keeps_the_newest() {
    let start = with_steps(&[1, 2, 3, 4]);
    power_off_everywhere(
        &start,
        |storage| prune(storage, run(), 2, &[1]),
        |left, done, place| {
            let found = newest(left, run()).expect(place).expect(place);
            assert_eq!(found.step, 4, "{place}");
            let steps = [1, 2, 3, 4].map(|step| left.exists(&dir(step)).unwrap().then_some(step));
            assert!(
                matches!(steps, [Some(1), _, Some(3), Some(4)]) && !(done && steps[1].is_some()),
                "{place}"
            );
            // Step 2 is there or gone, never half there.
            steps.into_iter().flatten().for_each(|step| drop(open(left, &dir(step)).expect(place)));
        },
    );
}

#[test]
fn power_loss_during_an_atomic_write_leaves_old_or_new() {
    let path = Path::new("/best");
    let (old, new) = (vec![1; 1500], vec![2; 2500]);
    let start = FaultyStorage::new();
    write_atomic(&start, path, &old).unwrap();
    power_off_everywhere(
        &start.crash(PowerLoss::DropAll),
        |storage| write_atomic(storage, path, &new),
        |left, done, place| {
            let found = left.read(path).expect(place);
            assert!(found == new || (!done && found == old), "{place}");
        },
    );
}

#[test]
fn power_loss_while_tokenizing_leaves_no_corpus_or_a_whole_one() {
    let dir = Path::new("/run/tokens");
    let write = |storage: &FaultyStorage| {
        let mut writer = CorpusWriter::create(storage, dir, 100, 0, "t", "s")?.with_shard_bytes(512);
        for n in 0..30u32 {
            let split = if n % 5 == 0 { Split::Validation } else { Split::Train };
            writer.document(split, "web", "doc", 9, &vec![n; n as usize * 3])?;
        }
        writer.finish().map(drop)
    };
    power_off_everywhere(&FaultyStorage::new(), write, |left, done, place| {
        if done || left.exists(dir).unwrap() {
            TokenCorpus::open(left, dir).expect(place).verify(left).expect(place);
        }
    });
}

/// Fails every operation of a save, once and for ever, and saves again after the repair.
fn fail_everywhere(how: Failure, lasting: bool, short: Option<u64>) {
    let start = with_steps(&[5]);
    let whole = start.fork();
    whole.short_writes(short.unwrap_or_default());
    put(&whole, 10, 10, LEN).unwrap();
    for n in 0..whole.operations() {
        let storage = start.fork();
        if let Some(seed) = short {
            storage.short_writes(seed);
        }
        storage.fail_at(n, how, lasting);
        let saved = put(&storage, 10, 10, LEN);
        storage.heal();
        let place = format!("{how:?} lasting {lasting} at {n}: {saved:?}");
        let found = newest(&storage, run()).expect(&place).expect(&place);
        assert!(holds(&storage, &found, found.step, LEN), "{place}");
        match saved {
            Ok(_) => assert_eq!(found.step, 10, "{place}"),
            Err(error) => {
                assert_eq!(error.exit_code(), 4);
                let space = matches!(error, Error::NoSpace { needed, .. } if needed > 4000);
                assert!(space || how != Failure::NoSpace, "{place}");
            }
        }
        put(&storage, 10, 10, LEN).expect(&place);
        let left = storage.crash(PowerLoss::DropAll);
        let found = newest(&left, run()).expect(&place).expect(&place);
        assert!(found.step == 10 && holds(&left, &found, 10, LEN), "{place}");
    }
}

#[test]
fn a_full_disk_costs_no_checkpoint() {
    fail_everywhere(Failure::NoSpace, false, None);
    fail_everywhere(Failure::NoSpace, true, Some(3));
}

#[test]
fn a_broken_disk_costs_no_checkpoint() {
    fail_everywhere(Failure::Io, false, None);
    fail_everywhere(Failure::Io, true, None);
    fail_everywhere(Failure::Io, false, Some(4));
}

#[test]
fn a_broken_disk_costs_no_checkpoint_while_replacing_one() {
    let start = with_steps(&[5]);
    let whole = start.fork();
    put(&whole, 5, 77, LEN).unwrap();
    for (n, lasting) in (0..whole.operations()).flat_map(|n| [(n, false), (n, true)]) {
        let storage = start.fork();
        storage.fail_at(n, Failure::Io, lasting);
        let saved = put(&storage, 5, 77, LEN);
        for left in [storage.crash(PowerLoss::DropAll), storage.crash(PowerLoss::KeepAll)] {
            let found = newest(&left, run()).unwrap().unwrap();
            let new = holds(&left, &found, 77, LEN);
            assert!(new || (saved.is_err() && holds(&left, &found, 5, LEN)), "operation {n}: {saved:?}");
        }
    }
}

#[test]
fn every_size_of_a_small_disk_is_an_error_or_enough() {
    let mut saved = 0;
    for capacity in (0..20_000).step_by(256) {
        let storage = with_steps(&[5]);
        storage.set_capacity(capacity);
        match put(&storage, 10, 10, LEN) {
            Ok(_) => saved += 1,
            Err(Error::NoSpace { needed, free, .. }) => assert!(free < needed),
            Err(error) => panic!("{error}"),
        }
        let found = newest(&storage, run()).unwrap().unwrap();
        assert!(holds(&storage, &found, found.step, LEN));
    }
    assert!(saved > 10, "{saved}");
}

#[test]
fn a_save_that_would_fill_the_disk_does_not_start() {
    let storage = with_steps(&[5]);
    let files = storage.list(&dir(5)).unwrap();
    let used: u64 = files.iter().map(|path| storage.len(path).unwrap()).sum();
    storage.set_capacity(2 * used + used / 20);
    let before = storage.operations();
    let error = put(&storage, 10, 10, LEN).unwrap_err();
    assert!(matches!(error, Error::NoSpace { what: "save checkpoint", .. }), "{error}");
    assert!(storage.operations() - before < 5, "it only looked");
}

#[test]
fn a_read_error_falls_back_and_never_looks_like_a_new_run() {
    let start = with_steps(&[5, 10]);
    let whole = start.fork();
    newest(&whole, run()).unwrap();
    let mut fell_back = 0;
    for n in 0..whole.operations() {
        let storage = start.fork();
        storage.fail_at(n, Failure::Io, false);
        match newest(&storage, run()) {
            Ok(found) => fell_back += u32::from(found.expect("a candidate").step == 5),
            Err(error) => assert!(matches!(error, Error::Io { .. }), "{error}"),
        }
        let storage = start.fork();
        storage.fail_at(n, Failure::Io, true);
        newest(&storage, run()).expect_err("nothing can be read");
    }
    assert!(fell_back > 5);
}

/// The double itself: without it the tests above would show nothing.
#[test]
fn the_double_loses_what_was_not_synced() {
    let storage = FaultyStorage::new();
    let path = Path::new("/file");
    let mut sink = storage.create_new(path).unwrap();
    sink.write_all(&[7; 2000]).unwrap();
    assert!(!storage.crash(PowerLoss::DropAll).exists(path).unwrap());
    assert_eq!(storage.crash(PowerLoss::KeepAll).read(path).unwrap(), [7; 2000]);
    storage.sync_dir(Path::new("/")).unwrap();
    assert!(storage.crash(PowerLoss::DropAll).read(path).unwrap().is_empty());
    let torn = (0..64).map(|seed| storage.crash(PowerLoss::Random(seed)).read(path).unwrap());
    let torn = torn.filter(|bytes| bytes.contains(&7) && bytes[..] != [7; 2000]).count();
    assert!(torn > 10, "{torn} of 64");
    // A failed sync forgets which pages were dirty, and the next one has nothing to do.
    storage.fail_at(storage.operations(), Failure::Io, false);
    sink.sync().expect_err("injected");
    sink.sync().unwrap();
    assert_ne!(storage.crash(PowerLoss::DropAll).read(path).unwrap(), [7; 2000]);
}
