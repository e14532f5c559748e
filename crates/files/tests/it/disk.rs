//! The real disk: what memory cannot show (FAULTS.md A5, A11, A12, A13).

use std::path::Path;
use std::process::{Command, Stdio};

use tritrain_files::checkpoint::{lock, newest, prune};
use tritrain_files::faulty::{Failure, PowerLoss};
use tritrain_files::{Disk, Draft, Error, FaultyStorage, Result, Storage, write_atomic};

use crate::common::{content, identity, parts};

fn save(run: &Path, step: u64) -> std::path::PathBuf {
    let content = content(step, 5000);
    tritrain_files::checkpoint::save(&Disk, run, step, &parts(&content), &identity(), true).unwrap()
}

#[test]
fn checkpoints_on_disk() {
    let temp = tempfile::tempdir().unwrap();
    let run = temp.path().join("runs/deep/a");
    assert!(newest(&Disk, &run).unwrap().is_none());
    for step in [5, 10, 15] {
        save(&run, step);
    }
    // Mapped while it is replaced and removed (A13).
    let found = newest(&Disk, &run).unwrap().unwrap();
    let mapped = found.read(&Disk, "model.safetensors").unwrap();
    let other = content(99, 5000);
    tritrain_files::checkpoint::save(&Disk, &run, 15, &parts(&other), &identity(), true).unwrap();
    prune(&Disk, &run, 1, &[]).unwrap();
    assert_eq!(mapped[..], content(15, 5000)[0].1[..]);
    assert_eq!(Disk.list(&run).unwrap(), [run.join("step-15")]);
}

#[test]
fn memory_and_disk_write_the_same_bytes() {
    let temp = tempfile::tempdir().unwrap();
    let memory = FaultyStorage::new();
    let content = content(3, 5000);
    let saved = |storage: &dyn Storage, run: &Path| {
        let dir =
            tritrain_files::checkpoint::save(storage, run, 3, &parts(&content), &identity(), true).unwrap();
        storage.list(&dir).unwrap().iter().map(|path| storage.read(path).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(saved(&Disk, &temp.path().join("run")), saved(&memory, Path::new("/run")));
}

#[test]
fn atomic_writes_replace() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("best");
    for text in ["old", "new and longer", ""] {
        write_atomic(&Disk, &path, text.as_bytes()).unwrap();
        assert_eq!(Disk.read(&path).unwrap(), text.as_bytes());
        assert_eq!(Disk.map(&path).unwrap()[..], *text.as_bytes());
    }
    assert_eq!(Disk.list(temp.path()).unwrap(), std::slice::from_ref(&path));
    Disk.create_new(&path).err().expect("exists");
    let error = write_atomic(&Disk, &temp.path().join("none/best"), b"x").unwrap_err();
    assert!(error.to_string().contains("none/best") && error.exit_code() == 4, "{error}");
}

#[cfg(unix)]
#[test]
fn modes_come_from_the_umask_and_links_are_refused() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let temp = tempfile::tempdir().unwrap();
    let plain = temp.path().join("plain");
    std::fs::write(&plain, b"x").unwrap();
    let real = temp.path().join("real");
    let linked = temp.path().join("linked");
    std::fs::create_dir(&real).unwrap();
    symlink(&real, &linked).unwrap();
    let dir = save(&linked, 1);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode();
    let state = dir.join("state.json");
    assert_eq!(mode(&state), mode(&plain));
    assert_eq!(newest(&Disk, &linked).unwrap().unwrap().step, 1);
    // Same bytes, but somewhere else.
    std::fs::rename(&state, temp.path().join("elsewhere")).unwrap();
    symlink(temp.path().join("elsewhere"), &state).unwrap();
    assert!(matches!(newest(&Disk, &linked), Err(Error::NoneLoads { .. })));
}

#[test]
fn a_second_lock_names_the_holder() {
    let temp = tempfile::tempdir().unwrap();
    let run = temp.path().join("run");
    let first = lock(&run).unwrap();
    let error = lock(&run).unwrap_err();
    assert!(matches!(&error, Error::Locked { holder, .. } if *holder == std::process::id().to_string()));
    assert_eq!(error.exit_code(), 4);
    drop(first);
    assert_eq!(lock(&run).unwrap().path(), run.join(".lock"));
}

#[test]
fn a_folder_is_there_as_a_whole_or_not_at_all() {
    let path = Path::new("/d/out");
    let make = |storage: &FaultyStorage| -> Result<()> {
        let draft = Draft::folder(storage, path)?;
        write_atomic(storage, &draft.path().join("a"), b"one")?;
        write_atomic(storage, &draft.path().join("b"), b"two")?;
        draft.finish()
    };
    let fresh = || {
        let storage = FaultyStorage::new();
        storage.create_dir_all(Path::new("/d")).unwrap();
        storage.sync_dir(Path::new("/")).unwrap();
        storage
    };
    let whole = fresh();
    let first = whole.operations();
    make(&whole).unwrap();
    for how in [Failure::Io, Failure::NoSpace, Failure::PowerOff] {
        for at in first..whole.operations() {
            let storage = fresh();
            storage.fail_at(at, how, false);
            let made = make(&storage);
            let after = storage.crash(PowerLoss::DropAll);
            if made.is_ok() || after.exists(path).unwrap() {
                assert_eq!(after.read(&path.join("a")).unwrap(), b"one", "{how:?} {at}");
                assert_eq!(after.read(&path.join("b")).unwrap(), b"two");
            }
        }
    }
    let storage = FaultyStorage::new();
    storage.create_dir_all(Path::new("/d")).unwrap();
    make(&storage).unwrap();
    assert!(matches!(make(&storage), Err(Error::Exists { .. })), "what is there stays");
    drop(Draft::folder(&storage, Path::new("/d/other")).unwrap());
    assert_eq!(storage.list(Path::new("/d")).unwrap(), [path], "a draft that is dropped leaves nothing");
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(!Disk.exists(&file.path().join("below a file")).unwrap());
}

/// Not a test of its own: the other process of [`a_killed_holder_frees_the_lock`].
#[test]
fn holder_of_a_lock() {
    if let Some(run) = std::env::var_os("TRITRAIN_TEST_LOCK") {
        let _lock = lock(Path::new(&run)).unwrap();
        std::fs::write(Path::new(&run).join("ready"), b"").unwrap();
        std::thread::sleep(std::time::Duration::from_secs(60));
    }
}

#[test]
fn a_killed_holder_frees_the_lock() {
    let temp = tempfile::tempdir().unwrap();
    let run = temp.path();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "disk::holder_of_a_lock"])
        .env("TRITRAIN_TEST_LOCK", run)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    while !run.join("ready").exists() {
        assert!(child.try_wait().unwrap().is_none(), "the holder ended");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let error = lock(run).unwrap_err().to_string();
    assert!(error.contains(&child.id().to_string()), "{error}");
    child.kill().unwrap();
    child.wait().unwrap();
    lock(run).unwrap();
}
